"""The course's GPT-2 as plain functions of the learner's own parameters, with a dial for every known mistake.

`Way()` is the right way; a mistake is a `Way` with one dial turned. Every function gives its stages by name, in the
order in which they are computed (Radford et al. 2019; Vaswani et al. 2017 for attention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.exercises.watch import marked
from pellucid.numerics import nonlinear

Stages = dict[str, Tensor]
Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the course's classes are constructed with.

    Attributes:
        hidden: Width of the residual stream.
        heads: How many heads.
        head: Width of one head; not hidden/heads where it is given.
        epsilon: The epsilon of every LayerNorm.
        activation: "relu" or "gelu".
        layers: Blocks.
        vocabulary: Tokens.
        positions: Longest text.
        dropout: The rate of every dropout.
    """

    hidden: int
    heads: int
    head: int
    epsilon: float = 1e-5
    activation: str = "relu"
    layers: int = 0
    vocabulary: int = 0
    positions: int = 0
    dropout: float = 0.25


@dataclass(frozen=True)
class Way:
    """How it is computed; the defaults are right, and every other value is a mistake that somebody makes."""

    split: str = "part head size"
    order: str = "qkv"
    qkv_bias: bool = True
    scale: str = "head"
    diagonal: int | None = 0
    fill: float = -math.inf
    masked: str = "scores"
    over: int = -1
    normalise: str = "softmax"
    unbiased: str = ""
    twice: str = ""
    values: str = "v"
    merge: str = "head size"
    project: str = "yes"
    out_bias: bool = True
    norms: str = "pre"
    epsilon: float | None = None
    variance: str = "biased"
    first: str = "added"
    second: str = "added"
    mlp_reads: str = "ln2"
    activation: str | None = None
    linear2: bool = True
    offset: int = 0
    positions: str = "columns"
    embed_scale: bool = False
    blocks: str = "all"
    final: str = "ln"
    head: str = "tied"
    heads: int | None = None
    training: bool = False
    attn_drop: str = "pattern"
    out_drops: int = 1
    mlp_drop: str = "linear2"
    embed_drop: str = "sum"

    def drop(self, x: Tensor, sizes: Sizes, times: int) -> Tensor:
        """In training, dropout's stand-in, so many times."""
        for _ in range(times if self.training else 0):
            x = marked(x, sizes.dropout)
        return x


def attention(x: Tensor, p: Parameters, sizes: Sizes, way: Way) -> Stages:
    """x [B, P, D] -> the stages of attention; the last is its output [B, P, D]."""
    qkv = x @ p["qkv_proj.weight"].T + (p["qkv_proj.bias"] if way.qkv_bias else 0.0)
    parts = split_heads(qkv, sizes, way)
    stages = {"q, k, v": torch.stack([parts[letter] for letter in "qkv"])}
    q, k, v = (parts[letter] for letter in "qkv")
    q, k = way.drop(q, sizes, way.attn_drop == "q"), way.drop(k, sizes, way.attn_drop == "k")
    scores = way.drop(q @ k.transpose(-1, -2), sizes, way.attn_drop == "unscaled scores") * _scale(x, sizes, way)
    stages["scores"] = scores
    pattern = _pattern(way.drop(scores, sizes, way.attn_drop == "scores"), way)
    stages["pattern"] = pattern = pattern.transpose(-1, -2) if way.values == "transposed" else pattern
    v = way.drop({"k": k, "q": q}.get(way.values, v), sizes, way.attn_drop == "v")
    z = way.drop(pattern, sizes, {"pattern": 1, "twice": 2}.get(way.attn_drop, 0)) @ v
    stages["z"] = z = {
        "head size": lambda: z.transpose(1, 2).flatten(2),
        "size head": lambda: z.permute(0, 2, 3, 1).flatten(2),
        "not moved": lambda: z.reshape(x.size(0), x.size(1), -1),
    }[way.merge]()
    z = way.drop(z, sizes, way.attn_drop == "z")
    weight, bias = p["output_proj.weight"], p["output_proj.bias"] if way.out_bias else 0.0
    out = z if way.project == "no" else z @ (weight if way.project == "transposed" else weight.T) + bias
    out = {"twice": lambda: out @ weight.T + bias, "residual": lambda: out + x}.get(way.project, lambda: out)()
    stages["output"] = way.drop(out, sizes, way.out_drops)
    return stages


