"""What `pellucid ties` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import CONFIG, IGNORE_CONFIG, Wish, aliases

Weights = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A weights file, an index of shards or a folder; or an alias or a hub id.",
        show_default=False,
        autocompletion=aliases,
    ),
]

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE", help=CONFIG, show_default=False)]
IgnoreConfig = Annotated[
    list[str] | None, typer.Option("--ignore-config", metavar="FIELD", help=IGNORE_CONFIG, show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class Ties(Wish):
    """A checkpoint to audit."""

    MORE = """
    Shows which names share memory or numbers, what the configuration says, and what reading the weights makes
    of its head. A head that was tied again before the file was written is not in the file, and cannot be seen here:
    before saving, audit the model itself with pl.audit_ties. The exit code is 1 when there are problems.
    """

    path: Weights
    config: Config = None
    ignore_config: IgnoreConfig = None
