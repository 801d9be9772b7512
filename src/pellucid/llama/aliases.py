"""What other libraries call the values of a Llama: transformers' modules, HookedTransformer's hooks."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid import attributes
from pellucid.schema import OtherNames

MODEL: Mapping[str, str] = {
    **attributes.ROTARY_MODEL,
    "model": "model.blocks, model.embed and model.ln_final",
    "b_U": "no tensor: Llama's head has no bias",
    "embed_tokens": "model.embed",
    "norm": "model.ln_final",
    "accumulated_bias": "the residual stream itself: its blocks add no biases unless the configuration says so",
}
"""Attributes of other libraries' models -> what to use here."""

BLOCK: Mapping[str, str] = {
    **attributes.BLOCK,
    "input_layernorm": "{here}.ln1",
    "post_attention_layernorm": "{here}.ln2",
    "self_attn": "{here}.attn",
}

ATTENTION: Mapping[str, str] = {
    **attributes.ROTARY_ATTENTION,
    **{f"{letter.lower()}_proj": f"{{here}}.W_{letter}" for letter in "QKVO"},
    "QK": "{here}.W_Q @ {here}.W_K.repeat_interleave({here}.shared, 0).mT, before rotation",
    "OV": "{here}.W_V.repeat_interleave({here}.shared, 0) @ {here}.W_O",
    "num_key_value_groups": "{here}.shared",
}

MLP: Mapping[str, str] = {
    "hook_pre": "{here}.ckpt_gate",
    "hook_pre_linear": "{here}.ckpt_up",
    "hook_post": "{here}.ckpt_post",
    "gate_proj": "{here}.W_gate",
    "up_proj": "{here}.W_in",
    "down_proj": "{here}.W_out",
    "act_fn": "{here}.act",
}

OTHERS = OtherNames(
    modules={
        "input_layernorm": "ln1.ckpt_normalized",
        "self_attn": "attn.ckpt_attn_out",
        "self_attn.o_proj": "attn.ckpt_attn_out",
        "post_attention_layernorm": "ln2.ckpt_normalized",
        "mlp.gate_proj": "mlp.ckpt_gate",
        "mlp.up_proj": "mlp.ckpt_up",
        "mlp.down_proj": "mlp.ckpt_mlp_out",
        "mlp": "mlp.ckpt_mlp_out",
        "mlp.hook_pre": "mlp.ckpt_gate",
        "mlp.hook_pre_linear": "mlp.ckpt_up",
        "": "resid_post",
    },
    modules_around={
        "embed_tokens": "ckpt_embed",
        "norm": "ln_final.ckpt_normalized",
    },
    refused={
        **attributes.NOT_THE_SAME,
        "hook_scale": "it is the divisor sqrt(mean square + eps); here `ckpt_scaled` holds the quotient",
        "self_attn.q_proj": "its output has the heads side by side; ask for attn.ckpt_q, which is [B, P, H, K]",
        "self_attn.k_proj": "its output has the heads side by side; ask for attn.ckpt_k, which is [B, P, H, K]",
        "self_attn.v_proj": "its output has the heads side by side; ask for attn.ckpt_v, which is [B, P, H, K]",
        "mlp.act_fn": "it is a factor of mlp.ckpt_post, which is act(mlp.ckpt_gate) * mlp.ckpt_up",
        "rotary_emb": attributes.NOT_ROTATED,
    },
    prefix="model.",
    blocks="layers",
)
