"""Beam search: the published solutions pass and are told apart, wrong ones are named, and the probes can tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from exercise_solution import variant
from torch import Tensor, nn

from pellucid.exercises import beam_forms, beam_search, check_beam_search, check_sampling
from pellucid.exercises.beam_forms import (
    BEAMS,
    COURSE,
    END,
    ENDINGS,
    NEW,
    PROMPT,
    PUBLISHED,
    RETURNED,
    BeamForm,
    Ending,
    Found,
    forms,
)
from pellucid.exercises.beam_search import WRONG, WRONG_ENDS, Vocabulary

SEEDS = range(50)


def of_the_course(model: Any, prompt: Tensor, returned: int, width: int, new: int, tokenizer: Any) -> Any:
    """The published solution, as its page describes it: in float32, over the flattened scores of all beams."""
    ids, scores, done = prompt[None], torch.zeros(1), []
    for _ in range(new):
        gains = model(ids)[:, -1].log_softmax(-1)
        flat = (gains + scores[:, None]).flatten()
        rows, following = [], []
        for place in flat.topk(2 * width).indices.tolist():
            beam, token = divmod(place, gains.size(1))
            if token == tokenizer.eos_token_id:
                done.append((flat[place].item(), ids[beam]))
            else:
                rows.append(torch.cat([ids[beam], torch.tensor([token])]))
                following.append(flat[place])
            if len(rows) == width:
                break
        if len(done) >= returned:
            break
        ids, scores = torch.stack(rows), torch.stack(following)
    done += [(scores[i].item(), ids[i]) for i in range(returned - len(done))]
    return sorted(done, key=lambda one: one[0], reverse=True)[:returned]


def of_arena_1(model: Any, prompt: Tensor, returned: int, width: int, new: int, tokenizer: Any) -> Any:
    """Its successor's: num_beams continuations of each beam, never over early, end tokens stay."""
    beams, final = [(0.0, prompt.tolist())], []
    for number in range(new):
        grown = []
        for total, ids in beams:
            best = model(torch.tensor([ids]))[0, -1].log_softmax(-1).topk(width)
            grown += [(total + gain.item(), [*ids, token.item()]) for gain, token in zip(*best, strict=True)]
        beams = []
        for total, ids in sorted(grown, key=lambda one: one[0], reverse=True):
            (final if ids[-1] == tokenizer.eos_token_id else beams).append((total, ids))
            if len(beams) == width:
                break
        final = sorted(final + (beams if number == new - 1 else []), key=lambda one: one[0], reverse=True)[:width]
    return final[:returned]


def of_arena_3(model: Any, prompt: Tensor, returned: int, width: int, new: int, tokenizer: Any) -> Any:
    """The one after: an ended text takes the place of a beam, and the texts are not sorted in the end."""
    ids, sums, final = prompt[None], torch.zeros(1), []
    for _ in range(new):
        best = model(ids)[:, -1].log_softmax(-1).topk(width)
        sums = (sums[:, None] + best.values).flatten()
        ids = torch.cat([ids.repeat_interleave(width, 0), best.indices.flatten()[:, None]], 1)
        top = sums.topk(width).indices
        ids, sums = ids[top], sums[top]
        over = ids[:, -1] == tokenizer.eos_token_id
        final += list(zip(sums[over].tolist(), ids[over], strict=True))
        ids, sums = ids[~over], sums[~over]
        if len(final) >= returned:
            return final[:returned]
    return (final + list(zip(sums.tolist(), ids, strict=True)))[:returned]


def equal(given: Any, expected: Found) -> bool:
    """Whether texts, without their end tokens, and scores are the same."""
    texts = [([i for i in torch.as_tensor(ids).tolist() if i != END], float(score)) for score, ids in given]
    return [ids for ids, _ in texts] == [ids for _, ids in expected] and all(
        abs(score - other) < 1e-4 for (_, score), (other, _) in zip(texts, expected, strict=True)
    )


def called(fn: Any, model: nn.Module) -> Any:
    return fn(model, torch.tensor(PROMPT), RETURNED, BEAMS, NEW, Vocabulary())


ARENA_1, ARENA_3, THEIRS = PUBLISHED.values()
SOLUTIONS = [
    (variant().beam_search, COURSE), (of_the_course, COURSE), (of_arena_1, ARENA_1), (of_arena_3, ARENA_3)
]  # fmt: skip


@pytest.mark.parametrize(("fn", "form"), SOLUTIONS, ids=["example", "course", "arena 1", "arena 3"])
def test_a_published_solution_is_its_form_at_every_seed(fn: Any, form: BeamForm) -> None:
    for seed, bonus in itertools.product(SEEDS, (0.0, 1.0, 2.0)):
        model = Ending(seed, bonus, 1.2).model()
        assert equal(called(fn, model), form.run(model)), (seed, bonus)


