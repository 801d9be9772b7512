"""What each verb can be asked: a frozen dataclass for each, whose fields are Typer's options.

Those that explain a model are in `studies`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import (
    CONFIG,
    DTYPE,
    IGNORE_CONFIG,
    Config,
    Ids,
    IgnoreConfig,
    ModelWish,
    TextWish,
    Tokenizer,
    Wish,
    WithSae,
    aliases,
    argument,
    flag,
    option,
    parse_ids,
    require_choice,
)
from pellucid.cli.studies import Attribute, Heads, Lens, Norms, Patch, Reproduce

__all__ = ["Attribute", "Heads", "Lens", "Norms", "Patch", "Reproduce"]

_MODEL = "A folder, a file, an alias or a hub id; hf: before it runs that side through transformers."
_ONE_SIDE = "A= or B= before it is for one side alone."

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Options of `generate` that are fields of a sampler."""


@dataclass(frozen=True, kw_only=True)
class Demo(Wish):
    """Where the page of the tour goes."""

    MORE = """
    Runs one sentence and shows its tokens, the values inside one block, the head that looks back to the token
    before, and what comes next; and checks that looking did not change the answer. Ends by writing a page with the
    model's card, the proof that it is the same model as transformers', its ties, norms, a regression and every head.
    """

    html: Annotated[Path, option("FILE", "The file to write the page to.")] = Path("pellucid-demo.html")


@dataclass(frozen=True, kw_only=True)
class Run(WithSae, TextWish):
    """A text to run, and what to show of it."""

    MORE = """
    Shows the tokens, a table of the captured checkpoints in the order in which the model computes them, and the
    likeliest next tokens. With --sae it also shows the strongest features of an autoencoder at each token, and with
    --feature what comes next when some of them are changed.
    """

    names: Annotated[
        list[str] | None,
        option(
            "PATTERN", "Checkpoints to capture; * stays within a dotted part, ** crosses. Repeatable.",
            "every checkpoint",
        ),
    ] = None  # fmt: skip
    save: Annotated[Path | None, option("FILE.safetensors", "Write the captured values.")] = None
    feature: Annotated[
        list[str] | None, option("N=X", "Set feature N to X at every token; 0 takes it out. Repeatable.")
    ] = None
    top: Annotated[int, option("N", "How many next tokens, and features of a token, to show.", min=0)] = 5
    pos: Annotated[
        int | None,
        option(
            "N", "Keep this position only (-1 is the last), and show what comes next after it.", "every position"
        ),
    ] = None  # fmt: skip
    only_list: Annotated[bool, flag("--list", "List the names of the model's checkpoints, and run nothing.")] = False

    def __post_init__(self) -> None:
        self.require_sae()
        if self.features and self.sae is None:
            raise typer.BadParameter("of which autoencoder? Give --sae, too.", param_hint="--feature")
        if self.only_list:
            self.leave_out("--list", "runs nothing", "text", "ids", "bos", "pos", "top", "save", "sae")
        else:
            super().__post_init__()

    @property
    def features(self) -> dict[int, float]:
        """Features that are set -> what to."""
        try:
            pairs = [(int(number), float(value)) for number, value in (one.split("=", 1) for one in self.feature or ())]
        except ValueError as error:
            raise typer.BadParameter(
                f"{', '.join(self.feature or ())}: expected a feature's number and a value such as 12=3.5.",
                param_hint="--feature",
            ) from error
        if len(dict(pairs)) < len(pairs):
            raise typer.BadParameter("one feature several times, expected one value for each.", param_hint="--feature")
        return dict(pairs)


