"""Second part of the course, without chance: greedy choice, temperature, frequency penalty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.check import as_number
from pellucid.errors import shown
from pellucid.exercises.result import (
    IN_PLACE,
    NAMES,
    RETURNS,
    CheckResult,
    Findings,
    WrongAnswerError,
    checked,
    explained,
    last_line,
    odd,
    theirs,
)
from pellucid.exercises.watch import apart

CLOSE = 1e-6
"""Relative difference that float32 rounding of one operation stays below."""

Formulas = Mapping[str, Callable[..., Tensor]]


def as_id(value: Any, step: str) -> int:
    """A token id, given as a number, or as a tensor or an array that holds one."""
    one = value.reshape(()) if isinstance(value, (Tensor, np.ndarray)) and value.shape in ((), (1,)) else value
    number = as_number(one)
    if number is None or not number.is_integer():
        raise WrongAnswerError(f"it returns {_shown(value)}, expected one token id", step, "the result", RETURNS)
    return int(number)


def _shown(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{'a tensor' if isinstance(value, Tensor) else 'a NumPy array'} {list(value.shape)}"
    if isinstance(value, (list, tuple)) and len(cast("Sequence[Any]", value)) > 1:
        return f"a {type(value).__name__} of {len(cast('Sequence[Any]', value))}"
    return f"{type(value).__name__} {shown(value)}"


def given(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a function was called with, for a message: tensors by their shape, or whole if they are small."""
    parts = [
        f"{name} {list(value.shape)}" if isinstance(value, Tensor) and value.numel() > 1
        else f"{name}={value.tolist() if isinstance(value, Tensor) else value}"
        for name, value in zip(names, values, strict=False)
    ]  # fmt: skip
    return f"given {', '.join(parts)}"


def drawn_logits(seed: int = 0) -> Tensor:
    """Logits [V] without ties."""
    return 2 * torch.randn(11, generator=torch.Generator().manual_seed(seed))


