"""What the verbs that explain a model can be asked; see `verbs`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import (
    Ids,
    ModelWish,
    TextWish,
    WithSae,
    aliases,
    argument,
    flag,
    option,
    parse_ids,
    require_choice,
    require_one_source,
)


@dataclass(frozen=True, kw_only=True)
class Norms(ModelWish):
    """Texts to measure, and what of them."""

    MORE = """
    Shows their distribution, and a regression of each token's norm on those of the tokens before it. The first token
    is left out, because its norm is far from all others. Texts longer than the context are cut into several.
    """

    texts: Annotated[
        list[str] | None, argument("TEXT|FILE...", "Texts, or files of text; - is standard input.", default=True)
    ] = None
    ids: Ids = None
    at: Annotated[str, option("CHECKPOINT", "Whose vectors.")] = "attn.ckpt_attn_out"
    lags: Annotated[int, option("N", "Tokens before that a norm is regressed on; 0: none.", min=0)] = 2
    skip: Annotated[int, option("N", "First tokens of each text to leave out.", min=0)] = 1
    linear: Annotated[bool, flag("--linear", "The norms themselves instead of their logarithms.")] = False
    figure: Annotated[Path | None, option("FILE", "Draw them: .svg, .pdf, .png.")] = None
    csv: Annotated[Path | None, option("FILE", "Write the norm of every token.")] = None

    def __post_init__(self) -> None:
        require_one_source("TEXT or FILE", self.texts, self.ids)
        parse_ids(self.ids or ())


@dataclass(frozen=True, kw_only=True)
class Patch(WithSae, ModelWish):
    """Two texts, the tokens that tell their runs apart, and what is patched."""

    MORE = """
    Runs both texts, puts single values of the one run into the other, each in a run of its own, and shows where that
    moves the logit of a token that may come next, or the difference of two. With --sae single features of an
    autoencoder are put in, each at every token.
    """

    clean: Annotated[str, argument("CLEAN", "The text whose values are put in; - reads it from standard input.")]
    corrupted: Annotated[str, argument("CORRUPTED", "The text whose run they are put into, of as many tokens.")]
    token: Annotated[
        str | None, option("TOKEN", "Whose logit: a text that is one token.", "the likeliest after CLEAN")
    ] = None
    against: Annotated[str | None, option("TOKEN", "Take this token's logit off.", "the likeliest after CORRUPTED")] = (
        None
    )
    names: Annotated[
        list[str] | None,
        option("CHECKPOINT", "What is patched, with or without its block. Repeatable.", "resid_pre"),
    ] = None
    over: Annotated[
        str,
        option("AXES", "What to go over: layer, head, pos, neuron, with commas between; what is not there is patched "
               "as a whole."),
    ] = "layer,pos"  # fmt: skip
    direction: Annotated[
        str, option("denoise|noise", "denoise: values of CLEAN into CORRUPTED; noise: the other way.")
    ] = "denoise"
    align: Annotated[bool, flag("--align", "Pair the tokens that both texts share, for texts of unequal length.")] = (
        False
    )
    top: Annotated[int, option("N", "How many patches to show; --csv and --json have all.", min=1)] = 10
    figure: Annotated[Path | None, option("FILE", "Draw them, of two axes: .svg, .pdf, .png.")] = None
    csv: Annotated[Path | None, option("FILE", "Write every patch.")] = None

    def __post_init__(self) -> None:
        self.require_sae()
        require_choice("--direction", self.direction, "denoise", "noise")
        if self.sae is not None:
            self.leave_out("--sae", "goes over its features", "names", "over", "align", "figure")
        known = ("layer", "head", "pos", "neuron")
        if len(set(self.axes)) < len(self.axes) or not set(self.axes) <= set(known):
            raise typer.BadParameter(f"{self.over!r} given, expected some of {','.join(known)}.", param_hint="--over")
        count = len(self.axes) + (len(self.checkpoints) > 1)
        if self.figure is not None and count != 2:
            raise typer.BadParameter(
                f"{count} axes, expected two to draw: one of --names with two axes in --over, or several with one.",
                param_hint="--figure",
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of `over`."""
        return tuple(axis.strip() for axis in self.over.split(",") if axis.strip())

    @property
    def checkpoints(self) -> list[str]:
        """What is patched."""
        return self.names or ["resid_pre"]


