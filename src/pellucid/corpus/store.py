"""Values of a whole corpus on disk: a Zarr 3 group that xarray and Dask open as it is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.check import require_whole
from pellucid.corpus.identity import Verification, recomputed
from pellucid.corpus.intake import DIGESTS, NUMBERS, OFFSETS, TOKENS, Growing
from pellucid.corpus.loader import ActivationStream, Loader
from pellucid.corpus.objects import place_of
from pellucid.corpus.part_making import DIGEST_BYTES, LEDGER, Corpus, entry
from pellucid.corpus.place import METADATA, StorePlace, chunk_key, unfinished
from pellucid.corpus.plan import ITEM_BYTES, CorpusPlan, StoredValue
from pellucid.errors import InputError, NotFoundError, UnknownNameError, nearest
from pellucid.extras import need
from pellucid.html.listing import counted
from pellucid.names.calls import named_methods
from pellucid.numerics.quickest import one_library

ABOUT = "pellucid.corpus"
FORMAT = "pellucid.corpus/1"

BFLOAT16 = "bfloat16"
"""NumPy and Zarr have no such dtype: its bits are stored as uint16, and an attribute `dtype` says so."""


@dataclass(frozen=True)
class StoredText:
    """One text of a store."""

    number: int  # which of the given texts it is, or is a piece of
    rows: range  # its rows in the store
    digest: str  # SHA-256 of the given text, by which it is known


class StoredTexts(Sequence[StoredText]):
    """The texts of a store, in the order of its rows."""

    def __init__(self, offsets: NDArray[Any], numbers: NDArray[Any], digests: NDArray[Any]) -> None:
        self._offsets, self._numbers, self._digests = offsets, numbers, digests

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        i = range(len(self))[index]  # which counts from the end, too
        rows = range(int(self._offsets[i]), int(self._offsets[i + 1]))
        return StoredText(int(self._numbers[i]), rows, bytes(self._digests[i]).hex())


class _Asked:
    """An array whose numbers are read with the retries and the errors of where it lies."""

    def __init__(self, place: StorePlace, array: Any) -> None:
        self._place, self._array = place, array

    def __getitem__(self, key: Any) -> Any:
        return self._place.asked(lambda: self._array[key])


@named_methods
class Store(Mapping[str, Any]):
    """What `capture` wrote: for each checkpoint an array with a row for each token.

    `store["blocks.3.resid_post"]` is a Zarr array [N, …], whose axes after the first are those of the checkpoint after
    positions; in bfloat16 it is uint16, with an attribute `dtype` that says so. Rows that are not there yet are NaN.

    Attributes:
        plan: How the corpus is cut, and how large it is.
        model: What `capture` was given; None if the store was opened.
        provenance: What made it: `model`, `weights`, `tokenizer`, `numerics`, `attention`, `texts`, and the machine.

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> folder = tempfile.mkdtemp() + "/acts.zarr"
        >>> store = pl.corpus.capture(pl.load(), ["Once upon a time", "The end"], "resid_post", folder)
        >>> store["blocks.3.resid_post"].shape, store.tokens.shape, store.texts[1].rows
        ((6, 256), (6,), range(4, 6))
    """

    def __init__(self, place: StorePlace, about: Mapping[str, Any], model: Any = None) -> None:
        self.place = place
        self.model = model
        self.plan = _plan_of(about)
        self.written: dict[str, str] = dict(about.get("written", {}))  # SHA-256 of the chunks beside the values, by key
        self.provenance: dict[str, Any] = {"packing": False, **about["provenance"]}
        self._zarr = place.group()

    def __getitem__(self, name: str) -> Any:
        return self._zarr[self._column(name).name]

    def _column(self, name: str) -> StoredValue:
        """The place of a checkpoint; raise an error if it is not stored."""
        found = next((column for column in self.plan.columns if column.name == name), None)
        if found is None:
            raise UnknownNameError(
                f"corpus: no checkpoint {name!r} in {self.place}.",
                code="corpus-name",
                remedy=f"{nearest(str(name), self.plan.names)} It holds {', '.join(self.plan.names)}.".strip(),
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.names)

    def __len__(self) -> int:
        return len(self.plan.columns)

    def __repr__(self) -> str:
        there = len(self.parts)
        left = "" if there == self.plan.parts else f"; {counted(self.plan.parts - there, 'part')} not there yet"
        return f"Store of {self.plan!r}{left}\n  " + "\n  ".join(
            f"{c.name}  [{self.plan.rows}, {', '.join(map(str, c.shape))}]  {self.plan.dtype}"
            for c in self.plan.columns
        )

    @property
    def tokens(self) -> Any:
        """[N], the token of each row, as a Zarr array of uint32."""
        return self._zarr[TOKENS]

    @cached_property
    def texts(self) -> StoredTexts:
        """The texts, in the order of their rows."""
        return StoredTexts(self.corpus.offsets, self._read(NUMBERS)[:], self._read(DIGESTS)[:])

    @cached_property
    def corpus(self) -> Corpus:
        """The tokens, and how they are cut."""
        return Corpus(self.plan, self._read(TOKENS), self._read(OFFSETS)[:].astype(np.int64))

    def _read(self, name: str) -> _Asked:
        return _Asked(self.place, self._zarr[name])

    @property
    def parts(self) -> dict[int, dict[str, bytes]]:
        """The parts that are there, each with the SHA-256 of each of its chunks."""
        found = ((part, entry(self.place, self.plan, part)) for part in range(self.plan.parts))
        return {part: digests for part, digests in found if digests is not None}

    @property
    def is_complete(self) -> bool:
        """Whether every part is there."""
        return len(self.parts) == self.plan.parts

    def chunk(self, name: str, part: int) -> torch.Tensor:
        """The rows of one part [rows, …], mapped from the disk where the store lies on one; not to be written to."""
        column, key = self._written(name, part)
        chunk = self.place.chunk(key, self.plan.part_rows * column.width, getattr(torch, self.plan.dtype))
        return chunk.view(-1, *column.shape)[: len(self.plan.rows_of(part))]

    def read(self, name: str, part: int, into: torch.Tensor) -> None:
        """Write the rows of one part [rows, …] into memory that lies in one piece."""
        self.place.read(self._written(name, part)[1], into)

    def _written(self, name: str, part: int) -> tuple[StoredValue, str]:
        """A column and the key of one of its parts, which is there and whole."""
        column = self._column(name)
        part = require_whole("part", part, at_most=self.plan.parts - 1)
        key = chunk_key(name, part, 1 + len(column.shape))
        if self.place.size(key) != self.plan.part_rows * column.width * self.plan.itemsize:
            raise unfinished(f"part {part} is not in {self.place}")
        return column, key

    def verify(self, rows: int = 1000, model: Any = None, *, seed: int = 0) -> Verification:
        """Run texts again and compare what is stored, to the bit.

        Args:
            rows: How many rows to draw, uniformly among those that are there; all if there are fewer. Each costs the
                run of its batch. Of the parts that they lie in, every chunk's SHA-256 is compared, too, and
                those of all tokens: 4 bytes a token are read.
            model: What made the store. If None, it is the one that `capture` was given, or it is opened as `provenance`
                says: the bundled model, a folder or a hub id.
            seed: Which rows are drawn.

        Returns:
            What was compared; true if every row is equal and every chunk is as it was written.

        Raises:
            InputError: If the model cannot be opened or is another one, or this machine computes otherwise.
        """
        with one_library(self.provenance.get("products", "")):
            return recomputed(self, rows, self.model if model is None else model, seed)

    def loader(self, batch_size: int, *, shuffle: bool = True, seed: int = 0, window: int | None = None) -> Loader:
        """Mini-batches of rows, each under all names.

        Args:
            batch_size: Rows of each; the last one may have fewer.
            shuffle: Whether rows come in a random order, else in that of the store.
            seed: Which order.
            window: Rows to hold in memory and to draw from. With None the order is a permutation of all rows, which
                reads each row by itself. With a window, parts come in a random order, as many at a time as fit into it
                (at least one), and the rows of these come in a random order: the disk is read from end to end.

        Returns:
            What yields `{name: tensor [b, …]}`, each row once; `.tokens` and `.rows` of each [b] say which rows.

        Raises:
            InputError: If a size is out of range, or the store is not finished.
        """
        return Loader.of(self, batch_size, shuffle=shuffle, seed=seed, window=window)

    def stream(
        self, name: str | None, batch_size: int, *, seed: int = 0, window: int | None = None, device: Any = "cpu"
    ) -> ActivationStream:
        """Shuffled mini-batches without an end, for the trainers of SAELens and dictionary_learning.

        Args:
            name: The checkpoint, whose tensors [batch_size, …] are given one after another; None for `{name: tensor}`
                of all of them.
            batch_size: Rows of each; what is left at the end of a pass is left out.
            seed: Of the first pass; the one after it has the next number.
            window: See `loader`.
            device: Where tensors go.

        Returns:
            What SAELens' `SAETrainer` takes as `data_provider`, and dictionary_learning's `trainSAE` as `data`.

        Raises:
            UnknownNameError: If there is no such checkpoint.
            InputError: If a size is out of range, there are fewer rows, or the store is not finished.

        Example:
            >>> import tempfile
            >>> import pellucid as pl
            >>> folder = tempfile.mkdtemp() + "/acts.zarr"
            >>> store = pl.corpus.capture(pl.load(), ["Once upon a time", "The end"], "blocks.3.resid_post", folder)
            >>> stream = store.stream("blocks.3.resid_post", 4)
            >>> next(stream).shape, next(stream).shape
            (torch.Size([4, 256]), torch.Size([4, 256]))
        """
        if name is not None:
            self._column(name)
        require_whole("batch_size", batch_size, at_least=1, at_most=self.plan.rows)
        return ActivationStream(self.loader(batch_size, seed=seed, window=window), name, device)


def open(path: Any, *, storage_options: dict[str, Any] | None = None) -> Store:  # noqa: A001 (the contract's name)
    """Open a store.

    Args:
        path: A folder, or an address that fsspec reads, such as "s3://bucket/acts.zarr".
        storage_options: What fsspec is told beside the address.

    Raises:
        NotFoundError: If nothing is there.
        InputError: If something else is there.
        MissingExtraError: zarr is not installed.
    """
    place = place_of(path, storage_options)
    about = about_of(place)
    if about is None:
        raise NotFoundError(
            f"corpus: no store {str(place)!r}.",
            code="path-not-found",
            remedy="Give a path that values were captured to.",
        )
    return Store(place, about)


def about_of(place: StorePlace) -> dict[str, Any] | None:
    """What a store says of itself; None if nothing is there."""
    found = place.get(METADATA)
    if found is None and place.is_empty():
        return None
    try:
        whole = json.loads(found or b"{}")
        about = whole["attributes"][ABOUT]
        if about["format"] == FORMAT and _is_there(about, whole["consolidated_metadata"]["metadata"]):
            return about
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        pass
    raise InputError(
        f"corpus: {str(place)!r} is no store of captured values.",
        code="not-a-corpus",
        remedy="Give a path that values were captured to; to capture new ones, a path that is free.",
    )


def _plan_of(about: Mapping[str, Any]) -> CorpusPlan:
    fields = dict(about["plan"])
    columns = tuple(StoredValue(c["name"], tuple(c["axes"]), tuple(c["shape"])) for c in fields.pop("columns"))
    return CorpusPlan(columns=columns, **fields)


def _is_there(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> bool:
    """Whether the arrays are those of the plan, since a damaged one could name any file and any number of parts."""
    plan = _plan_of(about)
    shapes = {
        name: (array["shape"], array["chunk_grid"]["configuration"]["chunk_shape"]) for name, array in arrays.items()
    }
    columns = all(shapes[c.name] == ([plan.rows, *c.shape], [plan.part_rows, *c.shape]) for c in plan.columns)
    return (
        columns and shapes[TOKENS][0] == [plan.rows] and shapes[LEDGER][0][0] == plan.parts
        and plan.dtype in ITEM_BYTES and isinstance(about["provenance"], dict)
        and isinstance(about.get("written", {}), dict)
    )  # fmt: skip


def write_metadata(
    place: StorePlace, plan: CorpusPlan, provenance: Mapping[str, Any], arrays: Sequence[Growing]
) -> None:
    """Write what Zarr and `open` read, the description of the whole last: with it the store is there."""
    zarr, made = need("zarr", "corpus"), dict[str, Any]()
    where = need("zarr.storage", "corpus").MemoryStore(made)
    group = zarr.create_group(where, attributes={ABOUT: {
        "format": FORMAT, "plan": asdict(plan), "provenance": dict(provenance),
        "written": {key: digest for array in arrays for key, digest in array.written.items()},
    }})  # fmt: skip
    dims = {DIGESTS: ("text", "byte"), OFFSETS: ("border",), NUMBERS: ("text",), TOKENS: ("row",)}
    raw: dict[str, Any] = {
        "compressors": None, "filters": None, "chunk_key_encoding": {"name": "default", "separator": "."},
    }  # fmt: skip
    for array in arrays:
        group.create_array(
            array.name, shape=array.shape, chunks=(array.chunk, *array.shape[1:]), dtype=array.dtype,
            dimension_names=dims[array.name], fill_value=0, **raw,
        )  # fmt: skip
    for column in plan.columns:
        stored, fill = ("uint16", 0x7FC0) if plan.dtype == BFLOAT16 else (plan.dtype, float("nan"))
        group.create_array(
            column.name, shape=(plan.rows, *column.shape), chunks=(plan.part_rows, *column.shape), dtype=stored,
            dimension_names=("row", *column.axes), fill_value=fill, attributes={"dtype": plan.dtype}, **raw,
        )  # fmt: skip
    entries = (plan.parts, len(plan.columns), DIGEST_BYTES)
    group.create_array(
        LEDGER, shape=entries, chunks=(1, *entries[1:]), dtype="uint8", dimension_names=("part", "name", "byte"),
        fill_value=0, **raw,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # no part of the format yet; readers warn without it
        zarr.consolidate_metadata(where)
    for key in sorted(made, key=METADATA.__eq__):
        place.put(key, made[key].to_bytes())
