"""What a comparison of two models found: a verdict that prints itself, with its evidence."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from pellucid.prove.alignment import Alignment
from pellucid.prove.pages import comparison_page
from pellucid.prove.tensors import TensorComparison
from pellucid.report.page import Page

Verdict = Literal["identical", "equivalent", "different", "inconclusive"]


@dataclass(frozen=True)
class ParameterRow:
    """One tensor of the other program against the units of the reference.

    Attributes:
        a: Names in the first model, joined by " + ".
        b: Name in the second.
        transform: How b's tensor is made from a's, in words.
        max_abs: Largest difference.
        bit_equal: Whether there is none.
        ambiguous: Whether other units hold the same values.
    """

    a: str
    b: str
    transform: str
    max_abs: float
    bit_equal: bool
    ambiguous: bool


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint; errors are the largest difference relative to the reference's largest value.

    Attributes:
        name: The checkpoint, or "logits".
        bit_equal: Whether the free float32 runs agree to the bit.
        fp32: Error of the free run in the models' own dtype: local and inherited together.
        fp32_local: Error when every value before it is the reference's; None where that could not be run.
        fp64: As fp32, both models in float64; None where they could not be run so.
        fp64_local: As fp32_local, both models in float64.
    """

    name: str
    bit_equal: bool
    fp32: float
    fp32_local: float | None
    fp64: float | None
    fp64_local: float | None


@dataclass(frozen=True)
class Divergence:
    """Where two models first differ.

    Attributes:
        where: A parameter's or a checkpoint's name.
        what: "parameter", "checkpoint" or "logits".
        detail: Evidence in words, with numbers.
        cause: The mistake that reproduces the difference, None where none was confirmed.
        positions: Positions where it shows.
        heads: Heads where it shows.
    """

    where: str
    what: Literal["parameter", "checkpoint", "logits"]
    detail: str
    cause: str | None = None
    positions: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}" + (f"; cause, confirmed: {self.cause}" if self.cause else "")


@dataclass(frozen=True, repr=False)
class ComparisonReport:
    """The outcome of `pellucid.compare` for two models.

    Attributes:
        verdict: "identical", "equivalent", "different" or "inconclusive"; the first two are true.
        parameters: A row per tensor of the other program.
        checkpoints: A row per checkpoint that both show, in execution order, and the logits.
        not_covered: Checkpoints of the reference that the other program does not show.
        first_divergence: Where they first differ, if they do.
        alignment: Which parameter is which.
        notes: What the reader should know: common ground, what could not be run, what is unexplained.
    """

    verdict: Verdict
    parameters: tuple[ParameterRow, ...]
    checkpoints: tuple[CheckpointRow, ...]
    not_covered: tuple[str, ...]
    first_divergence: Divergence | None
    alignment: Alignment
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.verdict in ("identical", "equivalent")

    def __repr__(self) -> str:
        equal = sum(row.bit_equal for row in self.parameters)
        same = sum(row.bit_equal for row in self.checkpoints)
        covered = len(self.checkpoints)
        lines = [
            f"{self.verdict}: {equal} of {len(self.parameters)} parameters and {same} of {covered} checkpoints "
            f"(logits included) are equal to the bit; {len(self.not_covered)} checkpoints not shown by both.",
        ]
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def page(self) -> Page:
        """The report as a page; `pellucid.save_html` writes it."""
        return comparison_page(self)

    def _repr_html_(self) -> str:
        return self.page().render(whole=False)

    def to_json(self) -> str:
        """Everything but the values, as JSON of format `pellucid.comparison/1`."""
        return json.dumps(
            {
                "format": "pellucid.comparison/1",
                "verdict": self.verdict,
                "parameters": [asdict(row) for row in self.parameters],
                "checkpoints": [asdict(row) for row in self.checkpoints],
                "not_covered": self.not_covered,
                "first_divergence": asdict(self.first_divergence) if self.first_divergence else None,
                "alignment": json.loads(self.alignment.to_json()),
                "notes": self.notes,
            },
            indent=1,
        )


def parameter_rows(alignment: Alignment) -> tuple[ParameterRow, ...]:
    """The alignment's matches as rows."""
    return tuple(
        ParameterRow(
            a=" + ".join(match.group.units),
            b=match.name,
            transform=match.transform.describe(match.group),
            max_abs=match.comparison.max_abs,
            bit_equal=match.comparison.bit_equal,
            ambiguous=match.ambiguous,
        )
        for match in alignment.matches
    )


def describe_difference(comparison: TensorComparison) -> str:
    """A tensor's difference in words."""
    return f"differs by up to {comparison.max_abs:.3g} ({comparison.max_ulp:,} ulp in {comparison.dtype})"
