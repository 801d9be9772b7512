"""A learner's whole file: what is right, wrong and open in it; the starter; and the command that checks it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exercise_notebook import EXAMPLES
from exercise_solution import classes
from typer.testing import CliRunner

from pellucid import InputError, NotFoundError
from pellucid.cli import app
from pellucid.exercises import learner_file, starter
from pellucid.exercises.learner_file import EXERCISES, Answer, answer_to, answers, checked_apart

CACHE = "\n\ndef make_cache(model):\n    return Cache()\n"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file with the complete solution."""
    path = tmp_path / "my_gpt2.py"
    path.write_text(classes() + CACHE, encoding="utf-8")
    return path


def states(path: Path, **options: Any) -> dict[str, str]:
    return {answer.exercise: answer.state for answer in here(path, **options)}


def here(path: Path, exercise: str | None = None) -> list[Answer]:
    """The answers of a file that is run in this process."""
    return list(answers(path, [*EXERCISES] if exercise is None else [exercise], None, lambda key: None))


def check(*args: str) -> Any:
    return CliRunner().invoke(app, ["check", *args], prog_name="pellucid", catch_exceptions=False)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command asks of a process of its own is done in this one, which spares the start of Python."""

    def answered(path: Path, key: str | None, hint: int | None, _: float) -> list[Answer]:
        return list(answers(path, [*EXERCISES] if key is None else [key], hint, lambda key: None))

    monkeypatch.setattr("pellucid.cli.work.check.checked_apart", answered)


def test_a_complete_file_is_right(mine: Path) -> None:
    assert states(mine) == dict.fromkeys(EXERCISES, "right")


def test_what_is_missing_or_blank_is_open_and_what_is_wrong_is_wrong(mine: Path) -> None:
    text = mine.read_text(encoding="utf-8")
    text = text.replace("return int(logits.argmax())", "return int(logits.argmin())")
    text = text.replace("    return logits / temperature", "    assert temperature > 0\n    pass")
    mine.write_text(text.replace("def sample_top_k", "def sample_top_kk"), encoding="utf-8")
    found = states(mine)
    assert {key for key, state in found.items() if state == "open"} == {"temperature", "top_k"}
    assert found["greedy"] == "wrong"
    assert states(mine, exercise="greedy") == {"greedy": "wrong"}


def test_the_starter_is_the_example_and_everything_in_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "my_gpt2.py"
    assert starter(path) == path.read_text(encoding="utf-8") == starter()
    assert starter() == (EXAMPLES / "build_gpt2_starter.py").read_text(encoding="utf-8"), "starter(path) writes it"
    assert states(path) == dict.fromkeys(EXERCISES, "open")
    with pytest.raises(InputError, match="may hold answers"):
        starter(path)


def test_the_starter_filled_in_is_right(tmp_path: Path) -> None:
    path = tmp_path / "my_gpt2.py"
    path.write_text(starter() + "\n\n" + classes() + CACHE, encoding="utf-8")
    assert states(path) == dict.fromkeys(EXERCISES, "right"), "what is written later counts"


BAD = {
    "syntax": ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax: def f(:", "file-not-python"),
    "indentation": ("def f():\nreturn 1\n", "line 2: IndentationError", "file-not-python"),
    "null bytes": ("x = 1\0", "null bytes", "file-not-python"),
    "import": ("import no_such_module_here\n", "No module named 'no_such_module_here'", "file-raises"),
    "raises": ("def f():\n    1 / 0\n\nf()\n", "ZeroDivisionError: division by zero (f, line 2)", "file-raises"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3", "file-raises"),
    "asks": ("name = input('who?')\n", "EOFError: EOF when reading a line (<module>, line 1)", "file-raises"),
    "ends the process": ("import os, sys\nos._exit(5 + len(sys.stdin.read()))\n", "ended with code 5", "file-raises"),
}


@pytest.fixture
def _typed(tmp_path: Path) -> Iterator[None]:
    """Something waits to be read by this process and by those that it starts, which should not read it."""
    (tmp_path / "keyboard").write_text("yes", encoding="utf-8")
    before = os.dup(0)
    with (tmp_path / "keyboard").open() as keyboard:
        os.dup2(keyboard.fileno(), 0)
    yield
    os.dup2(before, 0)
    os.close(before)


@pytest.mark.usefixtures("_typed")
@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_run_is_an_error_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, words, code = BAD[name]
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    path = tmp_path / "my_gpt2.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        (checked_apart if name == "ends the process" else here)(path)
    assert words in caught.value.message
    assert caught.value.code == code


def test_a_file_is_compiled_as_python_compiles_it(tmp_path: Path) -> None:
    """Not under the `__future__` of whoever runs it, which would make its annotations texts."""
    path = tmp_path / "my_gpt2.py"
    path.write_text("def f(x: int) -> None: ...\n\nassert f.__annotations__['x'] is int\n", encoding="utf-8")
    assert {answer.state for answer in here(path)} == {"open"}


def test_missing_files_are_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        checked_apart(tmp_path / "mine.py")
    with pytest.raises(NotFoundError):
        checked_apart(tmp_path)


def notebook(path: Path, *cells: str | list[str]) -> Path:
    """A notebook of these code cells, with one of text between."""
    code = [{"cell_type": "code", "source": source, "outputs": [], "metadata": {}} for source in cells]
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "x ="}, *code], "nbformat": 4}))
    return path


def test_a_notebook_is_its_code_cells(tmp_path: Path) -> None:
    """IPython's commands do nothing, cells of other languages are left out, and `display` is there."""
    path = notebook(
        tmp_path / "mine.ipynb",
        [
            "%matplotlib inline\n",
            "import torch\n",
            "!pip install nothing\n",
            "torch.argmax?\n",
            "files = !ls\n",
            "display(torch)",
        ],
        "%%bash\nls | wc",
        "%%time\ndef greedy_search(logits):\n    %time\n    return int(logits.argmax())",
        "def sample_basic(logits):\n    return int(logits.argmin())",
    )
    found = {one.exercise: one for one in here(path) if one.state != "open"}
    assert {key: one.state for key, one in found.items()} == {"greedy": "right", "basic": "wrong"}