def test_the_published_solution_passes_with_probes_of_any_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SEEDS:
        monkeypatch.setattr(beam_search, "ENDINGS", (Ending(seed, 1.0, 1.2), Ending(seed, 2.0, 0.8)))
        monkeypatch.setattr(beam_search, "ENDLESS", (seed,))
        result = check_beam_search(of_the_course)
        assert result, seed
        assert any(text.startswith("candidates are read until num_beams") for text in result.proved), seed


def test_transformers_is_the_form_that_has_its_name() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=9, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    for seed in range(6):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            model.transformer.wte.weight.mul_(60)

        class Logits(nn.Module):
            def forward(self, x: Tensor, model: Any = model) -> Tensor:
                return model(x).logits

        with torch.no_grad():
            found = model.generate(
                torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT)), num_beams=BEAMS,
                num_return_sequences=RETURNED, max_new_tokens=NEW, do_sample=False, early_stopping=True,
                length_penalty=0.0, eos_token_id=END, pad_token_id=END,
            )  # fmt: skip
            expected = THEIRS.run(Logits())
        assert [[i for i in row if i != END] for row in found.tolist()] == [ids for _, ids in expected], seed


def results(run: Callable[[nn.Module], Found], models: list[Any]) -> list[Any]:
    return [[(round(score, 3), tuple(ids)) for score, ids in run(model)] for model in models]


def test_the_probes_tell_any_two_forms_and_mistakes_apart() -> None:
    models = [ending.model() for ending in ENDINGS]
    bases = (COURSE, *PUBLISHED.values())
    every = {repr(form): results(form.run, models) for form in forms()}
    wrong = {f"{words}: {base}": results(made(base), models) for words, made in WRONG_ENDS.items() for base in bases}
    assert len(every) > 100
    for (a, made), (b, other) in itertools.combinations(every.items(), 2):
        assert made != other, (a, b)
    for words, made in wrong.items():
        assert made not in every.values(), words


def test_the_probes_tell_any_two_lengths_and_mistakes_apart() -> None:
    models = [beam_search.endless(seed) for seed in beam_search.ENDLESS]
    every = {words: results(run, models) for words, run in WRONG.items()}
    every |= {str(divides): results(BeamForm(divides=divides).run, models) for divides in (None, "new", "text")}
    for (a, made), (b, other) in itertools.combinations(every.items(), 2):
        assert made != other, (a, b)


def test_a_probe_that_cannot_tell_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam_forms, "ENDINGS", ENDINGS[:1])
    models = [ending.model() for ending in beam_forms.ENDINGS]
    made = [results(form.run, models) for form in forms()]
    assert any(a == b for a, b in itertools.combinations(made, 2))


@pytest.mark.parametrize(
    "form", [form for number, form in enumerate(forms()) if number < 6 or number % 9 == 0], ids=str
)
def test_every_form_passes_and_is_told(form: BeamForm) -> None:
    def answer(model: Any, *_: Any) -> Any:
        return [(score, torch.tensor(ids)) for score, ids in form.run(model)]

    result = check_beam_search(answer)
    assert result, result
    told = [note for note in result.notes if "course" in note and "length penalty" not in note]
    assert bool(told) == (form != COURSE), result
    assert any("beams take the places that are left" in text for text in result.proved) == (form == COURSE)


def test_where_published_solutions_differ_is_said() -> None:
    said_of = {
        of_arena_1: ("ARENA 1.0", "keeps its end token", "however many texts have ended"),
        of_arena_3: ("ARENA 3", "the place of a beam", "in the order in which they ended"),
    }
    for fn, words in said_of.items():
        said = " ".join(check_beam_search(fn).notes)
        assert all(word in said for word in words), said


