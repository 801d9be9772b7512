"""Mistakes that programs of several families make, each a change of a network's own modules; families list theirs.

A comparison makes a change in a copy of the reference and names the mistake if the copy then computes what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.network import Network, Unembedding
from pellucid.numerics import nonlinear
from pellucid.rotary import RULES, Rotary, Rule, Turn


@dataclass(frozen=True)
class Change:
    """A mistake, as a change of a network that makes it.

    Attributes:
        report: What a report says of it.
        block: Changes a block; None if blocks stay as they are.
        network: Changes what is around the blocks, or their order; None if that stays as it is.
        begins: Where it shows first if no block is changed: "embeddings", "blocks" or "end".
        of_logits: Whether it needs the logits of all tokens at once.
    """

    report: str
    block: Callable[[Any], None] | None = None
    network: Callable[[Any], None] | None = None
    begins: str = "end"
    of_logits: bool = False


def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Give a module, in the place of a method, a function that is called with the method before its arguments."""
    right = getattr(module, name)
    setattr(module, name, lambda *given, **named: function(right, *given, **named))


# Norms

Formula = Callable[[Any, Tensor], Tensor]
"""From a norm, with its parameters, and x [B, P, D]."""

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-4, 1e-7, 0.0, 1e-2, 1e-1)


def norms(formulas: Iterable[tuple[str, Formula]], epsilon: float) -> Iterator[Change]:
    """Norms by another formula or epsilon, everywhere or in some places.

    Args:
        formulas: What a report says, and what takes the place of a norm with its parameters.
        epsilon: The right one.
    """

    def change(name: str, formula: Formula) -> Callable[[Any], None]:
        def changes(holder: Any) -> None:
            norm = getattr(holder, name)
            norm.forward = lambda x, tap=None: norm.ckpt_normalized(formula(norm, x), tap=tap)

        return changes

    others = (e for e in EPSILONS if e != epsilon)
    named = [(f"epsilon {e:g} instead of {epsilon:g} in the norms", _with_epsilon(e)) for e in others]
    for words, formula in (*named, *formulas):
        first, second, last = (change(name, formula) for name in ("ln1", "ln2", "ln_final"))
        yield Change(words, _both(first, second), last)
        yield Change(f"{words} (ln1 only)", first)
        yield Change(f"{words} (ln2 only)", second)
        yield Change(f"{words} (ln_final only)", network=last)


def _with_epsilon(epsilon: float) -> Formula:
    def formula(norm: Any, x: Tensor) -> Tensor:
        norm.eps = epsilon
        return type(norm).forward(norm, x)

    return formula


def _both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def changed(holder: Any) -> None:
        for change in changes:
            change(holder)

    return changed


def no_norm(norm: Any, x: Tensor) -> Tensor:
    """x as it is."""
    return x


# Attention


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


Grid = Callable[[Tensor, Tensor], Tensor]
"""Queries [P, 1] and keys [P] -> which keys each query sees [P, P]."""


