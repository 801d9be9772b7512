"""Causes in other families: transformers' own classes with one thing changed are named, and right ones not accused."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gpt_neox import modeling_gpt_neox

import pellucid as pl
import samples
import support
from pellucid.family import common_mistakes
from pellucid.family.families import Span
from pellucid.llama.mistakes import mistakes
from pellucid.prove import causes, rewritten

IDS = samples.some_ids(2, 7)
Change = Callable[[Any], None]


Pair = tuple[pl.CkptedTransformer, Any]


@functools.cache
def pair(family: str, blocks: int) -> Pair:
    """Ours and transformers'; read by all, changed by none."""
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    return samples.pair(family, num_hidden_layers=blocks, **biases)


@pytest.fixture
def llamas() -> Pair:
    return pair("llama", 2)


@pytest.fixture
def neoxes() -> Pair:
    return pair("gpt_neox", 2)


def cause(ours: pl.CkptedTransformer, right: Any, change: Change) -> str:
    made = copy.deepcopy(right)
    change(made)
    report = pl.compare(ours, made, IDS)
    assert report.verdict == "different", report
    assert report.first_divergence is not None
    return report.first_divergence.cause or ""


def layers(made: Any) -> Any:
    return made.model.layers if hasattr(made, "model") else made.gpt_neox.layers


def each(change: Change) -> Change:
    """The same in every block."""
    return lambda made: [change(layer) for layer in layers(made)] and None


def unbiased(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, given, out: out - module.bias)


def scaled(factor: float) -> Change:
    return lambda layer: setattr(attention(layer), "scaling", factor)


def attention(layer: Any) -> Any:
    return layer.self_attn if hasattr(layer, "self_attn") else layer.attention


def around(change: Callable[[Tensor], Tensor]) -> Change:
    return lambda made: (
        made.register_forward_hook(lambda module, given, out: out.__class__(logits=change(out.logits))) and None
    )


LLAMAS: dict[str, Change] = {
    "no bias on W_out": each(lambda layer: unbiased(layer.mlp.down_proj)),
    "no bias on v": each(lambda layer: unbiased(layer.self_attn.v_proj)),
    "no bias on the output projection": each(lambda layer: unbiased(layer.self_attn.o_proj)),
    "no scaling of the scores": each(scaled(1.0)),
    "1/d_head instead of 1/sqrt(d_head), in block 1 only": lambda made: scaled(0.1)(layers(made)[1]),
    "activation function gelu instead of silu": each(lambda layer: setattr(layer.mlp, "act_fn", nn.GELU())),
    "logits capped softly at 30": around(lambda logits: 30 * (logits / 30).tanh()),
    "token embeddings multiplied by sqrt(d_model)": lambda made: made.model.embed_tokens.register_forward_hook(
        lambda module, given, out: out * 24**0.5
    ) and None,
    "blocks applied from the last to the first": lambda made: setattr(
        made.model, "layers", nn.ModuleList(list(made.model.layers)[::-1])
    ),
    "ln1 and ln2 are swapped": each(lambda layer: layer._modules.update(
        input_layernorm=layer.post_attention_layernorm, post_attention_layernorm=layer.input_layernorm)),
}  # fmt: skip

NEOXES: dict[str, Change] = {
    "the MLP reads what attention added, in sequence": each(
        lambda layer: setattr(layer, "use_parallel_residual", False)
    ),
    "ln1 and ln2 are swapped": each(lambda layer: layer._modules.update(
        input_layernorm=layer.post_attention_layernorm, post_attention_layernorm=layer.input_layernorm)),
    "activation function gelu_new instead of gelu": each(
        lambda layer: setattr(layer.mlp, "act", nn.GELU(approximate="tanh"))
    ),
    "no bias on W_in": each(lambda layer: unbiased(layer.mlp.dense_h_to_4h)),
    "scores multiplied by sqrt(d_head)": each(scaled(4.0)),
    "epsilon 1e-06 instead of 1e-05": lambda made: [
        setattr(module, "eps", 1e-6) for module in made.modules() if isinstance(module, nn.LayerNorm)
    ] and None,
    "logits divided by sqrt(d_model)": around(lambda logits: logits / 48**0.5),
}  # fmt: skip


