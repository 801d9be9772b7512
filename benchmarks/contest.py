"""Who may be timed: contenders whose results equal the first one's, value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import Call, ResultsDifferError, require_equal

if TYPE_CHECKING:
    from torch import Tensor

    import pellucid as pl
    from report import Report

Values = Mapping[str, "Tensor"]
"""What a run gave: checkpoint names, or "logits", -> tensor."""

BECAUSE = "sums in another order; the bound is eight times our own distance from a float64 run, value by value"


@dataclass(frozen=True)
class Contender:
    """A way to do the work.

    Attributes:
        run: What is timed.
        values: What `run` returned -> what is compared; not timed.
        bounds: Name -> largest difference from the first contender; None asks for equal bits.
        because: Why there may be a difference.
    """

    run: Call
    values: Callable[[Any], Values]
    bounds: Mapping[str, float] | None = None
    because: str = BECAUSE


@dataclass
class Admission:
    """Compares contenders with the first, and keeps those that agree.

    A peer that fails or differs is written into the report and left out; where one of ours differs there is nothing to
    report, and it is an error.
    """

    report: Report
    work: str
    compared: dict[str, Any] = field(default_factory=dict)

    def admit(self, contenders: Mapping[str, Contender], *, at_least: int = 1) -> dict[str, Call]:
        """Contender -> what to time.

        Args:
            contenders: The first is what the others are held against; it may not fail.
            at_least: Values that each must have in common with it.
        """
        (first, reference), *others = contenders.items()
        expected = reference.values(reference.run())
        admitted = {first: reference.run}
        for name, contender in others:
            try:
                found = contender.values(contender.run())
                self.compared[name] = agreement(expected, found, contender, at_least)
                admitted[name] = contender.run
            except Exception as error:
                if name.startswith("pellucid"):
                    raise
                self.report.fail(self.work, name, error)
        self.report.facts.setdefault("compared", {})[self.work] = self.compared
        return admitted


def agreement(expected: Values, found: Values, contender: Contender, at_least: int = 1) -> dict[str, float]:
    """How much was compared, and the largest difference.

    Raises:
        ResultsDifferError: A value differs by more than its bound, or too few are shown by both.
    """
    common = [name for name in found if name in expected]
    if len(common) < at_least:
        raise ResultsDifferError(f"{len(common)} values are shown by both, expected {at_least}")
    worst = 0.0
    for name in common:
        within = 0.0 if contender.bounds is None else contender.bounds[name]
        pair = {"expected": visible(expected[name]), name: visible(found[name])}
        worst = max(worst, require_equal(pair, within=within, because=contender.because if within else ""))
    numbers = sum(found[name].numel() for name in common)
    return {"values": len(common), "numbers": numbers, "largest difference": worst}


def captured_bounds(model: pl.CkptedTransformer, ids: Tensor, ckpts: Values, names: Any = None) -> dict[str, float]:
    """Checkpoint -> bound for another program's value: see `harness.rounding`.

    Args:
        model: Whose float64 run is the measure.
        ids: [B, P].
        ckpts: What the float32 run captured.
        names: Of the checkpoints.
    """
    import copy

    from harness import rounding

    twice = copy.deepcopy(model).double()
    logits, exact = twice.run_with_ckpts(ids, names=names)
    bounds = {"logits": rounding(model(ids), logits)} if logits is not None else {}
    for name, value in ckpts.items():
        bounds[name] = rounding(visible(value), visible(exact[name]))
    return bounds


def visible(value: Tensor) -> Tensor:
    """Scores without what the mask wrote: the least number there is, or minus infinity, as each library likes."""
    return value.clamp(min=-1e6)
