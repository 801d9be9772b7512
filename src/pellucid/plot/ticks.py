"""Ticks that thin themselves: as many labels as fit along an axis, at whatever size it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis


@dataclass(frozen=True)
class Ticks:
    """Every n-th of some labels along an axis, so they fit; see `step_for`.

    A layout moves axes after their labels were set, and a reader resizes figures, so the room is looked up whenever
    the axis is drawn.

    Attributes:
        count: How many labels there are.
        size: Points that each of them needs along the axis.
        starts: Where the first label stands, several if the labels are repeated.
        spacing: From one label to the next, in the units of the axis.
        least: If fewer fit there are none.
    """

    count: int
    size: float
    starts: Sequence[float] = (0.0,)
    spacing: float = 1.0
    least: int = 1

    def step(self, side: Axis) -> int:
        """Return n at the axis's present size."""
        low, high = side.get_view_interval()
        box, dots = side.axes.bbox, side.axes.get_figure(root=True).dpi  # pyright: ignore[reportOptionalMemberAccess]
        length = 72 / dots * (box.width if side is side.axes.xaxis else box.height)
        return step_for(self.count, length * abs(self.count * self.spacing / (high - low)), self.size)

    def put(self, side: Axis, say: Callable[[int, bool], str]) -> None:
        """Label an axis; `say` gives the label with an index, told whether all of them are shown."""
        from matplotlib.ticker import FuncFormatter, Locator

        index = {start + self.spacing * i: i for start in self.starts for i in range(self.count)}

        def places() -> list[float]:
            step = self.step(side)
            fit = -(-self.count // step) >= self.least
            return [place for place, i in index.items() if fit and i % step == 0]

        def label(place: float, _: int | None) -> str:
            return say(index[place], self.step(side) == 1) if place in index else ""

        class Every(Locator):
            __call__ = staticmethod(places)  # pyright: ignore[reportAssignmentType] (it needs no self)

        side.set_major_locator(Every())
        side.set_major_formatter(FuncFormatter(label))


def step_for(count: int, room: float, size: float) -> int:
    """Return n if every n-th of `count` labels fits along `room` points; n is 1, 2 or 5 times a power of ten."""
    for step in (digit * 10**power for power in range(10) for digit in (1, 2, 5)):
        if -(-count // step) * size <= room:
            return step
    return max(count, 1)
