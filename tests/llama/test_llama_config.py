"""Configurations of Llamas: read as transformers reads them, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from transformers import LlamaConfig as TheirConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import llamas
import pellucid as pl
from pellucid.llama import LlamaConfig, Rotary

SIZES = {name: value for name, value in llamas.SIZES.items() if name not in ("num_key_value_heads", "head_dim")}

WORKING: dict[str, Any] = {
    "num_key_value_heads": 3, "head_dim": 2, "hidden_act": "gelu", "max_position_embeddings": 9, "rms_norm_eps": 0.5,
    "rope_parameters": llamas.LLAMA3, "attention_bias": True, "attention_dropout": 0.5, "mlp_bias": True,
    "tie_word_embeddings": True, "initializer_range": 0.5, "bos_token_id": 5, "eos_token_id": [2, 3], "pad_token_id": 4,
    "vocab_size": 7, "hidden_size": 48, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 3,
}  # fmt: skip
"""Every declared field, with a value that is not the default."""


def test_every_declared_field_is_read_and_written() -> None:
    assert set(WORKING) == {f.name for f in dataclasses.fields(LlamaConfig)} - {"neutral"}
    plain = LlamaConfig.from_dict(SIZES)
    for name, value in WORKING.items():
        config = LlamaConfig.from_dict({**SIZES, name: value})
        found = config.to_dict()[name]
        assert found == value, name
        assert getattr(config, name) != getattr(plain, name), name
        assert LlamaConfig.from_dict(json.loads(config.to_json())) == config
        assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = LlamaConfig.from_dict(SIZES), TheirConfig(**SIZES)
    for name in WORKING:
        if name not in ("num_key_value_heads", "head_dim"):
            assert ours.to_dict()[name] == getattr(theirs, name), name
    assert (ours.n_head_kv, ours.d_head) == (theirs.num_key_value_heads, theirs.head_dim)


_WITHOUT_BASE = {name: value for name, value in llamas.LLAMA3.items() if name != "rope_theta"}

ROTATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a base": {"rope_theta": 500.0},
    "null": {"rope_scaling": None, "rope_theta": 500.0},
    "older linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0},
    "Llama 3.1's": {"rope_scaling": _WITHOUT_BASE, "rope_theta": 500000.0},
    "new": {"rope_parameters": llamas.LLAMA3},
    "before the base beside it": {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 5.0},
    "both": {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0},
             "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 3.3}},
    "yarn of its own context": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_theta": 100.0},
    "yarn with everything": {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16, "mscale": 0.7,
        "mscale_all_dim": 0.5, "truncate": False, "beta_fast": 8.0, "beta_slow": 2.0}},
    "yarn with a factor of attention": {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16,
        "attention_factor": 1.7}},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ROTATIONS)
def test_rotations_are_transformers(case: str) -> None:
    given = {**llamas.SIZES, **copy.deepcopy(ROTATIONS[case])}
    theirs = LlamaRotaryEmbedding(TheirConfig(**copy.deepcopy(given)))
    config = LlamaConfig.from_dict(given)
    ours = Rotary(config.rule)
    assert torch.equal(ours.inv_freq, theirs.inv_freq)
    assert ours.attention_scaling == theirs.attention_scaling
    positions = torch.arange(64)[None]
    for dtype in (torch.float32, torch.bfloat16):
        both = zip(ours(positions, dtype), theirs(torch.zeros(1, dtype=dtype), positions), strict=True)
        assert all(torch.equal(a, b) for a, b in both)
    assert LlamaConfig.from_dict(TheirConfig(**copy.deepcopy(given)).to_dict()) == config


REPLACED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a base": ({"rope_theta": 500.0}, {**llamas.LLAMA3, "rope_theta": 500.0}),
    "a kind, of the same base": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": llamas.LLAMA3["rope_theta"]},
    ),
    "no kind": ({"rope_scaling": None}, {"rope_type": "default", "rope_theta": llamas.LLAMA3["rope_theta"]}),
    "both": (
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 5.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0},
    ),
    "all of it": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, {"rope_type": "default", "rope_theta": 9.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACED)
def test_a_part_of_rotary_positions_is_replaced_alone(case: str) -> None:
    """Under the names of older files, too; what a caller gives counts before what the file says."""
    given, expected = REPLACED[case]
    file = {**SIZES, "rope_parameters": llamas.LLAMA3}
    for config in (LlamaConfig.from_dict(file).override(**given), LlamaConfig.changed(file, given)):
        assert config == LlamaConfig.from_dict({**SIZES, "rope_parameters": expected})
    with pytest.raises(pl.ConfigError, match="rope_parameters") as caught:
        LlamaConfig.from_dict(file).override(rope_scaling=3)
    assert caught.value.code == "config-wrong-type"


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "longrope": ({"rope_scaling": {"type": "longrope"}}, "config-not-implemented", "longrope"),
    "no factor": ({"rope_parameters": {"rope_type": "linear"}}, "config-missing-field", "factor"),
    "a base of text": ({"rope_theta": "large"}, "config-wrong-type", "rope_theta"),
    "a factor of nothing": ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "config-out-of-range", "factor"),
    "a list": ({"rope_parameters": [1]}, "config-wrong-type", "rope_parameters"),
    "several kinds": ({"rope_parameters": {"rope_type": ["linear"]}}, "config-not-implemented", "rope_type"),
    "a base that is null": ({"rope_parameters": {"rope_theta": None}}, "config-missing-field", "rope_theta"),
    "a factor that is null": (
        {"rope_parameters": {"rope_type": "linear", "factor": None}}, "config-missing-field", "without factor",
    ),
    "a context that is null": ({"max_position_embeddings": None}, "config-wrong-type", "max_position_embeddings"),
    "a part of each head": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
        "config-not-implemented", "partial_rotary_factor",
    ),
    "odd heads": ({"head_dim": 5}, "config-heads-do-not-divide", "even"),
    "shared unevenly": ({"num_key_value_heads": 4}, "config-heads-do-not-divide", "num_key_value_heads"),
    "heads do not divide": ({"num_attention_heads": 5}, "config-heads-do-not-divide", "num_attention_heads"),
    "no context": ({"max_position_embeddings": 0}, "config-out-of-range", "max_position_embeddings"),
    "activation": ({"hidden_act": "prelu"}, "config-activation", "prelu"),
    "sliding window": ({"sliding_window": 8}, "config-not-implemented", "sliding_window"),
    "experts": ({"num_local_experts": 8}, "config-not-implemented", "experts"),
    "norms of queries": ({"qk_norm": True}, "config-not-implemented", "norms of queries"),
    "another type": ({"model_type": "gpt2"}, "config-model-type", "'llama'"),
    "a flag": ({"mlp_bias": "yes"}, "config-wrong-type", "mlp_bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    fields, code, said = REFUSED[case]
    with pytest.raises(pl.ConfigError, match=said) as caught:
        LlamaConfig.from_dict({**SIZES, **fields})
    assert caught.value.code == code


def test_rotary_parameters_are_a_mapping_wherever_they_are_given() -> None:
    for given in (
        lambda: LlamaConfig(**SIZES, rope_parameters=3),  # type: ignore[arg-type]
        lambda: LlamaConfig.from_dict(SIZES).override(rope_theta=5.0, rope_parameters=3),
        lambda: pl.GPTNeoXConfig.from_dict(SIZES).replace(rope_parameters=None),
    ):
        with pytest.raises(pl.ConfigError, match="rope_parameters") as caught:
            given()
        assert caught.value.code == "config-wrong-type"


def test_what_is_not_read_is_kept_and_listed() -> None:
    config = LlamaConfig.from_dict({**SIZES, "pretraining_tp": 1, "use_cache": True, "n_special": 0})
    assert config.unread == ("n_special",)
    assert config.to_dict()["pretraining_tp"] == 1
    with pytest.raises(pl.ConfigError, match="rms_norm_eps") as caught:
        config.override(rms_norm_epsilon=0.1)
    assert caught.value.code == "config-unknown-field"


def test_a_longer_context_than_the_file_says(tmp_path: Any) -> None:
    ours, hf = llamas.pair(max_position_embeddings=8)
    ours.save_pretrained(tmp_path)
    ids = llamas.some_ids(1, 12)
    with pytest.raises(pl.InputError, match="at most 8"):
        ours(ids)
    with torch.no_grad():
        assert torch.equal(pl.load(tmp_path, config={"max_position_embeddings": 12})(ids), hf(ids).logits)
