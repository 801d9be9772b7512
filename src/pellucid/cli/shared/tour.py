"""The pages of `pellucid demo`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pellucid.cli.shared.layout import Beside, Column, Grid
from pellucid.cli.shared.tables import heading, next_tokens, number, shade, token_list, visible

if TYPE_CHECKING:
    from pellucid.cli.work.demo import PreviousTokenHeads, Proof, Tour

_CAPTION = Text(
    "\nOn the right, that head's pattern:\na row for each token, a column for each\ntoken it looks at. Darker is more.",
    style="dim",
)


def pages(tour: Tour) -> list[RenderableType]:
    """The whole demo, top to bottom."""
    layer, head = tour.heads.layer, tour.heads.head
    return [
        _title(tour),
        heading("1  the text, as tokens"),
        token_list(tour.tokens),
        heading(f"2  inside block {layer}: every value has a name"),
        _block_table(tour),
        heading("3  which head looks back to the token before?"),
        Text(f"score: the mean of pattern[q, q-1]. Head {head} of block {layer} has the highest.\n"),
        Beside([_scores_table(tour.heads), _CAPTION], _pattern_picture(tour.heads, tour.tokens)),
        heading(f"4  what comes after {visible(tour.tokens[-1])}"),
        next_tokens(tour.next),
        heading("5  did looking change the answer?"),
        _proof_line(tour.proof),
        heading("where to go next"),
        _next_steps(layer),
    ]


def _title(tour: Tour) -> Text:
    sizes = tour.sizes
    facts = (
        f"the bundled model: {sizes['blocks']} blocks of {sizes['heads']} heads, width {sizes['width']}, "
        f"{sizes['parameters']:,} parameters"
    )
    return Text.assemble(("pellucid", "bold cyan"), (": GPT-2 made of glass\n", "bold"), facts)


def _block_table(tour: Tour) -> Grid:
    grid = Grid(
        Column("checkpoint", label=True, style="cyan"), "axes", Column("norm", right=True),
        Column("what it is", prose=True, style="dim"),
    )  # fmt: skip
    for one in tour.checkpoints:
        grid.add(one.name, one.size, number(one.norm), one.meaning)
    return grid


def _scores_table(heads: PreviousTokenHeads) -> Grid:
    titles = [f"head {head}" for head in range(len(heads.scores[0]))]
    grid = Grid(Column(label=True, style="dim"), *titles, heading="dim")
    for layer, row in enumerate(heads.scores):
        cells = [_score(score, wins=(layer, head) == (heads.layer, heads.head)) for head, score in enumerate(row)]
        grid.add(f"block {layer}", *cells)
    return grid


def _score(score: float, *, wins: bool) -> Text:
    text = f"{shade(score)} {score:.2f}"
    return Text(f"{text}◀", style="bold green") if wins else Text(text)


def _pattern_picture(heads: PreviousTokenHeads, tokens: list[str]) -> Grid:
    grid = Grid(Column(right=True, style="dim"), Column(picture=True), heading=None)
    for query, (token, row) in enumerate(zip(tokens, heads.pattern, strict=True)):
        picture = Text()
        for weight in row[: query + 1]:
            picture.append(shade(weight) * 2, style="green" if weight >= 0.05 else "dim")
        grid.add(visible(token), picture)
    return grid


def _proof_line(proof: Proof) -> Text:
    how = f"{proof.numbers:,} logits, {proof.checkpoints} checkpoints captured or none: "
    if proof.equal:
        return Text.assemble(how, ("equal to the last bit", "bold green"))
    return Text.assemble(how, ("DIFFERENT", "bold red"), "; please report this")


def invoked() -> str:
    """How the reader calls this program: by its name where the shell finds it, else by the path that was typed."""
    typed = sys.argv[0]
    found = shutil.which("pellucid")
    if Path(typed).name == "__main__.py" and Path(typed).parent.name in ("pellucid", "cli"):
        return f"{sys.orig_argv[0]} -m pellucid"
    if found is not None and Path(typed).exists() and Path(found).samefile(typed):
        return "pellucid"
    return typed if Path(typed).stem == "pellucid" else "pellucid"


def _next_steps(layer: int) -> Grid:
    grid = Grid(Column(label=True, style="bold"), Column(prose=True, style="dim"), heading=None)
    grid.add(f'{invoked()} run "your own text"', "every checkpoint of it")
    grid.add(f"{invoked()} run … --names 'blocks.{layer}.attn.*'", "some of them")
    grid.add(f"{invoked()} run … -m gpt2-small", "another model, from the hub")
    grid.add("import pellucid as pl; model = pl.load()", "the same in Python")
    return grid
