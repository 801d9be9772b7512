"""The container of a trace: a JSON header and named blocks of numbers, `pellucid-trace/1` (docs/trace.md).

A file may come from anybody, so nothing that it says is believed: not its sizes, offsets or shapes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pellucid import atomic
from pellucid.check import path_of
from pellucid.errors import InputError, shown
from pellucid.html.listing import counted
from pellucid.weights.manifests import reading, require_regular

FORMAT = "pellucid-trace/1"

Array = NDArray[Any]

DTYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f16": "<f2", "f32": "<f4", "f64": "<f8"}
"""Names in the header -> NumPy's."""

LARGEST = 1 << 28
"""Bytes of a trace that is read, and of its header: a page would not show more either."""

_BOUNDARY = 8


@dataclass(frozen=True)
class TraceBlock:
    """A block of numbers.

    Attributes:
        data: The numbers as they are stored.
        code: How they are read: `{"kind": "sqrt"}` or `{"kind": "linear", "low": a, "high": b}`, of bytes alone; None
            if they are the values.
        layout: "lower" if the last axis holds, for each query, the keys up to it, row after row; else "".
        about: What else the header says of the block, such as the names `of` its rows.
        entries: Names of further blocks -> which entry along the first axis each of them is. They share the bytes.
    """

    data: Array
    code: Mapping[str, Any] | None = None
    layout: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[str, int] = field(default_factory=dict)

    @property
    def values(self) -> Array:
        """The values, in float64 if they are coded."""
        if self.code is None:
            return self.data
        share = self.data / 255.0
        if self.code["kind"] == "sqrt":
            return share**2
        return self.code["low"] + share * (self.code["high"] - self.code["low"])

    def described(self, offset: int) -> dict[str, Any]:
        """The entry in the header."""
        names = {np.dtype(own): name for name, own in DTYPES.items()}
        found: dict[str, Any] = {"dtype": names[self.data.dtype], "shape": list(self.data.shape), "offset": offset}
        if self.code is not None:
            found["code"] = dict(self.code)
        if self.layout:
            found["layout"] = self.layout
        return {**found, **self.about}


