"""Running somebody else's code: whatever it raises becomes a sentence, and nothing of it leaks.

A check is written as if every answer were right and says `WrongAnswerError` where one is not; `Findings` turns that
into a result, together with all that was shown to hold until then.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from pellucid.errors import InputError, PellucidError, printable, shown
from pellucid.exercises.result import CheckResult

_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<frozen ")
_PRINTED = 5
"""Lines of what a learner's code prints that a note repeats."""

NUMBERS = "the numbers are wrong; names, types and shapes are not"
RETURNS = "the type or the shape of what is returned is wrong"
NAMES = "a name or a shape is wrong"
IN_PLACE = "something is changed in place"


class WrongAnswerError(Exception):
    """An answer is wrong.

    Args:
        mistake: What is wrong.
        step: At which step.
        tensor: In which tensor it first shows.
        kind: What sort of mistake it is, without giving it away.
        line: The line of the learner's code that computes this tensor, or that raised.
    """

    def __init__(
        self, mistake: str, step: str, tensor: str | None = None, kind: str = NUMBERS, line: str | None = None
    ) -> None:
        super().__init__(mistake)
        self.mistake = mistake
        self.step = step
        self.tensor = tensor
        self.kind = kind
        self.line = line


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


def checked(name: str, body: Callable[[Findings], None], hint: int | None = None) -> CheckResult:
    """Run a check: passed if it ends, not passed if it says that the answer is wrong.

    Args:
        name: What is checked.
        body: The check.
        hint: How much a result that did not pass gives away, as for `CheckResult.hinted`.

    Raises:
        InputError: `hint` is none of 1, 2, 3 and None.
    """
    if hint not in (None, 1, 2, 3):
        raise misuse(
            f"{name}: hint={shown(hint)}, expected 1, 2, 3 or None.",
            "Give 1 for the place, 2 for the kind of mistake as well, 3 or None for the whole sentence.",
        )
    found = Findings()
    wrong = None
    mode = torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]), _listening(found):
            torch.manual_seed(0)
            body(found)
    except WrongAnswerError as error:
        wrong = error
    except PellucidError:
        raise
    except (Exception, SystemExit) as error:  # whatever a learner's objects do outside of the calls that expect it
        wrong = _raising(error, "using your code", "")
    finally:
        torch.set_grad_enabled(mode)
    if wrong is None:
        return CheckResult(name, True, tuple(found.proved), notes=tuple(found.notes))
    return CheckResult(
        name, False, tuple(found.proved), wrong.mistake, wrong.step, wrong.tensor, tuple(found.notes),
        kind=wrong.kind, line=wrong.line,
    ).hinted(hint)  # fmt: skip


@contextmanager
def _listening(found: Findings) -> Generator[None]:
    """Keep back what the learner's code prints, which runs many times, and note its first lines once."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        warned = [line for line in err.getvalue().split("\n") if line and "\r" not in line]  # no progress bars
        lines = [*out.getvalue().splitlines(), *warned]
        distinct = list(dict.fromkeys(lines))[:_PRINTED]
        if lines:
            more = f", … ({len(lines)} lines in all)" if len(lines) > len(distinct) else ""
            found.note(f"your code printed: {', '.join(shown(line) for line in distinct)}{more}")


@contextmanager
def theirs(step: str, doing: str = "") -> Generator[None]:
    """Run the learner's code: an exception becomes a wrong answer with the last line of the traceback."""
    try:
        yield
    except WrongAnswerError:
        raise
    except (Exception, SystemExit) as error:
        raise _raising(error, step, doing) from error


def _raising(error: BaseException, step: str, doing: str) -> WrongAnswerError:
    words = f"your code raised {last_line(error)}{f', {doing}' if doing else ''}"
    frames = _their_frames(error)
    line = described(frames[-1].filename, frames[-1].lineno or 0) if frames else None
    return WrongAnswerError(words, step, kind=f"your code raises {type(error).__name__}", line=line)


def last_line(error: BaseException) -> str:
    """The traceback's last line, and the last line of code that is not torch's."""
    said = printable(traceback.format_exception_only(error)[-1].strip())
    frames = _their_frames(error)
    return f"{said} ({frames[-1].name}, line {frames[-1].lineno})" if frames else said


def _their_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THEIRS)]


def current_line() -> tuple[str, int] | None:
    """File and line of the learner's code that is running now; None if it cannot be told."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THEIRS):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def described(filename: str, number: int) -> str:
    """A line of code: its number, and its text where the source is at hand."""
    text = linecache.getline(filename, number).strip()
    return f"{number}: {printable(text, 200)}" if text else f"{number}"


def misuse(message: str, remedy: str) -> InputError:
    """The error for a check that was called with something that cannot be an answer."""
    return InputError(message, code="exercise-misuse", remedy=remedy)
