"""Remedies of the course's checks, followed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from following import Case, follow, params
from pellucid import exercises
from pellucid.exercises.learner_file import Answer, answers, exercise_named

Here = SimpleNamespace


def sample_basic(logits: torch.Tensor) -> int:
    return int(torch.distributions.Categorical(logits=logits).sample())


def mine(logits: torch.Tensor) -> int:
    return sample_basic(logits)


def checked(path: Path) -> list[Answer]:
    return list(answers(path, ["basic"], None, lambda key: None))


def _file(here: Here, text: str, name: str = "answers.py") -> Any:
    (here.folder / name).write_text(text, encoding="utf-8")
    return checked(here.folder / name)


NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}

REMEDIES: dict[str, list[Case]] = {
    "exercise-misuse": [
        Case(lambda h: exercises.check_sampling(), "Pass one or more of your functions",
             lambda h: exercises.check_sampling(sample_basic)),
        Case(lambda h: exercises.check_sampling(mine), "pass exercise=",
             lambda h: exercises.check_sampling(mine, exercise="basic")),
        Case(lambda h: exercises.check_sampling(mine, sample_basic, exercise="basic"), "a single function",
             lambda h: exercises.check_sampling(mine, exercise="basic")),
        Case(lambda h: exercises.check_sampling("sample_basic"), "Pass the function",
             lambda h: exercises.check_sampling(sample_basic)),
        Case(lambda h: exercises.check_sample_basic(sample_basic, hint=4), "Give 1 for the place",
             lambda h: exercises.check_sample_basic(sample_basic, hint=1)),
        Case(lambda h: exercises.check_block("Block"), "Pass the class itself",
             lambda h: exercises.check_block(torch.nn.Identity)),
    ],
    "unknown-exercise": [
        Case(lambda h: exercise_named("bsaic"), "basic",
             lambda h: exercise_named("basic"))
    ],
    "file-exists": [
        Case(lambda h: exercises.starter(h.starter), "another path", lambda h: exercises.starter(h.folder / "other.py"))
    ],
    "path-not-found": [
        Case(lambda h: checked(h.folder / "none.py"), "exercises.starter(path)",
             lambda h: (exercises.starter(h.folder / "none.py"), checked(h.folder / "none.py")))
    ],
    "file-not-python": [
        Case(lambda h: _file(h, "def f(:"), "Correct the line", lambda h: _file(h, "def f(): ...")),
        Case(lambda h: _file(h, "x", "a.ipynb"), "as Jupyter saves it",
             lambda h: _file(h, json.dumps(NOTEBOOK), "a.ipynb")),
        Case(lambda h: _file(h, "x", "a.ipynb"), "a Python file", lambda h: _file(h, "x = 1", "a.py")),
    ],
    "file-raises": [
        Case(lambda h: _file(h, "print(1 / 0)"), "below `if __name__ == '__main__':`",
             lambda h: _file(h, "if __name__ == '__main__':\n    print(1 / 0)"))
    ],
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path) -> Here:
    exercises.starter(tmp_path / "starter.py")
    return Here(folder=tmp_path, starter=tmp_path / "starter.py")


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)
