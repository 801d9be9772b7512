"""What holds for every verb: the registry, exit codes, streams, signals, completion."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pellucid as pl
from pellucid.cli import VERBS, main
from pellucid.cli.shared import failures, screen
from pellucid.cli.shared.options import WRITTEN, Wish

ERRORS = [
    error for name in pl.__all__ if isinstance(error := getattr(pl, name), type) and issubclass(error, pl.PellucidError)
]
SENTENCE = "Once upon a time"


def python(code: str, **options: Any) -> subprocess.Popen[str]:
    """Another process, with its three streams as pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options)


def test_help_lists_the_registry_in_order(cli: Any) -> None:
    result = cli("--help")
    lines = [line.strip("│ \n") for line in result.stdout.splitlines()]
    listed = [tuple(line.split(maxsplit=1)) for line in lines if line.split(" ")[0] in VERBS]
    assert result.exit_code == 0
    assert listed == list(VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_a_declaration_and_an_answer_of_its_name(verb: str, cli: Any) -> None:
    wish = getattr(importlib.import_module("pellucid.cli.verbs"), verb.capitalize())
    answer = getattr(importlib.import_module(f"pellucid.cli.work.{verb}"), verb)
    assert issubclass(wish, Wish)
    assert next(iter(inspect.signature(answer, eval_str=True).parameters.values())).annotation is wish
    helped = cli(verb, "-h")
    assert helped.exit_code == 0
    assert VERBS[verb] in " ".join(helped.stdout.split())
    assert "--json" in helped.stdout
    assert not re.search(r"<(bool|str|int|float|list)", helped.stdout), "names of Python's types tell a reader nothing"
    files = r'"FILE[^"]*",\s*"(Write|Draw|The file to write)'
    assert {one.name for one in dataclasses.fields(wish) if re.search(files, str(one.type))} <= set(WRITTEN)


def test_version(cli: Any) -> None:
    result = cli("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"pellucid {pl.__version__}\n", "")


def test_help_and_mistakes_import_nothing_that_takes_a_while() -> None:
    """In one other process, since this one has everything: no help, and no mistyped option, waits for torch."""
    code = """
import contextlib, io, sys, pellucid.cli
heavy = ('torch', 'numpy', 'transformers', 'matplotlib', 'xarray', 'huggingface_hub', 'pellucid.cli.work')
verbs = [f'{verb} {word}' for verb in pellucid.cli.VERBS for word in ('--help', '--nmaes')]
for words in ('--help', '--version', *verbs):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: pellucid.cli.main(words.split())
        except SystemExit as end: code = end.code
    assert code == (2 if '--nmaes' in words else 0), words
    assert ('Usage' in err.getvalue() if code else out.getvalue()), words
    found = [name for name in heavy if name in sys.modules]
    assert not found, (words, found)
print('nothing')
"""
    out, err = python(code).communicate(timeout=60)
    assert (out, err) == ("nothing\n", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["runn", "x"], "Did you mean 'run'?"),
        (["run"], "Missing argument: give TEXT, or token ids by --ids"),
        (["norms"], "Missing argument: give TEXT or FILE, or token ids by --ids"),
        (["run", "once", "upon", "a"], "Put the text in quotes: 'once upon a'"),
        (["generate", "once", "upon", "a"], "Put the text in quotes: 'once upon a'"),
        (["run", "x", "--ids", "1"], "TEXT and --ids given"),
        (["run", "--ids", "1,2;3,b"], "'3,b': expected whole numbers such as 1,2,3"),
        (["run", "--ids", "1;2"], "several rows given, expected one"),
        (["run", "x", "--list", "--pos", "0"], "runs nothing: leave out TEXT, --pos"),
        (["capture", "--out", "a", "--verify", "--field", "x", "--pack"], "what it holds: leave out --field, --pack"),
        (["capture", "--out", "a", "--rows", "9"], "give --verify, too"),
        (["compare", "a", "b", "--ids", "1", "--text", "x"], "--text and --ids given"),
        (["run", "x", "--top", "-1"], "--top"),
        (["run", "x", "--nmaes", "y"], "--nmaes"),
        (["patch", "x"], "Missing argument 'CORRUPTED'"),
        (["patch", "x", "y", "--over", "layer,heads"], "expected some of layer,head,pos,neuron"),
        (["patch", "x", "y", "--over", "layer,layer"], "expected some of layer,head,pos,neuron"),
        (["patch", "x", "y", "--direction", "back"], "expected denoise or noise"),
        (["patch", "x", "y", "--figure", "a.svg", "--over", "layer"], "1 axes, expected two to draw"),
        (["patch", "x", "y", "--top", "0"], "--top"),
        (["patch", "once", "upon", "a"], "(a). Put a text of several words in quotes."),
        (["compare", "a", "b", "--text", "once", "upon"], "(upon). Put a text of several words in quotes."),
        (["serve", "once"], "(once). Put a text of several words in quotes."),
        (["demo", "x"], "unexpected extra argument(s) (x)."),
        (["run", "x", "--pos", "last"], "--pos"),
    ],
)
def test_usage_is_2_and_on_stderr(
    cli: Any, args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some name a file to write
    result = cli(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.replace("│", "").split())
    assert f"Usage: pellucid {args[0] if args[0] in VERBS else '[OPTIONS]'}" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["runn", "x"], ["run"], ["run", "x", "--top", "-1"], ["run", "x", "--nmaes", "y"], ["compare", "a"],
        ["run", "x", "--list"], ["check", "x.py", "--exercise", "gredy"], ["generate", "x", "--sampler", "y"],
    ],
)  # fmt: skip
def test_usage_is_an_object_with_json(cli: Any, args: list[str]) -> None:
    """It says what people are told, whatever is wrong, and wherever --json stands."""
    for words in ([*args, "--json"], [args[0], "--json", *args[1:]]):
        result = cli(*words)
        assert (result.exit_code, result.stderr) == (2, "")
        error = json.loads(result.stdout)["error"]
        assert error["code"] == "usage"
        told = " ".join(cli(*args).stderr.replace("│", "").split())
        assert " ".join(error["message"].split()) in told
        command = re.findall(r"`pellucid (.*?) ?--help`", error["remedy"])
        assert cli(*command[0].split(), "--help").exit_code == 0
    assert cli("runn", "--", "--json").stdout == ""


