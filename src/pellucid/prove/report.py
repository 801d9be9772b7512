"""What a comparison of two models found: a verdict that prints itself, with its evidence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

from pellucid.errors import MOST_PRINTED, printable
from pellucid.html.listing import counted, finite
from pellucid.html.page import Page
from pellucid.names.calls import named_methods
from pellucid.prove.about import About, Distance, Reach, RunInputs
from pellucid.prove.alignment import Alignment
from pellucid.prove.pages import MOVED, comparison_page
from pellucid.prove.tensors import TensorComparison

Verdict = Literal["identical", "equivalent", "different", "inconclusive"]


class SensitivityProbe(Protocol):
    """Measures how small an error would be seen."""

    def measure(self) -> dict[str, float | None]: ...


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
        relative: Norm of the difference, relative to the norm of A's tensor (Frobenius).
    """

    a: str
    b: str
    transform: str
    max_abs: float
    bit_equal: bool
    ambiguous: bool
    relative: float = 0.0


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint; errors are the largest difference relative to the reference's largest value.

    Attributes:
        name: The checkpoint, or "logits".
        bit_equal: Whether the free float32 runs agree to the bit.
        fp32: Error of the free run in the models' own dtype: local and inherited together.
        fp32_local: Error when every value before it is the reference's; None if that could not be run.
        fp64: As fp32, both models in float64; None if they could not be run so.
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
        cause: The mistake that reproduces the difference, None if none was confirmed.
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


