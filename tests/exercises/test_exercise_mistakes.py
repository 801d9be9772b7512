"""The tables of mistakes: each one moves the probes, is found when it is made, and is not taken for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from exercise_solution import variant
from test_exercise_attention import WRONG_ATTENTION
from test_exercise_block import WRONG_BLOCK
from test_exercise_gpt2 import WRONG_GPT2
from torch import Tensor

from pellucid.exercises import check_attention, check_block, check_gpt2, course, learner, modules
from pellucid.exercises.course import RIGHT, attention, attention_layers, block, gpt2, output_of, shapes_of
from pellucid.exercises.watch import apart
from pellucid.gpt2.formulas import Sizes
from pellucid.gpt2.mistake import HIDDEN, NUMBER, Mistake, together
from pellucid.gpt2.mistakes import ATTENTION, BLOCK, GPT2

SAME_HERE = (
    "the mask is applied after softmax",
    "the scores are divided by sqrt(hidden_size // num_heads)",
    "masked scores are set to -100,",
)
"""Mistakes that change nothing, or little, in one quiet probe with heads of the default size."""


def made(cls: type, stages: Callable[..., Any], sizes_of: Callable[[Any], Sizes], mistake: Mistake) -> type:
    """The solution's class, except that its evaluating forward is the reference with a part replaced."""

    class Wrong(cls):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.sizes = sizes_of((self, given))

        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            named = dict(self.named_parameters())
            return output_of(stages(named, self.sizes)(x, replace(RIGHT, **mistake.changes)))

    return Wrong


def _of_attention(given: Any) -> Sizes:
    module, arguments = given
    return Sizes(arguments[0], module.num_heads, module.head_size)


def _of_block(given: Any) -> Sizes:
    _, arguments = given
    return Sizes(arguments[0], arguments[1], arguments[0] // arguments[1], arguments[3], arguments[4])


def _of_gpt2(given: Any) -> Sizes:
    c = given[1][0]
    head = c.hidden_size // c.num_heads
    return Sizes(c.hidden_size, c.num_heads, head, c.layer_norm_epsilon, c.activation_function, c.num_layers,
                 c.vocab_size, c.max_position_embeddings)  # fmt: skip


RELU = "the activation function is relu, not the one that is given"
"""The probe's own activation function: made there, it is right."""

CASES = [
    *(("UnidirectionalAttention", check_attention, attention, _of_attention, one) for one in ATTENTION),
    *(("GPT2Block", check_block, block, _of_block, one) for one in BLOCK if one.learner != RELU),
    *(("GPT2", check_gpt2, gpt2, _of_gpt2, one) for one in GPT2),
]


IN_CODE = {"UnidirectionalAttention": WRONG_ATTENTION, "GPT2Block": WRONG_BLOCK, "GPT2": WRONG_GPT2}
"""Class -> what is made in a learner's code by other tests, with words of the mistake that is told."""


def told(name: str) -> set[str]:
    """The mistakes of a class, in their words, that other tests make in code: here the long run makes them, too."""
    known = [row[-1].learner for row in CASES if row[0] == name]
    found = [[one for one in known if words and words in one] for _, words, _ in IN_CODE[name].values()]
    return {matches[0] for matches in found if len(matches) == 1}


ELSEWHERE = {name: told(name) for name in IN_CODE}


@pytest.mark.parametrize(
    ("name", "check", "stages", "sizes_of", "mistake"),
    [
        pytest.param(
            *row, id=f"{row[0]}: {row[-1].learner}", marks=[pytest.mark.long] * (row[-1].learner in ELSEWHERE[row[0]])
        )
        for row in CASES
    ],
)
def test_every_known_mistake_is_found_when_it_is_made(
    name: str, check: Any, stages: Any, sizes_of: Any, mistake: Mistake
) -> None:
    result = check(made(getattr(variant(), name), stages, sizes_of, mistake))
    assert not result
    assert result.mistake == mistake.learner, result
    assert result.tensor
    assert mistake.step in str(result.step)


def test_two_mistakes_in_one_layer_norm_are_both_named() -> None:
    words = ("LayerNorm's epsilon is 1e-05,", "LayerNorm divides by the unbiased standard deviation")
    one, other = (next(row for row in BLOCK if row.learner.startswith(start)) for start in words)
    result = check_block(made(variant().GPT2Block, block, _of_block, together(one, other)))
    assert all(start in str(result.mistake) for start in words), result


def test_a_hint_names_each_kind_once() -> None:
    both = together(Mistake({}, kind=f"{HIDDEN}; {NUMBER}"), Mistake({}, kind=NUMBER))
    assert both.kind == f"{HIDDEN}; {NUMBER}"


@pytest.mark.parametrize("sizes", [Sizes(12, 4, 3), Sizes(12, 3, 5)])
def test_mistakes_differ_from_one_another(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    p = {n: torch.randn(s, generator=generator).double() for n, s in shapes_of(attention_layers, sizes).items()}
    x = torch.cat([course.streams(sizes)[0]] * 2, 1)[:, :8] + 0.1 * torch.randn(2, 8, 12, generator=generator).double()
    outputs: dict[str, Tensor] = {}
    for one in ATTENTION:
        try:
            outputs[one.learner] = output_of(attention(p, sizes)(x, replace(RIGHT, **one.changes)))
        except RuntimeError:
            continue
    right = output_of(attention(p, sizes)(x, RIGHT))
    for words, output in outputs.items():
        if words.startswith(SAME_HERE) or (sizes.head == 3 and "sqrt(" in words):
            continue
        assert apart(output, right) > 1e-9, words


def test_without_the_tables_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "ATTENTION", ())
    result = check_attention(variant(("self.head_size**0.5", "self.head_size")).UnidirectionalAttention)
    assert "none of the known mistakes" in str(result.mistake)
    assert str(result.tensor).startswith("scores"), "what is observed is still said"


def test_a_wrong_reference_fails_right_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "RIGHT", replace(RIGHT, scale=lambda q, weights: 1.0))
    assert not check_attention(variant().UnidirectionalAttention)


def test_a_cause_that_does_not_reproduce_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    almost = variant((" / self.head_size**0.5", " * 1.0001"))  # as good as unscaled, but not quite
    result = check_attention(almost.UnidirectionalAttention)
    assert "none of the known mistakes" in str(result.mistake)
    monkeypatch.setattr(learner, "apart", lambda *_: 0.0)
    assert "none of the known mistakes" not in str(check_attention(almost.UnidirectionalAttention).mistake)
