"""What a check found: a frozen result that prints itself with a tick or a cross."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The outcome of one check; true when it passed.

    Attributes:
        check: What was checked, such as "attention".
        passed: Whether the answer is right.
        proved: What was shown to hold, one sentence each, also where a later step failed.
        mistake: What is wrong, in words; None where nothing is.
        step: The step at which it is wrong.
        tensor: The tensor in which it first shows, with its axes.
        notes: What the reader should know: deviations of the course, what could not be checked.

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

    def __bool__(self) -> bool:
        return self.passed

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("mistake", self.mistake), ("step", self.step), ("first shows in", self.tensor)]
        shown = [(label, text) for label, text in rows if text]
        return [*shown, *(("proved", text) for text in self.proved), *(("note", text) for text in self.notes)]

    def __repr__(self) -> str:
        head = f"{'✓' if self.passed else '✗'} {self.check}"
        return "\n".join([head, *(f"    {label}: {text}" for label, text in self._rows())])

    def _repr_html_(self) -> str:
        mark = f"<b>{'✓' if self.passed else '✗'} {html.escape(self.check)}</b>"
        rows = "".join(f"<li>{label}: {html.escape(text)}</li>" for label, text in self._rows())
        return f"<div>{mark}<ul>{rows}</ul></div>"


def together(check: str, results: Iterable[CheckResult]) -> CheckResult:
    """Several results as one, which passed if all did; the first mistake is its mistake."""
    every = list(results)
    wrong = [result for result in every if not result]
    first = wrong[0] if wrong else None
    others = [f"{result.check}: {result.mistake}" for result in wrong[1:]]
    return CheckResult(
        check,
        passed=not wrong,
        proved=tuple(f"{result.check}: {text}" for result in every for text in result.proved),
        mistake=f"{first.check}: {first.mistake}" if first is not None else None,
        step=first.step if first is not None else None,
        tensor=first.tensor if first is not None else None,
        notes=(*others, *(f"{result.check}: {text}" for result in every for text in result.notes)),
    )
