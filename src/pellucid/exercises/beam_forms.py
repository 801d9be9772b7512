"""Beam search as the course describes it, and the other forms that people write.

The forms differ in what happens to a text that ends: which end tokens are noticed, when the search stops, and what is
returned. `Search()` is the course's own: candidates are read from the best one on until `num_beams` of them continue,
every end token among those read ends a text, the search is over once `num_return_sequences` texts have ended, and if
fewer have, the best beams take the places that are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pellucid.exercises.scores import Table

PROMPT = (2, 7, 4)
RETURNED, BEAMS, NEW, END = 3, 4, 6, 0
TOKENS = 9

Found = list[tuple[float, list[int]]]
"""Scores and ids, the best first."""
Candidate = tuple[float, float, list[int], int]
"""Score, the score without the last token, ids of the beam, and the token that continues it."""

READS = {
    "until full": "until num_beams of them continue",
    "best": "as far as num_beams, so an end token takes the place of a beam",
    "ends among the best": "and an end token counts only if it is among the best num_beams",
    "twice as many": "as far as 2 * num_beams, and every end token there counts",
    "all": "to the end, and every end token counts, however unlikely it is",
}
"""How far the sorted candidates are read -> how a note says it."""
FILLS = {
    "missing": "the best beams take the places that are left",
    "best": "the best of ended texts and beams are returned",
    "always": "the best of ended texts and beams are returned, also when enough texts have ended",
}
"""What is returned beside ended texts -> how a note says it."""


@dataclass(frozen=True)
class BeamForm:
    """One form of beam search; the defaults are the course's."""

    adds: str = "logprobs"  # what is added up, a key of `_candidates`' ways
    last_only: bool = False  # the score is that of the last token alone
    width: int = BEAMS  # how many beams are kept
    per_beam: int | None = None  # how many continuations of each beam are candidates; None for the whole vocabulary
    reads: str = "until full"  # how far the sorted candidates are read, a key of `READS`
    stops: int | None = RETURNED  # after how many ended texts the search stops; None for never
    at_once: bool = False  # whether it stops while the candidates are read, not after them
    # what is returned beside ended texts, a key of `FILLS`; two mistakes are "only beams", "only ended"
    fills: str = "missing"
    counts_end: bool = True  # whether the end token's own log-probability is part of the score
    ignores_end: bool = False  # whether end tokens are tokens like all others
    sorts: bool = True  # whether the best text comes first; else the texts are in the order in which they ended
    new: int = NEW  # how many tokens are generated at most
    returned: int = RETURNED  # how many texts are returned
    position: int = -1  # whose logits are used
    divides: str | None = None  # what the scores are divided by in the end: None, "new" tokens or all of the "text"
    end_has_length: bool = True  # whether the end token counts there

    def run(self, model: nn.Module) -> Found:
        """Search on from the prompt; ended texts come without their end token."""
        beams: Found = [(0.0, list(PROMPT))]
        ended: Found = []
        enough = False
        for step in range(self.new):
            beams, enough = self._read(self._candidates(model, beams), ended, last=step == self.new - 1)
            if enough or not beams:
                break
        beams = [(self._divided(score, ids, ended=False), ids) for score, ids in beams]
        every = [*ended, *self._filling(beams, len(ended), enough=enough)]
        if self.fills == "only beams":
            every = beams
        return (sorted(every, key=lambda one: -one[0]) if self.sorts else every)[: self.returned]

    def _filling(self, beams: Found, ended: int, *, enough: bool) -> Found:
        """The beams that are returned beside so many ended texts, unless they are outdone."""
        if (ended and self.fills == "only ended") or (enough and self.fills != "always"):
            return []
        return beams[: max(0, self.returned - ended)] if self.fills == "missing" else beams

    def _candidates(self, model: nn.Module, beams: Found) -> list[Candidate]:
        """The continuations of all beams, the best first."""
        logits = model(torch.tensor([ids for _, ids in beams]))[:, self.position].double()
        ways = {"logprobs": logits.log_softmax(-1), "logits": logits, "probabilities": logits.softmax(-1),
                "logprobs of probabilities": logits.softmax(-1).log_softmax(-1)}  # fmt: skip
        best = ways[self.adds].topk(min(self.per_beam or logits.size(-1), logits.size(-1)))
        grown = [
            (gain if self.last_only else score + gain, score, ids, token)
            for (score, ids), gains, tokens in zip(beams, best.values.tolist(), best.indices.tolist(), strict=True)
            for gain, token in zip(gains, tokens, strict=True)
        ]
        return sorted(grown, key=lambda one: -one[0])

    def _read(self, candidates: Sequence[Candidate], ended: Found, *, last: bool) -> tuple[Found, bool]:
        """The beams that continue, and whether enough texts have ended; those that end are added to `ended`."""
        far = {"best": self.width, "ends among the best": 2 * self.width, "twice as many": 2 * self.width}
        beams: Found = []
        for place, (score, before, ids, token) in enumerate(candidates[: far.get(self.reads)]):
            if self.reads == "until full" and len(beams) == self.width:
                break
            if token == END and not self.ignores_end:
                if self.reads != "ends among the best" or place < self.width:
                    ended.append((self._divided(score if self.counts_end else before, ids, ended=True), list(ids)))
                if self.at_once and self.stops is not None and len(ended) >= self.stops:
                    break
            elif len(beams) < self.width and not (last and self.reads == "ends among the best" and place >= self.width):
                beams.append((score, [*ids, token]))
        return beams, self.stops is not None and len(ended) >= self.stops

    def _divided(self, score: float, ids: Sequence[int], *, ended: bool) -> float:
        length = len(ids) - (len(PROMPT) if self.divides == "new" else 0)
        return score / max(1, length + (ended and self.end_has_length)) if self.divides else score


