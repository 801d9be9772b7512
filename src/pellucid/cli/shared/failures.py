"""Errors and warnings as a reader at a terminal, or a program, wants them."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TextIO

import typer
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


def show_failure(error: PellucidError, *, as_json: bool, verb: str = "") -> None:
    """Say what went wrong: to people on stderr, to programs as an object on stdout."""
    remedy = remedy_here(error.code, error.remedy, verb)
    if as_json and error.code != LOST_OUTPUT:
        show_json({"error": {"code": error.code, "message": error.message, "remedy": remedy}})
        return
    text = Text.assemble(("error: ", "bold red"), (error.message, "red"), "  ", (f"[{error.code}]", "dim"))
    tell(text, Text.assemble(("remedy: ", "bold"), remedy))


@contextmanager
def usage(words: Sequence[str]) -> Generator[None, None, None]:
    """Around the reading of words: where --json is among them, misuse is told as an object, too."""
    given = list(words)  # they are taken out of the list as they are read
    try:
        yield
    except typer.TyperException as misuse:
        if "--json" not in given[: given.index("--") if "--" in given else None]:
            raise
        raise show_misuse(misuse) from misuse


def show_misuse(misuse: typer.TyperException) -> typer.Exit:
    """Say what was wrongly typed as an object on stdout; returns the exit that follows."""
    where = getattr(getattr(misuse, "ctx", None), "command_path", "pellucid")
    remedy = f"`{where} --help` says what can be given."
    show_json({"error": {"code": "usage", "message": misuse.format_message(), "remedy": remedy}})
    return typer.Exit(misuse.exit_code)


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