def split_heads(qkv: Tensor, sizes: Sizes, way: Way) -> dict[str, Tensor]:
    """q, k, v as [B, H, P, K]."""
    counts = {"part": 3, "head": sizes.heads, "size": sizes.head}
    if way.split == "rows":  # reshaped to [B, H, P, K] without moving the heads
        chunks = [part.reshape(qkv.size(0), sizes.heads, qkv.size(1), sizes.head) for part in qkv.chunk(3, -1)]
        return dict(zip(way.order, chunks, strict=True))
    names = way.split.split()
    axes = qkv.unflatten(-1, [counts[name] for name in names])
    order = [2 + names.index(name) for name in ("part", "head", "size")]
    moved = axes.permute(order[0], 0, order[1], 1, order[2])
    return dict(zip(way.order, moved, strict=True))


def _scale(x: Tensor, sizes: Sizes, way: Way) -> float:
    return {
        "head": sizes.head**-0.5,
        "none": 1.0,
        "hidden": sizes.hidden**-0.5,
        "default head": (sizes.hidden // sizes.heads) ** -0.5,
        "heads": sizes.heads**-0.5,
        "columns": (sizes.heads * sizes.head) ** -0.5,
        "unrooted": 1 / sizes.head,
        "multiplied": sizes.head**0.5,
        "positions": x.size(1) ** -0.5,
    }[way.scale]


def _pattern(scores: Tensor, way: Way) -> Tensor:
    hidden = torch.zeros(scores.shape[-2:], dtype=torch.bool)
    if way.diagonal is not None:
        hidden = ~torch.ones_like(hidden).tril(way.diagonal)
    if way.masked == "transposed":
        hidden = hidden.T
    if way.masked.startswith("times"):
        factor = torch.ones(hidden.shape, dtype=scores.dtype).masked_fill(hidden, way.fill)
        return (scores * (factor if way.masked == "times fill" else torch.where(hidden, -math.inf, 0.0))).softmax(-1)
    if way.masked == "scores" or way.masked == "transposed":
        ready = scores.masked_fill(hidden, way.fill)
        ways = {"log_softmax": ready.log_softmax, "sigmoid": lambda _: ready.sigmoid(), "none": lambda _: ready}
        return ways.get(way.normalise, ready.softmax)(way.over)
    pattern = scores.softmax(way.over).masked_fill(hidden, 0.0)
    return pattern / pattern.sum(-1, keepdim=True) if way.masked == "pattern, renormalised" else pattern


def norm(x: Tensor, p: Parameters, name: str, sizes: Sizes, way: Way) -> Tensor:
    """LayerNorm over the last axis."""
    epsilon = sizes.epsilon if way.epsilon is None else way.epsilon
    centred = x - x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=way.variance == "unbiased")
    if way.variance == "rms":
        centred, variance = x, x.pow(2).mean(-1, keepdim=True)
    below = variance.sqrt() + epsilon if way.variance == "outside" else (variance + epsilon).sqrt()
    scaled = centred / below
    return scaled if way.variance == "plain" else scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_new": nonlinear.gelu_new, "quick_gelu": nonlinear.quick_gelu,
    "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": nonlinear.linear,
    "leaky_relu": F.leaky_relu, "relu6": F.relu6,
}  # fmt: skip


