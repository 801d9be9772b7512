"""What verbs can be asked, as far as several take it: bases of their declarations, and the texts that are given.

Annotations here are objects, not text, because Typer reads them for classes of other modules.
"""

import os
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

import pellucid as pl
from pellucid.cli.shared.screen import messages, progress
from pellucid.errors import InputError, NotFoundError, printable
from pellucid.weights.hub import ALIASES, BUNDLED_NAME
from pellucid.weights.manifests import decoded, require_regular

SUFFIXES = (".txt", ".text", ".md", ".csv", ".tsv", ".json", ".jsonl", ".log", ".tex", ".html", ".gz", ".xz")
"""Ends of names that a text without spaces has only by mistake."""


def aliases(incomplete: str) -> list[str]:
    """The names of models that begin so, for the completion of words."""
    return [alias for alias in (BUNDLED_NAME, *ALIASES) if alias.startswith(incomplete)]


def option(metavar: str, text: str, default: str | bool = True, *names: str, **limits: Any) -> Any:
    """Typer's declaration of an option that takes a value; `default` is how the help says its default."""
    return typer.Option(*names, metavar=metavar, help=text, show_default=default, **limits)


def argument(metavar: str, text: str, *, default: bool = False, autocompletion: Any = None) -> Any:
    """Typer's declaration of an argument."""
    return typer.Argument(metavar=metavar, help=text, show_default=default, autocompletion=autocompletion)


def flag(name: str, text: str) -> Any:
    """Typer's declaration of an option without a value."""
    return typer.Option(name, help=text)


CONFIG, IGNORE_CONFIG, DTYPE = (
    "A config.json to read instead of the model's own.",
    "A field of the configuration to ignore. Repeatable.",
    "float32, float64, float16, bfloat16, or stored: the dtype of the file.",
)
Config = Annotated[Path | None, option("FILE", CONFIG)]
IgnoreConfig = Annotated[list[str] | None, option("FIELD", IGNORE_CONFIG)]
Tokenizer = Annotated[Path | None, option("FILE", "A tokenizer.json for the text.", "the model's own")]
Ids = Annotated[
    list[str] | None, option("1,2,3", "Token ids instead of text; separate rows by ; or repeat the option.")
]


WRITTEN = ("html", "save", "figure", "csv")
"""Options whose files are written."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one command is asked; every verb can write JSON."""

    MORE: ClassVar[str] = ""
    """The help after its first line, in paragraphs."""

    as_json: Annotated[bool, flag("--json", "Write one JSON object for programs.")] = False

    def outputs(self) -> dict[str, Path | None]:
        """Option -> the file that will be written; they are looked at before the work."""
        return {f"--{one.name}": getattr(self, one.name) for one in fields(self) if one.name in WRITTEN}

    def leave_out(self, option: str, why: str, *names: str) -> None:
        """See that none of these fields, which count for nothing with an option, was given."""
        usual = {one.name: one.default for one in fields(self)}
        given = [name for name in names if getattr(self, name) not in (usual[name], [], ())]
        if given:
            typed = ("TEXT" if name == "text" else f"--{name.replace('_', '-')}" for name in given)
            raise typer.BadParameter(f"{why}: leave out {', '.join(typed)}.", param_hint=option)


@dataclass(frozen=True, kw_only=True)
class ModelWish(Wish):
    """A wish about one model, and how to open it."""

    model: Annotated[
        str | None,
        option(
            "MODEL", "An alias (gpt2-small, …), a hub id, a folder or a file.", "the bundled model", "--model", "-m",
            autocompletion=aliases,
        ),
    ] = None  # fmt: skip
    config: Config = None
    ignore_config: IgnoreConfig = None
    tokenizer: Tokenizer = None
    dtype: Annotated[str, option("DTYPE", DTYPE)] = "float32"

    @property
    def model_name(self) -> str:
        """The model in a word, for people and JSON."""
        return BUNDLED_NAME if self.model is None else self.model

    def open(self, numerics: str = "exact") -> "pl.CkptedTransformer":
        """The model, with the tokenizer that was named."""
        ignored = tuple(self.ignore_config or ())
        with progress(f"opening {self.model or 'the bundled model'}"):
            config = None if self.config is None else configuration(self.config)
            model = pl.load(self.model, dtype=self.dtype, numerics=numerics, config=config, ignore_config=ignored)
            if self.tokenizer is not None:
                model.tokenizer = read_tokenizer(self.tokenizer)
        return model


