"""A learner's file in a process of its own, where whatever it prints, changes, ends or never ends stays."""

from __future__ import annotations

import faulthandler
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pellucid.errors import InputError
from pellucid.exercises.learner_file import EXERCISES, Answer, answers, blank_names, parsed, program_of
from pellucid.exercises.result import CheckResult

TIME_LIMIT = 300.0
"""Seconds that a file, and each exercise in it, may take unless told otherwise; right answers take a few."""


def checked_apart(
    path: Path, exercise: str | None = None, hint: int | None = None, time_limit: float = TIME_LIMIT
) -> list[Answer]:
    """`check_file` in a Python process of its own, which the file can do what it likes with.

    Args:
        path: As for `check_file`.
        exercise: As for `check_file`.
        hint: As for `check_file`.
        time_limit: Seconds for running the file, and again for each exercise. One that takes longer is wrong, and
            the others are checked without it.

    Raises:
        NotFoundError: There is no such file.
        InputError: It is no Python, it raises, it ends the process, or it does not end.
    """
    parsed(path, program_of(path))
    left = [*EXERCISES] if exercise is None else [exercise]
    found: list[Answer] = []
    while left:
        found += _apart(path, left, hint, time_limit)
        left = left[left.index(found[-1].exercise) + 1 :]
    return found


def _apart(path: Path, wanted: Sequence[str], hint: int | None, time_limit: float) -> list[Answer]:
    """The answers that one process gives; the last of them may be one that did not end."""
    with tempfile.TemporaryDirectory() as folder:
        out, hung = Path(folder) / "answers.jsonl", Path(folder) / "hung.txt"
        asked = {"path": str(path.resolve()), "wanted": list(wanted), "hint": hint, "time_limit": time_limit}
        code = f"from {__name__} import answer_to; answer_to({json.dumps(asked)!r}, {str(out)!r}, {str(hung)!r})"
        ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
        said = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
        stuck = hung.read_text(encoding="utf-8", errors="replace") if hung.exists() else ""
    last = said[-1] if said else {}
    if "error" in last:
        raise InputError(last["error"]["message"], code=last["error"]["code"], remedy=last["error"]["remedy"])
    if not stuck and (not last or "started" in last):
        raise InputError(
            f"{path}: the process that ran it ended with code {ended.returncode} and without a result.",
            code="file-raises",
            remedy="Run the file with python, and see what ends it.",
        )
    if stuck and not last:
        raise InputError(
            f"{path}: running it did not end within {time_limit:g} s{_where(path, stuck)}.",
            code="file-endless",
            remedy="Look for a loop that does not end there; if it only takes long, give --time-limit more seconds, or "
            "put what the answers do not need below `if __name__ == '__main__':`.",
        )
    rows = [row["answer"] for row in said if "answer" in row]
    given = [Answer(**(row | {"result": _result(row["result"])})) for row in rows]
    return [*given, _endless(path, last["started"], time_limit, stuck)] if stuck else given


def _endless(path: Path, exercise: str, time_limit: float, stuck: str) -> Answer:
    """The wrong answer of an exercise whose check was stopped."""
    name = next((one for one in EXERCISES[exercise] if one in blank_names(parsed(path, program_of(path)))), exercise)
    words = f"it did not end within {time_limit:g} s{_where(path, stuck)}"
    return Answer(exercise, name, "wrong", CheckResult(exercise, passed=False, mistake=words, kind="it does not end"))


def _where(path: Path, stuck: str) -> str:
    """The innermost line of the learner's in a traceback of `faulthandler`, as words."""
    lines = re.findall(r'File "(.*)", line (\d+) in (\S+)', stuck)
    found = next(((line, name) for file, line, name in lines if Path(file).name == path.name), None)
    return "" if found is None else f" (in {found[1]}, line {found[0]})"


def _result(row: Mapping[str, Any] | None) -> CheckResult | None:
    if row is None:
        return None
    several: dict[str, Any] = {key: tuple(row[key]) for key in ("proved", "notes", "others")}
    return CheckResult(**{**row, **several})


def answer_to(asked: str, out: str, hung: str) -> None:
    """What the other process does: check, and write each answer, or the error, as a line of JSON.

    A watchdog ends the process when the file, or one exercise, takes too long, and leaves a traceback in `hung`.
    """
    wish = json.loads(asked)
    with open(hung, "w", encoding="utf-8") as traceback, open(out, "w", encoding="utf-8", buffering=1) as lines:

        def say(kind: str, what: object) -> None:
            print(json.dumps({kind: what}), file=lines)

        def start(key: str) -> None:
            say("started", key)
            faulthandler.dump_traceback_later(wish["time_limit"], exit=True, file=traceback)

        try:
            faulthandler.dump_traceback_later(wish["time_limit"], exit=True, file=traceback)
            for answer in answers(Path(wish["path"]), wish["wanted"], wish["hint"], start):
                faulthandler.cancel_dump_traceback_later()
                say("answer", asdict(answer))
        except InputError as error:
            say("error", {"message": error.message, "code": error.code, "remedy": error.remedy})
        faulthandler.cancel_dump_traceback_later()