@dataclass(frozen=True, kw_only=True)
class Compare(Wish):
    """Two models, and what to run both on."""

    MORE = """
    Aligns their parameters by value, compares every checkpoint that both show, and names where they first differ.
    The exit code is 1 unless they are identical or equivalent.
    """

    a: Annotated[str, argument("A", _MODEL, autocompletion=aliases)]
    b: Annotated[str, argument("B", _MODEL, autocompletion=aliases)]
    text: Annotated[
        str | None, option("TEXT", "What to run both on; - reads it from standard input.", "five words, or drawn ids")
    ] = None
    ids: Ids = None
    tokenizer: Tokenizer = None
    config: Annotated[list[str] | None, option("FILE", f"{CONFIG} {_ONE_SIDE}")] = None
    ignore_config: Annotated[list[str] | None, option("FIELD", f"{IGNORE_CONFIG} {_ONE_SIDE}")] = None
    dtype: Annotated[list[str] | None, option("DTYPE", f"{DTYPE} {_ONE_SIDE}", "stored")] = None
    html: Annotated[Path | None, option("FILE", "Write the whole report as a page.")] = None
    markdown: Annotated[bool, flag("--markdown", "Write a summary for a pull request.")] = False

    def __post_init__(self) -> None:
        if self.as_json:
            self.leave_out("--json", "writes an object, and no summary", "markdown")
        if self.text is not None and self.ids:
            raise typer.BadParameter("--text and --ids given, expected one of them.")
        parse_ids(self.ids or ())
        for name, given in (("--config", self.config), ("--dtype", self.dtype)):
            if any(len(self.of_side(side, given)) > 1 for side in "AB"):
                raise typer.BadParameter("several given for one side, expected one.", param_hint=name)

    def of_side(self, side: str, given: list[str] | None) -> list[str]:
        """The values that count for one side, "A" or "B": its own if it has some, else those without a side."""
        found: dict[str, list[str]] = {"A": [], "B": [], "": []}
        for one in given or ():
            whose, mark, value = one.partition("=")
            found[whose if mark and whose in found else ""].append(value if mark and whose in found else one)
        return found[side] or found[""]


@dataclass(frozen=True, kw_only=True)
class Ties(Wish):
    """A weights file or folder to audit."""

    MORE = """
    Shows which names share memory or numbers, what the configuration says, and what reading the weights makes
    of its head. A head that was tied again before the file was written is not in the file, and cannot be seen here:
    before saving, audit the model itself with pl.audit_ties. The exit code is 1 when there are problems.
    """

    path: Annotated[
        str,
        argument("PATH", "A weights file, an index of shards or a folder; or an alias or a hub id.",
                 autocompletion=aliases),
    ]  # fmt: skip
    config: Config = None
    ignore_config: IgnoreConfig = None


