"""Who makes the parts of a store that are not there: this process, or many of Ray's on one computer or more."""

from __future__ import annotations

import platform
import secrets
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from pellucid.bar import bar
from pellucid.corpus.folder import Folder
from pellucid.corpus.objects import place_of
from pellucid.corpus.parts import LEDGER, Keeper, keep
from pellucid.corpus.ray_workers import Engine, Workers
from pellucid.corpus.sink import CapturingModel
from pellucid.corpus.store import Store, about_of
from pellucid.errors import InputError
from pellucid.interrupts import told
from pellucid.numerics.quickest import one_library

MARK = f"{LEDGER}/workers"
"""What is in a store only while Ray's processes work: each reads it, and so sees that its store is this one."""


def finish(model: CapturingModel, store: Store, engine: Engine, path: Any, *, progress: bool, options: Any) -> None:
    """Make the parts of a store that are not there.

    Args:
        model: What to run.
        store: The store, to which nobody else writes.
        engine: Who makes them.
        path: Where it lies, as it was given.
        progress: Whether to draw a bar.
        options: What fsspec is told beside an address.
    """
    plan, place = store.plan, store.place
    there = store.parts
    left = [part for part in range(plan.parts) if part not in there]
    place.clean([*plan.names, LEDGER])
    place.remove(MARK)  # if the one who put it there was killed
    done = sum(len(plan.rows_of(part)) for part in there)
    words = lambda: f"corpus: interrupted; {place} keeps what is whole; begun again the same way, it goes on from there"  # noqa: E731
    same = one_library(store.provenance.get("products", ""))
    with told(words), same, bar("tokens", plan.rows, wanted=progress) as advance:
        advance(done)
        if engine.kind == "local":
            with Keeper(place, plan) as keeper:
                for part in left:
                    keeper.put(part, store.corpus.make(model, part, advance))
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
    """Makes parts of a store in a process of Ray's.

    Args:
        path: Where the store lies, for every computer.
        options: What fsspec is told beside an address.
        mark: What lies in it under `MARK`.
    """

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
        keep(self._store.place, self._store.plan, part, self._store.corpus.make(model, part))
