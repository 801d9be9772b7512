"""What a comparison tries in the place of a program that is no right GPT-2: a plain model, and the mistakes to make.

What was seen of the program suggests some mistakes, such as a window of attention by the first position that differs;
those of the catalogue follow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pellucid.family.families import Seen, Span, Suspect
from pellucid.family.suspicions import Suspicion, measured, suggested
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.formulas import Heads, PlainWeights, Sizes, causal, softmax
from pellucid.gpt2.mistake import Mistake
from pellucid.gpt2.mistakes import known_mistakes
from pellucid.gpt2.parts import LOGITS, run_parts
from pellucid.numerics.rounding import BEYOND_ROUNDING, size_of
from pellucid.schema import in_another_order

PLACES = {
    "embed": "embed.W_E", "pos": "pos_embed.W_pos", "block": "", "ln1": "ln1.w", "attn": "attn", "q": "attn.W_Q",
    "k": "attn.W_K", "v": "attn.W_V", "O": "attn.W_O", "ln2": "ln2.w", "mlp": "mlp", "in": "mlp.W_in",
    "out": "mlp.W_out", "ln_final": "ln_final.w",
}  # fmt: skip
"""Where `run_parts` records a value -> the parameter, module or block whose place that is."""

QUICK = 5_000_000
"""Multiplications of a run that take no longer in either dtype than what is around them, about a millisecond."""


def suspects(config: TransformerConfig, tensors: Mapping[str, Tensor], seen: Seen) -> Iterator[Suspect]:
    """The mistakes that a comparison tries, made in a plain GPT-2; the likely ones first."""
    weights = PlainWeights(Sizes.of(config), tensors)
    products = seen.ids.numel() * sum(tensor.numel() for tensor in tensors.values())
    coarse = weights if products < QUICK else weights.coarsely()
    known = known_mistakes(weights, several_rows=seen.ids.size(0) > 1)
    for mistake in (*_suggested(weights, seen), *known, *map(_mistake, measured(seen))):
        yield _suspect(mistake, weights, coarse)


def _suspect(mistake: Mistake, weights: PlainWeights, coarse: PlainWeights) -> Suspect:
    parts = mistake.parts

    def run(span: Span, coarsely: bool) -> dict[str, Tensor]:
        values = run_parts(parts, coarse if coarsely else weights, span)
        named = ((_place(name), value) for name, value in values.items())
        return {place: value for place, value in named if place}

    def only_in(blocks: tuple[int, ...]) -> Suspect:
        words = f"{mistake.report}, in block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))} only"
        return _suspect(replace(mistake, report=words, changes={**mistake.changes, "blocks": blocks}), weights, coarse)

    def beside(other: Suspect) -> Suspect:
        also: Mistake = other.what
        changes = {**also.changes, **mistake.changes, "elsewhere": also.parts}
        return _suspect(replace(mistake, changes=changes), weights, coarse)

    return Suspect(
        mistake.report,
        run,
        parts.first_change(weights.sizes.layers),
        None if {"order", "blocks"} & mistake.changes.keys() else only_in,
        is_of_order="order" in mistake.changes,
        is_of_logits="logits" in mistake.changes,
        harmless=mistake.harmless,
        slight=mistake.slight,
        quick=coarse is weights,
        what=mistake,
        beside=beside,
    )


@functools.lru_cache(maxsize=4096)
def _place(name: str) -> str:
    """The place at which a value is recorded under a name; "" if it is recorded for others."""
    block, _, kind = name.rpartition(".")
    if kind == LOGITS:
        return kind
    known = PLACES.get(kind[:-1])
    return "" if known is None or kind[-1] not in "<>" else ".".join(filter(None, (block, known))) + kind[-1]


def _suggested(weights: PlainWeights, seen: Seen) -> Iterator[Mistake]:
    """The mistakes that what was seen suggests."""
    yield from _heads_of_its_own(weights, seen)
    yield from map(_mistake, suggested(seen))
    yield from _exchanged_heads(weights, seen)
    orders = {i: _head_orders(weights, seen, i) for i in range(weights.sizes.layers)}
    if any(len(set(order.values())) > 1 for order in orders.values()):
        words = "the heads of " + " and ".join(sorted(_odd_ones(orders))) + " stand in another order than the others"
        yield Mistake(
            {"split": lambda h, w: _paired(h, orders[w.block]), "merge": lambda z, w: _placed(z, orders[w.block])},
            words,
        )


def _heads_of_its_own(weights: PlainWeights, seen: Seen) -> Iterator[Mistake]:
    """Another head than the model's, or a bias on it, among the tensors that a program has for itself."""
    vocabulary, width = weights.tensors["embed.W_E"].shape
    for name, tensor in seen.alone.items():
        if tensor.dim() == 2 and tensor.numel() == vocabulary * width:
            for head in (tensor, tensor.T):
                if head.shape == (vocabulary, width):
                    words = f"head not tied: {name} is another matrix than the embedding"
                    yield Mistake({"head": head}, words if weights.tied else f"the head is {name}")
        if tensor.numel() == vocabulary:
            bias = tensor.double().flatten()
            yield Mistake({"logits": lambda x, W, b=bias: x @ W.T + b}, f"a bias on the head: {name}")