def _explicit(sees: Grid, fill: float = -torch.inf, axis: int = -1) -> Callable[[Any], None]:
    """Attention in which each query sees these keys."""

    def change(attn: Any) -> None:
        def mixed(right: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            k, v = (part.repeat_interleave(attn.shared, 1) for part in (k, v))
            places = torch.arange(q.size(2), device=q.device)
            hidden = ~sees(places[:, None], places)
            pattern = (q @ k.mT * attn.scale).masked_fill(hidden, fill).softmax(axis)
            return pattern @ v, pattern

        replaced(attn, "mixed", mixed)

    return attention(change)


MASKS = (
    Change("no causal mask", _explicit(lambda q, k: k >= q * 0)),
    Change("causal mask off by one: sees the next token", _explicit(lambda q, k: k <= q + 1)),
    Change("causal mask off by one: does not see itself, the first position excepted",
           _explicit(lambda q, k: (k < q) | (k + q == 0))),
    Change("causal mask off by one: does not see itself", _explicit(lambda q, k: k < q, -1e30)),
    Change("causal mask the wrong way round", _explicit(lambda q, k: k >= q)),
    *(Change(f"masked scores set to {c:g}", _explicit(lambda q, k: k <= q, c))
      for c in (0.0, -1.0, -10.0, -12.0, -100.0, -1e3)),
    Change("softmax over the queries", _explicit(lambda q, k: k <= q, -1e30, -2)),
    Change("softmax over the heads", _explicit(lambda q, k: k <= q, -1e30, 1)),
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
    Change("sines and cosines exchanged", _turning(_in_part(lambda x, c, s: _halves(x, s, c)))),
    Change("the rotation adds both products: a sign is missing",
           _turning(_in_part(lambda x, c, s: torch.cat([x.chunk(2, -1)[0] * c + x.chunk(2, -1)[1] * s,
                                                        x.chunk(2, -1)[1] * c + x.chunk(2, -1)[0] * s], -1)))),
)  # fmt: skip

BASES = (1e4, 5e5, 1e6, 1e5, 500.0, 1e3, 1e7, 2e6)


def rotations(rule: Rule, width: int) -> Iterator[Change]:
    """Rotations by another base, by no rope type, or of another part of each head.

    Args:
        rule: The right one.
        width: d_head.
    """
    base, kind = rule.parameters["rope_theta"], rule.parameters["rope_type"]
    plain = {"rope_type": "default", "rope_theta": base}
    others: list[tuple[str, Rule]] = []
    if kind != "default":
        others.append((f"rope type {kind} left out", rule._replace(parameters=plain)))
    for theta in BASES:
        if theta != base:
            parameters = {**rule.parameters, "rope_theta": theta}
            others.append((f"rotary base {theta:g} instead of {base:g}", rule._replace(parameters=parameters)))
    for turned in sorted({width, width // 2, width // 4} - {rule.turned, 0}):
        if turned % 2 == 0:
            words = f"{turned} entries of each head turn instead of {rule.turned}"
            others.append((words, rule._replace(width=turned)))
    for words, other in others:
        yield Change(words, _by_rule(other, rounded=False))
        yield Change(words, _by_rule(other, rounded=True))


def _by_rule(rule: Rule, *, rounded: bool) -> Callable[[Any], None]:
    """Turned by another rule, whose frequencies are computed in float32, or not."""
    rotary = Rotary(rule)

    def turned(values: Tensor, _: Turn) -> Tensor:
        own = rotary.inv_freq if rounded else RULES[rule.parameters["rope_type"]](rule)[0]
        angles = torch.arange(values.size(2), device=values.device)[:, None] * own.to(values)
        cos, sin = (part * rotary.attention_scaling for part in (angles.cos(), angles.sin()))
        width = 2 * cos.size(-1)
        return torch.cat([_halves(values[..., :width], cos, sin), values[..., width:]], -1)

    return _turning(turned)


# The MLP


def activations(right: str) -> Iterator[Change]:
    """Another activation function."""
    own = nonlinear.EXACT[right](_GRID)
    functions = [(f"activation function {name} instead of {right}", f) for name, f in nonlinear.EXACT.items()]
    for words, function in (*functions, ("no activation function", lambda x: x)):
        if float((function(_GRID) - own).abs().max()) > SAME * float(own.abs().max()):
            yield Change(words, _acting(function))


_GRID = torch.linspace(-8, 8, 257, dtype=torch.float64)

SAME = 1e-14
"""Relative difference up to which two formulas are one function: another name is no mistake."""


def _acting(function: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    def change(block: Any) -> None:
        block.mlp.act = function

    return change


# Blocks, and what is around them


@dataclass(frozen=True)
class Halves:
    """The parts of one block, for a wiring of its own."""

    block: Any
    attention: Callable[[Tensor], Tensor]
    mlp: Callable[[Tensor], Tensor]
    ln1: Callable[[Tensor], Tensor]
    ln2: Callable[[Tensor], Tensor]
    mid: Callable[[Tensor], Tensor]


def wired(wiring: Callable[[Halves, Tensor], Tensor]) -> Callable[[Any], None]:
    """A block that puts its parts together in this way."""

    def change(block: Any) -> None:
        def forward(x: Tensor, visible: Any = None, tap: Any = None, remember: Any = None, turn: Any = None) -> Tensor:
            kept = dict(block.named_children()).get("resid_mid")
            halves = Halves(
                block,
                lambda read: block.attn(read, visible, tap=tap, remember=remember, turn=turn)[0],
                lambda read: block.mlp(read, tap=tap),
                lambda read: block.ln1(read, tap=tap),
                lambda read: block.ln2(read, tap=tap),
                lambda value: value if kept is None else kept(value, tap=tap),
            )
            return block.resid_post(wiring(halves, block.resid_pre(x, tap=tap)), tap=tap)

        block.forward = forward

    return change


def _sequential(
    attention: Callable[[Halves, Tensor], Tensor], mlp: Callable[[Halves, Tensor, Tensor], Tensor]
) -> Callable[[Any], None]:
    """A block in which the stream after attention, and what leaves, are given by these."""

    def wiring(b: Halves, x: Tensor) -> Tensor:
        mid = b.mid(attention(b, x))
        return mlp(b, x, mid)

    return wired(wiring)


def _attended(b: Halves, x: Tensor) -> Tensor:
    return x + b.attention(b.ln1(x))


def _fed(b: Halves, x: Tensor, mid: Tensor) -> Tensor:
    return mid + b.mlp(b.ln2(mid))


def _parallel(b: Halves, x: Tensor) -> Tensor:
    return b.mlp(b.ln2(x)) + b.attention(b.ln1(x)) + x


def _post_norm(b: Halves, x: Tensor) -> Tensor:
    mid = b.ln1(x + b.attention(x))
    return b.ln2(mid + b.mlp(mid))


SEQUENTIAL = (
    Change("the MLP reads the block's input, in parallel with attention", wired(_parallel)),
    Change("ln1 and ln2 are swapped", _sequential(lambda b, x: x + b.attention(b.ln2(x)),
                                                  lambda b, x, mid: mid + b.mlp(b.ln1(mid)))),
    Change("ln1 is used in the place of ln2", _sequential(_attended, lambda b, x, mid: mid + b.mlp(b.ln1(mid)))),
    Change("ln2 is used in the place of ln1", _sequential(lambda b, x: x + b.attention(b.ln2(x)), _fed)),
    Change("attention reads the stream without a norm", _sequential(lambda b, x: x + b.attention(x), _fed)),
    Change("the MLP reads the stream without a norm", _sequential(_attended, lambda b, x, mid: mid + b.mlp(mid))),
    Change("the residual connection around attention is missing",
           _sequential(lambda b, x: b.attention(b.ln1(x)), _fed)),
    Change("the residual connection around the MLP is missing",
           _sequential(_attended, lambda b, x, mid: b.mlp(b.ln2(mid)))),
    Change("the MLP's output is added to the block's input",
           _sequential(_attended, lambda b, x, mid: x + b.mlp(b.ln2(mid)))),
    Change("the MLP comes before attention",
           wired(lambda b, x: (y := x + b.mlp(b.ln2(x))) + b.attention(b.ln1(y)))),
    Change("norms after the residual connections (post-norm)", wired(_post_norm)),
)  # fmt: skip
"""Blocks whose MLP should read what attention added, put together otherwise."""

PARALLEL = (
    Change("the MLP reads what attention added, in sequence", _sequential(_attended, _fed)),
    Change("ln1 is used in the place of ln2", wired(lambda b, x: x + b.attention(b.ln1(x)) + b.mlp(b.ln1(x)))),
    Change("ln2 is used in the place of ln1", wired(lambda b, x: x + b.attention(b.ln2(x)) + b.mlp(b.ln2(x)))),
    Change("ln1 and ln2 are swapped", wired(lambda b, x: x + b.attention(b.ln2(x)) + b.mlp(b.ln1(x)))),
    Change("the residual connection is missing", wired(lambda b, x: b.attention(b.ln1(x)) + b.mlp(b.ln2(x)))),
    Change("the residual stream is added twice", wired(lambda b, x: 2 * x + b.attention(b.ln1(x)) + b.mlp(b.ln2(x)))),
)  # fmt: skip
"""Blocks whose MLP should read what attention reads, put together otherwise."""


def orders(n_layer: int) -> Iterator[Change]:
    """Blocks in another order, left out or applied twice."""
    blocks = tuple(range(n_layer))

    def applied(order: tuple[int, ...], report: str) -> Change:
        def change(network: Any) -> None:
            network.blocks = nn.ModuleList([network.blocks[i] for i in order])

        return Change(report, network=change, begins="blocks")

    if n_layer > 1:
        yield applied(blocks[::-1], "blocks applied from the last to the first")
    for i in blocks:
        yield applied(blocks[:i] + blocks[i + 1 :], f"block {i} is left out")
        yield applied((*blocks[:i], i, *blocks[i:]), f"block {i} is applied twice")


def _heads(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    return lambda network: replaced(network.unembed, "forward", lambda right, x: change(right(x)))


def _tied(network: Any) -> None:
    network.unembed = Unembedding(network.embed, None, network.products)


def around(network: Network) -> Iterator[Change]:
    """Other embeddings and another head."""
    width = network.config.sizes["d_model"] ** 0.5
    if not network.unembed.tied:
        yield Change("head tied to the embedding", network=_tied)
    yield Change("token embeddings multiplied by sqrt(d_model)", begins="embeddings",
                 network=lambda net: replaced(net.embed, "forward", lambda right, ids: right(ids) * width))  # fmt: skip
    yield Change("logits divided by sqrt(d_model)", network=_heads(lambda logits: logits / width))
    yield Change("logits multiplied by sqrt(d_model)", network=_heads(lambda logits: logits * width))
    for cap in (30.0, 50.0):
        capped = _heads(lambda logits, cap=cap: cap * (logits / cap).tanh())
        yield Change(f"logits capped softly at {cap:g}", network=capped)
    for words, function in (("log-probabilities", torch.log_softmax), ("probabilities", torch.softmax)):
        made = _heads(lambda logits, f=function: f(logits, -1))
        yield Change(f"{words} instead of logits", network=made, of_logits=True)
