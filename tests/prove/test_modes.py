"""A module that was given in training mode is judged as it evaluates, and the report says what that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from course import course, monolith
from torch import nn

import pellucid as pl
import support
from pellucid.prove import compare

SMALL = {"vocab_size": 53, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
IDS = support.some_ids(1, 5, 53)


@pytest.fixture
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


def trained_in_part(model: pl.CkptedTransformer) -> nn.Module:
    made = course(model)
    made.blocks[0].dropout.train()
    return made


class Louder(nn.Module):
    """Other logits in training mode, the same ones each time."""

    def __init__(self, model: pl.CkptedTransformer) -> None:
        super().__init__()
        self.inner = monolith(model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids) * (1.5 if self.training else 1.0)


RANDOM: dict[str, tuple[Callable[[Any], nn.Module], str]] = {
    "all of it": (lambda model: course(model).train(), " (dropout of 0.1 in 4 modules); "),
    "one module": (trained_in_part, " (dropout of 0.1 in 1 module); "),
    "transformers' own": (lambda model: pl.to_hf(model).train(), " (dropout of 0.1 in 4 modules); "),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_results(name: str, small: pl.CkptedTransformer) -> None:
    build, rates = RANDOM[name]
    made = build(small)
    for sides, letter in (((small, made), "B"), ((made, small), "A")):
        report = pl.compare(*sides, IDS)
        assert report, report
        note = next(note for note in report.notes if note.startswith(f"{letter} was given in training mode"))
        assert f"random from run to run{rates}" in note
        assert f"call {letter}.eval()" in note
    assert any(child.training for child in made.modules())
    made.eval()  # as the note says
    assert "training mode" not in " ".join(pl.compare(small, made, IDS).notes)


def test_the_reference_in_training_mode(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small.train(), monolith(small), IDS)
    assert report
    assert report.notes[0].startswith("A was given in training mode, in which its logits are random")


def test_a_program_that_is_another_one_in_training_mode(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, Louder(small).train(), IDS)
    assert report
    assert report.notes[0].startswith("B was given in training mode, in which its logits are off by 0.")


def test_nothing_is_said_where_nothing_changes(small: pl.CkptedTransformer) -> None:
    assert "training mode" not in " ".join(pl.compare(small, monolith(small).train(), IDS).notes)


def test_mutants_are_noticed(small: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "mode_note", lambda *given: [])
    with pytest.raises(StopIteration):
        test_random_results("all of it", small)
