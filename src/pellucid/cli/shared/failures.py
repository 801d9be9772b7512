"""Errors and warnings as a reader at a terminal, or a program, wants them."""

from __future__ import annotations

import enum
import warnings
from typing import TextIO

from rich.text import Text

from pellucid.cli.shared.screen import LOST_OUTPUT, messages, show_json
from pellucid.errors import NotFoundError, PellucidError, PellucidWarning


class Exit(enum.IntEnum):
    """What the exit codes mean; usage errors (2) and interruption (130) are Typer's own."""

    DONE = 0
    CHECK_FAILED = 1
    NOT_FOUND = 3
    BAD_INPUT = 4


def exit_code(error: PellucidError) -> Exit:
    """The exit code of an error, by its class."""
    return Exit.NOT_FOUND if isinstance(error, NotFoundError) else Exit.BAD_INPUT


def show_failure(error: PellucidError, *, as_json: bool) -> None:
    """Say what went wrong: to people on stderr, to programs as an object on stdout."""
    if as_json and error.code != LOST_OUTPUT:
        show_json({"error": {"code": error.code, "message": error.message, "remedy": error.remedy}})
        return
    text = Text.assemble(("error: ", "bold red"), (error.message, "red"), "  ", (f"[{error.code}]", "dim"))
    messages().print(text, soft_wrap=True)
    messages().print(Text.assemble(("remedy: ", "bold"), error.remedy), soft_wrap=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """`warnings.showwarning` that gives pellucid's own warnings without a place in the code."""
    if issubclass(category, PellucidWarning):
        messages().print(Text.assemble(("warning: ", "bold yellow"), str(message)), soft_wrap=True)
    else:
        plain = warnings.formatwarning(message, category, filename, lineno, line)
        messages().print(Text(plain), soft_wrap=True, end="")
