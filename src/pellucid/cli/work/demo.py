"""`pellucid demo`: what the library is for, in one screenful or two, on the model that ships with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import typer
from rich.text import Text
from torch import Tensor

import pellucid as pl
from pellucid.cli.demo import Demo
from pellucid.cli.shared.demo_page import write_page
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tour import pages
from pellucid.cli.shared.values import NextToken, Summary, likeliest, summarize

TEXT = "One day, Lily went to the park to play with her"
NEXT_TOKENS = 5


@dataclass(frozen=True)
class PreviousTokenHeads:
    """How much each head attends to the token before.

    Attributes:
        scores: Layer by head: the mean of pattern[q, q-1] over the queries that have a token before them.
        layer, head: The head with the highest score.
        score: That score.
        pattern: That head's pattern, query by key.
    """

    scores: list[list[float]]
    layer: int
    head: int
    score: float
    pattern: list[list[float]]


@dataclass(frozen=True)
class Proof:
    """The logits with every checkpoint captured, against those of the plain run.

    Attributes:
        equal: Whether they are the same to the last bit (`torch.equal`).
        numbers: How many were compared.
        checkpoints: How many were captured.
    """

    equal: bool
    numbers: int
    checkpoints: int


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


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
        show_json({**tour.to_dict(), "page": str(wish.html)})
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
    """Score every head by its attention to the token before.

    Args:
        pattern: [L, H, Pq, Pk], of two tokens or more.
    """
    scores = pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)
    layer, head = divmod(int(scores.argmax()), scores.size(1))
    return PreviousTokenHeads(scores.tolist(), layer, head, float(scores[layer, head]), pattern[layer, head].tolist())
