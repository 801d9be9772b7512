"""Each wrong call about stores is refused, and what its remedy says is done and works."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from following import Case, follow, params
from pellucid import atomic
from pellucid.corpus import place, plan

Here = SimpleNamespace
TEXTS = support.ragged_ids(5, 2, 7)
NAME = "blocks.1.resid_post"


@functools.cache
def shared() -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return support.glass()


def _capture(here: Here, texts: Any = TEXTS, names: Any = NAME, path: str = "a.zarr", **more: Any) -> Any:
    return pl.corpus.capture(here.model, texts, names, here.folder / path, **more)


def _without_room(here: Here, **more: Any) -> Any:
    """On a disk that holds a store in bfloat16 and none in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=14 * 48 * 2 + 100))
        return _capture(here, path="small.zarr", **more)


def _fuller_than_before(here: Here) -> Any:
    """On a disk without room for the part that is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PART_BYTES", 1)
        patch.setattr(plan, "TEXTS_IN_A_PART", 1)
        _capture(here, path="parts.zarr")
        (here.folder / "parts.zarr" / place.chunk_key("ledger", 0, 3)).unlink()
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        return _capture(here, path="parts.zarr")


def _unfinished(here: Here) -> Any:
    (here.folder / "a.zarr" / place.chunk_key("ledger", 0, 3)).unlink()
    return here.store.loader(4)


def _busy(here: Here) -> Any:
    with atomic.alone(here.folder / "a.zarr"):
        return _capture(here)


def _with_threads(here: Here, count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return _capture(here)
    finally:
        torch.set_num_threads(before)


def _asked_eager(here: Here, **more: Any) -> None:
    """A store from before the configuration of its model asked for eager attention."""
    folder, path = here.folder / "model", here.folder / "eager.zarr"
    here.model.save_pretrained(folder)
    pl.corpus.capture(pl.load(folder), TEXTS, NAME, path)
    config = folder / "config.json"
    fields = json.loads(config.read_text())
    for field in ("_attn_implementation", "attn_implementation"):
        config.write_text(json.dumps({**fields, field: "eager"}))
        assert pl.load(folder).execution.attention == "eager"
        assert pl.corpus.open(path).verify()
        pl.corpus.capture(pl.load(folder, **more), TEXTS, NAME, path)


def _attending(here: Here, attention: str) -> None:
    path = here.folder / "attending.zarr"
    here.model.save_pretrained(here.folder / "model")
    for one in ("eager", attention):
        pl.corpus.capture(pl.load(here.folder / "model", attention=one), TEXTS, NAME, path)


def _elsewhere(here: Here, path: str = "a.zarr") -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        return _capture(here, path=path)


def _read(here: Here, name: str, content: str, **more: Any) -> Any:
    (here.folder / name).write_text(content)
    return list(pl.corpus.read(here.folder / name, **more))


THREADS = torch.get_num_threads()
JSONL = '{"content": "a text"}\n'

REMEDIES: dict[str, list[Case]] = {
    "corpus-misfit": [
        Case(lambda h: _capture(h, TEXTS[:2]), "Give the texts as they were", _capture),
        Case(lambda h: _capture(h, TEXTS[:2]), "or another path", lambda h: _capture(h, TEXTS[:2], path="b.zarr")),
        *(
            Case(lambda h, wrong=wrong: _capture(h, **wrong), f"Give {said}, which it was made with", _capture)
            for said, wrong in {
                "dtype='float32'": {"dtype": "float16"}, "packing=False": {"packing": True},
                "batch_tokens=4096": {"batch_tokens": 9}, "long_texts='refuse'": {"long_texts": "split"},
                f"names=['{NAME}']": {"names": "resid_post"},
            }.items()
        ),
        Case(
            lambda h: pl.corpus.capture(support.glass(seed=1), TEXTS, NAME, h.folder / "a.zarr"),
            "Give the model that it was made with", _capture,
        ),
        Case(
            lambda h: _with_threads(h, THREADS + 1), f"torch.set_num_threads({THREADS})",
            lambda h: _with_threads(h, THREADS),
        ),
        Case(_asked_eager, "attention='auto' and config={'_attn_implementation': 'sdpa'}",
             lambda h: _asked_eager(h, config={"_attn_implementation": "sdpa"})),
        Case(lambda h: _attending(h, "auto"), "Open the model with attention='eager',",
             lambda h: _attending(h, "eager")),
        Case(_elsewhere, "write a new store to another path", lambda h: _elsewhere(h, "b.zarr")),
    ],
    "corpus-model": [
        Case(
            lambda h: pl.corpus.open(h.folder / "a.zarr").verify(), "store.verify(model=model)",
            lambda h: pl.corpus.open(h.folder / "a.zarr").verify(model=h.model),
        ),
    ],
    "corpus-unfinished": [
        Case(_unfinished, "Call pl.corpus.capture again", lambda h: (_capture(h), list(h.store.loader(4)))),
    ],
    "corpus-options": [
        Case(lambda h: _capture(h, storage_options={"anon": True}), "Leave storage_options out", _capture),
        Case(
            lambda h: _capture(h, storage_options={"anon": True}), "give an address",
            lambda h: pl.corpus.capture(h.model, TEXTS, NAME, "memory://remedies.zarr", storage_options={"skip": 1}),
        ),
    ],
    "corpus-field": [
        Case(
            lambda h: _read(h, "a.jsonl", JSONL), "field='content'",
            lambda h: _read(h, "a.jsonl", JSONL, field="content"),
        ),
    ],
    "corpus-damaged": [
        Case(
            lambda h: _read(h, "a.jsonl", JSONL[:9]), "Write the file again",
            lambda h: _read(h, "a.jsonl", JSONL, field="content"),
        ),
        Case(
            lambda h: ((h.folder / "a.zarr" / "tokens" / "c.0").write_bytes(b""), _capture(h)),
            "a new store to another path", lambda h: _capture(h, path="b.zarr"),
        ),
    ],
    "not-a-corpus": [
        Case(
            lambda h: pl.corpus.open(h.folder), "a path that values were captured to",
            lambda h: pl.corpus.open(h.folder / "a.zarr"),
        ),
        Case(lambda h: _capture(h, path="."), "a path that is free", lambda h: _capture(h, path="free.zarr")),
    ],
    "corpus-name": [
        Case(lambda h: h.store["blocks.1.resid_pots"], f"Did you mean '{NAME}'", lambda h: h.store[NAME]),
    ],
    "corpus-axes": [
        Case(
            lambda h: _capture(h, names=["attn.ckpt_pattern", "attn.ckpt_z"]), "Leave out scores and patterns",
            lambda h: _capture(h, names=["attn.ckpt_z"], path="b.zarr"),
        ),
    ],
    "corpus-disk": [
        Case(_without_room, "as bfloat16", lambda h: _without_room(h, dtype="bfloat16")),
        Case(_without_room, "a path on another disk", lambda h: _capture(h, path="large.zarr")),
        Case(_fuller_than_before, "make the same call again", lambda h: _capture(h, path="parts.zarr")),
    ],
    "corpus-dtype": [
        Case(lambda h: _capture(h, dtype="int8"), "Give dtype='float32'", lambda h: _capture(h, dtype="float32")),
    ],
    "corpus-long-texts": [
        Case(lambda h: _capture(h, long_texts="cut"), "='refuse'", lambda h: _capture(h, long_texts="refuse")),
    ],
    "corpus-busy": [
        Case(_busy, "Wait for it", _capture),
    ],
    "too-long": [
        Case(
            lambda h: _capture(h, [[1] * 99], path="b.zarr"), "long_texts='split'",
            lambda h: _capture(h, [[1] * 99], path="b.zarr", long_texts="split"),
        ),
    ],
    "texts-kind": [
        Case(lambda h: _capture(h, "a text", path="b.zarr"), "into a list", lambda h: _capture(h, path="b.zarr")),
        Case(lambda h: _capture(h, [5, 6], path="b.zarr"), "a single row goes into a list",
             lambda h: _capture(h, [[5, 6]], path="b.zarr")),
        Case(lambda h: _capture(h, 3, path="b.zarr"), "pl.corpus.read(path)",
             lambda h: pl.corpus.capture(pl.load(), pl.corpus.read(h.words), NAME, h.folder / "b.zarr")),
    ],
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """A model, and a store of a few texts."""
    made = SimpleNamespace(model=shared(), folder=tmp_path, words=tmp_path / "words.txt")
    made.words.write_text("Once upon a time")
    made.store = _capture(made)
    return made


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_a_remedy_says(code: str, case: Case, here: Here) -> None:
    follow(code, case, here)
