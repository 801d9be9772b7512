"""Which fields of a `config.json` are accepted, held against what transformers' GPT-2 reads and computes."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedConfig

import pellucid as pl
from pellucid.family.config import READ
from pellucid.gpt2.config import FIELDS, NEUTRAL, SYNONYMS
from weights.checkpoints import hf_dict, ids_for, same_logits, save_folder, small_hf

SOURCE = Path(transformers.__file__).parent
DECLARED = {field.name for field in dataclasses.fields(pl.TransformerConfig)} - {"neutral"}
HF = small_hf()

READERS = ("models/gpt2/modeling_gpt2.py", "modeling_utils.py", "masking_utils.py", "cache_utils.py")
"""What takes part in loading and running transformers' GPT-2."""

CONFIGS = ("config", "self.config", "model.config", "self.config.get_text_config()",
           "config.get_text_config(decoder=True)", "self.config.get_text_config(decoder=True)")  # fmt: skip

GENERATION = set(GenerationConfig().to_dict()) | {"compile_config", "cache_implementation"}
"""The class pops these before it is made: they say how texts are drawn, not what the model computes."""

NO_FIELD = frozenset(
    """
    model_type sub_configs_defaults is_quantized is_heterogeneous device_map generator disable_mmap device_mesh
    weights_only weight_mapping hf_quantizer quant_method sharded_metadata disk_offload_folder kernel_config
    ignore_mismatched_sizes pretrained_model_name_or_path create_compatible_mapping sanitize_kernel_mapping
    number_of_conv_states base_model_ep_plan base_model_fsdp_plan default_config_fields mtp_layer_types gguf_file
    sub_configs head_dim num_heads embed_dim vision_aspect_ratio vision_feature_layer vision_feature_select_strategy
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Attributes of other objects that are called `config`, what a class sets and no file, and what is only validated."""


def reads(source: str) -> set[str]:
    """The attributes that a module's text reads of something called a configuration."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in CONFIGS:
            found.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            what, name = node.args[0], node.args[1]
            if ast.unparse(what) in CONFIGS and isinstance(name, ast.Constant):
                found.add(str(name.value))
    return found


def unknown(names: set[str]) -> list[str]:
    """Those that are no field in our tables, no method or property of the class, and nothing private."""
    fields = {name for name in names if not callable(getattr(PreTrainedConfig, name, None))}
    fields = {name for name in fields if not isinstance(getattr(PreTrainedConfig, name, None), property)}
    known = DECLARED | set(SYNONYMS) | NEUTRAL | GENERATION | NO_FIELD
    return sorted(name for name in fields - known if FIELDS.variant_of(name) is None and not name.startswith("_"))


@pytest.mark.parametrize("module", READERS)
def test_every_field_that_the_reference_reads_is_in_a_table(module: str) -> None:
    found = reads((SOURCE / module).read_text(encoding="utf-8"))
    assert len(found) >= 3, "the text is read"
    assert unknown(found) == []
    variants = {name for name in found if FIELDS.variant_of(name) is not None and not name.startswith("_")}
    assert variants <= READ, "of a live model, other fields of variants are notes"


def test_every_field_that_is_read_while_it_runs_is_in_a_table(tmp_path: Path) -> None:
    """The control of the test above, which reads text: a configuration that writes down what it is asked for."""
    asked: set[str] = set()

    class Watched(GPT2Config):
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    config = Watched(vocab_size=61, n_positions=20, n_embd=12, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    model, ids = GPT2LMHeadModel(config).eval(), ids_for(HF)
    asked.clear()
    GPT2LMHeadModel(config)
    with torch.no_grad():
        model(ids, labels=ids)
        model.generate(ids, max_new_tokens=2, do_sample=False)
    model.save_pretrained(tmp_path)
    assert {"n_inner", "attn_pdrop", "layer_norm_epsilon", "is_causal"} <= asked
    assert unknown(asked) == []


def test_the_tables_notice_a_reference_that_reads_more() -> None:
    assert unknown(reads("def f(self, config): return config.flux + getattr(self.config, 'capacitor', 1)")) == [
        "capacitor", "flux",
    ]  # fmt: skip


UNREAD: dict[str, Any] = {
    "_num_labels": 1, "n_special": 0, "xla_device": True, "loss_type": None, "unk_token_id": 3, "mask_token_id": 4,
    "cls_token_id": 5, "eos_token": "<|endoftext|>", "transformers.js_config": {"dtype": "q8"}, "license": "mit",
    "unsloth_version": "2026.1", "keys_to_ignore_at_inference": ["past_key_values"], "author": "someone",
    "created_date": "2021-04-28", "head_dim": 99, "intermediate_size": 5, "hidden_act": "relu", "layer_norm_eps": 3.0,
    "dropout": 0.7, "vocab_file": "a.json", "context_window": 2048, "train_batch_size": 8, "bias": False,
    "learning_rate_multiplier": 2.0, "n_embed": 99, "mup_scale": 1.0, "width_mult": 1, "rope_theta": 1e4,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_pct": 0.25, "rotary_dim": 4,
    "partial_rotary_factor": 0.5, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3, "alibi": False,
}  # fmt: skip
"""What files of strangers hold and transformers' GPT-2 never reads; several contradict the fields that it does."""


def test_fields_that_the_reference_never_reads_are_accepted_and_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "a", hf_dict(HF), HF, **UNREAD)
    model = pl.load(folder)
    assert same_logits(model, GPT2LMHeadModel.from_pretrained(folder).eval())
    assert same_logits(model, HF)
    assert sorted(model.config.unread) == sorted(UNREAD)
    assert sorted(model.provenance["config_unread"].split(", ")) == sorted(UNREAD)
    model.save_pretrained(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {name: saved[name] for name in UNREAD} == UNREAD
    assert "config_unread" not in pl.load().provenance


def test_an_epsilon_of_zero_is_the_files_own(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF, layer_norm_epsilon=0.0)
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    assert theirs.transformer.ln_f.eps == 0.0
    assert same_logits(pl.load(folder), theirs)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('_epsilon": 0.0', '_epsilon": 0'))
    assert same_logits(pl.load(folder), theirs)


