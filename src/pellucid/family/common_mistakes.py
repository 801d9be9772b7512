"""Mistakes that programs of several families make, each a change of a network's own modules; families list theirs.

A comparison makes a change in a copy of the reference and names the mistake if the copy then computes what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.family.network import Network, Unembedding
from pellucid.numerics import nonlinear
from pellucid.numerics.constants import gelus


@dataclass(frozen=True)
class Change:
    """A mistake, as a change of a network that makes it."""

    report: str  # what a report says of it
    block: Callable[[Any], None] | None = None  # changes a block; None if blocks stay as they are
    # changes what is around the blocks, or their order; None if that stays as it is
    network: Callable[[Any], None] | None = None
    begins: str = "end"  # where it shows first if no block is changed: "embeddings", "blocks" or "end"
    of_logits: bool = False  # whether it needs the logits of all tokens at once
    harmless: bool = False  # whether it is rounding all the same
    slight: bool = False  # whether it is rounding, so it explains no large error


def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
    """Give a module, in the place of a method, a function that is called with the method before its arguments."""
    right = getattr(module, name)
    setattr(module, name, lambda *given, **named: function(right, *given, **named))


# Norms

Formula = Callable[[Any, Tensor], Tensor]
"""From a norm, with its parameters, and x [B, P, D]."""

EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-3, 1e-4, 1e-7, 0.0, 1e-2, 1e-1)


def norms(formulas: Iterable[tuple[str, Formula]], epsilon: float) -> Iterator[Change]:
    """Norms by another formula (what a report says, the norm's stand-in) or epsilon, everywhere or in some places."""

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


# The MLP


SAME = 1e-14
"""Relative difference up to which two formulas are one function: another name is no mistake."""


def other_functions(right: str) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Every other activation function, after what a report says of it."""
    grid = torch.linspace(-8, 8, 257, dtype=torch.float64)
    own = nonlinear.EXACT[right](grid)
    functions = [(f"activation function {name} instead of {right}", f) for name, f in nonlinear.EXACT.items()]
    for words, function in (*functions, ("no activation function", lambda x: x)):
        if float((function(grid) - own).abs().max()) > SAME * float(own.abs().max()):
            yield words, function


def activations(right: str) -> Iterator[Change]:
    """Another activation function, or its constants in other digits."""
    yield from (Change(w, _acting(function), harmless=exact, slight=exact) for w, function, exact in gelus(right))
    yield from (Change(words, _acting(function)) for words, function in other_functions(right))


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


def at_the_head(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """A network whose logits are changed."""
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
    yield Change("logits divided by sqrt(d_model)", network=at_the_head(lambda logits: logits / width))
    yield Change("logits multiplied by sqrt(d_model)", network=at_the_head(lambda logits: logits * width))
    for words, function in (("log-probabilities", torch.log_softmax), ("probabilities", torch.softmax)):
        made = at_the_head(lambda logits, f=function: f(logits, -1))
        yield Change(f"{words} instead of logits", network=made, of_logits=True)
