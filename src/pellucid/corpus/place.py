"""Where a store lies: a folder, or a prefix of an object store; objects are put whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pellucid import atomic
from pellucid.errors import InputError
from pellucid.extras import need

Result = TypeVar("Result")

TRIES, FIRST_WAIT = 5, 0.5
"""How often an object store is asked, and the seconds before the second time; each wait is twice the one before."""


class StorePlace(Protocol):
    """Where the objects of a store lie, by keys with slashes."""

    @property
    def zarr(self) -> Any:
        """What zarr opens."""
        ...

    def put(self, key: str, data: memoryview | bytes) -> None:
        """Write one object, whole or not at all, durably."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return one object, or None if it is not there."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes an object has, or None if it is not there."""
        ...

    def free(self) -> int | None:
        """Return how many bytes can still be written, or None if that is not known."""
        ...

    def is_empty(self) -> bool:
        """Return whether nothing is there."""
        ...

    def clean(self, folders: list[str]) -> None:
        """Remove what killed writers left in these folders."""
        ...


class Folder:
    """A folder on a disk.

    Args:
        path: It; made when something is put.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def zarr(self) -> Any:
        return str(self.path)

    def put(self, key: str, data: memoryview | bytes) -> None:
        atomic.put(self.path / key, data)

    def get(self, key: str) -> bytes | None:
        try:
            return (self.path / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        try:
            return (self.path / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def free(self) -> int | None:
        there = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        return shutil.disk_usage(there).free

    def is_empty(self) -> bool:
        return not os.path.lexists(self.path) or (self.path.is_dir() and not any(self.path.iterdir()))

    def clean(self, folders: list[str]) -> None:
        for folder in filter(Path.is_dir, map(self.path.joinpath, folders)):
            atomic.remove_leftovers(folder)


class Objects:
    """A prefix of an object store that fsspec reads, such as "s3://bucket/acts.zarr".

    Args:
        url: The prefix.
        options: What fsspec is told beside it, such as an endpoint.
    """

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        fsspec = need("fsspec", "corpus")
        self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        self._url, self._options = url, options

    def __str__(self) -> str:
        return self._url

    @property
    def zarr(self) -> Any:
        store = need("zarr.storage", "corpus").FsspecStore
        return store.from_url(self._url, storage_options=self._options or None)

    def put(self, key: str, data: memoryview | bytes) -> None:
        _persistently(lambda: self._fs.pipe_file(self._key(key), bytes(data)))

    def get(self, key: str) -> bytes | None:
        try:
            return _persistently(lambda: self._fs.cat_file(self._key(key)))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        try:
            return int(_persistently(lambda: self._fs.info(self._key(key)))["size"])
        except FileNotFoundError:
            return None

    def free(self) -> int | None:
        return None

    def is_empty(self) -> bool:
        try:
            return not _persistently(lambda: self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return True

    def clean(self, folders: list[str]) -> None:
        pass  # an object is put in one request

    def _key(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


class Nowhere:
    """What is put here is gone: for a first pass that only counts."""

    zarr = None

    def put(self, key: str, data: memoryview | bytes) -> None:
        pass

    def get(self, key: str) -> bytes | None:
        return None

    def size(self, key: str) -> int | None:
        return None

    def free(self) -> int | None:
        return None

    def is_empty(self) -> bool:
        return True

    def clean(self, folders: list[str]) -> None:
        pass


def chunk_key(name: str, part: int, axes: int) -> str:
    """Where a part of an array of so many axes lies; every other axis is whole in a chunk."""
    return f"{name}/c.{part}{'.0' * (axes - 1)}"


def place_of(path: Any, storage_options: dict[str, Any] | None = None) -> StorePlace:
    """The place that a path or an address means.

    Raises:
        InputError: Options were given for a folder.
        WeightsError: It is no path.
    """
    if isinstance(path, str) and "://" in path:
        return Objects(path, dict(storage_options or {}))
    if storage_options:
        raise InputError(
            f"corpus: storage_options given with {str(path)!r}, which is a folder.",
            code="corpus-options",
            remedy="Leave storage_options out, or give an address such as 's3://bucket/acts.zarr'.",
        )
    return Folder(atomic.path_of(path))


def _persistently(ask: Callable[[], Result]) -> Result:
    """What a store answers, asked again where the network failed; that something is not there is an answer."""
    for number in range(TRIES):
        try:
            return ask()
        except FileNotFoundError:
            raise
        except OSError:
            if number == TRIES - 1:
                raise
            time.sleep(FIRST_WAIT * 2**number)
    raise AssertionError
