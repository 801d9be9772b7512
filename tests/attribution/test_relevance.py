"""RelP is the change of the metric in a run whose non-linear parts are held as the base run has them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pellucid as pl
import samples
import support
from following import Case, follow, params
from pellucid.attribution import rules

METRIC = pl.metrics.logit_difference(7, 11)
KINDS = ["resid_pre", "attn.ckpt_v", "attn.ckpt_z", "mlp.ckpt_post", "mlp.ckpt_mlp_out", "ln2.ckpt_normalized"]


class Held:
    """The base run, through which changes go as if everything but the streams were constant."""

    def __init__(self, model: pl.CkptedTransformer, ids: Tensor) -> None:
        self.model = model
        self.ckpts = model.run_with_ckpts(ids)[1]

    def normed(self, place: str, change: Tensor, stream: str) -> Tensor:
        norm: Any = self.model.get_submodule(place)
        x = self.ckpts[stream]
        if f"{place}.b" in self.model.parameter_names:
            change = change - change.mean(-1, keepdim=True)
            x = x - x.mean(-1, keepdim=True)
        return norm.w * change / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()

    def attention(self, block: int, values: Tensor) -> Tensor:
        """Of a change of the values [B, P, G, K]."""
        attn, pattern = self.model.blocks[block].attn, self.ckpts[f"blocks.{block}.attn.ckpt_pattern"]
        every = values.repeat_interleave(pattern.size(1) // values.size(2), 2)
        return torch.einsum("bhqp,bphk,hkd->bqd", pattern, every, attn.W_O)

    def values(self, block: int, change: Tensor) -> Tensor:
        read = self.normed(f"blocks.{block}.ln1", change, f"blocks.{block}.resid_pre")
        return torch.einsum("bpd,gdk->bpgk", read, self.model.blocks[block].attn.W_V)

    def mlp(self, block: int, read: Tensor) -> Tensor:
        """Of a change of what the MLP reads."""
        place, mlp = f"blocks.{block}.mlp", self.model.blocks[block].mlp
        post = self.ckpts[f"{place}.ckpt_post"]
        if f"{place}.ckpt_gate" in self.model.schema:
            gate, up = self.ckpts[f"{place}.ckpt_gate"], self.ckpts[f"{place}.ckpt_up"]
            changed = (read @ mlp.W_gate) * post / gate / 2 + (read @ mlp.W_in) * post / up / 2
        else:
            changed = (read @ mlp.W_in) * post / self.ckpts[f"{place}.ckpt_pre"]
        return changed @ mlp.W_out

    def mlp_of_stream(self, block: int, before: Tensor, after: Tensor) -> Tensor:
        parallel = f"blocks.{block}.resid_mid" not in self.model.schema
        change, stream = (before, "resid_pre") if parallel else (after, "resid_mid")
        return self.mlp(block, self.normed(f"blocks.{block}.ln2", change, f"blocks.{block}.{stream}"))

    def effect(self, kind: str, block: int, change: Tensor) -> Tensor:
        """[B], of a change of one value."""
        zero = torch.zeros_like(self.ckpts["blocks.0.resid_pre"])
        attn = self.model.blocks[block].attn
        if kind == "resid_pre":
            return self.rest(block, change)
        if kind == "attn.ckpt_v":
            middle = self.attention(block, change)
            return self.rest(block + 1, middle + self.mlp_of_stream(block, zero, middle))
        if kind == "attn.ckpt_z":
            middle = torch.einsum("bphk,hkd->bpd", change, attn.W_O)
            return self.rest(block + 1, middle + self.mlp_of_stream(block, zero, middle))
        if kind == "ln2.ckpt_normalized":
            return self.rest(block + 1, self.mlp(block, change))
        return self.rest(block + 1, change @ self.model.blocks[block].mlp.W_out if kind == "mlp.ckpt_post" else change)

    def rest(self, block: int, change: Tensor) -> Tensor:
        for later in range(block, len(self.model.blocks)):
            middle = change + self.attention(later, self.values(later, change))
            change = middle + self.mlp_of_stream(later, change, middle)
        last = f"blocks.{len(self.model.blocks) - 1}.resid_post"
        logits = self.normed("ln_final", change, last)[:, -1] @ self.model.unembed.W_U
        return (logits[:, 7] - logits[:, 11]).detach()


def two() -> tuple[Tensor, Tensor]:
    return tuple(torch.randint(12, 60, (2, 5), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("kind", "family"),
    support.few_of(
        itertools.product(KINDS, samples.SAMPLES),
        *((kind, "llama") for kind in KINDS),
        *(("attn.ckpt_z", family) for family in samples.SAMPLES),
        ("mlp.ckpt_post", "gpt_neox"),
    ),
)
def test_relp_is_its_definition(family: str, kind: str) -> None:
    model, (clean, corrupted) = samples.glass(family, dtype=torch.float64), two()
    estimate = pl.attribution.gradient(
        model, clean, corrupted, kind, over=("layer",), metric=METRIC, rules="relp", per_text=True
    )
    held, source = Held(model, corrupted), model.run_with_ckpts(clean)[1]
    for block in range(len(model.blocks)):
        name = f"blocks.{block}.{kind}"
        expected = held.effect(kind, block, source[name] - held.ckpts[name])
        np.testing.assert_allclose(estimate[block], expected, rtol=1e-9, atol=1e-12)


def test_values_are_those_of_the_plain_run_to_the_bit() -> None:
    model, (clean, corrupted) = support.glass(), two()
    seen: list[Tensor] = []

    def metric(logits: Tensor, batch: Any) -> Tensor:
        seen.append(logits.detach())
        return logits[:, -1, 7]

    pl.attribution.gradient(model, clean, corrupted, "resid_pre", over=("layer",), metric=metric, rules="relp")
    logits = model(corrupted)
    assert any(given.shape == logits.shape and torch.equal(given, logits) for given in seen[2:])


def test_frozen_weights_and_more_steps() -> None:
    model, (clean, corrupted) = support.glass(dtype=torch.float64), two()
    about: dict[str, Any] = {"over": ("layer", "pos"), "metric": METRIC, "rules": "relp"}
    plain = pl.attribution.gradient(model, clean, corrupted, "resid_pre", **about)
    model.requires_grad_(False)
    again = pl.attribution.gradient(model, clean, corrupted, "resid_pre", **about)
    np.testing.assert_allclose(again, plain, rtol=1e-12)
    for along in ("node", "inputs"):
        found = pl.attribution.gradient(model, clean, corrupted, "resid_pre", steps=2, along=along, **about)
        assert bool(found.notnull().all())
        assert not np.allclose(found, plain)


def test_the_sum_over_heads_is_that_of_attention() -> None:
    """RelP adds up: all heads together are the layer's output, and neurons the MLP's."""
    model, (clean, corrupted) = support.glass(dtype=torch.float64), two()
    about: dict[str, Any] = {"metric": METRIC, "rules": "relp"}
    for parts, over, whole in (
        ("attn.ckpt_z", ("layer", "head"), "attn.ckpt_attn_out"),
        ("mlp.ckpt_post", ("layer", "neuron"), "mlp.ckpt_mlp_out"),
    ):
        each = pl.attribution.gradient(model, clean, corrupted, parts, over=over, **about).sum(over[1])
        np.testing.assert_allclose(
            each, pl.attribution.gradient(model, clean, corrupted, whole, over=("layer",), **about)
        )


@pytest.mark.parametrize("kind", ["_norm", "_activation", "_constant"])
def test_mutants_are_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {name: rule for name, rule in rules._RULES.items() if rule.__name__ != kind}
    monkeypatch.setattr(rules, "_RULES", left)
    with pytest.raises(AssertionError):
        test_relp_is_its_definition("gpt2", "resid_pre")


def call(here: Any, name: str, rules: str) -> Any:
    clean, corrupted = two()
    return pl.attribution.gradient(here, clean, corrupted, name, over=("layer",), metric=METRIC, rules=rules)  # pyright: ignore[reportArgumentType]


REMEDIES: dict[str, list[Case]] = {
    "gradient-rules": [
        *(
            Case(
                lambda h, name=name: call(h, name, "relp"), "rules='plain'", lambda h, name=name: call(h, name, "plain")
            )
            for name in ("attn.ckpt_pattern", "attn.ckpt_scores", "ln1.ckpt_scaled")
        ),
        Case(lambda h: call(h, "attn.ckpt_q", "relp"), "rules='atp'", lambda h: call(h, "attn.ckpt_q", "atp")),
        Case(lambda h: call(h, "resid_pre", "lrp"), "'relp'", lambda h: call(h, "resid_pre", "relp")),
    ],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies_are_followed(code: str, case: Case) -> None:
    follow(code, case, support.glass())
