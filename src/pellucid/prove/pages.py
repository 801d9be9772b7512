"""A comparison as a page: the verdict, the first divergence, a heat strip of errors, and every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pellucid.ckpt import BLOCK
from pellucid.report.page import HeatStrip, Page, Section, Table, Text

if TYPE_CHECKING:
    from pellucid.prove.report import CheckpointRow, ComparisonReport

_SMALLEST, _LARGEST = 1e-16, 1.0


def comparison_page(report: ComparisonReport) -> Page:
    """The page of a comparison."""
    sections: list[Section] = []
    if report.first_divergence is not None:
        sections.append(Text(str(report.first_divergence), "First divergence", set_apart=True))
    sections += [_strip(report.checkpoints), _checkpoint_table(report), _parameter_table(report)]
    sections += [Text(note, "Notes" if number == 0 else "") for number, note in enumerate(report.notes)]
    return Page("Comparison of two models", report.verdict, bool(report), report.summary, sections)


def _strip(rows: Sequence[CheckpointRow]) -> HeatStrip:
    by_name = {row.name: row for row in rows}
    blocks = sorted({int(row.name.split(".")[1]) for row in rows if row.name.startswith("blocks.")})
    cells = [[_cell(by_name.get(f"blocks.{block}.{kind}")) for block in blocks] for kind in BLOCK]
    return HeatStrip(
        "Each stage's own error, by block",
        list(BLOCK),
        [str(block) for block in blocks],
        cells,
        "Relative error of a stage that is given the reference's values, in float64 where that could be run: "
        "dark is none or 1e-16, yellow is 1. Grey: not shown by both models.",
    )


def _cell(row: CheckpointRow | None) -> tuple[float, str] | None:
    if row is None:
        return None
    error = row.fp64_local if row.fp64_local is not None else row.fp32_local if row.fp32_local is not None else row.fp32
    bounded = min(max(error, _SMALLEST), _LARGEST)
    shade = math.log(bounded / _SMALLEST) / math.log(_LARGEST / _SMALLEST)
    return shade, f"{row.name}: {error:.2e}"


def _checkpoint_table(report: ComparisonReport) -> Table:
    first = report.first_divergence
    marked = {n for n, row in enumerate(report.checkpoints) if first is not None and row.name == first.where}
    return Table(
        "Checkpoints",
        ("checkpoint", "equal to the bit", "fp32", "fp32, own", "fp64", "fp64, own"),
        [
            (row.name, _yes(row.bit_equal), *map(_number, (row.fp32, row.fp32_local, row.fp64, row.fp64_local)))
            for row in report.checkpoints
        ],
        frozenset(marked),
        "Largest difference relative to the reference's largest value; own: with the reference's values before it.",
    )


def _parameter_table(report: ComparisonReport) -> Table:
    marked = {number for number, row in enumerate(report.parameters) if not row.bit_equal}
    return Table(
        "Parameters",
        ("first", "second", "transform", "largest difference", "equal to the bit"),
        [
            (
                row.a,
                row.b,
                row.transform + (" (ambiguous)" if row.ambiguous else ""),
                _number(row.max_abs),
                _yes(row.bit_equal),
            )
            for row in report.parameters
        ],
        frozenset(marked),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.2e}"
