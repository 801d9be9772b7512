"""Rows that the tables of several families share: norms, attention, and parameters that every block has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pellucid.schema import ATTENTION, PER_HEAD, RESIDUAL, STREAM, Parameter, Point

EMBED = Point("ckpt_embed", RESIDUAL, "W_E[ids]", "token embeddings", STREAM, parameters=("embed.W_E",))
RESID_MID = Point("resid_mid", RESIDUAL, "resid_pre + attn.ckpt_attn_out", "stream after attention", STREAM)
RESID_POST = Point("resid_post", RESIDUAL, "resid_mid + mlp.ckpt_mlp_out", "what leaves the block", STREAM)

HEAD_READS = "what the head reads: the logits are this @ W_U"


def layer_norm(place: str, x: str, reads: str, of: str = "") -> tuple[Point, Point]:
    """The points of a LayerNorm at a place, which reads the point `x`; `of` is what it standardizes, in words."""
    equation = f"(x - mean(x)) / sqrt(var(x) + eps) over D of x = {x}"
    return (
        Point(f"{place}.ckpt_scaled", RESIDUAL, equation, f"{of or x}, standardized", "standard deviations",
              computed="when watched"),
        Point(f"{place}.ckpt_normalized", RESIDUAL, f"{place}.ckpt_scaled * {place}.w + {place}.b", reads,
              parameters=(f"{place}.w", f"{place}.b"), reads=x if x == "resid_pre" else ""),
    )  # fmt: skip


def rms_norm(place: str, x: str, reads: str, of: str = "") -> tuple[Point, Point]:
    """The points of an RMSNorm; arguments as for `layer_norm`."""
    equation = f"x / sqrt(mean(x**2) + eps) over D of x = {x}, in float32"
    return (
        Point(f"{place}.ckpt_scaled", RESIDUAL, equation, f"{of or x}, scaled", "root mean squares"),
        Point(f"{place}.ckpt_normalized", RESIDUAL, f"{place}.w * {place}.ckpt_scaled", reads,
              parameters=(f"{place}.w",)),
    )  # fmt: skip


def projections(group: str = "h", turned: str = "") -> tuple[Point, ...]:
    """The points of queries, keys and values; `group` is "g" if several queries share keys and values."""
    of = {"q": ("queries" + turned, "h"), "k": ("keys" + turned, group), "v": ("values", group)}
    return tuple(
        Point(f"attn.ckpt_{c}", PER_HEAD, f"ln1.ckpt_normalized @ W_{c.upper()}[{at}] + b_{c.upper()}[{at}]", meaning,
              parameters=(f"attn.W_{c.upper()}", f"attn.b_{c.upper()}"), heads="head_kv" if at == "g" else "head")
        for c, (meaning, at) in of.items()
    )  # fmt: skip


def rotations(entries: str, group: str = "h") -> tuple[Point, Point]:
    """The points of queries and keys after rotation; `entries` says which of theirs are turned."""
    turned = f"{entries} turned by position * inv_freq"
    return (
        Point("attn.ckpt_rot_q", PER_HEAD, f"attn.ckpt_q, {turned}", "queries after rotation"),
        Point("attn.ckpt_rot_k", PER_HEAD, f"attn.ckpt_k, {turned}", "keys after rotation",
              heads="head_kv" if group == "g" else "head"),
    )  # fmt: skip


def attending(made_of: str = "") -> tuple[Point, Point, Point]:
    """The points of scores, pattern and z; `made_of` stands before q and k, such as "rot_"."""
    return (
        # a difference of scores is the logarithm of a ratio of attention weights, so scores are in nats
        Point("attn.ckpt_scores", ATTENTION,
              f"attn.ckpt_{made_of}q · attn.ckpt_{made_of}k * scale, the dtype's minimum where masked",
              "q · k, scaled and masked", "nats", computed="when watched", masked=True),
        Point("attn.ckpt_pattern", ATTENTION, "softmax(attn.ckpt_scores) over Pk, before dropout",
              "share that each key gets", "probability", computed="when watched"),
        Point("attn.ckpt_z", PER_HEAD, "sum over Pk of dropout(attn.ckpt_pattern) * attn.ckpt_v",
              "values mixed by pattern"),
    )  # fmt: skip


def written(name: str, equation: str) -> Point:
    """The point of what attention ("attn") or the MLP ("mlp") adds to the stream."""
    says, matrix = {"attn": ("what attention adds", "O"), "mlp": ("what the MLP adds", "out")}[name]
    parameters = (f"{name}.W_{matrix}", f"{name}.b_{matrix}")
    return Point(f"{name}.ckpt_{name}_out", RESIDUAL, equation, says, STREAM, parameters=parameters)


def gain_and_bias(place: str) -> tuple[Parameter, Parameter]:
    """The parameters of a LayerNorm."""
    return (
        Parameter(f"{place}.w", ("d_model",), initial="ones"),
        Parameter(f"{place}.b", ("d_model",), initial="zeros"),
    )


def linear(name: str, bias: str, inputs: str, outputs: str) -> tuple[Parameter, Parameter]:
    """A matrix [inputs, outputs] over the memory of torch's `Linear`, and its bias."""
    return Parameter(name, (inputs, outputs), in_memory=(outputs, inputs)), Parameter(bias, (outputs,), initial="zeros")


OUT = (
    Parameter("attn.W_O", ("head", "d_head", "d_model"), in_memory=("d_model", "head", "d_head")),
    Parameter("attn.b_O", ("d_model",), initial="zeros"),
)
"""What z is multiplied by over the memory of torch's `Linear`, and the bias."""


def in_blocks(parameters: Iterable[Parameter], n_layer: int) -> tuple[Parameter, ...]:
    """The parameters of a block, under their whole names in each of so many."""
    parameters = tuple(parameters)
    return tuple(
        replace(p, name=f"blocks.{i}.{p.name}", stored_in=f"blocks.{i}.{p.stored_in}")
        for i in range(n_layer)
        for p in parameters
    )


def without(points: Iterable[Point], absent: tuple[str, ...]) -> tuple[Point, ...]:
    """Points of a model without the biases whose names begin so, such as "attn.b_"."""
    return tuple(_without(point, absent) for point in points)


def _without(point: Point, absent: tuple[str, ...]) -> Point:
    present = tuple(name for name in point.parameters if not name.startswith(absent))
    if len(present) == len(point.parameters):
        return point
    equation = point.equation.replace(", + b_", " + b_")
    start, _, end = equation.partition(" + b_")
    return replace(point, parameters=present, equation=start + (")" if end.endswith(")") else ""))


def unembedding(*, tied: bool) -> Parameter:
    """`W_U`, which is the embedding if the two are tied."""
    stored_in = "embed.W_E" if tied else "unembed.W_U"
    return Parameter("unembed.W_U", ("d_model", "d_vocab"), stored_in, in_memory=("d_vocab", "d_model"))
