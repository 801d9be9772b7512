"""The norms of all families: LayerNorm and RMSNorm, each through its checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import dialects
from pellucid.config import Config
from pellucid.part import Part, Weights
from pellucid.tap import Tap


class Norm(Part):
    """A norm over the last axis, with the epsilon of the configuration.

    Args:
        config: What the model is.
        weights: What the schema has below "ln_final"; gains of one and biases of zero if None.
    """

    elsewhere = dialects.NORM

    def __init__(self, config: Config, weights: Weights | None = None) -> None:
        super().__init__()
        self.take(config, "ln_final", weights)
        self.eps = config.epsilon

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        """x [B, P, D], normalized."""
        raise NotImplementedError

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        """What a direction behind this norm reads of its input: forward(x) · direction = x · reads + b · direction.

        The statistics are x's own and count as constants, so this is linear in the parts that x is a sum of.

        Args:
            direction: [..., D].
            x: [B, P, D].
        """
        raise NotImplementedError


class LayerNorm(Norm):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016, arXiv:1607.06450); `w` and `b` [D]."""

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        w, b = self.w, self.b
        edited = self.ckpt_scaled.replacement(self._scaled(x), tap) if self.ckpt_scaled.is_watched(tap) else None
        if edited is None:
            normalized = F.layer_norm(x, w.shape, w, b, self.eps)
        else:
            normalized = edited.value * w + b
            if edited.rows is not None:
                normalized = torch.where(edited.rows, normalized, F.layer_norm(x, w.shape, w, b, self.eps))
        return self.ckpt_normalized(normalized, tap=tap)

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        gained = self.w * direction
        centred = gained - gained.mean(-1, keepdim=True)
        return centred * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + self.eps)

    def _scaled(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.w.shape, eps=self.eps)


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019, arXiv:1910.07467).

    The root is taken in float32, and the quotient is in the dtype of x before it is multiplied by the gain `w` [D].
    """

    elsewhere = {name: said for name, said in dialects.NORM.items() if name != "bias"} | {
        "variance_epsilon": "{here}.eps"
    }

    def forward(self, x: Tensor, tap: Tap | None = None) -> Tensor:
        wide = x.to(torch.float32)
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.ckpt_normalized(self.w * self.ckpt_scaled(scaled.to(x.dtype), tap=tap), tap=tap)

    def reads(self, direction: Tensor, x: Tensor) -> Tensor:
        return self.w * direction * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
