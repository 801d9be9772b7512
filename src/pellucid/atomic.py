"""Files written whole: at every moment, and after a kill, a reader finds the old file or the new one, never half of it.

A file is completed under a temporary name in the folder it belongs to, flushed to the disk, and only then renamed.
Files that belong together are renamed together, while a lock keeps other savers out. What a killed process left under a
temporary name is removed by the next save into that folder.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pellucid.check import path_of
from pellucid.errors import PellucidError, WeightsError

try:
    import fcntl
except ImportError:  # Windows, where two savers at the same time are not kept apart
    fcntl = None

Writer = Callable[[Path], object]
"""Writes one complete file at the path it is given."""

LONGEST_WAIT = 60.0
"""Seconds to wait for another process that is renaming its files, which takes milliseconds."""

OLD = 24 * 3600.0
"""Seconds after which a temporary file is nobody's, wherever it was made."""

READER_STARTS = 1.0
"""Seconds that the other end of a pipe may take to open it, when a shell starts both ends at once."""

FLUSHED_AT_ONCE = 8
"""Small files that the disk is asked to keep at the same time, which its journal then takes together."""

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""What tells this machine from others."""

_TEMPORARY = re.compile(r"\.pellucid-(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,10})-[0-9a-f]{8}\.part")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write one UTF-8 file, whole or not at all."""
    write_file(path, text_writer(text))


def text_writer(text: str) -> Writer:
    """Return a writer of text as UTF-8; a lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return lambda part: part.write_bytes(text.encode("utf-8", "replace"))


def write_file(path: str | os.PathLike[str], write: Writer) -> None:
    """Write one file, whole or not at all."""
    whole = path_of(path)
    if str(path).endswith(os.sep):
        raise not_writable(whole, "it is a folder, expected the name of a file")
    write_folder(whole.parent, [(whole.name, write)], named=whole)


def write_folder(
    folder: Path,
    writers: Sequence[tuple[str, Writer]],
    *,
    outdated: Callable[[], Iterable[str]] | None = None,
    named: Path | None = None,
) -> None:
    """Write files that belong together into a folder, which is made if it does not exist.

    All are completed first, under temporary names. Then, while no other saver may rename anything in the folder, they
    take their names in the order given. When anything fails before that, nothing in the folder has changed. A symbolic
    link stays one, and what it points to is written; a pipe or a device is written into.

    `outdated` names files that shall not outlive this save. It is asked while no other saver is at work, and they are
    removed just before the last file takes its name. `named` is what an error names; the folder if None.
    """
    folder = path_of(folder)
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise OSError(errno.ENOTDIR, "it is no folder, expected one")
        if named is not None and named.is_dir():
            raise OSError(errno.EISDIR, "it is a folder, expected the name of a file")
        with made_folder(folder), ExitStack() as unfinished:
            places, parts = [_place(folder / name) for name, _ in writers], list[Path]()
            for parent in {place.parent for place in places if not _is_device(place)}:
                remove_leftovers(parent)
            for (_, write), place in zip(writers, places, strict=True):
                parts.append(_beside(place))
                unfinished.callback(_remove, parts[-1])
                parts[-1].touch()
                write(parts[-1])
                _flush(parts[-1])
            with alone(folder):
                old = [folder / name for name in (outdated() if outdated is not None else ())]
                for number, (part, place) in enumerate(zip(parts, places, strict=True), start=1):
                    if number == len(parts):
                        for path in old:
                            path.unlink(missing_ok=True)
                    _take_place(part, place)
    except OSError as problem:
        raise not_writable(named or folder, problem.strerror or str(problem)) from problem


@contextmanager
def made_folder(folder: Path) -> Generator[None]:
    """Make a folder, and those above it; of the ones that were missing, those that hold nothing in the end go again."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            with suppress(OSError):  # it holds something
                parent.rmdir()


def _remove(part: Path) -> None:
    """Remove a temporary file, if it was not renamed."""
    with suppress(OSError):
        part.unlink(missing_ok=True)


