"""Second part of the course: the key-value cache, which may change the cost and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.course import GPTConfig
from pellucid.exercises.learner import COARSE, EXACT, copied, parameter, spread
from pellucid.exercises.reference import Parameters, split_heads
from pellucid.exercises.result import CheckResult, Findings, WrongAnswerError, checked, misuse, theirs
from pellucid.exercises.watch import apart
from pellucid.gpt2.formulas import Sizes, layer_norm

PREFILL, LENGTH = 4, 9
SIZES = Sizes(12, 4, 3, layers=2, vocabulary=29, positions=16)


@dataclass(frozen=True)
class Cached:
    """One token at a time after the prompt; the defaults are right.

    Attributes:
        position: The position of the new token, as a function of how many came before.
        keeps: Which of the earlier keys and values the new token sees, as a function of how many there are.
        swapped: Whether keys and values change places in the cache.
    """

    position: Callable[[int], int] = lambda before: before
    keeps: Callable[[int], list[int]] = lambda before: list(range(before))
    itself: bool = True
    swapped: bool = False

    def run(self, ids: Tensor, p: Parameters) -> Tensor:
        """ids [P] -> logits [P - PREFILL, V] of the tokens behind the prompt."""
        cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(SIZES.layers)]
        rows: list[Tensor] = []
        for place, token in enumerate(ids):
            prompt = place < PREFILL
            at = place if prompt else self.position(place)
            x = (p["token_embedding.weight"][token] + p["pos_embedding.weight"][at])[None, None]
            for i in range(SIZES.layers):
                x = self._block(x, _of_block(p, i), cache[i], prompt=prompt)
            rows.append((_norm(x, p, "ln") @ p["token_embedding.weight"].T)[0, 0])
        return torch.stack(rows[PREFILL:])

    def _block(self, x: Tensor, p: Parameters, cache: list[tuple[Tensor, Tensor]], *, prompt: bool) -> Tensor:
        read = _norm(x, p, "ln1")
        parts = split_heads(read @ p["attn.qkv_proj.weight"].T + p["attn.qkv_proj.bias"], SIZES)
        q, k, v = (part[0, 0] for part in parts)  # [H, K]
        earlier = cache if prompt else [cache[i] for i in self.keeps(len(cache))]
        if self.swapped and not prompt:
            earlier = [(value, key) for key, value in earlier]
        seen = [*earlier, (k, v)] if self.itself or prompt else earlier
        keys, values = (torch.stack(part) for part in zip(*seen, strict=True))  # [Pk, H, K]
        pattern = (torch.einsum("hk,phk->hp", q, keys) / SIZES.head**0.5).softmax(-1)
        z = torch.einsum("hp,phk->hk", pattern, values).flatten()
        x = x + z @ p["attn.output_proj.weight"].T + p["attn.output_proj.bias"]
        cache.append((k, v))
        pre = _norm(x, p, "ln2") @ p["linear1.weight"].T + p["linear1.bias"]
        return x + pre.relu() @ p["linear2.weight"].T + p["linear2.bias"]


def _norm(x: Tensor, p: Parameters, name: str) -> Tensor:
    return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], SIZES.epsilon)


def _of_block(p: Parameters, i: int) -> dict[str, Tensor]:
    return {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}


WRONG: Mapping[str, Cached] = {
    "a cached token always gets position 0": Cached(position=lambda before: 0),
    "a cached token's position is one too high": Cached(position=lambda before: before + 1),
    "a cached token's position is one too low": Cached(position=lambda before: before - 1),
    "the cache is not read: the new token sees only itself": Cached(keeps=lambda before: []),
    "the cache is not read and the position is 0": Cached(lambda before: 0, lambda before: []),
    "the cache is not extended: the new token sees the prompt and itself":
        Cached(keeps=lambda before: list(range(PREFILL))),
    "the cache is not extended, so that positions stop too": Cached(lambda _: PREFILL, lambda _: list(range(PREFILL))),
    "the cache is overwritten: the new token sees the one before and itself":
        Cached(keeps=lambda before: [before - 1] if before > PREFILL else list(range(PREFILL))),
    "the causal mask takes no account of the cache: the new token sees only the first key":
        Cached(keeps=lambda before: [0], itself=False),
    "the new token does not see itself": Cached(itself=False),
    "the new token does not see the first one": Cached(keeps=lambda before: list(range(1, before))),
    "keys and values change places in the cache": Cached(swapped=True),
}  # fmt: skip


def check_cache(
    answer: type[nn.Module] | nn.Module, make_cache: Callable[..., Any], *, hint: int | None = None
) -> CheckResult:
    """Check that a GPT-2 run with a cache, prompt first and then token by token, gives the logits of a full run.

    Args:
        answer: The course's `GPT2`, whose forward takes `(x, cache)` and returns logits, or logits and a cache.
        make_cache: Makes an empty cache; called with the model where it takes an argument.
        hint: How much of a mistake to give away, as for `CheckResult.hinted`.

    Raises:
        InputError: No model or no function.
    """
    if not callable(make_cache) or not callable(answer):
        raise misuse("check_cache: expected your GPT2 and a function that makes an empty cache.",
                     "As in check_cache(GPT2, make_cache=MyCache).")  # fmt: skip

    def body(found: Findings) -> None:
        model = _model(answer)
        known = getattr(getattr(model, "token_embedding", None), "num_embeddings", SIZES.vocabulary)
        ids = torch.randint(min(known, SIZES.vocabulary), (LENGTH,), generator=torch.Generator().manual_seed(9))
        with theirs("running without a cache"), torch.no_grad():
            full = _logits(model(ids[None]))[0]
        tolerance = EXACT if full.dtype == torch.float64 and not isinstance(answer, nn.Module) else COARSE
        try:
            cached = _stepwise(model, make_cache, ids, 1)
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
            if apart(_logits(model(ids[None]))[0], full) > tolerance:
                raise WrongAnswerError("after a run with a cache, a run without one is another", "the cache", "logits")
        if apart(_stepwise(model, make_cache, ids, 1), cached) > tolerance:
            raise WrongAnswerError("a fresh cache remembers the run before", "the cache", "logits")
        found.proved.append("nothing is remembered outside the cache")
        try:
            if apart(_stepwise(model, make_cache, ids, 2), full[PREFILL - 1 :]) > tolerance:
                found.note("several tokens at once behind a filled cache give other logits; the course needs one")
        except WrongAnswerError as wrong:
            found.note(f"several tokens at once behind a filled cache do not run ({wrong.mistake}); "
                       "the course does not need it")  # fmt: skip

    return checked("cache", body, hint)


def _model(answer: Any) -> nn.Module:
    if isinstance(answer, nn.Module):
        return copied(answer).eval()
    config = GPTConfig("relu", SIZES.layers, SIZES.heads, SIZES.vocabulary, SIZES.hidden, SIZES.positions, 0.1, 1e-5)
    with theirs("constructing GPT2"):
        model = answer(config).eval()
    spread(model)
    double = copied(model).double()
    try:
        with torch.no_grad():
            double(torch.zeros(1, 2, dtype=torch.long))
    except (Exception, SystemExit):  # written for float32 only; a real mistake is raised again
        return model
    return double


def _logits(output: Any) -> Any:
    """The logits of an answer, also of one that gives a cache beside them."""
    return output[0] if isinstance(output, tuple) else output


def _stepwise(model: nn.Module, make_cache: Callable[..., Any], ids: Tensor, chunk: int) -> Tensor:
    """Logits of the prompt's last position and of each later one."""
    with theirs("making a cache"):
        cache = make_cache(model) if _takes_the_model(make_cache) else make_cache()
    rows: list[Tensor] = []
    start = 0
    for end in (PREFILL, *range(PREFILL + chunk, LENGTH + chunk, chunk)):
        piece = ids[start : min(end, LENGTH)]
        if not len(piece):
            break
        with theirs("running with a cache", f"given ids {[1, len(piece)]} behind {start}"), torch.no_grad():
            output = model(piece[None], cache=cache)
            if isinstance(output, tuple):
                output, cache = output
        if not isinstance(output, Tensor) or output.dim() != 3 or output.size(0) != 1:
            shape = list(getattr(output, "shape", ()))
            raise WrongAnswerError(f"the output is {type(output).__name__} {shape}, expected logits", "the cache")
        rows.append(output[0, -1:] if start == 0 else output[0, -len(piece) :])
        start = min(end, LENGTH)
    return torch.cat(rows)


