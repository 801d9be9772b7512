"""What a Llama is (Touvron et al. 2023, arXiv:2302.13971): its points, its parameters, its sizes.

To add a checkpoint, pass the value through a `Ckpt` where it is computed (model.py) and add a row here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from pellucid import common_points as common
from pellucid.axes import HIDDEN, RESIDUAL
from pellucid.llama.aliases import OTHERS
from pellucid.schema import STREAM, Parameter, Point, Schema, unembedding

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


def of_sizes(sizes: Mapping[str, int]) -> Schema:
    """The schema of a Llama of which only sizes are known, such as one that a file of captures names."""
    return schema_of(tuple(sizes.items()))
