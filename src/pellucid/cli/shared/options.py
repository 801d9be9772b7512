"""What verbs can be asked, as far as several take it: bases of their declarations.

Annotations here are objects, not text, because Typer reads them for classes of other modules.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

import pellucid as pl
from pellucid.cli.shared.opening import DTYPES, Opening
from pellucid.errors import InputError
from pellucid.weights.hub import ALIASES, BUNDLED_NAME
from pellucid.weights.manifests import decoded


def aliases(incomplete: str) -> list[str]:
    """The names of models that begin so, for the completion of words."""
    return [alias for alias in (BUNDLED_NAME, *ALIASES) if alias.startswith(incomplete)]


Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json for the text.", show_default="the model's own"),
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--ids",
        metavar="1,2,3",
        help="Token ids instead of text; separate rows by ; or repeat the option.",
        show_default=False,
    ),
]
CONFIG, IGNORE_CONFIG, DTYPE = (
    "A config.json to read instead of the model's own.",
    "A field of the configuration to ignore. Repeatable.",
    f"{', '.join(DTYPES)}, or stored: the dtype of the file.",
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one command is asked; every verb can write JSON."""

    MORE: ClassVar[str] = ""
    """The help after its first line, in paragraphs."""

    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object for programs.")] = False

    def outputs(self) -> dict[str, Path | None]:
        """Option -> the file that will be written; they are looked at before the work."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ModelWish(Wish):
    """A wish about one model, and how to open it."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="An alias (gpt2-small, …), a hub id, a folder or a file.",
            show_default="the bundled model",
            autocompletion=aliases,
        ),
    ] = None
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help=CONFIG, show_default=False)] = None
    ignore_config: Annotated[
        list[str] | None, typer.Option("--ignore-config", metavar="FIELD", help=IGNORE_CONFIG, show_default=False)
    ] = None
    tokenizer: Tokenizer = None
    dtype: Annotated[str, typer.Option("--dtype", metavar="DTYPE", help=DTYPE)] = "float32"

    @property
    def model_name(self) -> str:
        """The model in a word, for people and JSON."""
        return BUNDLED_NAME if self.model is None else self.model

    def open(self, numerics: str = "exact") -> "pl.CkptedTransformer":
        """The model, with the tokenizer that was named."""
        opening = Opening(self.model, self.config, tuple(self.ignore_config or ()), self.dtype, self.tokenizer)
        return opening.model(numerics)


@dataclass(frozen=True, kw_only=True)
class TextWish(ModelWish):
    """A wish about one model and one text, which may be given as ids."""

    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="The text; - reads it from standard input.")
    ] = None
    ids: Ids = None
    bos: Annotated[bool, typer.Option("--bos", help="Put the beginning-of-text id first.")] = False

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
        """What the model runs: the text itself, where nothing has to be put before it."""
        if text is not None and not self.bos:
            return text
        ids = tokens_of(model, text) if text is not None else parse_ids(self.ids or ())[0]
        return [beginning_of_text(model), *ids] if self.bos else ids


def require_one_source(what: str, texts: list[str] | None, ids: list[str] | None) -> None:
    """See that there is a text or there are ids, and not both.

    Raises:
        BadParameter: It is otherwise.
    """
    if not texts and not ids:
        raise typer.BadParameter(f"Missing argument: give {what}, or token ids by --ids.")
    if texts and ids:
        raise typer.BadParameter(f"{what} and --ids given, expected one of them.")


def parse_ids(given: list[str] | tuple[str, ...]) -> list[list[int]]:
    """Rows of ids, from `1,2,3;4,5` given once or several times.

    Raises:
        BadParameter: Something else.
    """
    rows = [row for one in given for row in one.split(";")]
    try:
        return [[int(number) for number in row.replace(",", " ").split()] for row in rows]
    except ValueError as error:
        raise typer.BadParameter(
            f"{given[0]!r}: expected whole numbers such as 1,2,3, with ; between rows.", param_hint="--ids"
        ) from error


def tokens_of(model: "pl.CkptedTransformer", text: str) -> list[int]:
    """The ids of a text.

    Raises:
        InputError: The model has no tokenizer.
    """
    if model.tokenizer is None:
        raise InputError(
            "text was given, but this model has no tokenizer.",
            code="no-tokenizer",
            remedy="Pass ids, or give the model a tokenizer.",
        )
    return model.tokenizer.encode(text)


def beginning_of_text(model: "pl.CkptedTransformer") -> int:
    """The id that stands before a text.

    Raises:
        InputError: The configuration names none.
    """
    if model.config.bos_token_id is None:
        raise InputError(
            "--bos: the model's configuration has no bos_token_id.",
            code="no-bos",
            remedy="Leave --bos out, or give all ids by --ids.",
        )
    return model.config.bos_token_id


def read_text(given: str) -> str:
    """The text that an argument means: itself, or for `-` standard input without its last line break.

    Raises:
        InputError: It is not UTF-8, or there is no standard input.
    """
    if given != "-":
        try:
            return given.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8("TEXT", error) from error
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  (closed by the shell: `<&-`)
        raise InputError(
            "standard input: closed, expected a text.", code="stdin-closed", remedy="Pipe a text in, or give TEXT."
        )
    return text_of(sys.stdin.buffer.read(), "standard input").removesuffix("\n")


def text_of(content: bytes, where: object) -> str:
    """A text whose bytes came from outside, with the line breaks of Unix, whatever system wrote it.

    Raises:
        InputError: It is not UTF-8, nor what a byte-order mark before it says.
    """
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
