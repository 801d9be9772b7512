"""The columns of a batch in labelled arrays: their tokens and positions, and NaN for pads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.axes import POSITIONS, Axis, coordinate
from pellucid.text.batch import Batch


def without_pads(value: Tensor, axes: tuple[Axis, ...], batch: Batch, columns: Tensor) -> Tensor:
    """A value of these columns in float32 or float64 on the processor, NaN where a token of the batch is a pad."""
    value = value.detach().cpu()
    value = value if value.dtype == torch.float64 else value.float()  # numpy has no bfloat16
    if not batch.padded:
        return value
    mask = batch.mask.cpu()
    for axis, kind in enumerate(axes):
        if kind in (*POSITIONS, Axis.KEY):
            kept = mask if kind == Axis.KEY else mask[:, columns]
            shape = [kept.size(0) if i == 0 else kept.size(1) if i == axis else 1 for i in range(len(axes))]
            value = value.masked_fill(~kept.view(shape), torch.nan)
    return value


def token_labels(batch: Batch, dims: Collection[str], columns: Tensor) -> dict[str, Any]:
    """Coordinates of those axes among `dims` that go over tokens, as xarray takes them; a pad is "" at position -1."""
    labels: dict[str, Any] = {}
    mask = batch.mask.cpu()
    tokens = np.full(mask.shape, "", dtype=object)  # numpy's own strings lose a token's last NUL
    for row, real, strings in zip(tokens, mask.numpy(), batch.strings, strict=True):
        row[real] = strings
    positions = batch.positions.cpu().masked_fill(~mask, -1).numpy()
    for axis in (*POSITIONS, Axis.KEY):
        if axis in dims:
            kept = list(range(mask.size(1))) if axis == Axis.KEY else columns.tolist()
            labels[str(axis)] = kept
            labels[coordinate(axis, "token")] = ([str(Axis.BATCH), str(axis)], tokens[:, kept])
            labels[coordinate(axis, "position")] = ([str(Axis.BATCH), str(axis)], positions[:, kept])
    return labels
