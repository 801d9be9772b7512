"""What every family's configurations have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pellucid as pl
import samples
from pellucid.family.families import config_of
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


UNREAD: dict[str, Any] = {
    "alibi": True, "multi_query": True, "position_embedding_type": "alibi", "num_experts": 4, "qk_norm": True,
    "rotary": True, "logits_scaling": 8.0, "norm_first": False, "auto_map": {"AutoModel": "m.M"}, "flux": 1,
}  # fmt: skip
"""Fields of variants, which say nothing of a live model: its class never reads them."""


@pytest.mark.parametrize("family", SAMPLES)
def test_what_the_class_of_a_live_model_never_reads_is_a_note(family: str) -> None:
    hf, ids = samples.reference(family), samples.some_ids(2, 7)
    for name, value in UNREAD.items():
        setattr(hf.config, name, value)
    hf.config.__class__ = type("Mine", (type(hf.config),), {"model_type": "mine"})
    model = pl.from_hf(hf)
    with torch.no_grad():
        assert torch.equal(model(ids), hf(ids).logits)
    assert {*UNREAD} - {"auto_map"} <= {*model.provenance["config_unread"].split(", ")}
    assert not {*UNREAD} & {*model.config.to_dict()}
    assert "config_unread" not in pl.from_hf(samples.reference(family)).provenance
    for name, value in (("sliding_window", 4), ("is_causal", False), ("layer_types", ["sliding_attention"] * 3)):
        setattr(hf.config, name, value)  # its masks or its cache read these
        with pytest.raises(pl.ConfigError, match=name) as caught:
            pl.from_hf(hf)
        assert f"hf_model.config.{name} = None" in caught.value.remedy
        setattr(hf.config, name, None)
    assert pl.from_hf(hf).config == model.config
