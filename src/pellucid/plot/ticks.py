"""Ticks that thin themselves: as many labels as fit along an axis, at whatever size it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis


@dataclass(frozen=True)
class Ticks:
    """Every n-th of some labels along an axis, so they fit; see `step_for`.

    Where labels are repeated, one that would touch the first of the next repetition is left out.

    A layout moves axes after their labels were set, and a reader resizes figures, so the room is looked up whenever
    the axis is drawn.
    """

    labels: Sequence[str]  # what is written if all labels fit
    thinned: Sequence[str]  # what is written if only some do
    size: float  # points that each of them needs along the axis
    starts: Sequence[float] = (0.0,)  # where the first label stands, several if the labels are repeated
    spacing: float = 1.0  # from one label to the next, in the units of the axis
    least: int = 1  # if fewer fit there are none

    @cached_property
    def _index(self) -> dict[float, int]:
        return {start + self.spacing * i: i for start in self.starts for i in range(len(self.labels))}

    def step(self, side: Axis) -> int:
        """Return n at the axis's present size."""
        count = len(self.labels)
        return step_for(count, count * self.spacing * _points(side), self.size)

    def places(self, side: Axis) -> list[float]:
        """Return where labels stand at the axis's present size."""
        step, room = self.step(side), self.size / _points(side)
        if -(-len(self.labels) // step) < self.least:
            return []
        kept = (place for place, i in self._index.items() if i % step == 0)
        return [place for place in kept if not any(place < start < place + room for start in self.starts)]

    def label(self, side: Axis, place: float, _: int | None) -> str:
        """Return what is written at a place of the axis."""
        if place not in self._index:
            return ""
        return (self.labels if self.step(side) == 1 else self.thinned)[self._index[place]]

    def put(self, side: Axis) -> None:
        """Label an axis."""
        from matplotlib.ticker import FuncFormatter

        side.set_major_locator(_locator(self))
        side.set_major_formatter(FuncFormatter(partial(self.label, side)))


def _points(side: Axis) -> float:
    """Return how many points a unit of an axis takes at its present size."""
    low, high = side.get_view_interval()
    box, dots = side.axes.bbox, side.axes.get_figure(root=True).dpi  # pyright: ignore[reportOptionalMemberAccess]
    return 72 / dots * (box.width if side is side.axes.xaxis else box.height) / abs(high - low)


def _locator(ticks: Ticks) -> Any:
    return _locator_class()(ticks)


@cache
def _locator_class() -> type[Any]:
    """Make the class when something is drawn, because importing pellucid does not import matplotlib."""
    from matplotlib.ticker import Locator

    class Every(Locator):
        def __init__(self, ticks: Ticks) -> None:
            self.ticks = ticks

        def __call__(self) -> list[float]:  # pyright: ignore[reportIncompatibleMethodOverride] (any sequence will do)
            return self.ticks.places(self.axis)  # pyright: ignore[reportArgumentType]

        def __reduce__(self) -> tuple[Any, ...]:
            """Figures are pickled and copied; a class inside a function has no name to be found by."""
            return _locator, (self.ticks,), vars(self)

    return Every


def step_for(count: int, room: float, size: float) -> int:
    """Return n if every n-th of `count` labels fits along `room` points; n is 1, 2 or 5 times a power of ten."""
    for step in (digit * 10**power for power in range(10) for digit in (1, 2, 5)):
        if -(-count // step) * size <= room:
            return step
    return max(count, 1)
