"""Runs and sums that the tests of attribution share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pellucid as pl
import support

BYS = ("component", "head", "neuron", "block")
RAGGED = support.ragged_ids(3, 7, 5)
TOKEN = 17


def run(model: pl.CkptedTransformer, inputs: Any = RAGGED, **more: Any) -> tuple[Tensor, pl.ActivationCkpts]:
    """Logits and captures."""
    logits, ckpts = model.run_with_ckpts(inputs, **more)
    assert logits is not None
    return logits.detach(), ckpts


def total(parts: Any) -> Tensor:
    """The sum over the first axis."""
    return torch.from_numpy(parts.sum("component").values)


def furthest(found: Tensor, expected: Tensor, ckpts: pl.ActivationCkpts) -> float:
    """The largest difference at a real position."""
    return float((found - expected.double()).abs()[ckpts.batch.mask].max())
