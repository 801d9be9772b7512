"""Configurations of GPT-NeoX: read as transformers reads them, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig as TheirConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

import pellucid as pl
import samples
from pellucid.family.rotary import Rotary
from pellucid.neox import MLP, GPTNeoXConfig, TransformerBlock

SIZES = samples.SAMPLES["gpt_neox"].sizes

WORKING: dict[str, Any] = {
    "vocab_size": 7, "hidden_size": 36, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 4,
    "hidden_act": "relu", "attention_dropout": 0.5, "hidden_dropout": 0.25, "max_position_embeddings": 9,
    "initializer_range": 0.5, "layer_norm_eps": 0.5, "bos_token_id": 5, "eos_token_id": [2, 3], "pad_token_id": 4,
    "tie_word_embeddings": True, "use_parallel_residual": False, "attention_bias": False,
    "rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2, "rope_theta": 9.0},
}  # fmt: skip
"""Every declared field, with a value that is not the default."""


def test_every_declared_field_is_read_and_written() -> None:
    assert set(WORKING) == {f.name for f in dataclasses.fields(GPTNeoXConfig)} - {"neutral"}
    plain = GPTNeoXConfig.from_dict(SIZES)
    for name, value in WORKING.items():
        config = GPTNeoXConfig.from_dict({**SIZES, name: value})
        assert config.to_dict()[name] == value, name
        assert getattr(config, name) != getattr(plain, name), name
        assert GPTNeoXConfig.from_dict(json.loads(config.to_json())) == config
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = GPTNeoXConfig.from_dict(SIZES), TheirConfig(**SIZES)
    for name in WORKING:
        assert ours.to_dict()[name] == getattr(theirs, name), name


ROTATIONS: dict[str, dict[str, Any]] = {
    **{name: fields for name, fields in samples.SAMPLES["gpt_neox"].odd.items() if "rot" in str(fields)},
    "Pythia's": {"rotary_pct": 0.25, "rotary_emb_base": 10000},
    "null": {"rope_scaling": None, "rotary_emb_base": 500.0},
    "in the place of what is beside": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rotary_pct": 0.5},
    "before what is beside": {"rope_parameters": {"rope_theta": 9.0, "partial_rotary_factor": 1.0}, "rotary_pct": 0.5,
                              "rotary_emb_base": 5},
    "fields of other families, which change nothing": {"rope_theta": 5.0, "partial_rotary_factor": 0.5},
    "the width that heads have": {"head_dim": 16},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ROTATIONS)
def test_rotations_are_transformers(case: str) -> None:
    given = {**SIZES, **copy.deepcopy(ROTATIONS[case])}
    theirs = GPTNeoXRotaryEmbedding(TheirConfig(**copy.deepcopy(given)))
    config = GPTNeoXConfig.from_dict(given)
    ours = Rotary(config.rule)
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling
    positions = torch.arange(64)[None]
    for dtype in (torch.float32, torch.bfloat16):
        both = [*zip(ours(positions, dtype), theirs(torch.zeros(1, dtype=dtype), positions), strict=True)]
        assert all(torch.equal(a, b) for a, b in both)
        assert both[0][0].size(-1) == config.sizes["d_rot"]
    assert GPTNeoXConfig.from_dict(TheirConfig(**copy.deepcopy(given)).to_dict()).rule == config.rule


def test_a_part_of_rotary_positions_is_replaced_alone() -> None:
    """Under older files' names, which are Pythia's; `rope_parameters` counts before them, as in a file."""
    file = {**SIZES, "rotary_pct": 0.5, "rotary_emb_base": 77.0}
    for given, part, base in (
        ({"rotary_pct": 1.0}, 1.0, 77.0), ({"rotary_emb_base": 5}, 0.5, 5), ({"rotary_pct": None}, 0.5, 77.0),
        ({"rotary_pct": 1.0, "rope_parameters": {"rope_theta": 9.0}}, 1.0, 9.0),
    ):  # fmt: skip
        for config in (GPTNeoXConfig.from_dict(file).override(**given), GPTNeoXConfig.changed(file, given)):
            assert config.rope_parameters["partial_rotary_factor"] == part, given
            assert config.rope_parameters["rope_theta"] == base, given
    scaled = GPTNeoXConfig.from_dict(file).override(rope_scaling={"type": "linear", "factor": 2.0})
    assert scaled.rope_parameters == {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 77.0, "partial_rotary_factor": 0.5,
    }  # fmt: skip
    with pytest.raises(pl.ConfigError, match="no field 'rope_theta'"):
        GPTNeoXConfig.from_dict(file).override(rope_theta=5.0)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "longrope": ({"rope_scaling": {"type": "longrope"}}, "config-not-implemented", "longrope"),
    "more than a head turns": ({"rotary_pct": 1.5}, "config-heads-do-not-divide", "partial_rotary_factor=1.5"),
    "a pair across the end": ({"hidden_size": 21, "rotary_pct": 1.0}, "config-heads-do-not-divide", "width 7"),
    "less than nothing turns": ({"rotary_pct": -0.5}, "config-out-of-range", "partial_rotary_factor"),
    "a part of text": ({"rotary_pct": "half"}, "config-wrong-type", "partial_rotary_factor"),
    "a base that grows without end": (
        {"rotary_pct": 0.125, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        "config-not-implemented", "'dynamic' cannot turn 2",
    ),
    "yarn of half a pair": (
        {"rotary_pct": 0.32, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "config-not-implemented", "'yarn' cannot turn 5",
    ),
    "heads do not divide": ({"num_attention_heads": 5}, "config-heads-do-not-divide", "num_attention_heads"),
    "heads of another width": ({"head_dim": 8}, "config-not-implemented", "head_dim"),
    "activation": ({"hidden_act": "prelu"}, "config-activation", "prelu"),
    "another word for parallel": ({"parallel_attn": True}, "config-not-implemented", "use_parallel_residual"),
    "a gated MLP": ({"gated_mlp": True}, "config-not-implemented", "gated"),
    "RMSNorm": ({"norm_type": "rmsnorm"}, "config-not-implemented", "LayerNorm"),
    "shared heads": ({"num_key_value_heads": 1}, "config-not-implemented", "multi-query"),
    "sliding window": ({"sliding_window": 8}, "config-not-implemented", "sliding_window"),
    "another type": ({"model_type": "gpt2"}, "config-model-type", "'gpt_neox'"),
    "a flag": ({"use_parallel_residual": "yes"}, "config-wrong-type", "use_parallel_residual"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    fields, code, said = REFUSED[case]
    with pytest.raises(pl.ConfigError, match=said) as caught:
        GPTNeoXConfig.from_dict({**SIZES, **fields})
    assert caught.value.code == code


def test_fields_that_say_the_plain_model_are_taken() -> None:
    plain = GPTNeoXConfig.from_dict(SIZES)
    for fields in ({"num_key_value_heads": 3}, {"norm_type": "layer_norm"}, {"gated_mlp": False}):
        assert GPTNeoXConfig.from_dict({**SIZES, **fields}) == plain
    assert GPTNeoXConfig.from_dict({**SIZES, "n_special": 0}).unread == ("n_special",)


@pytest.mark.remedy("config-no-blocks")
def test_a_block_of_a_model_without_blocks() -> None:
    config = GPTNeoXConfig.from_dict({**SIZES, "num_hidden_layers": 0})
    for module in (TransformerBlock, MLP):
        with pytest.raises(pl.ConfigError, match="num_hidden_layers=0") as caught:
            module(config)
        made = eval(caught.value.remedy.rsplit(": ", 1)[1].rstrip("."), {"config": config})
        assert module(made)(torch.zeros(1, 2, 48)).shape == (1, 2, 48)
