"""Every way pellucid refuses, as one tree.

    PellucidError
    ├── ConfigError           a configuration that cannot be, or that this library does not implement
    ├── InputError            text, ids, masks or positions that a model cannot take
    │   ├── ShapeError        a tensor of another shape or dtype than the place it goes to
    │   └── UnknownArgumentError  an argument that a call does not take (a TypeError)
    ├── UnknownAttributeError another library's word for something that is called otherwise here (an AttributeError)
    ├── UnknownNameError      a checkpoint, parameter or pattern of names that does not exist (a KeyError)
    ├── EditError             an edit that cannot be applied, or that never was
    ├── NumericsError         a computation that gave NaN, or a kernel that cannot be had
    ├── WeightsError          weights that cannot be read, explained or written
    │   └── NotFoundError     a file, folder or repository that is not there (a FileNotFoundError)
    └── MissingExtraError     an optional dependency that cannot be imported (an ImportError)

Each error says where, what was given and what was expected; `code` is stable and meant for programs,
`remedy` says what to do next. Command-line exit codes follow from the class (see `pellucid.cli`).
"""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial

LONGEST = 4000
"""Characters of a remedy or a warning: whatever a file says, the reader sees the beginning and the end of it."""

MESSAGE = 1200
"""Characters of a message, which says what was given: a long value is no easier to find for being there whole."""


class PellucidError(Exception):
    """The base of every error that pellucid raises on purpose.

    Args:
        message: Where it happened, what was given, what was expected.
        code: A stable identifier in kebab-case, for programs and tests.
        remedy: What the reader can do about it, as one or more sentences.
    """

    def __init__(self, message: str, *, code: str, remedy: str) -> None:
        self.message = printable(message, MESSAGE)
        self.code = code
        self.remedy = printable(remedy)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}  [{self.code}]"

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(type(self), self.message, code=self.code, remedy=self.remedy), ())


class ConfigError(PellucidError):
    """A configuration that cannot be, or that this library does not implement."""


class InputError(PellucidError):
    """Text, ids, masks or positions that a model cannot take."""


class ShapeError(InputError):
    """A tensor of another shape or dtype than the place it goes to."""


class UnknownArgumentError(InputError, TypeError):
    """An argument that a call does not take, or one that it needs and was not given."""


class UnknownAttributeError(PellucidError, AttributeError):
    """An attribute of another library's object that this one does not have."""


class UnknownNameError(PellucidError, KeyError):
    """A checkpoint, parameter or pattern of names that does not exist."""


class EditError(PellucidError):
    """An edit that cannot be applied, or that was asked for and never fired."""


class NumericsError(PellucidError):
    """A computation that gave NaN where numbers are needed, or a kernel that cannot be had."""


class WeightsError(PellucidError):
    """Weights that cannot be read, explained or written."""


class NotFoundError(WeightsError, FileNotFoundError):
    """A file, folder or repository that is not there."""


class MissingExtraError(PellucidError, ImportError):
    """An optional dependency that is not installed, or that is and cannot be imported."""


class PellucidWarning(UserWarning):
    """Something that is allowed but that the reader should know, such as weights that hold NaN."""


PYTHON = re.compile(r"\w=|\bpl\.|\w\(|`\w+\.\w+`")
"""How remedies look that are Python."""

_QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)")
"""Names of files, in which anything may stand; an apostrophe within or behind a word quotes nothing."""

Words = str | tuple[str, str | Callable[[re.Match[str]], str]]
"""A remedy, or a pattern in the library's own remedy and what replaces it."""


def elsewhere(remedy: str, words: Words | None) -> str:
    """Return a remedy in the words of a place that is not Python; what can only be done in Python is said to be."""
    if isinstance(words, str):
        return words
    if words is not None:
        remedy = re.sub(words[0], words[1], remedy, flags=re.DOTALL)
    return f"In Python: {remedy}" if PYTHON.search(_QUOTED.sub("", remedy)) else remedy


_NOT_THE_CALLERS = frozenset({"pellucid", "torch", "contextlib"})


def warn(message: str) -> None:
    """Warn of something at the line of the caller's own that led here, not at one of this package's."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_CALLERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), PellucidWarning, stacklevel=level)


MOST_PRINTED = 1_000_000
"""Characters of a whole result: its parts are cut where they are made."""


def printable(text: str, longest: int = LONGEST) -> str:
    """A text that is safe to show: control and direction characters are escaped, and a long middle is left out.

    Names of tensors, fields and files come from files that strangers wrote. Raw, an escape sequence among them
    sets the terminal's title or hides a line, and a name of ten million characters fills the screen.
    """
    if len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


VALUE = 240
"""Characters of one value that was given."""


def visible(token: str) -> str:
    """A token with its spaces as `·` and its control characters spelled out, so that none acts on a terminal."""
    return "".join(_visible(character) for character in token)


def _visible(character: str) -> str:
    if character == " ":
        return "·"
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
        return "↵" if character == "\n" else character.encode("unicode_escape", "surrogatepass").decode()
    return character


class _Brief(reprlib.Repr):
    """Python's `repr`, bounded in length and depth before it is made, and never raising."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"a whole number of {x.bit_length()} bits"


_BRIEF = _Brief()


def shown(value: object) -> str:
    """A bounded `repr` for messages, whatever a file or a caller gave: nested containers and long texts are cut."""
    return printable(_BRIEF.repr(value), VALUE)


def some(items: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first of them, and how many more there are."""
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def nearest(name: object, known: Iterable[str]) -> str:
    """A sentence that suggests the known names closest to `name`, or an empty string."""
    text = name[:VALUE] if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(text, list(known), n=3, cutoff=0.5)
    return f"Did you mean {', '.join(map(repr, close))}?" if close else ""
