"""Queries, keys and values of Llama's attention, of which several heads of queries may share one.

Rotary positions are of Su et al. 2021 (arXiv:2104.09864), grouped heads of Ainslie et al. 2023 (arXiv:2305.13245).
What both do is every family's (`pellucid.rotary`, `pellucid.attend`).
"""

from __future__ import annotations

from torch import Tensor

from pellucid.llama import aliases
from pellucid.llama.config import LlamaConfig
from pellucid.rotary import RotaryAttending


class Attention(RotaryAttending):
    """Llama's attention: causal, with rotary positions and heads of keys and values that several queries may share.

    Its weights are `W_Q` [H, D, K], `W_K` and `W_V` [G, D, K] of G heads that H / G queries share each, and `W_O`
    [H, K, D]; with `attention_bias` also `b_Q` [H, K], `b_K` and `b_V` [G, K], `b_O` [D].
    """

    elsewhere = aliases.ATTENTION

    def settle(self, config: LlamaConfig, block: int) -> None:
        super().settle(config, block)
        self.has_bias = config.attention_bias
        self.makes_scores = ("W_Q", "W_K", "b_Q", "b_K") if self.has_bias else ("W_Q", "W_K")

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self._per_head(x, letter) for letter in "QKV")
        return q, k, v

    def _per_head(self, x: Tensor, letter: str) -> Tensor:
        """x [B, P, D] -> queries, keys or values [B, P, H, K]."""
        bias = getattr(self, f"b_{letter}").flatten() if self.has_bias else None
        product = self._products.linear(x, getattr(self, f"W_{letter}"), bias, rows=_head_rows)
        return product.view(*x.shape[:-1], -1, self.d_head)


def _head_rows(matrices: Tensor) -> Tensor:
    """[H, D, K] -> [H K, D], as the memory lies."""
    return matrices.transpose(1, 2).flatten(0, 1)