def test_no_verb_shows_the_help(cli: Any) -> None:
    result = cli()
    assert result.exit_code == 2
    assert all(verb in result.output for verb in VERBS)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_a_message_and_its_exit_code(
    error: type[pl.PellucidError], cli: Any, cli_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise error("here: 3 given, expected 4.", code="some-code", remedy="Give 4 [of them].")

    monkeypatch.setattr(pl, "load", load)
    expected = 3 if issubclass(error, pl.NotFoundError) else 4
    for args in (["run", "x"], ["demo"]):
        result = cli(*args)
        assert (result.exit_code, result.stdout) == (expected, "")
        assert "Traceback" not in result.stderr
        assert result.stderr == "error: here: 3 given, expected 4.  [some-code]\nremedy: Give 4 [of them].\n"
        assert cli_json(*args, expect=expected) == {
            "error": {"code": "some-code", "message": "here: 3 given, expected 4.", "remedy": "Give 4 [of them]."}
        }


def terminal() -> Console:
    """A console that thinks it is a terminal, and keeps what it shows."""
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]
    return Console(file=file, force_terminal=True, color_system="standard", width=80)


def test_errors_are_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    monkeypatch.setattr(screen, "messages", lambda: console)
    failures.show_failure(pl.InputError("bad", code="c", remedy="r"), as_json=False)
    assert "\x1b[31mbad" in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for forced in ("", "1"):  # what colours logs makes no terminal of them
        monkeypatch.setenv("FORCE_COLOR", forced)
        with screen.progress("waiting"), screen.steps("waiting") as step:
            step("one", 0.5)
        assert capsys.readouterr() == ("", "")
    console = terminal()
    monkeypatch.setattr(screen, "messages", lambda: console)
    with screen.progress("waiting"):
        pass
    assert "waiting …" in console.file.getvalue()  # type: ignore[attr-defined]


