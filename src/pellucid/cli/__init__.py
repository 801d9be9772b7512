"""The command line: `pellucid VERB`. `VERBS` is the registry.

A verb is a module of this package that holds a function of the same name, declared for Typer; what verbs share
is in `shared/`. To add one, write `cli/<verb>.py` and give it a line in `VERBS`: the line that `--help` shows,
which is also the first line of the function's docstring.

A verb's module is imported once the verb is named, not before: `pellucid --help`, `--version` and the completion
of verbs answer without waiting for torch.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pellucid._version import __version__
from pellucid.cli.shared.failures import exit_code, show_failure, show_warning
from pellucid.cli.shared.screen import progress
from pellucid.errors import PellucidError

VERBS = {
    "demo": "Take a short tour of the bundled model.",
    "run": "Run a text and show every value on the way.",
    "compare": "Compare two models to the bit.",
    "ties": "Find shared and doubled weights in a checkpoint.",
    "generate": "Go on with a text.",
    "norms": "Measure the norms of a checkpoint's vectors by layer.",
    "doctor": "Check the installation and the bundled model.",
}
"""The verbs in the order of `--help`, each with its one line."""

_SETTINGS = {"help_option_names": ["-h", "--help"]}


class Verb(TyperCommand):
    """A verb whose `PellucidError`s become a message and an exit code; every verb declares `as_json`."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except PellucidError as error:
            show_failure(error, as_json=bool(ctx.params.get("as_json")))
            raise typer.Exit(exit_code(error)) from error


class Verbs(TyperGroup):
    """The group whose commands are lines of `VERBS` until one of them is named."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is None:
            return name, command, rest
        with progress("starting", quiet=ctx.resilient_parsing):  # completion parses resiliently
            return name, load_verb(name), rest


def load_verb(name: str) -> Any:
    """Import a verb's module and make the command of its function."""
    module = importlib.import_module(f"{__name__}.{name}")
    alone = typer.Typer(add_completion=False)
    verb = getattr(module, name)
    alone.command(name, cls=Verb, help=_unwrapped(verb.__doc__), context_settings=_SETTINGS)(verb)
    return typer.main.get_command(alone)


def _unwrapped(docstring: str) -> str:
    """A docstring with one line for each paragraph, for terminals of any width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pellucid {__version__}")
        raise typer.Exit


def _pellucid(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """GPT-2 made of glass: every number inside it has a name, and looking never changes the answer."""


def _app() -> typer.Typer:
    app = typer.Typer(
        name="pellucid",
        cls=Verbs,
        no_args_is_help=True,
        context_settings=_SETTINGS,
        epilog="Exit codes: 0 done, 1 a check failed, 2 usage, 3 not found, 4 unreadable or unsupported input, "
        "130 interrupted.",
    )
    app.callback()(_pellucid)
    for name, line in VERBS.items():
        app.command(name, help=line)(_not_loaded)
    return app


def _not_loaded() -> None:
    raise AssertionError("Verbs.resolve_command puts the verb's own command in this place")


app = _app()
"""The Typer application."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command, and leave by `SystemExit` with its exit code.

    Args:
        args: The words after `pellucid`; those of the process if None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks is no reason to fail
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        app(args=args, prog_name="pellucid")
