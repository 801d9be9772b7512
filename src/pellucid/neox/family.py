"""GPT-NeoX as a family, and where transformers' GPT-NeoX keeps what it computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pellucid.family import rotary
from pellucid.family.families import Family, InTransformers, Recognition, later
from pellucid.neox import layouts, model, schema
from pellucid.neox.config import GPTNeoXConfig
from pellucid.weights import living
from pellucid.weights.foreign import Anatomy
from pellucid.weights.living import Kind, Shown


def _anatomy() -> Anatomy:
    from transformers.models.gpt_neox import modeling_gpt_neox as neox

    matrix, norm, dropout = (nn.Linear,), (nn.LayerNorm,), (nn.Dropout, nn.Identity)
    return Anatomy(
        headed=neox.GPTNeoXForCausalLM,
        base=neox.GPTNeoXModel,
        norm=nn.LayerNorm,
        inner="gpt_neox",
        block=neox.GPTNeoXLayer,
        blocks="layers",
        around={
            "embed_in": (nn.Embedding,), "emb_dropout": dropout, "layers": (nn.ModuleList,), "final_layer_norm": norm,
            "rotary_emb": (neox.GPTNeoXRotaryEmbedding,),
        },
        in_block={
            "input_layernorm": norm, "post_attention_layernorm": norm, "post_attention_dropout": dropout,
            "post_mlp_dropout": dropout, "attention": (neox.GPTNeoXAttention,), "attention.query_key_value": matrix,
            "attention.dense": matrix, "mlp": (neox.GPTNeoXMLP,), "mlp.dense_h_to_4h": matrix,
            "mlp.dense_4h_to_h": matrix, "mlp.act": (),
        },
        attention="attention",
        eager=neox.eager_attention_forward,
    )  # fmt: skip


def _sizes(config: GPTNeoXConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes and biases that the modules have: a model without its last blocks is a smaller model."""
    sizes: dict[str, Any] = {
        "vocab_size": tensors["embed_in.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith("input_layernorm.weight") for name in tensors),
    }
    if sizes["num_hidden_layers"]:
        sizes["intermediate_size"] = tensors["layers.0.mlp.dense_h_to_4h.weight"].shape[0]
        sizes["attention_bias"] = any(".attention." in name and name.endswith(".bias") for name in tensors)
    return sizes


def _constants(path: str, module: nn.Module, config: GPTNeoXConfig) -> Mapping[str, object]:
    if isinstance(module, nn.LayerNorm):
        return {"eps": config.layer_norm_eps}
    if isinstance(module, nn.Embedding):
        return living.PLAIN_EMBEDDING
    if path.endswith(".attention"):
        return {
            "scaling": config.d_head**-0.5, "head_size": config.d_head, "is_causal": True,
            "attention_dropout": config.attention_dropout,
        }  # fmt: skip
    return {"use_parallel_residual": config.use_parallel_residual}


_IN_BLOCK = (
    Shown("input_layernorm", True, ("resid_pre",)),
    Shown("input_layernorm", False, ("ln1.ckpt_normalized",)),
    Shown("attention.dense", True, ("attn.ckpt_z",)),
    Shown("attention.dense", False, ("attn.ckpt_attn_out",)),
    Shown("post_attention_layernorm", False, ("ln2.ckpt_normalized",)),
    Shown("mlp.dense_h_to_4h", False, ("mlp.ckpt_pre",)),
    Shown("mlp.act", False, ("mlp.ckpt_post",)),
    Shown("mlp", False, ("mlp.ckpt_mlp_out",)),
    Shown("", False, ("resid_post",)),
)
"""Where a block of transformers' GPT-NeoX shows our checkpoints, in their order."""

KIND = Kind(
    config=GPTNeoXConfig,
    anatomy=_anatomy,
    sizes=_sizes,
    constants=_constants,
    activation="mlp.act",
    embedding="embed_in",
    norm="final_layer_norm",
    before=(Shown("embed_in", False, ("ckpt_embed",)),),
    in_block=_IN_BLOCK,
    dropouts={"hidden_dropout": ("emb_dropout", "post_attention_dropout", "post_mlp_dropout")},
    buffers=living.frequencies,
)
"""How a live GPT-NeoX is read."""


NEOX = Family(
    name="gpt_neox",
    config=GPTNeoXConfig,
    architecture=model.ARCHITECTURE,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="GPTNeoXConfig",
        model="GPTNeoXForCausalLM",
        base="GPTNeoXModel",
        kind=KIND,
        buffers={rotary.FREQUENCIES: "gpt_neox.rotary_emb.inv_freq"},
        files=layouts.FILES,
    ),
    layouts=layouts.LAYOUTS,
    kernels=None,
    layout_of=layouts.detect,
    differing=layouts.differing,
    adopt=rotary.adopt,
    recognition=Recognition(layouts.configs),
    mistakes=later("pellucid.neox.mistakes", "mistakes"),
)
