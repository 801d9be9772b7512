"""The mistakes that a comparison tries in the place of a program that is no right Llama; the likely ones first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pellucid.family import common_attention as attention
from pellucid.family import common_mistakes as common
from pellucid.family.common_mistakes import Change, replaced
from pellucid.family.network import Network


def _root(x: Tensor, epsilon: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)


_NORMS = (
    ("the mean is taken off, as LayerNorm does",
     lambda norm, x: norm.w * _root(x - x.mean(-1, keepdim=True), norm.eps)),
    ("epsilon outside the square root",
     lambda norm, x: norm.w * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + norm.eps)),
    ("norms without their gain", lambda norm, x: _root(x, norm.eps)),
    ("the norms' gain added to 1", lambda norm, x: (norm.w + 1) * _root(x, norm.eps)),
    ("norms divide by the root of the sum of squares, not of the mean",
     lambda norm, x: norm.w * x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + norm.eps)),
    ("norms divide by the mean of squares, not by its root",
     lambda norm, x: norm.w * x / (x.pow(2).mean(-1, keepdim=True) + norm.eps)),
    ("no norms", common.no_norm),
)  # fmt: skip


def _gated(formula: Any) -> Any:
    """A block whose MLP makes its hidden values of the gate and of what is gated in another way."""

    def change(block: Any) -> None:
        mlp = block.mlp

        def forward(right: Any, x: Tensor, tap: Any = None) -> Tensor:
            gate, up = mlp.ckpt_gate(mlp._linear(x, "gate"), tap=tap), mlp.ckpt_up(mlp._linear(x, "in"), tap=tap)
            post = mlp.ckpt_post(formula(mlp.act, gate, up), tap=tap)
            return mlp.ckpt_mlp_out(mlp._linear(post, "out"), tap=tap)

        replaced(mlp, "forward", forward)

    return change


GATES = (
    Change("gate and up-projection exchanged", _gated(lambda act, gate, up: gate * act(up))),
    Change("no gate: the activation function of the gate alone", _gated(lambda act, gate, up: act(gate))),
    Change("no gate: the activation function of the up-projection alone", _gated(lambda act, gate, up: act(up))),
    Change("the activation function is applied to the product", _gated(lambda act, gate, up: act(gate * up))),
    Change("gate and up-projection are added, not multiplied", _gated(lambda act, gate, up: act(gate) + up)),
)


def _no_bias(names: str) -> Any:
    """A block whose MLP leaves out the biases of these of its matrices."""

    def change(block: Any) -> None:
        mlp = block.mlp
        replaced(mlp, "_linear", lambda right, x, name: right(x, name) - (
            getattr(mlp, f"b_{name}") if name in names.split() else 0))  # fmt: skip

    return change


def mistakes(network: Network) -> Iterator[Change]:
    """The mistakes to try, for the sizes of a reference."""
    config: Any = network.config
    yield from attention.TURNS
    yield from attention.rotations(config.rule, config.d_head, network.rotary.others)
    if config.n_head_kv < config.num_attention_heads:
        yield from attention.GROUPS
    yield from GATES
    yield from common.activations(config.hidden_act)
    yield from attention.scales(config.hidden_size)
    yield from attention.MASKS
    yield from common.norms(_NORMS, config.rms_norm_eps)
    yield from attention.TAKEN
    if config.attention_bias:
        yield from map(attention.biases, ("q", "v", "qkv", "qk", "qv", "kv"))
        yield attention.NO_OUTPUT_BIAS
    if config.mlp_bias:
        for names in ("gate", "in", "out", "gate in out"):
            yield Change(f"no bias on {', '.join(f'W_{name}' for name in names.split())}", _no_bias(names))
    yield from common.SEQUENTIAL
    yield from common.around(network)
    yield from common.orders(config.num_hidden_layers)
