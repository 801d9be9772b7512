"""Rules by which a backward pass goes through what is not linear, in the place of its derivative.

Relevance patching (RelP; Jafari et al. 2025, arXiv:2508.21258) holds constant what makes a run non-linear:
the divisors of norms, the ratio of an activation function's output to its input, and attention patterns; a product of
two values passes half to each. With them held, the run is linear in what is left. Values stay as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pellucid.attribution.reading import place_of
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer

HELD = ("ckpt_q", "ckpt_k", "ckpt_rot_q", "ckpt_rot_k", "ckpt_scores", "ckpt_pattern", "ckpt_scaled")
"""What lies inside of what is held constant, or on the way around a rule; it gets no share."""


class _Ruled(torch.autograd.Function):
    """A value as it is, whose gradient goes to what it was made of by a rule."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rule: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(value, *inputs)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, *inputs = ctx.saved_tensors
        return (None, None, *ctx.rule(grads[0], value, *inputs))


class Relevance:
    """The edits that give one run the rules of RelP, and the values to take its gradients of."""

    def __init__(self, model: CkptedTransformer) -> None:
        self.model = model
        self.seen: dict[str, Tensor] = {}  # name of a checkpoint -> its value, on the path of the gradient

    def edits(self, names: Sequence[str]) -> list[Edit]:
        """The edits of a run in which these checkpoints are asked for; they come after all others."""
        rules: list[Edit] = []
        kept = dict.fromkeys(names)
        for name in self.model.schema.names:
            place, _, kind = name.rpartition(".")
            if kind in _RULES:
                inputs, rule = _RULES[kind](self.model, place)
                rules.append(Edit.apply(name, partial(self._ruled, rule, inputs)))
                kept |= dict.fromkeys(inputs)
        return [*rules, *(Edit.apply(name, partial(self._remember, name)) for name in kept)]

    def _ruled(self, rule: Callable[..., tuple[Tensor, ...]], inputs: Sequence[str], value: Tensor) -> Tensor:
        return _Ruled.apply(value.detach(), rule, *(self.seen[name] for name in inputs)) if inputs else value.detach()  # pyright: ignore[reportReturnType]

    def _remember(self, name: str, value: Tensor) -> Tensor:
        self.seen[name] = value if value.requires_grad else value.detach().requires_grad_()  # of frozen weights
        return self.seen[name]


_Rule = tuple[tuple[str, ...], Callable[..., tuple[Tensor, ...]]]
"""What a value was made of, and (gradient, value, inputs) -> the gradient of each input."""


def _norm(model: CkptedTransformer, place: str) -> _Rule:
    """The divisor is constant; see `pellucid.family.blocks.Norm.reads`."""
    norm: Any = model.get_submodule(place)
    stream = place_of(f"{place}.ckpt_normalized", model.schema, "gradient").stream
    return (stream,), lambda back, _, x: (norm.reads(back, x),)


def _activation(model: CkptedTransformer, place: str) -> _Rule:
    """The ratio of output to input is constant; behind a gate, gate and gated get half each."""
    if f"{place}.ckpt_gate" in model.schema:
        inputs = f"{place}.ckpt_gate", f"{place}.ckpt_up"
        return inputs, lambda back, post, gate, up: (back * _ratio(post, gate) / 2, back * _ratio(post, up) / 2)
    return (f"{place}.ckpt_pre",), lambda back, post, pre: (back * _ratio(post, pre),)


def _constant(model: CkptedTransformer, place: str) -> _Rule:
    """No gradient: queries and keys make the pattern alone."""
    return (), lambda back, _: ()


def _ratio(value: Tensor, of: Tensor) -> Tensor:
    return torch.where(of == 0, 0.0, value / of)


_RULES: Mapping[str, Callable[[CkptedTransformer, str], _Rule]] = {
    "ckpt_normalized": _norm, "ckpt_post": _activation, "ckpt_q": _constant, "ckpt_k": _constant,
}  # fmt: skip
"""Last part of a checkpoint's name -> how its gradient goes on."""
