"""Dropout makes every run another one: what a verb gives of a model in training mode is random, and it says so."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import llamas
import pellucid as pl
from support import NO_DROPOUT, ROW, glass

CLEAN, CORRUPTED = ROW, ROW.flip(1)
METRIC = pl.metrics.loss()
SWEEP: dict[str, Any] = {"over": ("layer",), "metric": METRIC}

RANDOM: dict[str, Callable[[Any], Any]] = {
    "run": lambda m: m.run(ROW),
    "next_token_logits": lambda m: m.next_token_logits(ROW),
    "run_with_ckpts": lambda m: m.run_with_ckpts(ROW),
    "run_with_ckpts a part": lambda m: m.run_with_ckpts(ROW, names="resid_pre", stop_at=("resid_pre", 1), pos=-1),
    "logprobs": lambda m: torch.no_grad()(m.logprobs)(ROW),
    "loss": lambda m: torch.no_grad()(m.loss)(ROW),
    "generate": lambda m: m.generate(ROW, max_new_tokens=2),
    "generate beams": lambda m: m.generate(ROW, max_new_tokens=2, num_beams=2),
    "stream": lambda m: list(m.stream(ROW, max_new_tokens=2)),
    "measure.stream": lambda m: pl.measure.stream(m, [[1, 2], [3]], [pl.measure.Moments("resid_post")]),
    "measure.induction": lambda m: pl.measure.induction(m, length=4, texts=2),
    "patching.sweep": lambda m: pl.patching.sweep(m, CLEAN, CORRUPTED, "resid_pre", **SWEEP),
    "patching.ablate": lambda m: pl.patching.ablate(m, ROW, "resid_pre", how="zero", **SWEEP),
    "patching.path": lambda m: pl.patching.path(
        m, CLEAN, CORRUPTED, senders=("attn.ckpt_z", {"layer": 0, "head": 1}), receivers="logits", metric=METRIC
    ),
    "patching.baseline": lambda m: pl.patching.baseline(m, CLEAN, CORRUPTED, "resid_pre", draws=2, **SWEEP),
    "patching.ablation_baseline": lambda m: pl.patching.ablation_baseline(
        m, CLEAN, "resid_pre", how="zero", draws=2, **SWEEP
    ),
    "patching.path_baseline": lambda m: pl.patching.path_baseline(
        m, CLEAN, CORRUPTED, senders=(0, 1), receivers="logits", metric=METRIC, draws=2
    ),
    "attribution.gradient": lambda m: pl.attribution.gradient(m, CLEAN, CORRUPTED, "resid_pre", **SWEEP),
    "attribution.edges": lambda m: pl.attribution.edges(m, CLEAN, CORRUPTED, metric=METRIC),
    "view": lambda m: pl.view(m, ROW),
    "serve": lambda m: pl.serve(m, ROW, port=0).stop(),
}
"""What promises values that come again."""

TRAINING: dict[str, Callable[[Any], Any]] = {
    "forward": lambda m: m(ROW).sum().backward(),
    "forward without gradients": lambda m: torch.no_grad()(m)(ROW),
    "logprobs": lambda m: m.logprobs(ROW).sum().backward(),
    "loss": lambda m: m.loss(ROW).backward(),
    "run_with_ckpts": lambda m: m.run_with_ckpts(ROW, grads=True)[1]["resid_mid", 0].sum().backward(),
}
"""What training calls."""

STEADY: dict[str, Callable[[Any], Any]] = {
    "tokenize": lambda m: m.tokenize(ROW).ids.tolist(),
    "compare": lambda m: str(pl.compare(m, glass(**NO_DROPOUT), inputs=ROW).first_divergence),
    "count_parameters": lambda m: pl.count_parameters(m).unique,
    "estimate": lambda m: str(pl.estimate(m, ROW)),
    "estimate_generation": lambda m: str(pl.estimate_generation(m, ROW)),
    "patching.estimate_sweep": lambda m: pl.patching.estimate_sweep(m, CLEAN, CORRUPTED, "resid_pre", **SWEEP).runs,
    "fold": lambda m: str(pl.fold(m)),
    "to_hf": lambda m: pl.to_hf(m).training,
    "tie": pl.tie,
    "untie": pl.untie,
}
"""What runs nothing, or runs evaluating copies."""

RUNS_NOTHING = {"patching.align", "replace_head"}
"""What needs more than a small random model to be called, and runs none."""


def of_a_model() -> Iterator[str]:
    """Every public function whose first argument is a model, and every method of one that takes inputs."""
    yield from (n for n, f in inspect.getmembers(pl.CkptedTransformer, inspect.isfunction)
                if not n.startswith("_") and "inputs" in inspect.signature(f).parameters)  # fmt: skip
    for where in (pl, pl.patching, pl.attribution, pl.lens, pl.measure):
        home = "" if where is pl else where.__name__.rpartition(".")[2] + "."
        for name in dir(where):
            function = getattr(where, name)
            if inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "model":
                yield home + name


def training(**changes: float) -> pl.CkptedTransformer:
    """A model in training mode, as a fresh one is."""
    return glass(**(NO_DROPOUT | changes)).train()


@contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("verb", RANDOM)
def test_a_verb_says_that_its_values_are_random(verb):
    model = training(resid_pdrop=0.1)
    with pytest.warns(pl.PellucidWarning, match=r"training mode, where dropout \(resid_pdrop=0.1\)") as said:
        RANDOM[verb](model)
    assert {warning.filename for warning in said} == {__file__}
    if hasattr(pl.CkptedTransformer, verb.split()[0]):
        assert str(said[0].message).startswith(f"{verb.split()[0]}: ")
    with silent():
        RANDOM[verb](model.eval())  # what the warning asks for


@pytest.mark.parametrize("verb", RANDOM)
def test_without_dropout_there_is_nothing_to_say(verb):
    with silent():
        RANDOM[verb](training())


@pytest.mark.parametrize("verb", TRAINING)
def test_training_hears_nothing(verb):
    with silent():
        TRAINING[verb](training(embd_pdrop=0.2, attn_pdrop=0.2))


@pytest.mark.parametrize("verb", STEADY)
def test_what_runs_nothing_that_trains_gives_the_same_again(verb):
    model = training(attn_pdrop=0.5)
    with silent():
        assert STEADY[verb](model) == STEADY[verb](model)
    assert model.training


def test_every_verb_is_in_one_of_the_tables():
    tables = {name.split(" ")[0] for table in (RANDOM, TRAINING, STEADY) for name in table} | RUNS_NOTHING
    assert set(of_a_model()) - tables == set()


def test_a_block_that_trains_is_enough_and_other_families_are_asked_as_well():
    model = glass(**NO_DROPOUT | {"attn_pdrop": 0.3})
    model.blocks[0].resid_mid.append = torch.nn.Identity()  # of another library, and it drops nothing
    with silent():
        model.run_with_ckpts(ROW)
    model.blocks[1].train()
    with pytest.warns(pl.PellucidWarning, match=r"dropout \(attn_pdrop=0.3\)"):
        model.run_with_ckpts(ROW)
    with pytest.warns(pl.PellucidWarning, match=r"dropout \(attention_dropout=0.25\)"):
        llamas.glass(attention_dropout=0.25).train().generate(ROW, max_new_tokens=1)


def test_a_warning_points_at_the_line_that_led_to_it(tmp_path):
    broken = training(embd_pdrop=0.1)
    with torch.no_grad():
        broken.embed.W_E[0] = torch.nan
    broken.save_pretrained(tmp_path)
    for read in (pl.load, pl.CkptedTransformer.from_pretrained):
        with pytest.warns(pl.PellucidWarning, match="not finite") as said:
            read(tmp_path)
        assert said[0].filename == __file__