def test_right_ones_are_not_accused(llamas: Any, neoxes: Any) -> None:
    for ours, right in (llamas, neoxes):
        assert pl.compare(ours, right, IDS).verdict == "identical"


QUICK = (
    "1/d_head instead of 1/sqrt(d_head), in block 1 only", "token embeddings multiplied by sqrt(d_model)",
    "blocks applied from the last to the first", "ln1 and ln2 are swapped", "scores multiplied by sqrt(d_head)",
    "epsilon 1e-06 instead of 1e-05", "logits divided by sqrt(d_model)",
)  # fmt: skip
"""Causes that test_bare.py does not tell of some family, or that only blocks tell; one family meets each."""


@pytest.mark.parametrize("words", support.few_of(LLAMAS, *QUICK))
def test_a_wrong_llama(words: str) -> None:
    """In one block, unless blocks are what the mistake is about."""
    assert words in cause(*pair("llama", 1 + ("block" in words)), LLAMAS[words])


@pytest.mark.parametrize("words", support.few_of(NEOXES, *set(QUICK) - {*LLAMAS}))
def test_a_wrong_neox(words: str) -> None:
    assert words in cause(*pair("gpt_neox", 1), NEOXES[words])


right_half = modeling_gpt_neox.rotate_half


@pytest.mark.parametrize(
    ("words", "turn"),
    [
        ("turned the other way round", lambda x: -right_half(x)),
        ("no rotation of queries and keys", None),
    ],
)
def test_a_neox_that_turns_otherwise(words: str, turn: Any, neoxes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if turn is None:
        monkeypatch.setattr(modeling_gpt_neox, "apply_rotary_pos_emb", lambda q, k, *given, **named: (q, k))
    else:
        monkeypatch.setattr(modeling_gpt_neox, "rotate_half", turn)
    assert words in cause(*neoxes, lambda made: None)


def test_a_share_of_the_head_that_turns(neoxes: Any) -> None:
    """All the same parameters, in a model that turns whole heads."""
    _, whole = samples.pair("gpt_neox", num_hidden_layers=2, rotary_pct=1.0)
    whole.load_state_dict(neoxes[1].state_dict())
    assert "16 entries of each head turn instead of 4" in cause(neoxes[0], whole, lambda made: None)


def test_what_nobody_knows_has_no_cause() -> None:
    for ours, right in (pair("llama", 1), pair("gpt_neox", 1)):
        odd = each(lambda layer: layer.mlp.register_forward_hook(lambda module, given, out: out * 1.0625) and None)
        assert cause(ours, right, odd) == ""


def test_each_mistake_finds_the_reference_as_it_was(llamas: Any) -> None:
    ours = llamas[0]
    scratch, span = rewritten.Scratch(ours), Span(IDS)
    for change in mistakes(ours):
        with contextlib.suppress(RuntimeError):  # impossible in these sizes
            rewritten.suspect_of(change, scratch).run(span, True)
    with scratch.taken() as made, torch.no_grad():
        assert torch.equal(made(IDS), ours(IDS))
        assert not any(module._forward_pre_hooks for module in made.modules())


@pytest.mark.parametrize(
    "name", support.few_of(["every change is right", "inputs are not kept", "any cause will do"], "any cause will do")
)
def test_mutants_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: dict[str, tuple[Any, str, Any, str]] = {
        "every change is right": (common_mistakes, "replaced", lambda *_: None, "logits divided by sqrt(d_model)"),
        "inputs are not kept": (rewritten, "_keeping", lambda entered, name: lambda module, given: None,
                                "the MLP reads what attention added, in sequence"),
        "any cause will do": (causes.Trials, "outcome", lambda self, suspect: (causes.Cause("any", "all"), 0.0),
                               "no bias on W_in"),
    }  # fmt: skip
    where, attribute, value, words = broken[name]
    monkeypatch.setattr(where, attribute, value)
    with pytest.raises(AssertionError):
        test_a_wrong_neox(words)
