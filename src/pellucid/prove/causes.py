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

from pellucid.gpt2.formulas import Heads, PlainWeights, causal, softmax
from pellucid.gpt2.mistake import Mistake
from pellucid.gpt2.mistakes import known_mistakes
from pellucid.gpt2.parts import RIGHT, Parts, Span, run_parts
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.changes import in_another_order
from pellucid.prove.differences import BEYOND_ROUNDING, relative_error, size_of
from pellucid.prove.points import LOGITS, ckpt_of, with_checkpoints
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

    model: PlainWeights
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
    alone = (variant for mistake in known for variant in _alone(mistake, span, evidence.model.sizes.layers))
    for mistake in itertools.chain(known, alone):
        where = everything if "order" in mistake.changes else span
        if trials.may_reproduce(mistake, where) and _reproduces(mistake.parts, where, evidence, evidence.point):
            cause = _extent(mistake, evidence)
            if cause.complete:
                return cause
            if partial is None and _agree(_made(mistake.parts, evidence, where), evidence, _until(evidence)):
                partial = cause
    return partial


COARSE = 1e-4
"""Relative error that float32 may make of a formula, at most, before a float64 run of it is worth its time."""

SLIGHT = 1e-3
"""Relative error that a constant's last digit in float32 never comes to."""


FEW = 2000
"""About how many tokens' logits are computed to refuse a mistake. An error in a part of them is one in all, and for a
vocabulary of 50,257 the head is a third of GPT-2's work."""