class Trace(Mapping[str, TraceBlock]):
    """One run of one text, as the viewer reads it: a header, and blocks by name.

    Attributes:
        header: What the header says, without its list of blocks.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.viewer import trace
        >>> made = trace(pl.load(), "Once upon a time")
        >>> made["attention.pattern"].data.shape, made.header["model"]["name"]
        ((4, 4, 10), 'bundled')
    """

    def __init__(self, header: Mapping[str, Any], blocks: Mapping[str, TraceBlock]) -> None:
        self.header = dict(header)
        self._blocks = dict(blocks)

    def __getitem__(self, name: str) -> TraceBlock:
        return self._blocks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        size = sum(block.data.nbytes for block in self.values())
        return f"Trace of {shown(self.header.get('text'))}: {counted(len(self), 'block')}, {size:,} bytes"

    def to_bytes(self) -> bytes:
        """The trace as a file holds it: the container, deflated."""
        listed: dict[str, Any] = {}
        data = bytearray()
        placed: list[tuple[Array, int]] = []
        for name, block in self._blocks.items():
            array = np.ascontiguousarray(block.data)
            offset = _within(array, placed)
            if offset is None:
                offset = len(data) + -len(data) % _BOUNDARY
                data += bytes(offset - len(data)) + array.tobytes()
                placed.append((array, offset))
            listed[name] = block.described(offset)
            for other, index in block.entries.items():
                entry = TraceBlock(block.data[index], block.code, block.layout)
                listed[other] = entry.described(offset + index * entry.data.nbytes)
        header = json.dumps({"format": FORMAT, **self.header, "blocks": listed}, allow_nan=False).encode()
        start = len(header).to_bytes(4, "little") + header
        return zlib.compress(start + bytes(-len(start) % _BOUNDARY) + data)

    def save(self, path: str | Path) -> None:
        """Write the trace into a file, whole or not at all.

        Raises:
            WeightsError: If it cannot be written.
        """
        content = self.to_bytes()
        atomic.write_file(path, lambda place: place.write_bytes(content) and None)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a file that `save` wrote.

        Raises:
            NotFoundError: If there is no such file.
            WeightsError: If it cannot be opened.
            InputError: If it is no trace, one of another version, or one that is damaged.
        """
        path = path_of(path)
        require_regular(path)
        with reading(path), path.open("rb") as file:
            content = file.read(LARGEST + 1)  # one more, which tells that it is too long
        return cls.from_bytes(content, str(path))

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "these bytes") -> Trace:
        """Read what `to_bytes` gave.

        Args:
            content: The deflated container.
            where: What it was read from, for messages.

        Raises:
            InputError: As for `load`.
        """
        try:
            return _parsed(_inflated(content))
        except (ValueError, KeyError, TypeError, RecursionError) as problem:
            raise InputError(
                f"{where}: no trace that can be read: {problem}.",
                code="not-a-trace",
                remedy="Give a file that Trace.save wrote: pellucid.viewer.trace(model, text).save(path).",
            ) from problem


def _within(array: Array, placed: Sequence[tuple[Array, int]]) -> int | None:
    """The offset at which the bytes of an array are already, None if nowhere; blocks of a trace that was read share."""
    start = array.__array_interface__["data"][0]
    for other, offset in placed:
        begin = start - other.__array_interface__["data"][0]
        if array.nbytes and begin >= 0 and begin + array.nbytes <= other.nbytes:
            return offset + begin
    return None


def _inflated(content: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        found = inflate.decompress(content, LARGEST)
    except zlib.error as problem:
        raise ValueError("its bytes are not deflated ones") from problem
    if inflate.unconsumed_tail or len(content) > LARGEST:
        raise ValueError(f"it holds more than {LARGEST:,} bytes")
    if not inflate.eof or inflate.unused_data:
        raise ValueError("it ends too early" if not inflate.eof else "something follows its end")
    return found


def _parsed(content: bytes) -> Trace:
    length = int.from_bytes(content[:4], "little")
    if len(content) < 4 or length > len(content) - 4:
        raise ValueError("its header is longer than the file")
    header = json.loads(content[4 : 4 + length].decode("utf-8"))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        given = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"its format is {shown(given)}, expected {FORMAT!r}")
    data = memoryview(content)[4 + length + (-(4 + length) % _BOUNDARY) :]
    del header["format"]
    listed = header.pop("blocks", None)
    if not isinstance(listed, dict):
        raise ValueError("it lists no blocks")
    read = {str(name): _block(str(name), entry, data) for name, entry in cast("dict[str, Any]", listed).items()}
    trace = Trace(cast("dict[str, Any]", header), read)
    _require_sizes(trace)
    return trace


def _block(name: str, entry: Any, data: memoryview) -> TraceBlock:
    if not isinstance(entry, dict):
        raise ValueError(f"block {shown(name)} is {shown(entry)}, expected an object")
    about = dict(cast("dict[str, Any]", entry))
    dtype, shape, offset = about.pop("dtype", None), about.pop("shape", None), about.pop("offset", None)
    if dtype not in DTYPES:
        raise ValueError(f"block {shown(name)} has the dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(_is_size(size) for size in cast("list[Any]", shape)):
        raise ValueError(f"block {shown(name)} has the shape {shown(shape)}, expected whole numbers")
    kind = np.dtype(DTYPES[dtype])
    count = math.prod(cast("list[int]", shape))
    if not _is_size(offset) or offset % kind.itemsize or offset + count * kind.itemsize > len(data):
        raise ValueError(f"block {shown(name)} at {shown(offset)} does not lie within the file's {len(data)} bytes")
    code, layout = about.pop("code", None), about.pop("layout", "")
    _require_code(name, code, layout, str(dtype))
    array = np.frombuffer(data, kind, count, offset).reshape(cast("list[int]", shape))
    return TraceBlock(array, code, layout, about)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _require_code(name: str, code: Any, layout: Any, dtype: str) -> None:
    kind = code.get("kind") if isinstance(code, dict) else code
    ends = [cast("dict[str, Any]", code).get(end) for end in ("low", "high")] if kind == "linear" else []
    numbers = all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends)
    if kind not in (None, "sqrt", "linear") or not numbers or (kind is not None and dtype != "u8"):
        raise ValueError(f"block {shown(name)} of {dtype} has the code {shown(code)}, which is none of bytes")
    if layout not in ("", "lower"):
        raise ValueError(f"block {shown(name)} has the layout {shown(layout)}, expected 'lower'")


SHAPES: Mapping[str, tuple[str | int, ...]] = {
    "attention.pattern": ("layer", "head", "lower"),
    "attention.pooled": ("layer", "head", 64, 64),
    "attention.q": ("layer", "pos", "head", "d_head"),
    "attention.k": ("layer", "pos", "head_kv", "d_head"),
    "attention.value_norm": ("layer", "head", "pos"),
    "attention.measures": ("of", "layer", "head"),
    "norms": ("of", "layer", "pos"),
    "prediction.logits": ("d_vocab",),
    "prediction.top.ids": ("pos", "top"),
    "prediction.top.logprobs": ("pos", "top"),
    "lens.ids": ("layer+1", "pos", "listed"),
    "lens.logprobs": ("layer+1", "pos", "listed"),
    **{f"lens.{name}": ("layer+1", "pos") for name in ("entropy", "kl")},
    **{f"lens.{name}": ("layer+1", "pos") for name in ("rank", "target_logprob", "next_rank", "next_logprob")},
    "attribution.components": ("of",),
    "attribution.logit": (1,),
    "attribution.sources": ("layer", "head", "pos"),
    "neurons.pre": ("layer", "pos", "d_mlp"),
    "neurons.post": ("layer", "pos", "d_mlp"),
    "neurons.effect": ("layer", "d_mlp"),
    "embeddings.pca": ("layer+2", "pos", 3),
}
"""The axes of blocks; `of` is as long as the block's list of names, `lower` counts the keys of all queries."""

