"""Token for token what transformers generates: greedy, every setting of the sampler, padded batches, beams."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from generate import hf_generation as theirs
from pellucid.generate import beams, stages
from pellucid.open import BUNDLED

LOGPROB = 1e-5
"""Largest distance of log-probabilities: rounding in float32."""

MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "odd": {"n_embd": 30, "n_head": 5, "n_layer": 2, "activation_function": "gelu", "n_inner": 50, "vocab_size": 97,
            "scale_attn_by_inverse_layer_idx": True},
    "one head": {"n_embd": 16, "n_head": 1, "n_layer": 1, "scale_attn_weights": False, "vocab_size": 300},
}  # fmt: skip

SAMPLERS: dict[str, pl.Sampler | None] = {
    "greedy": None,
    "greedy, repetition": pl.Sampler(temperature=0, repetition_penalty=1.4),
    "greedy, bigrams": pl.Sampler(temperature=0, no_repeat_ngram_size=2),
    "greedy, trigrams, minimum": pl.Sampler(temperature=0, no_repeat_ngram_size=3, min_new_tokens=6),
    "greedy, suppressed": pl.Sampler(temperature=0, suppress_tokens=(3, 5, 8, 13), min_new_tokens=3),
    "plain": pl.Sampler(),
    "cool": pl.Sampler(temperature=0.3),
    "hot": pl.Sampler(temperature=2.5),
    "top k": pl.Sampler(top_k=5),
    "top k of one": pl.Sampler(top_k=1),
    "top k beyond the vocabulary": pl.Sampler(top_k=10**6),
    "top p": pl.Sampler(top_p=0.8),
    "small top p": pl.Sampler(top_p=0.05),
    "min p": pl.Sampler(min_p=0.1),
    "typical": pl.Sampler(typical_p=0.6),
    "k and p": pl.Sampler(temperature=0.8, top_k=50, top_p=0.95),
    "all filters": pl.Sampler(temperature=1.3, top_k=40, top_p=0.9, min_p=0.02, typical_p=0.95),
    "repetition": pl.Sampler(repetition_penalty=1.3),
    "anti-repetition": pl.Sampler(repetition_penalty=0.7, temperature=0.9),
    "bigrams": pl.Sampler(no_repeat_ngram_size=2, top_k=20),
    "minimum": pl.Sampler(min_new_tokens=9, temperature=1.5),
    "suppressed": pl.Sampler(suppress_tokens=(0, 1, 2, 50), top_p=0.7),
    "everything": pl.Sampler(
        temperature=0.9, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.97, repetition_penalty=1.2,
        no_repeat_ngram_size=3, suppress_tokens=(7,), min_new_tokens=4,
    ),
}  # fmt: skip

PROMPTS = {"one": (6,), "padded": (9, 2, 5)}
ENDS: tuple[int, ...] = (11, 40)


@functools.cache
def pair(name: str) -> tuple[pl.CkptedTransformer, Any]:
    ours, hf = support.pair(**MODELS[name])
    hf.generation_config.eos_token_id = hf.generation_config.bos_token_id = None
    return ours, hf


def same(out: pl.Generation, expected: theirs.Theirs) -> None:
    assert [row.tolist() for row in out.new_ids] == expected.new
    for row, stated in zip(out.logprobs, expected.logprobs, strict=True):
        assert (row - torch.tensor(stated)).abs().max() < LOGPROB


def skip_where_pads_are_penalized() -> None:
    """Before 5.23 the repetition penalty of transformers takes pads for tokens that occurred; ours never does."""
    if support.TRANSFORMERS < (5, 23):
        pytest.skip("this version penalizes pads")


def settings() -> Iterator[Any]:
    """Every setting with pads; models and single prompts change nothing in one, and `test-all` pairs them all."""
    for model, setting, (prompt, lengths) in itertools.product(MODELS, SAMPLERS, PROMPTS.items()):
        every_run = (model, prompt) == ("tied", "padded") or setting in ("greedy", "everything")
        marks = [] if every_run else [pytest.mark.long]
        yield pytest.param(model, setting, lengths, marks=marks, id=f"{model}-{setting}-{prompt}")


@pytest.mark.parametrize(("model", "setting", "lengths"), [*settings()])
def test_every_setting(model: str, setting: str, lengths: tuple[int, ...]) -> None:
    ours, hf = pair(model)
    sampler = SAMPLERS[setting]
    if len(lengths) > 1 and sampler is not None and sampler.repetition_penalty != 1:
        skip_where_pads_are_penalized()
    rows = support.ragged_ids(*lengths, vocab_size=ours.config.vocab_size, seed=3)
    wanted = theirs.generate(hf, rows, sampler=SAMPLERS[setting], seed=5, end_ids=ENDS)
    out = ours.generate(rows, max_new_tokens=12, sampler=SAMPLERS[setting], seed=5, end_ids=ENDS)
    same(out, wanted)


def processors() -> dict[str, tuple[Any, Any]]:
    """Stage -> ours on logits and ids, theirs on ids and logits."""
    import transformers as t

    return {
        "temperature": (lambda x, ids: stages.temperature(x, 0.7), t.TemperatureLogitsWarper(0.7)),
        "top_k": (lambda x, ids: stages.top_k(x, 5), t.TopKLogitsWarper(5)),
        "top_k of two": (lambda x, ids: stages.top_k(x, 1, 2), t.TopKLogitsWarper(1, min_tokens_to_keep=2)),
        "top_p": (lambda x, ids: stages.top_p(x, 0.9), t.TopPLogitsWarper(0.9)),
        "top_p of two": (lambda x, ids: stages.top_p(x, 0.01, 2), t.TopPLogitsWarper(0.01, min_tokens_to_keep=2)),
        "min_p": (lambda x, ids: stages.min_p(x, 0.05), t.MinPLogitsWarper(0.05)),
        "typical_p": (lambda x, ids: stages.typical_p(x, 0.8), t.TypicalLogitsWarper(0.8)),
        "repetition": (
            lambda x, ids: stages.repetition(x, stages.counts_of(ids, torch.ones_like(ids) > 0, x.size(-1)), 1.4),
            t.RepetitionPenaltyLogitsProcessor(1.4),
        ),
        "n-grams": (
            lambda x, ids: stages.no_repeat_ngrams(x, ids, torch.ones_like(ids) > 0, 2),
            t.NoRepeatNGramLogitsProcessor(2),
        ),
        "suppress": (lambda x, ids: stages.suppress(x, (3, 9)), t.SuppressTokensLogitsProcessor([3, 9])),
    }  # fmt: skip


@pytest.mark.parametrize("stage", processors())
def test_stages_are_the_processors_of_transformers(stage: str) -> None:
    """Equal to the bit, on logits of both signs, with equal values and with some taken out before."""
    ours, theirs_ = processors()[stage]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(3, 40, generator=generator) * 3
        logits = (logits * 2).round() / 2 if seed % 3 == 1 else logits
        logits[:, 30:] = -torch.inf if seed % 3 == 2 else logits[:, 30:]
        ids = torch.randint(8, (3, 25), generator=generator)
        assert torch.equal(ours(logits.clone(), ids), theirs_(ids, logits.clone())), seed


@pytest.mark.parametrize("seed", support.few_of(range(4), 0))
@pytest.mark.parametrize("setting", ["plain", "k and p", "everything"])
def test_the_generator_is_left_where_theirs_is(setting: str, seed: int) -> None:
    ours, hf = pair("tied")
    rows = support.ragged_ids(4, 7, vocab_size=211, seed=seed)
    theirs.generate(hf, rows, sampler=SAMPLERS[setting], seed=seed, end_ids=ENDS)
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    ours.generate(rows, max_new_tokens=12, sampler=SAMPLERS[setting], end_ids=ENDS)
    assert torch.equal(torch.get_rng_state(), after)
    generator = torch.Generator().manual_seed(seed)
    ours.generate(rows, max_new_tokens=12, sampler=SAMPLERS[setting], end_ids=ENDS, seed=generator)
    assert torch.equal(generator.get_state(), after)


@pytest.mark.parametrize("returned", [1, 3])
@pytest.mark.parametrize("setting", ["plain", "top p", "everything"])
def test_several_sequences(setting: str, returned: int) -> None:
    ours, hf = pair("untied")
    rows = support.ragged_ids(4, 7, seed=1)
    wanted = theirs.generate(hf, rows, sampler=SAMPLERS[setting], seed=2, end_ids=ENDS, returned=returned)
    sampler = SAMPLERS[setting]
    out = ours.generate(rows, max_new_tokens=12, sampler=sampler, seed=2, end_ids=ENDS, num_return_sequences=returned)
    same(out, wanted)


BEAMS: dict[str, dict[str, Any]] = {
    f"{width} beams, penalty {penalty:g}, early {early}, {returned} returned": {
        "num_beams": width, "length_penalty": penalty, "early_stopping": early, "returned": returned,
    }
    for width, returned in ((2, 1), (3, 2), (5, 5))
    for penalty in (-1.0, 0.0, 1.0, 2.0)
    for early in (False, True, "never")
}  # fmt: skip


def ended_beams() -> Iterator[Any]:
    """Each width, penalty and stop with many ends; whether an end comes at all is asked of three beams alone."""
    ends = {"no end": (), "one end": (11,), "many ends": (11, 40, 3, 90)}
    for search, (name, ids) in itertools.product(BEAMS, ends.items()):
        every_run = search.startswith(("3 beams, penalty 1,", "2 beams, penalty -1,", "5 beams, penalty 2,"))
        every_run = every_run and (name == "many ends" or search.startswith("3"))
        yield pytest.param(search, ids, marks=[] if every_run else [pytest.mark.long], id=f"{search}-{name}")


@pytest.mark.parametrize(("beams", "ends"), [*ended_beams()])
def test_beams(beams: str, ends: tuple[int, ...]) -> None:
    ours, hf = pair("tied")
    rows = support.ragged_ids(7, 3, seed=4)
    wanted = theirs.generate(hf, rows, end_ids=ends, max_new_tokens=9, **BEAMS[beams])
    given = {name if name != "returned" else "num_return_sequences": value for name, value in BEAMS[beams].items()}
    out = ours.generate(rows, max_new_tokens=9, end_ids=ends, **given)
    same(out, wanted)
    assert wanted.scores is not None
    assert out.scores == pytest.approx(wanted.scores, rel=1e-6)  # sums of float32, some of them multiplied


@pytest.mark.parametrize(
    ("model", "setting"),
    support.few_of(
        itertools.product(MODELS, ("greedy, repetition", "greedy, bigrams", "plain", "k and p", "everything")),
        "tied", ("odd", "everything"), ("one head", "plain"),
    ),
)  # fmt: skip
def test_beams_with_a_sampler(setting: str, model: str) -> None:
    ours, hf = pair(model)
    rows = support.ragged_ids(5, 8, vocab_size=ours.config.vocab_size, seed=6)
    sampler = SAMPLERS[setting]
    wanted = theirs.generate(hf, rows, sampler=sampler, seed=9, end_ids=ENDS, max_new_tokens=9, num_beams=3)
    out = ours.generate(rows, max_new_tokens=9, sampler=sampler, seed=9, end_ids=ENDS, num_beams=3)
    same(out, wanted)
    assert out.follows == ("transformers {}.{}".format(*support.TRANSFORMERS) if sampler.temperature else None)


@pytest.mark.skipif(support.TRANSFORMERS < (5, 24), reason="keeps the order of the draw itself")
@pytest.mark.parametrize("seed", support.few_of(range(6), 0, 1))
def test_beams_drawn_in_the_order_of_versions_before_5_24(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, hf = pair("tied")
    rows = support.ragged_ids(5, 8, seed=seed)
    given: dict[str, Any] = {"seed": seed, "max_new_tokens": 9, "num_beams": 3, "end_ids": ENDS}
    newest = theirs.generate(hf, rows, sampler=pl.Sampler(), **given)
    with monkeypatch.context() as earlier:
        earlier.setattr(torch.Tensor, "sort", lambda x, **_: (x, torch.arange(x.size(-1)).expand_as(x)))
        wanted = theirs.generate(hf, rows, sampler=pl.Sampler(), **given)
    assert wanted.new != newest.new, "the order decides"
    monkeypatch.setattr(beams.metadata, "version", lambda name: "5.23.0")
    beams.followed.cache_clear()
    out = ours.generate(rows, sampler=pl.Sampler(), **given)
    beams.followed.cache_clear()
    same(out, wanted)
    assert out.follows == "transformers 5.23"


def test_the_newest_known_version_is_followed_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise beams.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(beams.metadata, "version", absent)
    beams.followed.cache_clear()
    assert beams.followed() == beams.NEWEST >= support.TRANSFORMERS
    beams.followed.cache_clear()


@pytest.mark.parametrize(
    "setting",
    [
        pl.Sampler(temperature=0, frequency_penalty=0.7),
        pl.Sampler(frequency_penalty=1.1, presence_penalty=0.4, repetition_penalty=1.2, top_k=20),
        pl.Sampler(presence_penalty=-0.5, no_repeat_ngram_size=3, temperature=0.8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("lengths", PROMPTS.values(), ids=PROMPTS)
def test_penalties_that_transformers_lacks(setting: pl.Sampler, lengths: tuple[int, ...]) -> None:
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    class Subtract:
        """The test's own: how often each token stands in a row, counted one by one."""

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            for row, text in enumerate(ids.tolist()):
                real = text[pads[row % len(pads)] :]
                for token in set(real):
                    scores[row, token] -= setting.frequency_penalty * real.count(token) + setting.presence_penalty
            return scores

    ours, hf = pair("tied")
    rows = support.ragged_ids(*lengths, seed=3)
    pads = [max(lengths) - length for length in lengths]
    penalty = setting.repetition_penalty
    repeats = []
    if penalty != 1:
        skip_where_pads_are_penalized()
        start = torch.tensor(pads)
        repeats = [RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=start)]
    # transformers puts a caller's processors behind its own: n-grams and the minimum come after penalties there too.
    plain = pl.Sampler(**{f: getattr(setting, f) for f in ("temperature", "top_k", "no_repeat_ngram_size")})
    wanted = theirs.generate(
        hf, rows, sampler=plain, seed=1, end_ids=ENDS, processors=LogitsProcessorList([*repeats, Subtract()])
    )
    same(ours.generate(rows, max_new_tokens=12, sampler=setting, seed=1, end_ids=ENDS), wanted)


@pytest.mark.parametrize("setting", support.few_of(["greedy", "k and p", "everything"], "everything"))
def test_bundled(setting: str) -> None:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    ours = pl.load()
    texts = ["Once upon a time", "Lily", "One day, Tom and Mia went to the park because"]
    rows = [ours.tokenizer.encode(text) for text in texts]
    ends = ours.config.end_ids
    wanted = theirs.generate(hf, rows, sampler=SAMPLERS[setting], seed=4, end_ids=ends, max_new_tokens=40)
    same(ours.generate(texts, max_new_tokens=40, sampler=SAMPLERS[setting], seed=4), wanted)
    wanted = theirs.generate(hf, rows, end_ids=ends, max_new_tokens=20, num_beams=4, returned=2)
    same(ours.generate(texts, max_new_tokens=20, num_beams=4, num_return_sequences=2), wanted)