def test_a_wrong_line_of_a_notebook_is_told_by_its_cell(tmp_path: Path) -> None:
    for above in ("x = 1\ny = 2", "x = 1\n# %%\ny = 2", "x = 'a\u2028b'\n\f\ny = 2"):
        with pytest.raises(InputError, match="code cell 2, line 2: SyntaxError"):
            here(notebook(tmp_path / "mine.ipynb", above, "def f():\n    return (1\n"))


def test_a_file_of_a_package_imports_its_neighbours(tmp_path: Path) -> None:
    folder = tmp_path / "course_of_mine"
    folder.mkdir()
    for name, text in {
        "__init__.py": "", "best.py": "def best(x):\n    return int(x.argmax())\n",
        "mine.py": "from .best import best\nfrom course_of_mine.best import best as greedy_search\n"
                   "GPT2, GPT2Block = 3, None\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    found = {one.name: one for one in here(folder / "mine.py") if one.state != "open"}
    assert {name: one.state for name, one in found.items()} == {"greedy_search": "right", "GPT2": "wrong"}
    assert "int given, expected the class GPT2" in str(found["GPT2"].result)


def test_the_starter_notebook_is_open(tmp_path: Path) -> None:
    assert states(EXAMPLES / "build_gpt2_starter.ipynb") == dict.fromkeys(EXERCISES, "open")
    nbformat = pytest.importorskip("nbformat")
    path = tmp_path / "my_gpt2.ipynb"
    assert starter(path) == path.read_text(encoding="utf-8")
    made, kept = (nbformat.read(one, 4) for one in (path, EXAMPLES / "build_gpt2_starter.ipynb"))
    nbformat.validate(made)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [(c.cell_type, c.source) for c in kept.cells]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": [1]}', "x = 1"])
def test_what_is_no_notebook(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.ipynb"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="not a notebook") as caught:
        checked_apart(path)
    assert caught.value.code == "file-not-python"


def test_a_notebook_s_lines_are_shown(tmp_path: Path) -> None:
    path = notebook(tmp_path / "mine.ipynb", "def greedy_search(logits):\n    return logits.no_such_thing()")
    (answer,) = here(path, "greedy")
    assert answer.result is not None
    assert answer.result.line == "3: return logits.no_such_thing()"


ENDLESS = """
import os, threading, time
def greedy_search(logits):
    return int(logits.argmax())

def apply_temperature(logits, temperature):
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass

def apply_freq_penalty(input_ids, logits, freq_penalty):
    os._exit(3)

def sample_basic(logits):
    return int(logits.argmin())

threading.Thread(target=time.sleep, args=(1000,)).start()
"""


@pytest.mark.long
def test_what_does_not_end_is_wrong_and_the_others_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(ENDLESS, encoding="utf-8")
    found = {one.name: one for one in checked_apart(path, time_limit=1) if one.state != "open"}
    assert {name: one.state for name, one in found.items()} == {
        "greedy_search": "right", "apply_temperature": "wrong", "apply_freq_penalty": "wrong", "sample_basic": "wrong",
    }  # fmt: skip
    assert "it ended the process, with code 3" in str(found["apply_freq_penalty"].result)
    result = found["apply_temperature"].result
    assert result is not None
    assert re.fullmatch(r"it did not end within 1 s \(in apply_temperature, line [0-9]+\)", str(result.mistake)), (
        result.mistake
    )


@pytest.mark.remedy("file-endless")
def test_a_file_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import time\nwhile True:\n    time.sleep(0.01)\n", encoding="utf-8")
    result = check(str(path), "--time-limit", "1", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "file-endless"
    assert re.search(r"did not end within 1 s \(in <module>, line [23]\)", error["message"])
    assert "below `if __name__ == '__main__':`" in error["remedy"]
    path.write_text("if __name__ == '__main__':\n    while True:\n        pass\n", encoding="utf-8")
    assert states(path, exercise="basic") == {"basic": "open"}


GREEDY = "def greedy_search(logits):\n    print('loud')\n    return int(logits.{}())\nprint('louder')\n"


def test_the_command_says_what_is_right_wrong_and_open(tmp_path: Path) -> None:
    path = tmp_path / "my_gpt2.py"
    path.write_text(GREEDY.format("argmin"), encoding="utf-8")
    result = check(str(path), "--hint", "1")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path}: 0 right, 1 wrong, 11 open"
    assert "✗ greedy             greedy_search" in lines
    assert "first shows in: the chosen id" in result.stdout
    assert "least likely" not in result.stdout, "the process that checks it is told of the hint"
    assert "· beam_search        beam_search" in lines
    assert "loud" not in result.stdout


@pytest.mark.usefixtures("in_this_process")
def test_the_command_s_mistakes_json_and_exit_codes(tmp_path: Path) -> None:
    path = tmp_path / "my_gpt2.py"
    path.write_text(GREEDY.format("argmin"), encoding="utf-8")
    wrong = check(str(path), "--exercise", "greedy_search")
    assert wrong.exit_code == 1
    assert "    mistake: it takes the least likely token" in wrong.stdout.splitlines()
    path.write_text(GREEDY.format("argmax"), encoding="utf-8")
    right = check(str(path), "--exercise", "greedy", "--json")
    assert right.exit_code == 0
    (answer,) = json.loads(right.stdout)["answers"]
    assert (answer["exercise"], answer["name"], answer["state"]) == ("greedy", "greedy_search", "right")
    assert "ties go to the smallest id" in answer["result"]["proved"]
    assert check(str(tmp_path / "none.py")).exit_code == 3
    path.write_text("def f(:", encoding="utf-8")
    broken = check(str(path), "--json")
    assert broken.exit_code == 4
    assert json.loads(broken.stdout)["error"]["code"] == "file-not-python"
    assert check(str(path), "--exercise", "gredy").exit_code == 2
    assert check(str(path), "--hint", "4").exit_code == 2


def test_a_file_may_import_what_lies_beside_it_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Even where the answer imports it once it is called, and where the file has the name of a module."""
    (tmp_path / "beside_it.py").write_text("best = lambda logits: int(logits.argmax())\n", encoding="utf-8")
    path = tmp_path / "json.py"
    path.write_text(
        "def greedy_search(logits):\n    from beside_it import best\n    return best(logits)\n", encoding="utf-8"
    )
    before = list(sys.path), sys.modules["json"]
    try:
        (answer,) = here(path, "greedy")
    finally:
        sys.modules.pop("beside_it", None)
    assert answer.state == "right", answer.result
    assert (list(sys.path), sys.modules["json"]) == before
    path.write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(InputError):
        here(path)
    assert (list(sys.path), sys.modules["json"]) == before


def test_what_a_file_writes_among_the_answers_is_not_read_and_not_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    path, out, own = tmp_path / "mine.py", tmp_path / "answers", pickle.dumps(Runs())
    text = GREEDY.format("argmin")
    path.write_text(text, encoding="utf-8")
    answer_to(str(path), ["greedy"], None, 60, str(out), str(tmp_path / "hung"))
    said, lines = learner_file._read(out, ["greedy"]), out.read_bytes()
    assert said == ["greedy", *here(path, "greedy")]
    wrong = [own, b"\xff", b"[" * 100_000, b'"greedy"', b'{"begun": "none"}', b'{"answer": ["greedy", "a", {}]}']
    for bad in wrong:
        for written in (lines + bad, bad + lines):
            out.write_bytes(written)
            assert learner_file._read(out, ["greedy"]) == said
    path.write_text(f"import pathlib\npathlib.Path({str(out)!r}).write_bytes({own!r})\n{text}", encoding="utf-8")
    answer_to(str(path), ["greedy"], None, 60, str(out), str(tmp_path / "hung"))
    assert out.read_bytes().startswith(own)
    assert learner_file._read(out, ["greedy"]) == said
    assert not (tmp_path / "ran").exists()
