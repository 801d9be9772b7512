"""Errors and warnings as a reader at a terminal, or a program, wants them."""

from __future__ import annotations

import enum
import warnings
from typing import TextIO

from rich.text import Text

from pellucid.cli.shared.remedies import remedy_here
from pellucid.cli.shared.screen import LOST_OUTPUT, show_json, tell
from pellucid.errors import NotFoundError, PellucidError, PellucidWarning


class Exit(enum.IntEnum):
    """What the exit codes mean; usage errors (2) are Typer's own, interruption (130) is `pellucid.interrupts`'."""

    DONE = 0
    CHECK_FAILED = 1
    NOT_FOUND = 3
    BAD_INPUT = 4
    FAULT = 70  # EX_SOFTWARE of sysexits.h: an exception that nobody foresaw is no failed check


def exit_code(error: PellucidError) -> Exit:
    """The exit code of an error, by its class."""
    return Exit.NOT_FOUND if isinstance(error, NotFoundError) else Exit.BAD_INPUT


def show_failure(error: PellucidError, *, as_json: bool) -> None:
    """Say what went wrong: to people on stderr, to programs as an object on stdout."""
    remedy = remedy_here(error.code, error.remedy)
    if as_json and error.code != LOST_OUTPUT:
        show_json({"error": {"code": error.code, "message": error.message, "remedy": remedy}})
        return
    text = Text.assemble(("error: ", "bold red"), (error.message, "red"), "  ", (f"[{error.code}]", "dim"))
    tell(text, Text.assemble(("remedy: ", "bold"), remedy))


def show_fault(fault: BaseException, trace: str, *, as_json: bool) -> None:
    """Say that pellucid itself went wrong, with what a report of it needs."""
    words = f"{type(fault).__name__}: {str(fault)[:400] or 'no message'}"
    remedy = "This is a fault of pellucid: please report it with the command and the lines above."
    tell(Text(trace.rstrip()))
    show_failure(PellucidError(words, code="unexpected", remedy=remedy), as_json=as_json)


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
        tell(Text.assemble(("warning: ", "bold yellow"), str(message)))
    else:
        tell(Text(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n")))
