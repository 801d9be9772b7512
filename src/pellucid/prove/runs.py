"""What two programs computed, point by point, and where they first differ."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from pellucid.numerics.rounding import BEYOND_ROUNDING, not_alike, relative_error, same_bits, shown_part
from pellucid.prove.points import LOGITS, ckpt_of, in_order
from pellucid.prove.program import Conditions, Glass, Values, WatchedModel
from pellucid.prove.report import CheckpointRow
from pellucid.schema import Schema

ROUNDING = 2.0**-51
"""Relative size of the errors that stand for float64's rounding of one checkpoint: two units of its last place."""

DRAWS = 3
"""How often such errors are drawn; the largest outcome counts."""

MARGIN = 16.0
"""How much more than such errors rounding may come to: sums are long, and programs add in other orders."""


BLURRED = 1e-5
"""What rounding may come to in float64, relative, before a comparison by logits alone says nothing."""


@dataclass
class Runs:
    """One dtype: the reference's values, and the other program's when it runs freely and when it is forced."""

    program: WatchedModel  # the other program
    expected: Values  # the reference's values by checkpoint, and "logits"
    ids: Tensor  # what was run
    schema: Schema  # the reference's
    conditions: Conditions  # how
    # points that turned out to hold something else than a checkpoint's value
    dropped: list[str] = field(default_factory=list)
    # points that differ, but on which nothing depends on these ids, so that their part is not known
    undecided: list[str] = field(default_factory=list)
    held: Values | None = None
    amplified: bool = False  # whether something is off by more than rounding, although no stage alone is
    # what gave the expected values, to see what rounding comes to on its way through it; None if that is not asked for
    reference: Glass | None = None
    rounded: dict[str, float] | None = None
    # what the reference itself computes, if the expected values are those of one with other constants
    exact: Values | None = None

    @property
    def certain(self) -> bool:
        """Whether the program names its values itself, so that no part is guessed."""
        return isinstance(self.program, Glass)

    def __post_init__(self) -> None:
        self.free = self.program.run(self.ids, None, self.conditions)
        self.watched_logits = self.free[LOGITS]

    def ckpt(self, point: str) -> str:
        """The checkpoint that a point holds in a right program."""
        return ckpt_of(point, self.schema)

    @property
    def forced(self) -> Values:
        """A run in which every point is replaced by the reference's value; made when it is first asked for."""
        if self.held is None:
            self.held = self.forced_at(self.points())
        return self.held

    def judge(self, logits: Tensor) -> None:
        """Put the logits of a run without instruments in the place of the watched ones."""
        self.free = {**self.free, LOGITS: logits}

    def points(self) -> list[str]:
        """What the program shows, in the order of a right program, without the logits."""
        shown = [
            point for point, value in self.free.items()
            if point != LOGITS and point not in self.dropped
            and (expected := self.expected.get(self.ckpt(point))) is not None
            and expected.shape == value.shape
        ]  # fmt: skip
        return in_order(shown, self.schema)

    def against(self, values: Values) -> Runs:
        """The same runs, judged by other values in the place of some of the reference's."""
        expected = {name: values.get(name, value) for name, value in self.expected.items()}
        made = replace(self, expected=expected, exact=self.exact or self.expected, undecided=[], held=None)
        made.free, made.watched_logits = self.free, self.watched_logits
        return made

    def forced_at(self, points: list[str]) -> dict[str, Tensor]:
        """A run in which these points are replaced by the reference's values."""
        forced = {point: self.expected[self.ckpt(point)] for point in points}
        return self.program.run(self.ids, forced, self.conditions)

    def error(self, values: Mapping[str, Tensor], point: str) -> float:
        """Relative error of a run at a point."""
        given = values.get(point)
        return float("inf") if given is None else relative_error(given, self.expected[self.ckpt(point)])

    def is_wrong(self, values: Mapping[str, Tensor], point: str) -> bool:
        """Whether a run is off at a point by more than rounding."""
        return self.error(values, point) > BEYOND_ROUNDING

    def _errs(self, point: str) -> bool:
        """Whether the forced run is off at a point by more than rounding comes to on its way from the forced values.

        If that way is long, as in a program that shows nothing but its logits, a model may amplify rounding.
        """
        error = self.error(self.forced, point)
        return error > BEYOND_ROUNDING and error > self.limit(point)

    def limit(self, point: str = LOGITS) -> float:
        """What rounding may come to at a point, relative: measured by putting it on every value of the reference."""
        if self.reference is None:
            return 0.0
        if self.rounded is None:
            exact = self.exact or self.expected
            forced = {name: exact[name] for p in self.points() if (name := self.ckpt(p)) != LOGITS}
            noisy = [self._noisy(seed, forced) for seed in range(DRAWS)]
            self.rounded = {
                name: max(relative_error(values[name], expected) for values in noisy)
                for name, expected in exact.items()
            }
        return MARGIN * self.rounded[self.ckpt(point)]

    def _on_the_whole_way(self) -> float:
        """What errors that no stage shows, each below the threshold, may come to at the logits together, relative."""
        if self.reference is None:
            return math.inf
        noisy = (self._noisy(seed, None)[LOGITS] for seed in range(DRAWS))
        largest = max(relative_error(logits, (self.exact or self.expected)[LOGITS]) for logits in noisy)
        return MARGIN * largest / ROUNDING * BEYOND_ROUNDING

    def _noisy(self, seed: int, forced: Values | None) -> dict[str, Tensor]:
        assert self.reference is not None
        return self.reference.run(self.ids, forced, Conditions(double=True, seed=seed, noise=ROUNDING))

    def first_wrong(self) -> str | None:
        """The first point whose own error rounding cannot explain, None if everything agrees.

        Points that do not play the part that their parameters suggest are found out and dropped: forced to the
        reference's value they do harm, left alone they do none.
        """
        if self.is_wrong(self.free, LOGITS):
            found = self._first_to_blame()
            if found is not None:
                return found
            if self.error(self.free, LOGITS) > self._on_the_whole_way():
                return LOGITS  # of which no stage shows an error of its own
            self.amplified = True
            return None
        for point in [point for point in self.points() if self.is_wrong(self.free, point)]:
            if self.certain:
                return point
            if not self._errs(point):
                self.amplified = True  # it inherits rounding
            elif self.is_wrong(self.forced_at([point]), LOGITS):
                self._drop(point)
            else:
                self.undecided.append(point)
        return None

    def learn(self, dropped: Collection[str]) -> None:
        """Drop points of which nothing could be said here, and which other ids showed to hold something else."""
        self.dropped += [point for point in self.undecided if point in dropped]
        self.undecided = [point for point in self.undecided if point not in dropped]
        self.held = self.rounded = None

    @property
    def blurred(self) -> bool:
        """Whether rounding is amplified so much that an error of a late stage would be taken for it."""
        return self.amplified and self.limit() > BLURRED

    def amplification(self) -> str:
        """What to say of rounding that is amplified; nothing if it is not."""
        if not self.amplified:
            return ""
        words = "rounding is amplified on its way: the error of every stage alone is rounding"
        if self.limit() <= BEYOND_ROUNDING:
            return words
        words += f", which comes to {self.limit() / MARGIN:.1g} of the logits in float64"
        return words if not self.blurred else f"{words}: too much to tell it from an error"

    def first_not_alike(self, dropped: Collection[str]) -> str | None:
        """The first point at which one side only is finite; points that hold something else are passed over."""
        points = [point for point in self.points() if point not in dropped]
        for point in [*points, LOGITS]:
            if bool(not_alike(self.free[point], self.expected[self.ckpt(point)]).any()):
                return point
        return None

    def _first_to_blame(self) -> str | None:
        while True:
            points = self.points()
            wrong = next((point for point in points if self._errs(point)), None)
            if wrong is None:  # without an error of its own anywhere, what the logits inherit is rounding
                return LOGITS if self._errs(LOGITS) else None
            if self.certain or self._is_to_blame(wrong, points):
                return wrong
            self._drop(wrong)

    def _is_to_blame(self, point: str, points: list[str]) -> bool:
        where = self.ckpt(point)
        earlier = points[: points.index(point)]
        later = [other for other in points if other not in earlier and self.ckpt(other) != where]
        after = (later or [LOGITS])[0]
        if self.is_wrong(self.forced_at(earlier), after):
            return True
        return not self.is_wrong(self.forced_at([*earlier, point]), after)

    def _drop(self, point: str) -> None:
        self.dropped.append(point)
        self.held = self.rounded = None


def rows_of(single: Runs, double: Runs | None) -> list[CheckpointRow]:
    """A row per checkpoint, from all the points that hold it, and one for the logits."""
    left_out = [] if double is None else double.dropped
    points = [point for point in single.points() if point not in left_out]
    by_ckpt: dict[str, list[str]] = {}
    for point in [*points, LOGITS]:
        by_ckpt.setdefault(single.ckpt(point), []).append(point)
    return [_row(name, held, single, double) for name, held in by_ckpt.items()]


def _row(name: str, points: list[str], single: Runs, double: Runs | None) -> CheckpointRow:
    def worst(runs: Runs, values: Mapping[str, Tensor]) -> float:
        return max(runs.error(values, point) for point in points)

    shown = [single.free[point] for point in points]
    return CheckpointRow(
        name,
        bit_equal=all(same_bits(shown_part(single.expected[name], value), value) for value in shown),
        fp32=worst(single, single.free),
        fp32_local=worst(single, single.forced),
        fp64=worst(double, double.free) if double is not None else None,
        fp64_local=worst(double, double.forced) if double is not None else None,
    )
