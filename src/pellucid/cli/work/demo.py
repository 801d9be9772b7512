"""`pellucid demo`: what the library is for, in one screenful or two, on the model that ships with it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import typer
from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

import pellucid as pl
from pellucid.cli.shared.demo_page import write_page
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import (
    NextToken,
    Summary,
    heading,
    likeliest,
    next_tokens,
    number,
    shade,
    summarize,
    token_list,
)
from pellucid.cli.shared.widths import Beside, Column, Grid
from pellucid.cli.verbs import Demo
from pellucid.errors import visible

TEXT = "One day, Lily went to the park to play with her"
NEXT_TOKENS = 5


@dataclass(frozen=True)
class PreviousTokenHeads:
    """How much each head attends to the token before."""

    # layer by head: the mean of pattern[q, q-1] over the queries that have a token before them
    scores: list[list[float]]
    # layer, head: the head with the highest score
    layer: int
    head: int
    score: float  # that score
    pattern: list[list[float]]  # that head's pattern, query by key


@dataclass(frozen=True)
class Proof:
    """The logits with every checkpoint captured, against those of the plain run."""

    equal: bool  # whether they are the same to the last bit (`torch.equal`)
    numbers: int  # how many were compared
    checkpoints: int  # how many were captured


@dataclass(frozen=True)
class Tour:
    """Everything the demo shows; `checkpoints` are those of the block that holds the head found."""

    text: str
    tokens: list[str]
    ids: list[int]
    sizes: dict[str, int]
    heads: PreviousTokenHeads
    checkpoints: list[Summary]
    next: list[NextToken]
    proof: Proof


def demo(wish: Demo) -> None:
    """Take the tour, and write its page."""
    with progress("opening the bundled model"):
        model = pl.load()
    with progress("running"):
        tour = take_tour(model, TEXT)
    if not wish.as_json:
        show(*pages(tour))
    with progress("writing the page"):
        write_page(model, wish.html)
    if wish.as_json:
        show_json({**asdict(tour), "page": str(wish.html)})
    else:
        show(Text.assemble("\nmore of it in ", (str(wish.html), "bold")))
    if not tour.proof.equal:
        raise typer.Exit(Exit.CHECK_FAILED)


def take_tour(model: pl.CkptedTransformer, text: str) -> Tour:
    """Run a text twice, plainly and with everything captured, and work out what the demo shows."""
    with torch.no_grad():
        plain = model(text)
    logits, ckpts = model.run_with_ckpts(text)
    assert logits is not None, "only a run that stops early has no logits"
    heads = previous_token_heads(ckpts.stack("attn.ckpt_pattern")[:, 0])
    block = [summary for summary in summarize(ckpts) if summary.name.startswith(f"blocks.{heads.layer}.")]
    sizes = model.schema.sizes
    return Tour(
        text=text,
        tokens=ckpts.batch.strings[0],
        ids=ckpts.batch.ids[0].tolist(),
        sizes={
            "blocks": sizes["layer"], "heads": sizes["head"], "width": sizes["d_model"],
            "parameters": pl.count_parameters(model).unique,
        },
        heads=heads,
        checkpoints=block,
        next=likeliest(logits[0, -1], model.tokenizer, NEXT_TOKENS),
        proof=Proof(torch.equal(logits, plain), logits.numel(), len(ckpts)),
    )  # fmt: skip


def previous_token_heads(pattern: Tensor) -> PreviousTokenHeads:
    """Score every head by its attention to the token before, from patterns [L, H, Pq, Pk]."""
    scores = pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)
    layer, head = divmod(int(scores.argmax()), scores.size(1))
    return PreviousTokenHeads(scores.tolist(), layer, head, float(scores[layer, head]), pattern[layer, head].tolist())


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
