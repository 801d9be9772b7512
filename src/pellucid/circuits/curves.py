"""The faithfulness of circuits of every size, and the area below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import as_number
from pellucid.circuits.ablations import Ablations, Choices
from pellucid.circuits.circuit import Circuit
from pellucid.circuits.evaluation import Scale
from pellucid.circuits.graph import Graph
from pellucid.dialects import named_arguments
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.metrics import Metric
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all parts that the Mechanistic Interpretability Benchmark measures at (Mueller et al. 2025)."""


@named_arguments()
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
        [share]: faithfulness, with the coordinate `count`. Attributes: `cpr` and `cmd`, and the choices.

    Raises:
        InputError: Shares that are none, or as `evaluate`.

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
    wanted = [as_number(share) for share in shares]
    if not wanted or any(share is None or not 0 < share <= 1 for share in wanted) or wanted != sorted(set(wanted)):  # pyright: ignore[reportArgumentType]
        raise InputError(
            f"circuits.curve: shares={shown(shares)}, expected numbers above 0 and up to 1, each larger than the last.",
            code="circuit-shares",
            remedy="Give shares=[0.01, 0.1, 1.0], for example.",
        )
    choices = Choices.of(circuit.granularity, components, value, pos, direction)
    runs = Ablations(model, clean, corrupted, metric, choices)
    scale, parts = Scale.of(runs), runs.universe
    order = sorted(parts, key=lambda part: -abs(circuit.parts.get(part, 0.0)))
    counts = [round(len(parts) * float(share or 0)) for share in wanted]
    found = np.array([scale(one) for one in runs.keeping([order[:count] for count in counts])])
    at = np.array(wanted, dtype=np.float64)
    about = {"cpr": float(np.trapezoid(found, at)), "cmd": float(np.trapezoid(np.abs(1 - found), at)),
             "choices": str(choices), "metric": repr(metric), "title": "faithfulness by share of parts"}  # fmt: skip
    return need("xarray", "pellucid.circuits").DataArray(
        found, dims=("share",), coords={"share": at, "count": ("share", counts)}, name="faithfulness", attrs=about
    )
