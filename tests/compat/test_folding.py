"""Folded and centred weights: the same log-probabilities, each step as it is defined, the original untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import llamas
import pellucid as pl
import samples
import support
from following import Case, follow, params
from pellucid.errors import NumericsError

TEXTS = [[3, 4, 5, 6, 7, 8], [9, 10, 11]]
STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
REFACTORED = "refactor_factored_attn_matrices"
MODELS: dict[str, Callable[..., pl.CkptedTransformer]] = {
    "gpt2": support.glass,
    "untied": lambda **fields: support.glass(tie_word_embeddings=False, **fields),
    "llama": llamas.glass,
    "neox": lambda **fields: samples.glass("gpt_neox", **fields),
    "neox, attention before the MLP": lambda **fields: samples.glass("gpt_neox", use_parallel_residual=False, **fields),
    "llama with biases": lambda **fields: llamas.glass(attention_bias=True, mlp_bias=True, **fields),
}


def only(*steps: str) -> dict[str, bool]:
    return {step: step in steps for step in STEPS}


SEPARATE = ("untied", "llama with biases")
"""Models of which every run tries each step alone; of the others `make test-all` does."""


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        pytest.param(name, steps, id=f"{name}-{'+'.join(steps)}", marks=[pytest.mark.long] if left else [])
        for name in MODELS
        for steps in (STEPS, *((step,) for step in STEPS))
        for left in (steps != STEPS and name not in SEPARATE,)
    ],
)
def test_every_step_leaves_the_log_probabilities(name: str, steps: tuple[str, ...]) -> None:
    model = MODELS[name](dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = pl.fold(model, **only(*steps))
    assert folded.prove(TEXTS) < 1e-10
    batch = model.tokenize(TEXTS)
    with torch.no_grad():
        expected = model(batch).log_softmax(-1)
    found = folded.logits(batch).log_softmax(-1)
    torch.testing.assert_close(found[batch.mask], expected[batch.mask], atol=1e-10, rtol=0)
    assert folded.steps == steps
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_eager_attention_whose_softmax_is_in_float32(family: str) -> None:
    """Its rows do not sum to one, so values' biases would not fold; the proof attends in float64."""
    model = samples.glass(family, attention="eager", dtype=torch.float64, attention_bias=True)
    folded = pl.fold(model)
    assert folded.prove(TEXTS) < 1e-10
    assert folded.model.execution.attention == "eager"


def test_a_model_in_float32_gets_the_weights_of_float64_rounded(glass: pl.CkptedTransformer) -> None:
    folded = pl.fold(glass)
    exact = pl.fold(support.glass(dtype=torch.float64))
    assert folded.model.dtype == torch.float32
    assert torch.equal(folded["blocks.1.attn.W_Q"], exact["blocks.1.attn.W_Q"].float())
    assert torch.equal(folded["unembed.b_U"], exact["unembed.b_U"].float())


def test_norms_are_plain_and_what_reads_them_is_centred(glass64: pl.CkptedTransformer) -> None:
    """The values behind each norm are those before its gain, and W^T of the mean is nothing."""
    folded = pl.fold(glass64, **only("fold_ln"))
    for norm in ("blocks.0.ln1", "blocks.2.ln2", "ln_final"):
        assert torch.equal(folded[f"{norm}.w"], torch.ones(48, dtype=torch.float64)), norm
        assert not folded[f"{norm}.b"].any(), norm
    gain, bias = glass64.parameter("blocks.1.ln1.w"), glass64.parameter("blocks.1.ln1.b")
    for letter in "QKV":
        own = glass64.parameter(f"blocks.1.attn.W_{letter}")
        scaled = own * gain[:, None]
        torch.testing.assert_close(folded[f"blocks.1.attn.W_{letter}"], scaled - scaled.mean(-2, keepdim=True))
        expected = glass64.parameter(f"blocks.1.attn.b_{letter}") + torch.einsum("d,hdk->hk", bias, own)
        torch.testing.assert_close(folded[f"blocks.1.attn.b_{letter}"], expected)
    head = glass64.unembed.W_U
    torch.testing.assert_close(folded["unembed.b_U"], glass64.parameter("ln_final.b") @ head)
    _, plain = glass64.run_with_ckpts(TEXTS[:1])
    _, after = folded.model.run_with_ckpts(TEXTS[:1])
    torch.testing.assert_close(after["blocks.1.ln1.ckpt_normalized"], plain["blocks.1.ln1.ckpt_scaled"])
    torch.testing.assert_close(after["blocks.1.attn.ckpt_q"], plain["blocks.1.attn.ckpt_q"])


def test_what_is_written_is_centred(glass64: pl.CkptedTransformer) -> None:
    folded = pl.fold(glass64, **only("center_writing_weights"))
    _, plain = glass64.run_with_ckpts(TEXTS[:1])
    _, after = folded.model.run_with_ckpts(TEXTS[:1])
    for name in ("ckpt_embed", "ckpt_pos_embed", "blocks.1.attn.ckpt_attn_out", "blocks.2.mlp.ckpt_mlp_out"):
        torch.testing.assert_close(after[name], plain[name] - plain[name].mean(-1, keepdim=True), atol=1e-12, rtol=0)
    assert torch.equal(folded["unembed.W_U"], glass64.unembed.W_U)


