"""What holds for every verb: the registry, exit codes, streams, signals, completion."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import signal
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
def test_a_verb_is_a_module_and_a_function_of_its_name(verb: str, cli: Any) -> None:
    function = getattr(importlib.import_module(f"pellucid.cli.{verb}"), verb)
    assert inspect.getdoc(function).splitlines()[0] == VERBS[verb]
    assert "as_json" in inspect.signature(function).parameters
    helped = cli(verb, "-h")
    assert helped.exit_code == 0
    assert "--json" in helped.stdout


def test_version(cli: Any) -> None:
    result = cli("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"pellucid {pl.__version__}\n", "")


def test_help_and_version_import_neither_torch_nor_a_verb() -> None:
    code = (
        "import sys, pellucid.cli\n"
        "for word in ('--help', '--version'):\n"
        "    try: pellucid.cli.main([word])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = ['torch', 'numpy', 'transformers', *(f'pellucid.cli.{verb}' for verb in pellucid.cli.VERBS)]\n"
        "sys.stderr.write(' '.join(name for name in heavy if name in sys.modules))"
    )
    _, loaded = python(code).communicate(timeout=30)
    assert loaded == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["runn", "x"], "Did you mean 'run'?"),
        (["run"], "Missing argument"),
        (["run", "x", "--top", "-1"], "--top"),
        (["run", "x", "--nmaes", "y"], "--nmaes"),
        (["demo", "x"], "unexpected extra argument"),
        (["run", "x", "--pos", "last"], "--pos"),
    ],
)
def test_usage_is_2_and_on_stderr(cli: Any, args: list[str], said: str) -> None:
    result = cli(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


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
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)


def test_errors_are_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    monkeypatch.setattr(failures, "messages", lambda: console)
    failures.show_failure(pl.InputError("bad", code="c", remedy="r"), as_json=False)
    assert "\x1b[31mbad" in console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with screen.progress("waiting"):
        pass
    assert capsys.readouterr() == ("", "")
    console = terminal()
    monkeypatch.setattr(screen, "messages", lambda: console)
    with screen.progress("waiting", quiet=True):
        pass
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    with screen.progress("waiting"):
        pass
    assert "waiting …" in console.file.getvalue()  # type: ignore[attr-defined]


def test_our_warnings_come_without_a_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = pl.load

    def warn(name: str | None) -> pl.CkptedTransformer:
        warnings.simplefilter("always")
        warnings.warn("mind this", pl.PellucidWarning)
        warnings.warn("and this", UserWarning)
        return load(name)

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
        main(["demo"])
    ascii_only.flush()
    assert end.value.code == 0
    assert b"equal to the last bit" in ascii_only.buffer.getvalue()  # type: ignore[attr-defined]


def test_interrupted_is_130(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl, "load", load)
    result = cli("run", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_control_c_ends_quietly_with_130() -> None:
    code = (
        "import signal, sys, pellucid.cli, pellucid.cli.run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs start without it
        "sys.stderr.write('ready\\n')\n"
        "sys.stderr.flush()\n"
        "pellucid.cli.main(['run', '-'])"
    )
    process = python(code)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the text
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


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
