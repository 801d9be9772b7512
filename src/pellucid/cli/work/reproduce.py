"""`pellucid reproduce`: published figures, computed again and compared."""

from __future__ import annotations

import typer
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import show, show_json, tell
from pellucid.cli.shared.tables import heading
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Reproduce

_STYLES = {"within": "green", "outside": "bold red", "not computed": "yellow"}


def reproduce(wish: Reproduce) -> None:
    """Compute the figures, show them beside those that were published, and fail unless all are within tolerance."""
    model = wish.open()
    if not wish.as_json:
        tell(Text(f"{wish.model_name}: {pl.reproduce.estimate(model, quick=wish.quick)}", style="dim"))
    found = pl.reproduce.gpt2(
        model, quick=wish.quick, seed=wish.seed, name=wish.model_name, progress=not wish.as_json
    )  # fmt: skip
    if wish.as_json:
        show_json(found.to_dict())
    else:
        _show(found)
    if not found:
        raise typer.Exit(Exit.CHECK_FAILED)


def _show(found: pl.reproduce.Reproduction) -> None:
    """A table, and how many figures are within their tolerance."""
    grid = Grid(
        Column(), Column("figure", style="cyan", label=True), "published", "computed", Column("source", style="dim")
    )
    for verdict, *cells in found.rows():
        grid.add(Text(verdict, _STYLES[verdict]), *cells)
    said = ", ".join(f"{count} {verdict}" for verdict, count in found.counts().items())
    show(heading(f"{found.model}: {said}" + "; interrupted" * found.interrupted, first=True), Text(""), grid)
    show(Text(
        "\nkind: published of other texts than these, so a number of this size is what can be expected", style="dim",
    ))  # fmt: skip
