"""`pellucid run`: runs a text through the model and shows every intermediate value."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.text import Text

import pellucid as pl
from pellucid.aliases import selected
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import (
    LEGEND,
    NextToken,
    Summary,
    checkpoints,
    heading,
    likeliest,
    next_tokens,
    summarize,
    token_list,
)
from pellucid.cli.verbs import Run
from pellucid.errors import visible


@dataclass(frozen=True)
class Observed:
    """What one run shows; `text` is None if ids were given and the model has no tokenizer."""

    model: str
    text: str | None
    tokens: list[str]
    ids: list[int]
    pos: int
    next: list[NextToken]
    checkpoints: list[Summary]
    saved: str | None


def run(wish: Run) -> None:
    """Run a text, or list the names of what could be looked at."""
    text = None if wish.only_list else wish.given()
    model = wish.open()
    if wish.only_list:
        _list(wish, model)
        return
    with progress("running"):
        logits, ckpts = model.run_with_ckpts(wish.row(model, text), names=wish.names or None, pos=wish.pos)
        assert logits is not None, "only a run that stops early has no logits"
        found = likeliest(logits[0, -1 if wish.pos is None else wish.pos], model.tokenizer, wish.top)
        if wish.save is not None:
            ckpts.save(wish.save)
        observed = _observed(wish, text, ckpts, found)
    if wish.as_json:
        show_json(asdict(observed))
    else:
        _show(observed, model)


def _list(wish: Run, model: pl.CkptedTransformer) -> None:
    names = selected(wish.names or None, model.schema)
    if wish.as_json:
        show_json({"model": wish.model_name, "names": names})
    else:
        show(*map(Text, names))


def _observed(wish: Run, text: str | None, ckpts: pl.ActivationCkpts, found: list[NextToken]) -> Observed:
    batch = ckpts.batch
    ids = batch.ids[0].tolist()
    pos = -1 if ckpts.pos is None else ckpts.pos
    assert isinstance(pos, int), "the option is one position"
    if text is None and batch.tokenizer is not None:
        text = batch.tokenizer.decode(ids)
    return Observed(
        model=wish.model_name,
        text=text,
        tokens=batch.strings[0],
        ids=ids,
        pos=pos % len(ids),
        next=found,
        checkpoints=summarize(ckpts),
        saved=None if wish.save is None else str(wish.save),
    )


def _show(observed: Observed, model: pl.CkptedTransformer) -> None:
    """What comes next stands last, where a screen that scrolls leaves it."""
    tokens = f"{len(observed.tokens)} token{'s' * (len(observed.tokens) != 1)}"
    show(heading(tokens, first=True), token_list(observed.tokens))
    captured = f"{len(observed.checkpoints)} of {len(model.ckpt_names)} checkpoints"
    show(heading(captured), checkpoints(observed.checkpoints), LEGEND)
    if observed.saved is not None:
        show(Text.assemble("\nsaved to ", (observed.saved, "bold"), "; pl.ActivationCkpts.load reads it"))
    if observed.next:
        after = f"next after {observed.pos} {visible(observed.tokens[observed.pos])}"
        show(heading(after), next_tokens(observed.next))