def test_our_warnings_come_without_a_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = pl.load

    def warn(*args: Any, **options: Any) -> pl.CkptedTransformer:
        warnings.simplefilter("always")
        warnings.warn("mind this", pl.PellucidWarning)
        warnings.warn("and this", UserWarning)
        return load(*args, **options)

    monkeypatch.setattr(pl, "load", warn)
    with pytest.raises(SystemExit) as end:
        main(["run", SENTENCE, "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0
    assert json.loads(out)["tokens"]
    first, second = err.splitlines()[:2]
    assert first == "warning: mind this"
    assert "UserWarning: and this" in second


def test_a_stream_without_the_characters_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    with pytest.raises(SystemExit) as end:
        main(["run", SENTENCE, "--names", "ckpt_embed"])
    ascii_only.flush()
    assert end.value.code == 0
    assert b"?" in ascii_only.buffer.getvalue()  # type: ignore[attr-defined]


def test_interrupted_is_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl, "load", load)
    result = cli("run", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_failure(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as end:
            main(["run", SENTENCE, *option])
        stdout.write("what Python flushes at exit")
    assert end.value.code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_full_disk_is_an_error(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as end:
            main(["run", SENTENCE, "--names", "ckpt_embed", *option])
    assert end.value.code == 4
    assert "[stdout-not-writable]" in capsys.readouterr().err


def test_a_folder_that_will_be_made_for_an_output_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    screen.require_writable({"--html": tmp_path / "page.html", "--csv": None})
    assert capsys.readouterr().err == ""
    screen.require_writable({"--html": tmp_path / "new" / "deep" / "page.html"})
    assert "deep is not there, and will be made" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_said_of_folders_is_true_of_one_s_own_and_of_names_that_are_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    screen.require_writable({"--html": Path("~/page.html")})
    screen.note_a_missing_folder(Path("~/acts"))
    screen.note_a_missing_folder(Path("a" * 300, "acts"))
    assert capsys.readouterr().err == ""
    screen.note_a_missing_folder(Path("~/new/acts"))
    assert "the folder ~/new is not there, and will be made" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    with pytest.raises(pl.WeightsError, match="it is a folder"):
        screen.require_writable({"--html": Path("~/folder")})


@pytest.mark.parametrize("verb", [["run", SENTENCE], ["generate", SENTENCE], ["doctor"], ["demo", "--json"]])
def test_closed_standard_output_is_an_error_before_the_work(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pl, "load", None)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as end:
        main(verb)
    assert end.value.code == 4
    assert "[stdout-not-writable]" in capsys.readouterr().err


class Panic(BaseException):
    """As Rust's panics reach Python: no Exception."""


@pytest.mark.parametrize("fault", [ZeroDivisionError("by\x1b[31mzero"), RecursionError(), MemoryError(), Panic("here")])
def test_what_nobody_foresaw_is_70_and_no_failed_check(
    fault: BaseException, cli: Any, cli_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise fault

    monkeypatch.setattr(pl, "load", load)
    result = cli("run", "x")
    assert (result.exit_code, result.stdout) == (70, "")
    assert "Traceback" in result.stderr
    assert f"error: {type(fault).__name__}: " in result.stderr
    assert "please report it" in result.stderr
    assert "\x1b" not in result.stderr
    found = cli("run", "x", "--json")
    assert (found.exit_code, json.loads(found.stdout)["error"]["code"]) == (70, "unexpected")


UNWRITABLE = ["", ".", "there", "file/page.html", "/proc/version/x", "n" * 300, f"new/deep/{'n' * 300}"]


@pytest.mark.parametrize("path", UNWRITABLE, ids=lambda path: repr(path)[:12])
@pytest.mark.parametrize(
    "words",
    [["demo", "--html"], ["run", "x", "--save"], ["norms", "x", "--csv"], ["norms", "x", "--figure"],
     ["patch", "x", "y", "--csv"], ["patch", "x", "y", "--figure"],
     ["compare", "a", "b", "--html"]],
    ids=" ".join,
)  # fmt: skip
def test_places_to_write_are_looked_at_before_the_work(
    words: list[str], path: str, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for work in ("load", "compare"):
        monkeypatch.setattr(pl, work, None)
    result = cli(*words, path)
    assert result.exit_code == 4
    assert "[path-not-writable]" in result.stderr
    assert f"{words[-1]} " in result.stderr
    assert ("file is not a folder" in result.stderr) == (path == "file/page.html")
    assert sorted(tmp_path.rglob("*")) == before


def test_two_files_do_not_take_one_place(cli: Any, tmp_path: Path) -> None:
    result = cli("norms", SENTENCE, "--csv", str(tmp_path / "a.svg"), "--figure", str(tmp_path / "a.svg"))
    assert (result.exit_code, "--figure is written there" in result.stderr) == (4, True)


def test_a_run_that_fails_makes_no_folder(cli: Any, tmp_path: Path) -> None:
    assert cli("run", "x", "--save", str(tmp_path / "new" / "a.safetensors"), "-m", "no/such").exit_code == 3
    assert not list(tmp_path.iterdir())


def test_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as end:
        main(["run", "-"])
    assert end.value.code == 4
    assert "[stdin-closed]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pellucid ", list(VERBS)),
        ("pellucid run --na", ["--names"]),
        ("pellucid run x -m gpt2-", ["gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"]),
    ],
)
def test_completion(
    words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_PELLUCID_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0
    assert capsys.readouterr().out.split() == offered