class Begun:
    """One of very many files of a folder, written piece by piece; nobody sees it before it is whole.

    It takes no lock and does not look for what others left, which `remove_leftovers` does once for all of them. The
    last one who finishes the same file wins.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self._part = path, _temporary(path.parent)
        with self._said():
            path.parent.mkdir(exist_ok=True)  # of the store itself, if it was removed meanwhile, nothing is made again
            try:
                with self._part.open("xb") as file:
                    file.truncate(size)
            except BaseException:
                self.drop()
                raise

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Write pieces, each from some byte on; what is never written is zero."""
        with self._said(), self._part.open("r+b", buffering=0) as file:
            for at, piece in pieces:
                file.seek(at)
                left = piece
                while left:
                    left = left[file.write(left) :]

    def settle(self) -> None:
        """Wait until the disk has what was written so far; another thread may write more meanwhile."""
        with self._said():
            _flush(self._part)

    def digest(self) -> bytes:
        """The SHA-256 of what was written."""
        with (
            self._said(),
            self._part.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return hashlib.sha256(content).digest()

    def finish(self) -> None:
        """Give the file its name; `settle` it first."""
        with self._said():
            os.replace(self._part, self.path)
            _flush(self.path.parent)

    def drop(self) -> None:
        """Remove the file if it was not finished."""
        _remove(self._part)

    def failed(self, problem: OSError) -> PellucidError:
        """What is raised when the disk refuses."""
        return not_writable(self.path, problem.strerror or str(problem))

    @contextmanager
    def _said(self) -> Generator[None]:
        try:
            yield
        except OSError as problem:
            raise self.failed(problem) from problem


def take_folder(made: Path, place: Path) -> None:
    """Give a folder that was completed under a temporary name its own, where nothing or an empty folder is."""
    with ThreadPoolExecutor(FLUSHED_AT_ONCE, thread_name_prefix="pellucid") as flushing:
        for flushed in [flushing.submit(_flush, path) for path in (*made.rglob("*"), made)]:
            flushed.result()
    os.replace(made, place)
    _flush(place.parent)


def not_writable(path: Path, why: str) -> WeightsError:
    """The error for a path where nothing can be written."""
    return WeightsError(
        f"{path}: cannot be written: {why}.",
        code="path-not-writable",
        remedy="Choose a folder that you may write, with enough free space, and a name that the disk can hold and that "
        "is free.",
    )


@contextmanager
def temporary_folder(near: Path) -> Generator[Path]:
    """A folder in another, made if it is missing; removed at the end, or by the next save there after a kill."""
    with made_folder(near):
        remove_leftovers(near)
        folder = _temporary(near)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed savers of this library left in a folder; those of running savers stay."""
    for path in map(folder.joinpath, os.listdir(folder)):
        name = _TEMPORARY.fullmatch(path.name)
        if name is None:
            continue
        with suppress(OSError):  # another saver may be removing it, too
            here = name["host"] == HOST and os.name == "posix"
            if (here and not is_running(int(name["pid"]))) or time.time() - path.lstat().st_mtime > OLD:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_running(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _place(path: Path) -> Path:
    """Where a file is written: what a link points to, there or not."""
    if _is_device(path) or not path.is_symlink():
        return path
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if place.parent.name == "blobs" and "snapshots" in path.absolute().parts:
        raise OSError(errno.EPERM, f"{path.name} is a link into the hub's cache, which all revisions share")
    return place


def _is_device(path: Path) -> bool:
    """Whether a path is no file that can be exchanged: a pipe, a terminal, what is in /dev."""
    return path.exists() and not path.is_dir() and (not path.is_file() or path.parent == Path("/dev"))


def _temporary(folder: Path) -> Path:
    """A new name, which says whose it is; short, since a name of 250 letters is a name, too."""
    return folder / f".pellucid-{HOST}-{os.getpid()}-{secrets.token_hex(4)}.part"


def _beside(path: Path) -> Path:
    """A new name in the same folder; beside a device nothing can be put."""
    return _temporary(Path(tempfile.gettempdir()) if _is_device(path) else path.parent)


def _take_place(part: Path, place: Path) -> None:
    if not _is_device(place):
        os.replace(part, place)
        _flush(place.parent)
        return
    with part.open("rb") as whole, os.fdopen(_open_device(place), "wb") as device:
        shutil.copyfileobj(whole, device)


def _open_device(place: Path) -> int:
    """A handle to write to; a pipe that nobody reads would be waited for without an end, so it is an error."""
    if not stat.S_ISFIFO(place.stat().st_mode):
        return os.open(place, os.O_WRONLY)
    until = time.monotonic() + READER_STARTS
    while True:
        try:
            handle = os.open(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as problem:
            if problem.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise OSError(errno.ENXIO, "nobody reads this pipe") from problem
            time.sleep(0.01)
            continue
        os.set_blocking(handle, True)
        return handle


@contextmanager
def alone(folder: Path, wait: float | None = None) -> Generator[None]:
    """Lock a folder against other savers, in this process and in others; go on without one if there are no locks."""
    wait = LONGEST_WAIT if wait is None else wait
    handle = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        until = time.monotonic() + wait
        while fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as problem:
                if time.monotonic() > until:
                    raise OSError(errno.EBUSY, f"another process has been saving into it for {wait:.0f} s") from problem
                time.sleep(0.005)
                continue
            except OSError:
                pass
            break
        yield
    finally:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child may hold the same handle
            os.close(handle)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
