"""Second part of the course: `sample_next_token`, which puts the pieces together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.draws import Distribution, basic, distribution, greedy, nucleus, nucleus_of_the_course, top_k
from pellucid.exercises.result import CheckResult, Findings, WrongAnswerError, checked, theirs
from pellucid.exercises.scores import as_id

SIZE = 9
IDS = torch.tensor([3, 1, 4, 1, 5, 1, 3])


class Table(nn.Module):
    """A language model small enough to know: logits [B, P, V] from the token and its position."""

    def __init__(self, size: int = SIZE, seed: int = 6, spread: float = 1.5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.by_token = nn.Parameter(spread * torch.randn(size, size, generator=generator), requires_grad=False)
        self.by_position = nn.Parameter(spread * torch.randn(64, size, generator=generator) / 2, requires_grad=False)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        if x.dim() != 2:
            raise ValueError(f"the model is given ids of shape {list(x.shape)}, expected [batch, seq]")
        return self.by_token[x] + self.by_position[: x.size(1)]


@dataclass(frozen=True)
class Options:
    """The arguments of one call."""

    temperature: float = 1.0
    freq_penalty: float = 0.0
    top_k: int = 0
    top_p: float = 0.0

    def given(self) -> dict[str, float]:
        """Those that are not the default."""
        return {name: value for name, value in vars(self).items() if value != getattr(Options, name)}


PROBES = (
    Options(), Options(temperature=0.6), Options(freq_penalty=0.4), Options(top_k=3), Options(top_p=0.7),
    Options(temperature=0.6, freq_penalty=0.4), Options(temperature=1.7, freq_penalty=0.9, top_k=4),
    Options(temperature=1.7, freq_penalty=0.9, top_p=0.7), Options(temperature=0.6, freq_penalty=0.4, top_p=0.9),
)  # fmt: skip


@dataclass(frozen=True)
class TokenChoice:
    """How it is put together; the defaults are the course's way."""

    position: int = -1
    penalty_first: bool = False
    without: str = ""
    alone: str = ""
    cut_first: bool = False
    nucleus: Callable[..., Tensor] = nucleus

    def law(self, logits: Tensor, o: Options) -> Tensor:
        """Logits [P, V] -> probabilities [V] of the next token."""
        given, counts = logits[self.position].double(), torch.bincount(IDS, minlength=logits.size(-1))
        t = 1.0 if self.without == "temperature" else o.temperature
        penalty = 0.0 if self.without == "freq_penalty" else o.freq_penalty
        x = (given - penalty * counts) / t if self.penalty_first else given / t - penalty * counts
        if self.alone and getattr(o, self.alone):
            x = given
        if self.cut_first:
            return basic(x.masked_fill(self._cut(given, o) == 0, -torch.inf))
        return self._cut(x, o)

    def _cut(self, x: Tensor, o: Options) -> Tensor:
        """Logits [V] -> probabilities [V], after top-k or top-p."""
        if o.top_k and self.without != "top_k":
            return top_k(x, o.top_k)
        return self.nucleus(x, o.top_p) if o.top_p and self.without != "top_p" else basic(x)


WRONG: Mapping[str, TokenChoice] = {
    "the logits of the first position are used, not of the last": TokenChoice(position=0),
    "the logits of the last position but one are used, not of the last": TokenChoice(position=-2),
    "the frequency penalty comes before the temperature; the course's order is the other one":
        TokenChoice(penalty_first=True),
    "top-k and top-p are cut before temperature and frequency penalty are applied": TokenChoice(cut_first=True),
    **{f"with {name}, temperature and frequency penalty are not used": TokenChoice(alone=name)
       for name in ("top_k", "top_p")},
    **{f"{name} is not used": TokenChoice(without=name) for name in ("temperature", "freq_penalty", "top_k", "top_p")},
}  # fmt: skip


def check_sample_next_token(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `sample_next_token(model, input_ids, temperature, freq_penalty, top_k, top_p) -> int`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        model, step = Table().eval(), "the next token"
        logits = model(IDS[None])[0]
        seen = [(distribution(lambda o=o: fn(model, IDS.clone(), **o.given()), SIZE, step), o) for o in PROBES]
        variant = _variant(seen, logits)
        if variant is None:
            wrong = next((words for words, one in WRONG.items() if _same(seen, logits, one) is not None), None)
            bad = next(o for one, o in seen if not one.is_(TokenChoice().law(logits, o)))
            words = wrong or f"it is wrong with {bad.given() or 'the defaults'}; no known mistake gives that"
            raise WrongAnswerError(words, step, "the probabilities [vocab]")
        found.proved.append("temperature, then frequency penalty, then top-k or top-p, at the last position")
        if variant.nucleus is nucleus_of_the_course:
            found.note("its top-p is the course's: one token fewer than the nucleus of the paper and of transformers")
        _at_zero(found, fn, model, logits)

    return checked("sample_next_token", body, hint)


def _variant(seen: list[tuple[Distribution, Options]], logits: Tensor) -> TokenChoice | None:
    return _same(seen, logits, TokenChoice())


def _same(seen: list[tuple[Distribution, Options]], logits: Tensor, variant: TokenChoice) -> TokenChoice | None:
    for form in (nucleus, nucleus_of_the_course):
        tried = replace(variant, nucleus=form)
        if all(one.is_(tried.law(logits, o)) for one, o in seen):
            return tried
    return None


def _at_zero(found: Findings, fn: Callable[..., Any], model: nn.Module, logits: Tensor) -> None:
    """Temperature 0 is greedy; the course leaves the frequency penalty out there."""
    step = "temperature 0"
    with theirs(step):
        plain = as_id(fn(model, IDS.clone(), temperature=0.0), step)
    best = int(greedy(logits[-1]).argmax())
    if plain != best:
        raise WrongAnswerError(f"at temperature 0 it takes {plain}, expected the most likely token {best}", step)
    found.proved.append("temperature 0 is greedy")
    ids = torch.cat([torch.tensor([best]), IDS[1:]])
    at_end = logits[-1]  # which depends on the last token only
    counts = torch.bincount(ids, minlength=SIZE)
    with theirs(step):
        taken = as_id(fn(model, ids.clone(), temperature=0.0, freq_penalty=9.0), step)
    if taken == int(at_end.argmax()):
        found.note("at temperature 0 the frequency penalty is not applied, as in the course")
    elif taken == int((at_end - 9.0 * counts).argmax()):
        found.note("at temperature 0 the frequency penalty is applied; the course leaves it out there")
    else:
        raise WrongAnswerError(f"at temperature 0 with a frequency penalty it takes {taken}, which is neither the most "
                               "likely token nor that after the penalty", step)  # fmt: skip
