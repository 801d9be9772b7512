"""`pellucid generate`: a text that goes on, as it is written, and on request how each token was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared import options
from pellucid.cli.shared.screen import progress, show, show_json, write
from pellucid.cli.shared.tables import visible
from pellucid.cli.shared.values import NextToken, most_probable
from pellucid.errors import InputError
from pellucid.run.text import TextStream

Prompt = Annotated[
    str, typer.Argument(metavar="PROMPT", help="The text to go on with; - reads it from standard input.")
]
Length = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Tokens at most.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="0 takes the likeliest token.", show_default="0, or 1 with a filter"
    ),
]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest; 0 from all.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="Draw from the likeliest that make up P.")]
MinP = Annotated[float, typer.Option("--min-p", metavar="P", help="Draw from what is P times as likely as the best.")]
Repetition = Annotated[float, typer.Option("--repetition-penalty", metavar="X", help="Above 1 against repetition.")]
Ngrams = Annotated[
    int, typer.Option("--no-repeat-ngram-size", metavar="N", help="No N tokens come twice; 0: they may.")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="S", help="Of the draws.", show_default="torch's own")]
Beams = Annotated[int, typer.Option("--num-beams", metavar="N", min=1, help="Above 1, a beam search.")]
LengthPenalty = Annotated[float, typer.Option("--length-penalty", metavar="X", help="Of the search, for long texts.")]
Stops = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the text. Repeatable.", show_default=False)
]
Explain = Annotated[bool, typer.Option("--explain", help="Show what each token was chosen from, stage by stage.")]
Numerics = Annotated[
    str, typer.Option("--numerics", metavar="exact|fast|bfloat16", help="The last two need a C++ compiler.")
]

CANDIDATES = 5
"""How many tokens a stage shows."""


@dataclass(frozen=True)
class Chosen:
    """One new token.

    Attributes:
        id: Its id.
        text: What it adds, in whole characters.
        logprob: In nats, the model's own.
        stages: The likeliest candidates after each stage, where that was asked for.
    """

    id: int
    text: str
    logprob: float
    stages: dict[str, list[NextToken]] | None


@dataclass
class Written:
    """What came of a generation, for JSON.

    Attributes:
        stopped: Why it ended: "end", "stop", "length" or "interrupted".
    """

    model: str
    prompt: str
    sampler: dict[str, Any]
    seed: int | None
    cache_bytes: int
    prepared_bytes: int
    stopped: str = "interrupted"
    tokens: list[Chosen] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        text = self.prompt + "".join(token.text for token in self.tokens)
        return {**asdict(self), "text": text}


def generate(
    prompt: Prompt,
    model: options.Model = None,
    max_new_tokens: Length = 50,
    temperature: Temperature = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    no_repeat_ngram_size: Ngrams = 0,
    seed: Seed = None,
    stop: Stops = None,
    num_beams: Beams = 1,
    length_penalty: LengthPenalty = 1.0,
    explain: Explain = False,
    numerics: Numerics = "exact",
    as_json: options.Json = False,
) -> None:
    """Go on with a text.

    Shows the text as it is written. Ctrl-C ends it, with what was written so far.
    """
    text = options.read_text(prompt)
    filtered = top_k > 0 or top_p < 1 or min_p > 0
    sampler = pl.Sampler(
        temperature=float(filtered) if temperature is None else temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, no_repeat_ngram_size=no_repeat_ngram_size,
    )  # fmt: skip
    with progress(f"opening {model or 'the bundled model'}"):
        opened = pl.load(model, numerics=numerics)
    memory = pl.estimate_generation(opened, text, max_new_tokens=max(max_new_tokens, 0), rows_each=num_beams)
    written = Written("bundled" if model is None else model, text, asdict(sampler), seed, memory.cache, memory.prepared)
    if num_beams > 1:
        if explain:
            raise InputError(
                f"generate: --explain with --num-beams {num_beams}, whose texts change places on the way.",
                code="look-and-beams",
                remedy="Leave one of them out.",
            )
        with progress("searching"):
            out = opened.generate(
                text, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, stop=stop or (), num_beams=num_beams,
                length_penalty=length_penalty,
            )  # fmt: skip
        _take(written, opened, out)
        if not as_json:
            write(f"{out.texts[0]}\n")
    else:
        tokens = opened.stream(
            text, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, stop=stop or (), explain=explain
        )
        if not max_new_tokens:
            written.stopped = "length"
        _follow(tokens, written, opened.tokenizer, quiet=as_json)
    if as_json:
        show_json(written.to_dict())
    if written.stopped == "interrupted":
        raise typer.Exit(130)


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
            write(f"\n{written.prompt}{''.join(token.text for token in written.tokens)}\n")


def _show(token: Chosen, number: int, tokenizer: pl.Tokenizer | None) -> None:
    if token.stages is None:
        write(token.text)
        return
    piece = visible(str(token.id) if tokenizer is None else tokenizer.pieces([token.id])[0])
    title = Text.assemble(f"\n{number}  ", (piece, "bold green"), f"  {math.exp(token.logprob):.1%}")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, candidates in token.stages.items():
        shown = [Text(f"{visible(c.token)} {c.probability:.1%}") for c in candidates if c.probability > 0]
        table.add_row(Text(f"   {name}", style="dim"), *shown)
    show(title, table)


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
