"""Reads a statistic's saved state from a file, and checks it before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pellucid.check import as_whole
from pellucid.measure.labelled import Array


def state_array(state: Mapping[str, Array], key: str, kind: str, shape: tuple[int | None, ...]) -> Array:
    """One array that a file holds of a statistic.

    Args:
        state: What the file holds.
        key: Its name.
        kind: Numpy's letter: "i" for counts, none of them negative, "f" for float64, "u" for bytes.
        shape: What it has to be; None for any size.

    Raises:
        ValueError: It is not there, or is something else.
    """
    array = state.get(key)
    fits = array is not None and array.dtype.kind == kind and array.dtype.itemsize == (1 if kind == "u" else 8)
    if array is None or not fits or array.ndim != len(shape):
        raise ValueError(f"{key} is not what a statistic keeps")
    if any(wanted not in (None, size) for wanted, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{key} is {list(array.shape)}, which does not fit the others")
    if kind == "i" and array.size and int(array.min()) < 0:
        raise ValueError(f"{key} holds negative counts")
    return array


def state_shape(state: Mapping[str, Array], sizes: tuple[int | None, ...]) -> tuple[int, ...]:
    """The sizes of what is kept, as a file says them.

    Raises:
        ValueError: They are not those of the labels.
    """
    shape = tuple(state_array(state, "shape", "i", (len(sizes),)).tolist())
    if any(wanted not in (None, size) for wanted, size in zip(sizes, shape, strict=True)):
        raise ValueError(f"shape is {list(shape)}, which does not fit the labels")
    return shape


def read_about(content: Array) -> dict[str, Any]:
    """What a statistic says of its runs: axes, labels and provenance.

    Raises:
        ValueError: It says something else.
    """
    try:
        about = json.loads(content.tobytes())
    except RecursionError as problem:
        raise ValueError("its labels are nested too deeply") from problem
    if not isinstance(about, dict) or set(about) != {"dims", "coords", "attrs"}:
        raise ValueError("its labels are not dims, coords and attrs")
    dims, coords, attrs = about["dims"], about["coords"], about["attrs"]
    sound = isinstance(dims, list) and isinstance(coords, dict) and isinstance(attrs, dict)
    if not sound or not all(isinstance(text, str) for text in (*dims, *attrs.values())):
        raise ValueError("its labels are not texts")
    numbers = [number for label in coords.values() for number in (label if isinstance(label, list) else [label])]
    if any(as_whole(number) is None for number in numbers):
        raise ValueError("its labels are not numbers of blocks and heads")
    return about
