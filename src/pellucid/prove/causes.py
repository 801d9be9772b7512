"""Why two programs differ: known mistakes, each confirmed by making it in the reference.

A mistake is named only if the reference with that mistake in it computes what the other program computed, at the
point where they first differ. Where none does, nothing is claimed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.changes import in_another_order
from pellucid.prove.differences import BEYOND_ROUNDING, relative_error, size_of
from pellucid.prove.mistakes import Mistake, known_mistakes
from pellucid.prove.points import LOGITS, ckpt_of
from pellucid.prove.recipe import Facts, Heads, Ingredients, Recipe, Span, attend_with, right_recipe, run_recipe
from pellucid.prove.units import HEAD

TRIED_ALONE = 4
"""Up to how many blocks a mistake is tried in each of them alone, where the program does not show which it is."""

ALL_AGREES = "with this in the reference, the logits agree too"


@dataclass(frozen=True)
class Evidence:
    """What two programs computed, in float64, and where they first differ.

    Attributes:
        model: The reference.
        ids: What was run.
        expected: The reference's values by checkpoint.
        observed: The other program's free values by point.
        point: Where it first differs.
        agreed: The points before that, which agree.
        alignment: Which parameter is which.
        others: The other program's tensors by name.
        shown: Every point that the program shows, in order.
        wrong_blocks: The blocks that show an error of their own.
    """

    model: Ingredients
    ids: Tensor
    expected: Mapping[str, Tensor]
    observed: Mapping[str, Tensor]
    point: str
    agreed: tuple[str, ...]
    alignment: Alignment
    others: Mapping[str, Tensor]
    shown: tuple[str, ...] = ()
    wrong_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cause:
    """A confirmed mistake.

    Attributes:
        words: What it is.
        extent: Where it was confirmed, in words.
        harmless: It is rounding, and it explains everything.
        complete: It explains the logits too.
    """

    words: str
    extent: str
    harmless: bool = False
    complete: bool = False


def confirmed_cause(evidence: Evidence) -> Cause | None:
    """The first known mistake that reproduces what was observed, and if there is one, all of it; else None."""
    span = _span(evidence)
    everything = Span(evidence.ids)
    partial: Cause | None = None
    trials = Trials(evidence)
    known = [*_specific(evidence), *known_mistakes(evidence.model, several_rows=evidence.ids.size(0) > 1)]
    alone = (variant for mistake in known for variant in _alone(mistake, span, evidence.model.config.n_layer))
    for mistake in itertools.chain(known, alone):
        where = everything if mistake.recipe.order is not None else span
        if trials.may_reproduce(mistake, where) and _reproduces(mistake.recipe, where, evidence, evidence.point):
            cause = _extent(mistake, evidence)
            if cause.complete:
                return cause
            if partial is None and _agree(_made(mistake.recipe, evidence, where), evidence, _until(evidence)):
                partial = cause
    return partial


COARSE = 1e-4
"""Relative error that float32 may make of a formula, at most, before a float64 run of it is worth its time."""

SLIGHT = 1e-3
"""Relative error that a constant's last digit in float32 never comes to."""


