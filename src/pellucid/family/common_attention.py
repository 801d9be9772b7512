"""Mistakes in attention and its rotary positions that programs of several families make: see `common_mistakes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pellucid.family.common_mistakes import Change, at_the_head, replaced
from pellucid.family.rotary import KeptRotation, Turn
from pellucid.family.rotary_rules import RULES, Rule
from pellucid.family.suspicions import FILLS, Grid, Suspicion


def attention(change: Callable[[Any], None]) -> Callable[[Any], None]:
    """A change of a block's attention."""
    return lambda block: change(block.attn)


def _scale(factor: Callable[[Any], float]) -> Callable[[Any], None]:
    def change(attn: Any) -> None:
        attn.scale = factor(attn)

    return attention(change)


def scales(width: int) -> Iterator[Change]:
    """Scores multiplied by something else than 1/sqrt(d_head); `width` is d_model."""
    yield Change("no scaling of the scores", _scale(lambda attn: 1.0))
    yield Change("scores scaled by 1/sqrt(d_model) instead of 1/sqrt(d_head)", _scale(lambda attn: width**-0.5))
    yield Change("scores scaled by 1/d_head instead of 1/sqrt(d_head)", _scale(lambda attn: 1 / attn.d_head))
    yield Change("scores multiplied by sqrt(d_head) instead of divided", _scale(lambda attn: attn.d_head**0.5))


def _explicit(sees: Grid, fill: float = -torch.inf, axis: int = -1) -> Callable[[Any], None]:
    """Attention in which each query sees these keys."""
    return attention(lambda attn: _replace_mixed(attn, sees, fill, axis))


def _replace_mixed(
    attn: Any, sees: Grid, fill: float, axis: int = -1, scores: Tensor | float = 1.0, heads: Tensor | float = 1.0
) -> None:
    """Scores times a factor, hidden ones set to `fill`, softmax over an axis, and z times a factor."""

    def of(factor: Tensor | float, like: Tensor) -> Tensor | float:
        return factor.to(like) if isinstance(factor, Tensor) else factor

    def mixed(right: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        k, v = (part.repeat_interleave(attn.shared, 1) for part in (k, v))
        places = torch.arange(q.size(2), device=q.device)
        products = q @ k.mT * (attn.scale * of(scores, q))
        pattern = products.masked_fill(~sees(places[:, None], places), fill).softmax(axis)
        return pattern @ v * of(heads, q), pattern

    replaced(attn, "mixed", mixed)


def causal(q: Tensor, k: Tensor) -> Tensor:
    """Keys up to a query's own."""
    return k <= q


def change_of(suspicion: Suspicion) -> Change:
    """A mistake that what was seen suggests, in a network."""
    if suspicion.logits is not None:
        return Change(suspicion.report, network=at_the_head(suspicion.logits), harmless=suspicion.harmless)
    fill = -torch.inf if suspicion.fill is None else suspicion.fill
    scores = 1.0 if suspicion.scores is None else suspicion.scores
    heads = 1.0 if suspicion.heads is None else suspicion.heads[:, None]
    sees = causal if suspicion.sees is None else suspicion.sees
    return Change(suspicion.report, attention(lambda attn: _replace_mixed(attn, sees, fill, -1, scores, heads)))


def _masked_late(attn: Any) -> None:
    """The pattern is masked, in place of the scores, so that no row of it comes to 1."""

    def mixed(right: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        k, v = (part.repeat_interleave(attn.shared, 1) for part in (k, v))
        pattern = (q @ k.mT * attn.scale).softmax(-1).tril()
        return pattern @ v, pattern

    replaced(attn, "mixed", mixed)


MASKS = (
    Change("no causal mask", _explicit(lambda q, k: k >= q * 0)),
    Change("causal mask off by one: sees the next token", _explicit(lambda q, k: k <= q + 1)),
    Change("causal mask off by one: does not see itself, the first position excepted",
           _explicit(lambda q, k: (k < q) | (k + q == 0))),
    Change("causal mask off by one: does not see itself", _explicit(lambda q, k: k < q, -1e30)),
    Change("causal mask the wrong way round", _explicit(lambda q, k: k >= q)),
    *(Change(f"masked scores set to {c:g}", _explicit(causal, c)) for c in FILLS),
    Change("mask after the softmax", attention(_masked_late)),
    Change("softmax over the queries", _explicit(causal, -1e30, -2)),
    Change("softmax over the heads", _explicit(causal, -1e30, 1)),
)  # fmt: skip


def _shared(keys: bool, values: bool) -> Callable[[Any], None]:
    """Heads of keys and values repeated as a whole, so that query head h is given head h modulo their number."""

    def change(attn: Any) -> None:
        times, attn.shared = attn.shared, 1

        def spread(part: Tensor, whole: bool) -> Tensor:
            return part.repeat(1, times, 1, 1) if whole else part.repeat_interleave(times, 1)

        replaced(attn, "mixed", lambda right, q, k, v, *given, **named: right(
            q, spread(k, keys), spread(v, values), *given, **named))  # fmt: skip

    return attention(change)


GROUPS = (
    Change("shared heads repeated as a whole: query head h is given head h modulo their number, not h // group",
           _shared(True, True)),
    Change("shared heads of keys repeated as a whole, those of values one by one", _shared(True, False)),
    Change("shared heads of values repeated as a whole, those of keys one by one", _shared(False, True)),
)  # fmt: skip


def biases(letters: str) -> Change:
    """No bias on some of q, k and v."""

    def change(attn: Any) -> None:
        def projected(right: Any, x: Tensor) -> tuple[Tensor, ...]:
            parts = zip("qkv", right(x), strict=True)
            return tuple(part - getattr(attn, f"b_{c.upper()}") if c in letters else part for c, part in parts)

        replaced(attn, "projected", projected)

    return Change(f"no bias on {', '.join(letters)}", attention(change))


def _no_output_bias(attn: Any) -> None:
    replaced(attn, "joined", lambda right, z: right(z) - attn.b_O)


NO_OUTPUT_BIAS = Change("no bias on the output projection", attention(_no_output_bias))


def _taken(order: tuple[int, int, int]) -> Callable[[Any], None]:
    def projected(right: Any, x: Tensor) -> tuple[Tensor, ...]:
        parts = right(x)
        return tuple(parts[i] for i in order)

    return attention(lambda attn: replaced(attn, "projected", projected))


TAKEN = tuple(
    Change(f"q, k, v taken in another order: {', '.join('qkv'[i] for i in order)}", _taken(order))
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1))
)


