"""Second part of the course, without chance: greedy choice, temperature, frequency penalty."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pellucid.exercises.answers import Findings, WrongAnswerError, checked, last_line, theirs
from pellucid.exercises.result import CheckResult
from pellucid.exercises.watch import apart

CLOSE = 1e-6
"""Relative difference that float32 rounding of one operation stays below."""

Formulas = Mapping[str, Callable[..., Tensor]]


def as_id(value: Any, step: str) -> int:
    """A token id, given as a number or a tensor that holds one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if not number.is_integer():
        raise WrongAnswerError(f"it returns {_shown(value)}, expected one token id", step, "the result")
    return int(number)


def _shown(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__} {value!r:.60}"


def drawn_logits(size: int = 11, seed: int = 0) -> Tensor:
    """Logits [V] without ties."""
    return 2 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def check_greedy(fn: Callable[..., Any]) -> CheckResult:
    """Check a `greedy_search(logits) -> int`, where ties go to the smallest id."""

    def body(found: Findings) -> None:
        probes = [drawn_logits(seed=seed) for seed in range(4)] + [drawn_logits() - 100.0]
        ids: list[int] = []
        for logits in probes:
            with theirs("greedy"):
                value = fn(logits.clone())
            if not isinstance(value, int):
                found.note(f"it returns {type(value).__name__}; the course's signature says int")
            ids.append(as_id(value, "greedy"))
        _one_of(ids, [int(one.argmax()) for one in probes], {
            "it takes the least likely token": [int(one.argmin()) for one in probes],
            "it takes the logit of largest absolute value": [int(one.abs().argmax()) for one in probes],
            "it takes the second most likely token": [int(one.argsort()[-2]) for one in probes],
        }, "greedy")  # fmt: skip
        found.proved.append("it takes the most likely token")
        tied = drawn_logits()
        tied[[5, 8]] = 10.0
        with theirs("greedy, ties"):
            tie = as_id(fn(tied), "greedy, ties")
        if tie != 5:
            raise WrongAnswerError(f"of two equally likely tokens, 5 and 8, it takes {tie}", "greedy, ties")
        found.proved.append("ties go to the smallest id")

    return checked("greedy", body)


def _one_of(given: Sequence[int], right: Sequence[int], wrong: Mapping[str, Sequence[int]], step: str) -> None:
    if list(given) == list(right):
        return
    for words, ids in wrong.items():
        if list(given) == list(ids):
            raise WrongAnswerError(words, step, "the chosen id")
    raise WrongAnswerError(
        f"it takes the tokens {list(given)}, expected {list(right)}; none of the known mistakes does that", step
    )


def check_temperature(fn: Callable[..., Any]) -> CheckResult:
    """Check an `apply_temperature(logits, temperature) -> logits`."""
    wrong: Formulas = {
        "the logits are multiplied by the temperature, not divided": lambda x, t: x * t,
        "the temperature is not used": lambda x, t: x,
        "the logits are divided by the square of the temperature": lambda x, t: x / t**2,
        "the logits are divided by the square root of the temperature": lambda x, t: x / t**0.5,
        "the result is a softmax: the output should be logits": lambda x, t: (x / t).softmax(-1),
        "the result is a log_softmax: the output should be logits": lambda x, t: (x / t).log_softmax(-1),
        "softmax is applied before the division": lambda x, t: x.softmax(-1) / t,
        "the temperature is subtracted": lambda x, t: x - t,
    }

    def body(found: Findings) -> None:
        probes = [(drawn_logits(seed=i), t) for i, t in enumerate((0.5, 1.0, 3.0, 0.001))]
        _check_formula(fn, probes, lambda x, t: x / t, wrong, "temperature")
        found.proved.append("the logits are divided by the temperature")

    return checked("temperature", body)


