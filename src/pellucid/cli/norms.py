"""What `pellucid norms` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import Ids, ModelWish, parse_ids, require_one_source

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT|FILE...", help="Texts, or files of text; - is standard input."),
]
At = Annotated[str, typer.Option("--at", metavar="CHECKPOINT", help="Whose vectors.")]
Lags = Annotated[
    int, typer.Option("--lags", metavar="N", min=0, help="Tokens before that a norm is regressed on; 0: none.")
]
Skip = Annotated[int, typer.Option("--skip", metavar="N", min=0, help="First tokens of each text to leave out.")]
Linear = Annotated[bool, typer.Option("--linear", help="The norms themselves instead of their logarithms.")]
Figure = Annotated[
    Path | None, typer.Option("--figure", metavar="FILE", help="Draw them: .svg, .pdf, .png.", show_default=False)
]
Csv = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE", help="Write the norm of every token.", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class Norms(ModelWish):
    """Texts to measure, and what of them."""

    MORE = """
    Shows their distribution, and a regression of each token's norm on those of the tokens before it. The first token
    is left out, because its norm is far from all others. Texts longer than the context are cut into several.
    """

    texts: Sources = None
    ids: Ids = None
    at: At = "attn.ckpt_attn_out"
    lags: Lags = 2
    skip: Skip = 1
    linear: Linear = False
    figure: Figure = None
    csv: Csv = None

    def __post_init__(self) -> None:
        require_one_source("TEXT or FILE", self.texts, self.ids)
        parse_ids(self.ids or ())

    def outputs(self) -> dict[str, Path | None]:
        """The figure and the table."""
        return {"--figure": self.figure, "--csv": self.csv}
