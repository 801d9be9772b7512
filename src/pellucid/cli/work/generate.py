"""`pellucid generate`: continues a text, shows it as it is written, and on request shows how each token was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import typer
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.screen import progress, show, show_json, write
from pellucid.cli.shared.tables import NextToken, most_probable
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Generate
from pellucid.errors import InputError, visible
from pellucid.generate.generation import TextStream
from pellucid.generate.request import Asked, asked_by
from pellucid.text.batch import pieces_of

CANDIDATES = 5
"""How many tokens a stage shows."""


@dataclass(frozen=True)
class Chosen:
    """One new token."""

    id: int  # its id
    text: str  # what it adds, in whole characters
    logprob: float  # in nats, the model's own
    stages: dict[str, list[NextToken]] | None  # the likeliest candidates after each stage, if that was asked for


@dataclass
class Written:
    """The result of a generation, for JSON."""

    model: str
    prompt: str
    sampler: dict[str, Any]
    seed: int | None
    cache_bytes: int
    prepared_bytes: int
    stopped: str = "interrupted"  # why it ended: "end", "stop", "length" or "interrupted"
    tokens: list[Chosen] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Prompt and continuation."""
        return self.prompt + "".join(token.text for token in self.tokens)


def generate(wish: Generate) -> None:
    """Continue a text, and show it as it is written."""
    text = wish.given()
    sampler = "file" if wish.sampler == "file" else _sampler(wish.settings)
    model = wish.open(wish.numerics)
    prompt = wish.row(model, text)
    given: dict[str, Any] = {
        "max_new_tokens": wish.max_new_tokens, "stop": wish.stop, "num_return_sequences": 1,
        "num_beams": wish.num_beams, "length_penalty": wish.length_penalty,
    }  # fmt: skip
    asked = _asked(wish, model, prompt, sampler).with_given(**given)
    _require_explicable(wish, asked)
    memory = pl.estimate_generation(
        model, prompt, max_new_tokens=max(asked.max_new_tokens, 0), rows_each=asked.num_beams
    )
    written = Written(
        wish.model_name, _words(model, prompt), asdict(asked.sampler), wish.seed, memory.cache, memory.prepared
    )
    if asked.num_beams > 1:
        with progress("searching"):
            out = model.generate(prompt, sampler=sampler, seed=wish.seed, overflow=wish.overflow, **given)
        _take(written, model, out)
        if not wish.as_json:
            write(f"{written.text}\n")
    else:
        tokens = model.stream(
            prompt, sampler=asked.sampler, seed=wish.seed, overflow=wish.overflow, explain=wish.explain,
            max_new_tokens=asked.max_new_tokens, stop=asked.stop,
        )  # fmt: skip
        if not asked.max_new_tokens:
            written.stopped = "length"
        _follow(tokens, written, model.tokenizer, quiet=wish.as_json)
    if wish.as_json:
        show_json({**asdict(written), "text": written.text})
    if written.stopped == "interrupted":
        raise typer.Exit(130)


def _asked(wish: Generate, model: pl.CkptedTransformer, prompt: str | list[int], sampler: Any) -> Asked:
    """What the file asks for if it is to be followed, else what holds without options."""
    if wish.sampler != "file":
        return Asked(sampler=sampler)
    return asked_by(model.generation, model.tokenize(prompt).ids.size(1), model.schema.sizes["n_ctx"])


def _require_explicable(wish: Generate, asked: Asked) -> None:
    if wish.explain and asked.num_beams > 1:
        raise InputError(
            f"generate: --explain cannot be combined with a search of {asked.num_beams} beams, which are reordered at "
            "every step.",
            code="look-and-beams",
            remedy="Leave --explain out, or give --num-beams 1.",
        )


def _sampler(settings: dict[str, float]) -> pl.Sampler:
    filtered = settings.get("top_k", 0) > 0 or settings.get("top_p", 1) < 1 or settings.get("min_p", 0) > 0
    return pl.Sampler(**{"temperature": float(filtered), **settings})  # pyright: ignore[reportArgumentType]


def _words(model: pl.CkptedTransformer, prompt: str | list[int]) -> str:
    """A prompt as text; ids as digits if there is no tokenizer."""
    if isinstance(prompt, str):
        return prompt
    return " ".join(map(str, prompt)) + " " if model.tokenizer is None else model.tokenizer.decode(prompt)


def _follow(tokens: Iterator[pl.Token], written: Written, tokenizer: pl.Tokenizer | None, *, quiet: bool) -> None:
    """Show tokens as they come, and keep them; an interruption ends it."""
    explained = False
    if not quiet:
        write(written.prompt)
    try:
        for token in tokens:
            stages = None
            if token.stages is not None:
                explained = True
                stages = {name: most_probable(p, tokenizer, CANDIDATES) for name, p in token.stages.items()}
            chosen = Chosen(token.id, token.text, token.logprob, stages)
            written.tokens.append(chosen)
            written.stopped = token.stopped or written.stopped
            if not quiet:
                _show(chosen, len(written.tokens), tokenizer)
    except KeyboardInterrupt:
        pass
    if not quiet:
        write("\n")
        if explained:
            write(f"\n{written.text}\n")


def _show(token: Chosen, number: int, tokenizer: pl.Tokenizer | None) -> None:
    if token.stages is None:
        write(token.text)
        return
    piece = visible(pieces_of(tokenizer, [token.id])[0])
    title = Text.assemble(f"\n{number}  ", (piece, "bold green"), f"  {math.exp(token.logprob):.1%}")
    grid = Grid(Column(label=True, style="dim"), *[""] * CANDIDATES, heading=None)
    for name, candidates in token.stages.items():
        shown = [f"{visible(c.token)} {c.probability:.1%}" for c in candidates if c.probability > 0]
        grid.add(f"   {name}", *shown, *[""] * (CANDIDATES - len(shown)))
    show(title, grid)


def _take(written: Written, model: pl.CkptedTransformer, out: pl.Generation) -> None:
    """Keep what a search found, whose tokens come all at once."""
    (row,) = out.rows
    new, stream = row.new.tolist(), TextStream(model.tokenizer, after=row.prompt.tolist())
    pieces = [stream.push(token) for token in new]
    if pieces:
        pieces[-1] += stream.finish()
    written.stopped = row.stopped
    written.tokens = [
        Chosen(i, piece, logprob, None) for i, piece, logprob in zip(new, pieces, row.logprobs.tolist(), strict=True)
    ]
