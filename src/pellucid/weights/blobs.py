"""The files of the hub's cache hold what their names say: each is called by the digest of its content.

The digest of a large file takes a second or more, so it is computed once, and again if the file was written to since.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from pellucid import atomic
from pellucid.errors import WeightsError
from pellucid.weights.manifests import read_text, require_regular, unreadable


def require_content(path: Path) -> None:
    """See that a file of the cache holds what its name says: blobs are called by the digest of their content."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) or blob.parent.name != "blobs":
        return
    require_regular(blob)
    if _is_known(blob):
        return
    try:
        with blob.open("rb") as file:
            if len(blob.name) == 64:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            else:  # what git calls a file that is stored in the repository itself
                content = file.read()
                digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    except OSError as problem:
        raise unreadable(blob, problem) from problem
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
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"


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
