"""Live Llamas that were changed after they were built: carried over to the bit, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import llamas
import pellucid as pl
import support

IDS = llamas.some_ids(2, 9)


def _head_with_bias(hf: Any) -> None:
    hf.lm_head.bias = nn.Parameter(torch.ones(61))


DIFFERS = "hf-differs-from-config"

REFUSED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "epsilon": (
        lambda hf: setattr(hf.model.layers[1].input_layernorm, "variance_epsilon", 0.5),
        DIFFERS, "layers.1.input_layernorm.variance_epsilon is 0.5",
    ),
    "scaling": (lambda hf: setattr(hf.model.layers[0].self_attn, "scaling", 1.0), DIFFERS, "scaling"),
    "groups": (
        lambda hf: setattr(hf.model.layers[0].self_attn, "num_key_value_groups", 2), DIFFERS, "num_key_value_groups",
    ),
    "layer number": (
        lambda hf: setattr(hf.model.layers[2].self_attn, "layer_idx", 1), DIFFERS, "layers.2.self_attn.layer_idx is 1",
    ),
    "later tokens": (lambda hf: setattr(hf.model.layers[0].self_attn, "is_causal", False), DIFFERS, "is_causal"),
    "activation": (lambda hf: setattr(hf.model.layers[0].mlp, "act_fn", nn.ReLU()), DIFFERS, "ReLU"),
    "frequencies": (lambda hf: hf.model.rotary_emb.inv_freq.mul_(0.5), DIFFERS, "other frequencies"),
    "rope type": (lambda hf: setattr(hf.model.rotary_emb, "rope_type", "linear"), DIFFERS, "frequencies"),
    "another norm": (lambda hf: hf.model.set_submodule("norm", nn.LayerNorm(24)), "hf-part", "norm is LayerNorm"),
    "a patched forward": (
        lambda hf: setattr(hf.model.layers[0].mlp, "forward", lambda x: x), "hf-patched-forward", "mlp",
    ),
    "a hook": (lambda hf: hf.model.layers[1].register_forward_hook(lambda m, a, out: out * 2), "hf-hooks", "layers.1"),
    "pruned": (
        lambda hf: prune.random_unstructured(hf.model.layers[0].mlp.up_proj, "weight", 0.5),
        "hf-computed-weight", "up_proj.weight",
    ),
    "quantised": (
        lambda hf: setattr(hf.model.norm, "weight", nn.Parameter(torch.ones(24, dtype=torch.int8), False)),
        "hf-tensors", "int8",
    ),
    "one module twice": (lambda hf: hf.model.layers.__setitem__(1, hf.model.layers[0]), "hf-shared", "layers.1"),
    "a bias of the head": (_head_with_bias, "hf-head", "without bias"),
    "sliding windows": (lambda hf: setattr(hf.config, "sliding_window", 4), "config-not-implemented", "sliding_window"),
    "a rope type": (
        lambda hf: hf.config.rope_parameters.update(rope_type="longrope"), "config-not-implemented", "longrope",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    change, code, said = REFUSED[case]
    hf = llamas.reference()
    change(hf)
    with pytest.raises(pl.PellucidError, match=said) as caught:
        pl.from_hf(hf)
    assert caught.value.code == code


def _with_bias_of_zeros(hf: Any) -> None:
    hf.lm_head.bias = nn.Parameter(torch.zeros(61))


CARRIED: dict[str, Callable[[Any], Any]] = {
    "fewer blocks": lambda hf: hf.model.__setattr__("layers", hf.model.layers[:2]),
    "fewer blocks by the configuration": lambda hf: setattr(hf.config, "num_hidden_layers", 2),
    "tied afterwards": lambda hf: setattr(hf.lm_head, "weight", hf.model.embed_tokens.weight),
    "more tokens": lambda hf: hf.resize_token_embeddings(70),
    "a head with a bias of zeros": _with_bias_of_zeros,
    "a configuration that says quantised": lambda hf: setattr(
        hf.config, "quantization_config", {"quant_method": "gguf"}
    ),
    "trains": lambda hf: hf.train(),
    "an id for pads": lambda hf: setattr(hf.config, "pad_token_id", 0),
}


@pytest.mark.parametrize("case", CARRIED)
def test_carried_over(case: str) -> None:
    hf = llamas.reference()
    CARRIED[case](hf)
    ours = pl.from_hf(hf)
    assert ours.training == hf.training
    with torch.no_grad():
        assert torch.equal(ours(IDS), hf(IDS).logits)
        assert torch.equal(pl.to_hf(ours)(IDS).logits, ours(IDS))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_agreement_notices_names_the_checkpoint(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants apart, both models run once: the first checkpoint at which they part is named."""
    monkeypatch.setattr("pellucid.weights.living.require_as_configured", lambda *_: None)
    if family == "llama":
        hf, where = llamas.reference(), "blocks.1.ln2.ckpt_normalized"
        hf.model.layers[1].post_attention_layernorm.variance_epsilon = 0.5
    else:
        hf, where = support.reference(), "blocks.1.ln2.ckpt_normalized"
        hf.transformer.h[1].ln_2.eps = 0.5
    with pytest.raises(pl.WeightsError, match=where) as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-computes-otherwise"