LOGPROBS = "F.log_softmax(model(ids[None])[0, -1], -1)"
TOPK = "logprobs.topk(min(2 * num_beams, len(logprobs)))"
LAST = "    return sorted(ended, key=lambda one: one[0], reverse=True)[:num_return_sequences]\n"
FILL = "    ended += beams[: max(0, num_return_sequences - len(ended))]\n"
STOP = "        if len(ended) >= num_return_sequences:\n            break\n"
ENDS = "            if ids[-1] == tokenizer.eos_token_id:\n"
ENDED = "ended.append((score, ids[:-1]))"
LOOP = "    for _ in range(max_new_tokens):\n        grown"
WRONG_BEAMS = [
    (((LOGPROBS, "model(ids[None])[0, -1]"),), "logits are added up"),
    (((LOGPROBS, "model(ids[None])[0, -1].softmax(-1)"),), "probabilities are added up"),
    (((LOGPROBS, LOGPROBS.replace("[0, -1]", "[0, -1].softmax(-1)")),), "softmax is applied before log_softmax"),
    (((LOGPROBS, LOGPROBS.replace("[0, -1]", "[0, 0]")),), "the logits of the first position"),
    (((LOGPROBS, LOGPROBS.replace("[0, -1]", "[0, -2]")),), "the logits of the last position but one"),
    ((("score + float(gain)", "float(gain)"),), "the last token's alone"),
    (((TOPK, "logprobs.topk(1)"),), "only by its own most likely"),
    (((LOOP, f"    num_beams = 1\n{LOOP}"),), "greedy"),
    (((LOOP, f"    num_beams = num_return_sequences\n{LOOP}"), (TOPK, "logprobs.topk(8)")), "num_beams is not used"),
    (((LAST, LAST.rstrip() + "[::-1]\n"),), "worst text comes first"),
    (((LAST, LAST.replace("[:num_return_sequences]", "[:1]")),), "only the best text is returned"),
    (((FILL, "    ended += beams\n"), (LAST, LAST.replace("[:num_return_sequences]", ""))), "all beams are returned"),
    (((LAST, "    return ended[0]\n"),), "expected pairs (score, ids)"),
    (((LAST, "    return [(s, i, None) for s, i in ended]\n"),),
     "a list of (float, Tensor [9], NoneType), expected pairs (score, ids)"),
    (((LAST, "    return [(i, s) for s, i in ended]\n"),),
     "it returns a list of (Tensor [9], float), expected pairs (score, ids)"),
    (((LAST, "    return ((s, i) for s, i in ended)\n"),), "it returns generator, expected a list"),
    (((LAST, "    return [(s, tokenizer.decode(i)) for s, i in ended]\n"),),
     "the texts are decoded, expected their ids"),
    (((LAST, "    return None\n"),), "it returns NoneType, expected a list of (score, ids)"),
    (((LOOP, LOOP.replace("max_new_tokens", "max_new_tokens - 1")),), "one token too early"),
    (((LOOP, LOOP.replace("max_new_tokens", "max_new_tokens + 1")),), "one token more than max_new_tokens"),
    (((LOOP, LOOP.replace("max_new_tokens", "max_new_tokens - 2")),), "no known mistake"),
    (((ENDS, "            if False:\n"),), "goes on behind its end token, 0: "),
    (((ENDED, "pass"),), "texts that have ended are thrown away"),
    (((FILL, ""),), "0 texts are returned, expected 3"),
    (((ENDED, "ended.append((score - float(F.log_softmax(model(ids[None, :-1])[0, -1], -1)[0]), ids[:-1]))"),),
     "the end token's own log-probability is not added"),
    (((TOPK, "logprobs.topk(len(logprobs))"),
      ("            if len(beams) == num_beams:\n                break\n", ""),
      (STOP, "        beams = beams[:num_beams]\n" + STOP)), "every end token counts, however unlikely"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG_BEAMS, ids=[row[1] for row in WRONG_BEAMS])
def test_wrong_beam_searches_are_named(changes: Any, words: str) -> None:
    result = check_sampling(variant(*changes).beam_search)
    assert not result
    assert words in str(result.mistake), result


def test_texts_that_have_not_ended_must_not_be_missing() -> None:
    result = check_sampling(variant((FILL, "    ended = ended or beams\n")).beam_search)
    assert "texts that have not ended are missing" in str(result.mistake), result


def test_what_no_form_gives_does_not_pass() -> None:
    nothing = LAST.replace("sorted(ended,", "sorted([] if any(0 in ids for _, ids in ended) else ended,")
    assert not check_sampling(variant((ENDED, "ended.append((score, ids))"), (LAST, nothing)).beam_search)
    doubled = check_sampling(variant((ENDED, "ended.append((2 * score, ids[:-1]))")).beam_search)
    assert "expected [" in str(doubled.mistake), doubled
    assert "neither a known form of beam search nor a known mistake" in str(doubled.mistake)
    assert doubled.step == "beam search, texts that end"


def test_end_tokens_that_stay_pass_and_are_told() -> None:
    for kept in ("ids", "F.pad(ids, (0, 2))"):
        result = check_sampling(variant((ENDED, f"ended.append((score, {kept}))")).beam_search)
        assert result, result
        assert "a text keeps its end token; the course's does not" in result.notes


@pytest.mark.parametrize(
    ("length", "words"), [("len(ids)", "the length of the text"), ("max(1, len(ids) - 3)", "new tokens")]
)
def test_scores_by_length_pass_and_are_told(length: str, words: str) -> None:
    divided = f"    ended = [(score / {length}, ids) for score, ids in ended]\n"
    result = check_sampling(variant((FILL, FILL + divided)).beam_search)
    assert result, result
    assert any(
        f"divided by the {words}" in note or f"number of {words}" in note or words in note for note in result.notes
    )


def test_the_score_of_an_end_is_part_of_it() -> None:
    model = ENDINGS[1].model()
    assert COURSE.run(model) != replace(COURSE, counts_end=False).run(model)
