"""What `pellucid compare` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import CONFIG, DTYPE, IGNORE_CONFIG, Ids, Tokenizer, Wish, aliases, parse_ids

_HELP = "A folder, a file, an alias or a hub id; hf: before it runs that side through transformers."
_ONE_SIDE = "A= or B= before it is for one side alone."

First = Annotated[str, typer.Argument(metavar="A", help=_HELP, show_default=False, autocompletion=aliases)]
Second = Annotated[str, typer.Argument(metavar="B", help=_HELP, show_default=False, autocompletion=aliases)]
Text = Annotated[
    str | None,
    typer.Option("--text", metavar="TEXT", help="What to run both on.", show_default="five words, or drawn ids"),
]
Config = Annotated[
    list[str] | None, typer.Option("--config", metavar="FILE", help=f"{CONFIG} {_ONE_SIDE}", show_default=False)
]
IgnoreConfig = Annotated[
    list[str] | None,
    typer.Option("--ignore-config", metavar="FIELD", help=f"{IGNORE_CONFIG} {_ONE_SIDE}", show_default=False),
]
Dtype = Annotated[
    list[str] | None, typer.Option("--dtype", metavar="DTYPE", help=f"{DTYPE} {_ONE_SIDE}", show_default="stored")
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the whole report as a page.", show_default=False)
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Write a summary for a pull request.")]


@dataclass(frozen=True, kw_only=True)
class Compare(Wish):
    """Two models, and what to run both on."""

    MORE = """
    Aligns their parameters by value, compares every checkpoint that both show, and names where they first differ.
    The exit code is 1 unless they are identical or equivalent.
    """

    a: First
    b: Second
    text: Text = None
    ids: Ids = None
    tokenizer: Tokenizer = None
    config: Config = None
    ignore_config: IgnoreConfig = None
    dtype: Dtype = None
    html: Html = None
    markdown: Markdown = False

    def __post_init__(self) -> None:
        if self.text is not None and self.ids:
            raise typer.BadParameter("--text and --ids given, expected one of them.")
        parse_ids(self.ids or ())
        for option, given in (("--config", self.config), ("--dtype", self.dtype)):
            if any(len(self.of_side(side, given)) > 1 for side in "AB"):
                raise typer.BadParameter("several given for one side, expected one.", param_hint=option)

    def outputs(self) -> dict[str, Path | None]:
        """The page."""
        return {"--html": self.html}

    def of_side(self, side: str, given: list[str] | None) -> list[str]:
        """The values that count for one side, "A" or "B": its own if it has some, else those without a side."""
        found: dict[str, list[str]] = {"A": [], "B": [], "": []}
        for one in given or ():
            whose, mark, value = one.partition("=")
            found[whose if mark and whose in found else ""].append(value if mark and whose in found else one)
        return found[side] or found[""]
