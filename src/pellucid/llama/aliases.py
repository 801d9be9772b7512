"""What other libraries call the values of a Llama: transformers' modules, HookedTransformer's hooks."""

from __future__ import annotations

from pellucid.schema import OtherNames

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
        "hook_scale": "it is the divisor sqrt(mean square + eps); here `ckpt_scaled` holds the quotient",
        "attn.hook_result": "per-head outputs are not computed; each is ckpt_z[:, :, h] @ W_O[h]",
        "hook_q_input": "the input is not split by head; it is ln1.ckpt_normalized",
        "hook_k_input": "the input is not split by head; it is ln1.ckpt_normalized",
        "hook_v_input": "the input is not split by head; it is ln1.ckpt_normalized",
        "hook_attn_in": "the input is not split by head; it is resid_pre",
        "hook_mlp_in": "it is a copy of resid_mid; ask for resid_mid",
        "self_attn.q_proj": "its output has the heads side by side; ask for attn.ckpt_q, which is [B, P, H, K]",
        "self_attn.k_proj": "its output has the heads side by side; ask for attn.ckpt_k, which is [B, P, H, K]",
        "self_attn.v_proj": "its output has the heads side by side; ask for attn.ckpt_v, which is [B, P, H, K]",
        "mlp.act_fn": "it is a factor of mlp.ckpt_post, which is act(mlp.ckpt_gate) * mlp.ckpt_up",
        "rotary_emb": "its output are cosines and sines; the rotated values are attn.ckpt_rot_q and attn.ckpt_rot_k",
        "lm_head": "its output are the logits, which every run returns",
        "unembed": "its output are the logits, which every run returns",
    },
    prefix="model.",
    blocks="layers",
)