COURSE = BeamForm()
PUBLISHED = {
    "ARENA 1.0's published solution": BeamForm(per_beam=BEAMS, stops=None, fills="best"),
    "ARENA 3's published solution": BeamForm(reads="best", sorts=False),
    "transformers with early_stopping=True and length_penalty=0":
        BeamForm(reads="ends among the best", stops=BEAMS, fills="best"),
}  # fmt: skip
"""Other forms that are published -> where."""


def forms(divides: str | None = None) -> Iterator[BeamForm]:
    """Every form that counts as beam search, the course's and the published ones first; no two are the same search."""
    first = (COURSE, *PUBLISHED.values())
    product = itertools.product((None, BEAMS), READS, (RETURNED, BEAMS, None), FILLS, (False, True), (True, False))
    every = (BeamForm(per_beam=p, reads=r, stops=s, fills=f, at_once=o, sorts=t) for p, r, s, f, o, t in product)
    for form in (*first, *(form for form in every if form not in first and not _told_otherwise(form))):
        yield from (replace(form, divides=divides, end_has_length=e) for e in ((True, False) if divides else (True,)))


def _told_otherwise(form: BeamForm) -> bool:
    """Whether another form is the same search, or none: a mistake."""
    if form.reads == "all" and form.per_beam is None:  # every beam ends in every step
        return True
    if form.reads == "best" and form.per_beam is not None:  # num_beams of each beam hold the num_beams best of all
        return True
    if not form.sorts and (form.fills, form.stops, form.at_once) != ("missing", RETURNED, False):
        return True  # the first that ended are returned, whatever comes later
    return form.stops is None and (form.at_once or form.fills == "always")


@dataclass(frozen=True)
class Ending:
    """A model of random numbers in which the end token is likely enough to be reached."""

    seed: int  # the seed of the numbers
    bonus: float  # what is added to the end token's logits
    spread: float  # the standard deviation of the logits

    def model(self) -> Table:
        """The model, evaluating."""
        made = Table(TOKENS, self.seed, self.spread).eval()
        made.by_token[:, END] += self.bonus
        return made


ENDINGS = (
    Ending(685, 1.0, 1.2), Ending(518, 2.0, 1.2), Ending(170, 2.0, 0.8), Ending(448, 2.0, 1.2), Ending(801, 0.5, 1.2),
    Ending(452, 0.0, 0.8), Ending(569, 2.0, 1.2), Ending(111, 0.5, 0.8), Ending(720, 0.0, 0.8), Ending(370, 0.5, 1.2),
)  # fmt: skip
"""Models that tell all forms apart: of any two, at least one gives another result on at least one of them."""
