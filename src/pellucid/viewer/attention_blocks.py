"""Blocks of a trace about attention: patterns, queries and keys, norms of values, scores of heads."""

from __future__ import annotations

import math

import numpy as np
import torch

from pellucid import measure
from pellucid.attribution.reading import doubles
from pellucid.measure.head_scores import PATTERN, Attended, Keys
from pellucid.viewer.container import Array, TraceBlock
from pellucid.viewer.one_text import MOST_SQUARE, OneText

CELLS = 64
"""Rows and columns of a pooled pattern."""

_SCORED = ("previous", "first", "induction", "duplicate")


def patterns(one: OneText) -> dict[str, TraceBlock]:
    """The patterns, with those of the atlas: whole up to `MOST_SQUARE` tokens, else pooled."""
    if one.n_tokens > MOST_SQUARE:
        return pooled(one)
    queries, keys = np.tril_indices(one.n_tokens)
    coded = _shares(_stacked(one, [_pattern(one, layer)[:, queries, keys] for layer in range(one.ckpts.n_layer)]))
    entries = {f"atlas.blocks.{layer}.{PATTERN}": layer for layer in range(one.ckpts.n_layer)}
    return {"attention.pattern": TraceBlock(coded.data, coded.code, "lower", entries=entries)}


def pooled(one: OneText) -> dict[str, TraceBlock]:
    """The patterns as means over cells, each over the keys that a query can see: [L, H, 64, 64]."""
    edges = np.linspace(0, one.n_tokens, CELLS + 1).round().astype(int)
    starts = edges[:-1]
    seen = np.tril(np.ones((one.n_tokens, one.n_tokens)))
    counts = np.add.reduceat(np.add.reduceat(seen, starts, 0), starts, 1)
    means = [
        np.add.reduceat(np.add.reduceat(_pattern(one, layer) * seen, starts, 1), starts, 2) / counts.clip(1)
        for layer in range(one.ckpts.n_layer)
    ]
    coded = _shares(np.stack(means))
    return {"attention.pooled": TraceBlock(coded.data, {**(coded.code or {}), "edges": edges.tolist()})}


def _stacked(one: OneText, layers: list[Array]) -> Array:
    """[L, H, lower], also of a model without blocks."""
    count = one.n_tokens * (one.n_tokens + 1) // 2
    return np.stack(layers) if layers else np.zeros((0, one.ckpts.schema.sizes["head"], count))


def _pattern(one: OneText, layer: int) -> Array:
    return doubles(one.ckpts[f"blocks.{layer}.{PATTERN}"])[0].numpy()


def _shares(values: Array) -> TraceBlock:
    """Values from 0 to 1 by their roots, so that small ones stay apart; edited ones as they are spread."""
    if values.size and (values.min() < 0 or values.max() > 1 + 1e-6):
        return in_bytes(values)
    return TraceBlock(np.rint(255 * np.sqrt(values.clip(0, 1))).astype("<u1"), {"kind": "sqrt"})


def in_bytes(values: Array) -> TraceBlock:
    """Values in bytes, from the least to the greatest in equal steps."""
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    share = (values - low) / ((high - low) or 1.0)
    return TraceBlock(np.rint(255 * share).astype("<u1"), {"kind": "linear", "low": low, "high": high})


def queries_and_keys(one: OneText) -> dict[str, TraceBlock]:
    """Queries and keys as their product is taken: after rotation, if the family rotates."""
    turned = "rot_" if "attn.ckpt_rot_q" in one.ckpts.schema.in_blocks else ""
    found = {name: one.ckpts.stack(f"attn.ckpt_{turned}{name}")[:, 0] for name in ("q", "k")}
    return {f"attention.{name}": TraceBlock(value.float().cpu().numpy()) for name, value in found.items()}


def scales(one: OneText) -> list[float]:
    """What each layer multiplies the products of queries and keys by."""
    return [float(block.attn.scale) for block in one.model.blocks]  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType, reportUnknownMemberType] (a Tensor or Module to torch)


def value_norms(one: OneText) -> dict[str, TraceBlock]:
    """‖v W_O‖ of each source token: how long what a head moves is, before the pattern weighs it."""
    found: list[torch.Tensor] = []
    for layer in range(one.ckpts.n_layer):
        W_O = doubles(one.model.parameter(f"blocks.{layer}.attn.W_O"))
        v = doubles(one.ckpts[f"blocks.{layer}.attn.ckpt_v"])[0]
        v = v.repeat_interleave(len(W_O) // v.size(1), 1)  # heads of values that queries share
        found.append(torch.stack([(v[:, head] @ W_O[head]).norm(dim=-1) for head in range(len(W_O))]))
    return {"attention.value_norm": TraceBlock(torch.stack(found).float().numpy())}


def measures(one: OneText) -> dict[str, TraceBlock]:
    """What heads do on this text, as `pellucid.heads.scores` says it, and the entropy of their patterns in bits."""
    names, sizes = [*_SCORED, "entropy"], one.ckpts.schema.sizes
    found = np.full((len(names), sizes["layer"], sizes["head"]), np.nan, "<f4")
    if one.n_tokens > 1 and sizes["layer"]:
        attended, keys = Attended(), Keys(one.ckpts)
        attended.add(one.ckpts, {name: getattr(keys, name) for name in _SCORED})
        for row, name in enumerate(_SCORED):
            found[row] = attended.array(name).values
        found[-1] = measure.entropy(one.ckpts).values / math.log(2)
    return {"attention.measures": TraceBlock(found, about={"of": names})}
