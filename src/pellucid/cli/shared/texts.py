"""Texts that are given as arguments, files or standard input, and their cutting to a model's context."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pellucid as pl
from pellucid.cli.shared.options import read_text, text_of
from pellucid.errors import InputError, NotFoundError
from pellucid.weights.manifests import require_regular, unreadable

SUFFIXES = (".txt", ".md", ".csv", ".json", ".jsonl", ".gz", ".xz")
"""Ends of names that a text without spaces has only by mistake."""


def read_texts(given: Iterable[str]) -> list[str]:
    """Each argument as a text: a file's, if something of this name is there, else its own.

    Raises:
        InputError: A file that is not UTF-8 text.
        WeightsError: What is no regular file, such as a folder, or cannot be read.
        NotFoundError: What is written like a text file's name, and there is none.
    """
    return [_from_file(Path(one)) if os.path.lexists(one) else read_text(_no_name(one)) for one in given]


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


def _no_name(given: str) -> str:
    """The text, unless it can only be the name of a file."""
    if given.endswith(SUFFIXES) and not any(map(str.isspace, given)):
        raise NotFoundError(
            f"norms: no file {given!r}.", code="path-not-found", remedy="Give the path of a text file, or a text."
        )
    return given


def _from_file(path: Path) -> str:
    require_regular(path)
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise unreadable(path, problem) from problem
    return text_of(content, path)
