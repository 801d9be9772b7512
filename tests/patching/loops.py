"""Patching as a loop of whole runs: what sweeps have to equal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pellucid as pl
import support
from pellucid.schema import Axis

METRIC = pl.metrics.logit_difference(7, 11)
"""Reads the last token alone."""


def everywhere(logits: Tensor, batch: pl.Batch) -> Tensor:
    """A metric without `positions`, to which every logit of every token matters."""
    weights = torch.linspace(-1, 1, logits.size(1) * logits.size(2), dtype=logits.dtype).view(logits.shape[1:])
    return ((logits * weights) * batch.mask[..., None]).sum((1, 2)) / 100


def exact(**fields: Any) -> pl.CkptedTransformer:
    """A small model in float64, in which nothing is rounded that could be seen."""
    return support.glass(dtype=torch.float64, **fields)


def two(texts: int = 2, columns: int = 6) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids, which differ from the second column on."""
    clean, corrupted = support.some_ids(texts, columns), support.some_ids(texts, columns, seed=5)
    corrupted[:, 0] = clean[:, 0]
    return clean, corrupted


def patched(
    model: pl.CkptedTransformer, base: Any, source: Any, name: str, over: Sequence[str], metric: Any, **part: Any
) -> np.ndarray[Any, Any]:
    """[*over, batch]: the metric after each patch, each in a whole run of its own."""
    batch, (_, values) = model.tokenize(base), model.run_with_ckpts(source)
    full = f"blocks.0.{name}" if f"blocks.0.{name}" in model.schema else name
    axes, shape = model.schema.axes[full], values[full].shape
    lengths = {"head": shape[axes.index(Axis.HEAD)] if Axis.HEAD in axes else 0, "pos": batch.shape[1],
               "layer": len(model.schema.blocks), "neuron": shape[-1]}  # fmt: skip
    words = {"head": "heads", "pos": "pos", "neuron": "neurons"}
    out = np.zeros([*(lengths[axis] for axis in over), len(batch)])
    for at in itertools.product(*(range(lengths[axis]) for axis in over)):
        chosen = dict(zip(over, at, strict=True))
        layer = chosen.pop("layer", "*")
        full = f"blocks.{layer}.{name}" if f"blocks.0.{name}" in model.schema else name
        where = {**part, **{words[axis]: index for axis, index in chosen.items()}}
        if "pos" in chosen and batch.padded:  # a pad is not patched
            where["rows"] = batch.mask[:, chosen["pos"]].nonzero().flatten().tolist()
        edits = [pl.Edit.patch(full, values, **where)] if where.get("rows", True) else []
        with torch.no_grad():
            out[at] = metric(model.run(batch, edits=edits), batch).double().numpy()
    return out
