"""Second part of the course: beam search, with sums of log-probabilities and no length penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.beam_forms import (
    BEAMS,
    COURSE,
    END,
    ENDINGS,
    FILLS,
    NEW,
    PROMPT,
    PUBLISHED,
    READS,
    RETURNED,
    TOKENS,
    BeamForm,
    Found,
    forms,
)
from pellucid.exercises.result import CheckResult, Findings, WrongAnswerError, checked, explained, theirs
from pellucid.exercises.scores import Table

CLOSE = 1e-4
STEP, ENDING = "beam search", "beam search, texts that end"
ENDLESS = (8, 9, 10)
"""Seeds of the models that never end."""

Search = Callable[[nn.Module], Found]


class Vocabulary:
    """The tokenizer of the probe: ids are their own text."""

    eos_token_id = END

    def decode(self, ids: Any) -> str:
        return " ".join(str(int(i)) for i in torch.as_tensor(ids).reshape(-1))

    def batch_decode(self, rows: Any) -> list[str]:
        return [self.decode(row) for row in rows]

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def _scored(search: BeamForm, change: Callable[[float, int], float]) -> Search:
    return lambda model: [(change(score, len(ids)), ids) for score, ids in search.run(model)]


def _with_the_prompt(model: nn.Module) -> Found:
    prompt = torch.tensor([PROMPT])
    gains = model(prompt)[0].double().log_softmax(-1)[:-1].gather(1, prompt[0, 1:, None])
    return [(score + float(gains.sum()), ids) for score, ids in COURSE.run(model)]


def _every_beam(model: nn.Module) -> Found:
    """All beams, the best first."""
    return replace(COURSE, returned=BEAMS).run(model)


EVERY_END = ("every end token counts, however unlikely it is, since the candidates are read to the end; they are read "
             "until num_beams of them continue")  # fmt: skip
WRONG: Mapping[str, Search] = {
    "logits are added up, not log-probabilities": BeamForm(adds="logits").run,
    "probabilities are added up, not log-probabilities": BeamForm(adds="probabilities").run,
    "softmax is applied before log_softmax": BeamForm(adds="logprobs of probabilities").run,
    "the score is the last token's alone: log-probabilities are not added up": BeamForm(last_only=True).run,
    "each beam is continued only by its own most likely token: this is greedy search": BeamForm(per_beam=1).run,
    "the same text, that of greedy search, is returned num_return_sequences times":
        lambda model: BeamForm(per_beam=1).run(model)[:1] * RETURNED,
    "num_beams is not used: as many beams as texts to return are kept": BeamForm(width=RETURNED).run,
    "the logits of the first position are used, not of the last": BeamForm(position=0).run,
    "the logits of the last position but one are used, not of the last": BeamForm(position=-2).run,
    "it stops one token too early: max_new_tokens tokens are to be generated": BeamForm(new=NEW - 1).run,
    "it generates one token more than max_new_tokens": BeamForm(new=NEW + 1).run,
    EVERY_END: BeamForm(reads="all").run,
    "scores are probabilities, not their logarithms": _scored(BeamForm(), lambda score, _: math.exp(score)),
    "the prompt's own log-probability is part of the scores": _with_the_prompt,
    "scores are negated": _scored(BeamForm(), lambda score, _: -score),
    "the worst text comes first": lambda model: COURSE.run(model)[::-1],
    "the prompt is missing from the texts": lambda model: [(s, ids[len(PROMPT) :]) for s, ids in COURSE.run(model)],
    "only the best text is returned, not num_return_sequences": lambda model: COURSE.run(model)[:1],
    "the num_return_sequences worst of the beams are returned": lambda model: _every_beam(model)[-RETURNED:],
    "all beams are returned, not num_return_sequences": _every_beam,
}  # fmt: skip
"""Mistakes that show without any end -> the search that makes them."""

WRONG_ENDS: Mapping[str, Callable[[BeamForm], Search]] = {
    EVERY_END: lambda form: replace(form, per_beam=None, reads="all").run,
    "the end token's own log-probability is not added to the score": lambda form: replace(form, counts_end=False).run,
    "texts that have ended are thrown away":
        lambda form: replace(form, stops=None, fills="only beams").run,
    "texts that have not ended are missing: the best of them are returned, too, if max_new_tokens is reached":
        lambda form: replace(form, fills="only ended").run,
}  # fmt: skip
"""Mistakes with texts that end -> made in a form of beam search."""

BY_LENGTH = {
    "new": "the number of new tokens, as transformers does by default",
    "text": "the length of the text",
}
"""`Search.divides` -> how a note says it."""


def check_beam_search(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `beam_search(model, input_ids, num_return_sequences, num_beams, max_new_tokens, tokenizer)`.

    It returns a list of (sum of log-probabilities, ids). `hint` says how much of a mistake to give away,
    as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        models = [endless(seed) for seed in ENDLESS]
        given = [_called(fn, model) for model in models]
        divides = _without_ends(found, models, given)
        found.proved.append(f"the {RETURNED} best of {BEAMS} beams and their scores are right, the best first")
        if divides is None:
            found.note("scores are sums of log-probabilities without a length penalty, as in the course; transformers "
                       "divides by the length unless length_penalty=0")  # fmt: skip
        _with_ends(found, fn, divides)

    return checked("beam search", body, hint)


def endless(seed: int) -> Table:
    """A model of random numbers whose texts never end, evaluating."""
    model = Table(TOKENS, seed, 0.8).eval()
    model.by_token[:, END] = -60.0
    return model


def _without_ends(found: Findings, models: Sequence[nn.Module], given: Sequence[Found]) -> str | None:
    """What the scores are divided by, if the search is right."""
    if _same(given, COURSE.run, models):
        return None
    for divides, words in BY_LENGTH.items():
        if _same(given, BeamForm(divides=divides).run, models):
            found.note(f"scores are divided by {words}; the course does not divide")
            return divides
    unknown = f"{_unlike(given, models)}; no known mistake gives that"
    raise explained(WRONG, lambda search: _same(given, search, models), unknown, STEP, "the scores and texts")


def _with_ends(found: Findings, fn: Callable[..., Any], divides: str | None) -> None:
    """Check how ended texts are treated; notes say what differs from the course."""
    models = [ending.model() for ending in ENDINGS]
    whole = [_called(fn, model, ENDING) for model in models]
    given = [[(score, _ended(ids)) for score, ids in texts] for texts in whole]
    form = next((form for form in forms(divides) if _same(given, form.run, models)), None)
    if form is None:
        _explain_ends(found, models, given, divides)
        return
    found.proved.append("a text that ends leaves the beams, and its score counts the end token")
    if any(END in ids for texts in whole for _, ids in texts):
        found.note("a text keeps its end token; the course's does not")
    plain = replace(form, divides=None, end_has_length=True)
    if plain == COURSE:
        found.proved.append(
            "candidates are read until num_beams of them continue, the search stops once num_return_sequences texts "
            "have ended, and beams take the places that are left"
        )
    for where, published in PUBLISHED.items():
        if plain == published:
            found.note(
                f"with texts that end it does what {where} does; the notes that follow say where the course differs"
            )
    for text in _differences(plain):
        found.note(text)


def _differences(form: BeamForm) -> list[str]:
    """Where a form is not the course's, one sentence each."""
    out: list[str] = []
    if form.per_beam is not None:
        out.append("only the num_beams most likely continuations of each beam are candidates; in the course all are")
    if form.reads != COURSE.reads:
        out.append(f"the candidates are read {READS[form.reads]}; the course reads {READS[COURSE.reads]}")
    if form.stops != COURSE.stops and form.sorts:
        when = (
            "goes on however many texts have ended" if form.stops is None else "stops once num_beams texts have ended"
        )
        out.append(f"it {when}; the course stops once num_return_sequences have")
    if form.at_once:
        out.append("it stops in the middle of the candidates; the course reads them first")
    if form.fills != COURSE.fills:
        out.append(f"{FILLS[form.fills]}; in the course {FILLS[COURSE.fills]}, whatever their scores")
    if not form.sorts:
        out.append("texts come in the order in which they ended; the course puts the best first")
    return out


