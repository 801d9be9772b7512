"""Causal multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, in GPT-2's form)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.attend import Attending, Visible, hold_nan
from pellucid.ckpt import name_checkpoints
from pellucid.gpt2.config import TransformerConfig
from pellucid.network import Memory
from pellucid.numerics.execution import EXACT, Execution
from pellucid.numerics.products import Products, products_of
from pellucid.parameters import LiveView
from pellucid.part import Weights
from pellucid.tap import Tap


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
    """q, k, v, scores, pattern, z and what is added to the residual stream, each through its checkpoint.

    Args:
        config: What the model is.
        weights: `W_QKV` [D, 3D] with columns q|k|v, each head after head; `b_QKV` [3D]; `W_O` [H, K, D]; `b_O` [D].
            Fresh ones if None.
        block: Number of the block, by which some configurations scale the scores.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    makes_scores = ("W_QKV", "b_QKV")

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.take(config, "blocks.0.attn", weights)
        self._products = products or products_of(execution)
        self.n_head = config.n_head
        self.scale = config.attention_scale(block)
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop
        self.eager, self.exact = execution.attention == "eager", not execution.is_fast
        self.upcast = self.eager and config.reorder_and_upcast_attn  # transformers' sdpa path ignores the field
        name_checkpoints(self, f"blocks.{block}.attn")

    def forward(
        self, x: Tensor, visible: Visible | None = None, tap: Tap | None = None, remember: Memory | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, D] -> (attn_out [B, P, D], pattern [B, H, Pq, Pk] or None if nobody looked at it).

        `remember` takes the keys and values of these tokens and gives those of the whole text.
        """
        visible = visible or Visible()
        explicit = self.eager or self._holds_nan()
        qkv = self._products.affine(x, self.W_QKV, self.b_QKV)
        own_q, own_k, v = qkv.view(*x.shape[:-1], 3, self.n_head, -1).unbind(-3)
        q, k = self.ckpt_q(own_q, tap=tap), self.ckpt_k(own_k, tap=tap)
        if q is not own_q or k is not own_k:
            explicit = explicit or hold_nan(q, k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        v = self.ckpt_v(v, tap=tap).transpose(1, 2)
        if remember is not None:
            k, v = remember(k, v)
        elif self.exact:  # as they come out of transformers' cache: matrix products round by layout on some processors
            k, v = k.contiguous(), v.contiguous()

        z, pattern = self.mixed(q, k, v, visible, tap, explicit=explicit)
        z = self.ckpt_z(z.transpose(1, 2), tap=tap)

        attn_out = self._products.affine(z.flatten(2).contiguous(), self.W_O, self.b_O)
        if self.training:
            attn_out = F.dropout(attn_out, self.resid_pdrop)
        return self.ckpt_attn_out(attn_out, tap=tap), pattern

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