def _mistake(suspicion: Suspicion) -> Mistake:
    """A mistake that what was seen suggests, in a plain GPT-2."""
    changes: dict[str, Any] = {}
    if (sees := suspicion.sees) is not None:
        changes["mask"] = lambda scores: sees(*_grid(scores))
    if suspicion.fill is not None:
        changes["fill"] = suspicion.fill
    if (factors := suspicion.scores) is not None:
        changes["scale"] = lambda q, w: w.scale(q) * factors.to(q)
    if (times := suspicion.heads) is not None:
        changes["merge"] = lambda z, w: (z * times.to(z)).flatten(2)
    if (logits := suspicion.logits) is not None:
        changes["logits"] = lambda x, W: logits(x @ W.T)
    return Mistake(changes, suspicion.report, harmless=suspicion.harmless)


def _grid(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The places of queries [P, 1] and of keys [P] of scores [B, H, P, P]."""
    places = torch.arange(scores.size(-1), device=scores.device)
    return places[:, None], places


def _exchanged_heads(weights: PlainWeights, seen: Seen) -> Iterator[Mistake]:
    """Heads of q, k or v that attend as others, if the program shows z: every pair of heads is tried."""
    z = seen.observed
    if not seen.where.endswith("attn.ckpt_z") or z.shape != seen.expected[seen.where].shape:
        return
    attn, block, n_head = seen.where.removesuffix("ckpt_z"), int(seen.where.split(".")[1]), z.size(2)
    size, own = size_of(seen.expected[seen.where]), weights.of_block(block)
    for number, letter in enumerate("qkv"):
        order: dict[int, int] = {}
        for shift in range(n_head):
            heads = [seen.expected[f"{attn}ckpt_{c}"] for c in "qkv"]
            heads[number] = heads[number].roll(-shift, 2)
            gap = (_attended(heads, own) - z).abs().amax((0, 1, 3)) / size
            order |= {h: (h + shift) % n_head for h in range(n_head) if gap[h] < BEYOND_ROUNDING and h not in order}
        taken = tuple(order.get(h, -1) for h in range(n_head))
        if sorted(taken) == list(range(n_head)) and taken != tuple(range(n_head)):
            words = f"{in_another_order(taken, 'head')} in {letter}"
            yield Mistake({"split": lambda h, _, n=number, o=taken: _taken(h, n, o)}, words)


def _attended(heads: Sequence[Tensor], weights: PlainWeights) -> Tensor:
    """z [B, P, H, K] of q, k and v."""
    q, k, v = (part.transpose(1, 2) for part in heads)
    scores = q @ k.mT * weights.scale(q)
    return (softmax(scores, causal(scores), None) @ v).transpose(1, 2)


def _taken(heads: Heads, number: int, order: tuple[int, ...]) -> Heads:
    """One of q, k and v has its heads in another order."""
    q, k, v = (part[:, :, list(order)] if n == number else part for n, part in enumerate(heads))
    return q, k, v


def _head_orders(weights: PlainWeights, seen: Seen, block: int) -> dict[str, tuple[int, ...]]:
    """Return the order in which the program keeps its heads, for each of q, k, v and the output projection."""
    in_order = tuple(range(weights.sizes.heads))
    return {letter: seen.heads.get(f"blocks.{block}.attn.W_{letter}", in_order) for letter in "QKVO"}


def _odd_ones(orders: Mapping[int, Mapping[str, tuple[int, ...]]]) -> set[str]:
    names = {"Q": "q", "K": "k", "V": "v", "O": "the output projection"}
    odd: set[str] = set()
    for order in orders.values():
        counts = [list(order.values()).count(given) for given in order.values()]
        odd |= {names[letter] for letter, count in zip(order, counts, strict=True) if count < max(counts)}
    return odd or {"q and k", "v and the output projection"}


def _paired(heads: Heads, order: Mapping[str, tuple[int, ...]]) -> Heads:
    """Each place pairs the heads that stand there, whichever they are."""
    q, k, v = (part[:, :, list(order[letter])] for letter, part in zip("QKV", heads, strict=True))
    return q, k, v


def _placed(z: Tensor, order: Mapping[str, tuple[int, ...]]) -> Tensor:
    """z [B, P, H, K] merged, each place's at the head that the output projection keeps there."""
    placed = torch.empty_like(z)
    placed[:, :, list(order["O"])] = z
    return placed.flatten(2)
