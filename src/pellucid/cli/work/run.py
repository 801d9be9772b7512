"""`pellucid run`: runs a text through the model and shows every intermediate value."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import (
    LEGEND,
    NextToken,
    Summary,
    checkpoints,
    heading,
    likeliest,
    next_tokens,
    number,
    summarize,
    token_list,
)
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Run
from pellucid.errors import visible
from pellucid.html.listing import counted
from pellucid.names.aliases import selected


@dataclass(frozen=True)
class ActiveFeature:
    """A feature that is active at a token."""

    feature: int
    activation: float


@dataclass(frozen=True)
class SeenFeatures:
    """What an autoencoder shows of a run."""

    at: str  # the checkpoint that it reads
    positions: list[int]  # the positions of the text that it read
    features: list[list[ActiveFeature]]  # the strongest features at each of them
    edited: dict[int, float]  # features that were set -> what to
    next: list[NextToken] | None  # what comes next with these; None if none was set


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
    sae: SeenFeatures | None


def run(wish: Run) -> None:
    """Run a text, or list the names of what could be looked at."""
    text = None if wish.only_list else wish.given()
    model = wish.open()
    if wish.only_list:
        _list(wish, model)
        return
    sae = wish.autoencoder(model)
    with progress("running"):
        row, names = wish.row(model, text), wish.names or None
        if names and sae is not None:
            names = [*names, sae.config.at]
        logits, ckpts = model.run_with_ckpts(row, names=names, pos=wish.pos)
        assert logits is not None, "only a run that stops early has no logits"
        found = likeliest(logits[0, -1 if wish.pos is None else wish.pos], model.tokenizer, wish.top)
        if wish.save is not None:
            ckpts.save(wish.save)
        seen = None if sae is None else _seen(wish, model, sae, row, ckpts)
        observed = _observed(wish, text, ckpts, found, seen)
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


def _seen(
    wish: Run, model: pl.CkptedTransformer, sae: pl.sae.SparseAutoencoder, row: str | list[int],
    ckpts: pl.ActivationCkpts,
) -> SeenFeatures:  # fmt: skip
    """The strongest features of the run, and what comes next when some are set."""
    values = sae.features(ckpts).isel(batch=0)
    largest = torch.from_numpy(values.values).topk(min(wish.top, sae.n_features))
    features = [
        [ActiveFeature(i, value) for i, value in zip(numbers, activations, strict=True) if value > 0]
        for numbers, activations in zip(largest.indices.tolist(), largest.values.tolist(), strict=True)
    ]
    edited = wish.features
    after = None
    if edited:
        logits = model.run(row, edits=[sae.set(i, value) for i, value in edited.items()])
        after = likeliest(logits[0, -1 if wish.pos is None else wish.pos], model.tokenizer, wish.top)
    return SeenFeatures(sae.place(model.schema), values.pos.values.tolist(), features, edited, after)


def _observed(
    wish: Run, text: str | None, ckpts: pl.ActivationCkpts, found: list[NextToken], seen: SeenFeatures | None
) -> Observed:
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
        sae=seen,
    )


def _show(observed: Observed, model: pl.CkptedTransformer) -> None:
    """What comes next stands last, where a screen that scrolls leaves it."""
    tokens = counted(len(observed.tokens), "token")
    show(heading(tokens, first=True), token_list(observed.tokens))
    captured = f"{len(observed.checkpoints)} of {len(model.ckpt_names)} checkpoints"
    show(heading(captured), checkpoints(observed.checkpoints), LEGEND)
    if observed.sae is not None:
        _show_features(observed.sae, observed.tokens)
    if observed.saved is not None:
        show(Text.assemble("\nsaved to ", (observed.saved, "bold"), "; pl.ActivationCkpts.load reads it"))
    if observed.next:
        after = f"next after {observed.pos} {visible(observed.tokens[observed.pos])}"
        show(heading(after), next_tokens(observed.next))
        if observed.sae is not None and observed.sae.next is not None:
            settings = ", ".join(f"{i} = {value:g}" for i, value in observed.sae.edited.items())
            show(heading(f"{after}, with feature {settings}"), next_tokens(observed.sae.next))


def _show_features(seen: SeenFeatures, tokens: list[str]) -> None:
    grid = Grid(Column("pos", label=True, style="cyan"), Column("token", style="bold"), "features with activations")
    for pos, features in zip(seen.positions, seen.features, strict=True):
        said = ", ".join(f"{one.feature}: {number(one.activation)}" for one in features)
        grid.add(str(pos), visible(tokens[pos]), said)
    show(heading(f"features of {seen.at}"), grid)
