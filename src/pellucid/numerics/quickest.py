"""Which library multiplies by a stored matrix in less time on this machine: measured, not guessed from its name.

Torch asks MKL for products in float32. oneDNN, which torch brings along, takes half of the time on one processor and
twice as much on another, and it depends on the shape. So the first product of each class of shapes is taken by both, a
few times each, and the quicker one is kept for the process: the same shapes are rounded alike from then on. Where the
caller allows a second copy of the weights, oneDNN is also measured with the weight in the order in which it reads it
(packed). Only fast numerics ask here.

The environment variable PELLUCID_PRODUCTS says otherwise: `torch`, `onednn` or `packed` to take one of them without
measuring, or the path of a JSON file in which what was measured is kept for later processes.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.atomic import write_text
from pellucid.errors import NumericsError, shown

VARIABLE = "PELLUCID_PRODUCTS"
LIBRARIES = ("torch", "onednn")
PACKED = "packed"
WAYS = (*LIBRARIES, PACKED)
"""What may take a product: a library, or oneDNN of a packed copy of the weight, for whoever asks for copies."""

PACKED_SIDE = 64
"""Numbers that the sides of a packed matrix are filled up to whole multiples of, at most."""

SMALL = 2**20
"""Multiplications in a product below which nothing is measured: oneDNN's longer call eats what it could gain."""

MEASURED = 2**28
"""Multiplications in a product that is measured, if they can be so few: some 3 ms. A larger one is cut, rows first."""

FEWEST_ROWS = 64
"""Rows that a cut leaves: with fewer, reading the weights decides."""

MOST_ROWS = 512
"""Rows from which on more of them change nothing about which library is quicker."""

CLEARLY = 0.95
"""The share of the time of the way chosen before that another must stay below, so that noise alone chooses none."""

MOST_ANSWERS = 4096
"""Shapes for which an answer is kept; texts of any length would fill the memory."""

ROUNDS = 3
LONGEST = 0.1
"""Seconds after which a measurement ends with fewer rounds, as on a machine that others use."""


class Product(NamedTuple):
    """What decides which library is quicker."""

    rows: int  # rows of values, rounded up to a power of two
    inputs: int  # values in a row
    outputs: int  # results for each row
    by_outputs: bool  # whether the numbers of one output lie side by side in memory, as torch's Linear stores them
    biased: bool  # whether a bias is added
    threads: int  # how many torch uses
    may_pack: bool = False  # whether a packed copy of the weight may be read, too


class Choice(NamedTuple):
    """The way that is taken, one of `WAYS`, and the billions of operations a second that each reached."""

    library: str
    rates: dict[str, float]


_inside: ContextVar[str] = ContextVar("the library inside `one_library`", default="")
_chosen: dict[Product, Choice] = {}
_answers: dict[tuple[object, ...], str] = {}
_measuring = threading.Lock()
_read: set[str] = set()
"""Files whose choices were taken over."""


def choices() -> dict[Product, Choice]:
    """What was measured or read in this process so far."""
    return dict(_chosen)


def forget() -> None:
    """Forget what was measured and read, so that it is measured or read again."""
    with _measuring:
        _chosen.clear()
        _answers.clear()
        _read.clear()


def library_of_most(run: Callable[[], object]) -> str:
    """The way that takes most kinds of products, those of a run among them; the wished one, if there is one."""
    wish = _wish()
    if wish in WAYS:
        return wish
    run()
    taken = [choice.library for choice in choices().values()]
    return max(WAYS, key=taken.count)


@contextmanager
def one_library(name: str) -> Generator[None]:
    """Take all products inside by one library, so no measurement decides about bits; "" changes nothing."""
    before = _inside.set(name or _inside.get())
    try:
        yield
    finally:
        _inside.reset(before)


# `os.environ.get` takes two microseconds to say that a name is not there, by an exception inside; every product asks
_ENVIRONMENT: dict[Any, Any] = vars(os.environ)["_data"]
_NAME = os.environ.encodekey(VARIABLE)


def _wish() -> str:
    """The library or the file that this process is told to use; "" for neither."""
    inside = _inside.get()
    said = None if inside else _ENVIRONMENT.get(_NAME)
    return os.environ.decodevalue(said) if said else inside


