"""docs/cli.md shows what the commands write, and leaves out no verb, option or exit code."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from refresh_docs import PAGE, examples, run

import pellucid as pl
from pellucid.cli import VERBS
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.options import ModelWish
from pellucid.cli.work import demo
from pellucid.exercises.learner_file import EXERCISES, Answer, answers

TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = examples(TEXT)


def words(output: str) -> str:
    """The output without its numbers, bars, shades and column widths, which another machine may round otherwise."""
    return " ".join(re.sub(r"\+(cpu|cu)|-?\d[\d.,]*(e-?\d+)?%?|[·█▉▊▋▌▍▎▏░▒▓◀]+", "", output).split())


def answered_here(path: Path, key: str | None, hint: int | None, _: float) -> list[Answer]:
    """What another process would answer, without its start."""
    return list(answers(path, [*EXERCISES] if key is None else [key], hint, lambda key: None))


@pytest.mark.parametrize(("command", "shown", "exit_code"), EXAMPLES, ids=[command for command, _, _ in EXAMPLES])
def test_examples_are_real(command: str, shown: str, exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.startswith("check "):  # tests/exercises/test_exercise_file.py checks in a process of its own
        monkeypatch.setattr("pellucid.cli.work.check.checked_apart", answered_here)
    if command == "demo":  # tests/cli/test_cli_demo.py looks at its page, which takes long
        monkeypatch.setattr(demo, "write_page", lambda model, path: path.write_text("a page", encoding="utf-8"))
    output, code = run(command)
    assert code == exit_code
    assert words(shown) == words(output), "python tests/cli/refresh_docs.py"


def test_every_verb_has_an_example() -> None:
    assert {command.split()[0] for command, _, _ in EXAMPLES} | {"doctor", "serve", "reproduce"} >= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_there(verb: str, cli: Any) -> None:
    section = TEXT.split(f"## `pellucid {verb}", 1)[1].split("\n## ", 1)[0]
    if issubclass(getattr(import_module("pellucid.cli.verbs"), verb.capitalize()), ModelWish):
        section += TEXT.split("**The model and its text.**", 1)[1].split("\n## ", 1)[0]
    options = set(re.findall(r"│ [ *]*(--[a-z-]+)", cli(verb, "--help").stdout)) - {"--help"}
    assert options
    assert options <= set(re.findall(r"`(--[a-z-]+)", section))


def test_every_exit_code_is_there() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)} == {*map(int, Exit), 2, 130}


def test_the_digests_on_the_page_are_those_of_the_files_that_ship() -> None:
    """A reader compares them by eye; the rest of that output depends on the machine."""
    shown = dict(re.findall(r"^(\S+) +intact +sha256 ([0-9a-f]+)…", TEXT, re.MULTILINE))
    sums = (Path(pl.__file__).parent / "bundled" / "SHA256SUMS").read_text(encoding="utf-8").split()
    shipped = dict(zip(sums[1::2], sums[::2], strict=True))
    assert shown == {name: digest[:16] for name, digest in shipped.items()}
