"""Files of traces: what is written is read again, and a file that lies is refused with a reason."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid as pl
from pellucid.viewer import Trace, TraceBlock, container, trace


@functools.cache
def content() -> bytes:
    return trace(pl.load(), "Once upon a time").to_bytes()


def with_header(change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another header before the same data."""
    raw = zlib.decompress(content())
    length = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + length])
    data = raw[-(-(4 + length) // 8) * 8 :]
    text = json.dumps(change(header) or header).encode()
    start = len(text).to_bytes(4, "little") + text
    return zlib.compress(start + bytes(-len(start) % 8) + data)


def block(name: str, **fields: Any) -> bytes:
    return with_header(lambda header: header["blocks"][name].update(fields))


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = trace(pl.load(), "Once upon a time")
    written.save(tmp_path / "t.trace")
    read = Trace.load(tmp_path / "t.trace")
    assert read.header["text"] == "Once upon a time"
    for name, block_ in written.items():
        assert read[name].data.tobytes() == block_.data.tobytes()
        assert (read[name].data.dtype, read[name].code, read[name].layout) == (
            block_.data.dtype,
            block_.code,
            block_.layout,
        )
    assert len(Trace.from_bytes(with_header(lambda header: None))) == len(read)


def test_blocks_that_share_bytes_are_the_same_numbers() -> None:
    read = Trace.from_bytes(content())
    for layer in range(4):
        assert (read["neurons.post"].data[layer] == read[f"atlas.blocks.{layer}.mlp.ckpt_post"].data).all()
        assert (read["attention.pattern"].values[layer] == read[f"atlas.blocks.{layer}.attn.ckpt_pattern"].values).all()
    raw = zlib.decompress(content())
    listed = json.loads(raw[4 : 4 + int.from_bytes(raw[:4], "little")])["blocks"]
    assert listed["neurons.pre"]["offset"] == listed["atlas.blocks.0.mlp.ckpt_pre"]["offset"]
    assert all(entry["offset"] % 8 == 0 for name, entry in listed.items() if not name.startswith("atlas.blocks."))


def test_a_trace_that_was_read_is_written_as_it_was() -> None:
    assert Trace.from_bytes(content()).to_bytes() == content()


def gone(name: str) -> bytes:
    return with_header(lambda header: header["blocks"].pop(name) and None)


LIMIT = 1 << 21
"""Bytes of a trace that are read here: 2^28 of them take seconds."""

INFINITE = {"kind": "linear", "low": 0, "high": float("inf")}

LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no bytes": (lambda: b"", "too early"),
    "something else": (lambda: b"PNG and so on", "not deflated"),
    "cut": (lambda: content()[:-50], "too early"),
    "followed by more": (lambda: content() + b"x", "follows its end"),
    "a flipped bit": (lambda: content()[:5000] + bytes([content()[5000] ^ 1]) + content()[5001:], ""),
    "a bomb": (lambda: zlib.compress(bytes(LIMIT + 1)), "more than"),
    "a file that is longer than what is read": (lambda: zlib.compress(b"") + bytes(LIMIT), "more than"),
    "a header beyond the end": (lambda: zlib.compress(b"\xff\xff\xff\xff{}"), "longer than the file"),
    "no JSON": (lambda: zlib.compress(b"\x02\x00\x00\x00{]"), ""),
    "a list": (lambda: zlib.compress(b"\x02\x00\x00\x00[]"), "format"),
    "nested deeply": (lambda: zlib.compress((200_000).to_bytes(4, "little") + b"[" * 200_000), ""),
    "no UTF-8": (lambda: zlib.compress(b"\x02\x00\x00\x00\xff\xfe"), ""),
    "another version": (lambda: with_header(lambda h: {**h, "format": "pellucid-trace/2"}), "'pellucid-trace/2'"),
    "blocks that are a list": (lambda: with_header(lambda h: {**h, "blocks": []}), "lists no blocks"),
    "no tokens": (lambda: with_header(lambda h: {**h, "tokens": []}), "no tokens"),
    "a token that is text": (lambda: with_header(lambda h: {**h, "tokens": ["a"] * 4}), ""),
    "no model": (lambda: with_header(lambda h: h.pop("model") and None), ""),
    "sizes that are none": (lambda: with_header(lambda h: h["model"]["sizes"].update(layer="4")), "sizes"),
    "other sizes": (lambda: with_header(lambda h: h["model"]["sizes"].update(head=5)), "expected [4, 5, 10]"),
    "more tokens": (lambda: with_header(lambda h: h["tokens"].append({"id": 1, "text": "a"})), "expected"),
    "a block that is missing": (lambda: gone("norms"), "lacks the block 'norms'"),
    "no patterns": (lambda: gone("attention.pattern"), "lacks the block 'attention.pattern'"),
    "a block that is a number": (lambda: with_header(lambda h: h["blocks"].update(norms=3)), "expected an object"),
    "an unknown dtype": (lambda: block("norms", dtype="i64"), "'i64'"),
    "a dtype that is a list": (lambda: block("norms", dtype=["f32"]), ""),
    "another dtype": (lambda: block("prediction.logits", dtype="u32"), "'prediction.logits' is u32"),
    "ids that are floats": (lambda: block("lens.ids", dtype="f32"), "'lens.ids' is f32"),
    "a negative size": (lambda: block("norms", shape=[-5, 4, 4]), "shape"),
    "a huge size": (lambda: block("norms", shape=[5, 4, 2**60]), "shape"),
    "sizes whose product is huge": (lambda: block("norms", shape=[2**20, 2**20, 2**20]), "does not lie within"),
    "a true size": (lambda: block("norms", shape=[5, 4, True]), "shape"),
    "another shape": (lambda: block("norms", shape=[5, 4, 3]), "expected [5, 4, 4]"),
    "fewer names": (lambda: block("norms", of=["resid_pre"]), "expected [1, 4, 4]"),
    "an offset outside": (lambda: block("norms", offset=2**27), "does not lie within"),
    "a negative offset": (lambda: block("norms", offset=-8), "does not lie within"),
    "an odd offset": (lambda: block("norms", offset=3), "does not lie within"),
    "an offset that is text": (lambda: block("norms", offset="0"), "does not lie within"),
    "an unknown code": (lambda: block("attention.pattern", code={"kind": "log"}), "code"),
    "a code without ends": (lambda: block("attention.pattern", code={"kind": "linear"}), "code"),
    "a code that is infinite": (lambda: block("attention.pattern", code=INFINITE), "code"),
    "a code of floats": (lambda: block("norms", code={"kind": "sqrt"}), "code"),
    "an unknown layout": (lambda: block("attention.pattern", layout="upper"), "layout"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused(lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, says = LIES[lie]
    monkeypatch.setattr(container, "LARGEST", LIMIT)
    (tmp_path / "lie.trace").write_bytes(make())
    with pytest.raises(pl.InputError) as refused:
        Trace.load(tmp_path / "lie.trace")
    assert refused.value.code == "not-a-trace"
    assert says in refused.value.message
    assert len(refused.value.message) < 400


def test_a_remedy_that_is_followed(tmp_path: Path) -> None:
    with pytest.raises(pl.NotFoundError):
        Trace.load(tmp_path / "nowhere.trace")
    assert Trace.from_bytes(trace(pl.load(), "Once").to_bytes()).header["text"] == "Once"


def test_values_of_codes() -> None:
    data = np.array([0, 51, 255], "<u1")
    assert TraceBlock(data, {"kind": "sqrt"}).values.tolist() == pytest.approx([0, 0.04, 1])
    assert TraceBlock(data, {"kind": "linear", "low": -1.0, "high": 4.0}).values.tolist() == pytest.approx([-1, 0, 4])
