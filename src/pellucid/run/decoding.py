"""Greedy and sampled decoding: one token after another, until every text has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pellucid.run.sampling import Context, Sampler
from pellucid.run.stepping import Stepper
from pellucid.run.stopping import Reason, Stopping


@dataclass(frozen=True)
class Step:
    """One token of each text.

    Attributes:
        ids: [B]; a pad where a text has ended.
        logprobs: [B], of the model's own distribution.
        active: [B], true where the text had not ended before.
        reasons: Why a text ends with this token; None where it goes on or had ended.
        logits: [B, V], the model's own.
        context: What the sampler's penalties looked at.
    """

    ids: Tensor
    logprobs: Tensor
    active: Tensor
    reasons: tuple[Reason | None, ...]
    logits: Tensor
    context: Context


def decode(
    stepper: Stepper, sampler: Sampler, stopping: Stopping, generator: torch.Generator | None, pad_id: int
) -> Iterator[Step]:
    """Decode step by step.

    As in transformers, texts that have ended go on as pads until all have, and a draw is made for each of them.

    Raises:
        NumericsError: Logits that hold NaN.
        InputError: A sampler that leaves no token.
    """
    new: list[list[int]] = [[] for _ in stepper.ids]
    goes_on = [True] * len(new)  # `active`, without asking the device
    active = torch.ones(len(new), dtype=torch.bool, device=stepper.ids.device)
    prompt = stepper.ids.size(1)
    logits = checked(stepper, stepper.start, active, 0)
    for number in range(stopping.max_new_tokens):
        last = number + 1 == stopping.max_new_tokens
        context = Context(stepper.ids, stepper.mask, number, stopping.end_ids, active=active, prompt=prompt, last=last)
        chosen = sampler.choose(sampler.process(logits.float(), context), generator)
        chosen = torch.where(active, chosen, pad_id)
        reasons = _extended(new, chosen.tolist(), goes_on, stopping)
        yield Step(chosen, chosen_logprobs(logits, chosen), active, reasons, logits, context)
        if any(reasons):
            goes_on = [on and reason is None for on, reason in zip(goes_on, reasons, strict=True)]
            active = torch.tensor(goes_on, device=active.device)
        if not any(goes_on):
            return
        logits = checked(stepper, partial(stepper.step, chosen), active, number + 1)


def checked(stepper: Stepper, run: Callable[[], Tensor], active: Tensor, step: int) -> Tensor:
    """The logits [B, V] of a run, without NaN where a text goes on.

    Raises:
        NumericsError: There is one.
    """
    with torch.no_grad():
        logits = run()
        suspicious = bool(logits.sum().isnan())  # one pass; infinities of both signs look like this too
        if suspicious and bool((logits.isnan().any(-1) & active).any()):
            raise stepper.nan_error(step)
    return logits


def chosen_logprobs(logits: Tensor, chosen: Tensor) -> Tensor:
    """[..., V] and [...] -> [...]: log-probabilities, in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(-1, chosen[..., None]).squeeze(-1)


def _extended(
    new: list[list[int]], chosen: list[int], active: list[bool], stopping: Stopping
) -> tuple[Reason | None, ...]:
    """Append the tokens to the texts that go on; why each of them ends now, if it does."""
    reasons: list[Reason | None] = []
    for tokens, token, goes_on in zip(new, chosen, active, strict=True):
        if goes_on:
            tokens.append(token)
        reasons.append(stopping.reason(tokens) if goes_on else None)
    return tuple(reasons)
