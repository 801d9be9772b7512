"""Mistakes that what was seen of a program suggests, with numbers that no table could hold, in every family's terms.

A window is as long as the first position that differs says; a temperature, a soft cap, a factor on the scores or on a
head, and what hidden scores are filled with are solved for from one or a few values. A comparison then makes each in a
copy of the reference, and names it only if everything that the program shows agrees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.family.families import Seen
from pellucid.numerics.rounding import BEYOND_ROUNDING, shown_part, size_of

FILLS = (0.0, -1.0, -10.0, -12.0, -100.0, -1e3, -1e4, -1e5, -1e6, -1e9)
"""What people set the scores of hidden keys to; those far below the others are no mistake unless scores are as low."""


Grid = Callable[[Tensor, Tensor], Tensor]
"""Queries [P, 1] and keys [P] -> which keys each query sees, [P, P] or [B, 1, P, P]."""


@dataclass(frozen=True)
class Suspicion:
    """A mistake, as what takes the place of a right part; what is None is as it should be."""

    report: str  # what a report says of it
    sees: Grid | None = None  # which keys each query sees
    fill: float | None = None  # what the scores of hidden keys are set to
    scores: Tensor | None = None  # what the scores of each head are multiplied by, [H, 1, 1]
    heads: Tensor | None = None  # what z of each head is multiplied by, [H, 1]
    logits: Callable[[Tensor], Tensor] | None = None  # from the right logits to the program's
    harmless: bool = False  # whether it is rounding that the program makes no secret of


def suggested(seen: Seen) -> Iterator[Suspicion]:
    """What is tried before a family's catalogue: what the first values that differ look like."""
    if seen.observed.shape == seen.right.shape:
        yield from _masks(seen)
        if seen.where.endswith(".attn.ckpt_z"):
            yield from _scaled_heads(seen)
    if seen.where == "logits" and seen.observed.shape == shown_part(seen.right, seen.observed).shape:
        yield from _rounded_logits(seen)
        yield from _scaled_logits(seen)


def measured(seen: Seen) -> Iterator[Suspicion]:
    """What is tried after it: numbers that stand where a known one should."""
    if seen.where.endswith(".attn.ckpt_z") and seen.observed.shape == seen.right.shape and seen.ids.size(1) > 1:
        yield from _fills(seen)
        yield from _scaled_scores(seen)


def _masks(seen: Seen) -> Iterator[Suspicion]:
    """Attention to some keys only, as the first positions that differ suggest it."""
    given, right = seen.observed, seen.right
    gap = ~((given - right).abs() <= BEYOND_ROUNDING * size_of(right)).flatten(2).all(-1)  # [B, P]
    wrong = gap.any(0).nonzero().flatten().tolist()
    first = wrong[0] if wrong else 0
    masks: dict[str, Grid] = {
        f"attention to the last {first} tokens only": lambda q, k: q - k < first,
        f"attention within blocks of {first} tokens only": lambda q, k: q // first == k // first,
        "attention to all but the first token": lambda q, k: (k > 0) | (q == 0),
        f"attention to token {first} and later ones only, from there on": lambda q, k: (k >= first) | (q < first),
    }
    for words, mask in masks.items() if first > 0 else ():
        yield Suspicion(words, sees=lambda q, k, mask=mask: mask(q, k) & (k <= q))
    ids = seen.ids.to(right.device)
    for token in _first_tokens(gap.to(ids.device), ids):
        kept = (ids != token)[:, None, None]  # [B, 1, 1, Pk]
        words = f"token {token} is masked as padding"
        yield Suspicion(words, sees=lambda q, k, kept=kept: kept & (k <= q))
        words = f"{words}, from others than itself"
        yield Suspicion(words, sees=lambda q, k, kept=kept: (kept | (k == q)) & (k <= q))


MOST_TOKENS = 4
"""How many tokens are suspected to be masked as padding."""


def _first_tokens(gap: Tensor, ids: Tensor) -> list[int]:
    """The tokens at which, or behind which, rows [B, P] first differ."""
    found: dict[int, None] = {}
    for row in gap.any(1).nonzero().flatten().tolist():
        place = int(gap[row].nonzero()[0])
        found |= dict.fromkeys(ids[row, max(place - 1, 0) : place + 1].tolist()[::-1])
    return list(found)[:MOST_TOKENS]


def _scaled_heads(seen: Seen) -> Iterator[Suspicion]:
    """Heads of z [B, P, H, K] that are multiples of what they should be."""
    given, right = seen.observed.double(), seen.right.double()
    size = (right * right).sum((0, 1, 3))
    factors = (given * right).sum((0, 1, 3)) / size.where(size > 0, 1.0)
    changed = ((factors - 1).abs() > BEYOND_ROUNDING).nonzero().flatten().tolist()
    if changed:
        words = _said("z is {} times what it should be", "z of {}", changed, factors)
        yield Suspicion(words, heads=torch.tensor([_plain(f) for f in factors.tolist()])[:, None])
        yield Suspicion(words, heads=factors[:, None])


