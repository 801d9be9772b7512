"""Where neurons and features are active in a stored corpus: their strongest examples, and how often they are active.

Both read the store from end to end, a block of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.check import as_number, as_python, require_whole
from pellucid.corpus.identity import reopened
from pellucid.corpus.place import chunk_key
from pellucid.corpus.store import Store
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.text.borrowed import no_tokenizer

if TYPE_CHECKING:
    from xarray import Dataset

ROWS_AT_ONCE = 2048

Numbers = NDArray[Any]

Encode = Callable[[Tensor], Tensor]
"""[rows, …], values of a checkpoint -> [rows, F], such as the `encode` of an autoencoder."""


def examples(
    store: Store,
    name: str,
    units: Sequence[int] | None = None,
    *,
    encode: Encode | None = None,
    count: int = 10,
    around: int = 8,
    tokenizer: Any = None,
) -> Dataset:
    """Find the tokens of a stored corpus at which units are most active.

    Args:
        store: A whole store.
        name: A checkpoint of it.
        units: Which numbers of each row; of an `encode`, which features. All if None. Where a row has several axes, its
            numbers are counted with the last axis fastest.
        encode: What makes features of values, such as `sae.encode`; the values themselves if None.
        count: How many examples of each, at most.
        around: How many tokens of the same text before and after each are shown.
        tokenizer: What spells tokens; that of the store's model if None.

    Returns:
        `activation` and `row` [unit, rank], the strongest first and of equal ones the first in the store; `text` and
        `position`, where that is; `passage` [unit, rank, offset], the activations around it, NaN beyond its text;
        `token`, their strings. An exact zero is no activation; where there are fewer examples, row is -1.

    Raises:
        UnknownNameError: If there is no such checkpoint.
        InputError: If there is no such unit, or the store is not whole.
        MissingExtraError: If xarray is not installed.

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> texts = ["Once upon a time there was a cat.", "Tom has a ball."]
        >>> name, path = "blocks.1.mlp.ckpt_post", tempfile.mkdtemp() + "/acts.zarr"
        >>> store = pl.corpus.capture(pl.load(), texts, name, path)
        >>> pl.corpus.examples(store, name, [7, 9], count=3, around=2).passage.shape
        (2, 3, 5)
    """
    most = require_whole("count", count, at_least=1)
    beside = require_whole("around", around)
    offsets = np.arange(-beside, beside + 1)
    best, rows, chosen = _strongest(store, name, units, encode, most)
    texts = np.where(rows < 0, -1, np.searchsorted(store.corpus.offsets, rows, side="right") - 1)
    starts, stops = store.corpus.offsets[texts], store.corpus.offsets[texts + 1]
    near = np.add.outer(rows, offsets)
    inside = (rows[..., None] >= 0) & (near >= starts[..., None]) & (near < stops[..., None])
    passage, strings = np.full(near.shape, np.nan, np.float32), np.full(near.shape, "", object)
    which = np.asarray(chosen)[np.nonzero(inside)[0]]
    passage[inside], strings[inside] = _read(store, name, near[inside], which, encode, _speller(store, tokenizer))
    ranked = ("unit", "rank")
    return need("xarray", "corpus.examples").Dataset(
        {
            "activation": (ranked, best), "row": (ranked, rows), "text": (ranked, texts),
            "position": (ranked, np.where(rows < 0, -1, rows - starts)),
            "passage": ((*ranked, "offset"), passage), "token": ((*ranked, "offset"), strings),
        },
        coords={"unit": chosen, "offset": offsets},
        attrs={"checkpoint": name, "rows": store.plan.rows, "model": store.provenance["model"]},
    )  # fmt: skip


def _strongest(
    store: Store, name: str, units: Sequence[int] | None, encode: Encode | None, most: int
) -> tuple[Numbers, Numbers, list[int]]:
    """[unit, rank]: the largest activations and their rows; and which units these are."""
    chosen: list[int] = []
    best = rows = torch.empty(0, device="cpu")
    for first, block in _blocks(store, name, encode):
        if not chosen:
            chosen = _units(units, block.shape[1])
            best, rows = (
                torch.full((len(chosen), most), -torch.inf, device="cpu"),
                torch.full((len(chosen), most), -1, device="cpu"),
            )
        values = (block if units is None else block[:, chosen]).T
        values = torch.where(values == 0, -torch.inf, values)
        new = torch.cat([best, values], 1)
        places = _ordered(new).topk(most).indices
        best = new.gather(1, places)
        numbers = torch.arange(first, first + len(block), device="cpu").expand(len(chosen), -1)
        rows = torch.cat([rows, numbers], 1).gather(1, places)
    none = best == -torch.inf
    return best.masked_fill(none, torch.nan).numpy(), rows.masked_fill(none, -1).numpy(), chosen


def _ordered(values: Tensor) -> Tensor:
    """[n, b] whole numbers in the order of float32 values, of equal ones the first the largest; no two are equal."""
    bits = (values + 0.0).contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) - torch.arange(values.shape[1], device="cpu")


def densities(
    store: Store,
    name: str,
    units: Sequence[int] | None = None,
    *,
    encode: Encode | None = None,
    above: float = 0.0,
    bins: int = 40,
) -> Dataset:
    """Count at how many tokens of a stored corpus units are active, and how strongly.

    Args:
        store: A whole store.
        name: A checkpoint of it.
        units: Which numbers of each row, or which features; all if None. See `examples`.
        encode: What makes features of values, such as `sae.encode`; the values themselves if None.
        above: A unit is active where it is larger than this.
        bins: Between the smallest and the largest activation of each unit.

    Returns:
        For each unit `density`, the share of tokens at which it is active; `mean` over all tokens; `largest`; and
        `histogram` [unit, bin] with its `edges` [unit, edge], of all activations but exact zeros.

    Raises:
        UnknownNameError: If there is no such checkpoint.
        InputError: If there is no such unit, or the store is not whole.
        MissingExtraError: If xarray is not installed.

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> name, path = "blocks.1.mlp.ckpt_post", tempfile.mkdtemp() + "/acts.zarr"
        >>> store = pl.corpus.capture(pl.load(), ["Once upon a time there was a cat."], name, path)
        >>> round(float(pl.corpus.densities(store, name, [7]).density[0]), 2)
        0.22
    """
    width, floor = require_whole("bins", bins, at_least=1), as_number(above)
    if floor is None or math.isnan(floor):
        raise InputError(
            f"corpus: above={shown(above)}, expected a number.",
            code="corpus-above",
            remedy="Give the number above which a unit is active, such as above=0.5.",
        )
    chosen: list[int] = []
    active = total = least = largest = torch.empty(0, device="cpu")
    for _, block in _blocks(store, name, encode):
        if not chosen:
            chosen = _units(units, block.shape[1])
            active, total = (
                torch.zeros(len(chosen), dtype=torch.int64, device="cpu"),
                torch.zeros(len(chosen), dtype=torch.float64, device="cpu"),
            )
            least, largest = (
                torch.full((len(chosen),), torch.inf, device="cpu"),
                torch.full((len(chosen),), -torch.inf, device="cpu"),
            )
        values = block if units is None else block[:, chosen]
        active += (values > floor).sum(0)
        total += values.double().sum(0)
        least, largest = torch.minimum(least, values.amin(0)), torch.maximum(largest, values.amax(0))
    step = torch.where(largest > least, (largest - least) / width, 1.0)
    counts = torch.zeros(len(chosen) * width, dtype=torch.int64, device="cpu")
    for _, block in _blocks(store, name, encode):
        values = block if units is None else block[:, chosen]
        which = ((values - least) / step).long().clamp(0, width - 1) + torch.arange(len(chosen), device="cpu") * width
        counts += torch.bincount(which[values != 0], minlength=len(counts))
    rows, steps = store.plan.rows, torch.arange(width + 1, device="cpu")
    return need("xarray", "corpus.densities").Dataset(
        {
            "density": ("unit", active.double().numpy() / rows), "mean": ("unit", total.numpy() / rows),
            "largest": ("unit", largest.numpy()),
            "histogram": (("unit", "bin"), counts.view(-1, width).numpy()),
            "edges": (("unit", "edge"), (least[:, None] + step[:, None] * steps).numpy()),
        },
        coords={"unit": chosen},
        attrs={"checkpoint": name, "rows": rows, "above": floor, "model": store.provenance["model"]},
    )  # fmt: skip


def _blocks(store: Store, name: str, encode: Encode | None) -> Iterator[tuple[int, Tensor]]:
    """The first row of each block and its activations [rows, F]."""
    if not isinstance(store, Store):
        raise InputError(
            f"corpus: store={shown(store)}, expected a store of captured values.",
            code="not-a-corpus",
            remedy="Pass a store that was opened, not its path.",
        )
    for part in range(store.plan.parts):
        chunk, first = store.chunk(name, part), store.plan.rows_of(part).start
        for start in range(0, len(chunk), ROWS_AT_ONCE):
            yield first + start, _activations(chunk[start : start + ROWS_AT_ONCE], encode)


@torch.no_grad()
def _activations(values: Tensor, encode: Encode | None) -> Tensor:
    """[rows, F]."""
    found: Any = values.float() if encode is None else encode(values.float()) if callable(encode) else encode
    if not isinstance(found, Tensor) or found.dim() < 2 or len(found) != len(values):
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"corpus: encode gave {shape} for {list(values.shape)}, expected a tensor [{len(values)}, F].",
            code="corpus-encode",
            remedy="Give a function of a block of rows that returns a row for each, such as encode=sae.encode.",
        )
    return found.float().reshape(len(values), -1)


def _read(
    store: Store, name: str, rows: Numbers, units: Numbers, encode: Encode | None, spelled: Callable[[int], str]
) -> tuple[Numbers, list[str]]:
    """[k]: the activation of `units[i]` at row `rows[i]`, and the token there; each row is read once."""
    plan = store.plan
    column = next(column for column in plan.columns if column.name == name)
    each, back = np.unique(rows, return_inverse=True)
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(each), ROWS_AT_ONCE):
        parts, places = np.divmod(each[start : start + ROWS_AT_ONCE], plan.part_rows)
        keys = [chunk_key(name, part, 1 + len(column.shape)) for part in parts.tolist()]
        values = store.place.rows(keys, places.tolist(), column.width, plan.part_rows, getattr(torch, plan.dtype))
        activations = _activations(values.view(-1, *column.shape), encode).numpy()
        here = (back >= start) & (back < start + len(keys))
        found[here] = activations[back[here] - start, units[here]]
    ids = store.place.asked(lambda: store.tokens.oindex[each]) if len(each) else each
    words = [spelled(int(i)) for i in ids]
    return found, [words[i] for i in back]


def _units(units: Sequence[int] | None, count: int) -> list[int]:
    if units is None:
        return [*range(count)]
    given = as_python(units)
    several = given if isinstance(given, tuple) else (given,)
    chosen = [require_whole("units", unit, at_most=count - 1) for unit in several]
    if not chosen:
        raise InputError(
            "corpus: units=[], expected at least one number.",
            code="corpus-no-units",
            remedy="Give the numbers of some units, or units=None for all.",
        )
    return chosen


def _speller(store: Store, tokenizer: Any) -> Callable[[int], str]:
    """What writes an id as a string; the id itself if nobody can."""
    if tokenizer is None and store.provenance["tokenizer"]:
        remedy = "Give what spells its tokens: tokenizer=model.tokenizer."
        model = store.model if store.model is not None else reopened(store.provenance, remedy)
        tokenizer = model.tokenizer
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise no_tokenizer(tokenizer, "a tokenizer")
    return str if tokenizer is None else lambda i: tokenizer.decode([i])