def check_frequency_penalty(fn: Callable[..., Any]) -> CheckResult:
    """Check an `apply_freq_penalty(input_ids, logits, freq_penalty) -> logits`."""

    def counts(ids: Tensor, x: Tensor) -> Tensor:
        return torch.bincount(ids, minlength=x.numel()).to(x)

    wrong: Formulas = {
        "the penalty is added, not subtracted": lambda ids, x, p: x + p * counts(ids, x),
        "a token is penalised once, however often it occurs (a presence penalty)":
            lambda ids, x, p: x - p * counts(ids, x).clamp(max=1),
        "only the last token is penalised": lambda ids, x, p: x - p * counts(ids[-1:], x),
        "the last token is not counted": lambda ids, x, p: x - p * counts(ids[:-1], x),
        "the first token is not counted": lambda ids, x, p: x - p * counts(ids[1:], x),
        "the counts are divided by the length of the text": lambda ids, x, p: x - p * counts(ids, x) / ids.numel(),
        "the penalty is not used": lambda ids, x, p: x,
        "freq_penalty is not used: every occurrence costs 1": lambda ids, x, p: x - counts(ids, x),
        "the logits are divided by the penalty, not lessened by it":
            lambda ids, x, p: x / torch.where(counts(ids, x) > 0, p * counts(ids, x), 1.0),
        "the logits are multiplied by the counts": lambda ids, x, p: x - p * counts(ids, x) * x,
    }  # fmt: skip

    def body(found: Findings) -> None:
        generator = torch.Generator().manual_seed(4)
        probes = [(torch.randint(11, (n,), generator=generator), drawn_logits(seed=n), p)
                  for n, p in ((9, 2.0), (1, 0.7), (30, -0.5))]  # fmt: skip
        probes.append((torch.tensor([1, 2, 2, 10]), drawn_logits(), 1.5))
        try:
            for ids, logits, penalty in probes:
                fn(ids.clone(), logits.clone(), penalty)
        except (Exception, SystemExit) as error:  # whatever the learner's code raises
            _minlength(fn, probes, error)
        _check_formula(fn, probes, lambda ids, x, p: x - p * counts(ids, x), wrong, "frequency penalty")
        found.proved.append("each logit is lessened by the penalty times the token's count")
        found.proved.append("tokens above the largest id of the text are handled")

    return checked("frequency penalty", body)


def _minlength(fn: Callable[..., Any], probes: Sequence[Any], error: BaseException) -> None:
    """Confirm that it is the counts' length: with the largest id in every text, nothing is raised."""
    try:
        for ids, logits, penalty in probes:
            fn(torch.cat([ids, torch.tensor([logits.numel() - 1])]), logits.clone(), penalty)
    except (Exception, SystemExit):  # not the only reason
        return
    raise WrongAnswerError(
        f"the counts are as long as the largest id of the text, not as the vocabulary (bincount's minlength): "
        f"{last_line(error)}",
        "counting tokens",
        "the counts [vocab]",
    )


def _check_formula(
    fn: Callable[..., Any], probes: Sequence[tuple[Any, ...]], right: Callable[..., Tensor], wrong: Formulas, step: str
) -> None:
    outputs: list[Tensor] = []
    for probe in probes:
        given = [part.clone() if isinstance(part, Tensor) else part for part in probe]
        with theirs(step):
            value = fn(*given)
        expected = right(*probe).shape
        if not isinstance(value, Tensor) or value.shape != expected:
            words = f"it returns {_shown(value)}, expected a tensor {list(expected)}"
            raise WrongAnswerError(words, step, "the result")
        if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(given, probe, strict=True)):
            raise WrongAnswerError("it changes its input in place", step, "the input")
        outputs.append(value)

    def same(formula: Callable[..., Tensor]) -> bool:
        return all(apart(o, formula(*probe)) <= CLOSE for o, probe in zip(outputs, probes, strict=True))

    if same(right):
        return
    for words, formula in wrong.items():
        if same(formula):
            raise WrongAnswerError(words, step, "logits [vocab]")
    gap = max(apart(o, right(*probe)) for o, probe in zip(outputs, probes, strict=True))
    raise WrongAnswerError(
        f"the result is wrong (relative difference {gap:.2g}), and none of the known mistakes reproduces it",
        step,
        "logits [vocab]",
    )
