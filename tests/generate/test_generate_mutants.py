"""Generation broken on purpose: each check first passes, then must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import test_generate as features
import test_generate_equal as equal
import torch

import pellucid as pl
import support
from pellucid.generate import beams, generation, loop, sampler, stages, stepper
from pellucid.run import cache
from text import test_tokens as tokens

Patch = pytest.MonkeyPatch


def setting(name: str) -> Callable[[], None]:
    def check() -> None:
        for model in equal.MODELS:
            for lengths in equal.PROMPTS.values():
                equal.test_every_setting(model, name, lengths)

    check.__name__ = name
    return check


def penalties() -> None:
    sampler = pl.Sampler(frequency_penalty=1.1, presence_penalty=0.4, repetition_penalty=1.2, top_k=20)
    equal.test_penalties_that_transformers_lacks(sampler, equal.PROMPTS["padded"])


def stage(name: str) -> Callable[[], None]:
    def check() -> None:
        equal.test_stages_are_the_processors_of_transformers(name)

    check.__name__ = f"stage {name}"
    return check


def searches() -> None:
    for name in ("3 beams, penalty 2, early False, 2 returned", "3 beams, penalty -1, early never, 2 returned"):
        equal.test_beams(name, (11, 40, 3, 90))


def sampled_searches() -> None:
    equal.test_beams_with_a_sampler("everything", "tied")


def generators() -> None:
    equal.test_the_generator_is_left_where_theirs_is("plain", 1)


def caches() -> None:
    features.test_float64_with_and_without_a_cache(support.glass(dtype=torch.float64))


def common_beginnings() -> None:
    with Patch.context() as patch:
        features.test_a_common_beginning_runs_once(support.glass(), patch)


def captures() -> None:
    features.test_captures_equal_one_run_over_the_text((3, 9, 6), True, support.glass(dtype=torch.float64))


def edits() -> None:
    for name in ("in what follows", "on both sides"):
        features.test_edits_count_columns_of_the_text(name, (6, 3), support.glass(dtype=torch.float64))


def sliding() -> None:
    features.test_sliding(True, support.glass())


def ends() -> None:
    features.test_each_row_has_its_own_end(support.glass())


def own_log_probabilities() -> None:
    features.test_log_probabilities_are_the_models_own(support.glass())


def spaces() -> None:
    tokens.test_tokens_keep_the_spaces_that_a_text_begins_without(tokens.metaspace)


def streamed_spaces() -> None:
    tokens.test_a_stream_keeps_spaces(tokens.wordpiece)


def spaces_of_generated_texts() -> None:
    tokens.test_texts_grow_by_what_is_streamed(tokens.stripping)


def stopping_spaces() -> None:
    tokens.test_texts_stop_at_a_space(tokens.metaspace)


def nan() -> None:
    features.test_nan_is_traced_to_where_it_begins("blocks.1.mlp.W_in", "blocks.1.mlp.ckpt_pre")


CHECKS = [
    *map(stage, ("top_p", "top_k", "min_p", "typical_p", "repetition", "n-grams", "suppress")),
    *map(setting, ("top p", "minimum", "suppressed", "all filters")), penalties, searches,
    sampled_searches, generators, caches, common_beginnings, captures, edits, sliding, ends, nan,
    features.test_stop_strings_across_tokens, features.test_a_stream_never_splits_a_character,
    own_log_probabilities, spaces, streamed_spaces, spaces_of_generated_texts, stopping_spaces,
]  # fmt: skip


def patched(module: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, value)


def reversed_filters(patch: Patch) -> None:
    filters = sampler.Sampler._filters
    patch.setattr(sampler.Sampler, "_filters", lambda self, keep: filters(self, keep)[::-1])


def unrewound(patch: Patch) -> None:
    """Positions restart with every piece."""
    patch.setattr(cache.KeyValueCache, "counts", property(lambda self: torch.zeros(self.rows, dtype=torch.long)))


def pads_count(patch: Patch) -> None:
    right = stages.counts_of
    patch.setattr(stages, "counts_of", lambda ids, mask, size: right(ids, torch.ones_like(mask), size))


def finished_rows_do_not_draw(patch: Patch) -> None:
    right = sampler.Sampler.choose

    def choose(self: Any, logits: Any, generator: Any = None) -> Any:
        return torch.cat([right(self, row[None], generator) for row in logits.flip(0)]).flip(0)

    patch.setattr(sampler.Sampler, "choose", choose)


def draws_twice(patch: Patch) -> None:
    right = sampler.Sampler.choose
    patch.setattr(sampler.Sampler, "choose", lambda self, x, g=None: (right(self, x, g), right(self, x, g))[1])


def scored_by_whole_length(patch: Patch) -> None:
    right = beams.Search._updated
    patch.setattr(beams.Search, "_updated", lambda self, f, c, i, step: right(self, f, c, i, step + 3))


def never_reordered(patch: Patch) -> None:
    patch.setattr(stepper.Stepper, "reorder", lambda self, rows: None)


def logprobs_after_the_sampler(patch: Patch) -> None:
    right = loop.chosen_logprobs
    patch.setattr(loop, "chosen_logprobs", lambda logits, chosen: right(logits / 3, chosen))


def pieces_begin_at_0(patch: Patch) -> None:
    right = stepper.Look.tap
    patch.setattr(stepper.Look, "tap", lambda self, start: right(self, 0))


def keys_are_not_filled(patch: Patch) -> None:
    fill = torch.nn.functional.pad
    patch.setattr(torch.nn.functional, "pad", lambda piece, sizes, value=0.0: fill(piece, sizes, value=0.25))


def window_is_one_short(patch: Patch) -> None:
    right = stepper.Stepper._window
    patch.setattr(stepper.Stepper, "_window", lambda self: _shorter(right(self)))


def _shorter(batch: Any) -> Any:
    return replace(batch, ids=batch.ids[:, 1:], positions=batch.positions[:, :-1], mask=batch.mask[:, 1:])


def longer_ngrams(patch: Patch) -> None:
    right = stages.no_repeat_ngrams
    patch.setattr(stages, "no_repeat_ngrams", lambda x, ids, mask, size: right(x, ids, mask, size + 1))


def unlikely(logits: torch.Tensor, tokens: Any) -> torch.Tensor:
    out = logits.clone()
    out[..., list(tokens)] -= 10
    return out


def nothing_hits(patch: Patch) -> None:
    patch.setattr(beams.Search, "_hits", lambda self, ids: ids[..., 0] > 1e9)


def never_before_the_end(patch: Patch) -> None:
    reason = lambda self, new: "length" if len(new) == self.max_new_tokens else None  # noqa: E731
    patch.setattr(generation.Stopping, "reason", reason)


def within_a_token(patch: Patch) -> None:
    holds = lambda self, new: self.tokenizer.decode(new[-1:]) in self.strings  # noqa: E731
    patch.setattr(generation.Stopping, "_holds_a_string", holds)


def nothing_stands_before(patch: Patch) -> None:
    decode = pl.Tokenizer.decode

    def alone(self: pl.Tokenizer, ids: Any, *, after: Any = ()) -> str:
        return decode(self, ids)

    patch.setattr(pl.Tokenizer, "decode", alone)


def prompts_are_not_text(patch: Patch) -> None:
    begin = generation.TextStream.__init__
    patch.setattr(generation.TextStream, "__init__", lambda self, tokenizer, after=(): begin(self, tokenizer))


MUTANTS: dict[str, tuple[Callable[[Patch], None], Callable[[], None]]] = {
    "the nucleus leaves out its last token": (
        patched(stages, "top_p", lambda x, p, keep=1: _nucleus(x, p)), stage("top_p")),
    "top k keeps one more": (
        patched(stages, "top_k", lambda x, k, keep=1: x.masked_fill(x < x.topk(k + 1)[0][:, -1:], -torch.inf)),
        stage("top_k")),
    "min p is absolute": (
        patched(stages, "min_p", lambda x, p, keep=1: x.masked_fill(x.softmax(-1) < p, -torch.inf)), stage("min_p")),
    "typical is the nucleus": (patched(stages, "typical_p", stages.top_p), stage("typical_p")),
    "repetition divides negative logits too": (
        patched(stages, "repetition", lambda x, counts, p: torch.where(counts > 0, x / p, x)), stage("repetition")),
    "n-grams are one longer": (longer_ngrams, stage("n-grams")),
    "suppressed tokens are only unlikely": (patched(stages, "suppress", unlikely), stage("suppress")),
    "nothing is suppressed": (patched(stages, "suppress", lambda x, tokens: x), setting("suppressed")),
    "the minimum is not kept": (patched(stages, "suppress", lambda x, tokens: x), setting("minimum")),
    "filters come in another order": (reversed_filters, setting("all filters")),
    "pads count": (pads_count, penalties),
    "rows draw in another order": (finished_rows_do_not_draw, setting("top p")),
    "two draws a step": (draws_twice, generators),
    "length counts more than the new tokens": (scored_by_whole_length, searches),
    "beams do not move": (never_reordered, searches),
    "sampled beams never finish": (nothing_hits, sampled_searches),
    "positions restart": (unrewound, caches),
    "the common beginning is one too long": (
        patched(stepper, "_common_beginning", lambda batch: 31), common_beginnings),
    "log-probabilities are the sampler's": (logprobs_after_the_sampler, own_log_probabilities),
    "edits count from each piece": (pieces_begin_at_0, edits),
    "later keys are attended to": (keys_are_not_filled, captures),
    "the window is one short": (window_is_one_short, sliding),
    "no text ends before the others": (never_before_the_end, ends),
    "stop strings within a token only": (within_a_token, features.test_stop_strings_across_tokens),
    "tokens are decoded alone": (
        patched(generation.TextStream, "push", lambda self, token: self._tokenizer.decode([token])),
        features.test_a_stream_never_splits_a_character),
    "spaces are dropped from pieces": (nothing_stands_before, spaces),
    "spaces are dropped from streams": (nothing_stands_before, streamed_spaces),
    "a stream begins a text": (prompts_are_not_text, spaces_of_generated_texts),
    "stop strings begin a text": (nothing_stands_before, stopping_spaces),
    "nan is not looked for": (patched(torch.Tensor, "isnan", lambda self: torch.zeros_like(self).bool()), nan),
}  # fmt: skip


def _nucleus(logits: torch.Tensor, p: float) -> torch.Tensor:
    ordered, order = logits.sort(descending=True)
    out = ordered.softmax(-1).cumsum(-1) > p
    out[..., :1] = False
    return logits.masked_fill(out.scatter(-1, order, out), -torch.inf)


@pytest.mark.long  # each is run as a test of its own file, too
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checks_pass_unbroken(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    breaks, check = MUTANTS[name]
    with Patch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, RuntimeError, IndexError, pl.PellucidError, pytest.fail.Exception)):
            check()


def test_every_check_has_a_mutant() -> None:
    used = {check.__name__ for _, check in MUTANTS.values()}
    assert used == {check.__name__ for check in CHECKS}