REFUSED: dict[str, tuple[Any, ...]] = {
    "auto_map": ({"AutoModelForCausalLM": "m.Model"},),
    "quantization_config": ({"quant_method": "gptq", "bits": 4},),
    "quant_method": ("awq",),
    "add_cross_attention": (True,),
    "cross_attention_hidden_size": (12,),
    "is_encoder_decoder": (True,),
    "text_config": ({"n_head": 2},),
    "per_layer_config": ({"0": {"n_head": 2}},),
    "fusion_config": ({"patch_embeddings": True},),
    "transformers_weights": ("other.safetensors",),
    "multi_query": (True,),
    "attention_head_type": ("multiquery",),
    "num_key_value_heads": (1,),
    "n_head_kv": (1,),
    "attn_mult": (8.0, 1.0),
    "mup_width_scale": (0.1,),
    "mup_output_alpha": (2, [1.0, 2.0]),
    "scale_qk_dot_by_d": (True,),
    "embeddings_scale": (10.0,),
    "width_mult": (2.0, True),
    "residual_multiplier": (0.22,),
    "logits_scaling": (8.0,),
    "scale_embeddings": (True,),
    "pruned_heads": ({"0": [1]},),
    "position_embedding_type": ("alibi", "relative_key", "rope", "ALiBi"),
    "pos_embd_type": ("sinusoidal",),
    "rotary": (True,),
    "use_rotary_position_embeddings": (True,),
    "rotary_emb_fraction": (0.5,),
    "use_rope": (True,),
    "alibi": (True,),
    "use_alibi": (True,),
    "sliding_window": (4,),
    "window_size": (7,),
    "attention_types": ([[["global", "local"], 1]],),
    "layer_types": (["full_attention", "sliding_attention"],),
    "is_causal": (False,),
    "do_layer_norm_before": (False,),
    "prenorm": (False,),
    "post_norm": (True,),
    "layer_norm_bias": (False,),
    "use_rms_norm": (True,),
    "norm_type": ("rmsnorm",),
    "qk_norm": (True,),
    "qk_layernorm": (True,),
    "final_logit_softcapping": (30.0,),
    "attn_logit_softcap": (50.0,),
    "num_experts": (8, 2.0),
    "moe_top_k": (2,),
    "parallel_attn": (True,),
    "use_parallel_residual": (True,),
    "swiglu": (True,),
    "gated_mlp": (True,),
}
"""Fields of other models that descend from GPT-2 -> values that make another model."""

PLAIN: dict[str, tuple[Any, ...]] = {
    "attention_head_type": ("multihead",),
    "num_key_value_heads": (3,),
    "mup_width_scale": (1.0, 1),
    "mup_output_alpha": (1.0, [1, 1.0]),
    "window_size": (8, 4096, -1, [-1, -1]),
    "num_experts": (1,),
    "width_mult": (1.0, 1),
    "position_embedding_type": ("absolute", "learned", "Learned_Absolute"),
    "layer_types": (["full_attention", "full_attention"],),
    "is_causal": (True,),
    "do_layer_norm_before": (True,),
    "layer_norm_bias": (True,),
    "norm_type": ("layernorm", "LayerNorm"),
    "pruned_heads": ({}, {"0": []}),
    "auto_map": ({},),
    "quantization_config": (None, {}),
    "rotary_emb_fraction": (0.0,),
}
"""Their values that mean plain GPT-2."""

