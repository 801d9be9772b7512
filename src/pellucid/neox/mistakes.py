"""The mistakes that a comparison tries in the place of a program that is no right GPT-NeoX; the likely ones first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.family import common_attention as attention
from pellucid.family import common_mistakes as common
from pellucid.family.common_mistakes import Change, replaced
from pellucid.family.network import Network


def _normed(norm: Any, x: Tensor, correction: int = 0) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=correction, keepdim=True) + norm.eps).sqrt()


_NORMS = (
    ("norms without gain and bias", lambda norm, x: F.layer_norm(x, norm.w.shape, eps=norm.eps)),
    ("norms without their bias", lambda norm, x: _normed(norm, x) * norm.w),
    ("norms without their gain", lambda norm, x: _normed(norm, x) + norm.b),
    ("unbiased variance in the norms", lambda norm, x: _normed(norm, x, 1) * norm.w + norm.b),
    ("epsilon outside the square root",
     lambda norm, x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True) + norm.eps) * norm.w
     + norm.b),
    ("RMSNorm instead of LayerNorm",
     lambda norm, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.w + norm.b),
    ("no norms", common.no_norm),
)  # fmt: skip


def _no_bias(before: bool, after: bool) -> Any:
    """A block whose MLP leaves out the bias before or after the activation function."""

    def change(block: Any) -> None:
        mlp = block.mlp

        def forward(right: Any, x: Tensor, tap: Any = None) -> Tensor:
            pre = mlp.ckpt_pre(x @ mlp.W_in + (0 if before else mlp.b_in), tap=tap)
            post = mlp.ckpt_post(mlp.act(pre), tap=tap)
            return mlp.ckpt_mlp_out(post @ mlp.W_out + (0 if after else mlp.b_out), tap=tap)

        replaced(mlp, "forward", forward)

    return change


MLP = (
    Change("no bias on W_in", _no_bias(True, False)),
    Change("no bias on W_out", _no_bias(False, True)),
    Change("no bias in the MLP", _no_bias(True, True)),
)


def _split(stored: str) -> Any:
    """q, k and v read from the columns as if these were stored in another order; they are heads of q|k|v."""

    def change(attn: Any) -> None:
        def projected(right: Any, x: Tensor) -> tuple[Tensor, ...]:
            whole = torch.stack(right(x), -2).flatten(2)
            if stored == "parts":
                return whole.unflatten(-1, (3, attn.n_head, -1)).unbind(2)
            return whole.unflatten(-1, (attn.n_head, -1, 3)).unbind(-1)

        replaced(attn, "projected", projected)

    return attention.attention(change)


SPLITS = (
    Change("q, k, v read as three whole chunks: they lie side by side in each head", _split("parts")),
    Change("q, k, v read as the innermost axis of each head", _split("innermost")),
)


def mistakes(network: Network) -> Iterator[Change]:
    """The mistakes to try, for the sizes of a reference."""
    config: Any = network.config
    yield from common.PARALLEL if config.use_parallel_residual else common.SEQUENTIAL
    if config.rule.turned:
        yield from attention.TURNS
    yield from attention.rotations(config.rule, config.d_head, network.rotary.others)
    yield from SPLITS
    yield from common.activations(config.hidden_act)
    yield from attention.scales(config.hidden_size)
    yield from attention.MASKS
    yield from common.norms(_NORMS, config.layer_norm_eps)
    yield from attention.TAKEN
    if config.attention_bias:
        yield from map(attention.biases, ("q", "v", "qkv", "qk", "qv", "kv"))
        yield attention.NO_OUTPUT_BIAS
    yield from MLP
    yield from common.around(network)
    yield from common.orders(config.num_hidden_layers)
