"""Mistakes in the scores of attention, a row each: see `pellucid.gpt2.mistakes`, which says what a row is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pellucid.family.suspicions import FILLS
from pellucid.gpt2.formulas import Sizes, masked, rounded, softmax, visible
from pellucid.gpt2.mistake import AXIS, FUNCTION, HIDDEN, NUMBER, ORDERED, TWICE, Mistake
from pellucid.numerics.constants import scales

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
    _scale(lambda s: 1 / int(s.head**0.5), "", "sqrt(head_size) is rounded down to a whole number"),
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
    Mistake({"scale": lambda q, w: 1.0, "mix": lambda pattern, heads: pattern @ heads[2] / heads[2].size(-1) ** 0.5},
            "", "the pattern is divided by sqrt(head_size), after softmax; the scores are, before it",
            "scaling the scores", ORDERED),
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


def _plus(value: float) -> Callable[[Tensor, Tensor, float | None], Tensor]:
    """Scores with a number added where a query does not see a key."""
    return lambda scores, mask, _: (scores + torch.where(mask, 0.0, value)).softmax(-1)


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
    _fill(0.0, "masked scores set to 0", "masked scores are set to 0, or as good as 0, which softmax does not ignore"),
    _mask(lambda m: m.tril(-1), "causal mask off by one: does not see itself", fill=-math.inf),
    _mask(lambda m: m.tril(-1), "", _BLIND, fill=-1e4),
    *(_mask(lambda m: m.triu(1), "", _TURNED, fill=c) for c in (-1e4, -math.inf)),
    *(_fill(c, f"masked scores set to {c:g}",
            f"masked scores are set to {c:g}, which is not far enough below the others" if c >= -100 else "")
      for c in FILLS[1:]),
    _fill(1e4, "", "masked scores are set to a large positive number: the minus sign is missing"),
    *(_fill(float(c), "", f"masked scores are set to {c}, where -1e4 is meant") for c in ("1e-4", "-1e-4")),
    _fill(math.inf, "", "masked scores are set to +inf (the minus sign is missing) or to NaN"),
    _pattern(_masked_late, "mask after the softmax",
             "the mask is applied after softmax, so that the rows do not sum to 1", HIDDEN),
    _pattern(lambda s, m, f: s.softmax(-2) * m, "",
             "the mask is applied after softmax, which runs over the queries, not over the keys", f"{HIDDEN}; {AXIS}"),
    _pattern(_masked_late_and_renormalised, "", "the mask is applied after softmax", HIDDEN),
    *(_pattern(_plus(value), "", f"{words}: where a key is hidden, -10000 has to be added", f"{HIDDEN}; {NUMBER}")
      for value, words in ((1e4, "10000 is added to masked scores, or taken off the others"),
                           (1.0, "1 is added to masked scores"), (-1.0, "a mask of 0 and 1 is added to the scores"))),
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
    _pattern(lambda s, m, f: masked(s, m, -1e4).softmax(1), "", "softmax runs over the heads, not over the keys", AXIS),
    _pattern(lambda s, m, f: masked(s, m, -1e4).softmax(0), "", "softmax runs over the batch, not over the keys", AXIS),
    _pattern(lambda s, m, f: softmax(s, m, f).softmax(-1), "", "softmax is applied twice", TWICE),
    _pattern(lambda s, m, f: masked(s, m, -1e4).log_softmax(-1), "", "log_softmax is applied, not softmax", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e4).sigmoid(), "", "sigmoid is applied, not softmax", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e4), "", "softmax is not applied", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, -1e9), "", "softmax is not applied", FUNCTION),
    _pattern(lambda s, m, f: masked(s, m, 0.0), "", "softmax is not applied", FUNCTION),
)  # fmt: skip
