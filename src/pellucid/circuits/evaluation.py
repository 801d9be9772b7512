"""How well a circuit stands for a model: faithfulness, completeness, minimality, and what random circuits reach.

F(C) is the metric, the mean over texts, of runs in which only the circuit C is left; M is the whole model. Which parts
are taken out, what is put in their place, where, and in which runs, moves every one of these numbers (Miller et al.
2024, arXiv:2407.08734), so an evaluation states its `Choices`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pellucid.check import require_whole
from pellucid.circuits.ablations import Ablations, Choices
from pellucid.circuits.circuit import Circuit
from pellucid.circuits.graph import Graph, kind_of
from pellucid.dialects import named_arguments
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.metrics import Metric
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Gap:
    """The largest of some differences.

    Attributes:
        most: The largest.
        mean: The mean of all; of a greedy search, the largest again.
        parts: The set of parts that it belongs to.
        count: How many were measured.
    """

    most: float
    mean: float
    parts: tuple[Any, ...]
    count: int


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
        return "\n".join([f"{of}: {self.choices}", *(f"{name:<13} {said}" for name, said in rows)])


def _spread(by_text: Sequence[float]) -> str:
    if len(by_text) < 2:
        return ""
    return f" (by text {min(by_text):.3f} to {max(by_text):.3f}, standard deviation {np.std(by_text, ddof=1):.3f})"


def _written(part: Any) -> str:
    return part if isinstance(part, str) else " -> ".join(part)


@named_arguments()
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
        A report: faithfulness with its spread over texts, completeness, minimality, and the random circuits.

    Raises:
        InputError: Choices that do not exist, or a metric that does not tell the model from nothing.
        UnknownNameError: A part that the model does not have.
        ShapeError: Texts of unequal length.

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
    choices = Choices.of(granularity or circuit.granularity, components, value, pos, direction)
    runs = Ablations(model, clean, corrupted, metric, choices)
    inside = _inside(circuit, runs)
    scale = Scale.of(runs)
    left, without = runs.keeping([inside, _less(runs.universe, inside)])
    draws = torch.Generator().manual_seed(require_whole("circuits.evaluate: seed", seed))
    parts = [part for part in runs.universe if part in inside]
    sampled = [_drawn(parts, draws) for _ in range(subsets)] if parts else []
    greedy = _greedy(runs, parts, draws, candidates)
    return CircuitReport(
        circuit=circuit, choices=choices, metric=repr(metric), texts=len(left), size=len(inside),
        universe=len(runs.universe), whole=float(runs.clean.mean()), left=float(left.mean()),
        without=float(without.mean()), nothing=float(scale.nothing.mean()), faithfulness=scale(left),
        by_text=tuple(scale.by_text(left)), completeness=_gaps(runs, parts, sampled), greedy=greedy,
        minimality=_minimality(runs, parts, sampled[: max(1, subsets // max(1, len(parts)))], greedy.parts),
        random=tuple(scale(one) for one in runs.keeping(_like(runs, parts, count, draws))) if count else (),
    )  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """The scale on which nothing is 0 and the model is 1.

    Args:
        nothing, whole: The metric [B] of the two.
    """

    nothing: Tensor
    whole: Tensor

    @classmethod
    def of(cls, runs: Ablations) -> Scale:
        """The corrupted runs are nothing if values are resampled, else the empty circuit is.

        Raises:
            InputError: The two are equal.
        """
        nothing = runs.corrupted if runs.choices.value == "resample" else runs.keeping([()])[0]
        if float(nothing.mean()) == float(runs.clean.mean()):
            raise InputError(
                "circuits: the metric is the same of the model and of nothing.",
                code="nothing-to-normalize",
                remedy="Choose a metric or texts in which the two runs differ.",
            )
        return cls(nothing, runs.clean)

    def __call__(self, measured: Tensor) -> float:
        """The mean over texts on this scale."""
        nothing, whole = float(self.nothing.mean()), float(self.whole.mean())
        return (float(measured.mean()) - nothing) / (whole - nothing)

    def by_text(self, measured: Tensor) -> list[float]:
        """Each text on a scale of its own."""
        return ((measured - self.nothing) / (self.whole - self.nothing)).tolist()


def _inside(circuit: Circuit, runs: Ablations) -> frozenset[Any]:
    """The parts of a circuit that can be ablated."""
    made = circuit.as_nodes if runs.choices.granularity == "nodes" else circuit.as_edges
    return made(runs.graph).intersection(runs.universe)


def _less(parts: Collection[Any], gone: Collection[Any]) -> frozenset[Any]:
    return frozenset(parts).difference(gone)


def _drawn(parts: Sequence[Any], draws: torch.Generator) -> frozenset[Any]:
    """A subset, each part in it by one half."""
    chosen = torch.rand(len(parts), generator=draws) < 0.5
    return frozenset(part for part, taken in zip(parts, chosen.tolist(), strict=True) if taken)


def _differences(runs: Ablations, parts: Sequence[Any], sets: Sequence[frozenset[Any]]) -> list[float]:
    """|F(C \\ K) - F(M \\ K)| for every K."""
    ours = runs.keeping([_less(parts, one) for one in sets]).mean(-1)
    whole = runs.keeping([_less(runs.universe, one) for one in sets]).mean(-1)
    return (ours - whole).abs().tolist()


def _gaps(runs: Ablations, parts: Sequence[Any], sets: Sequence[frozenset[Any]]) -> Gap:
    found = _differences(runs, parts, sets or [frozenset()])
    worst = int(np.argmax(found))
    return Gap(found[worst], float(np.mean(found)), _sorted(runs, (sets or [frozenset()])[worst]), len(found))


def _greedy(runs: Ablations, parts: Sequence[Any], draws: torch.Generator, candidates: int | None) -> Gap:
    """Let K grow from nothing by the part that raises the difference most, until none of those that are tried does."""
    (best,), chosen, count = _differences(runs, parts, [frozenset()]), frozenset[Any](), 1
    while rest := [part for part in parts if part not in chosen]:
        tried = [rest[i] for i in torch.randperm(len(rest), generator=draws)[:candidates].tolist()]
        found = _differences(runs, parts, [chosen | {part} for part in tried])
        count += len(found)
        if max(found) <= best:
            break
        best, chosen = max(found), chosen | {tried[int(np.argmax(found))]}
    return Gap(best, best, _sorted(runs, chosen), count)


def _minimality(
    runs: Ablations, parts: Sequence[Any], sampled: Sequence[frozenset[Any]], greedy: Sequence[Any]
) -> dict[Any, float]:
    """For every part the largest |F(C \\ (K + v)) - F(C \\ K)|, K nothing, the sampled sets or the greedy one."""
    sets = [frozenset(), *sampled, frozenset(greedy)]
    pairs = [(one - {part}, one | {part}) for part in parts for one in sets]
    if not pairs:
        return {}
    less, more = (runs.keeping([_less(parts, pair[side]) for pair in pairs]).mean(-1) for side in (0, 1))
    found = (more - less).abs().view(len(parts), -1).amax(-1).tolist()
    return dict(zip(parts, found, strict=True))


def _like(runs: Ablations, parts: Sequence[Any], count: int, draws: torch.Generator) -> list[frozenset[Any]]:
    """Random circuits with as many parts; of nodes, with as many of each kind."""
    kind: Callable[[Any], str] = kind_of if runs.choices.granularity == "nodes" else lambda edge: "edges"
    pools = {name: [p for p in runs.universe if kind(p) == name] for name in dict.fromkeys(map(kind, runs.universe))}
    wanted = {name: sum(kind(part) == name for part in parts) for name in pools}
    return [
        frozenset(pool[i] for name, pool in pools.items()
                  for i in torch.randperm(len(pool), generator=draws)[: wanted[name]].tolist())
        for _ in range(count)
    ]  # fmt: skip


def _sorted(runs: Ablations, parts: Collection[Any]) -> tuple[Any, ...]:
    return tuple(part for part in runs.universe if part in parts)


@named_arguments()
def across(
    model: CkptedTransformer,
    circuit: Circuit,
    clean: Inputs,
    corrupted: Inputs,
    *,
    metric: Metric,
    values: Sequence[str] = ("resample", "mean", "zero"),
    granularities: Sequence[str] = ("nodes", "edges"),
    components: Sequence[str | Sequence[str] | None] = (None,),
    positions: Sequence[Index] = (None,),
    directions: Sequence[str] = ("noise", "denoise"),
) -> xarray.DataArray:
    """Measure the faithfulness of a circuit under every combination of choices, each text by itself.

    Args:
        model, circuit, clean, corrupted, metric: See `evaluate`.
        values, granularities, components, positions, directions: What to go over; see `evaluate`.

    Returns:
        [granularity, component, value, position, direction, batch]: the faithfulness of each text; NaN for "denoise" of
        other values than those of a corrupted run.

    Raises:
        InputError: As `evaluate`.

    Example:
        >>> import pellucid as pl
        >>> circuit = pl.circuits.Circuit(nodes=[(0, 2), (3, 0), (3, 1)])
        >>> found = pl.circuits.across(
        ...     pl.load(), circuit, "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the",
        ...     metric=pl.metrics.logit_difference(" ball", " cat"), components=["heads"])
        >>> found.sizes
        Frozen({'granularity': 2, 'component': 1, 'value': 3, 'position': 1, 'direction': 2, 'batch': 1})
    """
    circuit = Circuit.checked(circuit, Graph(model.schema))
    axes: list[list[Any]] = [list(each) for each in (granularities, components, values, positions, directions)]
    shape = tuple(map(len, axes))
    if not all(shape):
        raise InputError(
            f"circuits.across: axes of lengths {list(shape)}, expected at least one choice on each.",
            code="circuit-choices",
            remedy="Give values=['resample'], for example.",
        )
    rows: list[list[float] | None] = []
    made: dict[str, Ablations] = {}
    for granularity, kinds, value, pos, direction in product(*axes):
        if direction == "denoise" and value != "resample":
            rows.append(None)
            continue
        choices = Choices.of(granularity, kinds, value, pos, direction)
        plain = made.get(direction)
        runs = Ablations(model, clean, corrupted, metric, choices) if plain is None else plain.under(choices)
        made[direction] = runs
        rows.append(Scale.of(runs).by_text(runs.keeping([_inside(circuit, runs)])[0]))
    texts = max(len(row) for row in rows if row is not None) if any(rows) else 1
    values_of = np.array([[np.nan] * texts if row is None else row for row in rows]).reshape(*shape, texts)
    said = [[a if isinstance(a, str) else shown(a) if a is not None else "all" for a in axis] for axis in axes]
    names = ("granularity", "component", "value", "position", "direction")
    return need("xarray", "pellucid.circuits").DataArray(
        values_of, dims=(*names, "batch"), coords=dict(zip(names, said, strict=True)), name="faithfulness",
        attrs={"title": repr(circuit), "metric": repr(metric), "units": "share of model - nothing"},
    )  # fmt: skip