def _takes_whole_texts(
    model: nn.Module, make_cache: Callable[..., Any], ids: Tensor, full: Tensor, tolerance: float
) -> bool:
    """Whether the logits are right if every call is given the text from its beginning."""
    rows: list[Tensor] = []
    try:
        cache = make_cache(model) if _takes_the_model(make_cache) else make_cache()
        for end in range(PREFILL, LENGTH + 1):
            with torch.no_grad():
                output = model(ids[None, :end], cache=cache)
            output, cache = output if isinstance(output, tuple) else (output, cache)
            rows.append(output[0, -1:])
    except (Exception, SystemExit):  # whatever the learner's code raises
        return False
    return apart(torch.cat(rows), full[PREFILL - 1 :]) <= tolerance


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
    for words, variant in WRONG.items():
        try:
            p = {name: parameter(model, name).double() for name, _ in model.named_parameters()}
            made = variant.run(ids, p)
        except (KeyError, RuntimeError, IndexError, AttributeError):  # other names or sizes: no cause is confirmed
            continue
        if apart(cached[1:], made) <= tolerance:
            raise WrongAnswerError(words, step, tensor)
    first = next(i for i in range(len(cached)) if apart(cached[i], full[PREFILL - 1 + i]) > tolerance)
    raise WrongAnswerError(
        f"the logits are not a full run's from position {PREFILL - 1 + first} on, and no known mistake does that",
        step, tensor,
    )  # fmt: skip
