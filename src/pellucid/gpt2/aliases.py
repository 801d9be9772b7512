"""What other libraries call the values of a GPT-2: transformers' modules, HookedTransformer's hooks."""

from __future__ import annotations

from pellucid import attributes
from pellucid.schema import OtherNames

OTHERS = OtherNames(
    modules={
        "ln_1": "ln1.ckpt_normalized",
        "attn": "attn.ckpt_attn_out",
        "attn.resid_dropout": "attn.ckpt_attn_out",
        "ln_2": "ln2.ckpt_normalized",
        "mlp.c_fc": "mlp.ckpt_pre",
        "mlp.act": "mlp.ckpt_post",
        "mlp": "mlp.ckpt_mlp_out",
        "mlp.dropout": "mlp.ckpt_mlp_out",
        "": "resid_post",
    },
    modules_around={
        "wte": "ckpt_embed",
        "wpe": "ckpt_pos_embed",
        "drop": "blocks.0.resid_pre",
        "ln_f": "ln_final.ckpt_normalized",
    },
    refused={
        **attributes.NOT_THE_SAME,
        "hook_scale": "it is the divisor sqrt(var + eps); here `ckpt_scaled` holds the quotient",
        "attn.c_attn": "its output is q, k and v side by side; ask for attn.ckpt_q, attn.ckpt_k, attn.ckpt_v",
        "attn.c_proj": "its output is taken before dropout; attn.ckpt_attn_out is what is added to the residual stream",
        "mlp.c_proj": "its output is taken before dropout; mlp.ckpt_mlp_out is what is added to the residual stream",
        "attn.attn_dropout": "its output is taken after dropout; attn.ckpt_pattern is the pattern before it",
    },
    prefix="transformer.",
    blocks="h",
)
