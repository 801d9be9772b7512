"""Files of our own formats that were damaged, or that say what no run can have given, are refused when read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.prove.alignment import Alignment
from pellucid.weights import own_file

MODEL = support.glass(n_embd=12, n_layer=2, n_head=3, vocab_size=61)
IDS = [[3, 1, 2, 7], [5, 6]]
ROWS = [[5, 9, 4, 7], [12, 3, 8, 6, 1], [2, 2, 5]]


def statistics() -> list[Any]:
    m = pl.measure
    return [m.Moments("resid_post", of="norm"), m.Covariance("attn.ckpt_z"), m.Quantiles("resid_mid", of="norm"),
            m.Autoregression("attn.ckpt_attn_out", lags=1)]  # fmt: skip


def captures(path: Path) -> None:
    MODEL.run_with_ckpts(IDS, names=["blocks.*.resid_post", "ckpt_embed"])[1].save(path)


def cache(path: Path) -> None:
    made = pl.KeyValueCache(MODEL.config, capacity=6)
    with torch.no_grad():
        MODEL(IDS[:1], cache=made)
    made.save(path)


def stream(path: Path) -> Any:
    return pl.measure.stream(MODEL, ROWS, statistics(), batch_size=2, checkpoint=path)


Case = tuple[Callable[[Path], Any], Callable[[Path], Any], str]
FORMATS: dict[str, Case] = {
    "captures": (captures, pl.ActivationCkpts.load, "not-ckpts"),
    "cache": (cache, pl.KeyValueCache.load, "not-a-cache"),
    "stream": (stream, stream, "not-a-stream"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_noticed(name: str, tmp_path: Path):
    write, read, code = FORMATS[name]
    path = tmp_path / "file"
    write(path)
    read(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    draw = Random(0)
    for at in [start, len(content) - 1, *(draw.randrange(start, len(content)) for _ in range(20))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        with pytest.raises(pl.InputError, match="damaged") as caught:
            read(path)
        assert caught.value.code == code


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_a_digest_is_read(name: str, tmp_path: Path):
    """As earlier versions wrote it."""
    write, read, _ = FORMATS[name]
    path = tmp_path / "file"
    write(path)
    metadata = _metadata(path)
    del metadata["pellucid.sha256"]
    save_file(load_file(path), path, metadata=metadata)
    read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pipe_is_no_file(name: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pl.PellucidError, match="a pipe, expected a regular file"):
        FORMATS[name][1](tmp_path / "pipe")


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


SAYINGS: list[tuple[str, str]] = [
    *(
        ("captures", f'"sizes": {{"layer": {value}}}')
        for value in ("1e999", "1000000", "-1", "null", '"2"', "true", "[2]")
    ),
    *(("captures", f'"sizes": {value}') for value in ("null", "[2]", '{"head": 3}', '{"layer": 2, "head": "x"}')),
    ("captures", '"family": "gpt1"'), ("captures", '"family": null'),
    ("captures", '"names": 5'), ("captures", '"names": ["blocks.0.resid_post", 7]'), ("captures", '"strings": "x"'),
    ("captures", '"strings": [[1, 2, 3, 4], ["5", "6"]]'), ("captures", '"pos": [99]'), ("captures", '"heads": ["a"]'),
    ("captures", '"provenance": {"model": []}'), ("captures", '"names": ["blocks.9.resid_post"]'),
    ("stream", '"texts": "x"'), ("stream", '"texts": -1'), ("stream", '"texts": 1e999'), ("stream", '"digest": 5'),
    ("stream", '"digest": "zz"'), ("stream", '"format": null'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "saying"), SAYINGS)
def test_what_no_run_says_is_refused(name: str, saying: str, tmp_path: Path):
    """With the digest that such a file then has."""
    write, read, _ = FORMATS[name]
    path, kind = tmp_path / "file", f"pellucid.{'ckpts' if name == 'captures' else name}"
    write(path)
    about, tensors = own_file.load(path, kind)
    own_file.save(path, kind, tensors, {**about, **json.loads("{" + saying + "}")})
    with pytest.raises(pl.InputError):
        read(path)


def test_captures_of_the_first_form_still_open(tmp_path: Path):
    """They say how many blocks there are, and nothing else of the model."""
    write, read, _ = FORMATS["captures"]
    path = tmp_path / "file"
    write(path)
    about, tensors = own_file.load(path, "pellucid.ckpts")
    first = {name: value for name, value in about.items() if name not in ("family", "sizes")}
    for n_layer, opens in ((2, True), (1, False), ("2", False)):
        own_file.save(path, "pellucid.ckpts", tensors, {**first, "n_layer": n_layer})
        if opens:
            assert read(path).schema.names == MODEL.schema.names
            continue
        with pytest.raises(pl.InputError):
            read(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "nul", '"x"', "[]"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_description_that_is_none_is_refused(name: str, text: str, tmp_path: Path):
    write, read, code = FORMATS[name]
    path = tmp_path / "file"
    write(path)
    metadata = {key: text if key != "pellucid.sha256" else value for key, value in _metadata(path).items()}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(pl.InputError) as caught:
        read(path)
    assert caught.value.code == code


STATES: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("0.count", lambda t: -t - 1), ("0.mean", lambda t: t.float()), ("0.m2", lambda t: t[:1]),
    ("1.count", lambda t: t[None]),
    ("1.shape", lambda t: t * 2**40), ("1.comoment", lambda t: t[..., :1]), ("2.counts", lambda t: t[:1]),
    ("2.low", lambda t: t + 2**40), ("2.shape", lambda t: t * 2**50), ("2.zeros", lambda t: t.double()),
    ("3.texts", lambda t: t.double()), ("3.mean", lambda t: t.flatten()), ("0.about", lambda t: t[:-1]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), STATES)
def test_sums_that_no_stream_has_are_refused(name: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path):
    path = tmp_path / "file"
    stream(path)
    about, tensors = own_file.load(path, "pellucid.stream")
    own_file.save(path, "pellucid.stream", {**tensors, name: change(tensors[name]).contiguous()}, about)
    with pytest.raises(pl.InputError) as caught:
        stream(path)
    assert caught.value.code == "not-a-stream"


def alignment() -> dict[str, Any]:
    state = {f"their.{name}": tensor for name, tensor in MODEL.state_dict().items()}
    from pellucid.prove.aligning import align
    from pellucid.prove.units import units_of

    return json.loads(align(units_of(MODEL), state, MODEL.schema).to_json())


WRONG: list[tuple[str, Any]] = [
    ("matches", 5), ("matches.0", 5), ("matches.0.name", 5), ("matches.0.copies", "ab"), ("matches.0.shape", [1e999]),
    ("matches.0.shape", "ab"), ("matches.0.ambiguous", 1), ("matches.0.group.units", []),
    ("matches.0.group.units", ["x"]),
    ("matches.0.group.units", ["blocks.0"]), ("matches.0.group.head", "0"), ("matches.0.group.layers", -1),
    ("matches.0.transform.axes", ["d_model"]), ("matches.0.transform.heads", [0, 0]), ("matches.0.comparison", {}),
    ("matches.0.comparison.fraction", "x"), ("matches.0.comparison.max_ulp", 1.5), ("matches.0.comparison.shape", None),
    ("buffers", ["a"]), ("buffers", {"a": 1}), ("unexplained", [1]), ("missing", "abc"), ("format", None),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value"), WRONG)
def test_an_alignment_that_cannot_be_is_refused_when_it_is_read(at: str, value: Any, tmp_path: Path):
    tree = alignment()
    *way, last = [int(part) if part.isdigit() else part for part in at.split(".")]
    holder: Any = tree
    for part in way:
        holder = holder[part]
    holder[last] = value
    (tmp_path / "alignment.json").write_text(json.dumps(tree))
    with pytest.raises(pl.WeightsError) as caught:
        Alignment.load(tmp_path / "alignment.json")
    assert caught.value.code == "alignment-unreadable"


@pytest.mark.parametrize(("at", "value"), [("shape", [7]), ("group.head", 9)])
def test_an_alignment_of_another_configuration_does_not_convert(at: str, value: Any, tmp_path: Path):
    tree = alignment()
    row = next(row for row in tree["matches"] if row["group"]["units"] == ["blocks.0.attn.W_O"])
    if at == "shape":
        row["shape"] = value
    else:
        row["group"]["head"], row["transform"] = value, {"axes": ["d_head", "d_model"], "heads": None}
    (tmp_path / "alignment.json").write_text(json.dumps(tree))
    with pytest.raises(pl.WeightsError) as caught:
        Alignment.load(tmp_path / "alignment.json").convert(MODEL)
    assert caught.value.code == "alignment-units"


def test_the_digest_is_what_notices(tmp_path: Path):
    mutant = (
        own_file,
        "digest",
        lambda tensors, about: "0" * 64,
        lambda: test_a_flipped_bit_is_noticed("stream", tmp_path),
    )
    must_be_noticed(mutant)


@pytest.mark.parametrize(
    ("length", "header"),
    [(20, b"{}"), (2, b"{}"), (3, b"{,}"), (20_000, b"[" * 20_000), (20, b'{"__metadata__":[1]}'), (4, b"null")],
)
def test_a_file_of_another_kind_has_no_metadata(length: int, header: bytes, tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(length.to_bytes(8, "little") + header)
    with path.open("rb") as file:
        assert own_file.read_metadata(file) == {}
    own_file.save(path, "kind", {"x": torch.ones(2)}, {"n": 1})
    with path.open("rb") as file:
        assert own_file.read_metadata(file)["kind"] == '{"n": 1}'
