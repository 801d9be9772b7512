"""Options and arguments that several verbs take, and how they are read."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pellucid.errors import InputError
from pellucid.weights.hub import ALIASES, BUNDLED_NAME


def aliases(incomplete: str) -> list[str]:
    return [alias for alias in (BUNDLED_NAME, *ALIASES) if alias.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="An alias (gpt2-small, …), a hub id, a folder or a file.",
        show_default="the bundled model",
        autocompletion=aliases,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON object for programs.")]
Text = Annotated[
    str, typer.Argument(metavar="TEXT", help="The text; - reads it from standard input.", show_default=False)
]


def read_text(given: str) -> str:
    """The text that an argument means: itself, or for `-` standard input without its last line break.

    Raises:
        InputError: It is not UTF-8, or there is no standard input.
    """
    try:
        if given != "-":
            return given.encode("utf-8", "surrogateescape").decode("utf-8")
        if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  (closed by the shell: `<&-`)
            raise InputError(
                "standard input: closed, expected a text.", code="stdin-closed", remedy="Pipe a text in, or give TEXT."
            )
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        where = "standard input" if given == "-" else "TEXT"
        raise InputError(
            f"{where}: byte {error.start} is 0x{error.object[error.start]:02x}, expected UTF-8.",
            code="text-not-utf8",
            remedy="Convert the text first, for example with `iconv -f LATIN1 -t UTF-8`.",
        ) from error
