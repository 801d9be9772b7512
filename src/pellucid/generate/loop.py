"""Generation: run the text, choose a token for each row, see which texts end, and again until none goes on.

`steps` is the loop itself. `generate` collects what it yields, `stream` hands it out token by token; a beam search
(`beams.py`) has a loop of its own. How the text is run, with a cache or without, is the `Stepper`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pellucid.errors import EditError, InputError
from pellucid.family.network import Network
from pellucid.family.part import state_of, submodules
from pellucid.generate.beams import Beams, Hypotheses, Search
from pellucid.generate.generation import GeneratedRow, Generation, Reason, Stopping, TextStream, Token
from pellucid.generate.request import Request, generator_of, look_at
from pellucid.generate.sampler import Context, Sampler
from pellucid.generate.stepper import Stepper, checked, chosen_logprobs
from pellucid.run.activations import ActivationCkpts
from pellucid.run.origin import Origin
from pellucid.text.batch import Batch
from pellucid.text.batching import positions_of


@dataclass(frozen=True)
class Step:
    """One token of each text."""

    ids: Tensor  # [B]; a pad where a text has ended
    logprobs: Tensor  # [B], of the model's own distribution
    active: Tensor  # [B], true where the text had not ended before
    reasons: tuple[Reason | None, ...]  # why a text ends with this token; None if it goes on or had ended
    logits: Tensor  # [B, V], the model's own
    context: Context  # what the sampler's penalties looked at


def steps(
    stepper: Stepper, sampler: Sampler, stopping: Stopping, generator: torch.Generator | None, pad_id: int
) -> Iterator[Step]:
    """Yield one token of each text after another, until all texts have ended.

    As in transformers, texts that have ended go on as pads until all have, and a draw is made for each of them.
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


def generate(model: Network, request: Request) -> Generation:
    """Carry out a request."""
    if request.runs_nothing:
        rows = tuple(GeneratedRow(prompt, prompt[:0], prompt[:0].float(), "length") for prompt in _prompts(request))
        return Generation(rows, request.batch.tokenizer, request.single)
    if request.beams is not None:
        return _searched(model, request, request.beams)
    stepper, going = _started(model, request)
    ids, logprobs = [], []
    lengths, reasons = [0] * len(stepper.ids), ["length"] * len(stepper.ids)
    for number, step in enumerate(going):
        ids.append(step.ids)
        logprobs.append(step.logprobs)
        for row, active in enumerate(step.active.tolist()):
            lengths[row] = number + 1 if active else lengths[row]
            reasons[row] = step.reasons[row] or reasons[row]
    none = stepper.ids[:, :0]
    new, chances = (torch.stack(ids, 1), torch.stack(logprobs, 1)) if ids else (none, none.float())
    rows = tuple(
        GeneratedRow(prompt, new[i, : lengths[i]], chances[i, : lengths[i]], reasons[i])  # pyright: ignore[reportArgumentType]
        for i, prompt in enumerate(_prompts(request))
    )
    ckpts = _captured(stepper, request, new, lengths)
    return Generation(rows, request.batch.tokenizer, request.single, ckpts)


def stream(model: Network, request: Request, *, explain: bool = False) -> Iterator[Token]:
    """The tokens of a request without beams, as they come: for each step, one of each text that goes on.

    What cannot be carried out is refused at once.
    """
    if request.beams is not None:
        raise InputError(
            f"stream: a beam search of {request.beams.width} beams, whose texts are known only at its end.",
            code="stream-beams",
            remedy="Call generate; or leave the search out: model.generation = model.generation.without('num_beams').",
        )
    if request.runs_nothing:
        return iter(())
    return _tokens(*_started(model, request), request, explain)


def _prompts(request: Request) -> list[Tensor]:
    """The prompt of each text that is returned."""
    return [row for row in request.batch.rows() for _ in range(request.returned)]


