"""GPT-2's sizes, weights and formulas, by hand: what `parts` puts together and what mistakes take the place of.

The equations are those of Radford et al. 2019, and of Vaswani et al. 2017 for attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.numerics import nonlinear

Heads = tuple[Tensor, Tensor, Tensor]
"""q, k, v, each [B, P, H, K]."""
Norm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From x [B, P, D], gain, bias and epsilon."""

KEPT = 1 << 20
"""A parameter of up to so many values is converted once; larger ones each time, which spares memory."""


@dataclass(frozen=True)
class Sizes:
    """The sizes and constants of a GPT-2."""

    hidden: int  # width of the residual stream
    heads: int  # how many heads
    head: int  # width of one head; a learner's need not be hidden/heads
    epsilon: float = 1e-5  # of every LayerNorm
    activation: str = "relu"  # name of the MLP's activation function
    layers: int = 0  # blocks
    vocabulary: int = 0  # tokens
    positions: int = 0  # longest text
    dropout: float = 0.25  # the rate of every dropout
    scales: tuple[float, ...] = ()  # what each block multiplies its scores by; empty for 1/sqrt(head)

    @staticmethod
    def of(config: TransformerConfig) -> Sizes:
        """The sizes that a configuration gives."""
        return Sizes(
            config.n_embd, config.n_head, config.d_head, config.layer_norm_epsilon, config.activation_function,
            config.n_layer, config.vocab_size, config.n_positions,
            scales=tuple(map(config.attention_scale, range(config.n_layer))),
        )  # fmt: skip


@dataclass(frozen=True)
class PlainWeights:
    """Parameters by the field's names (W_Q [H, D, K] and so on), converted as they are asked for."""

    sizes: Sizes
    tensors: Mapping[str, Tensor]  # whole name -> parameter
    dtype: torch.dtype = torch.float64  # what they are converted to
    block: int = -1  # the block whose parameters are asked for without its name; -1 for whole names
    converted: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        name = name if self.block < 0 else f"blocks.{self.block}.{name}"
        if name in self.converted:
            return self.converted[name]
        made = self.tensors[name].to(self.dtype)
        if made.numel() <= KEPT:
            self.converted[name] = made
        return made

    def scale(self, q: Tensor) -> float:
        """What this block's scores are multiplied by, for q [B, H, P, K]."""
        return self.sizes.scales[self.block] if self.sizes.scales else q.size(-1) ** -0.5

    def of_block(self, block: int) -> PlainWeights:
        """The parameters of one block, by their names in it."""
        return replace(self, block=block)

    def coarsely(self) -> PlainWeights:
        """The same in float32, in which a mistake is quickly computed and refused."""
        return PlainWeights(self.sizes, self.tensors, torch.float32)

    @property
    def tied(self) -> bool:
        """True if the head is the embedding."""
        return "unembed.W_U" not in self.tensors

    @property
    def head(self) -> Tensor:
        """The head as [V, D]."""
        return self.tensors["embed.W_E"] if self.tied else self.tensors["unembed.W_U"].t()


def layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b


def project(x: Tensor, weights: PlainWeights) -> Heads:
    """q, k and v of x [B, P, D]."""
    q, k, v = (
        torch.einsum("bpd,hdk->bphk", x, weights[f"attn.W_{letter}"]) + weights[f"attn.b_{letter}"] for letter in "QKV"
    )
    return q, k, v


def causal(scores: Tensor) -> Tensor:
    """Which keys each query sees [Pq, Pk]."""
    return visible(scores).tril()


def visible(scores: Tensor) -> Tensor:
    """A mask [Pq, Pk] that hides nothing."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)


def masked(scores: Tensor, mask: Tensor, fill: float | None) -> Tensor:
    """Scores whose hidden entries are `fill`; None for the least number of their dtype."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min if fill is None else fill)


def softmax(scores: Tensor, mask: Tensor, fill: float | None) -> Tensor:
    """The pattern [B, H, Pq, Pk]."""
    return masked(scores, mask, fill).softmax(-1)


def project_out(z: Tensor, x: Tensor, weights: PlainWeights) -> Tensor:
    """The output of attention to x [B, P, D], from merged heads z [B, P, H * K]."""
    return z @ weights["attn.W_O"].flatten(0, 1) + weights["attn.b_O"]


def feed_in(x: Tensor, weights: PlainWeights) -> Tensor:
    """The MLP's values before the activation function."""
    return x @ weights["mlp.W_in"] + weights["mlp.b_in"]


def activate(x: Tensor, sizes: Sizes) -> Tensor:
    """The configured activation function."""
    return nonlinear.EXACT[sizes.activation](x)


def feed_out(x: Tensor, weights: PlainWeights) -> Tensor:
    """The MLP's output."""
    return x @ weights["mlp.W_out"] + weights["mlp.b_out"]


def counted(ids: Tensor, sizes: Sizes) -> Tensor:
    """The positions of ids [B, P]: 0, 1, 2 and so on."""
    return torch.arange(ids.size(1))


def rounded(value: float) -> Callable[[Tensor, PlainWeights], float]:
    """Scores multiplied by another number in the place of 1/sqrt(d_head)."""
    return lambda q, w: w.scale(q) * w.sizes.head**0.5 * value