@dataclass(frozen=True, kw_only=True)
class Generate(TextWish):
    """A prompt, and how to go on with it."""

    MORE = "Shows the text as it is written. Ctrl-C ends it, with what was written so far."

    max_new_tokens: Annotated[int | None, option("N", "Tokens at most.", "50")] = None
    overflow: Annotated[
        str,
        option("error|slide",
               "If the context is too short: refuse beforehand, or drop the first tokens and go on to the last of N."),
    ] = "error"  # fmt: skip
    sampler: Annotated[
        str | None,
        option("file", "file: choose tokens, search and end as the model's generation_config.json says."),
    ] = None
    temperature: Annotated[float | None, option("T", "0 takes the likeliest token.", "0, or 1 with a filter")] = None
    top_k: Annotated[int | None, option("K", "Draw from the K likeliest; 0 from all.", "0")] = None
    top_p: Annotated[float | None, option("P", "Draw from the likeliest that make up P.", "1")] = None
    min_p: Annotated[float | None, option("P", "Draw from what is P times as likely as the best.", "0")] = None
    repetition_penalty: Annotated[float | None, option("X", "Above 1 against repetition.", "1")] = None
    no_repeat_ngram_size: Annotated[int | None, option("N", "No N tokens come twice; 0: they may.", "0")] = None
    seed: Annotated[int | None, option("S", "The seed of the draws.", "torch's own")] = None
    stop: Annotated[list[str] | None, option("TEXT", "Ends the text. Repeatable.")] = None
    num_beams: Annotated[int | None, option("N", "Above 1, a beam search.", "1", min=1)] = None
    length_penalty: Annotated[float | None, option("X", "Larger prefers longer texts.", "1")] = None
    explain: Annotated[bool, flag("--explain", "Show what each token was chosen from, stage by stage.")] = False
    numerics: Annotated[str, option("exact|fast|packed|bfloat16", "The last three need a C++ compiler.")] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("--sampler", self.sampler or "file", "file")
        if self.sampler is not None:
            self.leave_out("--sampler file", "the file says it", *SETTINGS)

    @property
    def settings(self) -> dict[str, float]:
        """The settings of a sampler that were given, by the sampler's names."""
        return {name: value for name in SETTINGS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class View(WithSae, TextWish):
    """A text to look at, and where the page goes."""

    MORE = """
    Runs the text and writes one page that shows it in a browser: attention, the next token, what each block would say,
    who wrote the answer, neurons, and every checkpoint as far as it fits. The page holds all of it and asks nobody for
    anything, so it can be sent on. With --sae it shows the features of an autoencoder in the place of neurons.
    """

    html: Annotated[Path, option("FILE", "The file to write the page to.")] = Path("pellucid-view.html")
    token: Annotated[
        str | None, option("TOKEN", "The token whose logit is explained: a text that is one token.", "the likeliest")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sae()


@dataclass(frozen=True, kw_only=True)
class Serve(WithSae, ModelWish):
    """A model to look at, and where."""

    MORE = """
    Serves pages that run the model: any text, edits, exact values, generation. Only browsers on this machine reach it,
    and it asks nobody for anything. It writes its address when it is ready, and serves until Control-C. With --sae it
    shows the features of an autoencoder in the place of neurons.
    """

    text: Annotated[str | None, option("TEXT", "The text that is shown first.", "a short story")] = None
    port: Annotated[
        int | None,
        option("N", "The port; 0 for any free one.", "8600, or one of the next that is free", min=0, max=65535),
    ] = None
    no_open: Annotated[bool, flag("--no-open", "Open no browser.")] = False

    def __post_init__(self) -> None:
        self.require_sae()


@dataclass(frozen=True, kw_only=True)
class Capture(ModelWish):
    """Files of text, and what of their runs is kept."""

    MORE = """
    Runs every text and writes the values of checkpoints into a folder that Zarr, xarray and Dask open. Stopped or
    killed, the same command goes on where it was. With --verify it runs rows of such a folder again, drawn at random,
    compares them to the bit, and exits with 1 if one differs.

    A .jsonl file has a text in each line, a .parquet file in each row; any other file is one text. Texts longer than
    the context are cut into pieces of its length.
    """

    out: Annotated[str, option("DIR", "The folder to write to, or to verify; or an address such as s3://bucket/acts.")]
    data: Annotated[list[Path] | None, option("FILE", "A file of text, or a folder of them. Repeatable.")] = None
    names: Annotated[
        list[str] | None, option("PATTERN", "Checkpoints to keep, with or without their block. Repeatable.")
    ] = None
    field: Annotated[str, option("NAME", "Where .jsonl and .parquet files have their texts.")] = "text"
    lines: Annotated[bool, flag("--lines", "Each line of a plain file is a text of its own.")] = False
    keep_as: Annotated[str, option("DTYPE", "float32, float64, float16 or bfloat16: what is written.")] = "float32"
    batch_tokens: Annotated[int, option("N", "The most tokens that run at once.", min=1)] = 4096
    pack: Annotated[bool, flag("--pack", "Let short texts share a row, none of which sees another.")] = False
    engine: Annotated[str, option("ENGINE", "local: this process; ray: processes of Ray's, here or elsewhere.")] = (
        "local"
    )
    workers: Annotated[int | None, option("N", "How many processes Ray starts.", "as many as fit", min=1)] = None
    verify: Annotated[bool, flag("--verify", "Run rows again and compare them; writes nothing.")] = False
    rows: Annotated[int | None, option("N", "How many rows --verify draws.", "1000", min=1)] = None

    def __post_init__(self) -> None:
        if self.verify:
            self.leave_out("--verify", "the folder says what it holds", "data", "names", "field", "lines", "keep_as",
                           "batch_tokens", "pack", "engine", "workers")  # fmt: skip
            return
        if self.rows is not None:
            raise typer.BadParameter("says how many rows --verify draws: give --verify, too.", param_hint="--rows")
        missing = [name for name, value in (("--data", self.data), ("--names", self.names)) if not value]
        if missing:
            raise typer.BadParameter(f"Missing option: give {' and '.join(missing)}.")


@dataclass(frozen=True, kw_only=True)
class Check(Wish):
    """A file with answers to the course, and how much of what is wrong to give away."""

    MORE = """
    Runs the file, which is your own program, in a process of its own, and checks every class and function of the
    course in it: what is right, what is wrong and where, and what is still open.
    Of a notebook, the code cells are run. The exit code is 1 unless all are
    right.
    """

    file: Annotated[Path, argument("FILE", "Your answers to the course: a .py or an .ipynb.")]
    exercise: Annotated[str | None, option("NAME", "One alone: attention, block, … or GPT2Block.")] = None
    hint: Annotated[
        int | None, option("N", "1: the place; 2: the kind of mistake, too.", "all of it", min=1, max=3)
    ] = None
    time_limit: Annotated[
        int, option("SECONDS", "For the file, and for each exercise; what takes longer is wrong.", min=1)
    ] = 300


@dataclass(frozen=True, kw_only=True)
class Doctor(Wish):
    """Whether everything is there."""

    MORE = """
    Shows versions, devices, missing extras with the command that adds them, and whether the bundled model is
    intact, which is what decides the exit code. Uses no network.
    """

    speed: Annotated[
        bool, flag("--speed", "Also time the matrix products of a GPT-2, and show what fast and packed numerics take.")
    ] = False
