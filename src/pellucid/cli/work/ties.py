"""`pellucid ties`: which names of a weights file share memory, and what reading it makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from rich.console import RenderableType
from rich.text import Text

from pellucid.cli.shared.failures import Exit, remedy_here
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Ties
from pellucid.ties import Problem, TieAudit, ties_report
from pellucid.ties.audit import SHOWN_GROUPS

_VERDICTS = {
    True: ("the same model", "green"),
    False: ("another model", "bold red"),
    None: ("no reload", "yellow"),
}


def ties(wish: Ties) -> None:
    """Audit a weights file or folder, and fail if it has problems."""
    with progress(f"reading {wish.path}"):
        audit = ties_report(wish.path, config=wish.config, ignore_config=wish.ignore_config or ())
    if wish.as_json:
        show_json(audit.to_dict())
    else:
        show(*_parts(audit))
    if audit.problems:
        raise typer.Exit(Exit.CHECK_FAILED)


def _parts(audit: TieAudit) -> Iterator[RenderableType]:
    """The whole audit, top to bottom."""
    yield Text(audit.what, style="bold")
    facts = Grid(Column(label=True, style="cyan"), Column(prose=True), heading=None)
    for label, said in audit.facts().items():
        facts.add(label, said)
    verdict, style = _VERDICTS[audit.after_reload.survives]
    facts.add("after reload", Text.assemble((verdict, style), f": {audit.after_reload.reason}"))
    yield facts
    if audit.groups:
        yield Text("")
        yield _groups(audit)
    for problem in audit.problems:
        yield from _problem(problem)
    if not audit.problems:
        yield Text("\nno problems", style="green")


def _groups(audit: TieAudit) -> Grid:
    """A line for each name; where in memory they are is another place in every run, and says nothing here."""
    grid = Grid(Column("names", label=True, style="cyan"), "kind", "shape")
    for group in audit.groups[:SHOWN_GROUPS]:
        for number, name in enumerate(group.names):
            grid.add(name, *("", "") if number else (group.kind, " x ".join(map(str, group.shape))))
    if len(audit.groups) > SHOWN_GROUPS:
        grid.add(f"and {len(audit.groups) - SHOWN_GROUPS} more groups", "", "")
    return grid


def _problem(problem: Problem) -> Iterator[Text]:
    yield Text.assemble(("\nproblem: ", "bold red"), problem.message, "  ", (f"[{problem.code}]", "dim"))
    yield Text.assemble(("remedy: ", "bold"), remedy_here(problem.code, problem.remedy))
