"""The notebooks: made from their scripts, offline, and every cell runs."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from notebooks import SCRIPTS, notebook  # noqa: E402

QUICK = [path for path in SCRIPTS if path.stem != "build_gpt2_from_scratch"]
"""The other one runs in tests/exercises."""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_made_from_its_script(script: Path):
    made = script.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert made == notebook(script.read_text(encoding="utf-8")), "run python examples/notebooks.py"


@pytest.mark.parametrize("script", QUICK, ids=lambda path: path.stem)
def test_every_cell_runs_offline(script: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("the notebook opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    made = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(printed):
        for cell in made["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), script.name, "exec"), names)
    assert printed.getvalue()


def test_a_failing_cell_fails():
    with pytest.raises(AssertionError):
        exec(compile("assert False", "cell", "exec"), {})
