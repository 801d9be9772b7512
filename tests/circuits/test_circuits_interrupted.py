"""Control-C at any moment of an evaluation: what was measured is returned and said, or nothing was."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from whole_runs import METRIC, model, two

import pellucid as pl
from pellucid.circuits import ablations
from pellucid.patching import reruns

GLASS, (CLEAN, CORRUPTED) = model(), two()
HEADS = pl.circuits.Circuit(nodes=["blocks.0.attn[1]", "blocks.0.mlp", "blocks.1.attn[0]"])
EDGES = pl.circuits.Circuit(edges=[("embeddings", "blocks.0.mlp"), ("blocks.0.mlp", "logits")])
Interruptions = Callable[[Callable[[], Any]], Iterator[tuple[Any, str]]]


@pytest.fixture
def interruptions(monkeypatch: pytest.MonkeyPatch) -> Interruptions:
    """What a call on the model returns and warns, or None and what it raised, when Control-C comes at each moment."""
    monkeypatch.setattr(reruns, "TOKENS", 24)
    monkeypatch.setattr(ablations, "TOKENS", 24)

    def every(call: Callable[[], Any]) -> Iterator[tuple[Any, str]]:
        left = 0

        def interrupt(*_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        handle = GLASS.blocks[1].ln1.register_forward_pre_hook(interrupt)
        for moment in range(1, 200):
            left = moment
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    found, words = call(), "".join(str(one.message) for one in said)
                except KeyboardInterrupt as interruption:
                    found, words = None, str(interruption)
            if left > 0:
                handle.remove()
                return
            yield found, words
        raise AssertionError("it never came to its end")

    return every


@pytest.mark.parametrize("circuit", [HEADS, pytest.param(EDGES, marks=pytest.mark.long)], ids=["nodes", "edges"])
def test_a_report_has_what_was_measured(circuit: pl.circuits.Circuit, interruptions: Interruptions) -> None:
    given: dict[str, Any] = {"metric": METRIC, "value": "resample", "subsets": 5, "random": 4, "candidates": 1}

    def call() -> pl.circuits.CircuitReport:
        return pl.circuits.evaluate(GLASS, circuit, CLEAN, CORRUPTED, **given)

    whole, counts = call(), list[tuple[int, ...]]()
    assert not whole.interrupted
    assert "interrupted" not in repr(whole)
    for found, said in interruptions(call):
        if found is None:
            assert said == "circuits.evaluate: interrupted, nothing was measured"
            counts.append((-1, -1, -1))
            continue
        words = re.fullmatch(
            r"interrupted: (\d) of 5 subsets, (\d) of (\d) parts and (\d) of 4 random .* measured", said
        )
        assert words
        assert found.interrupted
        assert "\ninterrupted" in repr(found)
        assert (found.faithfulness, found.by_text) == (whole.faithfulness, whole.by_text)
        counts.append((found.completeness.count, len(found.minimality), len(found.random)))
        assert counts[-1] == (int(words[1]), int(words[2]), int(words[4]))
        assert np.isnan(found.completeness.most) if not found.completeness.count else found.completeness.most >= 0
        assert found.minimality.items() <= whole.minimality.items()
        assert found.greedy.count <= whole.greedy.count
    assert counts == sorted(counts), "later is more"
    assert len(set(counts)) >= 5
    assert (counts[0], counts[-1][0]) == ((-1, -1, -1), 5)


VERBS: dict[str, tuple[Callable[[], Any], str]] = {
    "across": (
        lambda: pl.circuits.across(GLASS, HEADS, CLEAN, CORRUPTED, metric=METRIC, granularities=["nodes"]),
        r"interrupted: (\d+) combinations were measured, the others are NaN",
    ),
    "curve": (
        lambda: pl.circuits.curve(
            GLASS, EDGES, CLEAN, CORRUPTED, metric=METRIC, value="resample", shares=[0.1, 0.3, 0.5, 0.7, 0.9]
        ),
        r"interrupted: (\d+) shares were measured, the others are NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_arrays_have_what_was_measured(verb: str, interruptions: Interruptions) -> None:
    call, expected = VERBS[verb]
    whole, counts = call(), list[int]()
    for found, said in interruptions(call):
        if found is None:
            assert said == f"circuits.{verb}: interrupted, nothing was measured"
            continue
        words = re.fullmatch(expected, said)
        done = ~np.isnan(found.values)
        assert words
        assert done.sum() == int(words[1]) * (found.sizes.get("batch") or 1)
        np.testing.assert_array_equal(found.values[done], whole.values[done])
        assert verb == "across" or np.isnan(found.attrs["cpr"])
        counts.append(int(words[1]))
    assert counts == sorted(counts)
    assert len(set(counts)) >= 2
