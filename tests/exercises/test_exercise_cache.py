"""The cache: wrong ones are named, right ones pass in any style."""

from __future__ import annotations

from typing import Any

import pytest
from exercise_solution import variant
from torch import Tensor

from pellucid.exercises import check_cache, check_sampling

SOLUTION = variant()

CAT = "k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)"
WRONG_CACHE = [
    (("torch.arange(before, before + x.shape[1]", "torch.arange(x.shape[1]"), "always gets position 0"),
    (("cache.length += x.shape[1]", "cache.length += x.shape[1] + (cache.length == 0)"), "one too high"),
    ((CAT, "pass"), "sees only itself"),
    (("        self.kept[layer] = k, v\n", "        self.kept.setdefault(layer, (k, v))\n"), "not extended"),
    (
        (
            "        self.kept[layer] = k, v\n",
            "        self.kept[layer] = (k, v) if layer not in self.kept else (k[:, :, -1:], v[:, :, -1:])\n",
        ),
        "overwritten",
    ),
    ((CAT, "k, v = torch.cat([old_v, k], dim=2), torch.cat([old_k, v], dim=2)"), "no known mistake"),
    (("triu(keys - seq + 1)", "triu(1)"), "only the first key"),
    ((CAT, "k, v = torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1)"), "RuntimeError"),
]


@pytest.mark.parametrize(("change", "words"), WRONG_CACHE, ids=[row[1] for row in WRONG_CACHE])
def test_wrong_caches_are_named(change: tuple[str, str], words: str) -> None:
    changed = variant(change)
    result = check_cache(changed.GPT2, changed.Cache)
    assert not result
    assert words in str(result.mistake), result


def test_right_caches_pass_in_any_style() -> None:
    assert check_cache(SOLUTION.GPT2, SOLUTION.Cache)
    assert check_sampling(SOLUTION.GPT2, make_cache=SOLUTION.Cache)

    class Returned(SOLUTION.GPT2):
        def forward(self, x: Tensor, cache: Any = None) -> Any:
            logits = super().forward(x, cache)
            return logits if cache is None else (logits, cache)

    assert check_cache(Returned, lambda model: SOLUTION.Cache())


def test_a_cache_that_is_returned_without_being_asked_for() -> None:
    class Always(SOLUTION.GPT2):
        def forward(self, x: Any, cache: Any = None) -> Any:
            return super().forward(x, cache=cache), cache

    assert check_cache(Always, lambda model: SOLUTION.Cache())


def test_a_cache_that_remembers_is_noticed() -> None:
    shared = SOLUTION.Cache()
    result = check_cache(SOLUTION.GPT2, lambda: shared)
    assert not result
    assert "remembers the run before: make_cache has to make a new one" in str(result.mistake), result


def test_a_cache_that_is_not_read_is_not_taken_for_one_of_whole_texts() -> None:
    class Forgetful(SOLUTION.GPT2):
        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            return super().forward(x)

    result = check_cache(Forgetful, SOLUTION.Cache)
    assert result.mistake == "the cache is not read and the position is 0", result


def test_a_cache_for_whole_texts_is_told_what_the_course_gives() -> None:
    class Cutting(SOLUTION.GPT2):
        def forward(self, x: Tensor, cache: Any = None) -> Tensor:
            done = 0 if cache is None else cache.length
            return super().forward(x[:, done:].reshape(1, x.shape[1] - done) if done else x, cache)

    result = check_cache(Cutting, SOLUTION.Cache)
    assert "it expects the whole text each time and cuts off what the cache holds" in str(result.mistake), result
    assert "one token at a time" in str(result.mistake)


def test_what_returns_no_logits_or_is_no_module_is_told() -> None:
    class Silent(SOLUTION.GPT2):
        def forward(self, x: Tensor, cache: Any = None) -> None:
            return None

    result = check_cache(Silent, SOLUTION.Cache)
    assert result.mistake == "the output is NoneType [], expected logits [1, 9, vocab]", result
    assert check_cache(lambda config: None, SOLUTION.Cache).mistake == "GPT2 is no nn.Module: NoneType"
