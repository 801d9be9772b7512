"""`pellucid check`: what is right, wrong and open in a learner's file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import typer
from rich.text import Text

from pellucid.cli.shared.failures import Exit, show_failure
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.verbs import Check
from pellucid.errors import InputError
from pellucid.exercises.learner_file import Answer, checked_apart, exercise_named

_MARKS = {"right": ("✓", "green"), "wrong": ("✗", "bold red"), "open": ("·", "dim")}


def check(wish: Check) -> None:
    """Check a file, and fail unless everything in it is right."""
    try:
        exercise = None if wish.exercise is None else exercise_named(wish.exercise)
    except InputError as error:
        raise typer.BadParameter(f"{error.message} {error.remedy}", param_hint="--exercise") from error
    try:
        with progress(f"checking {wish.file}"):
            answers = checked_apart(wish.file, exercise, wish.hint, wish.time_limit)
    except InputError as error:
        if error.code != "file-endless":
            raise
        show_failure(error, as_json=wish.as_json)
        raise typer.Exit(Exit.CHECK_FAILED) from error
    if wish.as_json:
        show_json({"file": str(wish.file), "answers": [asdict(one) for one in answers]})
    else:
        show(*_parts(str(wish.file), answers))
    if any(one.state != "right" for one in answers):
        raise typer.Exit(Exit.CHECK_FAILED)


def _parts(file: str, answers: Sequence[Answer]) -> Iterator[Text]:
    counted = Counter(one.state for one in answers)
    yield Text(f"{file}: {', '.join(f'{counted[state]} {state}' for state in _MARKS)}", style="bold")
    width = max(len(one.exercise) for one in answers)
    for one in answers:
        mark, style = _MARKS[one.state]
        yield Text.assemble((mark, style), f" {one.exercise:{width}}  ", (one.name, "cyan"))
        if one.result is not None and one.state == "wrong":
            for label, text in one.result.rows():
                yield Text.assemble(("    " + label, "bold"), f": {text}")
