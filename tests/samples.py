"""A small model of each family, for tests that run over all: odd sizes, and weights in which every parameter matters.

A new family is a line of `SAMPLES`.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.family.families import FAMILIES, Family

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
"""Frequencies as Llama 3 has them, at a scale at which some pairs are slowed, some not, and some in between."""

_ROTATIONS: dict[str, dict[str, Any]] = {
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.7}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 1.1, "rope_theta": 777.0}},
    "llama3": {"rope_parameters": LLAMA3},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0,
                                 "original_max_position_embeddings": 16}},
}  # fmt: skip

_ODD_LLAMAS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "as many keys as queries": {"num_key_value_heads": 6},
    "one head of keys": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "heads of D / H": {"head_dim": None},
    "heads too wide for the kernel": {"head_dim": 258, "num_attention_heads": 4},
    "heads of width two": {"head_dim": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases of attention": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "no layer": {"num_hidden_layers": 0},
    "one layer, narrow": {"num_hidden_layers": 1, "intermediate_size": 1},
    "large epsilon": {"rms_norm_eps": 0.3},
    "another activation": {"hidden_act": "gelu_new"},
    "an id for pads": {"pad_token_id": 0, "eos_token_id": [1, 2]},
    **_ROTATIONS,
}

_ODD_NEOXES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "attention before the MLP": {"use_parallel_residual": False},
    "whole heads turn": {"rotary_pct": 1.0},
    "nothing turns": {"rotary_pct": 0.0},
    "an odd width turns": {"rotary_pct": 0.32},
    "an odd width": {"hidden_size": 21, "num_attention_heads": 3},
    "no biases of attention": {"attention_bias": False, "use_parallel_residual": False},
    "tied": {"tie_word_embeddings": True},
    "no layer": {"num_hidden_layers": 0},
    "one layer, narrow": {"num_hidden_layers": 1, "intermediate_size": 1},
    "one head": {"num_attention_heads": 1},
    "large epsilon": {"layer_norm_eps": 0.3},
    "another activation": {"hidden_act": "gelu_new"},
    "an id for pads": {"pad_token_id": 0, "eos_token_id": [1, 2]},
    "an older file's base": {"rotary_emb_base": 77, "rotary_pct": 0.75},
    **_ROTATIONS,
}


class Sample(NamedTuple):
    """What the tests run of a family.

    Attributes:
        sizes: Fields of its configuration.
        odd: What a configuration changes -> fields.
        dropout: Fields that make it drop values in training.
    """

    sizes: dict[str, Any]
    odd: dict[str, dict[str, Any]]
    dropout: dict[str, Any]


_SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 41, "num_hidden_layers": 3, "max_position_embeddings": 64,
}  # fmt: skip

SAMPLES = {
    "gpt2": Sample(
        {**support.SIZES, "vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2},
        {"as it is": {}, "untied": {"tie_word_embeddings": False}}, {},
    ),
    "llama": Sample(
        # three queries share a head, and heads are wider than D / H
        {**_SIZES, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}, _ODD_LLAMAS,
        {"attention_dropout": 0.3},
    ),
    "gpt_neox": Sample(
        {**_SIZES, "hidden_size": 48, "num_attention_heads": 3}, _ODD_NEOXES,
        {"attention_dropout": 0.3, "hidden_dropout": 0.2},
    ),
}  # fmt: skip

VOCABULARY = 61


def family_named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which no mistake hides: random gains and biases, sharp attention, logits apart. In place."""
    if type(model).__name__.startswith("GPT2"):
        return support.spread(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                mean, std = (0.0, 0.2) if name.endswith("bias") else (1.0, 0.3)
            elif "embed_" in name or "lm_head" in name:
                mean, std = 0.0, 0.5
            else:
                mean, std = 0.0, 1.8 / parameter.shape[1] ** 0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(mean, std, generator=generator))
    return model


def reference(
    family: str,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    headless: bool = False,
    seed: int = 0,
    **fields: Any,
) -> Any:
    """A small evaluating model of transformers."""
    import transformers

    here = family_named(family).in_transformers
    given = copy.deepcopy({**SAMPLES[family].sizes, **fields})  # transformers writes into mappings
    config = getattr(transformers, here.config)(**given, attn_implementation=attention)
    return spread(getattr(transformers, here.base if headless else here.model)(config), seed).eval().to(dtype)


def foreign_configs() -> list[tuple[Any, Any]]:
    """Of each family, the class of its configurations and one of transformers'."""
    import transformers

    return [
        (one.config, getattr(transformers, one.in_transformers.config)(**copy.deepcopy(SAMPLES[one.name].sizes)))
        for one in FAMILIES
    ]


def pair(family: str, *, attention: str = "sdpa", **fields: Any) -> tuple[pl.CkptedTransformer, Any]:
    """Ours and transformers' with the same weights, both running attention the same way."""
    hf = reference(family, attention=attention, **fields)
    return pl.from_hf(hf), hf


def glass(
    family: str, *, dtype: torch.dtype = torch.float32, attention: str = "auto", **fields: Any
) -> pl.CkptedTransformer:
    """A small evaluating model of ours."""
    return pl.from_hf(reference(family, dtype=dtype, **fields), attention=attention)


@functools.cache
def shared(family: str, dtype: torch.dtype = torch.float32) -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return glass(family, dtype=dtype)


def some_ids(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random ids [rows, columns], without those that begin, end or fill up texts."""
    return torch.randint(3, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def ragged_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random rows of these lengths."""
    return [some_ids(1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def reference_values(hf: Any, batch: pl.Batch, *, eager: bool) -> dict[str, Tensor]:
    """What transformers computes, under our names; called as its users call it, with the cache on."""
    padded = {"attention_mask": batch.mask.long(), "position_ids": batch.positions} if batch.padded else {}
    out = hf(batch.ids, output_hidden_states=True, output_attentions=eager, **padded)
    values = {f"blocks.{i}.resid_pre": state for i, state in enumerate(out.hidden_states[:-1])}
    if out.hidden_states:
        values["ln_final.ckpt_normalized"] = out.hidden_states[-1]
    headless = not hasattr(out, "logits")
    embedding = hf.get_input_embeddings().weight
    values["logits"] = nn.functional.linear(out[0], embedding) if headless else out.logits
    key = "ckpt_k" if type(hf).__name__.startswith("GPT2") else "ckpt_rot_k"
    for i, layer in enumerate(out[support.CACHE_WORD].layers):
        values[f"blocks.{i}.attn.{key}"] = layer.keys.transpose(1, 2)
        values[f"blocks.{i}.attn.ckpt_v"] = layer.values.transpose(1, 2)
        if eager and not hf.training:  # while training, its attentions are those after dropout
            values[f"blocks.{i}.attn.ckpt_pattern"] = out.attentions[i]
    return values
