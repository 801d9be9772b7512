"""`Mistake`: a row of the catalogue in `pellucid.gpt2.mistakes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pellucid.gpt2.parts import RIGHT, Parts

# What sort of mistake a row is, without giving it away: the first hint that a learner may ask for.
NUMBER = "a number is wrong"
NORMALISED = "normalisation is missing, at the wrong place or computed otherwise"
ADDED = "what is added to what is wrong"
TWICE = "something is applied or added twice"
UNUSED = "a parameter is not used, or not as it should be"
OTHER_TENSOR = "another tensor is used than should be"
ORDERED = "axes or parts are in the wrong order"
ACTIVATED = "the activation function is another, missing or at the wrong place"
HIDDEN = "which entries are masked, or when, is wrong"
AXIS = "an axis is wrong"
FUNCTION = "another function is applied than should be"
BLOCKS = "which blocks are applied, or in which order, is wrong"
DROPPED = "what is dropped, or how often, is wrong"


@dataclass(frozen=True)
class Mistake:
    """A known mistake."""

    changes: Mapping[str, Any]  # the parts of `Parts` that are replaced, by name
    report: str = ""  # what a report says; empty if a comparison does not try it
    learner: str = ""  # what a learner is told; empty if the exercises do not try it
    step: str = ""  # the step of the exercise at which it is made
    kind: str = ""  # what sort of mistake it is, without giving it away
    # True if it is rounding all the same, such as a constant stored in float32, or if no text can show it
    harmless: bool = False
    slight: bool = False  # True if it is rounding, so that it explains no large error

    @property
    def parts(self) -> Parts:
        """A GPT-2 that makes it."""
        return replace(RIGHT, **self.changes)


def together(first: Mistake, second: Mistake) -> Mistake:
    """Two mistakes at once, for a learner."""
    return Mistake(
        {**first.changes, **second.changes}, learner=f"{first.learner}; and {second.learner}",
        step=", ".join(dict.fromkeys((first.step, second.step))),
        kind="; ".join(dict.fromkeys(f"{first.kind}; {second.kind}".split("; "))),
    )  # fmt: skip
