"""What `pellucid generate` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pellucid.cli.shared.options import TextWish

Length = Annotated[int, typer.Option("--max-new-tokens", metavar="N", help="Tokens at most.")]
Overflow = Annotated[
    str,
    typer.Option(
        "--overflow",
        metavar="error|slide",
        help="If the context is too short: refuse beforehand, or drop the first tokens.",
    ),
]
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


@dataclass(frozen=True, kw_only=True)
class Generate(TextWish):
    """A prompt, and how to go on with it."""

    MORE = "Shows the text as it is written. Ctrl-C ends it, with what was written so far."

    max_new_tokens: Length = 50
    overflow: Overflow = "error"
    temperature: Temperature = None
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0
    repetition_penalty: Repetition = 1.0
    no_repeat_ngram_size: Ngrams = 0
    seed: Seed = None
    stop: Stops = None
    num_beams: Beams = 1
    length_penalty: LengthPenalty = 1.0
    explain: Explain = False
    numerics: Numerics = "exact"
