"""Texts that are given as arguments, files or standard input, and their cutting to a model's context."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import pellucid as pl
from pellucid.cli.shared.screen import messages
from pellucid.errors import InputError, NotFoundError, printable
from pellucid.weights.manifests import decoded, reading, require_regular

SUFFIXES = (".txt", ".text", ".md", ".csv", ".tsv", ".json", ".jsonl", ".log", ".tex", ".html", ".gz", ".xz")
"""Ends of names that a text without spaces has only by mistake."""


def read_texts(given: Iterable[str]) -> list[str]:
    """Each argument as a text: a file's, if something of this name is there, else its own."""
    return [_from_file(Path(one)) if os.path.lexists(one) else read_text(_no_name(one)) for one in given]


def windows(model: pl.CkptedTransformer, rows: Iterable[list[int]]) -> list[list[int]]:
    """Texts as ids, cut if they are longer than the model's context."""
    size = model.schema.sizes["n_ctx"]
    return [ids[start : start + size] for ids in map(_some, rows) for start in range(0, len(ids), size)]


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError(
            "norms: an empty text, expected at least one token.", code="empty-text", remedy="Give some text."
        )
    return ids


def _looks_like_a_file(given: str) -> bool:
    return given.lower().endswith(SUFFIXES) and not any(map(str.isspace, given))


def _no_name(given: str) -> str:
    """The text, unless it can only be the name of a file."""
    if _looks_like_a_file(given):
        raise NotFoundError(
            f"norms: no file {given!r}.", code="path-not-found", remedy="Give the path of a text file, or a text."
        )
    return given


def _from_file(path: Path) -> str:
    require_regular(path)
    with reading(path):
        content = path.read_bytes()
    return text_of(content, path)


def tokens_of(model: pl.CkptedTransformer, text: str) -> list[int]:
    """The ids of a text."""
    if model.tokenizer is None:
        raise InputError(
            "text was given, but this model has no tokenizer.",
            code="no-tokenizer",
            remedy="Pass ids, or give the model a tokenizer.",
        )
    return model.tokenizer.encode(text)


def token_of(model: pl.CkptedTransformer, given: str) -> int:
    """The id of an option that is one token: a text, or of a model without a tokenizer an id."""
    if model.tokenizer is None and given.isdecimal():
        return int(given)
    return int(pl.metrics.token_ids(given, model.tokenize([[0]]), "--token")[0])


def position_of(pos: int, length: int) -> int:
    """The place of a token in a text of some length, negative ones counted from the end."""
    if not -length <= pos < length:
        raise InputError(
            f"--pos {pos}: the text has {length} tokens.",
            code="index-out-of-range",
            remedy=f"Give a number from 0 to {length - 1}; negative ones count from the end.",
        )
    return pos % length


def beginning_of_text(model: pl.CkptedTransformer) -> int:
    """The id that stands before a text."""
    if model.config.bos_token_id is None:
        raise InputError(
            "--bos: the model's configuration has no bos_token_id.",
            code="no-bos",
            remedy="Leave --bos out, or give all ids by --ids.",
        )
    return model.config.bos_token_id


def read_text(given: str) -> str:
    """The text that an argument means: itself, or for `-` standard input without its last line break."""
    if given != "-":
        _note_a_files_name(given)
        try:
            return given.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8("TEXT", error) from error
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  (closed by the shell: `<&-`)
        raise InputError(
            "standard input: closed, expected a text.", code="stdin-closed", remedy="Pipe a text in, or give TEXT."
        )
    return text_of(sys.stdin.buffer.read(), "standard input").removesuffix("\n")


def _note_a_files_name(given: str) -> None:
    """Say on stderr that a text which may be meant as a file's name is taken as it stands."""
    file = printable(shlex.quote(given))
    if os.path.isfile(given):
        said = f"not what the file of this name holds; give - < {file} for that"
    elif _looks_like_a_file(given):
        said = "and no such file is here; what a file holds is given by - < FILE"
    else:
        return
    messages().print(f"note: the text is the name {file}, {said}", soft_wrap=True, markup=False)


def text_of(content: bytes, where: object) -> str:
    """A text whose bytes came from outside, with the line breaks of Unix, whatever system wrote it."""
    try:
        return decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _not_utf8(where: object, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{where}: byte {error.start} is 0x{error.object[error.start]:02x}, expected UTF-8.",
        code="text-not-utf8",
        remedy="Convert the text first, for example with `iconv -f LATIN1 -t UTF-8`.",
    )
