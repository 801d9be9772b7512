"""The second part: every function's wrong answers are named, right ones pass however they draw."""

from __future__ import annotations

import itertools
import math
import pdb
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exercise_solution import variant
from torch import Tensor
from torch.distributions import Categorical

from pellucid import PellucidError
from pellucid.exercises import (
    check_block,
    check_frequency_penalty,
    check_greedy,
    check_sample_basic,
    check_sampling,
    check_temperature,
    check_top_k,
    check_top_p,
)
from pellucid.exercises.draws import BASIC, TOP_K, TOP_P, probes

SOLUTION = variant()


def last_of_ties(logits: Tensor) -> int:
    return len(logits) - 1 - int(logits.flip(0).argmax())


def _ids(logits: Tensor, top_p: float) -> Tensor:
    """The ids of the nucleus, the likeliest first."""
    ranked = logits.sort(descending=True)
    return ranked.indices[: int((ranked.values.softmax(-1).cumsum(-1) < top_p).sum()) + 1]


SCORES: list[tuple[str, Callable[..., Any], str]] = [
    ("greedy", lambda x: int(x.argmin()), "least likely"),
    ("greedy", lambda x: int(x.abs().argmax()), "largest absolute"),
    ("greedy", last_of_ties, "of two equally likely tokens, 5 and 8, it takes 8"),
    ("greedy", lambda x: x.max(), "expected one token id"),
    ("greedy", lambda x: x.argmax(dim=1), "IndexError"),
    ("temperature", lambda x, t: x * t, "multiplied"),
    ("temperature", lambda x, t: x, "not used"),
    ("temperature", lambda x, t: (x / t).softmax(-1), "is a softmax"),
    ("temperature", lambda x, t: x.softmax(-1) / t, "before the division"),
    ("temperature", lambda x, t: x / t + 0.01, "none of the known mistakes"),
    ("temperature", lambda x: x, "TypeError"),
    ("frequency_penalty", lambda i, x, p: x + p * torch.bincount(i, minlength=len(x)), "added, not subtracted"),
    ("frequency_penalty", lambda i, x, p: x - p * torch.bincount(i), "minlength"),
    ("frequency_penalty", lambda i, x, p: x - p * (torch.bincount(i, minlength=len(x)) > 0), "presence penalty"),
    ("frequency_penalty", lambda i, x, p: x - p * torch.bincount(i[-1:], minlength=len(x)), "only the last token"),
    ("frequency_penalty", lambda i, x, p: x - torch.bincount(i, minlength=len(x)), "freq_penalty is not used"),
    ("frequency_penalty", lambda i, x, p: x, "the penalty is not used"),
    (
        "frequency_penalty",
        lambda i, x, p: x - p * (torch.bincount(i, minlength=len(x)) - 1).clamp(min=0),
        "a token that occurs once is not penalised",
    ),
    ("frequency_penalty", lambda i, x, p: x - p * (torch.bincount(i, minlength=len(x)) - 1), "once too few"),
    ("frequency_penalty", lambda i, x, p: x - p * (torch.bincount(i, minlength=len(x)) + 1), "once too often"),
    ("basic", lambda x: int(x.argmax()), "always takes the most likely"),
    ("basic", lambda x: int(torch.multinomial(torch.ones(len(x)), 1)), "from all tokens alike"),
    ("basic", lambda x: int(torch.multinomial(x.softmax(-1).softmax(-1), 1)), "softmax is applied twice"),
    ("basic", lambda x: int(torch.multinomial((-x).softmax(-1), 1)), "turned around"),
    ("basic", lambda x: int(torch.multinomial(x, 1)), "RuntimeError"),
    ("basic", lambda x: int(Categorical(probs=x.sigmoid()).sample()), "sigmoid"),
    ("top_k", lambda x, k: int(Categorical(logits=x.topk(k).values).sample()), "the place among the k"),
    ("top_k", lambda x, k: int(Categorical(logits=x).sample()), "nothing is cut"),
    ("top_k", lambda x, k: SOLUTION.sample_top_k(x, k + 1), "k + 1"),
    (
        "top_k",
        lambda x, k: int(
            x.topk(k, largest=False).indices[Categorical(logits=x.topk(k, largest=False).values).sample()]
        ),
        "least likely",
    ),
    ("top_k", lambda x, k: int(x.topk(k).indices[torch.randint(k, ())]), "from the k tokens alike"),
    (
        "top_k",
        lambda x, k: int(Categorical(logits=torch.where(x >= x.topk(k).values[-1], x, 0.0)).sample()),
        "set to 0",
    ),
    ("top_p", lambda x, p, n=1: int(Categorical(logits=x).sample()), "nothing is cut"),
    ("top_p", lambda x, p, n=1: SOLUTION.sample_top_p(x, 1 - p, n), "at 1 - p"),
    ("top_p", lambda x, p, n=1: _ids(x, p)[Categorical(logits=x[: len(_ids(x, p))]).sample()], "first of the unsorted"),
    (
        "top_p",
        lambda x, p, n=1: _ids(x, p)[Categorical(logits=x.sort(descending=True).values[_ids(x, p)]).sample()],
        "the sorted logits are indexed with ids",
    ),
    (
        "top_p",
        lambda x, p, n=1: Categorical(
            logits=x.index_fill(0, torch.arange(len(_ids(x, p)), len(x)), -torch.inf)
        ).sample(),
        "places among the sorted tokens are taken for ids",
    ),
    (
        "top_p",
        lambda x, p, n=1: Categorical(
            logits=x.masked_fill((torch.arange(len(x)) >= len(_ids(x, p)))[x.argsort(descending=True)], -torch.inf)
        ).sample(),
        "mask is indexed with ids",
    ),
    ("top_p", lambda x, p, n=1: SOLUTION.sample_top_p(x, p), "min_tokens_to_keep is not used"),
    ("top_p", lambda x, p, n=1: SOLUTION.sample_top_k(x, len(_ids(x, p)) + n - 1), "is added to the nucleus"),
    ("basic", lambda x: torch.manual_seed(0) and SOLUTION.sample_basic(x), "the seed is set inside the function"),
    (
        "top_k",
        lambda x, k: x.topk(k)[1][torch.multinomial(x.topk(k)[0].softmax(-1), 1, generator=torch.Generator())],
        "every call draws the same, as with a generator that is made",
    ),
    (
        "top_p",
        lambda x, p, n=1: int(
            torch.multinomial(
                (x.softmax(-1).cumsum(-1).roll(1).index_fill(0, torch.tensor([0]), 0) < p) * x.softmax(-1), 1
            )
        ),
        "unsorted",
    ),
]