def _tokens(stepper: Stepper, going: Iterator[Step], request: Request, explain: bool) -> Iterator[Token]:
    texts = [TextStream(request.batch.tokenizer, after=prompt.tolist()) for prompt in _prompts(request)]
    for step in going:
        chosen, logprobs = step.ids.tolist(), step.logprobs.tolist()
        for row, active in enumerate(step.active.tolist()):
            if active:
                text, reason = texts[row].push(chosen[row]), step.reasons[row]
                text += texts[row].finish() if reason else ""
                stages = _explained(request.sampler, step, row) if explain else None
                yield Token(text, chosen[row], logprobs[row], row, reason, stages)
    stepper.look.edits.check_fired()


def _explained(sampler: Sampler, step: Step, row: int) -> dict[str, Tensor]:
    ids, mask = step.context.ids[row], step.context.mask[row]
    alone = replace(step.context, ids=ids[mask][None], mask=mask[mask][None], active=None)
    return sampler.explain_in(alone, step.logits[row])


def _started(model: Network, request: Request) -> tuple[Stepper, Iterator[Step]]:
    plan = replace(request.plan, repeats=request.returned)
    stepper = Stepper(model, request.batch, plan, look_at(request, model))
    generator = generator_of(request.seed, request.batch.ids.device)
    return stepper, steps(stepper, request.sampler, request.stopping, generator, request.pad_id)


def _captured(stepper: Stepper, request: Request, new: Tensor, lengths: list[int]) -> ActivationCkpts | None:
    """What was captured, over the whole texts: their last tokens, which nothing followed, are run for it."""
    look = stepper.look
    if look.is_blind:
        return None
    if new.size(1):
        with torch.no_grad():
            stepper.step(new[:, -1])
    look.edits.check_fired()
    if not request.names:
        return None
    columns = torch.arange(new.size(1), device=new.device)
    real = columns < torch.tensor(lengths, device=new.device)[:, None]
    mask = torch.cat([stepper.mask[:, : stepper.mask.size(1) - new.size(1)], real], 1)
    batch = Batch(stepper.ids, mask, positions_of(mask), request.batch.tokenizer)
    model = stepper.model
    origin = Origin(getattr(model, "provenance", {}).get("source", ""), model, state_of(submodules(model)))
    return ActivationCkpts(look.joined(mask.size(1)), batch, look.schema, fired=look.edits.fired, origin=origin)


def _searched(model: Network, request: Request, beams: Beams) -> Generation:
    if request.names or request.edits:
        raise EditError(
            "generate: names= and edits= cannot be combined with num_beams: beams are reordered at every step.",
            code="look-and-beams",
            remedy="Run the text that the search found: model.run_with_ckpts(out.ids).",
        )
    beams.require_enough_tokens(model.schema.sizes["d_vocab"], len(request.stopping.end_ids))
    plan = replace(request.plan, repeats=beams.width)
    stepper = Stepper(model, request.batch, plan, look_at(request, model))
    generator = generator_of(request.seed, request.batch.ids.device)
    found = Search(stepper, beams, request.sampler, request.stopping, generator).run()
    beams.require_found(found)
    rows = [
        _row(prompt, found, number, place, request.stopping)
        for number, prompt in enumerate(request.batch.rows())
        for place in range(beams.returned)
    ]
    follows = None if request.sampler.is_greedy else "transformers {}.{}".format(*beams.follows)
    return Generation(tuple(rows), request.batch.tokenizer, request.single, follows=follows)


def _row(prompt: Tensor, found: Hypotheses, number: int, place: int, stopping: Stopping) -> GeneratedRow:
    new = found.ids[number, place]
    new = new[new >= 0]
    reason = stopping.reason(new.tolist())
    assert reason is not None, "a search gives finished texts"
    return GeneratedRow(
        prompt, new, found.logprobs[number, place, : len(new)], reason, float(found.scores[number, place])
    )


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
