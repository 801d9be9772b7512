"""Where output goes: results to stdout, messages to stderr, progress to stderr if that is a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.text import Text

from pellucid.check import path_of
from pellucid.cli.shared.widths import shown_in
from pellucid.errors import NotFoundError, PellucidError, WeightsError, printable
from pellucid.html.listing import finite
from pellucid.run.interrupts import is_watched

LOST_OUTPUT = "stdout-not-writable"
"""The code of the error that stdout itself failed."""


class Screen(Console):
    """A console on which nothing that a file says acts: control characters are spelled out in whatever is shown."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text, len(segment.text))
            yield segment if text == segment.text else Segment(text, segment.style)


class Results(Screen):
    """The console on stdout. A reader that leaves early (`| head`) has had enough, which is no failure."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard_stdout()


def results() -> Console:
    """A console on stdout as it is now."""
    return Results(highlight=False)


def messages() -> Console:
    """A console on stderr as it is now."""
    return Screen(stderr=True, highlight=False)


def show(*parts: RenderableType) -> None:
    """Write results for people."""
    console = results()
    with writing():
        for part in parts:
            console.print(shown_in(part, console), soft_wrap=True)


def tell(*parts: Text) -> None:
    """Write messages for people, if there is a place for them: the exit code says what happened."""
    console = messages()
    with suppress(OSError):
        for part in parts:
            console.print(shown_in(part, console), soft_wrap=True)


def require_surroundings() -> None:
    """See that there is a standard output and a working directory, without which torch's libraries end the process."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise _lost("closed")
    try:
        os.getcwd()
    except OSError as problem:
        raise NotFoundError(
            f"the working directory: {problem.strerror}.",
            code="path-not-found",
            remedy="Change to a folder that is there: cd.",
        ) from problem


def require_writable(outputs: Mapping[str, Path | None]) -> None:
    """Check that output files (option -> file) can be written, each in its own place, before the work starts."""
    taken: dict[Path, str] = {}
    for option, given in outputs.items():
        if given is None:
            continue
        path = path_of(given)
        problem = _problem(path)
        same = taken.setdefault(path.absolute(), option)
        if same != option and problem is None:
            problem = f"{same} is written there"
        if problem is not None:
            raise WeightsError(
                f"{option} {given}: cannot be written: {problem}.",
                code="path-not-writable",
                remedy="Name a file in a folder that you may write.",
            )
        note_a_missing_folder(given)


def note_a_missing_folder(path: Path) -> None:
    """Say of what will be written which folder is made for it."""
    try:
        path_of(path).absolute().parent.stat()
    except FileNotFoundError:
        tell(Text(f"note: the folder {path.parent} is not there, and will be made"))
    except (OSError, ValueError):  # such as a name that is too long: what cannot be made is refused by its writer
        return


def _problem(path: Path) -> str | None:
    """Why a file cannot be written at a path; None if it can."""
    try:
        if path.is_dir() or not path.name:
            return "it is a folder, expected the name of a file"
        above = next(parent for parent in path.absolute().parents if parent.exists())
        for named in (path, *(above / part for part in path.absolute().relative_to(above).parts)):  # also what is made
            with suppress(FileNotFoundError, NotADirectoryError):
                named.lstat()  # raises for a name that is too long for the system
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return getattr(error, "strerror", None) or str(error)
    if not above.is_dir():
        return f"{above} is not a folder"
    if path.is_file() or not path.exists():  # what is no file, such as a device, is written in its place
        return None if os.access(above, os.W_OK | os.X_OK) else f"{above} may not be written"
    return None if os.access(path, os.W_OK) else "it may not be written"


def write(text: str) -> None:
    """Write a piece of text at once: as it is, but on a terminal no control character of it acts there."""
    shown = "".join(map(_harmless, text)) if sys.stdout.isatty() else text
    with writing():
        print(shown, end="", flush=True)


def _harmless(character: str) -> str:
    return "\N{REPLACEMENT CHARACTER}" if character not in "\n\t" and not character.isprintable() else character


def show_json(content: Mapping[str, Any]) -> None:
    """Write a result for programs: one JSON object, in which numbers that JSON lacks (nan, inf) are null."""
    text = json.dumps(finite(content), indent=2, allow_nan=False)
    with writing():
        print(text, flush=True)


@contextmanager
def progress(what: str) -> Generator[None, None, None]:
    """Say on a terminal's stderr what takes time, for as long as it does."""
    console = messages()
    if not is_watched(console):
        yield
        return
    with console.status(f"{what} …", spinner="dots"):
        yield


@contextmanager
def steps(what: str) -> Generator[Callable[[str, float], None], None, None]:
    """Show progress on a terminal's stderr; yields what is called with each step and the share that is behind."""
    console = messages()
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
        console=console, transient=True, disable=not is_watched(console),
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=1.0)
        yield lambda step, share: bar.update(task, description=f"{what}: {step}", completed=share)


@contextmanager
def writing() -> Generator[None, None, None]:
    """Around every write to stdout: what cannot be written is reported, unless nobody reads it any more."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
                sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as problem:
        _discard_stdout()
        raise _lost(str(problem.strerror or problem)) from problem


def _lost(why: str) -> PellucidError:
    return PellucidError(
        f"standard output: cannot be written: {why}.",
        code=LOST_OUTPUT,
        remedy="Send it to a terminal, a pipe, or a file on a disk with free space.",
    )


def _discard_stdout() -> None:
    """Send the rest, and what Python flushes at exit, to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
