"""`pellucid compare`: two models to the bit, and where they first differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text as Words

import pellucid as pl
from pellucid.cli.shared import options
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import show, show_json, steps
from pellucid.cli.shared.tables import heading

_HELP = "A folder, a file, an alias or a hub id; hf: before it runs that side through transformers."

First = Annotated[str, typer.Argument(metavar="A", help=_HELP, show_default=False, autocompletion=options.aliases)]
Second = Annotated[str, typer.Argument(metavar="B", help=_HELP, show_default=False, autocompletion=options.aliases)]
Text = Annotated[str, typer.Option("--text", metavar="TEXT", help="What to run both on.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the whole report as a page.", show_default=False)
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Write a summary for a pull request.")]


def compare(
    a: First,
    b: Second,
    text: Text = "Once upon a time, there was a little girl named Lily.",
    html: Html = None,
    markdown: Markdown = False,
    as_json: options.Json = False,
) -> None:
    """Compare two models to the bit.

    Aligns their parameters by value, compares every checkpoint that both show, and names where they first differ.
    The exit code is 1 unless they are identical or equivalent.
    """
    with steps(f"{a} and {b}") as shown:
        report = pl.compare(a, b, inputs=text, progress=shown)
    if html is not None:
        pl.save_html(report, html)
    if as_json:
        show_json(report.to_dict())
    elif markdown:
        show(Words(report.to_markdown()))
    else:
        _show(report, html)
    if not report:
        raise typer.Exit(Exit.CHECK_FAILED)


def _show(report: pl.ComparisonReport, html: Path | None) -> None:
    show(Words(report.verdict, "bold green" if report else "bold red"), Words(report.summary))
    if report.first_divergence is not None:
        show(heading("first divergence"), Words(str(report.first_divergence)))
    show(heading("checkpoints"), _table(report))
    for note in report.notes:
        show(Words(f"note: {note}"))
    if html is not None:
        show(Words.assemble("\nthe whole report is in ", (str(html), "bold")))


def _table(report: pl.ComparisonReport) -> Table:
    """A row per kind of checkpoint over all blocks: how many are equal to the bit, and the largest errors."""
    table = Table(box=None, pad_edge=False)
    for column in ("checkpoint", "equal to the bit", "fp32", "fp64, own"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    kinds: dict[str, list[int]] = {}
    for number, row in enumerate(report.checkpoints):
        kinds.setdefault(row.name.split(".", 2)[2] if row.name.startswith("blocks.") else row.name, []).append(number)
    for kind, numbers in kinds.items():
        rows = [report.checkpoints[number] for number in numbers]
        own = [row.fp64_local for row in rows if row.fp64_local is not None]
        equal = f"{sum(row.bit_equal for row in rows)} of {len(rows)}"
        table.add_row(kind, equal, f"{max(row.fp32 for row in rows):.1e}", f"{max(own):.1e}" if own else "")
    return table
