"""Where output goes: results to stdout, messages to stderr, progress to stderr if that is a terminal."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pellucid.errors import PellucidError

LOST_OUTPUT = "stdout-not-writable"
"""The code of the error that stdout itself failed."""

PIPE_WIDTH = 80
"""Columns for what is not a terminal and does not say (`COLUMNS`)."""


class Results(Console):
    """The console on stdout. A reader that leaves early (`| head`) has had enough, which is no failure."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard_stdout()


def results() -> Console:
    """A console on stdout as it is now."""
    console = Results(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Results(highlight=False, width=PIPE_WIDTH)


def messages() -> Console:
    """A console on stderr as it is now."""
    return Console(stderr=True, highlight=False)


def show(*parts: RenderableType) -> None:
    """Write results for people. A table is never cut off in a pipe, where no screen limits it."""
    console = results()
    with _writing():
        for part in parts:
            if isinstance(part, Table) and not console.is_terminal:
                whole = Measurement.get(console, console.options.update(width=10_000), part).maximum
                console.print(part, width=max(whole, console.width), crop=False)
            else:
                console.print(part, soft_wrap=isinstance(part, Text))  # a path or a name stays in one piece


def write(text: str) -> None:
    """Write a piece of text at once: as it is, but on a terminal no control character of it acts there."""
    shown = "".join(map(_harmless, text)) if sys.stdout.isatty() else text
    with _writing():
        print(shown, end="", flush=True)


def _harmless(character: str) -> str:
    return "\N{REPLACEMENT CHARACTER}" if character not in "\n\t" and not character.isprintable() else character


def show_json(content: Mapping[str, Any]) -> None:
    """Write a result for programs: one JSON object, in which numbers that JSON lacks (nan, inf) are null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    with _writing():
        print(text, flush=True)


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Generator[None, None, None]:
    """Say on a terminal's stderr what takes time, for as long as it does."""
    console = messages()
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(f"{what} …", spinner="dots"):
        yield


@contextmanager
def steps(what: str) -> Generator[Callable[[str, float], None], None, None]:
    """Show on a terminal's stderr how far something is.

    Yields:
        What is to be called with each step and the share that is behind.
    """
    console = messages()
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=1.0)
        yield lambda step, share: bar.update(task, description=f"{what}: {step}", completed=share)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _writing() -> Generator[None, None, None]:
    """Around every write to stdout: what cannot be written is reported, unless nobody reads it any more."""
    try:
        yield
    except BrokenPipeError:
        _discard_stdout()
    except OSError as problem:
        _discard_stdout()
        raise PellucidError(
            f"standard output: cannot be written: {problem.strerror or problem}.",
            code=LOST_OUTPUT,
            remedy="Send it somewhere with enough free space.",
        ) from problem


def _discard_stdout() -> None:
    """Send the rest, and what Python flushes at exit, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
