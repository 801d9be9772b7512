"""A comparison as a page: what was compared, the verdict, a map of errors, what moved most, and every row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from pellucid.html.page import Cell, Details, HeatStrip, Page, PlainTable, RowGroup, Section, Text, anchor
from pellucid.numerics.rounding import BEYOND_ROUNDING
from pellucid.prove.points import block_of

if TYPE_CHECKING:
    from pellucid.prove.report import CheckpointRow, ComparisonReport, ParameterRow

CHECKPOINTS, PARAMETERS = "Checkpoints", "Parameters"
R = TypeVar("R")

OUTSIDE = "before and after the blocks"
MOVED = 12
"""How many parameters a summary shows, those that changed most."""


def comparison_page(report: ComparisonReport) -> Page:
    """The page of a comparison."""
    sections: list[Section] = []
    first = report.first_divergence
    if first is not None:
        table = PARAMETERS if first.what == "parameter" else CHECKPOINTS
        see = anchor(f"{table} {_group_of(first.where)}")
        sections.append(Text(str(first), "First divergence", set_apart=True, see=see))
    sections += [Text(note, "Notes" if number == 0 else "") for number, note in enumerate(report.notes)]
    if moved := report.moved:
        sections.append(_moved(moved))
    if report.checkpoints:
        sections += [_strip(report), _checkpoint_table(report)]
    sections.append(_parameter_table(report))
    facts = [*report.facts, *([] if report else [("distance", str(report.distance))])]
    title = f"{report.a} and {report.b}"
    return Page(title, report.verdict, bool(report), report.summary, sections, facts)


def _moved(moved: Sequence[ParameterRow]) -> PlainTable:
    more = f" {len(moved) - MOVED} more changed less." if len(moved) > MOVED else ""
    return PlainTable(
        "What changed most",
        ("parameter", "relative change", "largest difference"),
        [(row.a, _number(row.relative), _number(row.max_abs)) for row in moved[:MOVED]],
        note=f"Norm of the difference, relative to the norm of A's tensor.{more}",
    )


def _strip(report: ComparisonReport) -> HeatStrip:
    by_name = {row.name: row for row in report.checkpoints}
    blocks = sorted({int(name.split(".")[1]) for name in by_name if name.startswith("blocks.")})
    kinds = list(dict.fromkeys(name.split(".", 2)[2] for name in report.ckpts if name.startswith("blocks.")))
    cells = [[_cell(by_name.get(f"blocks.{block}.{kind}")) for block in blocks] for kind in kinds]
    return HeatStrip(
        "Each stage's own error, by block",
        kinds,
        [str(block) for block in blocks],
        cells,
        (
            Cell("=", "equal to the bit"),
            Cell("≈", "rounding"),
            *(_error_cell(10.0**power, f"error of 1e{power}") for power in (-9, -6, -3, -1)),
        ),
        f"Relative error of a stage that is given {report.reference}'s values, in float64 if that could be run. The "
        "number is the power of ten. An empty cell is not shown by both models. Point at a cell for its value.",
    )


def _cell(row: CheckpointRow | None) -> Cell | None:
    if row is None:
        return None
    error = row.fp64_local if row.fp64_local is not None else row.fp32_local if row.fp32_local is not None else row.fp32
    words = f"{row.name}: {_number(error)}"
    if error > BEYOND_ROUNDING or math.isnan(error):
        return _error_cell(error, words)
    return Cell("=", f"{row.name}: equal to the bit") if row.bit_equal else Cell("≈", f"{words}, which is rounding")


def _error_cell(error: float, words: str) -> Cell:
    if not math.isfinite(error):
        return Cell("!", words, 1.0)
    power = math.log10(error)
    return Cell(f"{math.floor(power)}", words, min(max((power - math.log10(BEYOND_ROUNDING)) / 10, 0.0), 1.0))


def _checkpoint_table(report: ComparisonReport) -> Details:
    first = report.first_divergence
    groups = [
        RowGroup(
            group,
            f"{sum(row.bit_equal for row in rows)} of {len(rows)} equal to the bit",
            [
                (row.name, _yes(row.bit_equal), *map(_number, (row.fp32, row.fp32_local, row.fp64, row.fp64_local)))
                for row in rows
            ],
            frozenset(n for n, row in enumerate(rows) if first is not None and row.name == first.where),
            first is not None and any(row.name == first.where for row in rows),
        )
        for group, rows in _grouped(report.checkpoints, [row.name for row in report.checkpoints])
    ]
    return Details(
        CHECKPOINTS,
        ("checkpoint", "equal to the bit", "fp32", "fp32, own", "fp64", "fp64, own"),
        groups,
        f"Largest difference relative to {report.reference}'s largest value, in the models' own dtype (fp32) and in "
        f"float64; own: with {report.reference}'s values before it.",
    )


def _parameter_table(report: ComparisonReport) -> Details:
    names = [row.b if report.reference == "B" else row.a for row in report.parameters]
    first = report.first_divergence
    where = _group_of(first.where) if first is not None and first.what == "parameter" else None
    groups = [
        RowGroup(
            group,
            f"{sum(row.bit_equal for row in rows)} of {len(rows)} equal to the bit",
            [_parameter(row) for row in rows],
            frozenset(number for number, row in enumerate(rows) if not row.bit_equal),
            group == where,
        )
        for group, rows in _grouped(report.parameters, names)
    ]
    columns = ("in A", "in B", "transform", "relative change", "largest difference", "equal to the bit")
    return Details(PARAMETERS, columns, groups)


def _parameter(row: ParameterRow) -> tuple[str, ...]:
    transform = row.transform + (" (ambiguous)" if row.ambiguous else "")
    return row.a, row.b, transform, _number(row.relative), _number(row.max_abs), _yes(row.bit_equal)


def _grouped(rows: Sequence[R], names: Sequence[str]) -> list[tuple[str, list[R]]]:
    """The rows of each block, after those of none."""
    groups: dict[str, list[R]] = {}
    for row, name in sorted(zip(rows, names, strict=True), key=lambda pair: block_of(pair[1])):
        groups.setdefault(_group_of(name), []).append(row)
    return list(groups.items())


def _group_of(name: str) -> str:
    block = block_of(name)
    return OUTSIDE if block < 0 else f"block {block}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.2e}"