class Trials:
    """Refuses mistakes that cannot be it, at a fraction of the cost of trying them."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.coarse = evidence.model.coarsely()
        self.observed = evidence.observed[evidence.point]
        self.expected = evidence.expected[ckpt_of(evidence.point, evidence.model.sizes.layers)]
        self.without = relative_error(self.observed, self.expected)
        self.size = size_of(self.observed)  # what reproduces the observed values is as large

    def may_reproduce(self, mistake: Mistake, span: Span) -> bool:
        """Whether a mistake, computed in float32, is near enough to what was observed to be computed in float64."""
        if mistake.slight and self.without > SLIGHT:
            return False
        few = (
            span.last >= self.coarse.sizes.layers and self.evidence.point == LOGITS and "logits" not in mistake.changes
        )
        step = max(1, self.observed.size(-1) // FEW) if few else 1
        made = _made(mistake.parts, self.evidence, replace(span, step=step), self.coarse).get(self.evidence.point)
        if made is None:
            return False
        made = made.double()
        error = relative_error(self.observed[..., ::step], made) * size_of(made) / self.size
        return not error > 0.3 * self.without + COARSE or not bool(made.isfinite().all())


def _alone(mistake: Mistake, span: Span, n_layer: int) -> Iterator[Mistake]:
    """The mistake in each block alone, where a span of few blocks does not tell them apart."""
    blocks = range(max(span.first, 0), min(span.last + 1, n_layer))
    if "order" not in mistake.changes and 1 < len(blocks) <= TRIED_ALONE:
        for i in blocks:
            words = f"{mistake.report}, in block {i} only"
            yield replace(mistake, report=words, changes={**mistake.changes, "blocks": (i,)})


def _span(evidence: Evidence) -> Span:
    """From the last residual stream that is known to agree, to the end of the block where they differ."""
    n_layer = evidence.model.sizes.layers
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


def _reproduces(parts: Parts, span: Span, evidence: Evidence, point: str) -> bool:
    made = _made(parts, evidence, span).get(point)
    if made is None:
        return False
    observed = evidence.observed[point]
    error = relative_error(observed, made)
    without = relative_error(observed, evidence.expected[ckpt_of(point, evidence.model.sizes.layers)])
    return error < BEYOND_ROUNDING and error < 0.01 * without


def _made(parts: Parts, evidence: Evidence, span: Span, model: PlainWeights | None = None) -> Mapping[str, Tensor]:
    """What a GPT-2 with a mistake computes; nothing where the mistake is impossible with these shapes."""
    model = evidence.model if model is None else model
    begins = parts.first_change(model.sizes.layers)
    if evidence.point == LOGITS and begins > span.first and span.residual is None:  # before that, nothing is changed
        last = model.sizes.layers
        before = f"blocks.{begins}.resid_pre" if begins < last else f"blocks.{last - 1}.resid_post"
        span = replace(span, first=begins, residual=evidence.expected[before])
    try:
        return with_checkpoints(run_parts(parts, model, span))
    except (RuntimeError, IndexError):
        return {}


def _agree(made: Mapping[str, Tensor], evidence: Evidence, points: Sequence[str]) -> bool:
    """Whether what a GPT-2 with a mistake computes is what the program shows, at each of these points."""
    return all(relative_error(evidence.observed[p], made[p]) < BEYOND_ROUNDING for p in points if p in made)


def _until(evidence: Evidence) -> tuple[str, ...]:
    """The points up to the first that differs, without those that may stand before the mistake."""
    return tuple(p for p in evidence.shown if p not in evidence.agreed and ckpt_of(p, evidence.model.sizes.layers)
                 == ckpt_of(evidence.point, evidence.model.sizes.layers))  # fmt: skip


def _explains(parts: Parts, evidence: Evidence) -> bool:
    """Whether a mistake accounts for everything: the logits and every point that the program shows."""
    made = _made(parts, evidence, Span(evidence.ids))
    before = {_kind(p) for p in evidence.agreed if not _agree(made, evidence, (p,))}  # shown before the mistake is made
    return LOGITS in made and _agree(made, evidence, (*(p for p in evidence.shown if _kind(p) not in before), LOGITS))


def _kind(point: str) -> str:
    return point.split(".", 2)[-1] if point.startswith("blocks.") else point


def _extent(mistake: Mistake, evidence: Evidence) -> Cause:
    """How far a mistake that reproduces the first difference explains all that is shown, logits included."""
    if _explains(mistake.parts, evidence):
        return Cause(mistake.report, ALL_AGREES, mistake.harmless, complete=True)
    blocks = evidence.wrong_blocks
    if blocks and "blocks" not in mistake.changes and _explains(replace(mistake.parts, blocks=blocks), evidence):
        named = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {', '.join(map(str, blocks))}"
        return Cause(f"{mistake.report}, in {named} only", ALL_AGREES, mistake.harmless, complete=True)
    return Cause(mistake.report, "with this in the reference, this point agrees; more differs later")


def _specific(evidence: Evidence) -> Iterator[Mistake]:
    """Mistakes that the alignment suggests."""
    vocabulary, width = evidence.model.tensors["embed.W_E"].shape
    tied = evidence.model.tied
    for name, tensor in evidence.others.items():
        if name in evidence.alignment.unexplained and tensor.dim() == 2 and tensor.numel() == vocabulary * width:
            for head in (tensor.detach(), tensor.detach().T):
                if head.shape == (vocabulary, width):
                    words = f"head not tied: {name} is another matrix than the embedding"
                    yield Mistake({"head": head}, words if tied else f"the head is {name}")
        if name in evidence.alignment.unexplained and tensor.numel() == vocabulary:
            bias = tensor.detach().double().flatten()
            yield Mistake({"logits": lambda x, W, b=bias: x @ W.T + b}, f"a bias on the head: {name}")
    yield from _windows(evidence)
    yield from _exchanged_heads(evidence)
    orders = {i: _head_orders(evidence, i) for i in range(evidence.model.sizes.layers)}
    if any(len(set(order.values())) > 1 for order in orders.values()):
        words = "the heads of " + " and ".join(sorted(_odd_ones(orders))) + " stand in another order than the others"
        yield Mistake(
            {"split": lambda h, w: _paired(h, orders[w.block]), "merge": lambda z, w: _placed(z, orders[w.block])},
            words,
        )


def _windows(evidence: Evidence) -> Iterator[Mistake]:
    """Attention to some keys only, as the first position that differs suggests it."""
    given = evidence.observed[evidence.point]
    expected = evidence.expected[ckpt_of(evidence.point, evidence.model.sizes.layers)]
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
        seen_keys = (mask & (key <= query)).to(expected.device)
        yield Mistake({"mask": lambda scores, m=seen_keys: m}, words)


def _exchanged_heads(evidence: Evidence) -> Iterator[Mistake]:
    """Heads of q, k or v that attend as others, where the program shows z: every pair of heads is tried."""
    where = ckpt_of(evidence.point, evidence.model.sizes.layers)
    z = evidence.observed[evidence.point]
    if not where.endswith("attn.ckpt_z") or z.shape != evidence.expected[where].shape:
        return
    attn, block, n_head = where.removesuffix("ckpt_z"), int(where.split(".")[1]), z.size(2)
    size, weights = size_of(evidence.expected[where]), evidence.model.of_block(block)
    for number, letter in enumerate("qkv"):
        order: dict[int, int] = {}
        for shift in range(n_head):
            heads = [evidence.expected[f"{attn}ckpt_{c}"] for c in "qkv"]
            heads[number] = heads[number].roll(-shift, 2)
            gap = (_attended(heads, weights) - z).abs().amax((0, 1, 3)) / size
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


def _head_orders(evidence: Evidence, block: int) -> dict[str, tuple[int, ...]]:
    """In which order the program keeps the heads of q, k, v and the output projection."""
    order = {letter: tuple(range(evidence.model.sizes.heads)) for letter in "QKVO"}
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


def _paired(heads: Heads, order: Mapping[str, tuple[int, ...]]) -> Heads:
    """Each place pairs the heads that stand there, whichever they are."""
    q, k, v = (part[:, :, list(order[letter])] for letter, part in zip("QKV", heads, strict=True))
    return q, k, v


def _placed(z: Tensor, order: Mapping[str, tuple[int, ...]]) -> Tensor:
    """z [B, P, H, K] merged, each place's at the head that the output projection keeps there."""
    placed = torch.empty_like(z)
    placed[:, :, list(order["O"])] = z
    return placed.flatten(2)


def head_of_its_own(evidence: Evidence, changed: Sequence[Match]) -> Cause | None:
    """Whether the only parameter that differs is a head that should be the embedding, and explains the logits."""
    kept = {match.group.units for match in evidence.alignment.matches if match.comparison.bit_equal}
    if len(changed) != 1 or changed[0].group.units != ("embed.W_E",) or ("embed.W_E",) not in kept:
        return None
    head = changed[0].transform.undo(
        evidence.others[changed[0].name].detach(), changed[0].group, changed[0].comparison.shape
    )
    if not _reproduces(replace(RIGHT, head=head), Span(evidence.ids), evidence, LOGITS):
        return None
    words = f"head not tied: {changed[0].name} is another tensor than the embedding"
    return Cause(words, "with this in the reference, the logits agree")