def _explain_ends(found: Findings, models: Sequence[nn.Module], given: Sequence[Found], divides: str | None) -> None:
    for words, made in WRONG_ENDS.items():
        for form in (COURSE, *PUBLISHED.values()):
            if _same(given, made(replace(form, divides=divides)), models):
                raise WrongAnswerError(words, ENDING, "the scores and texts")
    if divides is not None:
        found.note("with texts that end, its result is none of the forms that are known; nothing is claimed about that")
        return
    raise WrongAnswerError(
        f"{_unlike(given, models)} in the course; neither a known form of beam search nor a known mistake gives that",
        ENDING,
        "the scores and texts",
    )


def _ended(ids: list[int]) -> list[int]:
    """A text without the end tokens at its end."""
    text = ids[: ids.index(END)] if END in ids else ids
    if any(token != END for token in ids[len(text) :]):
        raise WrongAnswerError(f"a text goes on behind its end token, {END}: {ids}", ENDING, "the texts")
    return text


def _called(fn: Callable[..., Any], model: nn.Module, step: str = STEP) -> Found:
    arguments = f"given num_return_sequences={RETURNED}, num_beams={BEAMS}, max_new_tokens={NEW}, a prompt of " \
                f"{len(PROMPT)} ids, and a model of {TOKENS} tokens"  # fmt: skip
    with theirs(step, arguments):
        value = fn(model, torch.tensor(PROMPT), RETURNED, BEAMS, NEW, Vocabulary())
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise WrongAnswerError(f"it returns {_kind(value)}, expected a list of (score, ids)", step)
    return [_pair(one, step) for one in value]


