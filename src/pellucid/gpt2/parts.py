"""A plain GPT-2 whose parts can be replaced: the reference with a mistake in it.

It serves two callers. A comparison of models tries known mistakes in it to find the cause of a difference, and the
exercises judge a learner's code by it. Everything is computed in float64 (in float32 only to refuse a mistake quickly)
and by hand, without fused kernels, so it shares nothing with the model except the parameters.

Values are recorded by place: "ln1<" is what enters ln1, "ln1>" what leaves it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.family.families import Span
from pellucid.gpt2.formulas import (
    Heads,
    Norm,
    PlainWeights,
    Sizes,
    activate,
    causal,
    counted,
    feed_in,
    feed_out,
    layer_norm,
    project,
    project_out,
    softmax,
)

Values = dict[str, Tensor]

LOGITS = "logits"


def pre_norm(block: PlainBlock, x: Tensor) -> Tensor:
    """GPT-2's block: LayerNorm before attention and before the MLP."""
    parts = block.parts
    x = parts.dropped("input", x)
    read = block.norm(parts.norm_before_attention, x)
    mid = block.record("mid", parts.dropped("mid", parts.add_attention(x, read, block.attention(read))))
    read = block.norm(parts.norm_before_mlp, parts.mlp_reads(x, mid))
    out = block.mlp(read)
    return parts.dropped("sum", parts.add_mlp(x, mid, read, out))


@dataclass(frozen=True)
class Parts:
    """The parts of a GPT-2; `dataclasses.replace` puts a mistake in the place of some of them."""

    tokens: Callable[[Tensor, Sizes], Tensor] = field(default=lambda x, sizes: x)  # from the token embeddings [B, P, D]
    # the rows [P] or [B, P] of the table that are read for ids [B, P]
    positions: Callable[[Tensor, Sizes], Tensor] = counted
    table: str = "pos_embed.W_pos"  # the table that they are read from
    # from token and position embeddings to the first residual stream
    combine: Callable[[Tensor, Tensor], Tensor] = torch.add
    norm_before_blocks: tuple[str, ...] = ()  # LayerNorms that are applied to it, in turn
    # ln1, ln2, ln_final: the formula of each LayerNorm
    ln1: Norm = layer_norm
    ln2: Norm = layer_norm
    ln_final: Norm = layer_norm
    epsilon: float | None = None  # the epsilon of every LayerNorm; None for the model's
    # norm_before_attention, norm_before_mlp, norm_before_head: LayerNorms that are applied there, in turn
    norm_before_attention: tuple[str, ...] = ("ln1",)
    norm_before_mlp: tuple[str, ...] = ("ln2",)
    norm_before_head: tuple[str, ...] = ("ln_final",)
    project: Callable[[Tensor, PlainWeights], Heads] = project  # from attention's input to q, k and v
    # how q, k and v are divided into heads
    split: Callable[[Heads, PlainWeights], Heads] = field(default=lambda heads, weights: heads)
    taken: tuple[int, ...] = (0, 1, 2)  # which of the three is used as q, which as k and which as v
    # scale, mask, fill, pattern: from scores [B, H, Pq, Pk] to the pattern
    scale: Callable[[Tensor, PlainWeights], float | Tensor] = field(default=lambda q, weights: weights.scale(q))
    mask: Callable[[Tensor], Tensor] = causal
    fill: float | None = None
    pattern: Callable[[Tensor, Tensor, float | None], Tensor] = softmax
    # from the pattern and q, k, v [B, H, P, K] to z [B, H, P, K]
    mix: Callable[[Tensor, Heads], Tensor] = field(default=lambda pattern, heads: pattern @ heads[2])
    # how the heads z [B, P, H, K] are put together, to [B, P, H * K]
    merge: Callable[[Tensor, PlainWeights], Tensor] = field(default=lambda z, weights: z.flatten(2))
    # the output projection; it is given attention's input, too
    out: Callable[[Tensor, Tensor, PlainWeights], Tensor] = project_out
    # feed_in, activation, feed_out: the MLP
    feed_in: Callable[[Tensor, PlainWeights], Tensor] = feed_in
    activation: Callable[[Tensor, Sizes], Tensor] = activate
    feed_out: Callable[[Tensor, PlainWeights], Tensor] = feed_out
    # what the MLP's LayerNorm reads, of the block's input and the residual stream after attention
    mlp_reads: Callable[[Tensor, Tensor], Tensor] = field(default=lambda x, mid: mid)
    # from the block's input, attention's input and its output
    add_attention: Callable[[Tensor, Tensor, Tensor], Tensor] = field(default=lambda x, read, out: x + out)
    # from the block's input, the residual stream after attention, the MLP's input and its output
    add_mlp: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = field(default=lambda x, mid, read, out: mid + out)
    wiring: Callable[[PlainBlock, Tensor], Tensor] = pre_norm  # how a block puts all of this together
    blocks: tuple[int, ...] | None = None  # where replaced parts hold; None for everywhere
    elsewhere: Parts | None = None  # what the other blocks are; None for right ones
    order: Callable[[int], Sequence[int]] = range  # the blocks in the order in which they are applied, for their number
    # from the last residual stream and the position embeddings
    ending: Callable[[Tensor, Tensor], Tensor] = field(default=lambda x, positions: x)
    # from the last LayerNorm's output and the head [V, D]
    logits: Callable[[Tensor, Tensor], Tensor] = field(default=lambda x, head: x @ head.T)
    head: Tensor | None = None  # the head [V, D]; None for the model's
    drop: Callable[[Tensor], Tensor] | None = None  # dropout; None in evaluation
    # attention_drops, output_drops, mlp_drops, embedding_drops: where it acts, in training
    attention_drops: tuple[str, ...] = ("pattern",)
    output_drops: tuple[str, ...] = ("attention",)
    mlp_drops: tuple[str, ...] = ("mlp",)
    embedding_drops: tuple[str, ...] = ("embeddings",)

    def dropped(self, place: str, x: Tensor) -> Tensor:
        """Apply dropout to x as often as it acts at this place; outside of training, return x as it is."""
        if self.drop is not None:
            places = (*self.attention_drops, *self.output_drops, *self.mlp_drops, *self.embedding_drops)
            for _ in range(places.count(place)):
                x = self.drop(x)
        return x

    def first_change(self, n_layer: int) -> int:
        """The first block that is computed otherwise; -1 for the embeddings, `n_layer` for what follows the blocks."""
        changed = {name for name, right in vars(RIGHT).items() if getattr(self, name) is not right}
        if changed & _BEFORE:
            return -1
        order = self.order(n_layer)
        moved = next((i for i, block in enumerate(order) if block != i), len(order))
        inside = changed - _BEHIND - {"order", "blocks", "elsewhere"}
        first = (0 if self.blocks is None else min(self.blocks, default=n_layer)) if inside else n_layer
        return min(moved, first, n_layer if self.elsewhere is None else self.elsewhere.first_change(n_layer))


