"""What was published, what was computed, and whether the two agree."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

Relation = Literal["=", "at least", "at most"]


@dataclass(frozen=True)
class Published:
    """A number that was published about a model.

    Attributes:
        name: What it is, with its unit where it has one.
        value: The number.
        tolerance: How far from it, or on the wrong side of it, a number may be that agrees with it.
        source: Paper and section, or repository and file.
        exact: Whether it is computed of the very text that it was published of. If not, the comparison is one of kind:
            the texts are others, and the tolerance is as wide as that deserves.
        relation: "=" if the number itself was published, else the bound that it is.
    """

    name: str
    value: float
    tolerance: float
    source: str
    exact: bool = False
    relation: Relation = "="

    def agrees(self, computed: float) -> bool:
        """Whether a number is within the tolerance; NaN never is."""
        away = computed - self.value
        past = {"=": abs(away), "at least": -away, "at most": away}[self.relation]
        return past <= self.tolerance


@dataclass(frozen=True)
class Reproduced:
    """A published number beside what was computed.

    Attributes:
        published: What was published.
        computed: The number; None if there is none.
        detail: Which heads it counts, or why there is no number.
    """

    published: Published
    computed: float | None
    detail: str = ""

    @property
    def verdict(self) -> str:
        """ "within" the tolerance, "outside" of it, or "not computed"."""
        if self.computed is None:
            return "not computed"
        return "within" if self.published.agrees(self.computed) else "outside"


@dataclass(frozen=True)
class Reproduction:
    """Published numbers beside computed ones; `print` shows a table, and it is true if every number is within.

    Attributes:
        model: What was measured, in a word.
        checks: Every number, in the order of the table.
        settings: Texts, seed and so on.
        seconds: How long it took.
        interrupted: Whether Control-C ended it; what was not reached is "not computed".
    """

    model: str
    checks: tuple[Reproduced, ...]
    settings: dict[str, Any]
    seconds: float
    interrupted: bool = False

    def __bool__(self) -> bool:
        return all(check.verdict == "within" for check in self.checks)

    def counts(self) -> dict[str, int]:
        """How many numbers have each verdict."""
        return dict(Counter(check.verdict for check in self.checks))

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Verdict, what it is, what was published, what was computed, and the source of each number."""
        return [
            (check.verdict, check.published.name, _stated(check.published), _computed(check), check.published.source)
            for check in self.checks
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for programs."""
        checks = [
            {**asdict(check.published), "computed": check.computed, "detail": check.detail, "verdict": check.verdict}
            for check in self.checks
        ]
        about = {"model": self.model, "settings": self.settings, "seconds": self.seconds}
        return {**about, "interrupted": self.interrupted, "agrees": bool(self), "checks": checks}

    def __repr__(self) -> str:
        said = ", ".join(f"{count} {verdict}" for verdict, count in self.counts().items())
        lines = [f"{self.model}: {said}" + "; interrupted" * self.interrupted]
        widths = [max(map(len, column)) for column in zip(*self.rows(), strict=True)]
        for row in self.rows():
            lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return "\n".join(lines)


def _stated(published: Published) -> str:
    bound = "" if published.relation == "=" else f"{published.relation} "
    return f"{bound}{_number(published.value)} ± {published.tolerance:g}" + " (kind)" * (not published.exact)


def _computed(check: Reproduced) -> str:
    if check.computed is None:
        return check.detail
    return _number(check.computed) + f" ({check.detail})" * bool(check.detail)


def _number(value: float) -> str:
    if math.isnan(value) or value == int(value):
        return f"{value:g}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
