"""Queries, keys and values of GPT-NeoX's attention, which lie head after head in one matrix, and turn in part."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.neox import aliases
from pellucid.neox.config import GPTNeoXConfig
from pellucid.part import LiveView
from pellucid.rotary import RotaryAttending, Turn, turned


def _head_matrices(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(1, (attention.n_head, 3, -1))[:, :, part].transpose(0, 1)

    return LiveView("W_QKV", view, f"W_{'QKV'[part]} [H, D, K], a live view of the stored W_QKV [D, 3D].")


def _head_biases(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(0, (attention.n_head, 3, -1))[:, part]

    return LiveView("b_QKV", view, f"b_{'QKV'[part]} [H, K], a live view of the stored b_QKV [3D].")


class Attention(RotaryAttending):
    """GPT-NeoX's attention: causal, with rotary positions in the first entries of each head.

    Its weights are `W_QKV` [D, 3D] with a head's q|k|v side by side, head after head, and `W_O` [H, K, D]; with
    `attention_bias` also `b_QKV` [3D] and `b_O` [D].
    """

    elsewhere = aliases.ATTENTION

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def settle(self, config: GPTNeoXConfig, block: int) -> None:
        super().settle(config, block)
        self.out_pdrop = config.hidden_dropout
        self.has_bias = config.attention_bias
        self.makes_scores = ("W_QKV", "b_QKV") if self.has_bias else ("W_QKV",)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.b_QKV if self.has_bias else None
        qkv = self._products.linear(x, self.W_QKV, bias, rows=Tensor.t)
        q, k, v = qkv.view(*x.shape[:-1], self.n_head, 3, -1).unbind(-2)
        return q, k, v

    def turned(self, values: Tensor, turn: Turn) -> Tensor:
        width = turn[0].size(-1)
        # joined even where nothing is left over: another operation may lay the result out otherwise
        return torch.cat((turned(values[..., :width], turn), values[..., width:]), dim=-1)
