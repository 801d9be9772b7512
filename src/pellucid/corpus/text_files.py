"""Texts from files: plain text, JSON lines, Parquet, and folders of these."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pellucid.atomic import path_of
from pellucid.errors import InputError, NotFoundError, PellucidError, shown
from pellucid.extras import need
from pellucid.weights.manifests import decoded, require_regular, unreadable

ROWS_AT_ONCE = 256
"""Rows of a Parquet file in memory."""


def read(paths: Any, *, field: str = "text", lines: bool = False) -> Iterator[str]:
    """Texts of files, one after another, without holding them all.

    A `.jsonl` file (`.jsonl.gz`, too) has one in each line, a `.parquet` file one in each row, under `field`; any other
    file is one text, or with `lines` one for each line that is not empty. A folder stands for its files, and those of
    the folders in it, in the order of their names; hidden ones, whose names begin with a point, are left out.

    Args:
        paths: One path or several.
        field: The name of the texts in JSON lines and Parquet.
        lines: Whether each line of a plain file is a text of its own.

    Raises:
        NotFoundError: If there is no such file, or the folder has no files.
        InputError: If a file has no such field, holds no text, or is damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import pellucid as pl
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.jsonl").write_text('{"text": "Once upon a time"}\\n{"text": "The end"}\\n')
        >>> list(pl.corpus.read(folder))
        ['Once upon a time', 'The end']
    """
    several = isinstance(paths, Iterable) and not isinstance(paths, (str, bytes, os.PathLike))
    for path in map(path_of, paths if several else [paths]):
        for file in _files(path):
            yield from _texts(file, field, lines=lines)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for top, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]  # what git and downloads keep there
        found += [Path(top, name) for name in names if not name.startswith(".")]
    if not found:
        raise NotFoundError(
            f"corpus: no file in the folder {str(path)!r}.",
            code="path-not-found",
            remedy="Give a folder that holds texts, or files.",
        )
    return sorted(found)


def _texts(path: Path, field: str, *, lines: bool) -> Iterator[str]:
    require_regular(path)  # a pipe may never be written to
    try:
        if path.suffix == ".parquet":
            yield from _rows(path, field)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                yield from _objects(file, path, field)
            elif lines:
                for number, line in enumerate(file, 1):
                    if text := _decoded(line, f"{path}, line {number}").rstrip("\n"):
                        yield text
            else:
                yield _decoded(file.read(), str(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(str(path), "no whole gzip file") from error
    except OSError as problem:
        raise unreadable(path, problem) from problem


def _decoded(content: bytes, where: str) -> str:
    try:
        return decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: byte {error.start} is 0x{error.object[error.start]:02x}, expected UTF-8.",
            code="text-not-utf8",
            remedy="Unpack it first: it begins as a compressed file does, of which only .gz is read."
            if error.object.startswith(_PACKED)
            else "Convert the text first, for example with `iconv -f LATIN1 -t UTF-8`.",
        ) from error


_PACKED = (b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"PK\x03\x04", b"7z\xbc\xaf")
"""How files begin that zstd, gzip, xz, bzip2, zip and 7z wrote."""


def _objects(file: Iterable[bytes], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _damaged(f"{path}, line {number}", "no JSON") from error
        text = found.get(field) if isinstance(found, dict) else None
        if not isinstance(text, str):
            raise _no_field(f"{path}, line {number}", field, found if isinstance(found, dict) else ())
        yield text


def _rows(path: Path, field: str) -> Iterator[str]:
    parquet = need("pyarrow.parquet", "corpus.read")
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise _no_field(str(path), field, file.schema_arrow.names)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise _no_field(str(path), field, ())
                    yield text
    except Exception as error:  # pyarrow's own exceptions have several bases
        if isinstance(error, (PellucidError, MemoryError)) or getattr(error, "errno", None) is not None:
            raise  # what the machine refuses says nothing of the file
        raise _damaged(str(path), "no whole Parquet file") from error


def _no_field(where: str, field: str, there: Collection[str]) -> InputError:
    known = f"; it has {', '.join(map(shown, sorted(there)))}" if there else ""
    said = f"what is under {shown(field)} is no text" if field in there else f"no text under {shown(field)}{known}"
    return InputError(
        f"{where}: {said}.",
        code="corpus-field",
        remedy="Give the name of the texts: pl.corpus.read(path, field='content').",
    )


def _damaged(where: str, what: str) -> InputError:
    return InputError(f"{where}: {what}.", code="corpus-damaged", remedy="Write the file again, or leave it out.")
