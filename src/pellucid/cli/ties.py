"""What `pellucid ties` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pellucid.cli.shared.options import Wish, aliases

Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A weights file, an index of shards or a folder; or an alias or a hub id.",
        show_default=False,
        autocompletion=aliases,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Ties(Wish):
    """A checkpoint to audit."""

    MORE = """
    Shows which names share memory or numbers, what the configuration says, and what reading the weights makes
    of its head. A head that was tied again before the file was written is not in the file, and cannot be seen here:
    before saving, audit the model itself with pl.audit_ties. The exit code is 1 when there are problems.
    """

    path: Path