def by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [R, I], weight [O, I] as a view of what is stored, bias [O] or none -> [R, O], as exact numerics do."""
    return (
        torch.addmm(bias, x, weight.t())
        if bias is not None and not weight.is_contiguous()
        else F.linear(x, weight, bias)
    )


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same by oneDNN, which also takes a packed weight; torch has no derivative of it."""
    # the overload itself: the name alone is looked up among overloads at every call
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def packed(weight: Tensor) -> Tensor:
    """A copy of a weight [O, I] in the order in which oneDNN reads it, for `by_onednn`."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packed_bytes(matrix: Tensor) -> int:
    """What a packed copy of a matrix takes; both of its sides may be filled up."""
    rows, columns = (-(-side // PACKED_SIDE) * PACKED_SIDE for side in matrix.shape)
    return rows * columns * matrix.itemsize


def library_for(x: Tensor, matrix: Tensor, bias: Tensor | None, *, turned: bool = False, may_pack: bool = False) -> str:
    """Return one of `WAYS` for a product in float32 on the processor, of x [..., I] and a matrix.

    The matrix is the weight [O, I], or [I, O] if it is `turned`: to turn it takes as long as to look up the answer,
    which is kept for the very shapes.
    """
    threads = torch.get_num_threads()
    asked = (_wish(), x.shape, matrix.shape, matrix.is_contiguous(), bias is None, turned, threads, may_pack)
    way = _answers.get(asked)
    if way is None:
        if len(_answers) >= MOST_ANSWERS:
            _answers.clear()
        way = _answers[asked] = _library(x, matrix.t() if turned else matrix, bias, may_pack=may_pack)
    return way


def _library(x: Tensor, weight: Tensor, bias: Tensor | None, *, may_pack: bool) -> str:
    wish = _wish()
    if wish in WAYS:
        return wish if may_pack or wish != PACKED else "onednn"
    if wish and wish not in _read:
        _require_a_path(wish)  # here, where small products ask, too
    if x.numel() * weight.size(0) < SMALL:
        return "torch"
    shape = shape_of(x, weight, bias, may_pack=may_pack)
    choice = _chosen.get(shape) if not wish or wish in _read else None
    return (choice or _choose(shape, x, weight, bias, wish)).library


def shape_of(x: Tensor, weight: Tensor, bias: Tensor | None, *, may_pack: bool = False) -> Product:
    """The class of a product of x [..., I] and weight [O, I]."""
    outputs, inputs = weight.shape
    rows = 1 << (x.numel() // inputs - 1).bit_length()
    by_outputs, threads = weight.is_contiguous(), torch.get_num_threads()
    return Product(min(MOST_ROWS, rows), inputs, outputs, by_outputs, bias is not None, threads, may_pack)


def _choose(shape: Product, x: Tensor, weight: Tensor, bias: Tensor | None, file: str) -> Choice:
    with _measuring:
        if file and file not in _read:
            _chosen.update(_kept(Path(file)))
            _read.add(file)
        if shape not in _chosen:
            _chosen[shape] = measured(shape, x, weight, bias)
            if file:
                _keep(Path(file))
        return _chosen[shape]


@torch.no_grad()
def measured(shape: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Choice:
    """Time each way on this product, or on a part of it if it is a large one."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    most = min(shape.rows, max(FEWEST_ROWS, MEASURED // (shape.inputs * shape.outputs)))
    rows = x.detach().reshape(-1, shape.inputs)[:most]
    outputs = shape.outputs
    if shape.by_outputs:  # else a part would have gaps, and a copy without them lies in memory as the weight does not
        outputs = max(1, min(outputs, MEASURED // (len(rows) * shape.inputs)))
        weight, bias = weight[:outputs], None if bias is None else bias[:outputs]
    ways: dict[str, Callable[[], Tensor]] = {
        "torch": lambda: by_torch(rows, weight, bias),
        "onednn": lambda: by_onednn(rows, weight, bias),
    }
    if shape.may_pack:
        copy = packed(weight)
        ways[PACKED] = lambda: by_onednn(rows, copy, bias)
    best = dict.fromkeys(ways, float("inf"))
    for way in ways.values():
        way()  # a library prepares itself for a shape once
    begun = time.perf_counter()
    for done_rounds in range(ROUNDS):
        if done_rounds and time.perf_counter() - begun > LONGEST:
            break
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    library = "torch"
    for name in ways:
        library = name if best[name] < CLEARLY * best[library] else library
    done = 2 * len(rows) * shape.inputs * outputs / 1e9
    return Choice(library, {name: round(done / seconds, 1) for name, seconds in best.items()})


def machine() -> dict[str, str]:
    """What a measurement holds for, besides the number of threads, which is part of each shape."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return {"processor": processor, "vectors": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def _require_a_path(file: str) -> None:
    """Refuse a misspelt library, which would be the name of a file to write."""
    path = Path(file)
    if path.name == file and not path.suffix and not path.exists():
        raise NumericsError(
            f"{VARIABLE}: {shown(file)}, expected {', '.join(WAYS)} or the path of a JSON file.",
            code="measured-products",
            remedy=f"Set {VARIABLE} to torch or another of these; a file beside you is {os.curdir}{os.sep}{path.name}.",
        )


def _kept(path: Path) -> dict[Product, Choice]:
    """What a file says of this machine; nothing if it is not there, or of another machine."""
    if not path.exists():
        return {}
    try:
        stored: Any = json.loads(path.read_text(encoding="utf-8"))
        if stored["machine"] != machine():
            return {}
        found = dict(map(_row, stored["products"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as problem:
        raise NumericsError(
            f"{VARIABLE}: {path}: cannot be read as what was measured here: {problem}.",
            code="measured-products",
            remedy=f"Remove the file, and it is written again, or set {VARIABLE} to torch.",
        ) from problem
    return found


def _row(stored: Any) -> tuple[Product, Choice]:
    shape, library = Product(**stored["shape"]), stored["library"]
    if not all(isinstance(field, int) for field in shape):
        raise ValueError(f"{shown(shape)} is no shape")
    if library not in WAYS:
        raise ValueError(f"{shown(library)} is no library, expected one of {', '.join(WAYS)}")
    return shape, Choice(library, {name: float(rate) for name, rate in stored["rates"].items()})


def _keep(path: Path) -> None:
    products = [{"shape": shape._asdict(), **choice._asdict()} for shape, choice in sorted(_chosen.items())]
    write_text(path, json.dumps({"machine": machine(), "products": products}, indent=1) + "\n")
