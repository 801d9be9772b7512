"""The command line: `pellucid VERB`. `VERBS` is the registry.

A verb is a declaration and a module. `verbs.py` declares what can be asked of it: a frozen dataclass, named like the
verb with a capital, whose fields are Typer's options and whose `MORE` is the rest of its help. `work/<verb>.py` holds
the function that answers, named like the verb, which is given one of these. What verbs share is in `shared/`. To add
one, write the two and give it a line in `VERBS`, the first of its help.

Declarations import nothing that takes a while, torch least of all, and work is imported once it is to be done: so
`--help`, `--version`, completion and mistyped options are answered at once.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperGroup

from pellucid._version import __version__
from pellucid.cli.shared.failures import Exit, exit_code, show_failure, show_fault, show_warning
from pellucid.cli.shared.screen import progress, require_surroundings, require_writable, show_json, tell, writing
from pellucid.errors import PellucidError, printable
from pellucid.run import interrupts

if TYPE_CHECKING:
    from pellucid.cli.shared.options import Wish

VERBS = {
    "demo": "Take a short tour of the bundled model.",
    "run": "Run a text and show every value on the way.",
    "compare": "Compare two models to the bit.",
    "ties": "Find shared and doubled weights in a weights file or folder.",
    "generate": "Continue a text.",
    "norms": "Measure the norms of a checkpoint's vectors by layer.",
    "patch": "Patch one text's run with another's.",
    "attribute": "Write a logit as the sum of what each part of the model adds.",
    "lens": "Show what each block would say next.",
    "heads": "Score what heads do on a text, or how they compose.",
    "view": "Write a page that shows a text's run in a browser.",
    "serve": "Look at a model in the browser.",
    "reproduce": "Compute published figures again, and compare.",
    "capture": "Keep the values of a corpus on disk, a row for each token.",
    "check": "Check your answers to the course that builds GPT-2.",
    "doctor": "Check the installation and the bundled model.",
}
"""The verbs in the order of `--help`, each with its one line."""

NARROW = 80
"""Columns below which a verb's help is a list, not a table."""

TEXTS = ("TEXT", "CLEAN", "CORRUPTED")
"""What arguments and options that are a text are called in the help."""

_SETTINGS = {"help_option_names": ["-h", "--help"]}


@contextmanager
def _usage(words: Sequence[str]) -> Generator[None, None, None]:
    """Around the reading of words: where --json is among them, misuse is told as an object, too."""
    given = list(words)  # they are taken out of the list as they are read
    try:
        yield
    except typer.TyperException as misuse:
        if "--json" not in given[: given.index("--") if "--" in given else None]:
            raise
        raise _show_misuse(misuse) from misuse


def _show_misuse(misuse: typer.TyperException) -> typer.Exit:
    """Say what was wrongly typed as an object on stdout; returns the exit that follows."""
    where = getattr(getattr(misuse, "ctx", None), "command_path", "pellucid")
    remedy = f"`{where} --help` says what can be given."
    show_json({"error": {"code": "usage", "message": misuse.format_message(), "remedy": remedy}})
    return typer.Exit(misuse.exit_code)


class Verb(TyperCommand):
    """A verb, whose callback makes what was asked for; it is then answered.

    Every `PellucidError` becomes a message and an exit code, and so does whatever nobody foresaw.
    """

    def invoke(self, ctx: Any) -> Any:
        as_json = bool(ctx.params.get("as_json"))
        try:
            require_surroundings()
            wish: Wish = super().invoke(ctx)
            require_writable(wish.outputs())
            with progress("starting"):
                answer = getattr(importlib.import_module(f"{__name__}.work.{self.name}"), str(self.name))
            with interrupts.raised():
                return answer(wish)
        except PellucidError as error:
            show_failure(error, as_json=as_json, verb=str(self.name))
            raise typer.Exit(exit_code(error)) from error
        except typer.BadParameter as error:
            error.ctx = error.ctx or ctx  # whose usage is shown
            if not as_json:
                raise
            raise _show_misuse(error) from error
        except KeyboardInterrupt as interruption:
            if words := str(interruption):
                tell(Text(words))
            raise
        except (SystemExit, typer.Exit):
            raise
        except BaseException as fault:  # a panic of Rust's is no Exception
            show_fault(fault, traceback.format_exc(), as_json=as_json)
            raise typer.Exit(Exit.FAULT) from fault

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _usage(args):
            return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words, of which none may be left over; where a text may be given, quotes are what is missing."""
        ctx.allow_extra_args = True
        left = super().parse_args(ctx, args)
        if left and not ctx.resilient_parsing:
            takes_text = any(param.metavar in TEXTS for param in self.get_params(ctx))
            quotes = ". Put a text of several words in quotes" if takes_text else ""
            ctx.fail(f"Got unexpected extra argument(s) ({printable(' '.join(left))}){quotes}.")
        return left

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if shutil.get_terminal_size().columns < NARROW:
            self.rich_markup_mode = None  # a table would cut the names of options
        super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, without the names of Python's types in the help."""
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None  # its metavar is shown as its name
            elif param.metavar is None:
                param.metavar = ""
        return params


class Verbs(TyperGroup):
    """The group whose commands are lines of `VERBS` until one of them is named."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with _usage(args):
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        with _usage(args):
            name, command, rest = super().resolve_command(ctx, args)
        return (name, command, rest) if name is None else (name, load_verb(name), rest)


def load_verb(name: str) -> Any:
    """Make the command of a verb's declaration, which is imported here."""
    wish = getattr(importlib.import_module(f"{__name__}.verbs"), name.capitalize())
    more = "\n\n".join(" ".join(paragraph.split()) for paragraph in wish.MORE.split("\n\n"))  # for any width
    alone = typer.Typer(add_completion=False)
    alone.command(name, cls=Verb, help=f"{VERBS[name]}\n\n{more}", context_settings=_SETTINGS)(wish)
    return typer.main.get_command(alone)


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
        "70 a fault of pellucid, 130 interrupted.",
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
    """Run one command, and leave by `SystemExit` with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks is no reason to fail
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            with writing():
                app(args=args, prog_name="pellucid")
        except PellucidError as error:
            show_failure(error, as_json=False)
            raise SystemExit(exit_code(error)) from error
