"""The course's GPT-2: the plain one of `pellucid.gpt2.parts` with the learner's own parameters, and mistakes in it.

Each function gives its stages by the names that a learner is told, in the order in which they are computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.exercises.watch import apart, marked
from pellucid.gpt2 import parts as plain
from pellucid.gpt2.formulas import PlainWeights, Sizes
from pellucid.gpt2.mistake import Mistake, together
from pellucid.gpt2.parts import LOGITS, Block, Parts, Span, Values, recorder, run_block, run_parts

Stages = dict[str, Tensor]
Parameters = Mapping[str, Tensor]

RIGHT = replace(plain.RIGHT, fill=-math.inf)
"""What is asked for; masked scores are -inf, as in the course, so that a wrong softmax shows what a learner's shows."""


def turned(parts: Parts, changes: Mapping[str, Any]) -> Parts:
    """A GPT-2 with some parts replaced."""
    return replace(parts, **changes)


def training(parts: Parts, sizes: Sizes) -> Parts:
    """A GPT-2 in training, with dropout's stand-in."""
    return replace(parts, drop=lambda x: marked(x, sizes.dropout))


def attention(x: Tensor, p: Parameters, sizes: Sizes, parts: Parts) -> Stages:
    """x [B, P, D] -> the stages of attention; the last is its output [B, P, D]."""
    values: Values = {}
    Block(parts, _weights(_attention(p, "", "blocks.0.", sizes), sizes).of_block(0), recorder(values)).attention(x)
    return _attention_stages(values)


def block(x: Tensor, p: Parameters, sizes: Sizes, parts: Parts) -> Stages:
    """x [B, P, D] -> the stages of one block; the last is its output [B, P, D]."""
    _, values = run_block(parts, _weights(_block(p, "", 0, sizes), sizes).of_block(0), x)
    return _block_stages(values)


def gpt2(ids: Tensor, p: Parameters, sizes: Sizes, parts: Parts) -> Stages:
    """ids [B, P] -> the stages of GPT-2; the last is its logits [B, P, V]."""
    tensors = {
        "embed.W_E": p["token_embedding.weight"], "pos_embed.W_pos": p["pos_embedding.weight"],
        "ln_final.w": p["ln.weight"], "ln_final.b": p["ln.bias"],
    }  # fmt: skip
    for i in range(sizes.layers):
        tensors |= _block(p, f"blocks.{i}.", i, sizes)
    values = run_parts(parts, _weights(tensors, sizes), Span(ids, by_place=True))
    stages: Stages = {"token embedding": values["looked up"], "pos embedding": values["pos>"]}
    stages["token + pos"] = values["embedded"]
    for place in range(len(parts.order(sizes.layers))):
        prefix = f"blocks.{place}."
        inside = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
        stages |= {f"block {place}: {name}": value for name, value in _block_stages(inside).items()}
    return {**stages, "ln": values["read by the head"], "logits": values[LOGITS]}


def _weights(tensors: Mapping[str, Tensor], sizes: Sizes) -> PlainWeights:
    return PlainWeights(sizes, tensors, next(iter(tensors.values())).dtype)


def split_heads(qkv: Tensor, sizes: Sizes, axis: int = -1) -> tuple[Tensor, ...]:
    """q, k and v of a tensor whose axis holds all three; that axis becomes two: head, and d_head."""
    return qkv.unflatten(axis, (3, sizes.heads, sizes.head)).unbind(axis if axis >= 0 else axis - 2)


def _attention(p: Parameters, prefix: str, ours: str, sizes: Sizes) -> dict[str, Tensor]:
    """The course's parameters of attention below a prefix, by our names and as live views."""
    columns = split_heads(p[f"{prefix}qkv_proj.weight"], sizes, 0)  # each [H, K, D]
    biases = split_heads(p[f"{prefix}qkv_proj.bias"], sizes, 0)
    out = p[f"{prefix}output_proj.weight"].T.unflatten(0, (sizes.heads, sizes.head))
    return {
        **{f"{ours}attn.W_{letter}": part.mT for letter, part in zip("QKV", columns, strict=True)},
        **{f"{ours}attn.b_{letter}": part for letter, part in zip("QKV", biases, strict=True)},
        f"{ours}attn.W_O": out, f"{ours}attn.b_O": p[f"{prefix}output_proj.bias"],
    }  # fmt: skip


def _block(p: Parameters, prefix: str, number: int, sizes: Sizes) -> dict[str, Tensor]:
    """The course's parameters of a block below a prefix, by our names and as live views."""
    ours = f"blocks.{number}."
    return {
        **{f"{ours}{ln}.{kind[0]}": p[f"{prefix}{ln}.{kind}"] for ln in ("ln1", "ln2") for kind in ("weight", "bias")},
        **_attention(p, f"{prefix}attn.", ours, sizes),
        f"{ours}mlp.W_in": p[f"{prefix}linear1.weight"].T, f"{ours}mlp.b_in": p[f"{prefix}linear1.bias"],
        f"{ours}mlp.W_out": p[f"{prefix}linear2.weight"].T, f"{ours}mlp.b_out": p[f"{prefix}linear2.bias"],
    }  # fmt: skip


def _attention_stages(values: Values) -> Stages:
    together = torch.stack([values[f"{letter} by head"] for letter in "qkv"])
    return {"q, k, v": together, **{name: values[name] for name in ("scores", "pattern", "z")}, "output": values["O>"]}


_OF_BLOCK = {
    "after attention": "mid", "ln2": "mlp<", "linear1": "in>", "activation": "out<", "linear2": "out>",
    "output": "block>",
}  # fmt: skip


def _block_stages(values: Values) -> Stages:
    attended = {f"attn {name}": value for name, value in _attention_stages(values).items()}
    return {"ln1": values["attn<"], **attended, **{name: values[point] for name, point in _OF_BLOCK.items()}}


Produce = Callable[[Parts], Iterator[Stages]]
"""A GPT-2 -> the stages of every probe, one after the other."""


def confirmed(
    mistakes: Iterable[Mistake], produce: Produce, observed: Sequence[Tensor], tolerance: float
) -> Mistake | None:
    """The first mistake that reproduces what was observed in every probe; outputs that are NaN as a whole show none."""
    spoilt = [output.isnan() for output in observed if output.isnan().any()]
    if spoilt and all(places.all() for places in spoilt):
        return None
    for mistake in mistakes:
        try:
            if agrees(produce(turned(RIGHT, mistake.changes)), observed, tolerance):
                return mistake
        except (RuntimeError, IndexError, KeyError):  # impossible with these shapes
            continue
    return None


def agrees(made: Iterator[Stages], observed: Sequence[Tensor], tolerance: float) -> bool:
    """True if the last stage of every probe is what was observed."""
    return all(apart(o, list(m.values())[-1]) <= tolerance for o, m in zip(observed, made, strict=True))


def pairs(mistakes: Sequence[Mistake], one_of: Collection[Mistake] | None = None) -> Iterator[Mistake]:
    """Two mistakes at once that replace different parts, at least one of which is among some."""
    for a, b in itertools.combinations(mistakes, 2):
        if not set(a.changes) & set(b.changes) and (one_of is None or a in one_of or b in one_of):
            yield together(a, b)


def first_shows(produce: Produce, mistake: Mistake, tolerance: float) -> str | None:
    """The first stage in which a mistake makes a difference."""
    for right, wrong in zip(produce(RIGHT), produce(turned(RIGHT, mistake.changes)), strict=True):
        for name in right:
            if name not in wrong or apart(wrong[name], right[name]) > tolerance:
                return name
    return None