@pytest.mark.parametrize(("exercise", "fn", "words"), SCORES, ids=[f"{row[0]}: {row[2]}" for row in SCORES])
def test_wrong_functions_are_named(exercise: str, fn: Callable[..., Any], words: str) -> None:
    result = check_sampling(fn, exercise=exercise)
    assert not result
    assert words in str(result.mistake), result


NAMES = ("greedy_search", "apply_temperature", "apply_freq_penalty", "sample_basic", "sample_top_k", "sample_top_p",
         "sample_next_token", "beam_search")  # fmt: skip


def test_right_functions_pass_together() -> None:
    result = check_sampling(*(getattr(SOLUTION, name) for name in NAMES))
    assert result, result
    assert any("exactly, by deciding every draw" in text for text in result.proved)
    assert any("frequency penalty is not applied, as in the course" in note for note in result.notes)
    assert any("without a length penalty" in note for note in result.notes)


def gumbel(x: Tensor) -> int:
    return int((x - torch.rand(len(x)).log().neg().log()).argmax())


def inverse(x: Tensor) -> int:
    return int((x.softmax(-1).cumsum(-1) < torch.rand(())).sum().clamp(max=len(x) - 1))


@pytest.mark.parametrize(
    "draw", [gumbel, pytest.param(inverse, marks=pytest.mark.long), lambda x: Categorical(logits=x).sample()]
)
def test_right_draws_pass_in_any_style(draw: Callable[[Tensor], Any]) -> None:
    assert check_sample_basic(draw)
    masked = check_top_k(lambda x, k: draw(x.masked_fill(x < x.topk(k).values[-1], -torch.inf)))
    assert masked, masked


