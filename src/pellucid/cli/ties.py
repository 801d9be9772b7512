"""`pellucid ties`: which names of a checkpoint share memory, and what reading it makes of them."""

from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli.shared import options
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.ties import ties_report
from pellucid.ties.rendering import render

Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A weights file, an index of shards or a folder; or an alias or a hub id.",
        show_default=False,
        autocompletion=options.aliases,
    ),
]


def ties(path: Path, as_json: options.Json = False) -> None:
    """Find shared and doubled weights in a checkpoint.

    Shows which names share memory or numbers, what the configuration says, and what reading the checkpoint makes
    of its head. The exit code is 1 when there are problems.
    """
    with progress(f"reading {path}"):
        audit = ties_report(path)
    if as_json:
        show_json(audit.to_dict())
    else:
        show(render(audit))
    if audit.problems:
        raise typer.Exit(Exit.CHECK_FAILED)
