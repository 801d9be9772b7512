"""Second part of the course: the key-value cache, which may change the cost and nothing else."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.course import RIGHT, GPTConfig, gpt2
from pellucid.exercises.learner import COARSE, EXACT
from pellucid.exercises.names import copied, in_float64, spread
from pellucid.exercises.result import (
    RETURNS,
    CheckResult,
    Findings,
    WrongAnswerError,
    checked,
    explained,
    logits_of,
    misuse,
    theirs,
)
from pellucid.exercises.watch import apart
from pellucid.gpt2.formulas import Heads, Sizes, causal, softmax

PREFILL, LENGTH = 4, 9
SIZES = Sizes(12, 4, 3, layers=2, vocabulary=29, positions=16)


Changes = Mapping[str, Any]


def _at(place: Callable[[int], int]) -> Changes:
    """Tokens behind the prompt whose position is a function of how many came before."""
    return {"positions": lambda ids, _: torch.tensor([i if i < PREFILL else place(i) for i in range(ids.size(1))])}


def _sees(kept: Callable[[int], list[int]], *, itself: bool = True) -> Changes:
    """Tokens behind the prompt that see some of those before, a function of how many there are."""

    def mask(scores: Tensor) -> Tensor:
        seen = causal(scores)
        for i in range(PREFILL, scores.size(-2)):
            seen[i] = False
            seen[i, [*kept(i), *([i] if itself else [])]] = True
        return seen

    return {"mask": mask}


def _exchanged(pattern: Tensor, heads: Heads) -> Tensor:
    """z where keys and values of the cache have changed places."""
    q, k, v = heads
    cached = causal(pattern).tril(-1) & (torch.arange(LENGTH)[:, None] >= PREFILL)
    scores = torch.where(cached, q @ v.mT, q @ k.mT) / SIZES.head**0.5
    pattern = softmax(scores, causal(scores), None)
    return (pattern * cached) @ k + (pattern * ~cached) @ v


def _all(before: int) -> list[int]:
    return list(range(before))


def _prompt(_: int) -> list[int]:
    return list(range(PREFILL))


WRONG: Mapping[str, Changes] = {
    "a cached token always gets position 0": _at(lambda before: 0),
    "a cached token's position is one too high": _at(lambda before: before + 1),
    "a cached token's position is one too low": _at(lambda before: before - 1),
    "the cache is not read: the new token sees only itself": _sees(lambda before: []),
    "the cache is not read and the position is 0": {**_at(lambda before: 0), **_sees(lambda before: [])},
    "the cache is not extended: the new token sees the prompt and itself": _sees(_prompt),
    "the cache is not extended, so that positions stop too": {**_at(lambda before: PREFILL), **_sees(_prompt)},
    "the cache is overwritten: the new token sees the one before and itself":
        _sees(lambda before: [before - 1] if before > PREFILL else _all(before)),
    "the causal mask takes no account of the cache: the new token sees only the first key":
        _sees(lambda before: [0], itself=False),
    "the new token does not see itself": _sees(_all, itself=False),
    "the new token does not see the first one": _sees(lambda before: _all(before)[1:]),
    "keys and values change places in the cache": {"mix": _exchanged},
}  # fmt: skip
"""Mistakes with a cache -> what does the same in a full run: other positions, another mask, another sum."""


def check_cache(
    answer: type[nn.Module] | nn.Module, make_cache: Callable[..., Any], *, hint: int | None = None
) -> CheckResult:
    """Check that a GPT-2 run with a cache, prompt first and then token by token, gives the logits of a full run.

    Args:
        answer: The course's `GPT2`, whose forward takes `(x, cache)` and returns logits, or logits and a cache.
        make_cache: Makes an empty cache; called with the model if it takes an argument.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: If it is no model or no function.
    """
    if not callable(make_cache) or not callable(answer):
        raise misuse("check_cache: expected your GPT2 and a function that makes an empty cache.",
                     "As in check_cache(GPT2, make_cache=MyCache).")  # fmt: skip

    def body(found: Findings) -> None:
        model = _model(answer)
        known = getattr(getattr(model, "token_embedding", None), "num_embeddings", SIZES.vocabulary)
        ids = torch.randint(min(known, SIZES.vocabulary), (LENGTH,), generator=torch.Generator().manual_seed(9))
        with theirs("running without a cache"), torch.no_grad():
            output = logits_of(model(ids[None]))
        if not isinstance(output, Tensor) or output.dim() != 3:
            raise _no_logits(output, LENGTH)
        full = output[0]
        tolerance = EXACT if full.dtype == torch.float64 and not isinstance(answer, nn.Module) else COARSE
        try:
            cached = _stepwise(model, make_cache, ids)
            if apart(cached, full[PREFILL - 1 :]) > tolerance:
                _explain(model, ids, cached, full, tolerance)
        except WrongAnswerError as wrong:
            if not _takes_whole_texts(model, make_cache, ids, full, tolerance):
                raise
            words = (
                "it expects the whole text each time and cuts off what the cache holds; the course gives it "
                f"one token at a time behind the prompt, and then: {wrong.mistake}"
            )
            raise WrongAnswerError(words, wrong.step, wrong.tensor, wrong.kind, wrong.line) from wrong
        found.proved.append(f"a prompt and {LENGTH - PREFILL} single tokens behind it give the logits of the full run")
        with theirs("running without a cache"), torch.no_grad():
            if apart(logits_of(model(ids[None]))[0], full) > tolerance:
                raise WrongAnswerError("after a run with a cache, a run without one is another", "the cache", "logits")
        _check_fresh(model, make_cache, ids, cached, tolerance)
        found.proved.append("nothing is remembered outside the cache")
        try:
            if apart(_stepwise(model, make_cache, ids, chunk=2), full[PREFILL - 1 :]) > tolerance:
                found.note("several tokens at once behind a filled cache give other logits; the course needs one")
        except WrongAnswerError as wrong:
            found.note(f"several tokens at once behind a filled cache do not run ({wrong.mistake}); "
                       "the course does not need it")  # fmt: skip

    return checked("cache", body, hint)


def _check_fresh(
    model: nn.Module, make_cache: Callable[..., Any], ids: Tensor, cached: Tensor, tolerance: float
) -> None:
    """See that a second cache knows nothing of the run before."""
    words = "a fresh cache remembers the run before: make_cache has to make a new one at every call"
    try:
        again = _stepwise(model, make_cache, ids)
    except WrongAnswerError as wrong:
        raise WrongAnswerError(f"{words}; {wrong.mistake}", "the cache", "logits", line=wrong.line) from wrong
    if apart(again, cached) > tolerance:
        raise WrongAnswerError(words, "the cache", "logits")


def _model(answer: Any) -> nn.Module:
    if isinstance(answer, nn.Module):
        return copied(answer).eval()
    config = GPTConfig("relu", SIZES.layers, SIZES.heads, SIZES.vocabulary, SIZES.hidden, SIZES.positions, 0.1, 1e-5)
    with theirs("constructing GPT2"):
        model = answer(config)
    if not isinstance(model, nn.Module):
        words = f"GPT2 is no nn.Module: {type(model).__name__}"
        raise WrongAnswerError(words, "constructing GPT2", kind=RETURNS)
    spread(model.eval())
    return in_float64(model, torch.zeros(1, 2, dtype=torch.long))


def _stepwise(
    model: nn.Module, make_cache: Callable[..., Any], ids: Tensor, chunk: int = 1, *, whole: bool = False
) -> Tensor:
    """Logits of the prompt's last position and of each later one, behind which `chunk` tokens are given at a time.

    With `whole`, the text from its beginning is given each time, of which forward has to cut off what is cached.
    """
    with theirs("making a cache"):
        cache = make_cache(model) if _takes_the_model(make_cache) else make_cache()
    rows: list[Tensor] = []
    start = 0
    while start < LENGTH:
        end = min(start + chunk, LENGTH) if start else PREFILL
        new, piece = end - start, ids[0 if whole else start : end]
        with theirs("running with a cache", f"given ids {[1, len(piece)]} behind {start}"), torch.no_grad():
            output = model(piece[None], cache=cache)
            if isinstance(output, tuple):
                output, cache = output
            output = logits_of(output)
        is_logits = isinstance(output, Tensor) and output.dim() == 3 and output.size(0) == 1
        if not is_logits or (whole and output.size(1) == LENGTH):  # nothing was cut off
            raise _no_logits(output, new)
        rows.append(output[0, -new:] if start else output[0, -1:])
        start = end
    return torch.cat(rows)


def _no_logits(output: Any, positions: int) -> WrongAnswerError:
    shape = list(getattr(output, "shape", ()))
    words = f"the output is {type(output).__name__} {shape}, expected logits [1, {positions}, vocab]"
    return WrongAnswerError(words, "the cache", kind=RETURNS)


def _takes_whole_texts(
    model: nn.Module, make_cache: Callable[..., Any], ids: Tensor, full: Tensor, tolerance: float
) -> bool:
    """Whether every call wants the text from its beginning, and gives the right logits of what is new alone."""
    try:
        return apart(_stepwise(model, make_cache, ids, whole=True), full[PREFILL - 1 :]) <= tolerance
    except WrongAnswerError:
        return False


def _takes_the_model(make_cache: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(make_cache).parameters.values()
    except ValueError:  # list and dict, which have no signature
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _explain(model: nn.Module, ids: Tensor, cached: Tensor, full: Tensor, tolerance: float) -> None:
    step, tensor = "running with a cache", "logits [batch, seq, vocab]"
    if apart(cached[:1], full[PREFILL - 1 : PREFILL]) > tolerance:
        raise WrongAnswerError("with an empty cache the prompt's logits are other than without one", step, tensor)
    parameters = {name: value.double() for name, value in model.named_parameters()}

    def gives_it(changes: Changes) -> bool:
        with contextlib.suppress(KeyError, RuntimeError, IndexError):  # other names or sizes: no cause is confirmed
            made = gpt2(parameters, SIZES)(ids[None], replace(RIGHT, **changes))["logits"][0, PREFILL:]
            return apart(cached[1:], made) <= tolerance
        return False

    first = next(i for i in range(len(cached)) if apart(cached[i], full[PREFILL - 1 + i]) > tolerance)
    unknown = f"the logits are not a full run's from position {PREFILL - 1 + first} on, and no known mistake does that"
    raise explained(WRONG, gives_it, unknown, step, tensor)
