"""HookedTransformer's calls give the numbers that TransformerLens' own gives, on the bundled weights in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hooked_calls import CALLS, Library, differs, numbers_of

import support
from pellucid.compat.hooked import HookedTransformer, patching, utils

NUMBERS = json.loads((Path(__file__).parents[1] / "data" / "hooked_numbers.json").read_text(encoding="utf-8"))[
    "numbers"
]


@pytest.fixture(scope="module")
def library() -> Library:
    model = HookedTransformer.from_pretrained_no_processing("bundled", dtype="float64")
    return Library(model, utils, patching)


def test_every_call_has_numbers() -> None:
    assert sorted(CALLS) == sorted(NUMBERS)


ALIKE = ("value ", "gradient ", "halved ")
OF_A_KIND = [[name for name in CALLS if name.startswith(kind)] for kind in ALIKE]
EVERY_RUN = [name for name in CALLS if not name.startswith(ALIKE)] + [
    name for names in OF_A_KIND for name in names[::4]
]
"""Calls of different names, and of one call with many names every fourth."""


@pytest.mark.parametrize("name", support.few_of(CALLS, *EVERY_RUN))
def test_numbers(name: str, library: Library) -> None:
    found = numbers_of(CALLS[name](library))
    assert not differs(found, NUMBERS[name], relative=1e-7), (found, NUMBERS[name])


@pytest.mark.parametrize("name", ["logits of a text", "composition Q", "greedy", "halved hook_embed"])
def test_other_numbers_are_told_apart(name: str, library: Library) -> None:
    found = numbers_of(CALLS[name](library))
    other = found + "x" if isinstance(found, str) else [found[0], [found[1][0] * 1.001, *found[1][1:]]]
    assert differs(other, NUMBERS[name], relative=1e-7)