def test_a_tensor_for_an_id_is_noted() -> None:
    result = check_greedy(lambda logits: logits.argmax())
    assert result
    assert any("signature says int" in note for note in result.notes)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, float])
def test_numbers_of_any_kind_are_ids(kind: Any) -> None:
    assert check_greedy(lambda logits: kind(np.argmax(logits.numpy())))


@pytest.mark.parametrize("value", [True, math.nan, math.inf, 1.5, np.float32(1.5), "1", None])
def test_what_is_no_id_is_named(value: Any) -> None:
    assert "expected one token id" in str(check_greedy(lambda logits: value).mistake)


def course_top_p(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
    """One token fewer than the paper."""
    ranked = logits.sort(descending=True)
    keep = max(min_tokens_to_keep, int((ranked.values.softmax(-1).cumsum(-1) < top_p).sum()))
    return int(ranked.indices[Categorical(logits=ranked.values[:keep]).sample()])


def test_both_nuclei_pass_and_are_told_apart() -> None:
    paper, course = check_top_p(SOLUTION.sample_top_p), check_top_p(course_top_p)
    assert paper
    assert course
    assert any("of the paper and of transformers: the fewest" in text for text in paper.proved)
    assert not paper.notes
    assert any("the course's reference: one token fewer" in text for text in course.proved)
    assert any("one token fewer than the nucleus of the paper" in note for note in course.notes)


def test_top_p_of_one_keeps_every_token() -> None:
    def less(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
        return SOLUTION.sample_top_p(logits, min(top_p, 0.8) if top_p == 1 else top_p, min_tokens_to_keep)

    def raises(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
        reached = logits.sort(descending=True).values.softmax(-1).cumsum(-1)
        assert reached[int((reached < top_p).sum() + 1)], "one token more is looked at"
        return SOLUTION.sample_top_p(logits, top_p, min_tokens_to_keep)

    assert "with p = 1 it does not keep every token" in str(check_top_p(less).mistake)
    wrong = check_top_p(raises)
    assert wrong.step == "top-p, p = 1", wrong
    assert "IndexError" in str(wrong.mistake)


def test_top_p_as_transformers_writes_it_passes() -> None:
    def warper(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
        ranked = logits.sort()
        remove = ranked.values.softmax(-1).cumsum(-1) <= 1 - top_p
        remove[-min_tokens_to_keep:] = False
        return int(
            Categorical(logits=logits.masked_fill(remove.scatter(0, ranked.indices, remove), -torch.inf)).sample()
        )

    assert check_top_p(warper)


TEMPERATURE = "    logits = apply_temperature(logits, temperature)\n"
PENALTY = "    logits = apply_freq_penalty(input_ids, logits, freq_penalty)\n"
WRONG_NEXT = [
    (("cache=cache)[0, -1]", "cache=cache)[0, 0]"), "logits of the first position"),
    (
        (
            f"{TEMPERATURE}{PENALTY}",
            f"{PENALTY}{TEMPERATURE}",
        ),
        "penalty comes before the temperature",
    ),
    (("    logits = apply_temperature(logits, temperature)\n", ""), "temperature is not used"),
    (("    logits = apply_freq_penalty(input_ids, logits, freq_penalty)\n", ""), "freq_penalty is not used"),
    (("    if top_k:\n", "    if False:\n"), "top_k is not used"),
    (("    if top_p:\n", "    if False:\n"), "top_p is not used"),
    (
        ("if temperature == 0:\n        return greedy_search(logits)\n", "if False:\n        return 0\n"),
        "temperature 0",
    ),
    (("if temperature == 0:", "if (temperature := temperature or 0.1) == 0:"), "at temperature 0 it samples"),
    (("model(input_ids[None], cache=cache)[0, -1]", "model(input_ids, cache=cache)[-1]"), "expected [batch, seq]"),
]


IF_TOP_K, IF_TOP_P = "    if top_k:\n", "    if top_p:\n"
RAW = "logits = model(input_ids[None], cache=cache)[0, -1]\n"
WRONG_NEXT += [
    ((IF_TOP_K, f"    if top_k:\n        {RAW}"), "with top_k, temperature and frequency penalty are not used"),
    ((IF_TOP_P, f"    if top_p:\n        {RAW}"), "with top_p, temperature and frequency penalty are not used"),
    (
        (
            TEMPERATURE,
            "    if top_k:\n        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)\n"
            "        top_k = 0\n"
            "    if top_p:\n        ranked = logits.sort(descending=True)\n"
            "        cut = ranked.values.softmax(-1).cumsum(-1) - ranked.values.softmax(-1) >= top_p\n"
            "        logits = logits.index_fill(0, ranked.indices[cut], -torch.inf)\n        top_p = 0\n" + TEMPERATURE,
        ),
        "cut before temperature and frequency penalty",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG_NEXT, ids=[row[1] for row in WRONG_NEXT])
def test_wrong_next_tokens_are_named(change: tuple[str, str], words: str) -> None:
    result = check_sampling(variant(change).sample_next_token)
    assert not result
    assert words in f"{result.mistake} {result.step}", result


def test_a_penalty_at_temperature_zero_is_told() -> None:
    changed = variant(
        (
            "        return greedy_search(logits)\n",
            "        return greedy_search(apply_freq_penalty(input_ids, logits, freq_penalty))\n",
        )
    )
    result = check_sampling(changed.sample_next_token)
    assert result
    assert any("is applied; the course leaves it out" in note for note in result.notes)


@pytest.mark.parametrize("given", [(), (3,), (lambda x: x,), (SOLUTION.GPT2,)])
def test_misuse_is_an_error_of_the_library(given: tuple[Any, ...]) -> None:
    with pytest.raises(PellucidError):
        check_sampling(*given)


def test_misuse_of_exercise() -> None:
    with pytest.raises(PellucidError, match="one of greedy"):
        check_sampling(SOLUTION.greedy_search, exercise="gredy")
    with pytest.raises(PellucidError):
        check_sampling(SOLUTION.greedy_search, SOLUTION.sample_basic, exercise="greedy")


def test_squeeze_is_blamed_for_what_it_does_and_minlength_is_not() -> None:
    def squeezed(ids: Tensor, logits: Tensor, penalty: float) -> Tensor:
        return logits - penalty * torch.bincount(ids.squeeze(), minlength=logits.size(-1))

    result = check_frequency_penalty(squeezed)
    assert "squeeze() takes its only axis away" in str(result.mistake), result
    assert "minlength" not in str(result.mistake)
    both = check_frequency_penalty(lambda ids, x, p: x - p * torch.bincount(ids.squeeze()))
    assert "minlength" not in str(both.mistake), "two reasons at once: neither alone is one"

    def of_rewards(ids: Tensor, logits: Tensor, penalty: float) -> Tensor:
        assert penalty > 0
        return logits - penalty * torch.bincount(ids, minlength=logits.size(-1))

    result = check_frequency_penalty(of_rewards)
    assert "your code raised AssertionError" in str(result.mistake), "the penalty is what raises, not the ids"


def subtracted(ids: Tensor, logits: Tensor, penalty: float) -> Tensor:
    logits -= penalty * torch.bincount(ids, minlength=len(logits))
    return logits


def masked(logits: Tensor, top_k: int) -> int:
    logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    return int(Categorical(logits=logits).sample())


@pytest.mark.parametrize(
    ("exercise", "fn"),
    [("temperature", lambda x, t: x.div_(t)), ("frequency_penalty", subtracted), ("top_k", masked)],
)
def test_logits_changed_in_place_pass_and_are_noted(exercise: str, fn: Callable[..., Any]) -> None:
    result = check_sampling(fn, exercise=exercise)
    assert result, result
    assert any("changes the logits that it is given in place" in note for note in result.notes)


def test_a_change_in_place_does_not_hide_the_mistake() -> None:
    def added(ids: Tensor, logits: Tensor, penalty: float) -> Tensor:
        logits += penalty * torch.bincount(ids, minlength=len(logits))
        return logits

    assert "added, not subtracted" in str(check_frequency_penalty(added).mistake)
    changes = check_frequency_penalty(lambda ids, x, p: subtracted(ids, x, p) + 0 * ids.sub_(1).sum())
    assert "it changes input_ids in place" in str(changes.mistake)


def test_laws_that_are_told_apart_differ() -> None:
    options = {"top-p": [(0.7,), (0.4,), (0.9,)], "top-k": [(3,), (1,), (5,)], "basic": [()]}
    for name, laws in (("top-p", TOP_P), ("top-k", TOP_K), ("basic", BASIC)):
        made = {
            words: [law(x, *option).round(decimals=6).tolist() for x in probes() for option in options[name]]
            for words, law in laws.items()
        }
        for (a, one), (b, other) in itertools.combinations(made.items(), 2):
            assert one != other, (name, a, b)


def test_what_was_given_is_said_where_code_raises() -> None:
    def without_least(logits: Tensor, top_p: float, min_tokens_to_keep: int = 1) -> int:
        ranked = logits.sort(descending=True)
        keep = int((ranked.values.softmax(-1).cumsum(-1) < top_p).sum())
        return int(ranked.indices[torch.multinomial(ranked.values[:keep].softmax(-1), 1)])

    result = check_top_p(without_least)
    assert "given logits [9], top_p=0.7" in str(result.mistake), result
    assert "ranked.values[:keep]" in str(result.line), result


def test_an_error_inside_of_top_p_is_no_missing_argument() -> None:
    def without(logits: Tensor, top_p: float) -> int:
        return SOLUTION.sample_top_p(logits, top_p)

    def broken(logits: Tensor, top_p: float, min_tokens_to_keep: Any = 1) -> int:
        return SOLUTION.sample_top_p(logits, top_p) if min_tokens_to_keep == 1 else len(min_tokens_to_keep)

    assert "it takes no min_tokens_to_keep, which the course's has" in check_top_p(without).notes
    result = check_top_p(broken)
    assert "TypeError: object of type 'int' has no len()" in str(result.mistake), result


def test_an_array_of_one_number_is_an_id_like_a_tensor() -> None:
    for one in (lambda x: x.argmax().numpy(), lambda x: x.argmax()[None].numpy(), lambda x: x.argmax()[None]):
        result = check_greedy(one)
        assert result, result
        assert any("signature says int" in note for note in result.notes)
    assert "expected one token id" in str(check_greedy(lambda x: x.topk(2).indices.numpy()).mistake)


@pytest.mark.parametrize("level", [0, 4, "1", 1.5])
def test_a_hint_of_another_level_is_refused(level: Any) -> None:
    with pytest.raises(PellucidError, match="expected 1, 2, 3 or None"):
        check_greedy(SOLUTION.greedy_search, hint=level)


def test_what_code_prints_is_told_once() -> None:
    def loud(logits: Tensor) -> int:
        print("shape", list(logits.shape))  # noqa: T201 (it is what a learner does)
        return int(logits.argmax())

    result = check_greedy(loud)
    assert [note for note in result.notes if "printed" in note] == [
        "your code printed: 'shape [11]', … (6 lines in all)"
    ]


def test_code_that_asks_is_told_that_nobody_answers() -> None:
    def stops(logits: Tensor) -> int:
        pdb.Pdb(nosigint=True).set_trace()
        return int(logits.argmax())

    for asks in (lambda logits: int(input("which? ")), stops):
        result = check_greedy(asks)
        assert "it runs without input() and breakpoint()" in str(result.mistake), result


def test_minlength_is_not_blamed_for_another_error() -> None:
    result = check_frequency_penalty(lambda ids, logits, penalty: logits - penalty * missing)  # noqa: F821
    assert "NameError" in str(result.mistake)
    assert "minlength" not in str(result.mistake)


@pytest.mark.parametrize("make", [lambda x: x.to(torch.complex64), lambda x: x.to_sparse(), lambda x: x.to("meta")])
def test_what_holds_no_real_numbers_is_not_taken_for_logits(make: Any) -> None:
    result = check_temperature(lambda logits, temperature: make(logits / temperature))
    assert "expected real numbers on the CPU" in str(result.mistake), result
    module = check_block(lambda *_: Kept(make))
    assert "expected real numbers on the CPU" in str(module.mistake), module


class Kept(SOLUTION.GPT2Block):  # type: ignore[name-defined, misc]
    """A right block whose output is made another kind of tensor."""

    def __init__(self, make: Any) -> None:
        super().__init__(12, 4, 0.25, 0.1, "relu")
        self.make = make

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        return self.make(super().forward(x))
