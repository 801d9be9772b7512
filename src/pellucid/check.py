"""Checks of arguments: one function for each kind.

NumPy and torch numbers are numbers: `np.int64(3)`, `np.array(3)` and `torch.tensor(3)` are read as 3. A truth
value is not, although Python's is an `int`: `top_k=True` is a mistake, never 1.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from pellucid.errors import InputError, PellucidError, WeightsError, nearest, shown


def attribute(of: object, name: str, default: Any = None) -> Any:
    """An attribute of an object that is not ours; the default even if reading it raises, as properties may."""
    try:
        return getattr(of, name, default)
    except Exception:  # whatever a foreign property or `__getattr__` raises
        return default


def require_tree(module: Any, verb: str) -> None:
    """Raise an `InputError` if a module holds itself: its names, and whatever goes through it, would never end."""
    above: dict[Any, str] = {}

    def enter(inner: Any, path: str) -> None:
        if inner in above:
            raise InputError(
                f"{verb}: {path} is {above[inner] or 'the model itself'}, which holds it: its names would never end.",
                code="holds-itself",
                remedy=f"Take {path} out of the tree; a reference in a tuple, such as self.parent = (parent,), is no "
                "part of it.",
            )
        above[inner] = path
        for name, child in inner.named_children():
            enter(child, f"{path}.{name}" if path else name)
        del above[inner]

    enter(module, "")


def path_of(given: object) -> Path:
    """The path that a caller gave, for reading or for writing; `~` is the user's own folder, as in a shell."""
    text = os.fspath(given) if isinstance(given, (str, os.PathLike)) else None  # pyright: ignore[reportUnknownArgumentType]
    if not isinstance(text, str) or not text.strip() or "\0" in text or not _can_be_a_name(text):
        raise WeightsError(
            f"{shown(given)}: no path, expected that of a file or a folder.",
            code="not-a-path",
            remedy="Give a str or a Path that is not empty and holds neither a null character nor half of a surrogate "
            "pair; '.' is the working directory.",
        )
    with suppress(RuntimeError):  # nobody's folder is known
        return Path(text).expanduser()
    return Path(text)


def _can_be_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def as_whole(value: object) -> int | None:
    """The whole number that a value is, as Python's own; None if it is something else."""
    if not _is_scalar(value):
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType] (what has no index raises)
    except TypeError:
        return None


def as_number(value: object) -> float | None:
    """The real number that a value is, whole or not, nan and inf included; None if it is something else."""
    if not _is_scalar(value):
        return None
    if isinstance(value, numbers.Real):
        return _float(value)
    if hasattr(value, "dtype") and hasattr(value, "item"):  # an array or a tensor without axes
        item: Any = value.item()  # pyright: ignore[reportAttributeAccessIssue]
        return _float(item) if isinstance(item, numbers.Real) and not isinstance(item, bool) else None
    return None


def as_flag(value: object) -> bool | None:
    """The truth value that a value is, as Python's own; None if it is something else."""
    found: Any = value
    if "bool" in str(getattr(value, "dtype", "")) and getattr(value, "ndim", 1) == 0:
        found = found.item()
    return found if isinstance(found, bool) else None


def as_python(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's own, several as a tuple; what is no number stays as it is."""
    whole = as_whole(value)
    if whole is not None:
        return whole
    number = as_number(value)
    if number is not None:
        return number
    return tuple(map(as_python, value)) if is_several(value) else value


def is_several(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether a value holds several: no text, and no array or tensor without axes."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1) != 0


def require_whole(
    name: str,
    value: object,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    error: type[PellucidError] = InputError,
    code: str = "not-a-whole-number",
) -> int:
    """Return a whole number within bounds as Python's own, or raise; `name` says where, such as "generate: top_k"."""
    found = as_whole(value)
    if found is None or found < at_least or (at_most is not None and found > at_most):
        bounds = f"of {at_least} or more" if at_most is None else f"from {at_least} to {at_most}"
        raise error(
            f"{name}={shown(value)}, expected a whole number {bounds}.",
            code=code,
            remedy=f"Give a whole number {bounds}.",
        )
    return found


def require_seed(name: str, value: object, *, code: str = "not-a-whole-number") -> int:
    """Return a seed as Python's own number, or raise; torch takes any of 64 bits, with or without a sign."""
    return require_whole(name, value, at_least=-(2**63), at_most=2**64 - 1, code=code)


def require_one_of(
    name: str,
    value: object,
    choices: Iterable[str],
    *,
    error: type[PellucidError] = InputError,
    code: str,
    remedy: str = "",
) -> None:
    """Raise an error unless a value is one of some words; `name` says where it was given, such as "ablate: how".

    The remedy names the argument with each of them, unless there is a better one.
    """
    *others, last = known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        expected = " or ".join(filter(None, (", ".join(map(repr, others)), repr(last))))
        argument = name.rpartition(": ")[2]
        given = f"Give {' or '.join(f'{argument}={choice!r}' for choice in known)}."
        remedy = remedy or " ".join(filter(None, (nearest(str(value), known), given)))
        raise error(f"{name}={shown(value)}, expected {expected}.", code=code, remedy=remedy)


def _is_scalar(value: object) -> bool:
    """False for truth values and for anything with an axis."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return False
    return getattr(value, "ndim", 0) == 0


def _float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond 1e308
        return math.inf if operator.gt(value, 0) else -math.inf


def takes(function: object, count: int) -> bool:
    """Whether it can be called with so many arguments, as far as its signature says."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*range(count))
    except ValueError:  # what is compiled may have no signature
        return True
    except TypeError:
        return False
    return True
