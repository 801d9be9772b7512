"""What a GPT-2 is (Radford et al. 2019): its points, its parameters, its sizes. The one table of the family.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from pellucid.family import common_points as common
from pellucid.names import attributes
from pellucid.schema import HIDDEN, RESIDUAL, STREAM, OtherNames, Parameter, Point, Schema

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


BEFORE = (
    common.EMBED,
    Point(
        "ckpt_pos_embed", RESIDUAL, "W_pos[positions]", "position embeddings", STREAM, parameters=("pos_embed.W_pos",)
    ),
)

BLOCK = (
    Point("resid_pre", RESIDUAL, "dropout(ckpt_embed + ckpt_pos_embed) in block 0, else resid_post of the block before",
          "what enters the block", STREAM),
    *common.layer_norm("ln1", "resid_pre", "what attention reads"),
    *common.projections(),
    *common.attending(),
    common.written("attn", "dropout(sum over h of attn.ckpt_z[h] @ W_O[h] + b_O)"),
    common.RESID_MID,
    *common.layer_norm("ln2", "resid_mid", "what the MLP reads"),
    Point("mlp.ckpt_pre", HIDDEN, "ln2.ckpt_normalized @ W_in + b_in", "before the activation",
          parameters=("mlp.W_in", "mlp.b_in")),
    Point("mlp.ckpt_post", HIDDEN, "activation_function(mlp.ckpt_pre)", "after the activation"),
    Point("mlp.ckpt_mlp_out", RESIDUAL, "dropout(mlp.ckpt_post @ W_out + b_out)", "what the MLP adds", STREAM,
          parameters=("mlp.W_out", "mlp.b_out")),
    common.RESID_POST,
)  # fmt: skip
"""The 17 points of a block, in execution order."""

AFTER = common.layer_norm("ln_final", "the last resid_post", common.HEAD_READS, of="last stream")

_PARAMETERS_BEFORE = (
    Parameter("embed.W_E", ("d_vocab", "d_model")),
    Parameter("pos_embed.W_pos", ("n_ctx", "d_model")),
)
_PER_HEAD_MATRIX, _PER_HEAD_BIAS = ("head", "d_model", "d_head"), ("head", "d_head")
_PARAMETERS_OF_A_BLOCK = (
    *common.gain_and_bias("ln1"),
    # stored side by side, q | k | v, as the reference stores them: one product on the same memory gives the same bits
    Parameter("attn.W_QKV", ("d_model", "d_qkv")),
    *(Parameter(f"attn.W_{part}", _PER_HEAD_MATRIX, "attn.W_QKV") for part in "QKV"),
    Parameter("attn.b_QKV", ("d_qkv",), initial="zeros"),
    *(Parameter(f"attn.b_{part}", _PER_HEAD_BIAS, "attn.b_QKV", "zeros") for part in "QKV"),
    Parameter("attn.W_O", ("head", "d_head", "d_model"), initial="residual"),
    Parameter("attn.b_O", ("d_model",), initial="zeros"),
    *common.gain_and_bias("ln2"),
    Parameter("mlp.W_in", ("d_model", "d_mlp")),
    Parameter("mlp.b_in", ("d_mlp",), initial="zeros"),
    Parameter("mlp.W_out", ("d_mlp", "d_model"), initial="residual"),
    Parameter("mlp.b_out", ("d_model",), initial="zeros"),
)


@functools.lru_cache(maxsize=256)
def schema_of(sizes: tuple[tuple[str, int], ...], *, tied: bool = True, upcast: bool = False) -> Schema:
    """The schema of a GPT-2 of some sizes, pairs of an axis and its length; `upcast` as `reorder_and_upcast_attn`."""
    n_layer = dict(sizes)["layer"]
    block = tuple(replace(point, upcast=upcast and point.masked) for point in BLOCK)
    inside = common.in_blocks(_PARAMETERS_OF_A_BLOCK, n_layer)
    return Schema(
        family="gpt2",
        sizes=dict(sizes),
        before=BEFORE,
        block=block,
        blocks=(block,) * n_layer,
        after=AFTER,
        parameters=(*_PARAMETERS_BEFORE, *inside, *common.gain_and_bias("ln_final"), common.unembedding(tied=tied)),
        others=OTHERS,
    )


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a GPT-2 of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
