"""Beam search (Graves 2012; length penalty as in Wu et al. 2016, arXiv:1609.08144, without its offset).

The search keeps `width` unfinished texts for each prompt and the best finished ones. Arithmetic and the calls of
`topk`, which decide between equals, are those of transformers.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Literal

import torch
from torch import Tensor

from pellucid.check import as_flag, as_number, as_python
from pellucid.errors import InputError, shown
from pellucid.generate.generation import Stopping
from pellucid.generate.sampler import Context, Sampler, draw
from pellucid.generate.stepper import Stepper, checked, chosen_logprobs

NEWEST = (5, 24)
"""The newest version of transformers that we know, followed if none is installed."""

SORTED_DRAWS = (5, 24)
"""The first version that sorts the drawn continuations of a beam search by their accumulated log-probability.

Earlier ones keep the order of the draw. Only the first `num_beams` of them may end a text, so the ids differ.
"""

NEVER = -1.0e9
"""The score of what must not be chosen."""

MOST = 2**16
"""Beams that may be asked for, and texts by a file: rows of a batch are made of them before anything runs."""

STEEPEST = 100
"""The power of a length at most, which no context takes beyond what a float64 holds."""


@functools.cache
def followed() -> tuple[int, int]:
    """The version of transformers that is installed, `NEWEST` if there is none, without importing it."""
    try:
        found = re.match(r"(\d+)\.(\d+)", metadata.version("transformers"))
    except metadata.PackageNotFoundError:
        found = None
    return (int(found[1]), int(found[2])) if found else NEWEST


@dataclass(frozen=True)
class Beams:
    """How wide the search is and how finished texts are scored.

    Args:
        width: Unfinished texts kept for each prompt.
        length_penalty: Scores are sums of log-probabilities over the number of new tokens to this power: above 0
            favours long texts.
        early_stopping: True ends when `width` texts are finished; False when no unfinished one can get better at its
            present length; "never" when none can at any length.
        returned: Texts given back for each prompt.
        follows: The version of transformers whose order of drawn continuations is kept.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    returned: int = 1
    follows: tuple[int, int] = field(default_factory=followed)

    def __post_init__(self) -> None:
        for name in ("width", "length_penalty"):
            object.__setattr__(self, name, as_python(getattr(self, name)))
        if self.returned > self.width:
            raise InputError(
                f"generate: num_return_sequences={self.returned} with num_beams={self.width}.",
                code="return-sequences",
                remedy=f"Ask for at most {self.width} texts, or search with num_beams={self.returned}.",
            )
        penalty = self.length_penalty
        if as_number(penalty) is None or not abs(penalty) <= STEEPEST:
            raise InputError(
                f"generate: length_penalty={shown(penalty)}, expected a number from -{STEEPEST} to {STEEPEST}.",
                code="length-penalty",
                remedy="Give 1 to divide by the length, or 0 to leave the sums as they are.",
            )
        early: object = self.early_stopping
        stops = early if isinstance(early, str) and early == "never" else as_flag(early)
        if stops is None:
            raise InputError(
                f"generate: early_stopping={shown(early)}, expected True, False or 'never'.",
                code="early-stopping",
                remedy="Give one of these.",
            )
        object.__setattr__(self, "early_stopping", stops)

    def require_enough_tokens(self, vocabulary: int, ends: int) -> None:
        """See that each text has as many continuations as the search looks at."""
        if vocabulary < continuations(ends):
            raise InputError(
                f"generate: num_beams={self.width} and {ends} end ids with {vocabulary} tokens in the vocabulary, "
                f"expected at least {continuations(ends)}: one that does not end a text must be left.",
                code="beams-vocabulary",
                remedy="Pass num_beams=1, or fewer end_ids.",
            )

    def require_found(self, found: Hypotheses) -> None:
        """See that the search found as many texts of each prompt as are given back."""
        fewest, prompt = found.finished.sum(1).min(0)
        if int(fewest) < self.returned:
            raise InputError(
                f"generate: a search of {self.width} beams found {int(fewest)} of {self.returned} texts for prompt "
                f"{int(prompt)}: the settings leave no other continuation.",
                code="return-sequences",
                remedy="Ask for fewer with num_return_sequences=, or for more new tokens, or rule out fewer tokens.",
            )


def continuations(ends: int) -> int:
    """How many continuations of each text the search looks at: with so many end ids, one at least goes on."""
    return max(2, 1 + ends)


