"""How far apart two values are, by the one measure and threshold of every comparison, and two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

BEYOND_ROUNDING = 1e-10
"""Relative error in float64 that rounding never reaches (it stays near 1e-15) and that every real difference passes."""


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; infinite where one is not finite and the other is.

    Args:
        given: [B, P, ...], or the part of the positions that `windows` knows.
        expected: [B, P, ...].
    """
    return min((_error(given, part) for part in windows(expected, given)), default=math.inf)


def shown_part(expected: Tensor, given: Tensor) -> Tensor:
    """The positions of `expected` [B, P, ...] that a program shows, of which it may leave out some."""
    return min(windows(expected, given), key=lambda part: _error(given, part), default=expected)


def windows(expected: Tensor, given: Tensor) -> list[Tensor]:
    """The parts of `expected` [B, P, ...] that `given` may be: all, the last position alone, or all but the last."""
    if given.shape == expected.shape:
        return [expected]
    if given.dim() != expected.dim() or given.dim() < 2:
        return []
    shown, positions = given.size(1), expected.size(1)
    last = [expected[:, -1:]] if shown == 1 else []
    parts = [*last, expected[:, :-1]] if shown == positions - 1 else last
    return [part for part in parts if part.shape == given.shape]


def _error(given: Tensor, expected: Tensor) -> float:
    given = given.to(expected)
    same = (given == expected) | (given.isnan() & expected.isnan()) | (_hidden(given) & _hidden(expected))
    gap = (given - expected).abs().masked_fill(same, 0.0)
    largest = float(gap.max()) if gap.numel() else 0.0
    return largest / size_of(expected) if math.isfinite(largest) else math.inf


def size_of(values: Tensor) -> float:
    """The largest magnitude that is finite and not masked; 1 where that is 0."""
    shown = values.abs()[values.isfinite() & ~_hidden(values)]
    return (float(shown.max()) if shown.numel() else 0.0) or 1.0


def not_alike(given: Tensor, expected: Tensor) -> Tensor:
    """Where one of two values is finite and the other is not, or they are not finite in different ways.

    Rounding turns no finite number into an infinity or a NaN, so this needs no float64 run to be told from it.
    """
    expected = shown_part(expected, given)
    if given.shape != expected.shape:
        return torch.zeros(given.shape, dtype=torch.bool, device=given.device)
    given = given.to(expected.device)
    odd = ~given.isfinite() | ~expected.isfinite()
    same = (given == expected) | (given.isnan() & expected.isnan()) | (_hidden(given) & _hidden(expected))
    return odd & ~same


def _hidden(values: Tensor) -> Tensor:
    """Scores that a mask hides: minus infinity, or the least numbers of the dtype."""
    least = torch.finfo(values.dtype).min
    return values <= (least if values.dtype == torch.float16 else least / 2)  # real values come near float16's least


@dataclass(frozen=True)
class Distance:
    """How far B is from A. What could not be measured, because nothing was run, is None.

    Attributes:
        same_top: Share of the positions at which both find the same token likeliest.
        kl: Kullback-Leibler divergence of B's next-token distribution from A's, KL(A || B), in nats; the mean over
            positions.
        loss_a, loss_b: Mean negative log-likelihood of each next token, in nats; None for texts of one token.
        parameters: Name -> norm of the difference, relative to the norm of A's tensor (Frobenius); the largest first.
            Those that are equal are left out.
    """

    same_top: float | None = None
    kl: float | None = None
    loss_a: float | None = None
    loss_b: float | None = None
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts: list[str] = []
        if self.same_top is not None and self.kl is not None:
            parts += [f"the same likeliest token at {self.same_top:.1%} of the positions", f"KL {self.kl:.3g} nats"]
        if self.loss_a is not None and self.loss_b is not None:
            parts.append(f"loss {self.loss_a:.4f} and {self.loss_b:.4f} nats")
        return ", ".join(parts) or "nothing was run"


def distance_of(
    logits: tuple[Tensor, Tensor] | None,
    rows: Sequence[Sequence[int]],
    parameters: Mapping[str, float],
    *,
    swapped: bool = False,
) -> Distance:
    """Measure it.

    Args:
        logits: A's and B's, [B, P, V]; None if nothing was run. Where one has more columns, those of both count.
        rows: The ids of each row, of which the logits' rows may be a continuation.
        parameters: Name -> relative change.
        swapped: Whether the first logits are B's.
    """
    changed = {name: value for name, value in parameters.items() if value != 0}
    ordered = dict(sorted(changed.items(), key=lambda item: item[1], reverse=True))
    if logits is None or logits[0].shape[:2] != logits[1].shape[:2]:
        return Distance(parameters=ordered)
    columns = min(side.size(-1) for side in logits)
    a, b = (side[..., :columns].detach().double().cpu().log_softmax(-1) for side in logits)
    a, b = (b, a) if swapped else (a, b)
    where = torch.tensor([[place < len(row) for place in range(a.size(1))] for row in rows])
    divergence = (a.exp() * (a - b)).masked_fill(a == -torch.inf, 0.0).sum(-1)  # 0 log 0 is 0
    same = a.argmax(-1) == b.argmax(-1)
    return Distance(
        float(same[where].double().mean()), float(divergence[where].mean()), _loss(a, rows), _loss(b, rows), ordered
    )


def _loss(logprobs: Tensor, rows: Sequence[Sequence[int]]) -> float | None:
    """The mean negative log-likelihood of every token but the first of each row."""
    parts = [
        logprobs[number, torch.arange(len(row) - 1), torch.tensor(row[1:], dtype=torch.long)]
        for number, row in enumerate(rows)
        if len(row) > 1 and max(row) < logprobs.size(-1)
    ]
    return -float(torch.cat(parts).mean()) if parts else None
