"""Texts that are given as arguments, files or standard input, and their cutting to a model's context."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pellucid as pl
from pellucid.cli.shared.options import read_text
from pellucid.errors import InputError, NotFoundError

SUFFIXES = (".txt", ".md", ".csv", ".json", ".jsonl", ".gz", ".xz")
"""Ends of names that a text without spaces has only by mistake."""


def read_texts(given: Iterable[str]) -> list[str]:
    """Each argument as a text: a file's, where it names one, else its own.

    Raises:
        InputError: A file that is not UTF-8 text or cannot be read.
        NotFoundError: What is written like a text file's name, and there is none.
    """
    return [_from_file(Path(one)) if _is_file(one) else read_text(_no_name(one)) for one in given]


def windows(model: pl.CkptedTransformer, rows: Iterable[list[int]]) -> list[list[int]]:
    """Texts as ids, cut where they are longer than the model's context.

    Raises:
        InputError: An empty text.
    """
    size = model.schema.sizes["n_ctx"]
    return [ids[start : start + size] for ids in map(_some, rows) for start in range(0, len(ids), size)]


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError(
            "norms: an empty text, expected at least one token.", code="empty-text", remedy="Give some text."
        )
    return ids


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _no_name(given: str) -> str:
    """The text, unless it can only be the name of a file."""
    if given.endswith(SUFFIXES) and not any(map(str.isspace, given)):
        raise NotFoundError(
            f"norms: no file {given!r}.", code="path-not-found", remedy="Give the path of a text file, or a text."
        )
    return given


def _from_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(
            f"{path}: cannot be read as text: {problem}.", code="text-not-utf8", remedy="Give a file of UTF-8 text."
        ) from problem
    except OSError as problem:
        raise InputError(
            f"{path}: cannot be read: {problem.strerror or problem}.",
            code="text-unreadable",
            remedy="Give a file that may be read.",
        ) from problem
