"""The safetensors files of this library's own formats: captured values, caches, where a stream got to.

Beside the tensors, the metadata hold a description in JSON and a SHA-256 over it and all numbers: one flipped bit is
noticed on reading. Files that earlier versions wrote have no digest and are read all the same.

The data are aligned for torch's kernels. torch multiplies a single row by a float32 matrix with other kernels, and so
other last bits, if the matrix does not begin on a 16-byte boundary, and tensors are mapped from the file as they lie
there. So the header is padded with spaces, as the format allows (https://github.com/huggingface/safetensors#format),
until the data begin on a 64-byte boundary, and tensors whose sizes are multiples of 64 come first. For widths that are
multiples of 16 that is the order, and the data are the bytes, of the safetensors library itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from pellucid import atomic
from pellucid.check import path_of
from pellucid.weights.manifests import reading, require_regular

ALIGNMENT = 64
"""Bytes; torch's own memory begins on such boundaries, too."""

_CHUNK = 1 << 24
_LONGEST_HEADER = 100_000_000  # as in the safetensors library

_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16",
    torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64", torch.uint64: "U64",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names, at = sorted(tensors, key=lambda name: _order(name, tensors[name])), 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    with path.open("wb") as file:
        file.write(_header_bytes(header))
        for name in names:
            file.write(_bytes_of(tensors[name]))


def _order(name: str, tensor: Tensor) -> tuple[int, int, str]:
    """The roundest size first, by its largest power of two: each tensor then begins on a place as round as its size."""
    size = tensor.numel() * tensor.element_size()
    return (-min(size & -size, ALIGNMENT) if size else -ALIGNMENT, -tensor.element_size(), name)


def rewrite(source: Path, target: Path, metadata: Mapping[str, str]) -> None:
    """Copy a safetensors file, so that its data begin on a 64-byte boundary, with more metadata."""
    with source.open("rb") as old, target.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"] = {**header.get("__metadata__", {}), **metadata}
        new.write(_header_bytes(header))
        while chunk := old.read(_CHUNK):
            new.write(chunk)


def read_metadata(file: BinaryIO) -> dict[str, str]:
    """The metadata at the head of a safetensors file; empty if it has none, or is no such file."""
    length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    try:
        header = json.loads(file.read(length)) if length <= min(size - 8, _LONGEST_HEADER) else None
    except (ValueError, RecursionError):
        return {}
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return found if isinstance(found, dict) else {}


def digest(tensors: Mapping[str, Tensor], about: str = "") -> str:
    """SHA-256 over names, types, shapes and numbers, and a text beside them."""
    found = hashlib.sha256(about.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(_bytes_of(tensor.cpu().contiguous()))
    return found.hexdigest()


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


_DIGEST = "pellucid.sha256"


def save(path: str | Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write one file, whole or not at all."""
    text = json.dumps(about)
    metadata = {kind: text, _DIGEST: digest(tensors, text)}
    atomic.write_file(path, partial(write_tensors, tensors=tensors, metadata=metadata))


def load(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save` wrote: its description and its mapped tensors; `ValueError` for another or a damaged file."""
    path = path_of(path)
    require_regular(path)
    with reading(path), path.open("rb") as file:
        metadata = read_metadata(file)
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
