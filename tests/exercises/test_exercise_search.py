"""Beam search and the cache: wrong ones are named, right ones pass in any style."""

from __future__ import annotations

from typing import Any

import pytest
from exercise_solution import variant
from torch import Tensor

from pellucid.exercises import check_cache, check_sampling

SOLUTION = variant()

WRONG_BEAMS = [
    (("F.log_softmax(model(ids[None])[0, -1], -1)", "model(ids[None])[0, -1]"), "logits are added up"),
    (
        ("F.log_softmax(model(ids[None])[0, -1], -1)", "model(ids[None])[0, -1].softmax(-1)"),
        "probabilities are added up",
    ),
    (("score + float(gain)", "float(gain)"), "the last token's alone"),
    ((".topk(2 * num_beams)", ".topk(1)"), "only by its own most likely"),
    (
        (
            "    beams, ended = [(0.0, input_ids)], []\n",
            "    num_beams = 1\n    beams, ended = [(0.0, input_ids)], []\n",
        ),
        "greedy",
    ),
    (
        (
            "return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]",
            "return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences][::-1]",
        ),
        "worst text comes first",
    ),
    (
        (
            "return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]",
            "return sorted(ended, key=lambda one: one[0], reverse=True)",
        ),
        "all beams are returned",
    ),
    (
        ("return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]", "return ended[0]"),
        "expected a list",
    ),
    (
        (
            "    for _ in range(max_new_tokens):\n        grown",
            "    for _ in range(max_new_tokens - 1):\n        grown",
        ),
        "no known mistake",
    ),
]


@pytest.mark.parametrize(("change", "words"), WRONG_BEAMS, ids=[row[1] for row in WRONG_BEAMS])
def test_wrong_beam_searches_are_named(change: tuple[str, str], words: str) -> None:
    result = check_sampling(variant(change).beam_search)
    assert not result
    assert words in str(result.mistake), result


ENDS = "            if ids[-1] == tokenizer.eos_token_id:\n"
LAST = "    return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]\n"
DIVIDED = LAST.replace("sorted(ended,", "sorted([(score / len(ids), ids) for score, ids in ended],")
WRONG_ENDS = [
    (((ENDS, "            if False:\n"),), "goes on behind its end token, 0: "),
    (((ENDS, "            if False:\n"), (LAST, DIVIDED)), "goes on behind its end token, 0: "),
    ((("                ended.append((score, ids[:-1]))\n", "                continue\n"),),
     "texts that have ended are missing: [2, 7, 4"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG_ENDS, ids=["ignored", "ignored, by length", "thrown away"])
def test_a_search_that_does_not_end_texts_is_named(changes: Any, words: str) -> None:
    result = check_sampling(variant(*changes).beam_search)
    assert not result
    assert words in str(result.mistake), result
    assert result.step == "beam search, texts that end"


def test_nothing_is_returned_where_all_texts_end() -> None:
    nothing = LAST.replace("sorted(ended,", "sorted([] if any(0 in ids for _, ids in ended) else ended,")
    result = check_sampling(variant(("score, ids[:-1]", "score, ids"), (LAST, nothing)).beam_search)
    assert "texts that have ended are missing" in str(result.mistake), result


def test_texts_that_are_padded_with_the_end_token_pass_without_a_claim() -> None:
    result = check_sampling(variant(("score, ids[:-1]", "score, F.pad(ids, (0, 2))")).beam_search)
    assert result, result
    assert any("nothing is claimed" in note for note in result.notes), result


def test_other_forms_of_beam_search_are_told_not_failed() -> None:
    kept = check_sampling(variant(("ended.append((score, ids[:-1]))", "ended.append((score, ids))")).beam_search)
    assert kept
    assert any("keeps its end token" in text for text in kept.proved)
    end = "return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]"
    divided = "\n    ended = [(score / len(ids), ids) for score, ids in ended]\n    "
    by_length = check_sampling(variant((end, divided.lstrip("\n ") + "\n    " + end)).beam_search)
    assert by_length, by_length
    assert any("divided by the length of the text" in note for note in by_length.notes)
    assert not any("nothing is claimed" in note for note in by_length.notes), by_length


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
    assert "IndexError" in str(result.mistake) or "remembers" in str(result.mistake), result