RIGHT = Parts()
"""GPT-2 without a mistake."""

_BEFORE = {"tokens", "positions", "table", "combine", "norm_before_blocks", "embedding_drops"}
_BEHIND = {"ln_final", "norm_before_head", "ending", "logits", "head"}


@dataclass(frozen=True)
class PlainBlock:
    """The halves of one block, each recording what it computes; `Parts.wiring` puts them together."""

    parts: Parts
    weights: PlainWeights
    record: Callable[[str, Tensor], Tensor]

    def norm(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        """LayerNorms, one after the other."""
        return _normalised(self.parts, self.weights, names, x, self.record)

    def attention(self, x: Tensor) -> Tensor:
        """Attention to x [B, P, D]."""
        parts, weights, record = self.parts, self.weights, self.record
        x = parts.dropped("attended", x)
        for point in ("attn<", "qkv<", "q<", "k<", "v<"):
            record(point, x)
        heads = parts.project(x, weights)
        for letter, part in zip("qkv", heads, strict=True):
            record(f"{letter}>", part)
        split = parts.split(heads, weights)
        q, k, v = (split[number].transpose(1, 2) for number in parts.taken)
        for letter, part in zip("qkv", (q, k, v), strict=True):
            record(f"{letter} by head", part)
        q, k, v = parts.dropped("q", q), parts.dropped("k", k), parts.dropped("v", v)
        scores = parts.dropped("unscaled scores", q @ k.transpose(-1, -2)) * parts.scale(q, weights)
        scores = parts.dropped("scores", record("scores", scores))
        pattern = record("pattern", parts.pattern(scores, parts.mask(scores), parts.fill))
        z = parts.mix(parts.dropped("pattern", pattern), (q, k, v)).transpose(1, 2)
        z = record("z", parts.merge(z, weights))
        record("O<", z.unflatten(2, (-1, weights.sizes.head)))
        out = parts.dropped("attention", parts.out(parts.dropped("z", z), x, weights))
        record("O>", out)
        return record("attn>", out)

    def mlp(self, x: Tensor) -> Tensor:
        """The MLP of x [B, P, D]."""
        parts, weights, record = self.parts, self.weights, self.record
        x = parts.dropped("fed", x)
        record("mlp<", x)
        record("in<", x)
        pre = record("in>", parts.feed_in(x, weights))
        post = record("out<", parts.activation(pre, weights.sizes))
        out = record("out>", parts.feed_out(parts.dropped("activation", post), weights))
        return record("mlp>", parts.dropped("mlp", out))


def run_parts(parts: Parts, weights: PlainWeights, span: Span) -> Values:
    """The values of a span by point, "logits" among them."""
    values: Values = {}
    n_layer = weights.sizes.layers
    positions = torch.zeros((), dtype=weights.dtype, device=span.ids.device)
    if span.residual is not None:
        x = span.residual.to(weights.dtype)
    else:
        x, positions = _embeddings(parts, weights, span.ids, values)
    order = parts.order(n_layer)[max(span.first, 0) : span.last + 1]
    halved = span.half and span.last < n_layer
    for place, i in enumerate(order):
        here = parts if parts.blocks is None or i in parts.blocks else parts.elsewhere or RIGHT
        x, inside = run_block(here, weights.of_block(i), x, half=halved and place == len(order) - 1)
        prefix = f"blocks.{place if span.by_place else i}."
        values |= {prefix + kind: value for kind, value in inside.items()}
    if span.last >= n_layer:
        _finish(parts, weights, parts.ending(x, positions), values, span.step)
    return values


class _MiddleError(Exception):
    """Ends a run in the middle of its last block."""


def run_block(parts: Parts, weights: PlainWeights, x: Tensor, *, half: bool = False) -> tuple[Tensor, Values]:
    """What leaves a block, and the values in it by point, without the block's name; with `half`, those before "mid"."""
    values: Values = {"block<": x}
    record = recorder(values)

    def until_middle(name: str, value: Tensor) -> Tensor:
        if name == "mid":
            raise _MiddleError
        return record(name, value)

    with contextlib.suppress(_MiddleError):
        x = values["block>"] = parts.wiring(PlainBlock(parts, weights, until_middle if half else record), x)
    return x, values


def recorder(values: Values) -> Callable[[str, Tensor], Tensor]:
    """A function that keeps a value under a name and returns it."""

    def record(name: str, value: Tensor) -> Tensor:
        values[name] = value
        return value

    return record


def _normalised(
    parts: Parts, weights: PlainWeights, names: tuple[str, ...], x: Tensor, record: Callable[[str, Tensor], Tensor]
) -> Tensor:
    epsilon = weights.sizes.epsilon if parts.epsilon is None else parts.epsilon
    for name in names:
        formula: Norm = getattr(parts, name)
        record(f"{name}<", x)
        x = record(f"{name}>", formula(x, weights[f"{name}.w"], weights[f"{name}.b"], epsilon))
    return x


def _embeddings(parts: Parts, weights: PlainWeights, ids: Tensor, values: Values) -> tuple[Tensor, Tensor]:
    """The first residual stream, and the position embeddings."""
    tokens = parts.dropped("tokens", weights.tensors["embed.W_E"][ids].to(weights.dtype))
    values["looked up"] = tokens
    values["embed>"] = tokens = parts.tokens(tokens, weights.sizes)
    rows = parts.positions(ids.cpu(), weights.sizes).to(ids.device)
    positions = weights.tensors[parts.table][rows].to(weights.dtype).expand_as(tokens)
    values["pos>"] = positions
    positions = parts.dropped("positions", positions)
    x = parts.dropped("embeddings", parts.combine(tokens, positions))
    values["embedded"] = x
    return _normalised(parts, weights, parts.norm_before_blocks, x, recorder({})), positions


def _finish(parts: Parts, weights: PlainWeights, x: Tensor, values: Values, step: int) -> None:
    values["ln_final<"] = x
    x = parts.dropped("last", x)
    x = _normalised(parts, weights, parts.norm_before_head, x, recorder(values))
    x = values["read by the head"] = parts.dropped("ln_final", x)
    head = (weights.head if parts.head is None else parts.head)[::step]
    values[LOGITS] = parts.dropped("logits", parts.logits(x, head.to(weights.dtype)))