def test_the_head_is_centred_over_the_vocabulary(glass64: pl.CkptedTransformer) -> None:
    folded = pl.fold(glass64, **only("center_unembed"))
    assert folded["unembed.W_U"].mean(-1).abs().max() < 1e-14
    assert torch.equal(folded["embed.W_E"], glass64.embed.W_E)
    logits = glass64(TEXTS[:1])
    torch.testing.assert_close(folded.logits(TEXTS[:1]), logits - logits.mean(-1, keepdim=True), atol=1e-10, rtol=0)


def test_values_lose_their_biases_and_attention_adds_the_same(glass64: pl.CkptedTransformer) -> None:
    folded = pl.fold(glass64, **only("fold_value_biases"))
    assert not folded["blocks.0.attn.b_V"].any()
    _, plain = glass64.run_with_ckpts(TEXTS[:1])
    _, after = folded.model.run_with_ckpts(TEXTS[:1])
    torch.testing.assert_close(after["blocks.0.attn.ckpt_attn_out"], plain["blocks.0.attn.ckpt_attn_out"])


@pytest.mark.parametrize("changed", ["the original", "the folded one", "its bias"])
def test_a_proof_fails_for_what_was_changed_since(changed: str) -> None:
    model = support.glass(dtype=torch.float64)
    folded = pl.fold(model)
    tensor: Tensor = {"the original": model.blocks[1].mlp.W_in, "its bias": folded.b_U}.get(
        changed, folded.model.blocks[1].mlp.W_in
    )
    with torch.no_grad():
        tensor[..., 3] += 1e-6
    with pytest.raises(NumericsError, match="was changed since") as error:
        folded.prove(TEXTS)
    assert error.value.code == "folding-differs"


def test_what_is_handed_out_is_a_copy(glass64: pl.CkptedTransformer) -> None:
    folded = pl.fold(glass64)
    folded["embed.W_E"].zero_()
    assert folded.prove(TEXTS) < 1e-10


def _proved(model: pl.CkptedTransformer, **steps: Any) -> Any:
    return pl.fold(model, **steps).prove(TEXTS)


def _changed(model: pl.CkptedTransformer) -> pl.Folded:
    folded = pl.fold(model)
    with torch.no_grad():
        model.blocks[0].attn.b_O[0] += 1e-3
    return folded


@pytest.mark.parametrize("steps", [(), STEPS], ids="+".join)
def test_refactored_heads_have_the_same_scores_and_outputs(
    steps: tuple[str, ...], glass64: pl.CkptedTransformer
) -> None:
    folded = pl.fold(glass64, **only(*steps), refactor_factored_attn_matrices=True)
    assert folded.prove(TEXTS) < 1e-10
    before = pl.fold(glass64, **only(*steps)).model.run_with_ckpts(TEXTS[:1])[1]
    after = folded.model.run_with_ckpts(TEXTS[:1])[1]
    for name in ("blocks.1.attn.ckpt_scores", "blocks.1.attn.ckpt_attn_out"):
        torch.testing.assert_close(after[name], before[name], atol=1e-10, rtol=0)
    values, outputs = folded["blocks.2.attn.W_V"], folded["blocks.2.attn.W_O"]
    eye = torch.eye(12, dtype=torch.float64).expand(4, 12, 12)
    torch.testing.assert_close(values.mT @ values, eye, atol=1e-12, rtol=0)
    squares = outputs @ outputs.mT
    torch.testing.assert_close(squares, squares.diagonal(dim1=1, dim2=2).diag_embed(), atol=1e-12, rtol=0)
    queries, keys = folded["blocks.2.attn.W_Q"], folded["blocks.2.attn.W_K"]
    own = [
        torch.cat([w, folded[f"blocks.2.attn.b_{letter}"][:, None]], 1) for w, letter in ((queries, "Q"), (keys, "K"))
    ]
    torch.testing.assert_close(own[0].mT @ own[0], own[1].mT @ own[1], atol=1e-12, rtol=0)


def broken() -> pl.CkptedTransformer:
    model = support.glass()
    with torch.no_grad():
        model.blocks[1].mlp.b_out[3] = torch.nan
    return model


REMEDIES: dict[str, list[Case]] = {
    "not-finite": [Case(lambda model: pl.fold(broken()), "finite", pl.fold)],
    "folding-differs": [
        Case(lambda model: _changed(model).prove(TEXTS), "pl.fold(model)", _proved),
    ],
    "folding-without-bias": [
        Case(
            lambda model: pl.fold(samples.glass("gpt_neox", attention_bias=False)),
            "fold_ln=False",
            lambda model: pl.fold(samples.glass("gpt_neox", attention_bias=False), fold_ln=False),
        ),
    ],
    "folding-rotated": [
        Case(
            lambda model: pl.fold(llamas.glass(), refactor_factored_attn_matrices=True),
            "=False",
            lambda model: pl.fold(llamas.glass(), refactor_factored_attn_matrices=False),
        ),
    ],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies(code: str, case: Case) -> None:
    follow(code, case, support.glass(dtype=torch.float64))
