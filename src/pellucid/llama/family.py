"""Llama as a family, and where transformers' Llama keeps what it computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pellucid.family import rotary
from pellucid.family.families import Family, InTransformers, Recognition, later
from pellucid.llama import layouts, model, schema
from pellucid.llama.config import LlamaConfig
from pellucid.weights import living
from pellucid.weights.foreign import Anatomy
from pellucid.weights.living import Kind, Shown


def _anatomy() -> Anatomy:
    from transformers.models.llama import modeling_llama as llama

    matrix, norm = (nn.Linear,), (llama.LlamaRMSNorm,)
    return Anatomy(
        headed=llama.LlamaForCausalLM,
        base=llama.LlamaModel,
        norm=llama.LlamaRMSNorm,
        inner="model",
        block=llama.LlamaDecoderLayer,
        blocks="layers",
        around={
            "embed_tokens": (nn.Embedding,), "layers": (nn.ModuleList,), "norm": norm,
            "rotary_emb": (llama.LlamaRotaryEmbedding,),
        },
        in_block={
            "input_layernorm": norm, "self_attn": (llama.LlamaAttention,),
            **{f"self_attn.{x}_proj": matrix for x in "qkvo"},
            "post_attention_layernorm": norm, "mlp": (llama.LlamaMLP,),
            **{f"mlp.{name}_proj": matrix for name in ("gate", "up", "down")}, "mlp.act_fn": (),
        },
        attention="self_attn",
        eager=llama.eager_attention_forward,
        limit="num_hidden_layers",
    )  # fmt: skip


def _sizes(config: LlamaConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes and biases that the modules have: a model without its last blocks is a smaller model."""
    sizes: dict[str, Any] = {
        "vocab_size": tensors["embed_tokens.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith("input_layernorm.weight") for name in tensors),
    }
    if sizes["num_hidden_layers"]:
        sizes["intermediate_size"] = tensors["layers.0.mlp.gate_proj.weight"].shape[0]
        sizes["attention_bias"] = any(".self_attn." in name and name.endswith(".bias") for name in tensors)
        sizes["mlp_bias"] = any(".mlp." in name and name.endswith(".bias") for name in tensors)
    return sizes


def _constants(path: str, module: nn.Module, config: LlamaConfig) -> Mapping[str, object]:
    if path.endswith("norm"):
        return {"variance_epsilon": config.rms_norm_eps}
    if isinstance(module, nn.Embedding):
        return living.PLAIN_EMBEDDING
    if not path.endswith(".self_attn"):
        return {}
    return {
        "scaling": config.d_head**-0.5, "head_dim": config.d_head, "is_causal": True,
        "num_key_value_groups": config.num_attention_heads // config.n_head_kv,
        "attention_dropout": config.attention_dropout,
    }  # fmt: skip


_IN_BLOCK = (
    Shown("input_layernorm", True, ("resid_pre",)),
    Shown("input_layernorm", False, ("ln1.ckpt_normalized",)),
    Shown("self_attn.q_proj", False, ("attn.ckpt_q",)),
    Shown("self_attn.k_proj", False, ("attn.ckpt_k",)),
    Shown("self_attn.v_proj", False, ("attn.ckpt_v",)),
    Shown("self_attn.o_proj", True, ("attn.ckpt_z",)),
    Shown("self_attn.o_proj", False, ("attn.ckpt_attn_out",)),
    Shown("post_attention_layernorm", True, ("resid_mid",)),
    Shown("post_attention_layernorm", False, ("ln2.ckpt_normalized",)),
    Shown("mlp.gate_proj", False, ("mlp.ckpt_gate",)),
    Shown("mlp.up_proj", False, ("mlp.ckpt_up",)),
    Shown("mlp.down_proj", True, ("mlp.ckpt_post",)),
    Shown("mlp", False, ("mlp.ckpt_mlp_out",)),
    Shown("", False, ("resid_post",)),
)
"""Where a block of transformers' Llama shows our checkpoints, in their order."""

KIND = Kind(
    config=LlamaConfig,
    anatomy=_anatomy,
    sizes=_sizes,
    constants=_constants,
    activation="mlp.act_fn",
    embedding="embed_tokens",
    norm="norm",
    before=(Shown("embed_tokens", False, ("ckpt_embed",)),),
    in_block=_IN_BLOCK,
    buffers=living.frequencies,
)
"""How a live Llama is read."""


LLAMA = Family(
    name="llama",
    config=LlamaConfig,
    architecture=model.ARCHITECTURE,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="LlamaConfig",
        model="LlamaForCausalLM",
        base="LlamaModel",
        kind=KIND,
        buffers={rotary.FREQUENCIES: "model.rotary_emb.inv_freq"},
    ),
    layouts=layouts.LAYOUTS,
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    mistakes=later("pellucid.llama.mistakes", "mistakes"),
)
