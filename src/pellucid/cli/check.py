"""The options of `pellucid check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli.shared.options import Wish

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Your answers to the course: a .py or an .ipynb.", show_default=False)
]
Exercise = Annotated[
    str | None,
    typer.Option("--exercise", metavar="NAME", help="One alone: attention, block, … or GPT2Block.", show_default=False),
]
Hint = Annotated[
    int | None,
    typer.Option(
        "--hint", metavar="N", min=1, max=3, help="1: the place; 2: the kind of mistake, too.", show_default="all of it"
    ),
]

Limit = Annotated[
    int,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        min=1,
        help="For the file, and for each exercise; what takes longer is wrong.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Check(Wish):
    """A file with answers to the course, and how much of what is wrong to give away."""

    MORE = """
    Runs the file, which is your own program, in a process of its own, and checks every class and function of the
    course in it: what is right, what is wrong and where, and what is still open.
    Of a notebook, the code cells are run. The exit code is 1 unless all are
    right.
    """

    file: File
    exercise: Exercise = None
    hint: Hint = None
    time_limit: Limit = 300