_COUNTED = ("ids", "rank", "next_rank")

ALWAYS = frozenset({
    "attention.measures", "norms", "prediction.logits", "prediction.top.ids", "prediction.top.logprobs",
    *(name for name in SHAPES if name.startswith("lens.")),
})  # fmt: skip
"""Blocks that every trace has, beside the patterns, which may be pooled."""

TOP, LISTED = 20, 10
"""How many tokens are listed at each position: of the prediction, and of the lens at each block."""


def _require_sizes(trace: Trace) -> None:
    """See that the header says what the page reads, and that the blocks have the sizes that it says."""
    sizes, tokens = trace.header["model"]["sizes"], trace.header["tokens"]
    if not isinstance(sizes, dict) or not all(_is_size(size) for size in cast("dict[str, Any]", sizes).values()):
        raise ValueError("its sizes are no whole numbers")
    if not all(isinstance(token["id"], int) and isinstance(token["text"], str) for token in tokens):
        raise ValueError("its tokens are no ids and texts")
    pos, layers = len(tokens), sizes["layer"]
    if not pos:
        raise ValueError("it has no tokens")
    known = {
        **sizes, "pos": pos, "lower": pos * (pos + 1) // 2, "layer+1": layers + 1, "layer+2": layers + 2,
        "top": min(TOP, sizes["d_vocab"]), "listed": min(LISTED, sizes["d_vocab"]),
    }  # fmt: skip
    missing = sorted(ALWAYS - set(trace)) + ["attention.pattern"] * (
        "attention.pattern" not in trace and "attention.pooled" not in trace
    )
    if missing:
        raise ValueError(f"it lacks the block {missing[0]!r}")
    for name, axes in SHAPES.items():
        if name in trace:
            known["of"] = len(trace[name].about.get("of", ()))
            expected = [axis if isinstance(axis, int) else known[axis] for axis in axes]
            data = trace[name].data
            if list(data.shape) != expected:
                raise ValueError(f"block {name!r} is {list(data.shape)}, expected {expected}")
            counts = name.rpartition(".")[2] in _COUNTED
            if counts != (data.dtype.kind == "u" and trace[name].code is None):
                kind = next(own for own, numpys in DTYPES.items() if np.dtype(numpys) == data.dtype)
                raise ValueError(f"block {name!r} is {kind}, expected {'whole numbers' if counts else 'numbers'}")
