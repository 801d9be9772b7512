"""Every way pellucid refuses, as one tree.

    PellucidError
    ├── ConfigError           a configuration that cannot be, or that this library does not implement
    ├── InputError            text, ids, masks or positions that a model cannot take
    │   ├── ShapeError        a tensor of another shape or dtype than the place it goes to
    │   └── UnknownArgumentError  an argument that generate or stream does not take (a TypeError)
    ├── UnknownNameError      a checkpoint, parameter or pattern of names that does not exist (a KeyError)
    ├── EditError             an edit that cannot be applied, or that never was
    ├── NumericsError         a computation that gave NaN, or a kernel that cannot be had
    ├── WeightsError          weights that cannot be read, explained or written
    │   └── NotFoundError     a file, folder or repository that is not there (a FileNotFoundError)
    └── MissingExtraError     an optional dependency that is not installed (an ImportError)

Each error says where, what was given and what was expected; `code` is stable and meant for programs,
`remedy` says what to do next. Command-line exit codes follow from the class (see `pellucid.cli`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PellucidError(Exception):
    """The base of every error that pellucid raises on purpose.

    Args:
        message: Where it happened, what was given, what was expected.
        code: A stable identifier in kebab-case, for programs and tests.
        remedy: What the reader can do about it, as one or more sentences.
    """

    def __init__(self, message: str, *, code: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}  [{self.code}]"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.code, self.remedy))


def _rebuild(cls: type[PellucidError], message: str, code: str, remedy: str) -> PellucidError:
    return cls(message, code=code, remedy=remedy)


class ConfigError(PellucidError):
    """A configuration that cannot be, or that this library does not implement."""


class InputError(PellucidError):
    """Text, ids, masks or positions that a model cannot take."""


class ShapeError(InputError):
    """A tensor of another shape or dtype than the place it goes to."""


class UnknownArgumentError(InputError, TypeError):
    """An argument that a call does not take."""


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
    """An optional dependency that is not installed."""


class PellucidWarning(UserWarning):
    """Something that is allowed but that the reader should know, such as weights that hold NaN."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {', '.join(map(repr, close))}?" if close else ""