@dataclass(frozen=True, kw_only=True)
class Attribute(WithSae, TextWish):
    """A text, and the logit that is written as a sum."""

    MORE = """
    Shows what each component of the model adds to the logit of a token that may come next, or to the difference of two,
    the largest parts first, and their sum, which is the logit. With --sae the parts are the features of an autoencoder
    with its bias and its error, whose sum is what the value that it reads adds.
    """

    token: Annotated[str | None, option("TOKEN", "Whose logit: a text that is one token.", "the likeliest")] = None
    against: Annotated[str | None, option("TOKEN", "Take this token's logit off.")] = None
    by: Annotated[str | None, option("component|head|neuron|block", "What the parts are.", "component")] = None
    pos: Annotated[int, option("N", "After which token of the text; -1 is the last.")] = -1
    top: Annotated[int, option("N", "How many parts to show; --csv and --json have all.", min=1)] = 16
    figure: Annotated[Path | None, option("FILE", "Draw the parts and their sum: .svg, .pdf, .png.")] = None
    csv: Annotated[Path | None, option("FILE", "Write every part.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sae()
        require_choice("--by", self.by or "component", "component", "head", "neuron", "block")
        if self.sae is not None:
            self.leave_out("--sae", "the parts are its features", "by")


@dataclass(frozen=True, kw_only=True)
class Lens(TextWish):
    """A text, and where the model's next token is read on the way."""

    MORE = """
    Shows what each block would say next if the model stopped there, at every token of the text; and at one of them
    the likeliest tokens and how far they are from what the model says (KL, in nats).
    """

    at: Annotated[str, option("CHECKPOINT", "Where: a value of the residual stream of every block.")] = "resid_post"
    tuned: Annotated[Path | None, option("FILE", "A tuned lens to read through, as TunedLens.save writes it.")] = None
    pos: Annotated[int, option("N", "After which token to show the likeliest; -1 is the last.")] = -1
    token: Annotated[str | None, option("TOKEN", "Show its probability and rank, too: a text that is one token.")] = (
        None
    )
    top: Annotated[int, option("N", "How many of the likeliest to show.", min=1)] = 5
    figure: Annotated[Path | None, option("FILE", "Draw every block at every token: .svg, .pdf, .png.")] = None
    csv: Annotated[Path | None, option("FILE", "Write the likeliest of every block at every token.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuned is not None:
            self.leave_out("--tuned", "a tuned lens reads resid_post", "at")


@dataclass(frozen=True, kw_only=True)
class Heads(TextWish):
    """A text on which heads are scored, or the weights alone."""

    MORE = """
    Shows for a text which heads attend to the token before, to the first, to earlier occurrences of the same token
    and to what came after them, and which copy; with --token, which move this token to where the text ends. With
    --composition, no text is run: it shows which heads read what earlier ones write, from their weights.
    """

    token: Annotated[str | None, option("TOKEN", "Score name movers of it: a text that is one token.")] = None
    composition: Annotated[str | None, option("Q|K|V", "Pairs by what the later head reads with; takes no text.")] = (
        None
    )
    top: Annotated[int, option("N", "How many heads of each score, or pairs, to show.", min=1)] = 3
    figure: Annotated[Path | None, option("FILE", "Draw the scores of all heads, or pairs: .svg, .pdf, .png.")] = None
    csv: Annotated[Path | None, option("FILE", "Write the scores of all heads, or of all pairs.")] = None

    def __post_init__(self) -> None:
        if self.composition is None:
            super().__post_init__()
            return
        require_choice("--composition", self.composition, "Q", "K", "V")
        self.leave_out("--composition", "runs no text", "text", "ids", "bos", "token")


@dataclass(frozen=True, kw_only=True)
class Reproduce(ModelWish):
    """Which published figures to compute again, and of which weights."""

    MORE = """
    Computes what papers and repositories published about GPT-2 small: its loss, what single heads add to a logit, the
    heads of the indirect-object circuit, and how well estimates agree with patches; each beside its source and the
    tolerance that it deserves. Ctrl-C ends it, with what was computed so far. The exit code is 1 unless all figures
    are within their tolerance.
    """

    what: Annotated[str, argument("gpt2", "Whose figures: gpt2.")]
    model: Annotated[
        str | None,
        option(
            "MODEL", "The weights: an alias, a hub id, a folder or a file.", True, "--model", "-m",
            autocompletion=aliases,
        ),
    ] = "gpt2-small"  # fmt: skip
    quick: Annotated[bool, flag("--quick", "Fewer sentences, without what takes longest.")] = False
    seed: Annotated[int, option("S", "The seed of the sentences and of random ids.", min=0)] = 0

    def __post_init__(self) -> None:
        require_choice("gpt2", self.what, "gpt2")
