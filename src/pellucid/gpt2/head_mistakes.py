"""Mistakes in what attention reads and writes: which of q, k and v is which, how heads are divided, projections."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.gpt2.formulas import Heads, PlainWeights, project, project_out, visible
from pellucid.gpt2.mistake import NUMBER, ORDERED, OTHER_TENSOR, UNUSED, Mistake

# Which of q, k and v is which, and which batch row they come from


def _from_rows(keys: Callable[[Tensor], Tensor], values: Callable[[Tensor], Tensor], report: str) -> Mistake:
    return Mistake({"split": lambda heads, _: (heads[0], keys(heads[1]), values(heads[2]))}, report)


def _before(x: Tensor) -> Tensor:
    return x.roll(1, 0)


def _behind(x: Tensor) -> Tensor:
    return x.roll(-1, 0)


def _first(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def _itself(x: Tensor) -> Tensor:
    return x


def _learners_order(order: str) -> str:
    """What a learner is told who reads qkv_proj in an order such as "kqv"."""
    if order == "kqv":
        return "q and k change places: qkv_proj is read in the order k, q, v, or the scores are k @ q.T"
    return f"qkv_proj is read in the order {', '.join(order)}, not q, k, v"


_SPLITTING = "splitting q, k and v"
# `order` says which column holds q, which k and which v; a learner is told in which order the columns are read.
TAKEN = tuple(Mistake({"taken": order}, f"q, k, v taken in another order: {', '.join('qkv'[i] for i in order)}",
                     _learners_order("".join("qkv"[order.index(i)] for i in range(3))), _SPLITTING, ORDERED)
              for order in itertools.permutations(range(3)) if order != (0, 1, 2))  # fmt: skip

_ACROSS: dict[str, Any] = {
    "split": lambda heads, _: tuple(part.transpose(0, 1) for part in heads),
    "merge": lambda z, _: z.transpose(0, 1).flatten(2),
}
ROWS = (
    _from_rows(_before, _before, "keys and values of the batch row before"),
    _from_rows(_before, _itself, "keys of the batch row before"),
    _from_rows(_itself, _before, "values of the batch row before"),
    _from_rows(_behind, _behind, "keys and values of the batch row behind"),
    _from_rows(_behind, _itself, "keys of the batch row behind"),
    _from_rows(_itself, _behind, "values of the batch row behind"),
    _from_rows(_first, _first, "keys and values of the first batch row everywhere"),
    Mistake(_ACROSS, "attention over batch rows instead of positions"),
    Mistake({**_ACROSS, "mask": visible},
            "attention over batch rows instead of positions, without a mask"),
)  # fmt: skip
"""Attention that looks into another row of the batch; a batch of one row cannot show it."""


# How the columns are divided into heads, and the heads put together


def _split_other_way(heads: Heads, weights: PlainWeights) -> Heads:
    q, k, v = (part.flatten(2).unflatten(2, (part.size(3), part.size(2))).transpose(2, 3) for part in heads)
    return q, k, v


def _kept_other_way(heads: Heads, weights: PlainWeights) -> Heads:
    q, k, v = (part.transpose(2, 3).flatten(2).unflatten(2, part.shape[2:]) for part in heads)
    return q, k, v


def _in_one(number: int, change: Callable[[Heads, PlainWeights], Heads]) -> Callable[[Heads, PlainWeights], Heads]:
    """A change of one of q, k and v."""

    def split(heads: Heads, weights: PlainWeights) -> Heads:
        changed = change(heads, weights)
        q, k, v = (changed[i] if i == number else part for i, part in enumerate(heads))
        return q, k, v

    return split


def _split_across_positions(heads: Heads, weights: PlainWeights) -> Heads:
    b, p, h, k = heads[0].shape
    query, key, value = (part.reshape(b, h, p, k).transpose(1, 2) for part in heads)
    return query, key, value


def _merged_other_way(z: Tensor, weights: PlainWeights) -> Tensor:
    return z.transpose(2, 3).flatten(2)


def _merged_across_positions(z: Tensor, weights: PlainWeights) -> Tensor:
    return z.transpose(1, 2).reshape(z.size(0), z.size(1), -1)


def _reread(stored: Sequence[int], read: Sequence[int]) -> Callable[[Heads, PlainWeights], Heads]:
    """One tensor of q, k and v whose axes (part, head, d_head) stand in one order, read in another."""

    def split(heads: Heads, weights: PlainWeights) -> Heads:
        together = torch.stack(heads, 2)  # [B, P, 3, H, K]
        sizes = together.shape[2:]
        flat = together.permute(0, 1, *(2 + axis for axis in stored)).flatten(2)
        again = flat.unflatten(2, [sizes[axis] for axis in read])
        q, k, v = again.permute(0, 1, *(2 + read.index(axis) for axis in range(3))).unbind(2)
        return q, k, v

    return split


def _readings() -> Iterator[Mistake]:
    learners: dict[tuple[int, ...], str] = {
        (0, 2, 1): "each of q, k, v is split as (head_size, num_heads), not (num_heads, head_size)",
        (1, 0, 2): "q, k, v are interleaved inside each head: they are three whole chunks",
        (1, 2, 0): "q, k, v are the innermost axis of qkv_proj: they are three whole chunks",
        (2, 1, 0): "q, k, v are the innermost axis of qkv_proj: they are three whole chunks",
        (2, 0, 1): "q, k, v lie inside head_size: they are three whole chunks",
    }
    names = ("part", "head", "d_head")
    for stored in ((0, 1, 2), (1, 0, 2)):
        for read in itertools.permutations(range(3)):
            if read != stored:
                words = f"q, k, v and heads read as ({', '.join(names[i] for i in read)})"
                words += f" instead of ({', '.join(names[i] for i in stored)})"
                told = learners[read] if stored == (0, 1, 2) else ""
                yield Mistake({"split": _reread(stored, read)}, words, told, _SPLITTING, ORDERED)


_SUMMING = "the weighted sum"
HEAD_AXES = (
    Mistake({"merge": _merged_other_way}, "heads merged as (d_head, head)",
            "the heads are merged as (head_size, num_heads), not (num_heads, head_size)", _SUMMING, ORDERED),
    Mistake({"merge": _merged_across_positions}, "heads merged without moving them behind positions",
            "the heads are not moved behind the positions before they are merged", _SUMMING, ORDERED),
    Mistake({"split": _split_other_way}, "heads split as (d_head, head)"),
    Mistake({"split": _kept_other_way}, "heads kept as (d_head, head) and split as (head, d_head)"),
    *(Mistake({"split": _in_one(i, change)}, f"heads of {letter} {words}")
      for i, letter in enumerate("qkv")
      for change, words in ((_split_other_way, "split as (d_head, head)"),
                            (_kept_other_way, "kept as (d_head, head) and split as (head, d_head)"))),
    Mistake({"split": _split_other_way, "merge": _merged_other_way},
            "heads split as (d_head, head) and heads merged as (d_head, head)"),
    Mistake({"split": _split_other_way, "merge": _merged_across_positions},
            "heads split as (d_head, head) and heads merged without moving them behind positions"),
    Mistake({"split": _split_across_positions}, "heads split without moving them before positions",
            "(batch, seq, heads * size) is reshaped to (batch, heads, seq, size) without moving axes",
            _SPLITTING, ORDERED),
    Mistake({"split": _split_across_positions, "merge": _merged_other_way},
            "heads split without moving them before positions and heads merged as (d_head, head)"),
    Mistake({"split": _split_across_positions, "merge": _merged_across_positions},
            "heads split without moving them before positions and heads merged without moving them behind positions"),
    *_readings(),
)  # fmt: skip

MIXING = (
    Mistake({"mix": lambda pattern, heads: pattern @ heads[1]}, "", "the pattern weighs k, not v", _SUMMING,
            OTHER_TENSOR),
    Mistake({"mix": lambda pattern, heads: pattern @ heads[0]}, "", "the pattern weighs q, not v", _SUMMING,
            OTHER_TENSOR),
    Mistake({"taken": (0, 0, 2)}, "", "the scores are q @ q.T: k is not used", "the scores", OTHER_TENSOR),
    Mistake({"taken": (1, 1, 2)}, "", "the scores are k @ k.T: q is not used", "the scores", OTHER_TENSOR),
    Mistake({"taken": (0, 2, 2)}, "", "the scores are q @ v.T: k is not used", "the scores", OTHER_TENSOR),
    Mistake({"mix": lambda pattern, heads: pattern.mT @ heads[2]}, "", "the pattern is transposed before it weighs v",
            _SUMMING, OTHER_TENSOR),
)  # fmt: skip


def _divided(count: Callable[[PlainWeights], int], words: str) -> Mistake:
    def split(parts: Heads, weights: PlainWeights) -> Heads:
        q, k, v = (part.flatten(2).unflatten(2, (count(weights), -1)) for part in parts)
        return q, k, v

    return Mistake({"split": split}, "", words, "attention", NUMBER)


HEADS = tuple(
    _divided(lambda _, n=n: n, f"there are always {n} heads: num_heads is not handed to attention") for n in (1, 4, 12)
)
AS_MANY_AS_BLOCKS = _divided(
    lambda weights: weights.sizes.layers, "there are as many heads as blocks: num_layers is taken for num_heads"
)


# The projections


def _transposed(letters: Sequence[str]) -> Callable[[Tensor, PlainWeights], Heads]:
    """Some of the square matrices W_Q, W_K, W_V [D, HK] used the other way round."""

    def projected(x: Tensor, weights: PlainWeights) -> Heads:
        made: list[Tensor] = []
        for letter, right in zip("QKV", project(x, weights), strict=True):
            turned = x @ weights[f"attn.W_{letter}"].transpose(0, 1).flatten(1).T
            wrong = turned.unflatten(-1, right.shape[2:]) + weights[f"attn.b_{letter}"]
            made.append(wrong if letter in letters else right)
        return made[0], made[1], made[2]

    return projected


def _without_bias(letters: Sequence[str]) -> Callable[[Tensor, PlainWeights], Heads]:
    def projected(x: Tensor, weights: PlainWeights) -> Heads:
        q, k, v = (part - weights[f"attn.b_{letter}"] if letter in letters else part
                   for letter, part in zip("QKV", project(x, weights), strict=True))  # fmt: skip
        return q, k, v

    return projected


def _projected_by(order: Sequence[str]) -> Callable[[Tensor, PlainWeights], Heads]:
    def projected(x: Tensor, weights: PlainWeights) -> Heads:
        made = dict(zip("QKV", project(x, weights), strict=True))
        return made[order[0]], made[order[1]], made[order[2]]

    return projected


def _projections() -> Iterator[Mistake]:
    for order in itertools.product("QKV", repeat=3):
        if order != ("Q", "K", "V"):
            words = f"q, k, v projected by {', '.join(f'W_{letter}' for letter in order)}"
            words = f"q, k, v in another order: {words}" if len(set(order)) == 3 else words
            yield Mistake({"project": _projected_by(order)}, words)
    for size in (1, 2, 3):
        for letters in itertools.combinations("QKV", size):
            named = ", ".join(letters).lower()
            yield Mistake({"project": _transposed(letters)}, f"projection of {named} transposed")
            told = "qkv_proj's bias is not used" if size == 3 else ""
            yield Mistake({"project": _without_bias(letters)}, f"no bias on {named}", told, _SPLITTING, UNUSED,
                          harmless=letters == ("K",))  # fmt: skip


PROJECTIONS = tuple(_projections())


def _out(change: Callable[[Tensor, Tensor, PlainWeights], Tensor], report: str, learner: str) -> Mistake:
    return Mistake({"out": change}, report, learner, "the output projection", UNUSED)


OUTPUTS = (
    _out(lambda z, x, w: z, "", "output_proj is not applied"),
    _out(lambda z, x, w: z @ w["attn.W_O"].flatten(0, 1).T + w["attn.b_O"], "output projection transposed",
         "output_proj is applied transposed"),
    _out(lambda z, x, w: project_out(project_out(z, x, w), x, w), "", "output_proj is applied twice"),
    _out(lambda z, x, w: project_out(z, x, w) + x, "",
         "the input is added to the output: that is the block's part, not attention's"),
    _out(lambda z, x, w: z @ w["attn.W_O"].flatten(0, 1), "no bias on the output projection",
         "output_proj's bias is not used"),
    _out(lambda z, x, w: z @ w["attn.W_O"].flatten(0, 1).T, "",
         "output_proj is applied transposed, and its bias is not used"),
    _out(lambda z, x, w: z @ w["attn.W_O"].flatten(0, 1) @ w["attn.W_O"].flatten(0, 1), "",
         "output_proj is applied twice, and its bias is not used"),
    _out(lambda z, x, w: project_out(z, x, w) + w["attn.b_O"] * (w.sizes.heads - 1),
         "output projection's bias added once per head", ""),
)  # fmt: skip
