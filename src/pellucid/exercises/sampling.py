"""Second part of the course: `sample_next_token`, which puts the pieces together, and one door to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import shown
from pellucid.exercises.beam_search import check_beam_search
from pellucid.exercises.draws import (
    EXACT,
    Distribution,
    basic,
    check_sample_basic,
    check_top_k,
    check_top_p,
    distribution,
    greedy,
    nucleus,
    nucleus_of_the_course,
    top_k,
)
from pellucid.exercises.kv_cache import check_cache
from pellucid.exercises.result import (
    CheckResult,
    Findings,
    WrongAnswerError,
    checked,
    explained,
    misuse,
    theirs,
    together,
)
from pellucid.exercises.scores import Table, as_id, check_frequency_penalty, check_greedy, check_temperature
from pellucid.exercises.watch import Drawn

SIZE = 9
IDS = torch.tensor([3, 1, 4, 1, 5, 1, 3])


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
    power: int = 1
    sign: int = 1
    once: bool = False
    always_best: bool = False
    nucleus: Callable[..., Tensor] = nucleus

    def law(self, logits: Tensor, o: Options) -> Tensor:
        """Logits [P, V] -> probabilities [V] of the next token."""
        given, counts = logits[self.position].double(), torch.bincount(IDS, minlength=logits.size(-1))
        t = 1.0 if self.without == "temperature" else o.temperature**self.power
        counts = counts.clamp(max=1) if self.once else counts
        penalty = 0.0 if self.without == "freq_penalty" else self.sign * o.freq_penalty
        x = (given - penalty * counts) / t if self.penalty_first else given / t - penalty * counts
        if self.always_best:
            return greedy(x)
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
    "the logits are multiplied by the temperature, not divided": TokenChoice(power=-1),
    "the frequency penalty is added, not subtracted": TokenChoice(sign=-1),
    "a token is penalised once, however often it occurs (a presence penalty)": TokenChoice(once=True),
    "it always takes the most likely token: nothing is sampled": TokenChoice(always_best=True),
    **{f"with {name}, temperature and frequency penalty are not used": TokenChoice(alone=name)
       for name in ("top_k", "top_p")},
    **{f"{name} is not used": TokenChoice(without=name) for name in ("temperature", "freq_penalty", "top_k", "top_p")},
}  # fmt: skip


def check_sample_next_token(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `sample_next_token(model, input_ids, temperature, freq_penalty, top_k, top_p) -> int`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        model, step = Table(SIZE, 6, 1.5).eval(), "the next token"
        logits = model(IDS[None])[0]
        seen = [(distribution(lambda o=o: fn(model, IDS.clone(), **o.given()), SIZE, step), o) for o in PROBES]
        variant = _same(seen, logits, TokenChoice())
        if variant is None:
            bad = next(o for one, o in seen if not one.is_(TokenChoice().law(logits, o)))
            unknown = f"it is wrong with {bad.given() or 'the defaults'}; no known mistake gives that"
            raise explained(
                WRONG, lambda one: _same(seen, logits, one) is not None, unknown, step, "the probabilities [vocab]"
            )
        found.proved.append("temperature, then frequency penalty, then top-k or top-p, at the last position")
        if variant.nucleus is nucleus_of_the_course:
            found.note("its top-p is the course's: one token fewer than the nucleus of the paper and of transformers")
        _at_zero(found, fn, model, logits)

    return checked("sample_next_token", body, hint)


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
    with theirs(step), Drawn(0) as drawn:
        fn(model, IDS.clone(), temperature=0.0)
    if any(float(one.max() / one.sum()) < 1 - EXACT for one in drawn.weights):
        raise WrongAnswerError("at temperature 0 it samples, expected the most likely token at every call", step)
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


CHECKS: Mapping[str, tuple[tuple[str, ...], Callable[..., CheckResult]]] = {
    "greedy": (("greedy_search",), check_greedy),
    "temperature": (("apply_temperature",), check_temperature),
    "frequency_penalty": (("apply_freq_penalty", "apply_frequency_penalty"), check_frequency_penalty),
    "basic": (("sample_basic",), check_sample_basic),
    "top_k": (("sample_top_k",), check_top_k),
    "top_p": (("sample_top_p",), check_top_p),
    "next_token": (("sample_next_token",), check_sample_next_token),
    "beam_search": (("beam_search",), check_beam_search),
}
"""Exercise -> the names that the course gives its function, and its check."""


def check_sampling(
    *answers: Any,
    exercise: str | None = None,
    make_cache: Callable[..., Any] | None = None,
    hint: int | None = None,
) -> CheckResult:
    """Check functions of the course's second part, or the cache of a GPT-2.

    Args:
        *answers: Functions under the course's names: `greedy_search`, `apply_temperature`, `apply_freq_penalty`,
            `sample_basic`, `sample_top_k`, `sample_top_p`, `sample_next_token`, `beam_search`; or a `GPT2`.
        exercise: Which one it is, for a single function of another name: a key of `CHECKS`.
        make_cache: Makes an empty cache, for a `GPT2`.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Returns:
        The function's own result, or one for all of them, which passed if each did.

    Raises:
        InputError: If there is nothing to check, or a function has an unknown name.

    Example:
        >>> from pellucid.exercises import check_sampling
        >>> def greedy_search(logits):
        ...     return int(logits.argmin())
        >>> print(check_sampling(greedy_search))
        ✗ greedy
            mistake: it takes the least likely token
            step: greedy
            first shows in: the chosen id
    """
    if not answers:
        raise misuse("check_sampling: nothing given.", "Pass one or more of your functions.")
    if exercise is not None and len(answers) > 1:
        raise misuse("check_sampling: several functions and one exercise.", "Pass exercise= with a single function.")
    results = [_check(answer, exercise, make_cache, hint) for answer in answers]
    return results[0] if len(results) == 1 else together("sampling", results)


def _check(answer: Any, exercise: str | None, make_cache: Callable[..., Any] | None, hint: int | None) -> CheckResult:
    if isinstance(answer, nn.Module) or (isinstance(answer, type) and issubclass(answer, nn.Module)):
        if make_cache is None:
            raise misuse("check_sampling: a model without make_cache.", "Pass make_cache=, which makes an empty cache.")
        return check_cache(answer, make_cache, hint=hint)
    if not callable(answer):
        raise misuse(f"check_sampling: {type(answer).__name__} given, expected a function.", "Pass the function.")
    name = getattr(answer, "__name__", "")
    found = exercise or next((key for key, (names, _) in CHECKS.items() if name in (key, *names)), None)
    if not isinstance(found, str) or found not in CHECKS:
        raise misuse(
            f"check_sampling: which exercise is {shown(found or name)}?",
            f"Use the course's name for the function, or pass exercise=, one of {', '.join(CHECKS)}.",
        )
    return CHECKS[found][1](answer, hint=hint)