class Trials:
    """Refuses mistakes that cannot be it, at a fraction of the cost of trying them."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.coarse = evidence.model.coarsely()
        self.observed = evidence.observed[evidence.point]
        self.expected = evidence.expected[ckpt_of(evidence.point, evidence.model.config.n_layer)]
        self.without = relative_error(self.observed, self.expected)

    def may_reproduce(self, mistake: Mistake, span: Span) -> bool:
        """Whether a mistake, computed in float32, is near enough to what was observed to be computed in float64."""
        if mistake.slight and self.without > SLIGHT:
            return False
        made = _made(mistake.recipe, self.evidence, span, self.coarse).get(self.evidence.point)
        if made is None:
            return False
        error = relative_error(self.observed, made.double())
        return not error > 0.3 * self.without + COARSE or not bool(made.isfinite().all())


def _alone(mistake: Mistake, span: Span, n_layer: int) -> Iterator[Mistake]:
    """The mistake in each block alone, where a span of few blocks does not tell them apart."""
    blocks = range(max(span.first, 0), min(span.last + 1, n_layer))
    if mistake.recipe.order is None and 1 < len(blocks) <= TRIED_ALONE:
        for i in blocks:
            yield replace(
                mistake, words=f"{mistake.words}, in block {i} only", recipe=replace(mistake.recipe, blocks=(i,))
            )


def _span(evidence: Evidence) -> Span:
    """From the last residual stream that is known to agree, to the end of the block where they differ."""
    n_layer = evidence.model.config.n_layer
    known = {ckpt_of(point, n_layer) for point in evidence.agreed}
    where = ckpt_of(evidence.point, n_layer)
    last = int(where.split(".")[1]) if where.startswith("blocks.") else (0 if "embed" in where else n_layer)
    if last == n_layer and f"blocks.{n_layer - 1}.resid_post" in known:
        return Span(evidence.ids, n_layer, n_layer, evidence.expected[f"blocks.{n_layer - 1}.resid_post"])
    for block in range(min(last, n_layer - 1), -1, -1):
        entering = f"blocks.{block}.resid_pre"
        if entering in known or f"blocks.{block - 1}.resid_post" in known:
            return Span(evidence.ids, block, last, evidence.expected[entering])
    return Span(evidence.ids, -1, last)


def _reproduces(recipe: Recipe, span: Span, evidence: Evidence, point: str) -> bool:
    made = _made(recipe, evidence, span).get(point)
    if made is None:
        return False
    observed = evidence.observed[point]
    error = relative_error(observed, made)
    without = relative_error(observed, evidence.expected[ckpt_of(point, evidence.model.config.n_layer)])
    return error < BEYOND_ROUNDING and error < 0.01 * without


def _made(recipe: Recipe, evidence: Evidence, span: Span, model: Ingredients | None = None) -> Mapping[str, Tensor]:
    """What a GPT-2 with a mistake computes; nothing where the mistake is impossible with these shapes."""
    model = evidence.model if model is None else model
    begins = recipe.first_change(right_recipe(evidence.model), model.config.n_layer)
    if evidence.point == LOGITS and begins > span.first and span.residual is None:  # before that, nothing is changed
        last = model.config.n_layer
        before = f"blocks.{begins}.resid_pre" if begins < last else f"blocks.{last - 1}.resid_post"
        span = replace(span, first=begins, residual=evidence.expected[before])
    try:
        return run_recipe(recipe, model, span)
    except (RuntimeError, IndexError):
        return {}


def _agree(made: Mapping[str, Tensor], evidence: Evidence, points: Sequence[str]) -> bool:
    """Whether what a GPT-2 with a mistake computes is what the program shows, at each of these points."""
    return all(relative_error(evidence.observed[p], made[p]) < BEYOND_ROUNDING for p in points if p in made)


def _until(evidence: Evidence) -> tuple[str, ...]:
    """The points up to the first that differs, without those that may stand before the mistake."""
    return tuple(p for p in evidence.shown if p not in evidence.agreed and ckpt_of(p, evidence.model.config.n_layer)
                 == ckpt_of(evidence.point, evidence.model.config.n_layer))  # fmt: skip


def _explains(recipe: Recipe, evidence: Evidence) -> bool:
    """Whether a mistake accounts for everything: the logits and every point that the program shows."""
    made = _made(recipe, evidence, Span(evidence.ids))
    before = {_kind(p) for p in evidence.agreed if not _agree(made, evidence, (p,))}  # shown before the mistake is made
    return LOGITS in made and _agree(made, evidence, (*(p for p in evidence.shown if _kind(p) not in before), LOGITS))


def _kind(point: str) -> str:
    return point.split(".", 2)[-1] if point.startswith("blocks.") else point


def _extent(mistake: Mistake, evidence: Evidence) -> Cause:
    """How far a mistake that reproduces the first difference explains all that is shown, logits included."""
    if _explains(mistake.recipe, evidence):
        return Cause(mistake.words, ALL_AGREES, mistake.harmless, complete=True)
    blocks = evidence.wrong_blocks
    if blocks and mistake.recipe.blocks is None and _explains(replace(mistake.recipe, blocks=blocks), evidence):
        named = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(map(str, blocks))}"
        return Cause(f"{mistake.words}, in {named} only", ALL_AGREES, mistake.harmless, complete=True)
    return Cause(mistake.words, "with this in the reference, this point agrees; more differs later")


def _specific(evidence: Evidence) -> Iterator[Mistake]:
    """Mistakes that the alignment suggests."""
    right = right_recipe(evidence.model)
    vocabulary, width = evidence.model.units["embed.W_E"].shape
    tied = evidence.model.tied
    for name, tensor in evidence.others.items():
        if name in evidence.alignment.unexplained and tensor.dim() == 2 and tensor.numel() == vocabulary * width:
            for head in (tensor.detach(), tensor.detach().T):
                if head.shape == (vocabulary, width):
                    words = f"head not tied: {name} is another matrix than the embedding"
                    yield Mistake(words if tied else f"the head is {name}", replace(right, head=head))
        if name in evidence.alignment.unexplained and tensor.numel() == vocabulary:
            bias = tensor.detach().double().flatten()
            yield Mistake(f"a bias on the head: {name}", replace(right, logits=lambda x, W, b=bias: x @ W.T + b))
    yield from _windows(evidence, right)
    yield from _exchanged_heads(evidence, right)
    orders = {i: _head_orders(evidence, i) for i in range(evidence.model.config.n_layer)}
    if any(len(set(order.values())) > 1 for order in orders.values()):
        words = "the heads of " + " and ".join(sorted(_odd_ones(orders))) + " stand in another order than the others"
        yield Mistake(words, replace(right, attend=lambda h, f: _paired_by_place(h, f, orders[f.block])))


def _windows(evidence: Evidence, right: Recipe) -> Iterator[Mistake]:
    """Attention to some keys only, as the first position that differs suggests it."""
    given = evidence.observed[evidence.point]
    expected = evidence.expected[ckpt_of(evidence.point, evidence.model.config.n_layer)]
    if given.shape != expected.shape:
        return
    gap = (given - expected).abs() > BEYOND_ROUNDING * size_of(expected)
    first = next(iter(gap.transpose(0, 1).flatten(1).any(-1).nonzero().flatten().tolist()), 0)
    length = expected.size(1)
    query, key = torch.arange(length)[:, None], torch.arange(length)
    seen = {
        f"attention to the last {first} tokens only": query - key < first,
        f"attention within blocks of {first} tokens only": query // max(first, 1) == key // max(first, 1),
        "attention to all but the first token": (key > 0) | (query == 0),
        f"attention to token {first} and later ones only, from there on": (key >= first) | (query < first),
    }
    for words, mask in seen.items() if first > 0 else ():
        causal = (mask & (key <= query)).to(expected.device)
        yield Mistake(words, replace(right, attend=lambda h, f, m=causal: attend_with(h, f.scale, m)))


def _exchanged_heads(evidence: Evidence, right: Recipe) -> Iterator[Mistake]:
    """Heads of q, k or v that attend as others, where the program shows z: every pair of heads is tried."""
    where = ckpt_of(evidence.point, evidence.model.config.n_layer)
    z = evidence.observed[evidence.point]
    if not where.endswith("attn.ckpt_z") or z.shape != evidence.expected[where].shape:
        return
    attn, block, n_head = where.removesuffix("ckpt_z"), int(where.split(".")[1]), z.size(2)
    scale, size = evidence.model.config.attention_scale(block), size_of(evidence.expected[where])
    for number, letter in enumerate("qkv"):
        order: dict[int, int] = {}
        for shift in range(n_head):
            heads = [evidence.expected[f"{attn}ckpt_{c}"] for c in "qkv"]
            heads[number] = heads[number].roll(-shift, 2)
            gap = (attend_with((heads[0], heads[1], heads[2]), scale, 0) - z).abs().amax((0, 1, 3)) / size
            order |= {h: (h + shift) % n_head for h in range(n_head) if gap[h] < BEYOND_ROUNDING and h not in order}
        taken = tuple(order.get(h, -1) for h in range(n_head))
        if sorted(taken) == list(range(n_head)) and taken != tuple(range(n_head)):
            words = f"{in_another_order(taken, 'head')} in {letter}"
            yield Mistake(words, replace(right, attend=lambda h, f, n=number, o=taken: _taken(h, f, n, o)))


def _taken(heads: Heads, facts: Facts, number: int, order: tuple[int, ...]) -> Tensor:
    """Attention in which one of q, k and v has its heads in another order."""
    q, k, v = (part[:, :, list(order)] if n == number else part for n, part in enumerate(heads))
    return attend_with((q, k, v), facts.scale, 0)


def _head_orders(evidence: Evidence, block: int) -> dict[str, tuple[int, ...]]:
    """In which order the program keeps the heads of q, k, v and the output projection."""
    order = {letter: tuple(range(evidence.model.config.n_head)) for letter in "QKVO"}
    for match in evidence.alignment.matches:
        for unit in match.group.units:
            path, _, letter = unit.rpartition("_")
            if path == f"blocks.{block}.attn.W" and match.transform.heads and HEAD in match.group.axes:
                order[letter] = match.transform.heads
    return order


def _odd_ones(orders: Mapping[int, Mapping[str, tuple[int, ...]]]) -> set[str]:
    names = {"Q": "q", "K": "k", "V": "v", "O": "the output projection"}
    odd: set[str] = set()
    for order in orders.values():
        counts = [list(order.values()).count(given) for given in order.values()]
        odd |= {names[letter] for letter, count in zip(order, counts, strict=True) if count < max(counts)}
    return odd or {"q and k", "v and the output projection"}


def _paired_by_place(heads: Heads, facts: Facts, order: Mapping[str, tuple[int, ...]]) -> Tensor:
    """z when each place pairs the heads that stand there, whichever they are."""
    q, k, v = (part[:, :, list(order[letter])] for letter, part in zip("QKV", heads, strict=True))
    z = torch.empty_like(v)
    z[:, :, list(order["O"])] = attend_with((q, k, v), facts.scale, 0)
    return z


def head_of_its_own(evidence: Evidence, changed: Sequence[Match]) -> Cause | None:
    """Whether the only parameter that differs is a head that should be the embedding, and explains the logits."""
    kept = {match.group.units for match in evidence.alignment.matches if match.comparison.bit_equal}
    if len(changed) != 1 or changed[0].group.units != ("embed.W_E",) or ("embed.W_E",) not in kept:
        return None
    head = changed[0].transform.undo(
        evidence.others[changed[0].name].detach(), changed[0].group, changed[0].comparison.shape
    )
    recipe = replace(right_recipe(evidence.model), head=head)
    if not _reproduces(recipe, Span(evidence.ids), evidence, LOGITS):
        return None
    words = f"head not tied: {changed[0].name} is another tensor than the embedding"
    return Cause(words, "with this in the reference, the logits agree")
