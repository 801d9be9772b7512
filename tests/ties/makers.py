"""Models of both libraries under one interface, for tests that hold for either."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import pellucid as pl
import support

WIDTH, VOCAB = support.SIZES["n_embd"], support.SIZES["vocab_size"]
MAKERS = {"ours": support.glass, "hf": support.reference}
IDS = support.some_ids(2, 9)


def logits(model: Any) -> torch.Tensor:
    out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


def head(bias: bool = False, vocab: int = VOCAB) -> nn.Linear:
    return nn.Linear(WIDTH, vocab, bias=bias)


def rows(model: Any) -> torch.Tensor:
    return model.get_output_embeddings().weight


def is_tied(model: Any) -> bool:
    if isinstance(model, pl.CkptedTransformer):
        return model.unembed.tied and "unembed.W_U" not in dict(model.named_parameters())
    return model.lm_head.weight is model.transformer.wte.weight


def trained(model: Any, cls: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    optimizer = cls(model.parameters(), **{"lr": 1e-2, **options})
    step(model, optimizer)
    return optimizer


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = logits(model).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
