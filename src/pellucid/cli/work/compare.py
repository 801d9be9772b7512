"""`pellucid compare`: two models to the bit, and where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.text import Text as Words

import pellucid as pl
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.options import configuration, parse_ids, read_text, read_tokenizer
from pellucid.cli.shared.screen import progress, show, show_json, steps
from pellucid.cli.shared.tables import heading
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Compare
from pellucid.prove.pages import MOVED
from pellucid.prove.report import ParameterRow
from pellucid.prove.sides import DEFAULT_TEXT, opened
from pellucid.weights.load import LoadOptions


def compare(wish: Compare) -> None:
    """Compare, show, and fail unless the two are the same."""
    inputs = parse_ids(wish.ids) if wish.ids else DEFAULT_TEXT if wish.text is None else read_text(wish.text)
    tokenizer = None if wish.tokenizer is None else read_tokenizer(wish.tokenizer)
    with progress(f"opening {wish.a} and {wish.b}"):
        a, b = (opened(name, _options(wish, side)) for name, side in ((wish.a, "A"), (wish.b, "B")))
    with steps(f"{wish.a} and {wish.b}") as shown:
        report = pl.compare(a, b, inputs=inputs, tokenizer=tokenizer, progress=shown)
    if wish.html is not None:
        pl.save_html(report, wish.html)
    if wish.as_json:
        show_json(report.to_dict())
    elif wish.markdown:
        show(Words(report.to_markdown()))
    else:
        _show(report, wish.html)
    if not report:
        raise typer.Exit(Exit.CHECK_FAILED)


def _options(wish: Compare, side: str) -> LoadOptions:
    config, ignored = wish.of_side(side, wish.config), tuple(wish.of_side(side, wish.ignore_config))
    return LoadOptions(
        dtype=next(iter(wish.of_side(side, wish.dtype)), "stored"),
        config=configuration(Path(config[0])) if config else None,
        ignore_config=ignored,
    )


def _show(report: pl.ComparisonReport, html: Path | None) -> None:
    show(Words(report.verdict, "bold green" if report else "bold red"), Words(report.summary), _about(report))
    if report.first_divergence is not None:
        show(heading("first divergence"), Words(str(report.first_divergence)))
    if moved := report.moved:
        show(heading("parameters that changed most"), _moved(moved), Words(RELATIVE, "dim"))
        if len(moved) > MOVED:
            show(Words(f"and {len(moved) - MOVED} more that changed less", "dim"))
    if report.checkpoints:
        show(heading("checkpoints"), _table(report), Words(_errors(report), "dim"))
    for note in report.notes:
        show(Words(f"note: {note}"))
    if html is not None:
        show(Words.assemble("\nthe whole report is in ", (str(html), "bold")))


RELATIVE = "relative: norm of the difference over the norm of A's"
"""What the columns of parameters are."""


def _errors(report: pl.ComparisonReport) -> str:
    """What the columns of checkpoints are."""
    return (
        f"fp32: largest difference relative to {report.reference}'s largest value, in the models' own dtype\n"
        f"fp64, own: the same in float64, of a stage given {report.reference}'s values; rounding stays below 1e-10"
    )


def _about(report: pl.ComparisonReport) -> Grid:
    """What was compared, and how different the two are."""
    grid = Grid(Column(label=True, style="cyan"), Column(prose=True), heading=None)
    for name, what in report.about.lines():
        grid.add(name, what)
    if not report:
        grid.add("distance", str(report.distance))
    return grid


def _moved(moved: Sequence[ParameterRow]) -> Grid:
    grid = Grid(
        Column("parameter", label=True, style="cyan"), *(Column(t, right=True) for t in ("relative", "largest"))
    )
    for row in moved[:MOVED]:
        grid.add(row.a, f"{row.relative:.1e}", f"{row.max_abs:.1e}")
    return grid


def _table(report: pl.ComparisonReport) -> Grid:
    """A row per kind of checkpoint over all blocks: how many are equal to the bit, and the largest errors."""
    titles = ("equal to the bit", "fp32", "fp64, own")
    grid = Grid(Column("checkpoint", label=True), *(Column(title, right=True) for title in titles))
    kinds: dict[str, list[int]] = {}
    for number, row in enumerate(report.checkpoints):
        kinds.setdefault(row.name.split(".", 2)[2] if row.name.startswith("blocks.") else row.name, []).append(number)
    for kind, numbers in kinds.items():
        rows = [report.checkpoints[number] for number in numbers]
        own = [row.fp64_local for row in rows if row.fp64_local is not None]
        equal = f"{sum(row.bit_equal for row in rows)} of {len(rows)}"
        grid.add(kind, equal, f"{max(row.fp32 for row in rows):.1e}", f"{max(own):.1e}" if own else "")
    return grid
