"""Whatever is done to a model, in whatever order, the prediction is what a real save and reload give."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pellucid.ties import audit_ties, replace_head, tie, untie
from ties import cases

ALL = {**cases.ROWS, **cases.MORE}
DROPPED = ("keys as a list", "a wider head", "an equal clone with NaN", "columns of one storage")
"""Left out: nothing changes a list again; the others make every later prediction the same."""


def _new_weight(model: Any) -> None:
    model.lm_head.weight = cases.linear().weight


def _in_place(model: Any) -> None:
    with torch.no_grad():
        next(iter(model.lm_head.parameters())).add_(0.5)


def _state_dict(assign: bool) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=assign)

    return change


STEPS: dict[str, Callable[[Any], Any]] = {
    **{name: step for name, step in ALL.items() if name not in DROPPED},
    "config tied": lambda model: setattr(model.config, "tie_word_embeddings", True),
    "config untied": lambda model: setattr(model.config, "tie_word_embeddings", False),
    "tie_weights()": lambda model: model.tie_weights(),
    "tie by hand": lambda model: setattr(model.lm_head, "weight", model.transformer.wte.weight),
    "a new weight": _new_weight,
    "in place": _in_place,
    "load_state_dict": _state_dict(assign=False),
    "load_state_dict(assign=True)": _state_dict(assign=True),
    "pl.tie": tie,
    "pl.untie": untie,
    "pl.replace_head, tied": lambda model: replace_head(model, cases.linear(), tie=True),
    "pl.replace_head": lambda model: replace_head(model, cases.linear(), tie=False),
    "an embedding by hand": lambda model: setattr(model.transformer.wte, "weight", cases.linear().weight),
    "unwrap": lambda model: setattr(model, "lm_head", model.lm_head[0]),
    "wrap": lambda model: setattr(model, "lm_head", nn.Sequential(model.lm_head)),
}


def predicted_as_it_reloads(steps: list[str], tied: bool) -> None:
    pytest.importorskip("transformers").logging.set_verbosity(50)
    torch.manual_seed(3)
    model = cases.small(tie_word_embeddings=tied)
    for step in steps:
        try:
            STEPS[step](model)
        except Exception:  # a step that does not apply to what the model is by now
            continue
    model.eval()
    after = audit_ties(model).after_reload
    with tempfile.TemporaryDirectory() as folder:
        assert (after.survives, after.tied_after) == cases.really(model, Path(folder))


sequences = given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), st.booleans())


@settings(deadline=None, max_examples=12)
@sequences
def test_any_sequence(steps: list[str], tied: bool) -> None:
    predicted_as_it_reloads(steps, tied)


@pytest.mark.long
@settings(deadline=None, max_examples=200)
@sequences
def test_many_sequences(steps: list[str], tied: bool) -> None:
    predicted_as_it_reloads(steps, tied)
