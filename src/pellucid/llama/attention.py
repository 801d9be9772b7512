"""Causal self-attention with rotary positions and grouped heads, as Llama has it.

Rotary positions are of Su et al. 2021 (arXiv:2104.09864), grouped heads of Ainslie et al. 2023 (arXiv:2305.13245).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.attend import Attending, Visible, hold_nan
from pellucid.ckpt import name_checkpoints
from pellucid.llama import aliases
from pellucid.llama.config import LlamaConfig
from pellucid.llama.rotary import Rotary, Turn, turned
from pellucid.network import Memory
from pellucid.numerics.execution import EXACT, Execution
from pellucid.numerics.products import Products, products_of
from pellucid.part import Weights
from pellucid.tap import Tap


class Attention(Attending):
    """q, k, v, their rotation, scores, pattern, z and what is added to the residual stream, through their checkpoints.

    Args:
        config: What the model is.
        weights: `W_Q` [H, D, K], `W_K` and `W_V` [G, D, K] of G heads that H / G queries share each, `W_O` [H, K, D];
            and, where the configuration has them, `b_Q` [H, K], `b_K` and `b_V` [G, K], `b_O` [D]. Fresh ones if None.
        block: Number of the block.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = aliases.ATTENTION

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.take(config, "blocks.0.attn", weights)
        self._products = products or products_of(execution)
        self._rule = config.rule
        self.has_bias = config.attention_bias
        self.makes_scores = ("W_Q", "W_K", "b_Q", "b_K") if self.has_bias else ("W_Q", "W_K")
        self.n_head, self.d_head = config.num_attention_heads, config.d_head
        self.shared = config.num_attention_heads // config.n_head_kv
        self.scale = config.d_head**-0.5
        self.attn_pdrop = config.attention_dropout
        self.eager, self.exact = execution.attention == "eager", not execution.is_fast
        name_checkpoints(self, f"blocks.{block}.attn")

    def forward(
        self,
        x: Tensor,
        visible: Visible | None = None,
        tap: Tap | None = None,
        remember: Memory | None = None,
        turn: Turn | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, D] -> (attn_out [B, P, D], pattern [B, H, Pq, Pk] or None if nobody looked at it).

        `remember` takes the keys and values of these tokens and gives those of the whole text. `turn` is the rotation
        of each position; without one they count from 0.
        """
        visible = visible or Visible()
        turn = self._turn_of(x) if turn is None else turn
        explicit = self.eager or self._holds_nan()
        q, k, v = (self._per_head(x, letter) for letter in "QKV")
        own_q, own_k = self.ckpt_q(q, tap=tap), self.ckpt_k(k, tap=tap)
        v = self.ckpt_v(v, tap=tap).transpose(1, 2)
        rotated = [turned(values.transpose(1, 2), turn) for values in (own_q, own_k)]
        rot_q, rot_k = (values.transpose(1, 2) for values in rotated)
        seen_q, seen_k = self.ckpt_rot_q(rot_q, tap=tap), self.ckpt_rot_k(rot_k, tap=tap)
        if own_q is not q or own_k is not k or seen_q is not rot_q or seen_k is not rot_k:
            explicit = explicit or hold_nan(seen_q, seen_k)
        q, k = seen_q.transpose(1, 2), seen_k.transpose(1, 2)
        if remember is not None:
            k, v = remember(k, v)
        if self.exact:  # as they come out of transformers' cache: the kernel for shared heads rounds by their layout
            k, v = k.contiguous(), v.contiguous()

        z, pattern = self.mixed(q, k, v, visible, tap, explicit=explicit)
        z = self.ckpt_z(z.transpose(1, 2), tap=tap)

        bias = self.b_O if self.has_bias else None
        attn_out = self._products.linear(z.flatten(2).contiguous(), self.W_O, bias, rows=_outputs)
        return self.ckpt_attn_out(attn_out, tap=tap), pattern

    def _per_head(self, x: Tensor, letter: str) -> Tensor:
        """x [B, P, D] -> queries, keys or values [B, P, H, K]."""
        bias = getattr(self, f"b_{letter}").flatten() if self.has_bias else None
        product = self._products.linear(x, getattr(self, f"W_{letter}"), bias, rows=_head_rows)
        return product.view(*x.shape[:-1], -1, self.d_head)

    def _turn_of(self, x: Tensor) -> Turn:
        """The rotation of positions that count from 0."""
        positions = torch.arange(x.size(1), device=x.device).expand(x.shape[:2])
        return Rotary(self._rule, x.device)(positions, x.dtype)

    def _normalized(self, scores: Tensor, v: Tensor, *, in_place: bool) -> Tensor:
        """As transformers' eager attention: in float32 whatever the dtype, which beside the fused kernel is no less."""
        dtype = torch.float32 if self.eager else torch.promote_types(scores.dtype, torch.float32)
        if dtype == scores.dtype:
            return super()._normalized(scores, v, in_place=in_place)
        if (
            scores.dtype == torch.float64
        ):  # whose least number is none of float32: a row of pads would have nothing left
            scores = scores.clamp(min=torch.finfo(dtype).min)
        return F.softmax(scores, dim=-1, dtype=dtype).to(v.dtype)


def _head_rows(matrices: Tensor) -> Tensor:
    """[H, D, K] -> [H K, D], as the memory lies."""
    return matrices.transpose(1, 2).flatten(0, 1)


def _outputs(matrices: Tensor) -> Tensor:
    """[H, K, D] -> [D, H K], as the memory lies."""
    return matrices.flatten(0, 1).t()
