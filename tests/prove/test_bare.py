"""Llamas, GPT-NeoXs and GPT-2s that show nothing but their logits: right in every spelling, or wrong with its cause."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from bare import ANY, GPT2S, LLAMAS, NEOXES, ROTARY, SPELLINGS, TURNED, Bare, Stage

import pellucid as pl
import samples
from pellucid.family.families import family_of
from pellucid.prove import comparison

IDS = samples.some_ids(1, 7)

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True},
    "gpt_neox": {"num_hidden_layers": 1},
    "gpt2": {"n_layer": 1},
}
model_of = functools.cache(lambda family: samples.glass(family, **FIELDS[family]))

RIGHT = {"llama": {**SPELLINGS, **TURNED}, "gpt_neox": TURNED, "gpt2": SPELLINGS}
WRONG = {"llama": {**LLAMAS, **ROTARY}, "gpt_neox": {**NEOXES, **ROTARY}, "gpt2": GPT2S}
for number, words in enumerate(ANY):  # what any family may get wrong meets one of them
    WRONG[list(WRONG)[number % 3]][words] = ANY[words]


AGAIN = (
    "pairs interleaved, tables", "base 500, tables, twice", "base 500, tables in float64", "base 500, frequencies",
    "the other way round, tables", "base 500, complex tables", "base 1234", "products with sigmoid", "halves exchanged",
    "tables, twice", "tables in float64", "complex numbers of tables",
)  # fmt: skip

SAID_ELSEWHERE = ("llama: parallel", "gpt2: gelu", "gpt2: silu", "gpt_neox: rms",
                  "gpt_neox: no bias on W_out")  # fmt: skip
"""What another family gets wrong in the same way, or another bias that is left out: one of each stays."""


def in_turn(table: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """All pairs; long are spellings of what another says, and what a NeoX or a GPT-2 spells as a Llama does."""
    for family, rows in table.items():
        for number, words in enumerate(rows):
            shared = {**ROTARY, **TURNED, **SPELLINGS}
            name = f"{family}: {words}"
            twice = words in AGAIN or name in SAID_ELSEWHERE or (family != "llama" and words in shared and number % 8)
            yield pytest.param(family, words, id=name, marks=[pytest.mark.long] if twice else [])


def compared(family: str, stages: dict[str, Stage]) -> Any:
    return pl.compare(model_of(family), Bare(model_of(family), **stages), IDS)


@pytest.mark.parametrize(("family", "words"), list(in_turn(RIGHT)))
def test_a_right_one_is_not_accused(family: str, words: str) -> None:
    report = compared(family, RIGHT[family][words])
    assert report.verdict == "equivalent", report
    assert not report.notes or report.notes[0].startswith("ties")


@pytest.mark.parametrize(("family", "words"), list(in_turn(WRONG)))
def test_a_wrong_one_is_told_by_its_cause(family: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, cause = WRONG[family][words]
    if not cause:  # of which no table knows: all of it would be searched
        alone = replace(family_of(model_of(family).config), mistakes=None, suspects=None)
        monkeypatch.setattr(comparison, "family_of", lambda config: alone)
    report = compared(family, stages)
    assert report.verdict == "different", report
    assert cause in (report.first_divergence.cause or ""), report


def test_a_constant_of_gelu_in_other_digits() -> None:
    def compared_with(root: float) -> Any:
        return compared("gpt_neox", {"act": lambda m, x: 0.5 * x * (1 + torch.erf(x / root))})

    right, wrong = compared_with(1.41421356), compared_with(1.4142)
    assert right.verdict == "equivalent", right
    assert "so that this is rounding" in right.notes[-1]
    assert "GELU's constant is 1 / 1.4142" in str(wrong.first_divergence), wrong


def test_mutants_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of another base that nobody looks at."""
    monkeypatch.setattr("pellucid.family.rotary._others", lambda kept, pairs: iter(()))
    with pytest.raises(AssertionError):
        test_a_wrong_one_is_told_by_its_cause("llama", "base 500, tables", monkeypatch)
