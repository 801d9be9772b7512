"""Where a store lies, a folder or a prefix of an object store: objects are put whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pellucid import atomic
from pellucid.errors import InputError, PellucidError
from pellucid.extras import need
from pellucid.weights.manifests import unreadable

Result = TypeVar("Result")

METADATA = "zarr.json"
"""What Zarr reads of the whole; a store has it last of all when it is begun, so with it the store is there."""


class BegunChunk(Protocol):
    """An object while it is filled."""

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Write pieces, each from some byte on; what is never written is zero."""
        ...

    def settle(self) -> None:
        """Wait until what was written so far is where it stays."""
        ...

    def digest(self) -> bytes:
        """Return the SHA-256 of what was written."""
        ...

    def finish(self) -> None:
        """Let it be seen, whole; `settle` first."""
        ...

    def drop(self) -> None:
        """Remove it if it was not finished."""
        ...


class StorePlace(Protocol):
    """Where the objects of a store lie, by keys with slashes. What fails is an error that names the place."""

    def group(self) -> Any:
        """Open what lies here as a Zarr group."""
        ...

    def asked(self, ask: Callable[[], Result]) -> Result:
        """Return what a function reads here, asked again where that may help."""
        ...

    def put(self, key: str, data: memoryview | bytes) -> None:
        """Write one object, whole or not at all, durably."""
        ...

    def begin(self, key: str, size: int) -> BegunChunk:
        """Begin one object of so many bytes, which nobody sees before it is finished."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return one object, or None if it is not there."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes an object has, or None if it is not there."""
        ...

    def remove(self, key: str) -> None:
        """Remove one object, if it is there."""
        ...

    def chunk(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return the numbers of an object [count], mapped from the disk if it lies on one."""
        ...

    def read(self, key: str, into: Tensor) -> None:
        """Fill memory that lies in one piece with the first numbers of an object."""
        ...

    def rows(self, keys: Sequence[str], places: Sequence[int], width: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return some rows [k, width] of objects of `count` rows: row `places[i]` of the object `keys[i]`."""
        ...

    def free(self) -> int | None:
        """Return how many bytes can still be written, or None if that is not known."""
        ...

    def is_empty(self) -> bool:
        """Return whether nothing is there, or only what a killed call had begun."""
        ...

    def clean(self, folders: list[str]) -> None:
        """Remove what killed writers left in these folders."""
        ...

    def building(self) -> AbstractContextManager[StorePlace]:
        """Begin a store: nothing of it stays if that fails."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Keep other writers of this store out, or raise an error if one is at work."""
        ...


def busy(place: StorePlace) -> InputError:
    """The error for a place that somebody else writes to."""
    return InputError(
        f"corpus: another process writes to {place}.",
        code="corpus-busy",
        remedy="Wait for it, or stop it and call this again: it goes on with what is there.",
    )


def unfinished(what: str) -> InputError:
    """The error for what is not there before a store is whole."""
    return InputError(
        f"corpus: {what}.",
        code="corpus-unfinished",
        remedy="Call pl.corpus.capture again with the same arguments: it makes what is missing.",
    )


MAKE_ROOM = "Make room, and make the same call again: it goes on with what is there."


def no_room(what: str, remedy: str = MAKE_ROOM) -> InputError:
    """The error for a disk that is too full."""
    return InputError(f"corpus: {what}.", code="corpus-disk", remedy=remedy)


def chunk_key(name: str, part: int, axes: int) -> str:
    """Where a part of an array of so many axes lies; every other axis is whole in a chunk."""
    return f"{name}/c.{part}{'.0' * (axes - 1)}"


AT_ONCE = 2**20
"""Bytes that one request reads: on two threads, 0.88 of the time of requests for whole chunks, cold."""

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # the latter is not on every system
"""Numbers of errors of a disk without room."""

MAPPED = 256
"""Chunks that are mapped at the same time when rows are read one by one."""


def refused(path: Path, problem: OSError) -> PellucidError:
    """The error for a disk that does not take what belongs to a path."""
    if problem.errno in FULL:
        return no_room(f"there is no room left for {path}")
    return atomic.not_writable(path, problem.strerror or str(problem))


class FolderChunk(atomic.Begun):
    """A chunk on a disk while it is filled."""

    def failed(self, problem: OSError) -> PellucidError:
        return refused(self.path, problem)


class Folder:
    """A folder on a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def group(self) -> Any:
        zarr = need("zarr", "corpus")
        return self.asked(lambda: zarr.open_group(str(self.path), mode="r"))

    def asked(self, ask: Callable[[], Result]) -> Result:
        try:
            return ask()
        except OSError as problem:
            raise unreadable(Path(problem.filename or self.path), problem) from problem

    def put(self, key: str, data: memoryview | bytes) -> None:
        chunk = self.begin(key, len(data))
        try:
            chunk.write([(0, memoryview(data))])
            chunk.settle()
            chunk.finish()
        finally:
            chunk.drop()

    def begin(self, key: str, size: int) -> FolderChunk:
        return FolderChunk(self.path / key, size)

    def get(self, key: str) -> bytes | None:
        return self.asked(lambda: _there((self.path / key).read_bytes))

    def size(self, key: str) -> int | None:
        return self.asked(lambda: _there(lambda: (self.path / key).stat().st_size))

    def remove(self, key: str) -> None:
        self.asked(lambda: (self.path / key).unlink(missing_ok=True))

    def chunk(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        self.asked((self.path / key).open("rb").close)  # torch says only that it cannot
        return torch.from_file(str(self.path / key), shared=False, size=count, dtype=dtype)

    def read(self, key: str, into: Tensor) -> None:
        left = into.view(-1).view(torch.uint8).numpy().data
        with self.asked(lambda: (self.path / key).open("rb", buffering=0)) as file:
            while left and (count := self.asked(lambda left=left: file.readinto(left[:AT_ONCE]))):
                left = left[count:]
        if left:
            raise unreadable(self.path / key, ValueError("it became shorter meanwhile"))

    @cached_property
    def _mapped(self) -> Callable[[str, int, torch.dtype], Tensor]:
        return lru_cache(MAPPED)(self.chunk)

    def rows(self, keys: Sequence[str], places: Sequence[int], width: int, count: int, dtype: torch.dtype) -> Tensor:
        made = torch.empty(len(keys), width, dtype=dtype, device="cpu")
        of_key: dict[str, list[int]] = {}
        for i, key in enumerate(keys):
            of_key.setdefault(key, []).append(i)
        for key, here in of_key.items():
            made[here] = self._mapped(key, count * width, dtype).view(count, width)[[places[i] for i in here]]
        return made

    def free(self) -> int | None:
        there = next(parent for parent in (self.path, *self.path.absolute().parents) if os.path.exists(parent))
        return self.asked(lambda: shutil.disk_usage(there).free)

    def is_empty(self) -> bool:
        if not os.path.lexists(self.path):
            return True
        return self.path.is_dir() and not self.asked(lambda: os.listdir(self.path))

    def clean(self, folders: list[str]) -> None:
        for folder in filter(Path.is_dir, map(self.path.joinpath, folders)):
            self.asked(lambda folder=folder: atomic.remove_leftovers(folder))

    @contextmanager
    def building(self) -> Generator[StorePlace]:
        """A folder beside its place, which it takes as a whole."""
        with ExitStack() as stack:
            try:
                made = stack.enter_context(atomic.temporary_folder(self.path.absolute().parent))
            except OSError as problem:
                raise refused(self.path, problem) from problem
            yield NewFolder(made, self.path)
            try:
                atomic.take_folder(made, self.path)
            except OSError as problem:
                raise refused(self.path, problem) from problem

    @contextmanager
    def alone(self) -> Generator[None]:
        """The folder's lock, where the disk has locks."""
        with ExitStack() as stack:
            try:
                stack.enter_context(atomic.alone(self.path, wait=0.0))
            except OSError as problem:
                if problem.errno != errno.EBUSY:
                    raise unreadable(self.path, problem) from problem
                raise busy(self) from problem
            yield


class NewFolder(Folder):
    """A folder that nobody reads before it is whole and takes its place; then the disk is asked to keep its files."""

    def __init__(self, path: Path, place: Path) -> None:
        super().__init__(path)
        self._place = place

    def put(self, key: str, data: memoryview | bytes) -> None:
        try:
            (self.path / key).parent.mkdir(exist_ok=True)
            (self.path / key).write_bytes(data)
        except OSError as problem:
            raise refused(self._place, problem) from problem


def _there(ask: Callable[[], Result]) -> Result | None:
    try:
        return ask()
    except (FileNotFoundError, NotADirectoryError):
        return None
