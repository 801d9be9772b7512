"""Second part of the course: beam search, with sums of log-probabilities and no length penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pellucid.exercises.answers import Findings, WrongAnswerError, checked, theirs
from pellucid.exercises.next_token import Table
from pellucid.exercises.result import CheckResult

PROMPT = (2, 7, 4)
RETURNED, BEAMS, NEW, END = 3, 4, 6, 0
CLOSE = 1e-4
ENDING = "beam search, texts that end"

Found = list[tuple[float, list[int]]]
"""Scores and ids, the best first."""


class Vocabulary:
    """The tokenizer of the probe: ids are their own text."""

    eos_token_id = END

    def decode(self, ids: Any) -> str:
        return " ".join(str(int(i)) for i in torch.as_tensor(ids).reshape(-1))

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


@dataclass(frozen=True)
class Search:
    """Beam search; the defaults are the course's way.

    Attributes:
        adds: What is added up: "logprobs", "logits", "probabilities".
        last_only: The score is that of the last token alone.
        width: How many beams are kept.
        per_beam: How many continuations of each beam are looked at.
        stops: Whether it ends once enough texts have ended.
        keeps_end: Whether the end token stays in the text.
    """

    adds: str = "logprobs"
    last_only: bool = False
    width: int = BEAMS
    per_beam: int = 2 * BEAMS
    stops: bool = True
    keeps_end: bool = False

    def run(self, model: nn.Module) -> Found:
        """Search on from the prompt."""
        beams: Found = [(0.0, list(PROMPT))]
        ended: Found = []
        for _ in range(NEW):
            grown = [(score, [*ids, token], token) for ids, score, token in self.continued(model, beams)]
            grown.sort(key=lambda one: -one[0])
            beams = []
            for score, ids, token in grown[: 2 * self.width]:
                if token == END:
                    ended.append((score, ids if self.keeps_end else ids[:-1]))
                elif len(beams) < self.width:
                    beams.append((score, ids))
            if self.stops and len(ended) >= RETURNED:
                break
        every = ended[:] if self.stops and len(ended) >= RETURNED else ended + beams
        return sorted(every, key=lambda one: -one[0])[:RETURNED]

    def continued(self, model: nn.Module, beams: Found) -> list[tuple[list[int], float, int]]:
        """The likeliest continuations of each beam: its ids, the new score, the new token."""
        out: list[tuple[list[int], float, int]] = []
        for score, ids in beams:
            logits = model(torch.tensor([ids]))[0, -1].double()
            ways = {"logprobs": logits.log_softmax(-1), "logits": logits, "probabilities": logits.softmax(-1)}
            gains = ways[self.adds]
            best = gains.topk(min(self.per_beam, len(gains)))
            for gain, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                out.append((ids, gain if self.last_only else score + gain, token))
        return out


def _scored(search: Search, change: Callable[[float, int], float]) -> Callable[[nn.Module], Found]:
    return lambda model: [(change(score, len(ids)), ids) for score, ids in search.run(model)]


def _everything(model: nn.Module) -> Found:
    """All beams, the best first."""
    beams: Found = [(0.0, list(PROMPT))]
    search = Search()
    for _ in range(NEW):
        grown = [(score, [*ids, token]) for ids, score, token in search.continued(model, beams)]
        beams = sorted(grown, key=lambda one: -one[0])[:BEAMS]
    return beams


WRONG: Mapping[str, Callable[[nn.Module], Found]] = {
    "logits are added up, not log-probabilities": Search(adds="logits").run,
    "probabilities are added up, not log-probabilities": Search(adds="probabilities").run,
    "the score is the last token's alone: log-probabilities are not added up": Search(last_only=True).run,
    "each beam is continued only by its own most likely token: this is greedy search": Search(per_beam=1).run,
    "num_beams is not used: as many beams as texts to return are kept": Search(width=RETURNED).run,
    "scores are probabilities, not their logarithms": _scored(Search(), lambda score, _: math.exp(score)),
    "scores are negated": _scored(Search(), lambda score, _: -score),
    "the worst text comes first": lambda model: Search().run(model)[::-1],
    "the prompt is missing from the texts": lambda model: [(s, ids[len(PROMPT) :]) for s, ids in Search().run(model)],
    "the num_return_sequences worst of the beams are returned":
        lambda model: _everything(model)[-RETURNED:],
    "all beams are returned, not num_return_sequences": _everything,
}  # fmt: skip

BY_LENGTH: Mapping[str, Callable[[float, int], float]] = {
    "the number of new tokens, as transformers does by default": lambda score, length: score / (length - len(PROMPT)),
    "the length of the text": lambda score, length: score / length,
}


def check_beam_search(fn: Callable[..., Any]) -> CheckResult:
    """Check a `beam_search(model, input_ids, num_return_sequences, num_beams, max_new_tokens, tokenizer)`.

    It returns a list of (sum of log-probabilities, ids).
    """

    def body(found: Findings) -> None:
        endless = Table(seed=8, spread=0.8).eval()
        endless.by_token[:, END] = -60.0
        given = _called(fn, endless)
        if not _same(given, Search().run(endless)):
            _explain(found, given, endless)
        found.proved.append(f"the {RETURNED} best of {BEAMS} beams and their scores are right, the best first")
        by_length = any("divided" in note for note in found.notes)
        if not by_length:
            found.note("scores are sums of log-probabilities without a length penalty, as in the course; transformers "
                       "divides by the length unless length_penalty=0")  # fmt: skip
        _ending(found, fn, by_length=by_length)

    return checked("beam search", body)


def _explain(found: Findings, given: Found, model: nn.Module) -> None:
    for words, change in BY_LENGTH.items():
        if _same(given, _scored(Search(), change)(model)):
            found.note(f"scores are divided by {words}; the course does not divide")
            return
    for words, search in WRONG.items():
        if _same(given, search(model)):
            raise WrongAnswerError(words, "beam search", "the scores and texts")
    right = Search().run(model)
    raise WrongAnswerError(
        f"the best is {given[0] if given else 'missing'}, expected {right[0]}; no known mistake gives that",
        "beam search",
        "the scores and texts",
    )


def _ending(found: Findings, fn: Callable[..., Any], *, by_length: bool) -> None:
    """With an end token that is reached: the forms that are known pass, and are named.

    Raises:
        WrongAnswerError: A text goes on behind its end token, or texts that have ended are missing.
    """
    model = Table(seed=8, spread=0.8).eval()
    model.by_token[:, END] += 1.0
    given = _called(fn, model)
    for _, ids in given:
        if END in ids and any(token != END for token in ids[ids.index(END) :]):
            raise WrongAnswerError(f"a text goes on behind its end token, {END}: {ids}", ENDING, "the texts")
    if by_length:
        return
    for words, search in {
        "an ended text leaves the beams, without its end token": Search(),
        "an ended text leaves the beams, and keeps its end token (the course's does not)": Search(keeps_end=True),
        "it goes on after enough texts have ended (the course's stops)": Search(stops=False),
        "it goes on after enough texts have ended, and keeps end tokens": Search(stops=False, keeps_end=True),
    }.items():
        if _same(given, search.run(model)):
            found.proved.append(words)
            return
    score, best = next(one for one in Search(stops=False).run(model) if len(one[1]) < len(PROMPT) + NEW)
    if all(END not in ids and len(ids) == len(PROMPT) + NEW and total < score for total, ids in given):
        raise WrongAnswerError(
            f"texts that have ended are missing: {best} ends there, and its score, {score:.3f}, is above that of all "
            "that are returned",
            ENDING,
            "the texts",
        )
    found.note("with texts that end, its result is none of the forms that are known; nothing is claimed about that")


def _called(fn: Callable[..., Any], model: nn.Module) -> Found:
    step = "beam search"
    with theirs(step):
        value = fn(model, torch.tensor(PROMPT), RETURNED, BEAMS, NEW, Vocabulary())
    if not isinstance(value, Sequence) or not all(isinstance(one, Sequence) and len(one) == 2 for one in value):
        raise WrongAnswerError(f"it returns {type(value).__name__}, expected a list of (score, ids)", step)
    with theirs(step, "reading its result"):
        return [(float(score), [int(i) for i in torch.as_tensor(ids).reshape(-1)]) for score, ids in value]


def _same(given: Found, expected: Found) -> bool:
    return len(given) == len(expected) and all(
        ids == wanted and math.isclose(score, other, rel_tol=CLOSE, abs_tol=CLOSE)
        for (score, ids), (other, wanted) in zip(given, expected, strict=True)
    )
