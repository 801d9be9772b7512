"""What is written along axes: tokens with their spaces visible, numbers of layers and heads; as many as fit."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pellucid.plot.themes import SMALL, matplotlib

if TYPE_CHECKING:
    from matplotlib.axis import Axis

LONGEST = 12
"""Characters of a label; longer tokens end in an ellipsis."""

NO_GLYPH = "□"
"""Stands for a character that none of the fonts has, which matplotlib would warn about at every drawing."""

LINE = 1.1
"""The room that a line of text takes from top to bottom, relative to its size."""

LETTER = 0.6
"""The room that a letter takes along the line, relative to its size: about that of a digit in DejaVu Sans."""


def visible(token: str) -> str:
    """Return a token with spaces as `·`, control characters spelled out, and `□` for what the fonts lack."""
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
    """Return the code points that at least one of the fonts has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known: set[int] = set()
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        except ValueError:  # not installed: matplotlib passes over it too
            continue
        known |= set(get_font(path).get_charmap())
    return frozenset(known)


def step_for(count: int, room: float, size: float = SMALL * LINE) -> int:
    """Return n if every n-th of `count` labels fits along `room` points; n is 1, 2 or 5 times a power of ten."""
    for step in (digit * 10**power for power in range(10) for digit in (1, 2, 5)):
        if -(-count // step) * size <= room:
            return step
    return max(count, 1)


def token_labels(tokens: Sequence[str], positions: Sequence[Any], room: float) -> dict[int, str]:
    """Return index -> label; it holds the position if only some of the tokens fit along `room` points."""
    step = step_for(len(tokens), room)
    at = range(0, len(tokens), step)
    return {i: visible(tokens[i]) if step == 1 else f"{visible(tokens[i])} {positions[i]}" for i in at}


def put_tokens(axis: Axis, places: Sequence[float], labels: Sequence[str], *, ticks: bool) -> None:
    """Set an axis's labels to tokens, read as they are: a `$` begins no formula. Those of an x axis stand upright."""
    options: dict[str, Any] = {"rotation": 90} if axis is axis.axes.xaxis else {}
    axis.set_ticks(places, labels, fontsize=SMALL, parse_math=False, usetex=False, **options)
    axis.set_tick_params(length=2 if ticks else 0, pad=1.5)


def put_numbers(axis: Axis, numbers: Sequence[Any], room: float, places: Sequence[float] = ()) -> None:
    """Label an axis with as many of the numbers, layers or heads, as fit side by side along `room` points."""
    size = float(axis.get_major_ticks(1)[0].label1.get_fontsize())
    longest_one = max((len(str(number)) for number in numbers), default=1)
    step = step_for(len(numbers), room, size * (LETTER * longest_one + 0.5 if axis is axis.axes.xaxis else 1.0))
    chosen = range(0, len(numbers), step)
    axis.set_ticks([places[i] if places else i for i in chosen], [str(numbers[i]) for i in chosen])


def longest(labels: Iterable[str], size: float = SMALL) -> float:
    """Return about how many points the longest label takes."""
    return LETTER * size * max(map(len, labels), default=0)