@dataclass(frozen=True, kw_only=True)
class TextWish(ModelWish):
    """A wish about one model and one text, which may be given as ids."""

    text: Annotated[list[str] | None, argument("TEXT", "The text; - reads it from standard input.", default=True)] = (
        None
    )
    ids: Ids = None
    bos: Annotated[bool, flag("--bos", "Put the beginning-of-text id first.")] = False

    def __post_init__(self) -> None:
        require_one_source("TEXT", self.text, self.ids)
        if self.text and len(self.text) > 1:
            raise typer.BadParameter(
                f"{len(self.text)} words given, expected one text. Put the text in quotes: '{' '.join(self.text)}'",
                param_hint="TEXT",
            )
        if len(parse_ids(self.ids or ())) > 1:
            raise typer.BadParameter("several rows given, expected one.", param_hint="--ids")

    def given(self) -> str | None:
        """The text, read; None if ids were given."""
        return read_text(self.text[0]) if self.text else None

    def row(self, model: "pl.CkptedTransformer", text: str | None) -> str | list[int]:
        """What the model runs: the text itself, if nothing has to be put before it."""
        if text is not None and not self.bos:
            return text
        ids = tokens_of(model, text) if text is not None else parse_ids(self.ids or ())[0]
        return [beginning_of_text(model), *ids] if self.bos else ids


@dataclass(frozen=True, kw_only=True)
class WithSae:
    """A wish that may look through a sparse autoencoder."""

    sae: Annotated[Path | None, option("PATH", "A sparse autoencoder: its folder, or its weights file.")] = None
    sae_at: Annotated[str | None, option("CHECKPOINT", "What it is of, if its file does not say.")] = None
    sae_centred: Annotated[
        str | None, option("yes|no", "Whether its model's weights were centred, if its file leaves that open.")
    ] = None
    sae_scale: Annotated[float | None, option("X", "What its inputs are multiplied by, if its file needs it.")] = None

    def require_sae(self) -> None:
        """See that nothing is said of an autoencoder that is not there."""
        if self.sae_centred is not None:
            require_choice("--sae-centred", self.sae_centred, "yes", "no")
        given = {"--sae-at": self.sae_at, "--sae-centred": self.sae_centred, "--sae-scale": self.sae_scale}
        others = [name for name, value in given.items() if value is not None]
        if self.sae is None and others:
            raise typer.BadParameter("of which autoencoder? Give --sae, or leave it out.", param_hint=others[0])

    def autoencoder(self, model: "pl.CkptedTransformer") -> "pl.sae.SparseAutoencoder | None":
        """The autoencoder, which has to fit the model; None if there is none."""
        if self.sae is None:
            return None
        centred = None if self.sae_centred is None else self.sae_centred == "yes"
        return pl.sae.load(self.sae, at=self.sae_at, centred=centred, input_scale=self.sae_scale, model=model)


def require_one_source(what: str, texts: list[str] | None, ids: list[str] | None) -> None:
    """See that there is a text or there are ids, and not both."""
    if not texts and not ids:
        raise typer.BadParameter(f"Missing argument: give {what}, or token ids by --ids.")
    if texts and ids:
        raise typer.BadParameter(f"{what} and --ids given, expected one of them.")


def require_choice(name: str, given: str, *known: str) -> None:
    """See that an option or argument is one of a few words."""
    if given not in known:
        expected = " or ".join(filter(None, (", ".join(known[:-1]), known[-1])))
        raise typer.BadParameter(f"{given!r} given, expected {expected}.", param_hint=name)


def parse_ids(given: list[str] | tuple[str, ...]) -> list[list[int]]:
    """Rows of ids, from `1,2,3;4,5` given once or several times."""
    rows: list[list[int]] = []
    for row in (row for one in given for row in one.split(";")):
        try:
            rows.append([int(number) for number in row.replace(",", " ").split()])
        except ValueError as error:
            raise typer.BadParameter(
                f"{row!r}: expected whole numbers such as 1,2,3, with ; between rows.", param_hint="--ids"
            ) from error
    return rows


