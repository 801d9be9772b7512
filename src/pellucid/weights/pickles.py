"""PyTorch's pickles, examined before they are read: by their opcodes and their archive, without running anything.

What is read then is read by PyTorch's restricted unpickler, which builds tensors and plain containers. It hashes every
key, so a tuple of tuples of the same tuple, sixty levels deep in 400 bytes, would keep it busy for ever; and it maps an
archive's entries as they lie, so compressed ones would come out as other numbers.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from pellucid.errors import WeightsError, shown
from pellucid.weights.manifests import reading, require_regular, unreadable

_MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
"""How a file in PyTorch's older format begins."""
_LEAVES = 1_000_000
"""The most items of one tuple; more are no name, no shape and no setting."""
_LONGEST_PICKLE = 2**28
_LONGEST_PLAIN = 2**24
_MOST_PICKLES = 5  # of a file in PyTorch's older format: magic number, version, machine, content, storages

_RUNS_CODE = frozenset(
    """
    os posix nt subprocess sys builtins __builtin__ shutil socket importlib runpy ctypes pty pdb code codeop pickle
    marshal types functools operator io tempfile inspect timeit cProfile profile bdb asyncio multiprocessing
    threading webbrowser http urllib ftplib smtplib platform pip setuptools pkgutil zipimport site idlelib
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Modules of which no weights file needs anything."""


def read_pickle(path: Path) -> object:
    """What a file of `torch.save` or `pickle.dump` holds, mapped from the file if it can be."""
    with reading(path), path.open("rb") as file:
        start = file.read(len(_MAGIC))
        packed = start[:2] == b"PK"
        file.seek(0)
        compressed = packed and _inflates(path, file)
        needed, in_dict = set[str](), False
        for stream in _streams(file, packed):
            if packed:
                start_of = stream.read(12)
                in_dict = pickle.EMPTY_DICT in (start_of[2:3], start_of[11:12])  # from protocol 4 on behind a frame
                stream.seek(0)
            needed |= _globals(path, stream)
        file.seek(-1, io.SEEK_END)
        is_dump = start[:1] == b"\x80" and start != _MAGIC and file.read() == pickle.STOP
    if is_dump:
        runs = next((name for name in needed if name.partition(".")[0] in _RUNS_CODE), None)
        if runs is not None:
            raise _refusal(path, f"GLOBAL {runs}", needed)
        what = (
            "that pickle.dump wrote, not torch.save: its tensors are read by code that it names, which is not run here"
        )
        raise _unsafe(path, what, "pl.load(pickle.load(open(path, 'rb')), config=...)")
    allowed = _NUMPY if any(name.startswith("numpy") for name in needed) else []
    mapped = packed and not compressed and path.suffix != ".safetensors"
    try:
        with _LOCK, torch.serialization.safe_globals(allowed), path.open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what cannot be read is an error below
            # By its name torch maps a file; one that ends with .safetensors it would read as such.
            source = path if mapped else _as_torch_reads(file) if compressed else file
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except PermissionError as problem:
        raise unreadable(path, problem) from problem
    except pickle.UnpicklingError as problem:
        raise _refusal(path, str(problem), needed, in_dict=in_dict) from problem
    # A damaged archive surfaces as RuntimeError, OSError, EOFError, KeyError, struct.error and more.
    except Exception as problem:
        raise WeightsError(
            f"{path}: not a sound PyTorch file: {type(problem).__name__}: {problem}.",
            code="pickle-damaged",
            remedy="Download or write the file again.",
        ) from problem


def read_plain(path: Path) -> object:
    """What a file of `pickle.dump` holds: Python's containers, texts and numbers, and NumPy's numbers."""
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_PLAIN + 1)
        if len(content) > _LONGEST_PLAIN:
            raise pickle.UnpicklingError(f"longer than {_LONGEST_PLAIN} bytes")
        _globals(path, io.BytesIO(content))
        return _Plain(io.BytesIO(content)).load()
    except OSError as problem:
        raise unreadable(path, problem) from problem
    except WeightsError:
        raise
    except Exception as problem:  # unpickling raises whatever the bytes make it raise
        raise WeightsError(
            f"{path}: not a pickle of plain values: {problem}.",
            code="pickle-unsafe",
            remedy="Take the file away, or write it again with pickle.dump of dicts of texts and numbers.",
        ) from problem


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (named := f"{module}.{name}") not in _NUMBERS:
            raise pickle.UnpicklingError(f"it names {named}, which is not looked up")
        return _NUMBERS[named]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside")


