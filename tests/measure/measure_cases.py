"""Runs and models that the tests of `measure` make up: every number is known, and nothing is computed twice alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import pellucid as pl
import support
from pellucid.schema import ATTENTION, PER_HEAD, select

SIZES = {"d_model": 6, "d_head": 3, "d_mlp": 10, "head": 2}
LAYERS = 3
VOCABULARY = 97
CONFIG = pl.TransformerConfig(
    vocab_size=VOCABULARY, n_positions=512, n_embd=6, n_layer=LAYERS, n_head=2, bos_token_id=None, eos_token_id=None
)


def texts_of(lengths: Iterable[int], seed: int = 0) -> list[list[int]]:
    """Random ids."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCABULARY, length).tolist() for length in lengths]


def batch_of(texts: Sequence[Sequence[int]], side: str = "left") -> pl.Batch:
    """Texts side by side, padded by hand."""
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    positions = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        at = slice(longest - len(text), longest) if side == "left" else slice(0, len(text))
        ids[row, at], mask[row, at] = torch.tensor(text), True
        positions[row, at] = torch.arange(len(text))
    return pl.Batch(ids, mask, positions)


def made_up(name: str, text: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The value of a checkpoint for one text, without pads: random, but always the same for the same text."""
    axes = support.schema(LAYERS).axes[name]
    seed = int.from_bytes(hashlib.sha256(f"{name} {list(text)}".encode()).digest()[:7], "little")
    draw = np.random.default_rng(seed)
    size = len(text)
    if axes == ATTENTION:
        scores = np.tril(draw.normal(0, 2, (SIZES["head"], size, size)))
        scores[:, np.triu_indices(size, 1)[0], np.triu_indices(size, 1)[1]] = -np.inf
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        values = pattern if name.endswith("pattern") else np.where(np.isinf(scores), np.finfo(np.float32).min, scores)
    elif axes == PER_HEAD:
        values = draw.normal(0.3, 1.5, (size, SIZES["head"], SIZES["d_head"]))
    else:
        values = draw.normal(0.3, 1.5, (size, SIZES[str(axes[-1])]))
    return torch.from_numpy(values).to(dtype)


def run_of(
    texts: Sequence[Sequence[int]], names: Any = None, *, side: str = "left", dtype: torch.dtype = torch.float32
) -> pl.ActivationCkpts:
    """A run as `run_with_ckpts` would hand it back; pads hold 777, which no measure may see."""
    batch = batch_of(texts, side)
    longest = batch.ids.size(1)
    values: dict[str, Tensor] = {}
    for name in select(names, support.schema(LAYERS).names):
        rows = []
        for row, text in enumerate(texts):
            value, real = made_up(name, text, dtype), batch.mask[row]
            if support.schema(LAYERS).axes[name] == ATTENTION:
                whole = torch.full((SIZES["head"], longest, longest), 777.0, dtype=dtype)
                whole[:, real.nonzero(), real.nonzero().T] = value
            else:
                whole = torch.full((longest, *value.shape[1:]), 777.0, dtype=dtype)
                whole[real] = value
            rows.append(whole)
        values[name] = torch.stack(rows)
    return pl.ActivationCkpts(values, batch, support.schema(LAYERS))


class Model:
    """Runs made-up values: what `stream` and `induction` need of a model, at no cost.

    Args:
        kill_at: The number of the batch, from 0, at which to die; None for never.
    """

    config = CONFIG
    schema = CONFIG.schema

    def __init__(self, kill_at: int | None = None, side: str = "left") -> None:
        self.kill_at = kill_at
        self.side = side
        self.batches: list[int] = []

    def run_with_ckpts(self, inputs: Any, *, names: Any = None, stop_at: Any = None) -> tuple[Any, pl.ActivationCkpts]:
        if self.kill_at == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(len(inputs))
        for number, text in enumerate(inputs):
            if not len(text):
                raise pl.InputError(f"row {number} is empty.", code="empty-text", remedy="Give some text.")
        return None, run_of(inputs, names, side=self.side)


def series(count: int, length: int, seed: int = 0, *, mean: float = 4.0) -> xr.DataArray:
    """Stable autoregressions of order 2 around `mean`, [layer, pos]."""
    draw = np.random.default_rng(seed)
    slopes = draw.uniform(-0.4, 0.45, (2, count))
    noise = draw.standard_normal((count, length + 50))
    values = np.zeros_like(noise)
    for t in range(2, length + 50):
        values[:, t] = slopes[0] * values[:, t - 1] + slopes[1] * values[:, t - 2] + noise[:, t]
    return xr.DataArray(values[:, 50:] + mean, dims=("layer", "pos"), coords={"layer": range(count)})


def several_texts(lengths: Sequence[int], side: str = "left", seed: int = 0) -> xr.DataArray:
    """Norms of made-up runs, [layer, batch, pos]."""
    return pl.measure.norms(run_of(texts_of(lengths, seed), "blocks.*.resid_post", side=side), "resid_post", log=True)