@dataclass(frozen=True)
class Hypotheses:
    """Texts of each prompt, best first."""

    ids: Tensor  # [B, W, N], new tokens; what a shorter text does not have is -1
    logprobs: Tensor  # [B, W, N], the model's own
    scores: Tensor  # [B, W]
    finished: Tensor  # [B, W]

    @classmethod
    def none(cls, prompts: int, width: int, length: int, device: torch.device) -> Hypotheses:
        """Places that are not taken."""
        shape = (prompts, width)
        return cls(
            torch.full((*shape, length), -1, device=device),
            torch.zeros(*shape, length, dtype=torch.float32, device=device),
            torch.full(shape, NEVER, dtype=torch.float32, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
        )

    def chosen(self, which: Tensor) -> Hypotheses:
        """Those at `which` [B, W'] of each prompt."""
        wide = which[..., None].expand(-1, -1, self.ids.size(2))
        return Hypotheses(
            self.ids.gather(1, wide), self.logprobs.gather(1, wide), self.scores.gather(1, which),
            self.finished.gather(1, which),
        )  # fmt: skip

    def joined(self, other: Hypotheses) -> Hypotheses:
        """These and others as candidates for the same places."""
        return Hypotheses(
            torch.cat([self.ids, other.ids], 1), torch.cat([self.logprobs, other.logprobs], 1),
            torch.cat([self.scores, other.scores], 1), torch.cat([self.finished, other.finished], 1),
        )  # fmt: skip


@dataclass
class Search:
    """One search over all prompts of a batch."""

    stepper: Stepper  # runs prompts times `beams.width` texts
    beams: Beams  # what is kept
    sampler: Sampler  # penalties on log-probabilities; with a temperature above 0, continuations are drawn
    stopping: Stopping  # when a text is finished
    generator: torch.Generator | None  # for draws

    def run(self) -> Hypotheses:
        """The finished texts of each prompt [B, W], best first."""
        width, length = self.beams.width, self.stopping.max_new_tokens
        prompts, device = len(self.stepper.ids) // width, self.stepper.ids.device
        running = Hypotheses.none(prompts, width, length, device)
        running.scores[:, 0] = 0.0  # the beams of a prompt are equal at first: go on from one of them
        finished = Hypotheses.none(prompts, width, length, device)
        improvable = torch.ones(prompts, 1, dtype=torch.bool, device=device)
        for logits, step in self._logits():
            candidates, parents = self._continued(running, logits, step)
            hits = candidates.finished
            order = torch.topk(candidates.scores + hits.float() * NEVER, width)[1]
            running = candidates.chosen(order)
            running = replace(running, scores=(candidates.scores + hits.float() * NEVER).gather(1, order))
            finished = self._updated(finished, candidates, improvable, step)
            improvable = improvable & self._can_improve(running, finished, step + 1)
            full = self.beams.early_stopping is True and bool(finished.finished.all())
            if not bool(improvable.any()) or full or bool(hits.all()):
                break
            self._parents = parents.gather(1, order)
            self._tokens = running.ids[:, :, step]
        return finished

    def _logits(self) -> Iterator[tuple[Tensor, int]]:
        """The logits of each step [B W, V], with the step; after each but the first the beams have moved."""
        everyone = torch.ones(len(self.stepper.ids), dtype=torch.bool, device=self.stepper.ids.device)
        yield checked(self.stepper, self.stepper.start, everyone, 0), 0
        for step in range(1, self.stopping.max_new_tokens):
            offset = torch.arange(len(self._parents), device=everyone.device)[:, None] * self.beams.width
            self.stepper.reorder((self._parents + offset).flatten())
            tokens = self._tokens.flatten()
            yield checked(self.stepper, lambda tokens=tokens: self.stepper.step(tokens), everyone, step), step

    def _continued(self, running: Hypotheses, logits: Tensor, step: int) -> tuple[Hypotheses, Tensor]:
        """The best continuations [B, K] of each prompt's beams, and which beam each goes on from."""
        width, vocabulary, prompts = self.beams.width, logits.size(-1), len(running.ids)
        ends = self.stopping.end_ids
        kept = continuations(len(ends)) * width
        keep = 1 if self.sampler.is_greedy else continuations(len(ends))
        last = step + 1 == self.stopping.max_new_tokens
        context = Context(self.stepper.ids, self.stepper.mask, step, ends, keep, last=last)
        processed = self.sampler.process(logits.float().log_softmax(-1), context)
        total = (processed.unflatten(0, (prompts, width)) + running.scores[:, :, None]).flatten(1)
        if self.sampler.is_greedy:
            scores, places = torch.topk(total, kept)
        else:
            places = draw(total, kept, self.generator)
            scores = total.gather(1, places)
            if self.beams.follows >= SORTED_DRAWS:
                scores, order = scores.sort(-1, descending=True)
                places = places.gather(1, order)
        parents, tokens = places // vocabulary, places % vocabulary
        own = chosen_logprobs(
            logits.unflatten(0, (prompts, width))[torch.arange(prompts, device=parents.device)[:, None], parents],
            tokens,
        )
        candidates = running.chosen(parents)
        candidates.ids[:, :, step], candidates.logprobs[:, :, step] = tokens, own.float()
        return replace(candidates, scores=scores, finished=self._hits(candidates.ids[:, :, : step + 1])), parents

    def _hits(self, ids: Tensor) -> Tensor:
        """[B, K]: which texts are finished."""
        rows = [[self.stopping.reason(tokens) is not None for tokens in texts] for texts in ids.tolist()]
        return torch.tensor(rows, device=ids.device)

    def _updated(self, finished: Hypotheses, candidates: Hypotheses, improvable: Tensor, step: int) -> Hypotheses:
        """The best finished texts, with the new ones among the best `width` candidates taken in."""
        width = self.beams.width
        taken = candidates.finished & (torch.arange(candidates.finished.size(1), device=improvable.device) < width)
        scores = candidates.scores / ((step + 1) ** self.beams.length_penalty)
        full = finished.finished.all(1, keepdim=True) & (self.beams.early_stopping is True)
        for excluded in (full, ~improvable, ~taken):
            scores = scores + excluded.float() * NEVER
        merged = finished.joined(replace(candidates, scores=scores, finished=taken))
        return merged.chosen(torch.topk(merged.scores, width)[1])

    def _can_improve(self, running: Hypotheses, finished: Hypotheses, length: int) -> Tensor:
        """[B, 1]: whether the best unfinished text could still come before the worst finished one."""
        penalty = self.beams.length_penalty
        best = self.stopping.max_new_tokens if self.beams.early_stopping == "never" and penalty > 0.0 else length
        possible = running.scores[:, :1] / (best**penalty)
        worst = torch.where(finished.finished, finished.scores.min(1, keepdim=True)[0], NEVER)
        return (possible > worst).any(-1, keepdim=True)