SIZES = {"vocab_size": 11, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_of_another_variant_is_refused_by_name_and_can_be_ignored(name: str) -> None:
    for value in REFUSED[name]:
        with pytest.raises(pl.ConfigError, match=name) as caught:
            pl.TransformerConfig.from_dict({**SIZES, name: value})
        assert caught.value.code == "config-not-implemented"
        assert f"ignore_config=['{name}']" in caught.value.remedy
        ignored = pl.TransformerConfig.from_dict({**SIZES, name: value}, ignore=[name])
        assert ignored.to_dict() == pl.TransformerConfig.from_dict(SIZES).to_dict()
    off = [None] if name in ("is_causal", "do_layer_norm_before", "prenorm", "layer_norm_bias") else [None, False, 0]
    for harmless in (*off, *PLAIN.get(name, ())):
        config = pl.TransformerConfig.from_dict({**SIZES, name: harmless})
        assert config.to_dict()[name] == harmless


def test_a_neutral_value_is_one_beside_the_synonyms_of_sizes() -> None:
    sizes = {"num_attention_heads": 3, "max_position_embeddings": 8}
    given = {name: value for name, value in SIZES.items() if name not in ("n_head", "n_positions")} | sizes
    own = {"num_key_value_heads": 3, "sliding_window": 8}
    assert pl.TransformerConfig.from_dict({**given, **own}) == pl.TransformerConfig.from_dict(SIZES)
    for name, value in own.items():
        with pytest.raises(pl.ConfigError, match=name):
            pl.TransformerConfig.from_dict({**given, name: value - 1})


def test_every_refused_field_is_named_at_once(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF, alibi=True, multi_query=True)
    with pytest.raises(pl.ConfigError, match=r"alibi=True.*multi_query=True") as caught:
        pl.load(folder)
    ignored = ast.literal_eval(caught.value.remedy.split("ignore_config=")[1].split("]")[0] + "]")
    assert same_logits(pl.load(folder, ignore_config=ignored), HF)
    assert pl.TransformerConfig.from_pretrained(str(folder), ignore_config=ignored).n_embd == 12
    with pytest.raises(pl.ConfigError, match="multi_query"):
        pl.TransformerConfig.from_pretrained(str(folder), ignore_config=["alibi"])


@pytest.mark.parametrize("name", sorted(GENERATION & (DECLARED | NEUTRAL)))
def test_settings_of_generation_in_a_configuration_are_no_variant(name: str) -> None:
    assert FIELDS.variant_of(name) is None


@pytest.mark.parametrize(
    ("field", "value"), [("n_inner", 0), ("scale_attn_weights", None), ("tie_word_embeddings", None)]
)
def test_what_transformers_refuses_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF, **{field: value})
    with pytest.raises((StrictDataclassError, RuntimeError)):
        GPT2LMHeadModel.from_pretrained(folder)
    with pytest.raises(pl.ConfigError, match=field):
        pl.load(folder)


@pytest.mark.parametrize("value", [None, True])
def test_a_causal_model_is_one_where_nothing_is_said(value: Any, tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF, is_causal=value)
    assert same_logits(pl.load(folder), GPT2LMHeadModel.from_pretrained(folder).eval())


def test_every_door_opens_a_configuration_of_a_stranger(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "m", hf_dict(HF), HF, _num_labels=1, author="someone")
    blob = tmp_path / "hub" / "models--distilbert--distilgpt2"
    (blob / "refs").mkdir(parents=True)
    (blob / "refs" / "main").write_text("c" * 40)
    (blob / "snapshots").mkdir()
    (blob / "snapshots" / ("c" * 40)).symlink_to(folder)
    offline = pl.HubOptions(cache_dir=tmp_path / "hub", offline=True)
    assert same_logits(pl.load("distilgpt2", hub=offline), HF)
    assert pl.TransformerConfig.from_pretrained(str(folder)).unread == ("_num_labels", "author")
    assert pl.compare(pl.load(folder), str(folder), inputs=ids_for(HF)).verdict == "identical"
    assert pl.audit_ties(folder).after_reload.survives
    assert pl.from_hf(GPT2LMHeadModel.from_pretrained(folder)).config.n_embd == 12