# Rotary positions


def _turning(turned: Callable[[Tensor, Turn], Tensor], which: str = "qk") -> Callable[[Any], None]:
    """Queries, keys or both [B, P, H, K] turned in another way; the other one is turned as it should be."""

    def change(attn: Any) -> None:
        def placed(right: Any, q: Tensor, k: Tensor, turn: Turn | None, tap: Any) -> tuple[Tensor, Tensor, bool]:
            known: Turn = attn._turn_of(q) if turn is None else turn
            rot_q, rot_k, on_the_way = right(q, k, known, tap)
            own_q, own_k = (turned(part.transpose(1, 2), known).transpose(1, 2) for part in (q, k))
            return (own_q if "q" in which else rot_q), (own_k if "k" in which else rot_k), on_the_way

        replaced(attn, "placed", placed)

    return attention(change)


def _in_part(formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Turn], Tensor]:
    """A formula of the entries that turn, and the cosines and sines of each pair; the other entries stay."""

    def turned(values: Tensor, turn: Turn) -> Tensor:
        cos, sin = (part.unsqueeze(1) for part in turn)
        width = cos.size(-1)
        cos, sin = cos[..., : width // 2], sin[..., : width // 2]
        return torch.cat([formula(values[..., :width], cos, sin), values[..., width:]], -1)

    return turned


def _halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def _next(formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Turn], Tensor]:
    """Turned by one position more: by the angles of position 1, once more."""

    def turned(values: Tensor, turn: Turn) -> Tensor:
        cos, sin = turn
        if cos.size(1) < 2:
            raise IndexError("no position 1")
        one_cos, one_sin = cos[:, 1:2], sin[:, 1:2]
        return _in_part(formula)(values, (cos * one_cos - sin * one_sin, sin * one_cos + cos * one_sin))

    return turned