def _rounded_logits(seen: Seen) -> Iterator[Suspicion]:
    """Logits that are rounded to half precision, which is no error if they are handed out so."""
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        words, openly = f"the logits are rounded to {name}", seen.observed.dtype == dtype
        yield Suspicion(words, logits=lambda logits, d=dtype: logits.to(d).to(logits), harmless=openly)


def _scaled_logits(seen: Seen) -> Iterator[Suspicion]:
    """Logits that are multiples of what they should be, or capped softly, whatever the numbers."""
    given, right = seen.observed.double(), shown_part(seen.right, seen.observed).double()
    factor = float((given * right).sum() / (right * right).sum())
    width = seen.expected["blocks.0.resid_pre"].size(-1) ** 0.5
    if factor and math.isfinite(factor) and not any(math.isclose(factor, f, rel_tol=1e-9) for f in (width, 1 / width)):
        for f in (_plain(factor), 1 / _plain(1 / factor), factor):
            words = f"logits multiplied by {f:.6g}, as by a temperature of {1 / f:.6g}"
            yield Suspicion(words, logits=lambda logits, f=f: logits * f)
    largest = int(right.abs().argmax())
    cap = _cap(abs(float(right.flatten()[largest])), abs(float(given.flatten()[largest])))
    for c in (_plain(cap), cap) if cap is not None else ():
        yield Suspicion(f"logits capped softly at {c:.6g}", logits=lambda logits, c=c: c * (logits / c).tanh())


def _cap(right: float, given: float) -> float | None:
    """The c with c tanh(right / c) = given; None if there is none."""
    if not 0 < given < right * (1 - BEYOND_ROUNDING):
        return None
    low, high = given, right * BEYOND_ROUNDING**-0.5  # beyond which such a cap would be rounding
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.tanh(right / middle) < given else (low, middle)
    return high


def _fills(seen: Seen) -> Iterator[Suspicion]:
    """What hidden scores are set to: the first position's z says how much of the pattern is on the keys behind it."""
    attn, v = _of_attention(seen)
    scores = seen.expected[f"{attn}ckpt_scores"]
    behind = v[:, :, 1:].mean(2)  # [B, H, K]
    share = _share(seen.observed.transpose(1, 2)[:, :, 0], v[:, :, 0], behind)
    fills = scores[:, :, 0, 0] + ((1 - share) / share / (v.size(2) - 1)).log()
    value = float(fills.median())
    for fill in (_plain(value), value) if math.isfinite(value) else ():
        yield Suspicion(f"masked scores set to {fill:.6g}", fill=fill)


def _scaled_scores(seen: Seen) -> Iterator[Suspicion]:
    """What the scores of each head are multiplied by: the second position's z says how it divides between two keys."""
    attn, v = _of_attention(seen)
    scores = seen.expected[f"{attn}ckpt_scores"][:, :, 1]
    share = _share(seen.observed.transpose(1, 2)[:, :, 1], v[:, :, 0], v[:, :, 1])
    factors = ((share / (1 - share)).log() / (scores[..., 0] - scores[..., 1])).median(0).values
    if not bool(factors.isfinite().all()):
        return
    changed = ((factors - 1).abs() > BEYOND_ROUNDING).nonzero().flatten().tolist()
    plain = torch.tensor([_plain(f) for f in factors.tolist()], dtype=torch.float64)
    words = _said("scores are {} times what they should be", "scores of {}", changed, factors)
    for each in (plain, factors) if changed else ():
        yield Suspicion(words, scores=each[:, None, None])


def _of_attention(seen: Seen) -> tuple[str, Tensor]:
    """The attention that z is of, and its values [B, H, P, K] for every head of queries."""
    attn = seen.where.removesuffix("ckpt_z")
    v = seen.expected[f"{attn}ckpt_v"].transpose(1, 2)
    return attn, v.repeat_interleave(seen.observed.size(2) // v.size(1), 1)


def _share(z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How much of z [B, H, K] is of the first of two vectors, the rest being of the second."""
    along = first - second
    return ((z - second) * along).sum(-1) / (along * along).sum(-1)


SHOWN = 4
"""How many heads are named."""


ALIKE = 1e-7
"""Relative distance of factors up to which they are one: they are measured on float32 numbers."""


def _said(together: str, apart: str, heads: list[int], factors: Tensor) -> str:
    """What is said of factors of heads, if they are one factor of all heads, or if they are not."""
    if len(heads) == len(factors) and bool(torch.isclose(factors, factors[0], rtol=ALIKE, atol=0.0).all()):
        return together.format(f"{_plain(float(factors.median())):.6g}")
    named = [f"head {h} multiplied by {_plain(float(factors[h])):.6g}" for h in heads[:SHOWN]]
    more = f" and of {len(heads) - SHOWN} more heads" if len(heads) > SHOWN else ""
    return apart.format(" and ".join(named) + more)


def _plain(value: float) -> float:
    """The nearest number of few digits, or root of one, if it is so near that a measured one may be meant to be it."""
    rounded = [float(f"{value:.{digits}g}") for digits in range(1, 7)]
    roots = [math.copysign(math.sqrt(float(f"{value * value:.{digits}g}")), value) for digits in range(1, 4)]
    return next((number for number in (*rounded, *roots) if math.isclose(number, value, rel_tol=1e-7)), value)
