"""The safetensors files of this library's own formats: captured values, caches, where a stream got to.

Beside the tensors, the metadata hold a description in JSON and a SHA-256 over it and all numbers: one flipped bit is
noticed on reading. Files that earlier versions wrote have no digest and are read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from pellucid import atomic
from pellucid.check import path_of
from pellucid.tensor_file import digest, read_metadata, write_tensors
from pellucid.weights.manifests import require_regular, unreadable

_DIGEST = "pellucid.sha256"


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all."""
    text = json.dumps(about)
    metadata = {kind: text, _DIGEST: digest(tensors, text)}
    atomic.write_file(path, partial(write_tensors, tensors=tensors, metadata=metadata))


def load(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save` wrote: the description, empty if there is none, and the tensors, mapped from the file.

    Raises:
        NotFoundError: No such file.
        WeightsError: No regular file, or one that the operating system does not hand over.
        ValueError: A file of something else, or one that was damaged.
    """
    path = path_of(path)
    require_regular(path)
    try:
        with path.open("rb") as file:
            metadata = read_metadata(file)
    except OSError as problem:
        raise unreadable(path, problem) from problem
    text = metadata.get(kind, "{}")
    if not isinstance(text, str):
        raise ValueError("its metadata are no texts")
    try:
        about = json.loads(text)
    except RecursionError as problem:
        raise ValueError("its description is nested too deeply") from problem
    if not isinstance(about, dict):
        raise ValueError(f"its description is {type(about).__name__}, expected an object")
    tensors = _tensors(path)
    if _DIGEST in metadata and metadata[_DIGEST] != digest(tensors, text):
        raise ValueError("its numbers are not those that were written: it was damaged")
    return about, tensors


def _tensors(path: str | Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    # The library's own exception derives from Exception directly, and torch adds others for what cannot be a view.
    except Exception as problem:
        raise ValueError(f"no sound safetensors file: {problem}") from problem
