"""Muon for the matrices of the blocks, AdamW for the rest, and their common schedule.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ : momentum whose update is
replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz steps.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MATRIX = re.compile(r"\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")


def orthogonalised(matrices: Tensor) -> Tensor:
    """Five quintic Newton-Schulz steps, coefficients of Jordan et al.

    Args:
        matrices: Tensor, shape (count, rows, columns) with rows <= columns.

    Returns:
        Tensor of the same shape, each matrix with singular values near one.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


class Muon(torch.optim.Optimizer):
    """Muon over (input, output) matrices as GPT-2 stores them; q, k and v are three matrices."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for param in group["params"]:
                for part, update in self._parts(param, group["momentum"]):
                    by_shape.setdefault(update.shape, []).append((part, update))
            for pairs in by_shape.values():
                updates = orthogonalised(torch.stack([update for _, update in pairs]))
                for (part, _), update in zip(pairs, updates, strict=True):
                    wide = part.shape[0] <= part.shape[1]
                    scale = max(1.0, part.shape[1] / part.shape[0]) ** 0.5
                    part.mul_(1 - group["lr"] * group["weight_decay"])
                    part.add_(update if wide else update.mT, alpha=-group["lr"] * scale)

    def _parts(self, param: nn.Parameter, momentum: float) -> list[tuple[Tensor, Tensor]]:
        """Views of the matrices in a parameter, each with its Nesterov update, wide way round."""
        if "momentum" not in self.state[param]:
            self.state[param]["momentum"] = torch.zeros_like(param)
        buffer = self.state[param]["momentum"]
        buffer.lerp_(param.grad, 1 - momentum)
        update = param.grad.lerp(buffer, momentum)
        count = 3 if param.shape[1] == 3 * param.shape[0] else 1
        return [
            (part, piece if piece.shape[0] <= piece.shape[1] else piece.mT)
            for part, piece in zip(param.data.chunk(count, dim=1), update.chunk(count, dim=1), strict=True)
        ]


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon and AdamW with the settings of this project; each group remembers its peak rate."""
    matrices, embeddings, vectors = [], [], []
    for name, param in model.named_parameters():
        if MATRIX.search(name):
            matrices.append(param)
        else:
            (embeddings if param.ndim == 2 else vectors).append(param)
    muon = Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.1)
    groups = [
        {"params": embeddings, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    for group in muon.param_groups + adamw.param_groups:
        group["peak"] = group["lr"]
    return [muon, adamw]


@dataclass(frozen=True)
class Schedule:
    """The learning rate over its peak: linear warm-up, constant, linear to zero at the end.

    Args:
        tokens: Training tokens from the round's beginning to its end.
        peak: The highest factor.
        decay: The last share of the tokens, over which the rate falls.
        warm_up: Steps until the peak.
    """

    tokens: int
    peak: float = 1.0
    decay: float = 0.35
    warm_up: int = 50

    def factor(self, step: int, tokens: int) -> float:
        """The factor after so many steps and tokens of the round."""
        left = (self.tokens - tokens) / (self.decay * self.tokens)
        return self.peak * max(0.0, min(1.0, (step + 1) / self.warm_up, left))


def set_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]
