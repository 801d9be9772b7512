"""Files that strangers wrote: which of them are opened at all, and the small JSON files beside the weights.

The files of the hub's cache hold what their names say: each is called by the digest of its content. That of a large
file takes a second or more, so it is computed once, and again if the file was written to since.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid import atomic
from pellucid.errors import ConfigError, NotFoundError, WeightsError, shown

LONGEST_TEXT = 2**28
"""Bytes of a file that is read whole as text: four times the longest index or vocabulary that was ever published."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that is not read."""

    what: str  # what it is, as the end of "the file is ..."
    remedy: str  # how to get what this library reads
    start: bytes = rb"(?!)"  # what its first bytes match
    name: str = "(?!)"  # what its name matches

    def has(self, name: str, start: bytes) -> bool:
        """Whether a file is of this kind."""
        return re.match(self.start, start, re.DOTALL | re.IGNORECASE) is not None or bool(re.search(self.name, name))

    def refused(self, place: object) -> WeightsError:
        """The error for a file of this kind, or for a folder that has no other."""
        return WeightsError(f"{place}: {self.what}.", code="format-not-supported", remedy=self.remedy)


_AGAIN = "Download the file itself"
STAND_INS = (
    FileKind(
        "a Git LFS pointer, which stands for the file",
        f"{_AGAIN} in its place: git lfs pull, or hf download with the repository's id.",
        rb"version https://git-lfs|version https://hawser",
    ),
    FileKind("a pointer of git-annex, which stands for the file", f"{_AGAIN}: git annex get.", rb"/annex/objects/"),
    FileKind("a page of HTML or XML, not the file", f"{_AGAIN}: the address led to a page about it, or to a login.",
         rb"\s*(<!doctype|<html|<head|<\?xml)"),
    FileKind("what a hub answers in the place of a file that it does not give",
         f"{_AGAIN}, if it is there and you may: hf "
         "download with the repository's id.",
         rb"(entry|repository) not found|invalid (rev id|username|credentials)|unauthorized|access to (model|this)"),
)  # fmt: skip
"""What is found in the place of files that were not downloaded."""


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a folder has an entry of this name, a link that leads nowhere included: opening it says what is wrong."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as problem:
        raise unreadable(Path(path), problem) from problem
    return True


def require_regular(path: str | os.PathLike[str]) -> None:
    """See that a path leads to a regular file, before a library is asked to open it.

    A pipe may never be written to, a device such as /dev/zero never ends, and opening a terminal takes it over.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as problem:  # ValueError: a null character in the name
        raise unreadable(Path(path), problem) from problem
    if not stat.S_ISREG(mode):
        raise WeightsError(
            f"{path}: {_kind(mode)}, expected a regular file.",
            code="path-not-regular",
            remedy="Give a file. What a pipe or a device delivers has to be written to a file first.",
        )


def _kind(mode: int) -> str:
    kinds = {
        "a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK,
        "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    }  # fmt: skip
    return next((name for name, is_one in kinds.items() if is_one(mode)), "no regular file")


def read_text(path: str | os.PathLike[str], longest: int = LONGEST_TEXT) -> str:
    """The text of a regular file in UTF-8, or in UTF-16 or UTF-32 with its mark.

    Raises:
        NotFoundError: If nothing is there.
        WeightsError: If it is no regular file, is longer, cannot be read, or is one of `STAND_INS`.
        UnicodeDecodeError: If the encoding is another (a `ValueError`, as bad JSON is).
    """
    require_regular(path)
    with reading(Path(path)), open(path, "rb") as file:
        content = file.read(longest + 1)  # not by its size: files of /proc say 0
    if len(content) > longest:
        raise WeightsError(
            f"{path}: longer than {longest} bytes.",
            code="file-too-long",
            remedy="Give the file that save_pretrained wrote; no such file is that long.",
        )
    if (stand_in := next((kind for kind in STAND_INS if kind.has("", content[:512])), None)) is not None:
        raise stand_in.refused(path)
    return decoded(content)


def decoded(content: bytes) -> str:
    """A text in UTF-8, or in what its byte-order mark says, as editors and shells of Windows put before it."""
    return content.decode(next((name for mark, name in _MARKS if content.startswith(mark)), "utf_8_sig"))


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf_32"), (codecs.BOM_UTF32_BE, "utf_32"),  # the first begins with UTF-16's
    (codecs.BOM_UTF16_LE, "utf_16"), (codecs.BOM_UTF16_BE, "utf_16"),
)  # fmt: skip


class RepeatedKey(ValueError):  # noqa: N818 (it is what is wrong with a text)
    """An object of JSON that has a key twice, with different values: readers differ in which of them they take."""


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that these keys and values are; json's `object_pairs_hook`."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise RepeatedKey(f"the key {shown(key)} is given twice, as {shown(found[key])} and as {shown(value)}")
        found[key] = value
    return found


def read_json(path: Path, error: type[ConfigError | WeightsError], code: str) -> dict[str, Any]:
    """The JSON object in a file; an error of the class and code given if it holds anything else."""
    try:
        content = json.loads(read_text(path), object_pairs_hook=each_once)
    except RepeatedKey as problem:
        raise error(
            f"{path}: {problem}.", code=code, remedy="Leave it in once, with the value that is meant."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise error(
            f"{path}: not JSON: {problem}.", code=code, remedy="Download or write the file again; it is damaged."
        ) from problem
    if not isinstance(content, dict):
        raise error(
            f"{path}: a JSON {type(content).__name__}, expected an object.",
            code=code,
            remedy="Give the file that save_pretrained wrote.",
        )
    return content


def json_text(fields: Mapping[str, Any]) -> str:
    """The text of a JSON file with these fields, as transformers writes its own."""
    return json.dumps(dict(fields), indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    """Numbers of NumPy's or torch's as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ConfigError(
        f"config: {shown(value)} ({type(value).__name__}) among the fields, expected what JSON can hold.",
        code="config-wrong-type",
        remedy="Give it as a text, a number, a list or a mapping, or leave the field out.",
    )


