"""How well a circuit stands for a model: faithfulness, completeness, minimality, and what random circuits reach.

F(C) is the metric, the mean over texts, of runs in which only the circuit C is left; M is the whole model. Which parts
are taken out, what is put in their place, where, and in which runs, moves every one of these numbers (Miller et al.
2024, arXiv:2407.08734), so an evaluation states its `Choices`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.check import require_seed, require_whole
from pellucid.circuits.ablations import Ablations, Choices
from pellucid.circuits.circuit import Circuit, Graph, drawn_for
from pellucid.circuits.faithfulness import Scale
from pellucid.errors import warn
from pellucid.html.listing import counted
from pellucid.metrics import Metric
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index
from pellucid.text.batch import Inputs


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
        of = f"{self.size} of {self.universe} {self.choices.granularity}, {counted(self.texts, 'text')}"
        if self.interrupted:
            rows.append(("interrupted", "what stands here was measured before"))
        return "\n".join([f"{of}: {self.choices}", *(f"{name:<13} {said}" for name, said in rows)])


def _spread(by_text: Sequence[float]) -> str:
    if len(by_text) < 2:
        return ""
    return f" (by text {min(by_text):.3f} to {max(by_text):.3f}, median {np.median(by_text):.3f})"


def _written(part: Any) -> str:
    return part if isinstance(part, str) else " -> ".join(part)


def evaluate(
    model: CkptedTransformer,
    circuit: Circuit,
    clean: Inputs,
    corrupted: Inputs,
    *,
    metric: Metric,
    value: str,
    granularity: str | None = None,
    components: str | Sequence[str] | None = None,
    pos: Index = None,
    direction: str = "noise",
    subsets: int = 100,
    random: int = 20,
    candidates: int | None = 10,
    seed: int = 0,
) -> CircuitReport:
    """Measure how well a circuit stands for the model, under choices that the report states.

    Args:
        model: What runs.
        circuit: Its nodes or edges.
        clean, corrupted: Texts of equal length, as many of the one as of the other.
        metric: What to read off each run.
        value: What is put in the place of what is ablated: "resample", its value in the corrupted run; "mean", over
            texts and tokens of the corrupted runs; "zero".
        granularity: "nodes" or "edges"; the circuit's own if None. Nodes are taken as all edges between them, edges as
            the nodes that they touch.
        components: What can be ablated, some of "embeddings", "heads" and "mlps"; heads and MLPs if None, of edges all.
        pos: At which columns; everywhere if None.
        direction: "noise" ablates what is outside the circuit in the clean runs; "denoise" puts what is inside into the
            corrupted ones.
        subsets: Random subsets K for completeness, each part in it by one half; those of minimality are among them.
        random: Random circuits of the same size; of nodes, with as many heads and MLPs.
        candidates: Parts that each step of the greedy search tries, drawn from those that are left (Wang et al. 2022,
            section 4.1, draw 10); None tries every one.
        seed: Of the draws.

    Returns:
        A report: faithfulness with its spread over texts, completeness, minimality, and the random circuits. Control-C
        ends it with a warning, and the report has what was measured then. Before the faithfulness is known it is a
        `KeyboardInterrupt`, which says that nothing was measured.

    Raises:
        InputError: If a choice does not exist, or the metric does not tell the model from nothing.
        UnknownNameError: If the model does not have the part.
        ShapeError: If the texts have unequal lengths.

    Example:
        >>> import pellucid as pl
        >>> model, metric = pl.load(), pl.metrics.logit_difference(" ball", " cat")
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> heads = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", over=("layer", "head"), metric=metric)
        >>> report = pl.circuits.evaluate(
        ...     model, pl.circuits.Circuit(nodes=heads).top(6), clean, corrupted, metric=metric, value="resample",
        ...     components="heads", subsets=10)
        >>> report.size, report.universe, report.faithfulness > max(report.random)
        (6, 16, True)
    """
    subsets = require_whole("circuits.evaluate: subsets", subsets, at_least=1)
    count = require_whole("circuits.evaluate: random", random)
    if candidates is not None:
        candidates = require_whole("circuits.evaluate: candidates", candidates, at_least=1)
    circuit = Circuit.checked(circuit, Graph(model.schema))
    choices = Choices.of(circuit.granularity if granularity is None else granularity, components, value, pos, direction)
    draws = torch.Generator().manual_seed(require_seed("circuits.evaluate: seed", seed))
    with told("circuits.evaluate: interrupted, nothing was measured"):
        runs = Ablations(model, clean, corrupted, metric, choices)
        inside, scale = runs.inside(circuit), Scale.of(runs)
        left, without = runs.keeping([inside, _less(runs.universe, inside)])
    parts = [part for part in runs.universe if part in inside]
    sampled = [_drawn(parts, draws) for _ in range(subsets)] if parts else [frozenset[Any]()]
    completeness = _gaps(runs, parts, sampled)
    greedy = _greedy(runs, parts, draws, candidates)
    tried = [frozenset[Any](), *sampled[: max(1, subsets // max(1, len(parts)))], frozenset(greedy.parts)]
    minimality = _minimality(runs, parts, tried)
    drawn = [frozenset(drawn_for(parts, runs.universe, draws).values()) for _ in range(count)]
    random_ones = list(compress(drawn, runs.reached([[one] for one in drawn])))  # all, unless Control-C came
    if runs.interrupted:
        warn(f"interrupted: {completeness.count} of {len(sampled)} subsets, {len(minimality)} of {len(parts)} parts "
             f"and {len(random_ones)} of {count} random circuits were measured")  # fmt: skip
    return CircuitReport(
        circuit=circuit, choices=choices, metric=repr(metric), texts=len(left), size=len(inside),
        universe=len(runs.universe), whole=float(runs.clean.mean()), left=float(left.mean()),
        without=float(without.mean()), nothing=float(scale.nothing.mean()), faithfulness=scale(left),
        by_text=tuple(scale.by_text(left)), completeness=completeness, greedy=greedy, minimality=minimality,
        random=tuple(scale(runs.keeping([one])[0]) for one in random_ones), interrupted=runs.interrupted,
    )  # fmt: skip


def _less(parts: Collection[Any], gone: Collection[Any]) -> frozenset[Any]:
    return frozenset(parts).difference(gone)


def _drawn(parts: Sequence[Any], draws: torch.Generator) -> frozenset[Any]:
    """A subset, each part in it by one half."""
    chosen = torch.rand(len(parts), generator=draws, device="cpu") < 0.5
    return frozenset(part for part, taken in zip(parts, chosen.tolist(), strict=True) if taken)


def _differences(
    runs: Ablations, parts: Sequence[Any], sets: Sequence[frozenset[Any]]
) -> list[tuple[frozenset[Any], float]]:
    """Every K that was reached, and |F(C \\ K) - F(M \\ K)|."""
    there = runs.reached([(_less(parts, one), _less(runs.universe, one)) for one in sets])
    done = list(compress(sets, there))
    if not done:
        return []
    ours, whole = (runs.keeping([_less(every, one) for one in done]).mean(-1) for every in (parts, runs.universe))
    return list(zip(done, (ours - whole).abs().tolist(), strict=True))


def _gaps(runs: Ablations, parts: Sequence[Any], sets: Sequence[frozenset[Any]]) -> Gap:
    found = _differences(runs, parts, sets)
    if not found:
        return UNMEASURED
    worst, most = max(found, key=itemgetter(1))
    return Gap(most, float(np.mean([gap for _, gap in found])), _sorted(runs, worst), len(found))


def _greedy(runs: Ablations, parts: Sequence[Any], draws: torch.Generator, candidates: int | None) -> Gap:
    """Let K grow from nothing by the part that raises the difference most, until none of those that are tried does."""
    found = _differences(runs, parts, [frozenset()])
    if not found:
        return UNMEASURED
    (chosen, best), count = found[0], 1
    while rest := [part for part in parts if part not in chosen]:
        tried = [rest[i] for i in torch.randperm(len(rest), generator=draws, device="cpu")[:candidates].tolist()]
        found = _differences(runs, parts, [chosen | {part} for part in tried])
        count += len(found)
        if len(found) < len(tried) or max(gap for _, gap in found) <= best:
            break
        chosen, best = max(found, key=itemgetter(1))
    return Gap(best, best, _sorted(runs, chosen), count)


def _minimality(runs: Ablations, parts: Sequence[Any], sets: Sequence[frozenset[Any]]) -> dict[Any, float]:
    """For every part that was reached the largest |F(C \\ (K + v)) - F(C \\ K)|, K one of these sets."""
    pairs = {part: [_less(parts, one - {part}) for one in sets] + [_less(parts, one | {part}) for one in sets]
             for part in parts}  # fmt: skip
    done = compress(pairs, runs.reached(list(pairs.values())))
    return {part: _largest(*runs.keeping(pairs[part]).mean(-1).chunk(2)) for part in done}


def _largest(less: Tensor, more: Tensor) -> float:
    return float((more - less).abs().max())


def _sorted(runs: Ablations, parts: Collection[Any]) -> tuple[Any, ...]:
    return tuple(part for part in runs.universe if part in parts)