TURNS = (
    Change("pairs interleaved: entries 2i and 2i + 1 turn together, not i and i + K / 2",
           _turning(_in_part(_interleaved))),
    Change("queries and keys turned the other way round", _turning(_in_part(lambda x, c, s: _halves(x, c, -s)))),
    Change("no rotation of queries and keys", _turning(lambda values, turn: values)),
    Change("no rotation of queries", _turning(lambda values, turn: values, "q")),
    Change("no rotation of keys", _turning(lambda values, turn: values, "k")),
    Change("keys turned the other way round", _turning(_in_part(lambda x, c, s: _halves(x, c, -s)), "k")),
    Change("queries turned the other way round", _turning(_in_part(lambda x, c, s: _halves(x, c, -s)), "q")),
    Change("queries turned by the next position", _turning(_next(_halves), "q")),
    Change("keys turned by the next position", _turning(_next(_halves), "k")),
    Change("queries and keys turned twice as far: positions count by two, or they turn twice",
           _turning(_in_part(lambda x, c, s: _halves(x, c * c - s * s, 2 * c * s)))),
    Change("sines and cosines exchanged", _turning(_in_part(lambda x, c, s: _halves(x, s, c)))),
    Change("the rotation adds both products: a sign is missing",
           _turning(_in_part(lambda x, c, s: torch.cat([x.chunk(2, -1)[0] * c + x.chunk(2, -1)[1] * s,
                                                        x.chunk(2, -1)[1] * c + x.chunk(2, -1)[0] * s], -1)))),
)  # fmt: skip

BASES = (1e4, 5e5, 1e6, 1e5, 500.0, 1e3, 1e7, 2e6)


def rotations(rule: Rule, width: int, kept: Sequence[KeptRotation] = ()) -> Iterator[Change]:
    """Rotations by another base, by no rope type, or of another part of each head of this width.

    Those that the other program keeps, and that are not the right one, come first.
    """
    base, kind = rule.parameters["rope_theta"], rule.parameters["rope_type"]
    left_out = f"rope type {kind} left out"

    def part(turned: int) -> str:
        return f"{turned} entries of each head turn instead of {rule.turned}"

    for other in kept:
        turned = 2 * len(other.rates)
        words = [f"rotary base {other.base:g} instead of {base:g}"] if other.base != float(f"{base:.4g}") else []
        words += [part(turned)] if turned != rule.turned else []
        yield Change(", and ".join(words) or left_out, _turning(_by(other.turn)))
    plain = {"rope_type": "default", "rope_theta": base}
    others = [(left_out, rule._replace(parameters=plain))] if kind != "default" else []
    for theta in BASES:
        if theta != base:
            parameters = {**rule.parameters, "rope_theta": theta}
            others.append((f"rotary base {theta:g} instead of {base:g}", rule._replace(parameters=parameters)))
    narrower = (rule._replace(width=turned) for turned in sorted({width, width // 2, width // 4, rule.turned // 2}))
    others += [(part(o.turned), o) for o in narrower if o.width and o.turned != rule.turned and o.turned <= width]
    for words, other in others:
        yield Change(words, _turning(_by(partial(_turn, other))))


def _turn(rule: Rule, length: int, like: Tensor) -> Turn:
    """Cosines and sines [1, P, K / 2] of a rule."""
    rates, scaling = RULES[rule.parameters["rope_type"]](rule)
    angles = torch.arange(length, device=like.device)[:, None] * rates.to(like)
    return angles.cos()[None] * scaling, angles.sin()[None] * scaling


def _by(turn_of: Callable[[int, Tensor], Turn]) -> Callable[[Tensor, Turn], Tensor]:
    """Turned by other cosines and sines than a network has."""

    def turned(values: Tensor, _: Turn) -> Tensor:
        cos, sin = (part.unsqueeze(1) for part in turn_of(values.size(2), values))
        width = 2 * cos.size(-1)
        return torch.cat([_halves(values[..., :width], cos, sin), values[..., width:]], -1)

    return turned
