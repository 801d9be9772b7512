"""What was measured of a circuit, and how it prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pellucid.circuits.ablations import Choices
from pellucid.circuits.circuit import Circuit


@dataclass(frozen=True)
class Gap:
    """The largest of some differences."""

    most: float  # the largest; NaN if none was measured
    mean: float  # the mean of all; of a greedy search, the largest again
    parts: tuple[Any, ...]  # the set of parts that it belongs to
    count: int  # how many were measured


UNMEASURED = Gap(math.nan, math.nan, (), 0)


@dataclass(frozen=True)
class CircuitReport:
    """What is known of a circuit; `print` shows it.

    Attributes:
        circuit: What was evaluated.
        choices: What was ablated, and how.
        metric: What is read off each run.
        texts: How many.
        size, universe: Parts of the circuit that can be ablated, and such parts of the model.
        whole, left, without, nothing: The metric of the model, F(M); of the circuit, F(C); of the model without it,
            F(M \\ C); and what counts as nothing: of the corrupted runs if values are resampled, else of the empty
            circuit.
        faithfulness: (F(C) - nothing) / (F(M) - nothing).
        by_text: The same of each text by itself [B]; not finite where the model and nothing are equal there.
        completeness: |F(C \\ K) - F(M \\ K)| over sampled K in C (Wang et al. 2022, section 4.1).
        greedy: The same for the K that grows by the part, of those that are tried, that raises it most.
        minimality: For each part v the largest |F(C \\ (K + v)) - F(C \\ K)| over the K that were tried (section 4.2).
        random: The faithfulness of random circuits of the same size.
        interrupted: Whether Control-C ended it; the last four then hold what was measured until then.
    """

    circuit: Circuit
    choices: Choices
    metric: str
    texts: int
    size: int
    universe: int
    whole: float
    left: float
    without: float
    nothing: float
    faithfulness: float
    by_text: tuple[float, ...]
    completeness: Gap
    greedy: Gap
    minimality: dict[Any, float]
    random: tuple[float, ...]
    interrupted: bool = False

    def __repr__(self) -> str:
        rows = [
            ("metric", f"{self.metric}: model {self.whole:.4g}, circuit {self.left:.4g}, model without it "
                       f"{self.without:.4g}, nothing {self.nothing:.4g}"),
            ("faithfulness", f"{self.faithfulness:.3f}{_spread(self.by_text)}"),
            ("completeness", f"{self.completeness.most:.4g} at most over {self.completeness.count} subsets, "
                             f"{self.completeness.mean:.4g} on average; {self.greedy.most:.4g} greedily"),
        ]  # fmt: skip
        if self.minimality:
            least = min(self.minimality, key=lambda part: self.minimality[part])
            rows.append(("minimality", f"{self.minimality[least]:.4g} at least, of {_written(least)}"))
        if self.random:
            equals = f"{sum(one >= self.faithfulness for one in self.random)} of {len(self.random)}"
            rows.append(("random", f"{np.mean(self.random):.3f} on average, {max(self.random):.3f} at most; {equals} "
                                   "circuits of this size are as faithful"))  # fmt: skip
        of = f"{self.size} of {self.universe} {self.choices.granularity}, {self.texts} text{'s' * (self.texts != 1)}"
        if self.interrupted:
            rows.append(("interrupted", "what stands here was measured before"))
        return "\n".join([f"{of}: {self.choices}", *(f"{name:<13} {said}" for name, said in rows)])


def _spread(by_text: Sequence[float]) -> str:
    if len(by_text) < 2:
        return ""
    return f" (by text {min(by_text):.3f} to {max(by_text):.3f}, median {np.median(by_text):.3f})"


def _written(part: Any) -> str:
    return part if isinstance(part, str) else " -> ".join(part)
