"""GPT-2 as a family, and where transformers' GPT-2 keeps what it computes with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pellucid.family.families import Family, InTransformers, Kernels, Recognition, later
from pellucid.gpt2 import kernels, layouts, model, schema
from pellucid.gpt2.config import TransformerConfig
from pellucid.weights import foreign, living
from pellucid.weights.foreign import HEAD, Anatomy
from pellucid.weights.living import Kind, Shown


def _anatomy() -> Anatomy:
    from transformers.models.gpt2 import modeling_gpt2 as gpt2
    from transformers.pytorch_utils import Conv1D

    matrix, norm, dropout = (Conv1D, nn.Linear), (nn.LayerNorm,), (nn.Dropout, nn.Identity)
    return Anatomy(
        headed=gpt2.GPT2LMHeadModel,
        base=gpt2.GPT2Model,
        norm=nn.LayerNorm,
        inner="transformer",
        block=gpt2.GPT2Block,
        blocks="h",
        around={
            "wte": (nn.Embedding,), "wpe": (nn.Embedding,), "drop": dropout, "h": (nn.ModuleList,), "ln_f": norm,
        },
        in_block={
            "ln_1": norm, "attn": (gpt2.GPT2Attention,), "attn.c_attn": matrix, "attn.c_proj": matrix,
            "attn.attn_dropout": dropout, "attn.resid_dropout": dropout, "ln_2": norm, "mlp": (gpt2.GPT2MLP,),
            "mlp.c_fc": matrix, "mlp.c_proj": matrix, "mlp.act": (), "mlp.dropout": dropout,
        },
        attention="attn",
        eager=gpt2.eager_attention_forward,
    )  # fmt: skip


def _stored(path: str, module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors as transformers' classes store them, matrices [in, out].

    A `Linear` in the place of a `Conv1D` keeps its matrix the other way round. What a module leaves out is what adds
    or changes nothing: a bias of zeros, a gain of ones.
    """
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, (nn.Embedding, nn.LayerNorm, nn.Linear, Conv1D)):
        return {}
    foreign.require_plain_tensors(path, module)
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        raise living.no_weight(path, "n_embd")
    if isinstance(module, nn.Embedding) or path == HEAD:
        if bias is not None and bias.count_nonzero():
            raise living.wrong_head(module, TransformerConfig)
        return {"weight": weight}
    weight = weight.t() if isinstance(module, nn.Linear) else weight
    return {"weight": weight, "bias": weight.new_zeros(weight.shape[-1]) if bias is None else bias}


def _sizes(config: TransformerConfig, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes that the modules have: a model without its last blocks is a smaller model."""
    first = tensors.get("h.0.mlp.c_fc.weight")
    sizes = {
        "vocab_size": tensors["wte.weight"].shape[0],
        "n_positions": tensors["wpe.weight"].shape[0],
        "n_layer": sum(name.endswith("ln_1.weight") for name in tensors),
    }
    return sizes if first is None or first.shape[-1] == config.d_mlp else {**sizes, "n_inner": first.shape[-1]}


def _constants(path: str, module: nn.Module, config: TransformerConfig) -> Mapping[str, object]:
    if isinstance(module, nn.LayerNorm):
        return {"eps": config.layer_norm_epsilon}
    if isinstance(module, nn.Embedding):
        return living.PLAIN_EMBEDDING
    if not path.endswith(".attn"):
        return {}
    return {
        "scaling": config.attention_scale(int(path.split(".")[-2])), "head_dim": config.d_head,
        "split_size": config.n_embd, "is_causal": True, "is_cross_attention": False,
        "reorder_and_upcast_attn": config.reorder_and_upcast_attn,
    }  # fmt: skip


def _turned(path: str, module: nn.Module) -> bool:
    """Whether a module keeps the matrix of a `Conv1D` the other way round."""
    return isinstance(module, nn.Linear) and path != HEAD


_IN_BLOCK = (
    Shown("ln_1", True, ("resid_pre",)),
    Shown("ln_1", False, ("ln1.ckpt_normalized",)),
    Shown("attn.c_attn", False, ("attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v")),
    Shown("attn.c_proj", True, ("attn.ckpt_z",)),
    Shown("attn.c_proj", False, ("attn.ckpt_attn_out",)),
    Shown("ln_2", True, ("resid_mid",)),
    Shown("ln_2", False, ("ln2.ckpt_normalized",)),
    Shown("mlp.c_fc", False, ("mlp.ckpt_pre",)),
    Shown("mlp.c_proj", True, ("mlp.ckpt_post",)),
    Shown("mlp", False, ("mlp.ckpt_mlp_out",)),
    Shown("", False, ("resid_post",)),
)
"""Where a block of transformers' GPT-2 shows our checkpoints, in their order."""

KIND = Kind(
    config=TransformerConfig,
    anatomy=_anatomy,
    stored=_stored,
    sizes=_sizes,
    constants=_constants,
    activation="mlp.act",
    embedding="wte",
    norm="ln_f",
    before=(Shown("wte", False, ("ckpt_embed",)), Shown("wpe", False, ("ckpt_pos_embed",))),
    in_block=_IN_BLOCK,
    turned=_turned,
    dropouts={"embd_pdrop": ("drop",), "attn_pdrop": ("attn_dropout",), "resid_pdrop": ("resid_dropout", "dropout")},
)
"""How a live GPT-2 is read."""


GPT2 = Family(
    name="gpt2",
    config=TransformerConfig,
    architecture=model.ARCHITECTURE,
    schema_of=schema.of_sizes,
    in_transformers=InTransformers(
        config="GPT2Config",
        model="GPT2LMHeadModel",
        base="GPT2Model",
        kind=KIND,
    ),
    layouts=layouts.LAYOUTS,
    kernels=Kernels(kernels.take, kernels.decoder, kernels.bytes_needed, kernels.forget),
    layout_of=layouts.detect,
    differing=layouts.differing,
    unseen={"attn.b_K": "softmax ignores q · b_K, which is the same for every key"},
    recognition=Recognition(
        later("pellucid.gpt2.recognition", "configs"), later("pellucid.gpt2.recognition", "readings")
    ),
    suspects=later("pellucid.gpt2.suspects", "suspects"),
)
