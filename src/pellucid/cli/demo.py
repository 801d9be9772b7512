"""What `pellucid demo` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import Wish


@dataclass(frozen=True, kw_only=True)
class Demo(Wish):
    """Where the page of the tour goes."""

    MORE = """
    Runs one sentence and shows its tokens, the values inside one block, the head that looks back to the token
    before, and what comes next; and checks that looking did not change the answer. Ends by writing a page with the
    model's card, the proof that it is the same model as transformers', its ties, norms, a regression and every head.
    """

    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The file to write the page to.")] = Path(
        "pellucid-demo.html"
    )

    def outputs(self) -> dict[str, Path | None]:
        """The page."""
        return {"--html": self.html}
