"""Another family: transformers' Llama, rewrites of it in plain torch, and learners' with one mistake."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_rights import MISTAKES, PlainLlama

import llamas
import pellucid as pl
import support
from pellucid.llama.family import LLAMA
from pellucid.prove import comparison, probes

IDS = llamas.some_ids(2, 7)


@pytest.fixture(scope="module")
def pair() -> tuple[pl.CkptedTransformer, Any]:
    return llamas.pair(num_hidden_layers=2)


@pytest.fixture(scope="module")
def alone() -> pl.CkptedTransformer:
    """Of one block, which is enough where blocks do not matter."""
    return llamas.glass(num_hidden_layers=1)


@pytest.fixture(scope="module")
def ours(pair: tuple[pl.CkptedTransformer, Any]) -> pl.CkptedTransformer:
    return pair[0]


def test_transformers_class_is_identical(pair: tuple[pl.CkptedTransformer, Any]) -> None:
    ours, hf = pair
    assert pl.compare(hf, ours, IDS).verdict == "identical"
    report = pl.compare(ours, hf, IDS)
    assert report.verdict == "identical", report
    unseen = {"ln1.ckpt_scaled", "attn.ckpt_rot_q", "attn.ckpt_rot_k", "attn.ckpt_scores", "attn.ckpt_pattern",
              "ln2.ckpt_scaled", "ln_final.ckpt_scaled"}  # fmt: skip
    assert {kind for kind, (covered, _) in report.coverage.items() if not covered} == unseen
    assert all(size is not None and size < 1e-6 for size in report.sensitivity.values())
    assert "mlp.ckpt_gate" in report.page().render()


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"rope_parameters": llamas.LLAMA3},
        {"num_key_value_heads": 6}, {"num_hidden_layers": 0}, {"headless": True, "tie_word_embeddings": True},
    ],
)  # fmt: skip
def test_transformers_class_in_other_configurations(fields: dict[str, Any]) -> None:
    ours, hf = llamas.pair(**{"num_hidden_layers": 1, **fields})
    assert pl.compare(ours, hf, IDS).verdict == "identical"


@pytest.mark.parametrize(
    ("fused", "kept"),
    [
        (False, ""),
        (True, "frequencies"),
        (False, "tables"),
        (True, "complex"),
        (False, "from 2"),
        (True, "angles"),
        (False, "by name"),
    ],
)
def test_a_rewrite_is_not_accused(fused: bool, kept: str, alone: pl.CkptedTransformer) -> None:
    """Frequencies, or cosines and sines, that are kept in float32 are rounded; nobody is accused of it.

    Positions may count from another number than 0, as rotations show no more than how far two tokens are apart.
    """
    report = pl.compare(alone, PlainLlama(alone, fused=fused, kept=kept), IDS)
    assert report.verdict == "equivalent", report
    assert all(row.fp64 is not None and row.fp64 < 1e-10 for row in report.checkpoints), report
    assert report.coverage["attn.ckpt_k"] == report.coverage["mlp.ckpt_up"] == (1, 1)


def test_a_mistake_behind_a_probe_beside_frequencies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rounding in the frequencies ends no search of a long text."""
    monkeypatch.setattr(probes, "PRODUCTS", 0)
    long = llamas.glass(num_hidden_layers=1, max_position_embeddings=160)
    made = PlainLlama(long, kept="frequencies")
    report = pl.compare(long, made, IDS)
    assert report.verdict == "equivalent", report
    made.steps[0]["attention"].register_forward_hook(
        lambda module, given, out: out + 0.1 * (torch.arange(out.size(1)) > 120)[:, None]
    )
    found = pl.compare(long, made, IDS).first_divergence
    assert found is not None
    assert "shown on a probe of 1 x 122 ids" in found.detail


CAUSES = {
    "interleaved": "pairs interleaved",
    "eps 1e-5": "epsilon 1e-05 instead of 1e-06",
    "mean taken off": "the mean is taken off",
    "gate and up exchanged": "gate and up-projection exchanged",
    "groups repeated": "shared heads repeated as a whole",
    "no rotation of k": "no rotation of keys",
    "theta": "rotary base 500 instead of 10000",
    "gelu": "activation function gelu instead of silu",
}
"""Mistake -> what the report says of its cause."""


WAYS = {"everywhere": (False, None, ""), "in block 1": (True, 1, "tables")}


@pytest.mark.parametrize(
    ("wrong", "way"),
    support.few_of(
        itertools.product(MISTAKES, WAYS),
        ("eps 1e-5", "everywhere"), ("gelu", "everywhere"), ("interleaved", "in block 1"),
    ),
)  # fmt: skip
def test_a_mistake_is_placed_and_named(wrong: str, way: str, ours: pl.CkptedTransformer) -> None:
    """The causes themselves are told in test_bare.py, too."""
    fused, only, kept = WAYS[way]
    report = pl.compare(ours, PlainLlama(ours, wrong, fused=fused, only=only, kept=kept), IDS)
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    assert report.first_divergence.where == f"blocks.{only or 0}.{MISTAKES[wrong]}"
    named = report.first_divergence.cause or ""
    assert CAUSES[wrong] in named, report
    assert "the logits agree too" in named
    assert ("in block 1 only" in named) == (only == 1)


def test_grouped_heads_that_differ_are_named(ours: pl.CkptedTransformer) -> None:
    made = PlainLlama(ours)
    made.steps[1]["attention"].keys.register_forward_hook(
        lambda module, given, out: out + torch.nn.functional.one_hot(torch.tensor(13), 20)  # of the second of two heads
    )
    found = pl.compare(ours, made, IDS).first_divergence
    assert found is not None
    assert (found.where, found.heads) == ("blocks.1.attn.ckpt_k", (1,))


def test_an_alignment_of_grouped_heads_converts(ours: pl.CkptedTransformer, tmp_path: Path) -> None:
    """Queries, keys and values in one matrix, although they have other numbers of heads."""
    made, other = PlainLlama(ours, fused=True), llamas.glass(num_hidden_layers=2, seed=3)
    pl.compare(ours, made, IDS).alignment.save(tmp_path / "alignment.json")
    alignment = pl.Alignment.load(tmp_path / "alignment.json")
    assert alignment.bit_equal
    made.load_state_dict({**made.state_dict(), **alignment.convert(other)})
    assert pl.compare(other, made, IDS).verdict == "equivalent"
    assert not alignment.check(ours, made).bit_equal
    with torch.no_grad():
        made.steps[1]["attention"].qkv.weight[65, 2] += 1e-3  # 60 rows are of queries, and 20 of keys
    found = pl.compare(other, made, IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.1.attn.W_K"


def test_state_dicts(pair: tuple[pl.CkptedTransformer, Any]) -> None:
    ours, hf = pair
    assert pl.compare(ours.state_dict(), hf.state_dict()).verdict == "identical"
    assert pl.compare(ours, hf.state_dict(), IDS).verdict == "identical"
    assert pl.compare(PlainLlama(ours).state_dict(), hf.state_dict()).verdict == "identical"
    changed = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    changed["model.layers.1.mlp.gate_proj.weight"][3, 2] += 1e-3
    for side in (ours, ours.state_dict()):
        found = pl.compare(side, changed, IDS).first_divergence
        assert found is not None
        assert found.where == "blocks.1.mlp.W_gate"


def test_constants_that_are_not_adopted_are_noticed(
    alone: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        comparison, "family_of", lambda config: replace(LLAMA, adopt=None, mistakes=None, suspects=None)
    )
    for kept in ("", "tables"):
        with pytest.raises(AssertionError):
            test_a_rewrite_is_not_accused(False, kept, alone)