def block(x: Tensor, p: Parameters, sizes: Sizes, way: Way) -> Stages:
    """x [B, P, D] -> the stages of one block; the last is its output [B, P, D]."""

    def ln(name: str, value: Tensor) -> Tensor:
        name = {"swapped": {"ln1": "ln2", "ln2": "ln1"}[name], "ln1 twice": "ln1", "ln2 twice": "ln2"}.get(
            way.norms, name
        )
        return value if way.norms in ("none", f"no {name}") else norm(value, p, name, sizes, way)

    inner = {name.removeprefix("attn."): value for name, value in p.items() if name.startswith("attn.")}
    stages: Stages = {}
    stages["ln1"] = read = x if way.norms == "post" else ln("ln1", x)
    split = sizes if way.heads is None else replace(sizes, heads=way.heads, head=sizes.hidden // way.heads)
    attended = attention(read, inner, split, way)
    stages |= {f"attn {name}": value for name, value in attended.items()}
    out = attended["output"]
    added = {"added": x + out, "missing": out, "normalized": read + out, "twice": 2 * x + out}
    mid = added.get(way.first, x)
    stages["after attention"] = mid = ln("ln1", mid) if way.norms == "post" else mid
    source = {"ln2": mid, "block input": x, "ln1 of the input": x}[way.mlp_reads]
    stages["ln2"] = read2 = source if way.norms == "post" else ln("ln1" if "ln1" in way.mlp_reads else "ln2", source)
    if way.twice == "ln2":
        stages["ln2"] = read2 = ln("ln2", read2)
    stages["linear1"] = pre = read2 @ p["linear1.weight"].T + (0.0 if way.unbiased == "linear1" else p["linear1.bias"])
    stages["activation"] = post = ACTIVATIONS[way.activation or sizes.activation](pre)
    if way.twice == "activation":
        stages["activation"] = post = ACTIVATIONS[way.activation or sizes.activation](post)
    post = way.drop(post, sizes, way.mlp_drop in ("activation", "both"))
    stages["linear2"] = out = post @ p["linear2.weight"].T + (0.0 if way.unbiased == "linear2" else p["linear2.bias"])
    out = ACTIVATIONS[sizes.activation](out) if not way.linear2 else out
    out = way.drop(out, sizes, {"linear2": 1, "both": 1, "twice": 2}.get(way.mlp_drop, 0))
    ends = {
        "added": mid + out, "missing": out, "block input": x + out, "normalized": read2 + out, "twice": 2 * mid + out,
        "attention alone": attended["output"] + out,
    }  # fmt: skip
    last = way.drop(ends[way.second], sizes, way.mlp_drop == "sum")
    stages["output"] = ln("ln2", last) if way.norms == "post" else last
    return stages


def gpt2(ids: Tensor, p: Parameters, sizes: Sizes, way: Way) -> Stages:
    """ids [B, P] -> the stages of GPT-2; the last is its logits [B, P, V]."""
    table = p["pos_embedding.weight"]
    tokens = way.drop(p["token_embedding.weight"][ids], sizes, way.embed_drop in ("tokens", "each"))
    stages: Stages = {"token embedding": tokens}
    x = stages["token embedding"] * (sizes.hidden**0.5 if way.embed_scale else 1.0)
    places = torch.arange(ids.size(1)) + way.offset
    places = {"columns": places, "reversed": places.flip(0), "first": places * 0}.get(way.positions, places)
    table = p["token_embedding.weight"] if way.positions == "token table" else table
    stages["pos embedding"] = places = table[ids % sizes.positions if way.positions == "ids" else places]
    places = way.drop(places, sizes, way.embed_drop in ("positions", "each"))
    x = {"none": x, "at the end": x, "multiplied": x * places}.get(way.positions, x + places)
    x = way.drop(x, sizes, {"sum": 1, "sum and ln": 1, "twice": 2}.get(way.embed_drop, 0))
    stages["token + pos"] = x
    if way.final == "before the blocks, too":
        stages["ln before the blocks"] = x = norm(x, p, "ln", sizes, way)
    for number, i in enumerate(_order(way.blocks, sizes.layers)):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        inner = block(x, own, sizes, way)
        stages |= {f"block {number}: {name}": value for name, value in inner.items()}
        x = inner["output"] + (x if way.twice == "block input" else 0.0)
    x = x + places if way.positions == "at the end" else x
    last = x if way.final == "none" else norm(x, p, "ln", sizes, way)
    last = norm(last, p, "ln", sizes, way) if way.final == "twice" else last
    stages["ln"] = last = way.drop(last, sizes, way.embed_drop in ("ln", "sum and ln"))
    head = p.get(way.head, p["token_embedding.weight"])
    logits = last @ head.T
    logits = {
        "scaled": logits / sizes.hidden**0.5,
        "probabilities": logits.softmax(-1),
        "logprobs": logits.log_softmax(-1),
    }.get(way.head, logits)
    return stages | {"logits": logits}


def _order(blocks: str, layers: int) -> list[int]:
    """The blocks that are applied, one after the other."""
    every = list(range(layers))
    return {
        "all": every, "reversed": every[::-1], "first": every[:1] * layers, "none": [], "all but the last": every[:-1],
        "only the first": every[:1], "only the last": every[-1:], "all but the first": every[1:], "twice": every * 2,
    }[blocks]  # fmt: skip


RIGHT = Way()


def turned(way: Way, changes: Mapping[str, object]) -> Way:
    """A way with some dials turned."""
    return replace(way, **changes)  # pyright: ignore[reportArgumentType] (the dials are named in tables)
