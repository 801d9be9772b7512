"""Control-C ends a long verb with words that say what is left of its work; what they promise is true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
import support

CLEAN, CORRUPTED = support.ROW, support.ROW.flip(1)
TEXTS = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 1], [2, 4]]
METRIC = pl.metrics.loss()
MOMENTS = [pl.measure.Moments("resid_post")]


def _autoencoder() -> pl.sae.SparseAutoencoder:
    width = support.SIZES["n_embd"]
    one, zero = torch.eye(width), torch.zeros(width)
    weights = {"W_enc": one, "b_enc": zero, "W_dec": one, "b_dec": zero}
    return pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.1.resid_pre"), weights)


Verb = Callable[[pl.CkptedTransformer, Path], Any]

VERBS: dict[str, tuple[int, Verb, str]] = {
    "gradient": (
        3,
        lambda model, path: pl.attribution.gradient(
            model, CLEAN, CORRUPTED, "resid_pre", over=("layer",), metric=METRIC, steps=4
        ),
        "gradient: interrupted, nothing was measured",
    ),
    "edges": (
        3,
        lambda model, path: pl.attribution.edges(model, CLEAN, CORRUPTED, metric=METRIC, steps=4),
        "edges: interrupted, nothing was measured",
    ),
    "induction": (
        0,
        lambda model, path: pl.measure.induction(model, length=4, texts=2),
        "induction: interrupted, nothing was measured",
    ),
    "stream": (
        3,
        lambda model, path: pl.measure.stream(model, TEXTS, MOMENTS, batch_size=1),
        "stream: interrupted after 3 texts; nothing of it is kept, as checkpoint= would",
    ),
    "stream into a file": (
        3,
        lambda model, path: pl.measure.stream(
            model, TEXTS, MOMENTS, batch_size=1, checkpoint=pl.measure.Saving(path, every_texts=2)
        ),
        "stream: interrupted after 3 texts; {path} keeps the first 2, and the same call goes on from there",
    ),
    "stream, before the file": (
        1,
        lambda model, path: pl.measure.stream(model, TEXTS, MOMENTS, batch_size=1, checkpoint=path),
        "stream: interrupted after 1 text; nothing of it is in {path} yet",
    ),
    "evaluate an autoencoder": (
        15,
        lambda model, path: pl.sae.evaluate(_autoencoder(), model, TEXTS, batch_size=1),
        "sae.evaluate: interrupted after 3 texts; nothing of it is kept",
    ),
    "fit": (
        3,
        lambda model, path: pl.lens.TunedLens.fit(model, TEXTS, batch_size=1),
        "TunedLens.fit: interrupted after 3 of 5 steps; nothing of it is kept, as path= would",
    ),
    "fit, before the file": (
        1,
        lambda model, path: pl.lens.TunedLens.fit(model, TEXTS, batch_size=1, path=path),
        "TunedLens.fit: interrupted after 1 of 5 steps; nothing of it is in {path} yet",
    ),
    "fit into a file": (
        3,
        lambda model, path: pl.lens.TunedLens.fit(model, TEXTS, batch_size=1, path=path, every=2),
        "TunedLens.fit: interrupted after 3 of 5 steps; {path} keeps the first 2, and the same call goes on from there",
    ),
}
"""Verb -> after how many runs it is interrupted, the call, and what the interruption says."""


def interrupted(model: pl.CkptedTransformer, after: int, call: Callable[[], Any]) -> str:
    """What Control-C in the run after so many says; "" if the verb ended before."""
    runs = 0

    def interrupt(*_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs > after:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(interrupt)
    try:
        call()
    except KeyboardInterrupt as interruption:
        return str(interruption)
    finally:
        handle.remove()
    return ""


@pytest.mark.parametrize("name", VERBS)
def test_an_interruption_says_what_is_left(name: str, tmp_path: Path) -> None:
    after, verb, said = VERBS[name]
    model, path = support.glass(), tmp_path / "kept"
    assert interrupted(model, after, lambda: verb(model, path)) == said.format(path=path)
    assert path.exists() == ("keeps the first" in said)


@pytest.mark.parametrize("name", ["stream into a file", "fit into a file"])
def test_the_same_call_goes_on_from_there(name: str, tmp_path: Path) -> None:
    after, verb, _ = VERBS[name]
    model, path = support.glass(), tmp_path / "kept"
    interrupted(model, after, lambda: verb(model, path))
    runs: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    resumed = verb(model, path)
    handle.remove()
    assert len(runs) == len(TEXTS) - 2
    whole = verb(model, tmp_path / "another")
    assert repr(resumed) == repr(whole)
