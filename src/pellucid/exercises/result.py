"""What a check found: a frozen result that prints itself with a tick or a cross."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, repr=False)
class CheckResult:
    """The outcome of one check; true when it passed.

    Attributes:
        check: What was checked, such as "attention".
        passed: Whether the answer is right.
        proved: What was shown to hold, one sentence each, also where a later step failed.
        mistake: What is wrong, in words; None if nothing is.
        step: The step at which it is wrong.
        tensor: The tensor in which it first shows, with its axes.
        notes: What the reader should know: deviations of the course, what could not be checked.
        kind: What sort of mistake it is, without giving it away.
        line: The line of your code that computes this tensor, or that raised, with its number, where it can be told.
        others: What else is wrong, where several answers were checked together.

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
