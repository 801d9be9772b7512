"""Tokens as labels: spaces and line ends visible, nothing that acts on the text around it, no glyph that is missing."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pellucid.plot.extras import matplotlib
from pellucid.plot.themes import SMALL

if TYPE_CHECKING:
    from matplotlib.axis import Axis

LONGEST = 12
"""Characters of a label; longer tokens end in an ellipsis."""

NO_GLYPH = "□"
"""Stands for a character that none of the fonts has, which matplotlib would warn about at every drawing."""

LINE = 1.1
"""Of the size of its text: the room that a label takes across."""


def visible(token: str) -> str:
    """A token with its spaces as `·`, its control characters spelled out, and `□` for what the fonts lack."""
    known = _characters(tuple(matplotlib().rcParams["font.family"]))
    shown = "".join(_visible(character) for character in token)
    shown = "".join(character if ord(character) in known else NO_GLYPH for character in shown)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _visible(character: str) -> str:
    if character == " ":
        return "·"
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
        return "↵" if character == "\n" else character.encode("unicode_escape", "surrogatepass").decode()
    return character


@lru_cache
def _characters(families: tuple[str, ...]) -> frozenset[int]:
    """The code points that at least one of the fonts has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # not installed: matplotlib passes over it too
            continue
        known |= set(get_font(path).get_charmap())
    return frozenset(known)


def is_x(axis: Axis) -> bool:
    """Whether it is the lower of the two."""
    return axis is axis.axes.xaxis


def step_for(count: int, room: float, size: float = SMALL) -> int:
    """Every how many of `count` labels can be shown along `room` points; 1, 2 or 5 times a power of ten."""
    for step in (digit * 10**power for power in range(10) for digit in (1, 2, 5)):
        if -(-count // step) * size * LINE <= room:
            return step
    return max(count, 1)


def token_labels(tokens: Sequence[str], positions: Sequence[Any], room: float) -> dict[int, str]:
    """Index -> label, with the position in it where only some of the tokens fit along `room` points."""
    step = step_for(len(tokens), room)
    at = range(0, len(tokens), step)
    return {i: visible(tokens[i]) if step == 1 else f"{visible(tokens[i])} {positions[i]}" for i in at}


def put_tokens(axis: Axis, places: Sequence[float], labels: Sequence[str], *, ticks: bool) -> None:
    """Set an axis's labels to tokens, read as they are: a `$` begins no formula. Those of an x axis stand upright."""
    options: dict[str, Any] = {"rotation": 90} if is_x(axis) else {}
    axis.set_ticks(places, labels, fontsize=SMALL, parse_math=False, usetex=False, **options)
    axis.set_tick_params(length=2 if ticks else 0, pad=1.5)


def longest(labels: Iterable[str]) -> float:
    """Points that the longest label takes, about."""
    return 0.6 * SMALL * max(map(len, labels), default=0)


def label_numbers(axis: Axis, numbers: Sequence[Any], room: float) -> None:
    """Label an axis with as many of the numbers, layers or heads, as fit side by side."""
    size = float(axis.get_major_ticks()[0].label1.get_fontsize())
    width = max((len(str(number)) for number in numbers), default=1) if is_x(axis) else 1
    step = step_for(len(numbers), room, size * (0.62 * width + 0.5 if is_x(axis) else 1.0))
    at = range(0, len(numbers), step)
    axis.set_ticks(list(at), [str(numbers[i]) for i in at])
