"""What a GPT-NeoX is (Black et al. 2022, arXiv:2204.06745): its points, its parameters, its sizes.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from pellucid.family import common_points as common
from pellucid.names import attributes
from pellucid.schema import HIDDEN, RESIDUAL, STREAM, OtherNames, Parameter, Point, Schema

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

MODEL_ELSEWHERE: Mapping[str, str] = {
    **attributes.ROTARY_MODEL,
    "b_U": "no tensor: GPT-NeoX's head has no bias",
    "gpt_neox": "model.blocks, model.embed and model.ln_final",
    "embed_in": "model.embed",
    "embed_out": "model.unembed",
    "final_layer_norm": "model.ln_final",
}
"""Attributes of other libraries' models -> what to use here."""

BLOCK_ELSEWHERE: Mapping[str, str] = {
    **attributes.BLOCK,
    "input_layernorm": "{here}.ln1",
    "post_attention_layernorm": "{here}.ln2",
    "attention": "{here}.attn",
}

PARALLEL_BLOCK_ELSEWHERE: Mapping[str, str] = {
    **BLOCK_ELSEWHERE,
    "hook_resid_mid": "{here}.resid_pre and {here}.attn.ckpt_attn_out: the MLP of this block does not read their sum",
    "hook_mlp_in": "{here}.resid_pre",
}

ATTENTION_ELSEWHERE: Mapping[str, str] = {
    **attributes.ROTARY_ATTENTION,
    "query_key_value": "{here}.W_QKV and {here}.b_QKV",
    "dense": "{here}.W_O and {here}.b_O",
    "head_size": "model.config.d_head",
}

MLP_ELSEWHERE: Mapping[str, str] = {
    **{name: said for name, said in attributes.MLP.items() if name.startswith("hook_")},
    "dense_h_to_4h": "{here}.W_in and {here}.b_in",
    "dense_4h_to_h": "{here}.W_out and {here}.b_out",
}

BEFORE = (common.EMBED,)

_READ_BY_ATTENTION = (
    Point("resid_pre", RESIDUAL, "dropout(ckpt_embed) in block 0, else resid_post of the block before",
          "what enters the block", STREAM),
    *common.layer_norm("ln1", "resid_pre", "what attention reads"),
    *common.projections(turned=" before rotation"),
    *common.rotations("the pairs of its first d_rot entries"),
    *common.attending("rot_"),
    common.written("attn", "dropout(sum over h of attn.ckpt_z[h] @ W_O[h] + b_O)"),
)  # fmt: skip
_MLP = (
    Point("mlp.ckpt_pre", HIDDEN, "ln2.ckpt_normalized @ W_in + b_in", "before the activation",
          parameters=("mlp.W_in", "mlp.b_in")),
    Point("mlp.ckpt_post", HIDDEN, "hidden_act(mlp.ckpt_pre)", "after the activation"),
    common.written("mlp", "dropout(mlp.ckpt_post @ W_out + b_out)"),
)  # fmt: skip

SEQUENTIAL = (
    *_READ_BY_ATTENTION,
    common.RESID_MID,
    *common.layer_norm("ln2", "resid_mid", "what the MLP reads"),
    *_MLP,
    common.RESID_POST,
)
"""The 19 points of a block whose MLP reads what attention added, in execution order."""

PARALLEL = (
    *_READ_BY_ATTENTION,
    *common.layer_norm("ln2", "resid_pre", "what the MLP reads"),
    *_MLP,
    replace(common.RESID_POST, equation="mlp.ckpt_mlp_out + attn.ckpt_attn_out + resid_pre"),
)
"""The 18 points of a block whose MLP reads what attention does."""

AFTER = common.layer_norm("ln_final", "the last resid_post", common.HEAD_READS, of="last stream")

_PARAMETERS_OF_A_BLOCK = (
    *common.gain_and_bias("ln1"),
    # stored as the reference does, head after head, each q | k | v: one product on the same memory gives the same bits
    Parameter("attn.W_QKV", ("d_model", "d_qkv"), in_memory=("d_qkv", "d_model")),
    *(Parameter(f"attn.W_{part}", ("head", "d_model", "d_head"), "attn.W_QKV") for part in "QKV"),
    Parameter("attn.b_QKV", ("d_qkv",), initial="zeros"),
    *(Parameter(f"attn.b_{part}", ("head", "d_head"), "attn.b_QKV", "zeros") for part in "QKV"),
    *common.OUT,
    *common.gain_and_bias("ln2"),
    *common.linear("mlp.W_in", "mlp.b_in", "d_model", "d_mlp"),
    *common.linear("mlp.W_out", "mlp.b_out", "d_mlp", "d_model"),
)


@functools.lru_cache(maxsize=256)
def schema_of(
    sizes: tuple[tuple[str, int], ...], *, tied: bool = False, attention_bias: bool = True, parallel: bool | None = None
) -> Schema:
    """The schema of a GPT-NeoX of some sizes, pairs of an axis and its length.

    With `parallel` the MLP of a block reads what its attention does; None, if that is not known, gives every point.
    """
    n_layer = dict(sizes)["layer"]
    absent = () if attention_bias else ("attn.b_",)
    block = common.without(PARALLEL if parallel else SEQUENTIAL, absent)
    inside = common.in_blocks((p for p in _PARAMETERS_OF_A_BLOCK if not p.name.startswith(absent)), n_layer)
    return Schema(
        family="gpt_neox",
        sizes=dict(sizes),
        before=BEFORE,
        block=block,
        blocks=(block,) * n_layer,
        after=AFTER,
        parameters=(
            Parameter("embed.W_E", ("d_vocab", "d_model")),
            *inside,
            *common.gain_and_bias("ln_final"),
            common.unembedding(tied=tied),
        ),
        others=OTHERS,
    )


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a GPT-NeoX of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
