"""What a GPT-2 is (Radford et al. 2019): its points, its parameters, its sizes. The one table of the family.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py, attention.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from pellucid.axes import ATTENTION, HIDDEN, PER_HEAD, RESIDUAL
from pellucid.gpt2.aliases import OTHERS
from pellucid.schema import STREAM, Parameter, Point, Schema, unembedding

_SCALED = "(x - mean(x)) / sqrt(var(x) + eps)"
_DEVIATIONS = "standard deviations"

BEFORE = (
    Point("ckpt_embed", RESIDUAL, "W_E[ids]", "token embeddings", STREAM, parameters=("embed.W_E",)),
    Point(
        "ckpt_pos_embed", RESIDUAL, "W_pos[positions]", "position embeddings", STREAM, parameters=("pos_embed.W_pos",)
    ),
)

BLOCK = (
    Point("resid_pre", RESIDUAL, "dropout(ckpt_embed + ckpt_pos_embed) in block 0, else resid_post of the block before",
          "what enters the block", STREAM),
    Point("ln1.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = resid_pre", "resid_pre, standardized", _DEVIATIONS,
          computed="when watched"),
    Point("ln1.ckpt_normalized", RESIDUAL, "ln1.ckpt_scaled * ln1.w + ln1.b", "what attention reads",
          parameters=("ln1.w", "ln1.b")),
    Point("attn.ckpt_q", PER_HEAD, "ln1.ckpt_normalized @ W_Q[h] + b_Q[h]", "queries",
          parameters=("attn.W_Q", "attn.b_Q")),
    Point("attn.ckpt_k", PER_HEAD, "ln1.ckpt_normalized @ W_K[h] + b_K[h]", "keys",
          parameters=("attn.W_K", "attn.b_K")),
    Point("attn.ckpt_v", PER_HEAD, "ln1.ckpt_normalized @ W_V[h] + b_V[h]", "values",
          parameters=("attn.W_V", "attn.b_V")),
    # a difference of scores is the logarithm of a ratio of attention weights, so scores are in nats
    Point("attn.ckpt_scores", ATTENTION, "attn.ckpt_q · attn.ckpt_k * scale, the dtype's minimum where masked",
          "q · k, scaled and masked", "nats", computed="when watched", masked=True),
    Point("attn.ckpt_pattern", ATTENTION, "softmax(attn.ckpt_scores) over Pk, before dropout",
          "share that each key gets", "probability", computed="when watched"),
    Point("attn.ckpt_z", PER_HEAD, "sum over Pk of dropout(attn.ckpt_pattern) * attn.ckpt_v",
          "values mixed by pattern"),
    Point("attn.ckpt_attn_out", RESIDUAL, "dropout(sum over h of attn.ckpt_z[h] @ W_O[h] + b_O)",
          "what attention adds", STREAM, parameters=("attn.W_O", "attn.b_O")),
    Point("resid_mid", RESIDUAL, "resid_pre + attn.ckpt_attn_out", "stream after attention", STREAM),
    Point("ln2.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = resid_mid", "resid_mid, standardized", _DEVIATIONS,
          computed="when watched"),
    Point("ln2.ckpt_normalized", RESIDUAL, "ln2.ckpt_scaled * ln2.w + ln2.b", "what the MLP reads",
          parameters=("ln2.w", "ln2.b")),
    Point("mlp.ckpt_pre", HIDDEN, "ln2.ckpt_normalized @ W_in + b_in", "before the activation",
          parameters=("mlp.W_in", "mlp.b_in")),
    Point("mlp.ckpt_post", HIDDEN, "activation_function(mlp.ckpt_pre)", "after the activation"),
    Point("mlp.ckpt_mlp_out", RESIDUAL, "dropout(mlp.ckpt_post @ W_out + b_out)", "what the MLP adds", STREAM,
          parameters=("mlp.W_out", "mlp.b_out")),
    Point("resid_post", RESIDUAL, "resid_mid + mlp.ckpt_mlp_out", "what leaves the block", STREAM),
)  # fmt: skip
"""The 17 points of a block, in execution order."""

AFTER = (
    Point("ln_final.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = the last resid_post",
          "last stream, standardized", _DEVIATIONS, computed="when watched"),
    Point("ln_final.ckpt_normalized", RESIDUAL, "ln_final.ckpt_scaled * ln_final.w + ln_final.b",
          "what the head reads: the logits are this @ W_U", parameters=("ln_final.w", "ln_final.b")),
)  # fmt: skip

_PARAMETERS_BEFORE = (
    Parameter("embed.W_E", ("d_vocab", "d_model")),
    Parameter("pos_embed.W_pos", ("n_ctx", "d_model")),
)
_PER_HEAD_MATRIX, _PER_HEAD_BIAS = ("head", "d_model", "d_head"), ("head", "d_head")
_PARAMETERS_OF_A_BLOCK = (
    Parameter("ln1.w", ("d_model",), initial="ones"),
    Parameter("ln1.b", ("d_model",), initial="zeros"),
    # stored side by side, q | k | v, as the reference stores them: one product on the same memory gives the same bits
    Parameter("attn.W_QKV", ("d_model", "d_qkv")),
    *(Parameter(f"attn.W_{part}", _PER_HEAD_MATRIX, "attn.W_QKV") for part in "QKV"),
    Parameter("attn.b_QKV", ("d_qkv",), initial="zeros"),
    *(Parameter(f"attn.b_{part}", _PER_HEAD_BIAS, "attn.b_QKV", "zeros") for part in "QKV"),
    Parameter("attn.W_O", ("head", "d_head", "d_model"), initial="residual"),
    Parameter("attn.b_O", ("d_model",), initial="zeros"),
    Parameter("ln2.w", ("d_model",), initial="ones"),
    Parameter("ln2.b", ("d_model",), initial="zeros"),
    Parameter("mlp.W_in", ("d_model", "d_mlp")),
    Parameter("mlp.b_in", ("d_mlp",), initial="zeros"),
    Parameter("mlp.W_out", ("d_mlp", "d_model"), initial="residual"),
    Parameter("mlp.b_out", ("d_model",), initial="zeros"),
)
_PARAMETERS_AFTER = (
    Parameter("ln_final.w", ("d_model",), initial="ones"),
    Parameter("ln_final.b", ("d_model",), initial="zeros"),
)


@functools.lru_cache(maxsize=256)
def schema_of(sizes: tuple[tuple[str, int], ...], *, tied: bool = True, upcast: bool = False) -> Schema:
    """The schema of a GPT-2 of some sizes.

    Args:
        sizes: Pairs of an axis and its length; "layer" is needed, the others are for the shapes of parameters.
        tied: Whether the head is the embedding.
        upcast: Whether eager attention computes scores in float32 (`reorder_and_upcast_attn`).
    """
    n_layer = dict(sizes)["layer"]
    block = tuple(replace(point, upcast=upcast and point.masked) for point in BLOCK)
    head = unembedding(tied=tied)
    inside = [
        replace(p, name=f"blocks.{i}.{p.name}", stored_in=f"blocks.{i}.{p.stored_in}")
        for i in range(n_layer)
        for p in _PARAMETERS_OF_A_BLOCK
    ]
    return Schema(
        family="gpt2",
        sizes=dict(sizes),
        before=BEFORE,
        block=block,
        blocks=(block,) * n_layer,
        after=AFTER,
        parameters=(*_PARAMETERS_BEFORE, *inside, *_PARAMETERS_AFTER, head),
        others=OTHERS,
    )


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a GPT-2 of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