def _inflates(path: Path, file: BinaryIO) -> bool:
    """Whether entries of an archive are compressed, so that they cannot be mapped."""
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError):
        return False  # torch says what is wrong with it
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    size, inflated = path.stat().st_size, sum(entry.file_size for entry in entries)
    longest = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if (compressed and inflated > 100 * size + 2**26) or longest > _LONGEST_PICKLE:
        raise WeightsError(
            f"{path}: an archive of {size} bytes that claims to expand to {inflated}.",
            code="archive-too-large",
            remedy="Do not use this file unless you trust its author; then save its tensors again with torch.save.",
        )
    return compressed


def _as_torch_reads(file: BinaryIO) -> BinaryIO:
    """An archive that torch can read: entries compressed otherwise than deflated are stored, in memory."""
    with zipfile.ZipFile(file) as archive:
        if all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
            file.seek(0)
            return file
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as stored:
            for name in archive.namelist():
                stored.writestr(name, archive.read(name))
    made.seek(0)
    return made


def _streams(file: BinaryIO, packed: bool) -> Iterator[BinaryIO]:
    """The pickles in a file: in an archive the entry of the content, else one after another."""
    if packed:
        try:
            archive = zipfile.ZipFile(file)
            for name in (name for name in archive.namelist() if name.endswith("data.pkl")):
                with archive.open(name) as entry:
                    yield io.BytesIO(entry.read(_LONGEST_PICKLE))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, EOFError, RuntimeError):
            return
        return
    file.seek(0)
    for _ in range(_MOST_PICKLES):
        yield file


def _globals(path: Path, stream: BinaryIO) -> set[str]:
    """The names that one pickle asks for. Its tuples are counted, in arithmetic that runs none of it."""
    needed: set[str] = set()
    texts = ["", ""]
    remembered: dict[int, str] = {}
    stack, marks, memo = [0], [0], {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "GLOBAL":
                needed.add(str(argument).replace(" ", ".", 1))
            elif name == "STACK_GLOBAL":
                needed.add(".".join(texts[-2:]))
            elif name == "MEMOIZE":
                remembered[len(memo)] = texts[-1]
            elif name in _GETS:
                texts.append(remembered.get(int(argument or 0), ""))
            elif isinstance(argument, str):
                texts.append(argument)
            _count(name, opcode, argument, stack, marks, memo)
            if stack and stack[-1] > _LEAVES:
                raise WeightsError(
                    f"{path}: a pickle with a tuple of more than {_LEAVES} numbers, nested so deeply that reading it "
                    "would take forever.",
                    code="pickle-unsafe",
                    remedy="Do not use this file; no weights file needs such a tuple.",
                )
    except (ValueError, IndexError, KeyError, UnicodeError, OverflowError, EOFError, MemoryError):
        pass  # not a pickle to its end: what reads it says so
    return needed


def _count(
    name: str, opcode: pickletools.OpcodeInfo, argument: Any, stack: list[int], marks: list[int], memo: dict[int, int]
) -> None:
    """One opcode on a stack that holds for every object how many leaves its tuples have."""
    if name == "MARK":
        marks.append(len(stack))
    elif name in _GETS:
        stack.append(memo.get(int(argument or 0), 1))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    else:
        before, after = opcode.stack_before, opcode.stack_after
        start = len(stack) - len(before)
        if pickletools.markobject in before:
            start = marks.pop() - before.index(pickletools.markobject)
        popped = stack[max(start, 0) :]
        del stack[max(start, 0) :]
        stack += [1 + sum(popped) if name.startswith("TUPLE") else 1] * len(after)


_GETS = ("GET", "BINGET", "LONG_BINGET")

_VALUE = re.compile(
    r"torch\.(_utils\._rebuild_\w+|\w*Storage|storage\.\w+Storage|nn\.parameter\.\w+|Size|device|bool|[a-z]+\d+\w*)"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))|_codecs\.encode|types\.SimpleNamespace"
    r"|collections\.\w+|(__builtin__|builtins)\.(x?range|slice|list|dict|set|frozenset|int|float|complex|bytearray)"
)
"""What pickles of tensors and of plain values call, whether or not PyTorch's restricted unpickler does."""

_LOWER = ("datetime.datetime", "datetime.date", "datetime.timedelta")
"""Classes of values whose names look like functions'."""


def _may_run(name: str, module: str) -> bool:
    """Whether what a pickle names is a function of another package than the object beside the weights."""
    package, own = name.partition(".")[0], name.rpartition(".")[2]
    is_class = own[:1].isupper() or name in _LOWER
    return package in _RUNS_CODE or not (is_class or package == module.partition(".")[0])


_TRUSTED = "pl.load(torch.load(path, weights_only=False), config=...)"


