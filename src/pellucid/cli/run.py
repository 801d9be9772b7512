"""What `pellucid run` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import TextWish

Names = Annotated[
    list[str] | None,
    typer.Option(
        "--names",
        metavar="PATTERN",
        help="Checkpoints to capture; * stays within a dotted part, ** crosses. Repeatable.",
        show_default="every checkpoint",
    ),
]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE.safetensors", help="Write the captured values.", show_default=False),
]
Top = Annotated[int, typer.Option("--top", metavar="N", min=0, help="How many next tokens to show.")]
Pos = Annotated[
    int | None,
    typer.Option(
        "--pos",
        metavar="N",
        help="Keep this position only (-1 is the last), and show what comes next after it.",
        show_default="every position",
    ),
]
List = Annotated[bool, typer.Option("--list", help="List the names of the model's checkpoints, and run nothing.")]


@dataclass(frozen=True, kw_only=True)
class Run(TextWish):
    """A text to run, and what to show of it."""

    MORE = """
    Shows the tokens, a table of the captured checkpoints in the order in which the model computes them, and the
    likeliest next tokens.
    """

    names: Names = None
    save: Save = None
    top: Top = 5
    pos: Pos = None
    only_list: List = False

    def __post_init__(self) -> None:
        if not self.only_list:
            super().__post_init__()
        elif self.text or self.ids or self.save:
            raise typer.BadParameter("runs nothing: leave out TEXT, --ids and --save.", param_hint="--list")

    def outputs(self) -> dict[str, Path | None]:
        """The captured values."""
        return {"--save": self.save}