def configuration(path: Path) -> Path:
    """The file of a configuration, of whatever family it is, which is no name of a model."""
    require_regular(path)
    return path.absolute()


def read_tokenizer(path: Path) -> "pl.Tokenizer":
    """The tokenizer in a file, or in a folder."""
    if not path.exists():
        raise NotFoundError(
            f"--tokenizer {path}: no such file or folder.",
            code="path-not-found",
            remedy="Give the path of a tokenizer.json, or of a folder that holds one.",
        )
    found = pl.Tokenizer.from_folder(path) if path.is_dir() else pl.Tokenizer.from_file(path)
    if found is None:
        raise NotFoundError(
            f"--tokenizer {path}: a folder without tokenizer.json, and without vocab.json and merges.txt.",
            code="path-not-found",
            remedy="Give the path of a tokenizer.json.",
        )
    return found


def tokens_of(model: "pl.CkptedTransformer", text: str) -> list[int]:
    """The ids of a text."""
    if model.tokenizer is None:
        raise InputError(
            "text was given, but this model has no tokenizer.",
            code="no-tokenizer",
            remedy="Pass ids, or give the model a tokenizer.",
        )
    return model.tokenizer.encode(text)


def token_of(model: "pl.CkptedTransformer", given: str) -> int:
    """The id of an option that is one token: a text, or of a model without a tokenizer an id."""
    if model.tokenizer is None and given.isdecimal():
        return int(given)
    return int(pl.metrics.token_ids(given, model.tokenize([[0]]), "--token")[0])


def position_of(pos: int, length: int) -> int:
    """The place of a token in a text of some length, negative ones counted from the end."""
    if not -length <= pos < length:
        raise InputError(
            f"--pos {pos}: the text has {length} tokens.",
            code="index-out-of-range",
            remedy=f"Give a number from 0 to {length - 1}; negative ones count from the end.",
        )
    return pos % length


def beginning_of_text(model: "pl.CkptedTransformer") -> int:
    """The id that stands before a text."""
    if model.config.bos_token_id is None:
        raise InputError(
            "--bos: the model's configuration has no bos_token_id.",
            code="no-bos",
            remedy="Leave --bos out, or give all ids by --ids.",
        )
    return model.config.bos_token_id


def read_text(given: str) -> str:
    """The text that an argument means: itself, or for `-` standard input without its last line break."""
    if given != "-":
        _note_a_files_name(given)
        try:
            return given.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8("TEXT", error) from error
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  (closed by the shell: `<&-`)
        raise InputError(
            "standard input: closed, expected a text.", code="stdin-closed", remedy="Pipe a text in, or give TEXT."
        )
    return text_of(sys.stdin.buffer.read(), "standard input").removesuffix("\n")


def _note_a_files_name(given: str) -> None:
    """Say on stderr that a text which may be meant as a file's name is taken as it stands."""
    file = printable(shlex.quote(given))
    if os.path.isfile(given):
        said = f"not what the file of this name holds; give - < {file} for that"
    elif looks_like_a_file(given):
        said = "and no such file is here; what a file holds is given by - < FILE"
    else:
        return
    messages().print(f"note: the text is the name {file}, {said}", soft_wrap=True, markup=False)


def looks_like_a_file(given: str) -> bool:
    """True if a text ends like a file's name, and has no spaces."""
    return given.lower().endswith(SUFFIXES) and not any(map(str.isspace, given))


def text_of(content: bytes, where: object) -> str:
    """A text whose bytes came from outside, with the line breaks of Unix, whatever system wrote it."""
    try:
        return decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from error


def _not_utf8(where: object, error: UnicodeDecodeError) -> InputError:
    return InputError(
        f"{where}: byte {error.start} is 0x{error.object[error.start]:02x}, expected UTF-8.",
        code="text-not-utf8",
        remedy="Convert the text first, for example with `iconv -f LATIN1 -t UTF-8`.",
    )
