"""What every family's configurations have in common."""

from __future__ import annotations

from typing import Any

import pytest

import pellucid as pl
from pellucid.families import config_of
from samples import SAMPLES

OFF: dict[str, tuple[str, ...]] = {
    "gpt2": ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
    "llama": ("attention_bias", "mlp_bias", "attention_dropout", "tie_word_embeddings"),
    "gpt_neox": ("attention_dropout", "hidden_dropout", "tie_word_embeddings"),
}
"""Flags and rates that are off unless a file says otherwise: null can mean nothing else."""

ON: dict[str, tuple[str, ...]] = {
    "gpt2": ("scale_attn_weights", "tie_word_embeddings", "resid_pdrop", "layer_norm_epsilon"),
    "llama": ("rms_norm_eps", "initializer_range"),
    "gpt_neox": ("use_parallel_residual", "attention_bias", "layer_norm_eps"),
}
"""What is on, or a number, unless a file says otherwise: null is neither on nor off."""


def fields_of(family: str) -> dict[str, Any]:
    return {"model_type": family, **SAMPLES[family].sizes}


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in OFF for name in OFF[family]])
def test_null_is_what_is_off_by_default(family: str, name: str) -> None:
    fields = fields_of(family)
    assert config_of({**fields, name: None}) == config_of(fields)
    assert not getattr(config_of({**fields, name: None}), name)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family in ON for name in ON[family]])
def test_null_is_refused_where_it_may_mean_two_things(family: str, name: str) -> None:
    with pytest.raises(pl.ConfigError, match=f"{name}=None") as caught:
        config_of({**fields_of(family), name: None})
    assert caught.value.code == "config-wrong-type"
