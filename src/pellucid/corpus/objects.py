"""A store in an object store that fsspec reads, such as S3: retries, errors that say what to do, and one writer."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid import atomic
from pellucid.corpus.place import METADATA, Folder, Result, StorePlace, busy
from pellucid.errors import InputError, MissingExtraError, NotFoundError, PellucidError, shown
from pellucid.extras import need
from pellucid.weights.manifests import unreadable

TRIES, FIRST_WAIT = 5, 0.5
"""How often an object store is asked, and the seconds before the second time; each wait is twice the one before."""

WRITER = "writer.json"
"""The object that says who writes; it is removed when they are done."""

LEASE = 60.0
"""Seconds after which a writer on another machine that says nothing is taken for dead."""

LARGEST_PUT = 5 * 2**30
"""Bytes that S3 takes in one request."""


LASTING = {
    errno.EINVAL, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.EPERM, errno.ENOSYS,
    getattr(errno, "EREMCHG", errno.EINVAL),  # not on every system
}  # fmt: skip
"""Numbers of errors that s3fs makes of answers which are the same however often one asks; others pass."""

NETWORK = {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ClientError", "HttpError", "AzureError"}
"""Exceptions of botocore, aiohttp, gcsfs and Azure, no OSErrors, that say that the network or the store failed."""

_ADDRESS = "Give an address such as 's3://bucket/acts.zarr', with the storage_options that its kind takes, or a folder."


class ObjectChunk:
    """An object in memory while it is filled, which is put in one request."""

    def __init__(self, place: Objects, key: str, size: int) -> None:
        self._place, self._key, self._data = place, key, io.BytesIO(bytes(size))  # whose bytes are put without a copy

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        for at, piece in pieces:
            self._data.seek(at)
            self._data.write(piece)

    def settle(self) -> None:
        pass

    def digest(self) -> bytes:
        return hashlib.sha256(self._data.getbuffer()).digest()

    def finish(self) -> None:
        self._place.put(self._key, self._data.getvalue())

    def drop(self) -> None:
        self._data = io.BytesIO()


class Objects:
    """A prefix of an object store that fsspec reads, such as "s3://bucket/acts.zarr"."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        fsspec = need("fsspec", "corpus")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise MissingExtraError(
                f"corpus: {url}: {error}.", code="missing-extra",
                remedy="pip install 'pellucid[s3]' for s3://; for others what the message names.",
            ) from error  # fmt: skip
        except (ValueError, TypeError) as error:
            raise InputError(
                f"corpus: {shown(url)} is no address that fsspec opens: {error}.",
                code="corpus-address",
                remedy=_ADDRESS,
            ) from error
        self._url, self._options = url, options
        self._as_one = {"chunksize": LARGEST_PUT} if "s3" in self._fs.protocol else {}

    def __str__(self) -> str:
        return self._url

    def group(self) -> Any:
        store = need("zarr.storage", "corpus").FsspecStore
        zarr = need("zarr", "corpus")
        opened = lambda: store.from_url(self._url, storage_options=self._options or None)  # noqa: E731
        return self.asked(lambda: zarr.open_group(opened(), mode="r"))

    def asked(self, ask: Callable[[], Result]) -> Result:
        for number in range(TRIES):
            try:
                return ask()
            except (FileNotFoundError, FileExistsError):  # answers
                raise
            except Exception as error:  # each kind of store has exceptions of its own
                if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
                    raise self._no_access(error) from error
                if not _passes(error):
                    if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                        raise  # no answer of a store, but a fault
                    raise self._refused(error) from error
                if number == TRIES - 1:
                    raise self._no_answer(error) from error
            time.sleep(FIRST_WAIT * 2**number)
        raise AssertionError

    def put(self, key: str, data: memoryview | bytes) -> None:
        self._put(key, bytes(data))

    def begin(self, key: str, size: int) -> ObjectChunk:
        return ObjectChunk(self, key, size)

    def _put(self, key: str, data: bytes, **how: Any) -> None:
        try:
            self.asked(lambda: self._fs.pipe_file(self._key(key), data, **how, **self._as_one))
        except FileNotFoundError as error:
            raise NotFoundError(
                f"corpus: {self._url}: {error}.",
                code="corpus-bucket",
                remedy="Make the bucket first, or give one that is there.",
            ) from error

    def get(self, key: str) -> bytes | None:
        try:
            return self.asked(lambda: self._fs.cat_file(self._key(key)))
        except FileNotFoundError:
            return None

    def size(self, key: str) -> int | None:
        try:
            return int(self.asked(lambda: self._fs.info(self._key(key)))["size"])
        except FileNotFoundError:
            return None

    def remove(self, key: str) -> None:
        with suppress(FileNotFoundError):
            self.asked(lambda: self._fs.rm_file(self._key(key)))

    def chunk(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        return torch.frombuffer(bytearray(self.get(key) or b""), dtype=dtype)

    def read(self, key: str, into: Tensor) -> None:
        data = self.get(key) or b""
        if len(data) < into.nbytes:
            raise unreadable(Path(key), ValueError("it became shorter meanwhile"))
        into.view(-1).copy_(torch.frombuffer(bytearray(data), dtype=into.dtype)[: into.numel()])

    def rows(self, keys: Sequence[str], places: Sequence[int], width: int, count: int, dtype: torch.dtype) -> Tensor:
        size = width * dtype.itemsize
        starts = [place * size for place in places]
        names, stops = [self._key(key) for key in keys], [start + size for start in starts]
        found = self.asked(lambda: self._fs.cat_ranges(names, starts, stops, on_error="raise"))
        return torch.frombuffer(bytearray(b"".join(found)), dtype=dtype).view(len(keys), width)

    def free(self) -> int | None:
        return None

    def is_empty(self) -> bool:
        self._fs.invalidate_cache()
        try:
            found = self.asked(lambda: self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return True
        return not found or self.get(WRITER) is not None

    def clean(self, folders: list[str]) -> None:
        pass  # an object is put in one request

    @contextmanager
    def building(self) -> Generator[StorePlace]:
        """The place itself, without what a call that was killed had begun there."""
        with self.alone():
            if self.get(METADATA) is not None:  # somebody was faster
                raise busy(self)
            self._clear()
            try:
                yield self
            except BaseException:
                self._clear()
                raise

    def _clear(self) -> None:
        """Remove all but who writes."""
        self._fs.invalidate_cache()
        there = self.asked(lambda: self._fs.find(self._root))
        if left := [key for key in there if key != self._key(WRITER)]:
            self.asked(lambda: self._fs.rm(left))

    @contextmanager
    def alone(self) -> Generator[None]:
        """An object that says who writes, renewed meanwhile.

        It is there to spare work: two writers of one store would put the same bytes.
        """
        mine, done = secrets.token_hex(8), threading.Event()
        self._enter(mine)
        renewing = threading.Thread(target=self._renew, args=(mine, done), name="pellucid", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            done.set()
            renewing.join()
            with suppress(PellucidError):  # what failed before says more
                if self._writer().get("token") == mine:
                    self.remove(WRITER)

    def _enter(self, mine: str) -> None:
        try:
            self._put(WRITER, _said(mine), mode="create")
        except FileExistsError:  # perhaps by this very request, whose answer was lost
            there = self._writer()
            if there.get("token") != mine and _is_at_work(there):
                raise busy(self) from None
            self._put(WRITER, _said(mine))
            if self._writer().get("token") != mine:
                raise busy(self) from None

    def _writer(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.get(WRITER) or b"{}"))
        except (ValueError, TypeError):
            return {}

    def _renew(self, mine: str, done: threading.Event) -> None:
        while not done.wait(LEASE / 4):
            with suppress(PellucidError):  # the work itself meets it, too
                self._put(WRITER, _said(mine))

    def _key(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    def _no_access(self, error: Exception) -> InputError:
        return InputError(
            f"corpus: no access to {self._url}: {error}.",
            code="corpus-access",
            remedy="Give storage_options with the 'key' and 'secret' of somebody who may read and write there, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and begin again in a new process.",
        )

    def _refused(self, error: Exception) -> InputError:
        return InputError(
            f"corpus: {self._url} refused a request: {type(error).__name__}: {error}.",
            code="corpus-address",
            remedy=_ADDRESS,
        )

    def _no_answer(self, error: Exception) -> InputError:
        return InputError(
            f"corpus: {self._url} did not answer after {TRIES} tries: {type(error).__name__}: {error}.",
            code="corpus-network",
            remedy="Check the address, the endpoint_url in storage_options and the network, and make the same call "
            "again: it goes on with what is there.",
        )


def _passes(error: Exception) -> bool:
    """Whether the same request may be answered another time."""
    if isinstance(error, OSError):
        return error.errno not in LASTING
    return not NETWORK.isdisjoint(kind.__name__ for kind in type(error).__mro__)


def _said(mine: str) -> bytes:
    said = {"token": mine, "host": atomic.HOST, "pid": os.getpid(), "until": time.time() + LEASE}
    return json.dumps(said).encode()


def _is_at_work(writer: dict[str, Any]) -> bool:
    """Whether who wrote this still does."""
    here = writer.get("host") == atomic.HOST
    return float(writer.get("until", 0)) > time.time() and (not here or atomic.is_running(int(writer["pid"])))


def place_of(path: Any, storage_options: dict[str, Any] | None = None) -> StorePlace:
    """The place that a path or an address means; only an address takes options."""
    if isinstance(path, str) and "://" in path:
        return Objects(path, dict(storage_options or {}))
    if isinstance(path, os.PathLike) and (found := re.match(r"([\w+.-]{2,}):/(.*)", str(path))):
        raise InputError(
            f"corpus: {shown(path)} is the path of a folder, no address.",
            code="corpus-address",
            remedy=f"Give the address as a str: '{found[1]}://{found[2]}'.",
        )
    if storage_options:
        raise InputError(
            f"corpus: storage_options given with {str(path)!r}, which is a folder.",
            code="corpus-options",
            remedy="Leave storage_options out, or give an address such as 's3://bucket/acts.zarr'.",
        )
    return Folder(atomic.path_of(path))
