"""An audit as the terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pellucid.ties.audit import TieAudit
from pellucid.ties.problems import Problem
from pellucid.ties.text import SHOWN, counts, declared, sizes

_VERDICTS = {
    True: ("the same model", "green"),
    False: ("another model", "bold red"),
    None: ("no reload", "yellow"),
}


def render(audit: TieAudit) -> Group:
    """The whole audit, top to bottom."""
    return Group(*_parts(audit))


def _parts(audit: TieAudit) -> Iterator[RenderableType]:
    yield Text(audit.what, style="bold")
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="cyan", no_wrap=True)
    facts.add_column()
    facts.add_row("parameters", counts(audit))
    facts.add_row("bytes", sizes(audit))
    facts.add_row("declared", Text(declared(audit.declared)))
    verdict, style = _VERDICTS[audit.after_reload.survives]
    facts.add_row("after reload", Text.assemble((verdict, style), f": {audit.after_reload.reason}"))
    yield facts
    if audit.groups:
        yield Text("")
        yield _groups(audit)
    for problem in audit.problems:
        yield _problem(problem)
    if not audit.problems:
        yield Text("\nno problems", style="green")


def _groups(audit: TieAudit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("names", style="cyan", overflow="fold")
    table.add_column("kind", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("at", no_wrap=True, style="dim")
    for group in audit.groups[:SHOWN]:
        places = "\n".join(f"0x{address:x}" for address in dict.fromkeys(group.addresses))
        table.add_row(Text("\n".join(group.names)), group.kind, " x ".join(map(str, group.shape)), places)
    if len(audit.groups) > SHOWN:
        table.add_row(f"and {len(audit.groups) - SHOWN} more groups", "", "", "")
    return table


def _problem(problem: Problem) -> Text:
    return Text.assemble(
        ("\nproblem: ", "bold red"), problem.message, "  ", (f"[{problem.code}]", "dim"),
        ("\nremedy: ", "bold"), problem.remedy,
    )  # fmt: skip