def _unsafe(path: Path, what: str, call: str) -> WeightsError:
    """The error for a pickle of which code would have to run, with the call for whoever trusts its author."""
    remedy = f"If you trust the file: {call}. Or ask its author for safetensors."
    return WeightsError(f"{path}: a pickle {what}.", code="pickle-unsafe", remedy=remedy)


def _refusal(path: Path, said: str, needed: set[str], *, in_dict: bool = False) -> WeightsError:
    found = re.search(r"GLOBAL ([\w.]+)", said)
    later = "Unsupported operand 149" in said  # FRAME
    others = {one for one in needed if not _VALUE.fullmatch(one)}
    culprit = found[1] if found is not None else min(others, default="") if later else ""
    module, _, name = culprit.rpartition(".")
    if any(re.match(r"torch\.nn\.modules\.|transformers\..*\.modeling_|pellucid\.run\.", one) for one in needed):
        return WeightsError(
            f"{path}: a whole pickled module, whose code ({culprit or 'its classes'}) is not run here.",
            code="pickle-unsafe",
            remedy="If you trust the file, and have the classes: torch.save(torch.load(path, weights_only=False)"
            f"{'[key]' if in_dict else ''}.state_dict(), other), then pl.load(other, config=...)"
            f"{', with the key of the module' if in_dict else ''}. Or ask its author for safetensors.",
        )
    runs = next((one for one in sorted(others) if _may_run(one, module)), "")
    if culprit and (name[:1].isupper() or culprit in _LOWER) and not runs and culprit != "types.SimpleNamespace":
        within = f"import {module}, then, within torch.serialization.safe_globals([{culprit}]), "
        call = f"{within}pl.load(torch.load(path), config=...)" if others == {culprit} and not later else _TRUSTED
        return _unsafe(path, f"with an object of {culprit} beside the weights, whose code is not run here", call)
    number = re.search(r"a NumPy [\w ']+", said)
    value = number[0] if number else culprit
    if not others and (value or later):
        what = "of protocol 4 or 5" if later else f"with {value} beside the weights"
        return _unsafe(path, f"{what}, which is not read", _TRUSTED)
    if others:
        culprit = runs or culprit
        what = f"calls {culprit}" if culprit else "calls what a pickle of tensors does not"
        return WeightsError(
            f"{path}: a pickle that would run code; nothing of it was run. It {what}.",
            code="pickle-unsafe",
            remedy="Ask its author for safetensors, or save the bare state dict again: torch.save(model.state_dict(), "
            "path).",
        )
    return WeightsError(
        f"{path}: a damaged pickle: {shown(said)}.", code="pickle-damaged", remedy="Download or write the file again."
    )


class _Dtype:
    """Stands for `numpy.dtype`, and takes a plain number type and its byte order, nothing else."""

    def __init__(self, kind: object, align: object = False, copy: object = False) -> None:
        if not (isinstance(kind, str) and re.fullmatch(r"[<>|=]?[biuf][1248]", kind)):
            raise pickle.UnpicklingError(f"a NumPy type {shown(kind)}, which is no plain number")
        self.dtype = np.dtype(kind)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for `numpy.ndarray`, and keeps what is stored of it as bytes."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.by_column, self.raw = state

    def __array__(self, *_: Any, **__: Any) -> np.ndarray[Any, Any]:
        flat = np.frombuffer(self.raw, self.dtype.dtype)
        return flat.reshape(self.shape, order="F" if self.by_column else "C")


def as_tensor(value: object) -> torch.Tensor | None:
    """A tensor, or an array of NumPy's as one; None for anything else, and for arrays of anything but numbers."""
    if not isinstance(value, (np.ndarray, _Array)):
        return value if isinstance(value, torch.Tensor) else None
    try:
        array = np.asarray(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, AttributeError):
        return None


def _scalar(dtype: _Dtype, raw: object) -> int | float | bool:
    """Stands for NumPy's `scalar`."""
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes) or len(raw) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a NumPy number that is none")
    return np.frombuffer(raw, dtype=dtype.dtype)[0].item()


def _reconstruct(*_: object) -> _Array:
    """Stands for NumPy's `_reconstruct`."""
    return _Array()


_NUMPY: list[Any] = [
    (_Dtype, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""Stand-ins for what pickles of NumPy's numbers and arrays name, such as a best loss beside the weights."""

_NUMBERS: dict[str, Any] = {named: made for made, named in _NUMPY if made in (_Dtype, _scalar)}
_NUMBERS["_codecs.encode"] = lambda text, _: text.encode("latin1")  # so do older protocols write bytes
"""Those for numbers alone, by what they stand for."""

_LOCK = threading.Lock()
"""PyTorch keeps its list of safe names for the whole process."""