@named_methods
@dataclass(frozen=True, repr=False)
class ComparisonReport:
    """The outcome of `pellucid.compare` for two models.

    Attributes:
        verdict: "identical", "equivalent", "different" or "inconclusive"; the first two are true.
        parameters: A row per tensor of the other program.
        checkpoints: A row per checkpoint that both show, in execution order, and the logits.
        ckpts: Every checkpoint of the reference, in execution order; `not_covered` are those that the other program
            does not show.
        first_divergence: Where they first differ, if they do.
        alignment: Which parameter is which.
        notes: What the reader should know: common ground, what could not be run, what is unexplained.
        logits_seen: How many positions the program gave logits of, and how many positions were run.
        reach: For how many ids, and at how many positions, the logits were compared.
        about: What was compared, on what, with which versions, and when; `a`, `b`, `inputs` and `versions` are its.
        distance: How different the two are.
        reference: Which side errors are relative to, "A" or "B": the one that pellucid runs, or made a model of.
        probe: What measures `sensitivity`.
    """

    verdict: Verdict
    parameters: tuple[ParameterRow, ...]
    checkpoints: tuple[CheckpointRow, ...]
    ckpts: tuple[str, ...]
    first_divergence: Divergence | None
    alignment: Alignment
    notes: tuple[str, ...]
    logits_seen: tuple[int, int] = (0, 0)
    reach: Reach = field(default_factory=Reach)
    about: About = field(default_factory=About)
    distance: Distance = field(default_factory=Distance)
    reference: Literal["A", "B"] = "A"
    probe: SensitivityProbe | None = field(default=None, compare=False)

    @property
    def a(self) -> str:
        """What the first side is called."""
        return self.about.a

    @property
    def b(self) -> str:
        """What the second side is called."""
        return self.about.b

    @property
    def inputs(self) -> RunInputs:
        """What both ran."""
        return self.about.inputs

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of what computed."""
        return self.about.versions

    @property
    def not_covered(self) -> tuple[str, ...]:
        """Checkpoints of the reference that the other program does not show."""
        shown = {row.name for row in self.checkpoints}
        return tuple(name for name in self.ckpts if name not in shown)

    @property
    def coverage(self) -> dict[str, tuple[int, int]]:
        """Kind of checkpoint, such as "attn.ckpt_q" -> in how many blocks both show it, and of how many.

        "logits" is there only if a program gives those of some positions: of how many, and of how many that ran;
        "ids" and "positions" only if the logits were compared for some of those that the model has.
        """
        counts: dict[str, tuple[int, int]] = {}
        shown = {row.name for row in self.checkpoints}
        for name in self.ckpts:
            kind = name.split(".", 2)[2] if name.startswith("blocks.") else name
            covered, of = counts.get(kind, (0, 0))
            counts[kind] = (covered + (name in shown), of + 1)
        if self.logits_seen[0] < self.logits_seen[1]:
            counts["logits"] = self.logits_seen
        return counts | self.reach.partial

    @cached_property
    def sensitivity(self) -> dict[str, float | None]:
        """Kind of parameter -> the smallest relative change of one weight that the runs alone would reveal.

        Found by injecting errors into copies when it is first asked for, with the parameters not compared; None
        if not even a change by a tenth shows. Empty if nothing was run, or if the other
        program does not run in float64.
        """
        return {} if self.probe is None or not self.checkpoints else self.probe.measure()

    def __bool__(self) -> bool:
        return self.verdict in ("identical", "equivalent")

    @property
    def summary(self) -> str:
        """How much is equal to the bit, in a sentence. What only one side has counts as a parameter."""
        equal = sum(row.bit_equal for row in self.parameters)
        alone = max(len(self.alignment.missing), len(self.alignment.unexplained))
        same = sum(row.bit_equal for row in self.checkpoints)
        return (
            f"{equal} of {len(self.parameters) + alone} parameters and {same} of {len(self.checkpoints)} checkpoints "
            f"(logits included) are equal to the bit; {counted(len(self.not_covered), 'checkpoint')} not shown by both."
        )

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was compared, on what, and for how much of what a model takes; each with its name."""
        return [*self.about.lines(), *([("compared", str(self.reach))] if self.checkpoints else [])]

    def __repr__(self) -> str:
        lines = [f"{self.verdict}: {self.summary}", *(f"{name}: {what}" for name, what in self.facts)]
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}")
        if not self:
            lines.append(f"distance: {self.distance}")
        if self.checkpoints:
            lines.append(
                "shown by both: "
                + (", ".join(_coverage_words(self.coverage, self.reach.partial)) or "the logits alone")
            )
        return printable("\n".join([*lines, *(f"note: {note}" for note in self.notes)]), MOST_PRINTED)

    def to_markdown(self) -> str:
        """A summary that can be pasted into a pull request: what moved most comes first."""
        lines = [f"**{self.verdict}**: {self.summary}", ""]
        lines += [f"- {name}: {in_markdown(what)}" for name, what in self.facts]
        if self.first_divergence:
            lines += ["", f"First divergence: {in_markdown(str(self.first_divergence))}"]
        if not self:
            lines += ["", f"Distance: {self.distance}."]
        if moved := self.moved:
            lines += ["", "| parameter | in the other | relative change | largest difference |", "|---|---|---:|---:|"]
            lines += [
                f"| {as_code(row.a)} | {as_code(row.b)} | {row.relative:.2g} | {row.max_abs:.2g} |"
                for row in moved[:MOVED]
            ]
            if len(moved) > MOVED:
                lines.append(f"| and {len(moved) - MOVED} more that changed less | | | |")
        notes = [f"- {in_markdown(note)}" for note in self.notes]
        return "\n".join([*lines, *([""] if notes else []), *notes]).rstrip() + "\n"

    @property
    def moved(self) -> list[ParameterRow]:
        """The parameters that are not equal to the bit, the one with the largest relative change first."""
        changed = [row for row in self.parameters if not row.bit_equal]
        return sorted(changed, key=lambda row: -row.relative if math.isfinite(row.relative) else -math.inf)

    def page(self) -> Page:
        """The report as a page; `pellucid.save_html` writes it."""
        return comparison_page(self)

    def _repr_html_(self) -> str:
        return self.page().render(whole=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the values, in the form of `pellucid.comparison/1`."""
        return {
            "format": "pellucid.comparison/1",
            **self.about.to_dict(),
            "verdict": self.verdict,
            "distance": self.distance.to_dict(),
            "reference": self.reference,
            "parameters": [asdict(row) for row in self.parameters],
            "checkpoints": [asdict(row) for row in self.checkpoints],
            "not_covered": self.not_covered,
            "coverage": self.coverage,
            "first_divergence": asdict(self.first_divergence) if self.first_divergence else None,
            "alignment": json.loads(self.alignment.to_json()),
            "notes": self.notes,
        }

    def to_json(self) -> str:
        """`to_dict` as JSON; numbers that are not finite are null."""
        return json.dumps(finite(self.to_dict()), indent=1, allow_nan=False)


def _coverage_words(coverage: Mapping[str, tuple[int, int]], beside: Collection[str]) -> list[str]:
    return [
        kind.replace("ckpt_", "")
        + ("" if covered == of else f" ({covered} of {of} {'positions' if kind == 'logits' else 'blocks'})")
        for kind, (covered, of) in coverage.items()
        if covered and kind not in beside
    ]


def relative_changes(rows: Iterable[ParameterRow]) -> dict[str, float]:
    """Name in the first model -> relative change."""
    return {row.a: row.relative for row in rows}


def describe_difference(comparison: TensorComparison) -> str:
    """A tensor's difference in words. Steps between numbers are counted only if both have one size."""
    if not comparison.max_abs:
        return "differs in its bits only: zeros of another sign, or NaNs"
    words = f"differs by up to {comparison.max_abs:.3g}, by {comparison.relative:.2g} of its norm"
    if comparison.max_rel >= FAR:
        return words
    return f"{words} ({comparison.max_ulp:,} ulp in {comparison.dtype})"


FAR = 0.5
"""Relative difference from which numbers have other exponents or signs, and the steps between them say nothing."""


def in_markdown(text: str) -> str:
    """A text that is shown as it is: names from files are no markup, and end no cell."""
    return re.sub(r"([\\`*\[\]<>|#]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def as_code(name: str) -> str:
    """The name of a parameter in Markdown."""
    return f"`{name}`" if re.fullmatch(r"[\w.+\- \[\]]+", name) else in_markdown(name)
