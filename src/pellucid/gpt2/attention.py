"""Queries, keys and values of GPT-2's attention (Vaswani et al. 2017, arXiv:1706.03762), which lie side by side.

What is done with them is every family's (`pellucid.attend`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.attend import Attending
from pellucid.gpt2.config import TransformerConfig
from pellucid.part import LiveView


def _head_matrices(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        d_model, h = stored.size(0), attention.n_head
        return stored.unflatten(1, (3, h, d_model // h))[:, part].transpose(0, 1)

    return LiveView("W_QKV", view, f"W_{'QKV'[part]} [H, D, K], a live view of the stored W_QKV [D, 3D].")


def _head_biases(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(0, (3, attention.n_head, -1))[part]

    return LiveView("b_QKV", view, f"b_{'QKV'[part]} [H, K], a live view of the stored b_QKV [3D].")


class Attention(Attending):
    """GPT-2's attention: causal, its scores scaled by the number of the block in some configurations.

    Its weights are `W_QKV` [D, 3D] with columns q|k|v, each head after head; `b_QKV` [3D]; `W_O` [H, K, D]; `b_O` [D].
    """

    makes_scores = ("W_QKV", "b_QKV")

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def settle(self, config: TransformerConfig, block: int) -> None:
        self.scale = config.attention_scale(block)
        self.attn_pdrop, self.out_pdrop = config.attn_pdrop, config.resid_pdrop
        self.upcast = self.eager and config.reorder_and_upcast_attn  # transformers' sdpa path ignores the field

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self._products.affine(x, self.W_QKV, self.b_QKV)
        q, k, v = qkv.view(*x.shape[:-1], 3, self.n_head, -1).unbind(-3)
        return q, k, v

    def joined(self, z: Tensor) -> Tensor:
        return self._products.affine(z.flatten(2).contiguous(), self.W_O, self.b_O)

    def _products_of(self, q: Tensor, k: Tensor) -> Tensor:
        return self._upcast_scores(q, k) if self.upcast else super()._products_of(q, k)

    def _upcast_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores in float32 or better with the scale inside the product, as `reorder_and_upcast_attn` asks for."""
        b, h, queries, d_head = q.shape
        keys = k.size(2)
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            rows = q.reshape(b * h, queries, d_head).to(dtype)
            columns = k.transpose(-1, -2).reshape(b * h, d_head, keys).to(dtype)
            empty = torch.empty(b * h, queries, keys, dtype=dtype, device=q.device)
            return torch.baddbmm(empty, rows, columns, beta=0, alpha=self.scale).view(b, h, queries, keys)