class Table(nn.Module):
    """A language model small enough to know: logits [B, P, V] from the token and its position."""

    def __init__(self, size: int, seed: int, spread: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.by_token = nn.Parameter(spread * torch.randn(size, size, generator=generator), requires_grad=False)
        self.by_position = nn.Parameter(spread * torch.randn(64, size, generator=generator) / 2, requires_grad=False)

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        if x.dim() != 2:
            raise ValueError(f"the model is given ids of shape {list(x.shape)}, expected [batch, seq]")
        return self.by_token[x] + self.by_position[: x.size(1)]


def check_greedy(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check a `greedy_search(logits) -> int`, where ties go to the smallest id.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

    def body(found: Findings) -> None:
        probes = [drawn_logits(seed=seed) for seed in range(4)] + [drawn_logits() - 100.0]
        ids: list[int] = []
        for logits in probes:
            with theirs("greedy", given(("logits",), (logits,))):
                value = fn(logits.clone())
            if not isinstance(value, int):
                found.note(f"it returns {type(value).__name__}; the course's signature says int")
            ids.append(as_id(value, "greedy"))
        right = [int(one.argmax()) for one in probes]
        known = {
            "it takes the least likely token": [int(one.argmin()) for one in probes],
            "it takes the logit of largest absolute value": [int(one.abs().argmax()) for one in probes],
            "it takes the second most likely token": [int(one.argsort()[-2]) for one in probes],
        }
        if ids != right:
            unknown = f"it takes the tokens {ids}, expected {right}; none of the known mistakes does that"
            raise explained(known, lambda other: ids == other, unknown, "greedy", "the chosen id")
        found.proved.append("it takes the most likely token")
        tied = drawn_logits()
        tied[[5, 8]] = 10.0
        with theirs("greedy, ties"):
            tie = as_id(fn(tied), "greedy, ties")
        if tie != 5:
            raise WrongAnswerError(f"of two equally likely tokens, 5 and 8, it takes {tie}", "greedy, ties")
        found.proved.append("ties go to the smallest id")

    return checked("greedy", body, hint)


def check_temperature(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check an `apply_temperature(logits, temperature) -> logits`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """
    wrong: Formulas = {
        "the logits are multiplied by the temperature, not divided": lambda x, t: x * t,
        "the temperature is not used": lambda x, t: x,
        "the logits are divided by the square of the temperature": lambda x, t: x / t**2,
        "the logits are divided by the square root of the temperature": lambda x, t: x / t**0.5,
        "the result is a softmax: the output should be logits": lambda x, t: (x / t).softmax(-1),
        "the result is a log_softmax: the output should be logits": lambda x, t: (x / t).log_softmax(-1),
        "softmax is applied before the division": lambda x, t: x.softmax(-1) / t,
        "the temperature is subtracted": lambda x, t: x - t,
        "the temperature is added": lambda x, t: x + t,
        "the logits are divided by 1 + temperature": lambda x, t: x / (1 + t),
        "temperatures below 1 are not used": lambda x, t: x / max(t, 1.0),
        "the division is rounded down (//)": lambda x, t: x // t,
        "exp is applied: the output should be logits": lambda x, t: (x / t).exp(),
    }

    def body(found: Findings) -> None:
        probes = [(drawn_logits(seed=i), t) for i, t in enumerate((0.5, 1.0, 3.0, 0.001))]
        _check_formula(found, fn, probes, lambda x, t: x / t, wrong, "temperature", ("logits", "temperature"))
        found.proved.append("the logits are divided by the temperature")

    return checked("temperature", body, hint)


def check_frequency_penalty(fn: Callable[..., Any], *, hint: int | None = None) -> CheckResult:
    """Check an `apply_freq_penalty(input_ids, logits, freq_penalty) -> logits`.

    `hint` says how much of a mistake to give away, as for `CheckResult.hinted`.
    """

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
        "a token that occurs once is not penalised: the penalty is taken once too few":
            lambda ids, x, p: x - p * (counts(ids, x) - 1).clamp(min=0),
        "every token is penalised once too few: those that do not occur gain":
            lambda ids, x, p: x - p * (counts(ids, x) - 1),
        "every token is penalised once too often: those that do not occur, too":
            lambda ids, x, p: x - p * (counts(ids, x) + 1),
        "the penalty is applied twice": lambda ids, x, p: x - 2 * p * counts(ids, x),
        "the penalty is not used": lambda ids, x, p: x,
        "freq_penalty is not used: every occurrence costs 1": lambda ids, x, p: x - counts(ids, x),
        "the logits are divided by the penalty, not lessened by it":
            lambda ids, x, p: x / torch.where(counts(ids, x) > 0, p * counts(ids, x), 1.0),
        "the logits are divided by 1 + the penalty times the counts": lambda ids, x, p: x / (1 + p * counts(ids, x)),
        "the logits are multiplied by the counts": lambda ids, x, p: x - p * counts(ids, x) * x,
    }  # fmt: skip

    def body(found: Findings) -> None:
        generator = torch.Generator().manual_seed(4)
        probes = [(torch.randint(11, (n,), generator=generator), drawn_logits(seed=n), p)
                  for n, p in ((9, 2.0), (1, 0.7), (30, -0.5))]  # fmt: skip
        probes.append((torch.tensor([1, 2, 2, 10]), drawn_logits(), 1.5))
        _explain_raised(fn, probes)
        names = ("input_ids", "logits", "freq_penalty")
        _check_formula(found, fn, probes, lambda ids, x, p: x - p * counts(ids, x), wrong, "frequency penalty", names)
        found.proved.append("each logit is lessened by the penalty times the token's count")
        found.proved.append("tokens above the largest id of the text are handled")

    return checked("frequency penalty", body, hint)


def _explain_raised(fn: Callable[..., Any], probes: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    """Name why counting raises, if texts that differ in nothing else do not."""
    raised = [(*probe, error) for probe in probes if (error := _raised(fn, *probe)) is not None]
    if not raised:
        return
    said = f"{last_line(raised[0][-1])}, given input_ids={raised[0][0].tolist()}"
    if all(len(ids) == 1 and _raised(fn, ids.repeat(2), logits, p) is None for ids, logits, p, _ in raised):
        words = "a text of one token raises, two of the same token do not: squeeze() takes its only axis away, too"
        raise WrongAnswerError(f"{words}: {said}", "counting tokens", "the counts [vocab]", NAMES)
    highest = [(torch.cat([ids[:-1], torch.tensor([logits.numel() - 1])]), logits, p) for ids, logits, p, _ in raised]
    if all(_raised(fn, *probe) is None for probe in highest):
        words = "the counts are as long as the largest id of the text, not as the vocabulary (bincount's minlength)"
        raise WrongAnswerError(f"{words}: {said}", "counting tokens", "the counts [vocab]", NAMES)


def _raised(fn: Callable[..., Any], ids: Tensor, logits: Tensor, penalty: float) -> BaseException | None:
    try:
        fn(ids.clone(), logits.clone(), penalty)
    except (Exception, SystemExit) as error:  # whatever the learner's code raises
        return error
    return None


def _check_formula(
    found: Findings,
    fn: Callable[..., Any],
    probes: Sequence[tuple[Any, ...]],
    right: Callable[..., Tensor],
    wrong: Formulas,
    step: str,
    names: Sequence[str],
) -> None:
    outputs: list[Tensor] = []
    for probe in probes:
        parts = [part.clone() if isinstance(part, Tensor) else part for part in probe]
        with theirs(step, given(names, probe)):
            value = fn(*parts)
        expected = right(*probe).shape
        if not isinstance(value, Tensor) or value.shape != expected:
            words = f"it returns {_shown(value)}, expected a tensor {list(expected)}"
            if isinstance(value, (np.ndarray, list, tuple)):
                words += ": torch.as_tensor(result) makes one of it"
            raise WrongAnswerError(words, step, "the result", RETURNS)
        if what := odd(value):
            raise WrongAnswerError(f"it returns {what}, expected real numbers on the CPU", step, "the result", RETURNS)
        outputs.append(value.clone())
        note_changes(found, step, names, parts, probe)

    def same(formula: Callable[..., Tensor]) -> bool:
        return all(apart(o, formula(*probe)) <= CLOSE for o, probe in zip(outputs, probes, strict=True))

    if same(right):
        return
    gap = max(apart(o, right(*probe)) for o, probe in zip(outputs, probes, strict=True))
    unknown = f"the result is wrong (relative difference {gap:.2g}), and none of the known mistakes reproduces it"
    raise explained(wrong, same, unknown, step, "logits [vocab]")


def note_changes(found: Findings, step: str, names: Sequence[str], parts: Sequence[Any], before: Sequence[Any]) -> None:
    """Note that the logits were changed in place, which the course does not forbid."""
    for name, part, kept in zip(names, parts, before, strict=False):
        if not isinstance(kept, Tensor) or torch.equal(part, kept):
            continue
        if name != "logits":
            raise WrongAnswerError(f"it changes {name} in place", step, "the input", IN_PLACE)
        found.note("it changes the logits that it is given in place; a caller that uses them again gets other numbers")