def _pair(one: Any, step: str) -> tuple[float, list[int]]:
    """A score and its ids."""
    parts = [_kind(part) for part in one] if isinstance(one, (tuple, list)) else []
    what = f"({', '.join(parts)})" if parts else _kind(one)
    if len(parts) != 2:
        raise WrongAnswerError(f"it returns a list of {what}, expected pairs (score, ids)", step)
    score, ids = one
    if isinstance(ids, str):
        raise WrongAnswerError(f"it returns a list of {what}: the texts are decoded, expected their ids", step)
    try:
        return float(score), [int(i) for i in torch.as_tensor(ids).reshape(-1)]
    except (TypeError, ValueError, RuntimeError):
        raise WrongAnswerError(f"it returns a list of {what}, expected pairs (score, ids)", step) from None


def _kind(value: Any) -> str:
    return f"Tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _same(given: Sequence[Found], search: Search, models: Sequence[nn.Module]) -> bool:
    return all(_equal(texts, search(model)) for texts, model in zip(given, models, strict=True))


def _unlike(given: Sequence[Found], models: Sequence[nn.Module]) -> str:
    """The first text that is not the course's, and the course's."""
    texts, right = next(
        (g, r) for g, r in ((g, COURSE.run(m)) for g, m in zip(given, models, strict=True)) if not _equal(g, r)
    )
    place = next((i for i, (a, b) in enumerate(zip(texts, right, strict=False)) if not _equal([a], [b])), None)
    if place is None:
        return f"{len(texts)} texts are returned, expected {len(right)}"
    (score, ids), (wanted, text) = texts[place], right[place]
    return f"text {place + 1} of {len(right)} is {ids} with score {score:.4f}, expected {text} with {wanted:.4f}"


def _equal(given: Found, expected: Found) -> bool:
    return len(given) == len(expected) and all(
        ids == wanted and math.isclose(score, other, rel_tol=CLOSE, abs_tol=CLOSE)
        for (score, ids), (other, wanted) in zip(given, expected, strict=True)
    )
