"""What a check found, and running somebody else's code: whatever it raises becomes a sentence, and nothing of it leaks.

A check is written as if every answer were right: every function that it calls raises `WrongAnswerError` where one is
not. `checked` makes that a frozen `CheckResult`, with the `Findings` that were shown to hold until then.
"""

from __future__ import annotations

import bdb
import contextlib
import html
import io
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from pellucid.errors import InputError, PellucidError, printable, shown


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The outcome of one check; true when it passed.

    Attributes:
        check: What was checked, such as "attention".
        passed: Whether the answer is right.
        proved: What was shown to hold, one sentence each, even if a later step failed.
        mistake: What is wrong, in words; None if nothing is.
        step: The step at which it is wrong.
        tensor: The tensor in which it first shows, with its axes.
        notes: What the reader should know: deviations of the course, what could not be checked.
        kind: What sort of mistake it is, without giving it away.
        line: The line of your code that computes this tensor, or that raised, with its number, if it can be told.
        others: What else is wrong, if several answers were checked together.

    Example:
        >>> from pellucid.exercises import CheckResult
        >>> CheckResult("greedy", True, proved=("ties go to the smallest id",))
        ✓ greedy
            proved: ties go to the smallest id
    """

    check: str
    passed: bool
    proved: tuple[str, ...] = ()
    mistake: str | None = None
    step: str | None = None
    tensor: str | None = None
    notes: tuple[str, ...] = ()
    kind: str | None = None
    line: str | None = None
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.passed

    def hinted(self, level: int | None) -> CheckResult:
        """The same result, giving away less of what is wrong; one that passed stays as it is.

        Args:
            level: 1 for the place alone (step, tensor, line), 2 for the kind of mistake as well, 3 or None for all.

        Example:
            >>> from pellucid.exercises import check_greedy
            >>> check_greedy(lambda logits: int(logits.argmin())).hinted(1)
            ✗ greedy
                step: greedy
                first shows in: the chosen id
        """
        if self.passed or level in (None, 3):
            return self
        return replace(self, mistake=None, kind=self.kind if level == 2 else None, notes=(), others=())

    def rows(self) -> list[tuple[str, str]]:
        """What is wrong and where, each a label and a text; nothing where it passed."""
        rows = [
            ("mistake", self.mistake), ("kind", None if self.mistake else self.kind),
            *(("mistake", text) for text in self.others),
            ("step", self.step), ("first shows in", self.tensor), ("line", self.line),
        ]  # fmt: skip
        return [(label, text) for label, text in rows if text]

    def _rows(self) -> list[tuple[str, str]]:
        return [*self.rows(), *(("proved", text) for text in self.proved), *(("note", text) for text in self.notes)]

    def __repr__(self) -> str:
        head = f"{'✓' if self.passed else '✗'} {self.check}"
        return "\n".join([head, *(f"    {label}: {text}" for label, text in self._rows())])

    def _repr_html_(self) -> str:
        mark = f"<b>{'✓' if self.passed else '✗'} {html.escape(self.check)}</b>"
        rows = "".join(f"<li>{label}: {html.escape(text)}</li>" for label, text in self._rows())
        return f"<div>{mark}<ul>{rows}</ul></div>"


def together(check: str, results: Iterable[CheckResult]) -> CheckResult:
    """Several results as one, which passed if all did; the first mistake is its mistake, with its step and line."""
    every = list(results)
    wrong = [result for result in every if not result]
    if not wrong:
        first = CheckResult(check, passed=True)
    else:
        first = replace(wrong[0], check=check, mistake=_of(wrong[0], wrong[0].mistake))
    return replace(
        first,
        proved=tuple(f"{result.check}: {text}" for result in every for text in result.proved),
        notes=tuple(f"{result.check}: {text}" for result in every for text in result.notes),
        step=_of(wrong[0], first.step) if wrong else None,
        others=tuple(f"{result.check}: {result.mistake or result.step}" for result in wrong[1:]),
    )


def _of(result: CheckResult, text: str | None) -> str | None:
    return text and f"{result.check}: {text}"


_NOT_THEIRS = (
    str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib")),
    "<frozen ",
)  # fmt: skip
"""Where files begin whose lines a learner has not written."""
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
    """What a check has found so far."""

    proved: list[str] = field(default_factory=list)  # what holds
    notes: list[str] = field(default_factory=list)  # what the reader should know

    def note(self, text: str) -> None:
        """Note something once."""
        if text not in self.notes:
            self.notes.append(text)


def checked(name: str, body: Callable[[Findings], None], hint: int | None = None) -> CheckResult:
    """Run a check: passed if it ends, not passed if it says that the answer is wrong; see `CheckResult.hinted`."""
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
    """Keep back what the learner's code prints, which runs many times, and note its first lines once; it reads nothing.

    A question that nobody sees, such as a debugger's, would be waited for.
    """
    out, err, keyboard = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        sys.stdin = keyboard
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
    if isinstance(error, (EOFError, bdb.BdbQuit)):
        words += ": a check has no keyboard, so it runs without input() and breakpoint()"
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
    """A line of code: its number, and its text if the source is at hand."""
    text = linecache.getline(filename, number).strip()
    return f"{number}: {printable(text, 200)}" if text else f"{number}"


Known = TypeVar("Known")


def explained(
    known: Mapping[str, Known], gives_it: Callable[[Known], bool], unknown: str, step: str, tensor: str
) -> WrongAnswerError:
    """The wrong answer in the words of the first known mistake that gives what was seen, else in others."""
    words = next((words for words, one in known.items() if gives_it(one)), unknown)
    return WrongAnswerError(words, step, tensor)


def odd(tensor: Tensor) -> str:
    """What a tensor is that holds no real numbers, one beside the other on the CPU; empty if it does."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_complex()
    return "" if plain else f"a tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}"


def misuse(message: str, remedy: str) -> InputError:
    """The error for a check that was called with something that cannot be an answer."""
    return InputError(message, code="exercise-misuse", remedy=remedy)


def logits_of(output: Any) -> Any:
    """The logits of what a GPT2 returns: itself, its `logits`, or of several the first with three axes."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    several = found if isinstance(found, (tuple, list)) else ()
    return next((one for one in several if isinstance(one, Tensor) and one.dim() == 3), found)


def other_than_logits(output: Any) -> str:
    """What to say of a GPT2 that returns something else than its logits alone."""
    return f"it returns {type(output).__name__}, whose logits are compared; the course's GPT2 returns the logits"
