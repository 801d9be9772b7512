"""`pellucid` as a process: how it begins and ends, and what an interruption does at any moment of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import pellucid as pl
from pellucid.cli import VERBS
from pellucid.run import interrupts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")

ROOT = Path(__file__).parents[2]


def started(code: str, *options: str) -> subprocess.Popen[str]:
    """Another Python, with its three streams as pipes, that can be interrupted whoever runs the tests."""
    pipe, prelude = subprocess.PIPE, "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, *options, "-c", prelude + code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def typed(words: str) -> str:
    """The code that is `python -m pellucid` with these words."""
    return f"import runpy, sys\nsys.argv[1:] = {words.split()!r}\nrunpy.run_module('pellucid', run_name='__main__')\n"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code and what it wrote."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


WHEN = {
    "while the command line is imported": ("rich.console", "--help"),
    "while torch is imported": ("torch.nn", "doctor"),
    "while the verb's work is imported": ("pellucid.cli.work.run", "run x"),
}
"""When -> a module that is then imported, and words that lead there."""


@pytest.mark.parametrize("when", WHEN)
def test_an_interruption_of_the_start_is_130_without_a_word(when: str) -> None:
    """An import hook sends it, and goes on as if an exception had been swallowed, as torch's initialisation does."""
    module, words = WHEN[when]
    code = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                print('swallowed')
sys.meta_path.insert(0, Interrupt())
"""
    assert ended(started(code + typed(words))) == (130, "", "")


def test_an_interruption_of_the_work_is_130_even_where_it_is_swallowed() -> None:
    code = """
import os, signal, sys
import pellucid.__main__, pellucid as pl
def load(*args, **options):
    try: os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt: pass
    raise pl.WeightsError('something else', code='something-else', remedy='Look.')
pl.load = load
sys.argv[1:] = ['run', 'x']
pellucid.__main__.process()
"""
    assert ended(started(code)) == (130, "", "")


def test_an_interruption_keeps_its_words() -> None:
    before = signal.signal(signal.SIGINT, interrupts.leave)
    try:
        with pytest.raises(KeyboardInterrupt, match="half of it"), interrupts.raised(), interrupts.told("half of it"):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interruption_while_it_waits_for_its_text() -> None:
    process = started(typed("run -"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)  # it is starting, or waits for the text
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", "")


def test_the_interpreter_is_not_taken_down_module_by_module() -> None:
    """Nothing of Python's own ending runs, where an interruption would kill; what was written is there."""
    code = """
import atexit, sys
atexit.register(print, 'taken down')
sys.argv[1:] = ['--version']
import pellucid.__main__
pellucid.__main__.process()
"""
    assert ended(started(code)) == (0, f"pellucid {pl.__version__}\n", "")


def test_an_ignored_interruption_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell's background jobs have it, and programs with a handler of their own."""
    before = signal.getsignal(signal.SIGINT)
    try:
        for handler in (signal.SIG_IGN, lambda *_: None):
            signal.signal(signal.SIGINT, handler)
            interrupts.end_at_once()
            with interrupts.raised():
                os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.long
def test_without_docstrings() -> None:
    code, out, err = ended(started(typed("run --help"), "-OO"))
    assert (code, VERBS["run"] in out, "Shows the tokens" in out, err) == (0, True, True, "")


SURROUNDINGS = {
    "standard output that the shell closed": ("pellucid generate x >&-", 4, r"\[stdout-not-writable\]"),
    "a full disk": ("pellucid --help >/dev/full", 4, r"\[stdout-not-writable\]"),
    "a full disk for one word": ("pellucid --version >/dev/full", 4, r"\[stdout-not-writable\]"),
    "no place for messages": ("pellucid run x --nothing 2>/dev/full", 4, ""),
    "a working directory that is gone": ("rmdir ../gone && pellucid doctor", 3, "working directory.*path-not-found"),
    "a screen of no columns": ("COLUMNS=0 pellucid --help 1>&2", 0, "doctor"),
}
"""A command -> its exit code, and what it writes to stderr."""


@pytest.mark.parametrize("what", SURROUNDINGS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_surroundings(what: str, tmp_path: Path) -> None:
    words, code, said = SURROUNDINGS[what]
    (tmp_path / "gone").mkdir()
    command = words.replace("pellucid", f'"{sys.executable}" -m pellucid')
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path / "gone"
    )
    assert done.returncode == code
    assert re.search(said, done.stderr, re.DOTALL)
    assert "Traceback" not in done.stderr


def test_the_command_is_the_module() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, function = scripts["pellucid"].split(":")
    assert getattr(import_module(module), function) is import_module("pellucid.__main__").process


def test_figures_do_not_need_the_backend_that_a_notebook_hands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    command, seen = import_module("pellucid.__main__"), []
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(command, "main", lambda: seen.append(os.environ["MPLBACKEND"]))
    monkeypatch.setattr(os, "_exit", seen.append)
    command.process()
    assert seen == ["agg", 0]
