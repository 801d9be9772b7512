"""Each wrong call is refused, and what its remedy says is done and works."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loops import METRIC

import pellucid as pl
import support
from following import Case, follow, params

Here = SimpleNamespace
patching: Any = pl.patching
metrics: Any = pl.metrics
ONE, TWO, LONG = support.some_ids(1, 5), support.some_ids(2, 5, seed=3), support.some_ids(1, 7, seed=4)
OTHER = support.some_ids(1, 5, seed=8)


def _sweep(here: Here, name: Any = "resid_pre", **more: Any) -> Any:
    given: dict[str, Any] = {"clean": ONE, "corrupted": OTHER, "over": ("layer",), "metric": METRIC, **more}
    return patching.sweep(here.model, given.pop("clean"), given.pop("corrupted"), name, **given)


def _path(here: Here, **more: Any) -> Any:
    given: dict[str, Any] = {
        "senders": ("attn.ckpt_z", {"layer": 0, "head": 1}),
        "receivers": "logits",
        "metric": METRIC,
        **more,
    }
    return patching.path(here.model, ONE, OTHER, **given)


def _ablate(here: Here, name: Any = "attn.ckpt_z", **more: Any) -> Any:
    return patching.ablate(here.model, ONE, name, **{"over": (), "how": "zero", "metric": METRIC, **more})


def _metric(here: Here, metric: Any) -> Any:
    batch = here.model.tokenize(TWO)
    return metric(here.model(batch).detach(), batch)


def _told(here: Here, metric: Any) -> Any:
    batch = here.told.tokenize("Once upon a")
    return metric(here.told(batch).detach(), batch)


def _mean_over_texts(logits: torch.Tensor, batch: pl.Batch) -> torch.Tensor:
    return logits[:, -1, 3].mean()


def _each_text(logits: torch.Tensor, batch: pl.Batch) -> torch.Tensor:
    return logits[:, -1, 3]


class Reads:
    """A metric that says where it reads."""

    def __init__(self, positions: Any) -> None:
        self.positions = positions

    def __call__(self, logits: torch.Tensor, batch: pl.Batch) -> torch.Tensor:
        return logits[:, -1, 3]


def _infinite(logits: torch.Tensor, batch: pl.Batch) -> torch.Tensor:
    return logits[:, -1, 3] / 0


def _two(here: Here) -> Any:
    return _sweep(here, clean=TWO, corrupted=TWO.flip(0), per_text=True)


def _path_baseline(here: Here, **more: Any) -> Any:
    about: dict[str, Any] = {"senders": ("blocks.1.attn.ckpt_z", {}), "over": ("head",), "metric": METRIC, "draws": 2}
    return patching.path_baseline(here.model, ONE, OTHER, **about, **more)


def _broken() -> pl.CkptedTransformer:
    model = support.glass()
    with torch.no_grad():
        model.blocks[1].attn.W_O[2, 0, 0] = torch.nan
    return model


def _not_finite(model: pl.CkptedTransformer) -> None:
    found = [name for name in model.parameter_names if not model.parameter(name).isfinite().all()]
    assert found == ["blocks.1.attn.W_O"]


def _gradient(here: Here, **more: Any) -> Any:
    return pl.attribution.gradient(here.model, ONE, OTHER, "attn.ckpt_z", over=("layer",), metric=METRIC, **more)


def _edges(here: Here, **more: Any) -> Any:
    return pl.attribution.edges(here.model, ONE, OTHER, metric=METRIC, check=1, **more)


def _baseline(here: Here, **more: Any) -> Any:
    about: dict[str, Any] = {"over": (), "metric": METRIC, "draws": 2, **more}
    return patching.baseline(here.model, ONE, OTHER, "ckpt_z", **about)


NAMED = "Edward and Tom went home. Edward gave", "Tom and Edward went home. Tom gave"
PAIRED: list[Callable[..., Any]] = [
    lambda *given: patching.sweep(*given, "resid_pre", over=("pos",), metric=METRIC),
    lambda *given: pl.attribution.edges(*given, metric=METRIC),
    lambda *given: pl.circuits.across(*given[:1], pl.circuits.Circuit(nodes=[(0, 1)]), *given[1:], metric=METRIC),
]
"""Verbs that need texts of equal lengths."""


REMEDIES: dict[str, list[Case]] = {
    "metric-kind": [
        Case(lambda h: _sweep(h, metric=3.0), "logit_difference", _sweep),
        Case(lambda h: _sweep(h, metric=lambda logits: logits[:, -1, 3]), "lambda logits, batch:",
             lambda h: _sweep(h, metric=lambda logits, batch: logits[:, -1, 3])),
    ],
    "metric-tokens": [
        Case(lambda h: metrics.logit_difference(3), "a pair for each", lambda h: metrics.logit_difference(3, 4)),
        Case(lambda h: metrics.logit_difference(["ab"]), "[(' Mary', ' John'), ...]",
             lambda h: metrics.logit_difference([("a", "b")])),
        Case(lambda h: _metric(h, metrics.logit([1, 2, 3])), "one for each text",
             lambda h: _metric(h, metrics.logit([1, 2]))),
        Case(lambda h: _metric(h, metrics.logit(211)), "from 0 to 210", lambda h: _metric(h, metrics.logit(210))),
        Case(lambda h: _metric(h, metrics.logit(True)), "a whole number", lambda h: _metric(h, metrics.logit(1))),
        Case(lambda h: _metric(h, metrics.logit((1, 2))), "Give a list", lambda h: _metric(h, metrics.logit([1, 2]))),
        Case(lambda h: pl.lens.logit(h.model.run_with_ckpts(TWO)[1]).rank((1, 2)), "logit_difference(right, wrong)",
             lambda h: _metric(h, metrics.logit_difference(1, 2))),
    ],
    "not-one-token": [
        Case(lambda h: _told(h, metrics.logit(" ball and")), "one of the pieces",
             lambda h: _told(h, metrics.logit(" ball"))),
    ],
    "metric-positions": [
        Case(lambda h: metrics.logit(3, pos=0.5), "pos=-1", lambda h: metrics.logit(3, pos=-1)),
        Case(lambda h: _metric(h, metrics.logit(3, pos=-6)), "that every text has",
             lambda h: _metric(h, metrics.logit(3, pos=-5))),
        Case(lambda h: _sweep(h, metric=Reads((0,))), "positions = (-1,)", lambda h: _sweep(h, metric=Reads((-1,)))),
        Case(lambda h: _sweep(h, metric=Reads(())), "positions = (-1,)", lambda h: _sweep(h, metric=Reads(-1))),
    ],
    "metric-shape": [
        Case(lambda h: _sweep(h, metric=_mean_over_texts), "no mean over texts",
             lambda h: _sweep(h, metric=_each_text)),
        Case(lambda h: metrics.kl(torch.zeros(3)), "a plain run", lambda h: metrics.kl(h.model(ONE))),
        Case(lambda h: _metric(h, metrics.kl(h.model(ONE))), "the texts that are edited",
             lambda h: _metric(h, metrics.kl(h.model(TWO)))),
    ],
    "metric-not-finite": [
        Case(lambda h: _sweep(h, metric=_infinite), "finite on the plain runs", lambda h: _sweep(h, metric=_each_text)),
        Case(lambda h: _sweep(Here(model=_broken())), "model.parameter(name).isfinite()",
             lambda h: _not_finite(_broken())),
    ],
    "sweep-over": [
        Case(lambda h: _sweep(h, over=("layer", "position")), "over=('layer', 'pos')",
             lambda h: _sweep(h, over=("layer", "pos"))),
        Case(lambda h: _sweep(h, over=("pos", "pos")), "over=('layer', 'pos')", lambda h: _sweep(h, over=())),
        Case(lambda h: _sweep(h, over=None), "over=('layer', 'pos')", lambda h: _sweep(h, over="layer")),
    ],
    "no-such-axis": [
        Case(lambda h: _sweep(h, over=("layer", "head")), "has that axis",
             lambda h: _sweep(h, "attn.ckpt_z", over=("layer", "head"))),
        Case(lambda h: _sweep(h, heads=[1]), "or leave it out", _sweep),
        Case(lambda h: _sweep(h, "ckpt_embed", over=("layer",)), "Leave 'layer' out",
             lambda h: _sweep(h, "ckpt_embed", over=("pos",))),
        Case(lambda h: patching.baseline(h.model, ONE, OTHER, "pattern", over=("layer",), metric=METRIC, draws=2),
             "last axis",
             lambda h: patching.baseline(h.model, ONE, OTHER, "ckpt_z", over=("layer",), metric=METRIC, draws=2)),
    ],
    "missing-argument": [
        Case(lambda h: patching.sweep(h.model, ONE, OTHER, "resid_pre", metric=METRIC), "Give over=: What to go over",
             lambda h: patching.sweep(h.model, ONE, OTHER, "resid_pre", metric=METRIC, over=("layer",))),
        Case(lambda h: pl.Edit.replace("resid_pre"), "Give value=",  # pyright: ignore[reportCallIssue]
             lambda h: pl.Edit.replace("resid_pre", 0.0)),
    ],
    "not-a-model": [
        Case(lambda h: patching.sweep("a text", "another", h.told, "resid_pre", over=("layer",), metric=METRIC),
             "Give the model first", _sweep),
        Case(lambda h: pl.heads.ov(support.reference(), 0, 1), "pl.from_hf(hf_model)",
             lambda h: pl.heads.ov(pl.from_hf(support.reference()), 0, 1)),
    ],
    "baseline-of": [
        Case(lambda h: _baseline(h, of="layers"), "of='heads'", lambda h: _baseline(h, of="heads", heads=[1])),
        Case(lambda h: _baseline(h, of="heads"), "fewer heads at once, or go over 'layer' or 'head'",
             lambda h: (_baseline(h, of="heads", heads=[1, 2]), _baseline(h, of="heads", over=("layer",)))),
    ],
    "sweep-direction": [
        Case(lambda h: _sweep(h, direction="denoising"), "direction='denoise'",
             lambda h: _sweep(h, direction="denoise")),
    ],
    "sweep-memory": [
        Case(lambda h: _sweep(h, max_bytes=1000), "fewer checkpoints", lambda h: _sweep(h, max_bytes=10_000_000)),
    ],
    "sweep-part": [
        Case(lambda h: _sweep(h, pos=-1, align=patching.align(h.model, ONE, OTHER, {"end": -1})), "Leave pos= out",
             lambda h: _sweep(h, align=patching.align(h.model, ONE, OTHER, {"end": -1}))),
    ],
    "texts-misfit": [
        Case(lambda h: _sweep(h, clean=TWO), "for each clean one", lambda h: _sweep(h, clean=ONE)),
        Case(lambda h: patching.align(h.model, TWO, ONE), "for each clean one",
             lambda h: patching.align(h.model, ONE, ONE)),
        Case(lambda h: _sweep(h, "pattern", clean=LONG, pos=-1), "attn.ckpt_z",
             lambda h: _sweep(h, "attn.ckpt_z", clean=LONG, pos=-1)),
    ],
    "texts-of-unequal-length": [
        Case(lambda h: _sweep(h, clean=LONG), "pos=-1", lambda h: _sweep(h, clean=LONG, pos=-1)),
        Case(lambda h: _sweep(h, clean=LONG), "pl.patching.align",
             lambda h: _sweep(h, clean=LONG, align=patching.align(h.model, LONG, OTHER, {"end": -1}))),
        *(Case(lambda h, verb=verb: verb(h.told, *NAMED), "Begin each text with a space",
               lambda h, verb=verb: verb(h.told, *(f" {text}" for text in NAMED))) for verb in PAIRED),
    ],
    "align-misfit": [
        Case(lambda h: patching.align(h.told, "a cat", "a dog", {"animal": "cat"}), "a word of the text",
             lambda h: patching.align(h.told, "a cat", "a dog", {"animal": ("cat", "dog")})),
        Case(lambda h: patching.align(h.told, "a cat, a cat", "a dog", {"animal": ("cat", "dog")}), "('cat', 0)",
             lambda h: patching.align(h.told, "a cat, a cat", "a dog", {"animal": (("cat", 0), "dog")})),
        Case(lambda h: patching.align(h.told, "a cat", "a cat", {"animal": ("cat", -5)}), "('cat', 0)",
             lambda h: patching.align(h.told, "a cat", "a cat", {"animal": ("cat", 0)})),
        *(Case(lambda h, roles=roles: patching.align(h.told, "a cat", "a dog", roles), "roles=",
               lambda h: patching.align(h.told, "a cat", "a dog", {"animal": ("cat", "dog"), "end": -1}))
          for roles in (["cat"], {})),
        Case(lambda h: patching.align(h.told, "a cat", "a cat", {"animal": ()}), "in the clean text",
             lambda h: patching.align(h.told, "a cat", "a cat", {"animal": ("cat", "cat")})),
        Case(lambda h: patching.align(h.told, "a cat", "a dog", {"end": 9}), "count from the end",
             lambda h: patching.align(h.told, "a cat", "a dog", {"end": -1})),
        Case(lambda h: patching.align(h.model, ONE, OTHER, {"end": 0.5}), "in the clean text",
             lambda h: patching.align(h.model, ONE, OTHER, {"end": (4, 4)})),
        Case(lambda h: patching.align(h.model, ONE, OTHER, {"end": [1, 2]}), "one for each text",
             lambda h: patching.align(h.model, ONE, OTHER, {"end": [1]})),
        Case(lambda h: patching.align(h.model, [[1, 2]], [[3]]), "roles=", lambda h:
             patching.align(h.model, [[1, 2]], [[3]], {"end": -1})),
        Case(lambda h: _sweep(h, align="words"), "or True", lambda h: _sweep(h, align=True)),
        Case(lambda h: _sweep(h, align=patching.align(h.model, LONG, OTHER, {"end": -1})), "the very texts",
             lambda h: _sweep(h, clean=LONG, align=patching.align(h.model, LONG, OTHER, {"end": -1}))),
    ],
    "not-a-whole-number": [
        *(Case(lambda h, verb=verb: verb(h, seed="one"), "a whole number", lambda h, verb=verb: verb(h, seed=-1))
          for verb in (_baseline, partial(_ablate, how="resample"), _gradient, _edges)),
        Case(lambda h: _gradient(h, check=-1), "0 or more", lambda h: _gradient(h, check=1)),
    ],
    "ablate-how": [Case(lambda h: _ablate(h, how="random"), "how='mean'", lambda h: _ablate(h, how="mean"))],
    "edit-mean-of-pattern": [
        Case(lambda h: _ablate(h, "pattern", how="mean"), "how='zero'", lambda h: _ablate(h, "pattern", how="zero")),
    ],
    "reference-too-short": [
        Case(lambda h: _ablate(h, how="resample", reference=[[1, 2]]), "as long as the inputs",
             lambda h: _ablate(h, how="resample", reference=LONG)),
    ],
    "nothing-to-normalize": [
        Case(lambda h: patching.normalized(_sweep(h, clean=OTHER)), "in which the two runs differ",
             lambda h: patching.normalized(_sweep(h))),
        Case(lambda h: patching.normalized(_sweep(h).drop_attrs()), "pl.patching.sweep, path or ablate",
             lambda h: [patching.normalized(_sweep(h)), patching.normalized(_ablate(h)),
                        patching.normalized(_path(h))]),
        *(Case(lambda h, verb=verb, before=before: verb(before(_two(h))), "pl.patching.sweep, path or ablate",
               lambda h, verb=verb: verb(_two(h)))
          for verb in (patching.normalized, patching.effect_sizes)
          for before in (patching.normalized, patching.effect_sizes)),
        Case(lambda h: patching.effect_sizes(_two(h).drop_attrs()), "pl.patching.sweep, path or ablate",
             lambda h: patching.effect_sizes(_two(h))),
        *(Case(lambda h, verb=verb: verb(_two(h).values), "pl.patching.sweep, path or ablate",
               lambda h, verb=verb: verb(_two(h))) for verb in (patching.normalized, patching.effect_sizes)),
        Case(lambda h: patching.baseline(h.model, ONE, ONE, "resid_pre", over=(), metric=METRIC, draws=2),
             "in which the two runs differ",
             lambda h: patching.baseline(h.model, ONE, OTHER, "resid_pre", over=(), metric=METRIC, draws=2)),
    ],
    "no-texts": [
        Case(lambda h: patching.effect_sizes(_sweep(h)), "per_text=True",
             lambda h: patching.effect_sizes(_two(h))),
    ],
    "path-through": [Case(lambda h: _path(h, through="all"), "through='mlps'", lambda h: _path(h, through="mlps"))],
    "path-place": [
        Case(lambda h: _path(h, senders=[]), "{'layer': 5, 'head': 5}",
             lambda h: _path(h, senders=[("attn.ckpt_z", {"layer": 0})])),
        Case(lambda h: _path(h, receivers=[]), "{'layer': 5, 'head': 5}",
             lambda h: _path(h, receivers=[("attn.ckpt_q", {"layer": 1})])),
        Case(lambda h: _path(h, senders=("attn.ckpt_z", 5)), "{'layer': 5, 'head': 5}",
             lambda h: _path(h, senders=("attn.ckpt_z", {"layer": 0}))),
        Case(lambda h: _path(h, senders=("attn.ckpt_z", {"block": 0})), "'layer', 'head', 'pos' and 'neuron'",
             lambda h: _path(h, senders=("attn.ckpt_z", {"layer": 0}))),
        Case(lambda h: _path(h, receivers=(2, 1)), "'attn.ckpt_q', {'layer': 5, 'head': 5}",
             lambda h: _path(h, receivers=("attn.ckpt_q", {"layer": 2, "head": 1}))),
        Case(lambda h: _path(h, senders=[("attn.ckpt_z", {}), ("attn.ckpt_z", {})], over=("layer",)), "one sender",
             lambda h: _path(h, senders=[("attn.ckpt_z", {})], over=("layer",))),
    ],
    "path-order": [
        Case(lambda h: _path(h, senders=("attn.ckpt_z", {"layer": 2}), receivers=("attn.ckpt_q", {"layer": 1})),
             "exchange them",
             lambda h: _path(h, receivers=("attn.ckpt_z", {"layer": 2}), senders=("attn.ckpt_q", {"layer": 1}))),
        Case(lambda h: _path_baseline(h, receivers="blocks.0.attn.q[1]"), "exchange them",
             lambda h: _path_baseline(h, receivers="blocks.2.attn.q[1]")),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def here() -> Here:
    return Here(model=support.glass(), told=pl.load())


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_the_remedy_says_works(code: str, case: Case, here: Here) -> None:
    follow(code, case, here)


def test_what_does_not_exist() -> None:
    model = support.glass()
    wrong: dict[str, Any]
    for wrong in ({"heads": [4]}, {"neurons": [12]}, {"pos": 5}):
        with pytest.raises(pl.InputError, match="expected indices from 0"):
            patching.sweep(model, ONE, OTHER, "attn.ckpt_z", over=("layer",), metric=METRIC, **wrong)
    names: Any
    for names in ("resid_prae", 5, None, [], ["resid_pre", 5]):
        with pytest.raises(pl.UnknownNameError, match="no such checkpoint"):
            patching.sweep(model, ONE, OTHER, names, over=("layer",), metric=METRIC)
    with pytest.raises(pl.UnknownNameError):
        patching.path(model, ONE, OTHER, senders=("attn.ckpt_z", {"layer": 3}), receivers="logits", metric=METRIC)
