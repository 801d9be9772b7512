"""What a Llama is (Touvron et al. 2023, arXiv:2302.13971): its points, its parameters, its sizes.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pellucid.family import common_points as common
from pellucid.names import attributes
from pellucid.schema import HIDDEN, RESIDUAL, STREAM, OtherNames, Parameter, Point, Schema

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

MODEL_ELSEWHERE: Mapping[str, str] = {
    **attributes.ROTARY_MODEL,
    "model": "model.blocks, model.embed and model.ln_final",
    "b_U": "no tensor: Llama's head has no bias",
    "embed_tokens": "model.embed",
    "norm": "model.ln_final",
    "accumulated_bias": "the residual stream itself: its blocks add no biases unless the configuration says so",
}
"""Attributes of other libraries' models -> what to use here."""

BLOCK_ELSEWHERE: Mapping[str, str] = {
    **attributes.BLOCK,
    "input_layernorm": "{here}.ln1",
    "post_attention_layernorm": "{here}.ln2",
    "self_attn": "{here}.attn",
}

ATTENTION_ELSEWHERE: Mapping[str, str] = {
    **attributes.ROTARY_ATTENTION,
    **{f"{letter.lower()}_proj": f"{{here}}.W_{letter}" for letter in "QKVO"},
    "QK": "{here}.W_Q @ {here}.W_K.repeat_interleave({here}.shared, 0).mT, before rotation",
    "OV": "{here}.W_V.repeat_interleave({here}.shared, 0) @ {here}.W_O",
    "num_key_value_groups": "{here}.shared",
}

MLP_ELSEWHERE: Mapping[str, str] = {
    "hook_pre": "{here}.ckpt_gate",
    "hook_pre_linear": "{here}.ckpt_up",
    "hook_post": "{here}.ckpt_post",
    "gate_proj": "{here}.W_gate",
    "up_proj": "{here}.W_in",
    "down_proj": "{here}.W_out",
    "act_fn": "{here}.act",
}

BEFORE = (common.EMBED,)

BLOCK = (
    Point("resid_pre", RESIDUAL, "ckpt_embed in block 0, else resid_post of the block before", "what enters the block",
          STREAM),
    *common.rms_norm("ln1", "resid_pre", "what attention reads"),
    *common.projections("g", " before rotation"),
    *common.rotations("its pairs", "g"),
    *common.attending("rot_"),
    common.written("attn", "sum over h of attn.ckpt_z[h] @ W_O[h], + b_O"),
    common.RESID_MID,
    *common.rms_norm("ln2", "resid_mid", "what the MLP reads"),
    Point("mlp.ckpt_gate", HIDDEN, "ln2.ckpt_normalized @ W_gate + b_gate", "the gate before the activation",
          parameters=("mlp.W_gate", "mlp.b_gate")),
    Point("mlp.ckpt_up", HIDDEN, "ln2.ckpt_normalized @ W_in + b_in", "what is gated",
          parameters=("mlp.W_in", "mlp.b_in")),
    Point("mlp.ckpt_post", HIDDEN, "hidden_act(mlp.ckpt_gate) * mlp.ckpt_up", "after the gate"),
    common.written("mlp", "mlp.ckpt_post @ W_out + b_out"),
    common.RESID_POST,
)  # fmt: skip
"""The 20 points of a block, in execution order. The heads of k, v and rot_k are those of keys and values."""

AFTER = common.rms_norm("ln_final", "the last resid_post", common.HEAD_READS, of="last stream")


def _heads(letter: str, axis: str) -> tuple[Parameter, Parameter]:
    """The matrix and the bias of queries, keys or values."""
    matrix = Parameter(f"attn.W_{letter}", (axis, "d_model", "d_head"), in_memory=(axis, "d_head", "d_model"))
    return matrix, Parameter(f"attn.b_{letter}", (axis, "d_head"), initial="zeros")


_GAIN = ("d_model",)
_PARAMETERS_OF_A_BLOCK = (
    Parameter("ln1.w", _GAIN, initial="ones"),
    *_heads("Q", "head"),
    *_heads("K", "head_kv"),
    *_heads("V", "head_kv"),
    *common.OUT,
    Parameter("ln2.w", _GAIN, initial="ones"),
    *common.linear("mlp.W_gate", "mlp.b_gate", "d_model", "d_mlp"),
    *common.linear("mlp.W_in", "mlp.b_in", "d_model", "d_mlp"),
    *common.linear("mlp.W_out", "mlp.b_out", "d_mlp", "d_model"),
)


@functools.lru_cache(maxsize=256)
def schema_of(
    sizes: tuple[tuple[str, int], ...], *, tied: bool = False, attention_bias: bool = True, mlp_bias: bool = True
) -> Schema:
    """The schema of a Llama of some sizes, pairs of an axis and its length."""
    n_layer = dict(sizes)["layer"]
    absent = (*("attn.b_",) * (not attention_bias), *("mlp.b_",) * (not mlp_bias))
    block = common.without(BLOCK, absent)
    inside = common.in_blocks((p for p in _PARAMETERS_OF_A_BLOCK if not p.name.startswith(absent)), n_layer)
    around = (Parameter("ln_final.w", _GAIN, initial="ones"), common.unembedding(tied=tied))
    return Schema(
        family="llama",
        sizes=dict(sizes),
        before=BEFORE,
        block=block,
        blocks=(block,) * n_layer,
        after=AFTER,
        parameters=(Parameter("embed.W_E", ("d_vocab", "d_model")), *inside, *around),
        others=OTHERS,
    )


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a Llama of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
