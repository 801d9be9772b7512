"""What a comparison was of (two names, what both ran, the versions, and when), and how far apart the two are."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid._version import __version__
from pellucid.check import attribute
from pellucid.errors import printable
from pellucid.html.listing import counted
from pellucid.run.model import CkptedTransformer


@dataclass(frozen=True)
class RunInputs:
    """What both models ran."""

    ids: tuple[tuple[int, ...], ...] = ()  # the rows of token ids
    texts: tuple[str, ...] = ()  # the texts that they are of; empty if ids were given
    drawn: bool = False  # whether the ids were drawn, because neither side came with a tokenizer

    def __str__(self) -> str:
        if not self.ids:
            return "nothing was run"
        count = sum(map(len, self.ids))
        tokens = counted(count, "token")
        if self.drawn:
            return f"{tokens} drawn from the vocabulary with seed {SEED}, since neither side has a tokenizer"
        if not self.texts:
            shown = ", ".join(map(str, self.ids[0][:8])) + (", …" if len(self.ids[0]) > 8 else "")
            return f"ids {shown} ({tokens})" if len(self.ids) == 1 else f"{len(self.ids)} rows of ids ({tokens})"
        first = printable(self.texts[0] if len(self.texts[0]) <= 80 else f"{self.texts[0][:79]}…")
        return (
            f'"{first}" ({tokens})' if len(self.texts) == 1 else f'"{first}" and {len(self.texts) - 1} more ({tokens})'
        )


@dataclass(frozen=True)
class Reach:
    """What of a model's inputs the logits were compared for; nothing is known of a program on others."""

    ids: tuple[int, int] = (0, 0)  # of how many token ids, and how many there are
    positions: tuple[int, int] = (0, 0)  # at how many positions, and how many there are
    beyond: str = ""  # what was compared for the others, in words; "" for nothing

    @property
    def partial(self) -> dict[str, tuple[int, int]]:
        """ "ids" and "positions", if some are left out."""
        pairs = {"ids": self.ids, "positions": self.positions}
        return {name: pair for name, pair in pairs.items() if pair[0] < pair[1]}

    def __str__(self) -> str:
        (ids, vocabulary), (positions, context) = self.ids, self.positions
        words = f"the logits for {ids:,} of {vocabulary:,} ids and at {positions:,} of {context:,} positions"
        return f"{words}; {self.beyond}" if self.beyond else words


SEED = 0
"""The seed of the ids that are drawn."""


def versions() -> dict[str, str]:
    """The versions of what computes, by name."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Read once: finding the files that say so takes longer than a run of a small model."""
    found = {"pellucid": __version__, "python": platform.python_version()}
    for library in ("torch", "transformers"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # transformers is optional
            continue
    return tuple(found.items())


def now() -> str:
    """The date and time, in UTC, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class About:
    """What a report is about."""

    # a, b: what the two sides are called: the path or name that was given, else what they are
    a: str = "A"
    b: str = "B"
    inputs: RunInputs = RunInputs()  # what both ran
    # the versions of pellucid, Python, torch and transformers
    versions: Mapping[str, str] = field(default_factory=versions)
    date: str = field(default_factory=now)  # when it was made, in UTC

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Each fact with its name."""
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [("A", self.a), ("B", self.b), ("inputs", str(self.inputs)), ("versions", named), ("date", self.date)]


def name_of(side: Any) -> str:
    """What to call a side of a comparison, in one line."""
    if isinstance(side, (str, Path)):
        return printable(str(side))
    if isinstance(side, CkptedTransformer):
        source = (side.provenance or {}).get("source")
        return type(side).__name__ if source is None else printable(f"{type(side).__name__} of {source}")
    if isinstance(side, nn.Module):
        path = attribute(attribute(side, "config"), "_name_or_path")
        return printable(f"{type(side).__name__} of {path}" if path and isinstance(path, str) else type(side).__name__)
    count = sum(isinstance(value, Tensor) for value in side.values()) if isinstance(side, Mapping) else 0
    return f"state dict of {count} tensors" if count else type(side).__name__


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
    """Measure it on A's and B's logits [B, P, V]; None if nothing was run.

    Where one has more columns, those of both count. `rows` are the ids of each row, of which the logits' rows may be a
    continuation; `parameters` are relative changes by name. `swapped` says that the first logits are B's.
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
