"""Mistakes in attention, a row each: see `pellucid.gpt2.mistakes`, which says what a row is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.gpt2.constants import scales
from pellucid.gpt2.formulas import Heads, PlainWeights, Sizes, masked, project, project_out, rounded, visible
from pellucid.gpt2.mistake import AXIS, FUNCTION, HIDDEN, NUMBER, ORDERED, OTHER_TENSOR, UNUSED, Mistake

# The scale of the scores


def rounded_scales(sizes: Sizes) -> Iterator[Mistake]:
    """1/sqrt(d_head) with other digits."""
    for way in scales(sizes.head):
        words = f"the scale of the scores is {way.words} for 1/sqrt(d_head)"
        yield Mistake({"scale": rounded(way.value)}, words, harmless=way.exact, slight=way.exact)


def _scale(function: Callable[[Sizes], float], report: str = "", learner: str = "") -> Mistake:
    return Mistake({"scale": lambda q, w: function(w.sizes)}, report, learner, "scaling the scores", NUMBER)


SCALES = (
    _scale(lambda s: 1.0, "no scaling of the scores", "the scores are not divided by sqrt(head_size)"),
    _scale(lambda s: s.hidden**-0.5, "scores scaled by 1/sqrt(d_model) instead of 1/sqrt(d_head)",
           "the scores are divided by sqrt(hidden_size), not sqrt(head_size)"),
    _scale(lambda s: (s.hidden // s.heads) ** -0.5, "",
           "the scores are divided by sqrt(hidden_size // num_heads): head_size is ignored"),
    _scale(lambda s: (s.heads * s.head) ** -0.5, "",
           "the scores are divided by sqrt(num_heads * head_size), not sqrt(head_size)"),
    _scale(lambda s: 1 / s.head, "scores scaled by 1/d_head instead of 1/sqrt(d_head)",
           "the scores are divided by head_size, not by its square root"),
    _scale(lambda s: 1 / s.hidden, "scores scaled by 1/d_model"),
    _scale(lambda s: s.head**0.5, "scores multiplied by sqrt(d_head) instead of divided",
           "the scores are multiplied by sqrt(head_size), not divided"),
    _scale(lambda s: s.head**-0.5, "scores scaled by 1/sqrt(d_head) only"),
    _scale(lambda s: s.heads**-0.5, "scores scaled by 1/sqrt(n_head)",
           "the scores are divided by sqrt(num_heads), not sqrt(head_size)"),
    Mistake({"scale": lambda q, w: q.size(-2) ** -0.5}, "", "the scores are divided by sqrt(seq), not sqrt(head_size)",
            "scaling the scores", NUMBER),
    Mistake({"scale": lambda q, w: w.scale(q) / (w.block + 1)}, "scores divided by the number of the block"),
)  # fmt: skip


# The mask


def _mask(
    change: Callable[[Tensor], Tensor], report: str = "", learner: str = "", fill: float | None = None
) -> Mistake:
    """Keys that each query sees: `change` is given a mask that hides nothing."""
    changes: dict[str, Any] = {"mask": lambda scores: change(visible(scores))}
    if fill is None:
        return Mistake(changes, report, learner, _MASKING, HIDDEN)
    return Mistake({**changes, "fill": fill}, report, learner, _MASKING, f"{HIDDEN}; {NUMBER}")


def _fill(value: float, report: str = "", learner: str = "") -> Mistake:
    return Mistake({"fill": value}, report, learner, _MASKING, NUMBER)


def _pattern(change: Callable[[Tensor, Tensor, float | None], Tensor], report: str, learner: str, kind: str) -> Mistake:
    step = _MASKING if kind.startswith(HIDDEN) else "softmax"
    return Mistake({"pattern": change}, report, learner, step, kind)


def _masked_late(scores: Tensor, mask: Tensor, fill: float | None) -> Tensor:
    return scores.softmax(-1) * mask


def _masked_late_and_renormalised(scores: Tensor, mask: Tensor, fill: float | None) -> Tensor:
    pattern = _masked_late(scores, mask, fill)
    return pattern / pattern.sum(-1, keepdim=True)


def _times(fill: float, zero: float = 1.0) -> Callable[[Tensor, Tensor, float | None], Tensor]:
    """Scores multiplied by a mask: `zero` where a query sees a key, `fill` elsewhere."""
    return lambda scores, mask, _: (scores * torch.where(mask, zero, fill)).softmax(-1)


def _but_the_first(mask: Tensor) -> Tensor:
    mask = mask.tril(-1)
    mask[:1, :1] = True
    return mask


_MASKING = "masking the scores"
_BLIND = "the causal mask is off by one: a query does not see itself"
_TURNED = "the causal mask is turned around: a query sees only what comes later"

MASKS = (
    Mistake({"mask": visible}, "no causal mask",
            "there is no causal mask: every query sees the whole text", _MASKING, HIDDEN),
    _mask(lambda m: m.tril(1), "causal mask off by one: sees the next token",
          "the causal mask is off by one: a query sees the next token"),
    _mask(lambda m: m.tril(-1), "causal mask off by one: does not see itself", _BLIND),
    _mask(_but_the_first, "causal mask off by one: does not see itself, the first position excepted"),
    _mask(torch.triu, "causal mask the wrong way round",
          "the causal mask is transposed: a query sees itself and what comes later"),
    _fill(0.0, "masked scores set to 0", "masked scores are set to 0, which softmax does not ignore"),
    _mask(lambda m: m.tril(-1), "causal mask off by one: does not see itself", fill=-math.inf),
    _mask(lambda m: m.tril(-1), "", _BLIND, fill=-1e4),
    *(_mask(lambda m: m.triu(1), "", _TURNED, fill=c) for c in (-1e4, -math.inf)),
    *(_fill(c, f"masked scores set to {c:g}",
            f"masked scores are set to {c:g}, which is not far enough below the others" if c >= -100 else "")
      for c in (-1.0, -10.0, -100.0, -1e3, -1e4, -1e5, -1e6, -1e9)),
    _fill(1e4, "", "masked scores are set to a large positive number: the minus sign is missing"),
    _fill(math.inf, "", "masked scores are set to +inf: the minus sign is missing"),
    _pattern(_masked_late, "mask after the softmax",
             "the mask is applied after softmax, so that the rows do not sum to 1", HIDDEN),
    _pattern(lambda s, m, f: s.softmax(-2) * m, "",
             "the mask is applied after softmax, which runs over the queries, not over the keys", f"{HIDDEN}; {AXIS}"),
    _pattern(_masked_late_and_renormalised, "", "the mask is applied after softmax", HIDDEN),
    _pattern(_times(-math.inf, 0.0), "",
             "the scores are multiplied by the logarithm of the mask, which is to be added", HIDDEN),
    _pattern(_times(-1e4), "",
             "the scores are multiplied by a mask of 1 and -10000, which has to replace or to be added to them",
             f"{HIDDEN}; {NUMBER}"),
    _pattern(_times(-math.inf), "",
             "the scores are multiplied by a mask of 1 and -inf, which has to replace or to be added to them", HIDDEN),
    _pattern(lambda s, m, f: masked(s, m, f).softmax(-2), "softmax over the queries",
             "softmax runs over the queries, not over the keys", AXIS),
    _pattern(lambda s, m, f: masked(s, m, f).softmax(1), "softmax over the heads",
             "softmax runs over the heads, not over the keys", AXIS),
    _pattern(lambda s, m, f: masked(s, m, f).softmax(0), "", "softmax runs over the batch, not over the keys", AXIS),
    _pattern(lambda s, m, f: masked(s, m, -1e4).log_softmax(-1), "", "log_softmax is applied, not softmax", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e4).sigmoid(), "", "sigmoid is applied, not softmax", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e4), "", "softmax is not applied", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e9), "", "softmax is not applied", FUNCTION),
)  # fmt: skip


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
    Mistake({"mix": lambda pattern, heads: pattern.mT @ heads[2]}, "", "the pattern is transposed before it weighs v",
            _SUMMING, OTHER_TENSOR),
)  # fmt: skip


def _always(heads: int) -> Mistake:
    def split(parts: Heads, weights: PlainWeights) -> Heads:
        q, k, v = (part.flatten(2).unflatten(2, (heads, -1)) for part in parts)
        return q, k, v

    words = f"there are always {heads} heads: num_heads is not handed to attention"
    return Mistake({"split": split}, "", words, "attention", NUMBER)


HEADS = tuple(map(_always, (1, 4, 12)))


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


def _out(
    change: Callable[[Tensor, Tensor, PlainWeights], Tensor], report: str, learner: str, kind: str = UNUSED
) -> Mistake:
    return Mistake({"out": change}, report, learner, "the output projection", kind)


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
