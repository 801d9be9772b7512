"""What a Llama is (Touvron et al. 2023, arXiv:2302.13971): its points, its parameters, its sizes.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py, attention.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from pellucid.axes import ATTENTION, HIDDEN, PER_HEAD, RESIDUAL
from pellucid.llama.aliases import OTHERS
from pellucid.schema import STREAM, Parameter, Point, Schema, unembedding

_SCALED = "x / sqrt(mean(x**2) + eps)"
_ROOTS = "root mean squares"

BEFORE = (Point("ckpt_embed", RESIDUAL, "W_E[ids]", "token embeddings", STREAM, parameters=("embed.W_E",)),)

BLOCK = (
    Point("resid_pre", RESIDUAL, "ckpt_embed in block 0, else resid_post of the block before", "what enters the block",
          STREAM),
    Point("ln1.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = resid_pre, in float32", "resid_pre, scaled", _ROOTS),
    Point("ln1.ckpt_normalized", RESIDUAL, "ln1.w * ln1.ckpt_scaled", "what attention reads", parameters=("ln1.w",)),
    Point("attn.ckpt_q", PER_HEAD, "ln1.ckpt_normalized @ W_Q[h] + b_Q[h]", "queries before rotation",
          parameters=("attn.W_Q", "attn.b_Q")),
    Point("attn.ckpt_k", PER_HEAD, "ln1.ckpt_normalized @ W_K[g] + b_K[g]", "keys before rotation",
          parameters=("attn.W_K", "attn.b_K"), heads="head_kv"),
    Point("attn.ckpt_v", PER_HEAD, "ln1.ckpt_normalized @ W_V[g] + b_V[g]", "values",
          parameters=("attn.W_V", "attn.b_V"), heads="head_kv"),
    Point("attn.ckpt_rot_q", PER_HEAD, "attn.ckpt_q, its pairs turned by position * inv_freq",
          "queries after rotation"),
    Point("attn.ckpt_rot_k", PER_HEAD, "attn.ckpt_k, its pairs turned by position * inv_freq", "keys after rotation",
          heads="head_kv"),
    # a difference of scores is the logarithm of a ratio of attention weights, so scores are in nats
    Point("attn.ckpt_scores", ATTENTION, "attn.ckpt_rot_q · attn.ckpt_rot_k * scale, the dtype's minimum where masked",
          "q · k, scaled and masked", "nats", computed="when watched", masked=True),
    Point("attn.ckpt_pattern", ATTENTION, "softmax(attn.ckpt_scores) over Pk, before dropout",
          "share that each key gets", "probability", computed="when watched"),
    Point("attn.ckpt_z", PER_HEAD, "sum over Pk of dropout(attn.ckpt_pattern) * attn.ckpt_v",
          "values mixed by pattern"),
    Point("attn.ckpt_attn_out", RESIDUAL, "sum over h of attn.ckpt_z[h] @ W_O[h], + b_O", "what attention adds",
          STREAM, parameters=("attn.W_O", "attn.b_O")),
    Point("resid_mid", RESIDUAL, "resid_pre + attn.ckpt_attn_out", "stream after attention", STREAM),
    Point("ln2.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = resid_mid, in float32", "resid_mid, scaled", _ROOTS),
    Point("ln2.ckpt_normalized", RESIDUAL, "ln2.w * ln2.ckpt_scaled", "what the MLP reads", parameters=("ln2.w",)),
    Point("mlp.ckpt_gate", HIDDEN, "ln2.ckpt_normalized @ W_gate + b_gate", "the gate before the activation",
          parameters=("mlp.W_gate", "mlp.b_gate")),
    Point("mlp.ckpt_up", HIDDEN, "ln2.ckpt_normalized @ W_in + b_in", "what is gated",
          parameters=("mlp.W_in", "mlp.b_in")),
    Point("mlp.ckpt_post", HIDDEN, "hidden_act(mlp.ckpt_gate) * mlp.ckpt_up", "after the gate"),
    Point("mlp.ckpt_mlp_out", RESIDUAL, "mlp.ckpt_post @ W_out + b_out", "what the MLP adds", STREAM,
          parameters=("mlp.W_out", "mlp.b_out")),
    Point("resid_post", RESIDUAL, "resid_mid + mlp.ckpt_mlp_out", "what leaves the block", STREAM),
)  # fmt: skip
"""The 20 points of a block, in execution order. Of heads, k, v and rot_k have those of keys and values."""

AFTER = (
    Point("ln_final.ckpt_scaled", RESIDUAL, f"{_SCALED} over D of x = the last resid_post, in float32",
          "last stream, scaled", _ROOTS),
    Point("ln_final.ckpt_normalized", RESIDUAL, "ln_final.w * ln_final.ckpt_scaled",
          "what the head reads: the logits are this @ W_U", parameters=("ln_final.w",)),
)  # fmt: skip


def _heads(letter: str, axis: str) -> tuple[Parameter, Parameter]:
    """The matrix and the bias of queries, keys or values."""
    matrix = Parameter(f"attn.W_{letter}", (axis, "d_model", "d_head"), in_memory=(axis, "d_head", "d_model"))
    return matrix, Parameter(f"attn.b_{letter}", (axis, "d_head"), initial="zeros")


def _linear(name: str, bias: str, inputs: str, outputs: str) -> tuple[Parameter, Parameter]:
    matrix = Parameter(f"mlp.{name}", (inputs, outputs), in_memory=(outputs, inputs))
    return matrix, Parameter(f"mlp.{bias}", (outputs,), initial="zeros")


_GAIN = ("d_model",)
_PARAMETERS_OF_A_BLOCK = (
    Parameter("ln1.w", _GAIN, initial="ones"),
    *_heads("Q", "head"),
    *_heads("K", "head_kv"),
    *_heads("V", "head_kv"),
    Parameter("attn.W_O", ("head", "d_head", "d_model"), in_memory=("d_model", "head", "d_head")),
    Parameter("attn.b_O", ("d_model",), initial="zeros"),
    Parameter("ln2.w", _GAIN, initial="ones"),
    *_linear("W_gate", "b_gate", "d_model", "d_mlp"),
    *_linear("W_in", "b_in", "d_model", "d_mlp"),
    *_linear("W_out", "b_out", "d_mlp", "d_model"),
)


@functools.lru_cache(maxsize=256)
def schema_of(
    sizes: tuple[tuple[str, int], ...], *, tied: bool = False, attention_bias: bool = True, mlp_bias: bool = True
) -> Schema:
    """The schema of a Llama of some sizes.

    Args:
        sizes: Pairs of an axis and its length; "layer" is needed, the others are for the shapes of parameters.
        tied: Whether the head is the embedding.
        attention_bias: Whether the projections of attention have biases.
        mlp_bias: Whether those of the MLP have.
    """
    n_layer = dict(sizes)["layer"]
    without = ("attn.b_" if not attention_bias else "", "mlp.b_" if not mlp_bias else "")
    absent = tuple(filter(None, without))
    block = tuple(replace(p, parameters=_present(p.parameters, absent), equation=_said(p, absent)) for p in BLOCK)
    of_a_block = [p for p in _PARAMETERS_OF_A_BLOCK if not p.name.startswith(absent)]
    inside = [
        replace(p, name=f"blocks.{i}.{p.name}", stored_in=f"blocks.{i}.{p.stored_in}")
        for i in range(n_layer)
        for p in of_a_block
    ]
    around = (Parameter("ln_final.w", _GAIN, initial="ones"), unembedding(tied=tied))
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


def _present(names: tuple[str, ...], absent: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.startswith(absent))


def _said(point: Point, absent: tuple[str, ...]) -> str:
    """How a point is computed, without the bias that there is not."""
    has_no_bias = len(_present(point.parameters, absent)) < len(point.parameters)
    return point.equation.partition(" + b_")[0].removesuffix(",") if has_no_bias else point.equation


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a Llama of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
