"""`capture`: the values of a corpus of any size, on disk, resumable, made by this process or by many of Ray's."""

from __future__ import annotations

import platform
import secrets
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pellucid.check import require_one_of, require_whole
from pellucid.corpus.identity import facts_of, require_equal, require_undamaged
from pellucid.corpus.intake import Intake, Reader, digest_of
from pellucid.corpus.objects import place_of
from pellucid.corpus.part_making import LEDGER, Corpus, Keeper, packed_plan
from pellucid.corpus.place import Folder, StorePlace, no_room
from pellucid.corpus.plan import BATCH_TOKENS, CorpusPlan, StoredValue, columns_of, cut, dtype_of
from pellucid.corpus.ray_workers import Engine, Workers, library_of
from pellucid.corpus.sink import CapturingModel
from pellucid.corpus.store import Store, about_of, write_metadata
from pellucid.errors import InputError
from pellucid.names.aliases import Names
from pellucid.numerics.quickest import one_library
from pellucid.run.interrupts import bar, told


def capture(
    model: Reader,
    texts: Iterable[Any],
    names: Names,
    path: Any,
    *,
    batch_tokens: int = BATCH_TOKENS,
    dtype: str = "float32",
    long_texts: str = "refuse",
    packing: bool = False,
    engine: str = "local",
    workers: int | None = None,
    progress: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> Store:
    """Run every text and keep the values of some checkpoints, a row for each token.

    Called again with the same arguments, it goes on where it was stopped or killed: nothing is lost, and nothing is
    there twice.

    Args:
        model: What to run.
        texts: Any iterable of texts or rows of ids; `pl.corpus.read` reads files. A text that occurs twice is stored
            twice.
        names: Checkpoints, patterns or aliases. A name without a block means every block.
        path: Where: a folder that is free or holds the store, or an address that fsspec reads.
        batch_tokens: The most tokens that run at once, pads counted. Texts of about the same length run together, so
            few are pads.
        dtype: What values are stored as: "float32", "float64", "float16" or "bfloat16".
        long_texts: "refuse" texts that are longer than the context, or "split" them into pieces of its length.
        packing: Whether short texts share a row, as long as the longest text, in which none sees another and
            each begins at position 0: fewer rows, and no pads between texts of other lengths. What a text gives is what
            it gives alone to within rounding.
        engine: "local" makes all parts in this process; "ray" has them made by processes of
            [Ray](https://docs.ray.io), on this computer or on many, with the same bytes.
        workers: How many processes Ray starts; None for as many as have processors.
        progress: Whether to draw a bar with rate and time left on stderr, if that is a terminal.
        storage_options: What fsspec is told beside an address.

    Returns:
        The store; rows are in the order of the texts, then of positions, however batches were formed.

    Raises:
        InputError: If texts cannot be run, the store holds something else, another process writes to it, or the disk
            is full.
        UnknownNameError: If there is no such checkpoint.
        WeightsError: If the folder cannot be written.
        MissingExtraError: zarr is not installed, or Ray for engine="ray".

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> folder = tempfile.mkdtemp() + "/acts.zarr"
        >>> pl.corpus.capture(pl.load(), ["Once upon a time", "The end"], "blocks.3.resid_post", folder)
        Store of 6 tokens of 2 texts, 1 checkpoint in float32: 6,144 bytes in 1 part
          blocks.3.resid_post  [6, 256]  float32
    """
    wish = Engine.of("corpus", engine, workers)
    wanted = _Wanted.of(model, names, batch_tokens, dtype, long_texts, packing)
    place = place_of(path, storage_options)
    if about_of(place) is None:
        with told("corpus: interrupted while the texts were read; nothing of them is kept"):
            _begin(model, texts, wanted, place)
    else:
        found, now = _store(place, model), {**facts_of(model), **wanted.facts, "texts": digest_of(texts)}
        require_equal(found.provenance, now, str(place))
        require_undamaged(found)
    with place.alone():
        store = _store(place, model)
        finish(model, store, wish, path, progress=progress, options=storage_options)
    return store


def _store(place: StorePlace, model: Reader) -> Store:
    about = about_of(place)
    assert about is not None
    return Store(place, about, model)


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a corpus, checked."""

    columns: tuple[StoredValue, ...]
    facts: dict[str, Any]  # what a store says of it, by which it is known when it is continued

    @classmethod
    def of(cls, model: Reader, names: Names, batch_tokens: Any, dtype: Any, long_texts: Any, packing: bool) -> _Wanted:
        """Read the arguments of `capture`."""
        stored = dtype_of(dtype)
        require_one_of("corpus: long_texts", long_texts, ("refuse", "split"), code="corpus-long-texts")
        columns = columns_of(names, model.schema)
        tokens = require_whole("batch_tokens", batch_tokens, at_least=1)
        facts = {
            "names": [column.name for column in columns], "dtype": stored, "batch_tokens": tokens,
            "long_texts": long_texts, "packing": bool(packing),
        }  # fmt: skip
        return cls(columns, facts)

    def plan(self, intake: Intake) -> CorpusPlan:
        """How what was read is cut."""
        read, facts = (intake.tokens.length, intake.numbers.length, intake.longest), self.facts
        plan = cut(CorpusPlan(self.columns, *read, 1, facts["batch_tokens"], facts["dtype"]))
        return packed_plan(plan, intake.lengths) if facts["packing"] else plan


def _begin(model: Reader, texts: Iterable[Any], wanted: _Wanted, place: StorePlace) -> None:
    """Write a store without values: its tokens are read and its parts are cut."""
    facts = {**facts_of(model), **wanted.facts, "products": library_of(model)}
    with place.building() as new:
        intake = Intake(model, new.put, split=wanted.facts["long_texts"] == "split")
        facts["texts"] = intake.read(texts)
        plan = wanted.plan(intake)
        _require_room(plan, place, plan.parts)
        write_metadata(new, plan, facts, intake.arrays)


def _require_room(plan: CorpusPlan, place: StorePlace, left: int) -> None:
    """Raise an error if there is no room for the parts that are left."""
    free, needed = place.free(), left * plan.part_rows * plan.row_bytes
    if free is None or needed <= free:
        return
    if left < plan.parts:
        raise no_room(f"{left:,} of {plan.parts:,} parts are left, {needed:,} bytes; {place} has {free:,} bytes free")
    raise no_room(
        f"{plan!r}, and {place} has {free:,} bytes free",
        "Capture fewer checkpoints, store them as bfloat16, or give a path on another disk.",
    )


def estimate(
    model: Reader,
    texts: Iterable[Any],
    names: Names,
    path: Any = None,
    *,
    batch_tokens: int = BATCH_TOKENS,
    dtype: str = "float32",
    long_texts: str = "refuse",
    packing: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> CorpusPlan:
    """What `capture` with the same arguments would store, how long it would take and what is free; writes nothing.

    The time is that of the texts' tokens at the speed of the first few thousand, which are run twice. How many bytes
    are free is asked where `path` lies, if one is given.

    Raises:
        InputError: As `capture`.
        UnknownNameError: If there is no such checkpoint.

    Example:
        >>> import pellucid as pl
        >>> pl.corpus.estimate(pl.load(), ["Once upon a time", "The end"], "blocks.3.resid_post").nbytes
        6144
    """
    wanted = _Wanted.of(model, names, batch_tokens, dtype, long_texts, packing)
    free = None if path is None else place_of(path, storage_options).free()
    intake = Intake(model, lambda key, data: None, split=long_texts == "split")
    intake.read(texts)
    found = wanted.plan(intake)
    offsets = np.cumsum([0, *map(len, intake.first)])
    some = replace(found, rows=int(offsets[-1]), part_rows=int(offsets[-1]))
    sample = Corpus(some, np.concatenate(intake.first), offsets)
    nowhere = lambda rows: None  # noqa: E731
    sample.make(model, 0, nowhere)  # the first run of a process is slower
    begun = time.perf_counter()
    sample.make(model, 0, nowhere)
    return replace(found, seconds=(time.perf_counter() - begun) / some.rows * found.rows, free=free)


MARK = f"{LEDGER}/workers"
"""What is in a store only while Ray's processes work: each reads it, and so sees that its store is this one."""


def finish(model: CapturingModel, store: Store, engine: Engine, path: Any, *, progress: bool, options: Any) -> None:
    """Make the parts of a store that are not there."""
    plan, place = store.plan, store.place
    there = store.parts
    left = [part for part in range(plan.parts) if part not in there]
    place.clean([*plan.names, LEDGER])
    _require_room(plan, place, len(left))
    place.remove(MARK)  # if the one who put it there was killed
    done = sum(len(plan.rows_of(part)) for part in there)
    words = lambda: f"corpus: interrupted; {place} keeps what is whole; begun again the same way, it goes on from there"  # noqa: E731
    same = one_library(store.provenance.get("products", ""))
    with told(words), same, bar("tokens", plan.rows, wanted=progress) as advance:
        advance(done)
        if engine.kind == "local":
            with Keeper(place, store.corpus) as keeper:
                for part in left:
                    keeper.make(model, part, advance)
        elif left:
            with closing(_by_workers(model, store, left, engine.workers, path, options)) as parts:
                for part in parts:
                    advance(len(plan.rows_of(part)))


def _by_workers(
    model: CapturingModel, store: Store, parts: Sequence[int], workers: int | None, path: Any, options: Any
) -> Generator[int]:
    """Have parts made, and yield their numbers."""
    mark = secrets.token_bytes(16)
    store.place.put(MARK, mark)
    shared = str(store.place.path.absolute()) if isinstance(store.place, Folder) else str(path)
    try:
        with closing(Workers(model, PartJob(shared, options, mark), workers).results(parts)) as results:
            for part, _ in results:
                yield part
    finally:
        store.place.remove(MARK)


class PartJob:
    """Makes parts of a store in a process of Ray's."""

    def __init__(self, path: str, options: dict[str, Any] | None, mark: bytes) -> None:
        self._path, self._options, self._mark = path, options, mark
        self._store: Store | None = None

    def begin(self) -> None:
        """Open the store; raise an error if it is not the one that the other processes write to."""
        place = place_of(self._path, self._options)
        about = about_of(place) if place.get(MARK) == self._mark else None
        if about is None:
            raise InputError(
                f"corpus: the computer {platform.node()} finds nothing or another folder at {self._path!r}.",
                code="corpus-not-shared",
                remedy="Give a folder that all computers of Ray share, an address such as 's3://bucket/acts.zarr', or "
                "engine='local'.",
            )
        self._store = Store(place, about)

    def __call__(self, model: CapturingModel, part: int) -> None:
        """Make a part and write it."""
        assert self._store is not None
        with Keeper(self._store.place, self._store.corpus) as keeper:
            keeper.make(model, part)
