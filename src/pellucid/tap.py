"""What a run hands down through `forward`: a value arrives with its name, and what comes back is used.

A tap is an argument. It cannot leak into another run, two threads can run two taps on one model, and
nothing is registered or removed. Recording, editing and stopping are taps; `None` is the plain run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Tap(Protocol):
    """`(checkpoint name, value) -> value`, and which names it cares about.

    `wants` lets the model skip values that nobody looks at (scores, patterns, scaled values). A tap that only
    looks returns the very tensor that it was given; returning another tensor is an edit.
    """

    def wants(self, name: str, /) -> bool:
        """Whether the value under this name matters to the tap."""
        ...

    def __call__(self, name: str, value: Tensor, /) -> Tensor:
        """Look at the value, or return another one to go on with."""
        ...


class Chain:
    """Several taps as one; each sees what the one before it returned."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = tuple(taps)

    def wants(self, name: str) -> bool:
        return any(tap.wants(name) for tap in self._taps)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for tap in self._taps:
            if tap.wants(name):
                value = tap(name, value)
        return value


class Stopped(Exception):  # noqa: N818  (it is control flow, not an error)
    """Raised by `StopAfter` to leave the forward pass; never reaches the caller."""


class StopAfter:
    """Ends the forward pass once the value under one name has passed; comes last in a chain."""

    def __init__(self, name: str) -> None:
        self._name = name

    def wants(self, name: str) -> bool:
        return name == self._name

    def __call__(self, name: str, value: Tensor) -> Tensor:
        raise Stopped(name)
