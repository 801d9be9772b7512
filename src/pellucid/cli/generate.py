"""What `pellucid generate` can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from pellucid.cli.shared.options import TextWish

SETTINGS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip
"""The fields of `Generate` that are settings of a sampler, by the sampler's names."""

Length = Annotated[int | None, typer.Option("--max-new-tokens", metavar="N", help="Tokens at most.", show_default="50")]
Source = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="file",
        help="file: choose tokens, search and end as the model's generation_config.json says.",
        show_default=False,
    ),
]
Overflow = Annotated[
    str,
    typer.Option(
        "--overflow",
        metavar="error|slide",
        help="If the context is too short: refuse beforehand, or drop the first tokens and go on to the last of N.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="0 takes the likeliest token.", show_default="0, or 1 with a filter"
    ),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest; 0 from all.", show_default="0")
]
TopP = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Draw from the likeliest that make up P.", show_default="1")
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", metavar="P", help="Draw from what is P times as likely as the best.", show_default="0"),
]
Repetition = Annotated[
    float | None,
    typer.Option("--repetition-penalty", metavar="X", help="Above 1 against repetition.", show_default="1"),
]
Ngrams = Annotated[
    int | None,
    typer.Option("--no-repeat-ngram-size", metavar="N", help="No N tokens come twice; 0: they may.", show_default="0"),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="S", help="Of the draws.", show_default="torch's own")]
Beams = Annotated[
    int | None, typer.Option("--num-beams", metavar="N", min=1, help="Above 1, a beam search.", show_default="1")
]
LengthPenalty = Annotated[
    float | None,
    typer.Option("--length-penalty", metavar="X", help="Of the search, for long texts.", show_default="1"),
]
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

    max_new_tokens: Length = None
    overflow: Overflow = "error"
    sampler: Source = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    repetition_penalty: Repetition = None
    no_repeat_ngram_size: Ngrams = None
    seed: Seed = None
    stop: Stops = None
    num_beams: Beams = None
    length_penalty: LengthPenalty = None
    explain: Explain = False
    numerics: Numerics = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in (None, "file"):
            raise typer.BadParameter(f"{self.sampler!r} given, expected file.", param_hint="--sampler")
        if self.sampler == "file" and self.settings:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in self.settings)
            raise typer.BadParameter(f"the file says it; leave out {given}.", param_hint="--sampler file")

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a sampler that were given."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}