def read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of a sharded model: parameter name -> file name in the same folder, without a "./" before it."""
    weight_map = read_json(path, WeightsError, "index-not-json").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(
            f"{path}: weight_map is {type(weight_map).__name__}, expected an object that names a file per tensor.",
            code="index-no-weight-map",
            remedy="Download or write the index again.",
        )
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not re.fullmatch(r"(\./)*[\w\-][\w.\-]*", shard):
            raise WeightsError(
                f"{path}: {shown(tensor)} is said to be in {shown(shard)}, expected a file name in the same folder.",
                code="index-unsafe-path",
                remedy="Do not use this model unless you trust its author; shard names must be plain file names.",
            )
    return {tensor: shard.rpartition("/")[2] for tensor, shard in weight_map.items()}


SHARD = re.compile(r"-\d+-of-(\d+)(?=\.)")
"""What tells the name of a shard from that of a whole."""


def refuse_single_shard(path: Path) -> None:
    """Refuse a file whose name says that it is one of several shards, whose index lies beside it."""
    shard = SHARD.search(path.name)
    index = path.parent / f"{SHARD.sub('', path.name)}.index.json"  # with_name refuses ".", which has no name
    if shard is not None and int(shard[1]) > 1 and is_there(index):
        raise WeightsError(
            f"{path}: one of {int(shard[1])} shards.", code="shard-alone", remedy=f"Give their index, {str(index)!r}."
        )


def unreadable(path: Path, problem: OSError | ValueError) -> WeightsError:
    """The error to raise for a file that the operating system would not hand over."""
    if isinstance(problem, FileNotFoundError) and path.is_symlink():
        return NotFoundError(
            f"{path}: a link to {os.readlink(path)}, which is not there.",
            code="path-not-found",
            remedy="Put the file in its place again, or download the folder again.",
        )
    if isinstance(problem, FileNotFoundError):
        return NotFoundError(f"{path}: not there.", code="path-not-found", remedy="Check the spelling of the path.")
    return WeightsError(
        f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}.",
        code="path-unreadable",
        remedy=_BY_CAUSE.get(
            getattr(problem, "errno", None) or 0, "Check the permissions of the file and of its folders."
        ),
    )


@contextmanager
def reading(path: Path) -> Generator[None]:
    """Around the reading of a file: what the operating system refuses is an error that names the file."""
    try:
        yield
    except OSError as problem:
        raise unreadable(path, problem) from problem


_BY_CAUSE = {
    errno.ENAMETOOLONG: "Give the file a shorter name.",
    errno.ELOOP: "Put the file in the place of the link, which leads to itself.",
    errno.EIO: "Copy the file to another disk; this one does not read it.",
}
"""What to do about the causes that are no permissions."""


def require_content(path: Path) -> None:
    """See that a file of the cache holds what its name says: blobs are called by the digest of their content."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) or blob.parent.name != "blobs":
        return
    require_regular(blob)
    if _is_known(blob):
        return
    with reading(blob), blob.open("rb") as file:
        if len(blob.name) == 64:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        else:  # what git calls a file that is stored in the repository itself
            content = file.read()
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if digest != blob.name:
        raise WeightsError(
            f"{path}: its content is not what the hub has: its digest is {digest}, expected {blob.name}.",
            code="hub-corrupted",
            remedy=f"Delete {str(blob)!r} and load again; the file is then downloaded again.",
        )
    _remember(blob)


def _facts(blob: Path) -> str:
    """What changes when a file is written to."""
    facts = blob.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"


def _record(blob: Path) -> Path:
    """Where it is kept that a blob was checked: beside the cache's own folders of this repository."""
    return blob.parent.parent / ".pellucid-checked" / blob.name


def _is_known(blob: Path) -> bool:
    """Whether the content was checked before, and the file was not written to since."""
    with suppress(OSError, ValueError):
        return read_text(_record(blob), 200) == _facts(blob)
    return False


def _remember(blob: Path) -> None:
    with suppress(OSError):  # a cache that may only be read is checked every time
        atomic.write_text(_record(blob), _facts(blob))
