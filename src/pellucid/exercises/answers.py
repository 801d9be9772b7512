"""Running somebody else's code: whatever it raises becomes a sentence, and nothing of it leaks.

A check is written as if every answer were right and says `WrongAnswerError` where one is not; `Findings` turns that
into a result, together with all that was shown to hold until then.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pellucid.errors import InputError, PellucidError
from pellucid.exercises.result import CheckResult

_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class WrongAnswerError(Exception):
    """An answer is wrong: says how, at which step, and in which tensor it first shows."""

    def __init__(self, mistake: str, step: str, tensor: str | None = None) -> None:
        super().__init__(mistake)
        self.mistake = mistake
        self.step = step
        self.tensor = tensor


@dataclass
class Findings:
    """What a check has found so far.

    Attributes:
        proved: What holds.
        notes: What the reader should know.
    """

    proved: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)


def checked(name: str, body: Callable[[Findings], None]) -> CheckResult:
    """Run a check: passed if it ends, not passed if it says that the answer is wrong."""
    found = Findings()
    mode = torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            body(found)
    except WrongAnswerError as wrong:
        return CheckResult(
            name, False, tuple(found.proved), wrong.mistake, wrong.step, wrong.tensor, tuple(found.notes)
        )
    except PellucidError:
        raise
    except (Exception, SystemExit) as error:  # whatever a learner's objects do outside of the calls that expect it
        mistake = f"your code raised {last_line(error)}"
        return CheckResult(name, False, tuple(found.proved), mistake, "using your code", notes=tuple(found.notes))
    finally:
        torch.set_grad_enabled(mode)
    return CheckResult(name, True, tuple(found.proved), notes=tuple(found.notes))


@contextmanager
def theirs(step: str, doing: str = "") -> Generator[None]:
    """Run the learner's code: an exception becomes a wrong answer with the last line of the traceback."""
    try:
        yield
    except WrongAnswerError:
        raise
    except (Exception, SystemExit) as error:
        raise WrongAnswerError(f"your code raised {last_line(error)}{f', {doing}' if doing else ''}", step) from error


def last_line(error: BaseException) -> str:
    """The traceback's last line, and the last line of code that is not torch's."""
    said = traceback.format_exception_only(error)[-1].strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]
    return f"{said} ({frames[-1].name}, line {frames[-1].lineno})" if frames else said


def misuse(message: str, remedy: str) -> InputError:
    """The error for a check that was called with something that cannot be an answer."""
    return InputError(message, code="exercise-misuse", remedy=remedy)
