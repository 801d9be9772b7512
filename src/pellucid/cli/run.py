"""`pellucid run`: a text goes through, and every value on the way is on the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared import options
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import LEGEND, checkpoints, heading, next_tokens, token_list, visible
from pellucid.cli.shared.values import NextToken, Summary, likeliest, summarize

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


@dataclass(frozen=True)
class Look:
    """What one run shows."""

    model: str
    text: str
    tokens: list[str]
    ids: list[int]
    pos: int
    next: list[NextToken]
    checkpoints: list[Summary]
    saved: str | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(
    text: options.Text,
    model: options.Model = None,
    names: Names = None,
    save: Save = None,
    top: Top = 5,
    pos: Pos = None,
    as_json: options.Json = False,
) -> None:
    """Run a text and show every value on the way.

    Shows the tokens, the likeliest next tokens, and a table of the captured checkpoints in the order in which
    the model computes them.
    """
    words = options.read_text(text)
    with progress(f"opening {model or 'the bundled model'}"):
        opened = pl.load(model)
    with progress("running"):
        logits, ckpts = opened.run_with_ckpts(words, names=names or None, pos=pos)
        assert logits is not None, "only a run that stops early has no logits"
        found = likeliest(logits[0, -1 if pos is None else pos], opened.tokenizer, top)
        if save is not None:
            ckpts.save(save)
        look = _look(words, model, ckpts, found, save)
    if as_json:
        show_json(look.to_dict())
    else:
        _show(look, opened)


def _look(text: str, model: str | None, ckpts: pl.ActivationCkpts, found: list[NextToken], save: Path | None) -> Look:
    tokens = ckpts.batch.strings[0]
    pos = -1 if ckpts.pos is None else ckpts.pos
    assert isinstance(pos, int), "the option is one position"
    return Look(
        model="bundled" if model is None else model,
        text=text,
        tokens=tokens,
        ids=ckpts.batch.ids[0].tolist(),
        pos=pos % len(tokens),
        next=found,
        checkpoints=summarize(ckpts),
        saved=None if save is None else str(save),
    )


def _show(look: Look, model: pl.CkptedTransformer) -> None:
    tokens = f"{len(look.tokens)} token{'s' * (len(look.tokens) != 1)}"
    show(heading(tokens, first=True), token_list(look.tokens))
    if look.next:
        after = f"next after {look.pos} {visible(look.tokens[look.pos])}"
        show(heading(after), next_tokens(look.next))
    captured = f"{len(look.checkpoints)} of {len(model.ckpt_names)} checkpoints"
    show(heading(captured), checkpoints(look.checkpoints), LEGEND)
    if look.saved is not None:
        show(Text.assemble("\nsaved to ", (look.saved, "bold"), "; pl.ActivationCkpts.load reads it"))
