"""What other libraries call the values of a GPT-NeoX: transformers' modules, HookedTransformer's hooks."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid import attributes
from pellucid.schema import OtherNames

MODEL: Mapping[str, str] = {
    **attributes.ROTARY_MODEL,
    "b_U": "no tensor: GPT-NeoX's head has no bias",
    "gpt_neox": "model.blocks, model.embed and model.ln_final",
    "embed_in": "model.embed",
    "embed_out": "model.unembed",
    "final_layer_norm": "model.ln_final",
}
"""Attributes of other libraries' models -> what to use here."""

BLOCK: Mapping[str, str] = {
    **attributes.BLOCK,
    "input_layernorm": "{here}.ln1",
    "post_attention_layernorm": "{here}.ln2",
    "attention": "{here}.attn",
}

PARALLEL_BLOCK: Mapping[str, str] = {
    **BLOCK,
    "hook_resid_mid": "{here}.resid_pre and {here}.attn.ckpt_attn_out: the MLP of this block does not read their sum",
    "hook_mlp_in": "{here}.resid_pre",
}

ATTENTION: Mapping[str, str] = {
    **attributes.ROTARY_ATTENTION,
    "query_key_value": "{here}.W_QKV and {here}.b_QKV",
    "dense": "{here}.W_O and {here}.b_O",
    "head_size": "model.config.d_head",
}

MLP: Mapping[str, str] = {
    **{name: said for name, said in attributes.MLP.items() if name.startswith("hook_")},
    "dense_h_to_4h": "{here}.W_in and {here}.b_in",
    "dense_4h_to_h": "{here}.W_out and {here}.b_out",
}

_OUT = "its output is taken before dropout; {} is what is added to the residual stream"

OTHERS = OtherNames(
    modules={
        "input_layernorm": "ln1.ckpt_normalized",
        "post_attention_dropout": "attn.ckpt_attn_out",
        "post_attention_layernorm": "ln2.ckpt_normalized",
        "mlp.dense_h_to_4h": "mlp.ckpt_pre",
        "mlp.act": "mlp.ckpt_post",
        "post_mlp_dropout": "mlp.ckpt_mlp_out",
        "": "resid_post",
    },
    modules_around={
        "embed_in": "ckpt_embed",
        "emb_dropout": "blocks.0.resid_pre",
        "final_layer_norm": "ln_final.ckpt_normalized",
    },
    refused={
        **attributes.NOT_THE_SAME,
        "hook_scale": "it is the divisor sqrt(var + eps); here `ckpt_scaled` holds the quotient",
        "hook_mlp_in": "it is a copy of what ln2 reads; ask for resid_mid, or for resid_pre if there is none",
        "attention": _OUT.format("attn.ckpt_attn_out"),
        "attention.dense": _OUT.format("attn.ckpt_attn_out"),
        "mlp": _OUT.format("mlp.ckpt_mlp_out"),
        "mlp.dense_4h_to_h": _OUT.format("mlp.ckpt_mlp_out"),
        "attention.query_key_value": "its output is q, k and v of each head side by side; ask for attn.ckpt_q, "
        "attn.ckpt_k, attn.ckpt_v",
        "rotary_emb": attributes.NOT_ROTATED,
    },
    prefix="gpt_neox.",
    blocks="layers",
)
