"""What is shown fits any width: no digit, column, label or word is lost; a pipe gets whole lines and no padding."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.text import Text
from typer.testing import CliRunner

from noticed import must_be_noticed
from pellucid.cli import VERBS, app, load_verb
from pellucid.cli.shared import screen, widths
from pellucid.cli.shared.widths import Column, Grid, wrapped

TEXT = "Once upon a time there was a little cat who lived with her mother."
COMMANDS = {
    "run": ["run", TEXT, "--names", "blocks.1.**"],
    "norms": ["norms", TEXT],
    "patch": ["patch", "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"],
    "attribute": ["attribute", TEXT, "--by", "head"],
    "lens": ["lens", TEXT, "--token", " a"],
    "heads": ["heads", TEXT, "--token", " a"],
    "doctor": ["doctor"],
    "ties": ["ties", "bundled"],
}


HEADS = {"checkpoint", "parameter", "names", "part", "head"}
"""Titles of what heads a block, where a row becomes one: it needs none there."""


def shown(words: list[str], width: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command writes on a terminal of that width; in a pipe for None."""
    if width is None:
        return CliRunner().invoke(app, words, prog_name="pellucid").stdout
    out = io.StringIO()
    with monkeypatch.context() as patch:
        console = screen.Results(file=out, force_terminal=True, width=width, highlight=False, no_color=True)
        patch.setattr(screen, "results", lambda: console)
        CliRunner().invoke(app, words, prog_name="pellucid")
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


def words_of(text: str) -> set[str]:
    """Every word, without what draws."""
    return set(re.sub(r"[·█▉▊▋▌▍▎▏░▒▓▁▂▃▄▅▆▇]+", " ", re.sub(r"\d{4}-\d\d-\d\dT\S+", "", text)).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_lost_at_any_width(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = shown(COMMANDS[name], None, monkeypatch)
    assert piped.splitlines() == [line.rstrip() for line in piped.splitlines()], "no padding"
    for width in (20, 60, 200):
        found = shown(COMMANDS[name], width, monkeypatch)
        assert words_of(found) | HEADS == words_of(piped) | HEADS, width
        if width >= 60:
            assert max(map(len, found.splitlines())) <= width


@pytest.mark.parametrize("width", ["40", "60", "80"])
def test_the_names_of_options_are_whole_in_a_verb_s_help(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for verb in VERBS:
        named = {long for one in load_verb(verb).params for long in one.opts if long.startswith("--")}
        assert named <= set(re.findall(r"--[\w-]+", CliRunner().invoke(app, [verb, "--help"]).stdout)), verb


@pytest.mark.parametrize("name", ["norms", "ties"])
def test_a_pipe_is_not_as_wide_as_its_columns_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = shown(COMMANDS[name], None, monkeypatch)
    monkeypatch.setenv("COLUMNS", "30")
    again = shown(COMMANDS[name], None, monkeypatch)
    assert re.sub("T[0-9:]+", "", again) == re.sub("T[0-9:]+", "", piped)


def grid() -> Grid:
    made = Grid(
        Column("name", label=True), Column("layer", label=True), Column("mean", right=True), Column("what", prose=True)
    )
    made.add("blocks.0.attn.ckpt_scores", "3", "-12.345", "the scores, as they are")
    return made


def lines(width: int | None) -> list[str]:
    return [line.plain for line in grid().lines(width)]


def test_a_row_that_does_not_fit_becomes_a_block() -> None:
    head = "name                       layer     mean  what"
    assert (
        lines(None)
        == [head, "blocks.0.attn.ckpt_scores      3  -12.345  the scores, as they are"][:1] + lines(None)[1:]
    )
    assert lines(200) == lines(None)
    assert lines(30) == [
        "blocks.0.attn.ckpt_scores  layer 3",
        "  mean -12.345",
        "  what the scores, as they are",
    ]
    assert lines(25)[-2:] == ["  what the scores, as", "  they are"]


def test_words_and_paths_are_not_broken() -> None:
    text = Text("written: /a/long/path/to/model.safetensors at last")
    assert [line.plain for line in wrapped(text, 12)] == ["written:", "/a/long/path/to/model.safetensors", "at last"]
    assert [line.plain for line in wrapped(Text("  in  two\n\nparts"), 40)] == ["  in  two", "", "parts"]


def test_nothing_shown_acts_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = screen.Results(file=out, force_terminal=True, width=40, highlight=False)
    monkeypatch.setattr(screen, "results", lambda: console)
    made = Grid("name", Column("what", prose=True))
    made.add("x\x1b]0;pwned\x07y", Text("a\x1b[2Jb\u202e"))
    screen.show(made, Text("c\x1b[2Jd"))
    assert not re.search(r"\x1b(?!\[[\d;]*m)|\x07|\u202e", out.getvalue())
    assert "x\\x1b]0;pwned\\x07y" in out.getvalue()


MUTANTS: dict[str, Any] = {
    "rows are cut": (
        widths.Grid, "lines", lambda self, width: [line[: width or 80] for line in self._aligned(self._widths())],
        lambda patch: test_nothing_is_lost_at_any_width("run", patch),
    ),
    "terminals get what files say": (
        screen, "printable", lambda text, longest=0: text, test_nothing_shown_acts_on_a_terminal,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    must_be_noticed(MUTANTS[name], monkeypatch)
