"""The faithfulness of circuits: its scale, across choices, and by size with the area below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pellucid.check import as_number, is_several
from pellucid.circuits.ablations import Ablations, Choices
from pellucid.circuits.circuit import Circuit, Graph
from pellucid.errors import InputError, shown, warn
from pellucid.extras import need
from pellucid.metrics import Metric
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all parts that the Mechanistic Interpretability Benchmark measures at (Mueller et al. 2025)."""


@dataclass(frozen=True)
class Scale:
    """The scale on which nothing is 0 and the model is 1."""

    # nothing, whole: the metric [B] of the two
    nothing: Tensor
    whole: Tensor

    @classmethod
    def of(cls, runs: Ablations) -> Scale:
        """The corrupted runs are nothing if values are resampled, else the empty circuit is."""
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
        other values than those of a corrupted run. Control-C ends it with a warning; what was not measured then is NaN.
        Before the first is measured it is a `KeyboardInterrupt`, which says so.

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
    given: tuple[Any, ...] = (granularities, components, values, positions, directions)
    axes: list[list[Any]] = [list(each) if is_several(each) else [each] for each in given]
    shape = tuple(map(len, axes))
    if not all(shape):
        raise InputError(
            f"circuits.across: axes of lengths {list(shape)}, expected at least one choice on each.",
            code="circuit-choices",
            remedy="Give values=['resample'], for example.",
        )
    rows: list[list[float] | None] = []
    made: dict[str, Ablations] = {}
    try:
        for granularity, kinds, value, pos, direction in product(*axes):
            if direction == "denoise" and value != "resample":
                rows.append(None)
                continue
            choices = Choices.of(granularity, kinds, value, pos, direction)
            plain = made.get(direction)
            runs = Ablations(model, clean, corrupted, metric, choices) if plain is None else plain.under(choices)
            made[direction] = runs
            rows.append(Scale.of(runs).by_text(runs.keeping([runs.inside(circuit)])[0]))
    except KeyboardInterrupt:
        _require_some("circuits.across", sum(row is not None for row in rows), "combinations")
    rows += [None] * (math.prod(shape) - len(rows))
    texts = max(len(row) for row in rows if row is not None) if any(rows) else 1
    values_of = np.array([[np.nan] * texts if row is None else row for row in rows]).reshape(*shape, texts)
    said = [[a if isinstance(a, str) else shown(a) if a is not None else "all" for a in axis] for axis in axes]
    names = ("granularity", "component", "value", "position", "direction")
    return need("xarray", "pellucid.circuits").DataArray(
        values_of, dims=(*names, "batch"), coords=dict(zip(names, said, strict=True)), name="faithfulness",
        attrs={"title": repr(circuit), "metric": repr(metric), "units": "share of model - nothing"},
    )  # fmt: skip


def curve(
    model: CkptedTransformer,
    scores: Any,
    clean: Inputs,
    corrupted: Inputs,
    *,
    metric: Metric,
    value: str,
    shares: Sequence[float] = SHARES,
    components: str | Sequence[str] | None = None,
    pos: Index = None,
    direction: str = "noise",
) -> xarray.DataArray:
    """Measure the faithfulness of the circuits of the strongest parts, by their share of all parts.

    CPR, the circuit performance ratio, is the area below the faithfulness f; CMD, the circuit-model distance, that
    below |1 - f|; both by the trapezoidal rule over the shares (Mueller et al. 2025, arXiv:2504.13151, section 3). The
    best CPR is high, the best CMD is 0.

    Args:
        model: What runs.
        scores: Scores of nodes or edges, as `pl.circuits.Circuit` takes them, or such a circuit.
        clean, corrupted, metric, value, components, pos, direction: See `evaluate`.
        shares: Of the parts that can be ablated, from above 0 to 1; the strongest are kept, rounded to a whole number.

    Returns:
        [share]: faithfulness, with the coordinate `count`. Attributes: `cpr` and `cmd`, and the choices. After
        Control-C what was not measured is NaN, as in `across`, and so are `cpr` and `cmd`.

    Raises:
        InputError: If a share is not from 0 to 1, or as `evaluate`.

    Example:
        >>> import pellucid as pl
        >>> model, metric = pl.load(), pl.metrics.logit_difference(" ball", " cat")
        >>> texts = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> found = pl.circuits.curve(
        ...     model, pl.attribution.edges(model, *texts, metric=metric), *texts, metric=metric, value="resample",
        ...     shares=[0.05, 0.2, 1.0])
        >>> round(float(found[-1]), 6), found["count"].values.tolist()
        (1.0, [24, 96, 479])
    """
    given = scores if isinstance(scores, Circuit) else Circuit.of_scores(scores)
    circuit = Circuit.checked(given, Graph(model.schema))
    wanted = [as_number(share) for share in (shares if is_several(shares) else [shares])]
    if not wanted or any(share is None or not 0 < share <= 1 for share in wanted) or wanted != sorted(set(wanted)):  # pyright: ignore[reportArgumentType]
        raise InputError(
            f"circuits.curve: shares={shown(shares)}, expected numbers above 0 and up to 1, each larger than the last.",
            code="circuit-shares",
            remedy="Give shares=[0.01, 0.1, 1.0], for example.",
        )
    choices = Choices.of(circuit.granularity, components, value, pos, direction)
    with told("circuits.curve: interrupted, nothing was measured"):
        runs = Ablations(model, clean, corrupted, metric, choices)
        scale, parts = Scale.of(runs), runs.universe
    order = sorted(parts, key=lambda part: -abs(circuit.parts.get(part, 0.0)))
    counts = [round(len(parts) * float(share or 0)) for share in wanted]
    kept = [order[:count] for count in counts]
    there = runs.reached([[one] for one in kept])
    if runs.interrupted:
        _require_some("circuits.curve", sum(there), "shares")
    found = np.array([scale(runs.keeping([one])[0]) if done else np.nan for one, done in zip(kept, there, strict=True)])
    at = np.array(wanted, dtype=np.float64)
    about = {"cpr": float(np.trapezoid(found, at)), "cmd": float(np.trapezoid(np.abs(1 - found), at)),
             "choices": str(choices), "metric": repr(metric), "title": "faithfulness by share of parts"}  # fmt: skip
    return need("xarray", "pellucid.circuits").DataArray(
        found, dims=("share",), coords={"share": at, "count": ("share", counts)}, name="faithfulness", attrs=about
    )


def _require_some(verb: str, done: int, what: str) -> None:
    """After Control-C: say how much was measured, and end the verb if nothing was."""
    if not done:
        raise KeyboardInterrupt(f"{verb}: interrupted, nothing was measured")
    warn(f"interrupted: {done} {what} were measured, the others are NaN")
