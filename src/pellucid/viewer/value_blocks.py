"""Blocks of a trace that hold values as they are: patterns, queries and keys, norms, neurons, distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pellucid import measure
from pellucid.attribution.reading import doubles, place_of
from pellucid.measure.distributions import APART, scores
from pellucid.measure.head_scores import PATTERN, Attended, Keys
from pellucid.schema import ATTENTION, HIDDEN
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


_STREAM = ("resid_pre", "attn.ckpt_attn_out", "resid_mid", "mlp.ckpt_mlp_out", "resid_post")
_BINS = 40
_HELD = 0.995
"""The share of the values that a histogram's range holds: the rest is counted, so outliers do not flatten it."""


def norms(one: OneText) -> dict[str, TraceBlock]:
    """The lengths of the residual stream, and of what attention and MLP add to it."""
    own = one.ckpts.schema.blocks
    kinds = [kind for kind in _STREAM if all(any(p.name == kind for p in points) for points in own)]
    shape = (len(kinds), len(own), one.n_tokens)
    values = [measure.norms(one.ckpts, kind).values[:, 0] for kind in kinds] if own else []
    lengths = np.stack(values).astype("<f4") if values else np.zeros(shape, "<f4")
    return {"norms": TraceBlock(lengths, about={"of": [kind.rpartition(".ckpt_")[2] or kind for kind in kinds]})}


def floats(values: Array, narrow: bool = True) -> TraceBlock:
    """Values in half precision, or in single precision if one is too large for that."""
    fits = narrow and not (np.abs(values[np.isfinite(values)]) > np.finfo("f2").max).any()
    return TraceBlock(values.astype("<f2" if fits else "<f4"))


def neurons(one: OneText, *, coarse: bool) -> dict[str, TraceBlock]:
    """What enters and leaves the activation of each MLP, with the checkpoints of the atlas that these are."""
    before = next(point.name for point in one.ckpts.schema.block if point.axes == HIDDEN)
    found: dict[str, TraceBlock] = {}
    for name, kind in (("pre", before), ("post", "mlp.ckpt_post")):
        values = one.ckpts.stack(kind)[:, 0].float().cpu().numpy()
        block = in_bytes(values) if coarse else floats(values)
        entries = {f"atlas.blocks.{layer}.{kind}": layer for layer in range(len(values))}
        found[f"neurons.{name}"] = TraceBlock(block.data, block.code, about={"of": kind}, entries=entries)
    return found


def atlas(one: OneText, *, coarse: bool) -> dict[str, TraceBlock]:
    """Every checkpoint that is in no other block."""
    elsewhere = {*_names_of_neurons(one), *(n for n in one.ckpts if n.endswith("attn.ckpt_pattern"))}
    lower = np.tril_indices(one.n_tokens)
    found: dict[str, TraceBlock] = {}
    for name, value in one.ckpts.items():
        if name in elsewhere:
            continue
        values, layout = value[0].float().cpu().numpy(), ""
        if one.ckpts.schema[name].axes == ATTENTION:
            values, layout = values[:, lower[0], lower[1]], "lower"
        block = in_bytes(values) if coarse else floats(values)
        found[f"atlas.{name}"] = TraceBlock(block.data, block.code, layout)
    return found


def _names_of_neurons(one: OneText) -> set[str]:
    before = next(point.name for point in one.ckpts.schema.block if point.axes == HIDDEN)
    return {name for name in one.ckpts if name.split(".", 2)[-1] in (before, "mlp.ckpt_post")}


def scatter(one: OneText) -> dict[str, TraceBlock]:
    """The tokens' vectors along the three directions of most variance, at the embeddings and after each block."""
    layers = range(one.ckpts.n_layer)
    names = [one.ckpts.schema.before[0].name, *(["blocks.0.resid_pre"] if layers else []),
             *(f"blocks.{layer}.resid_post" for layer in layers)]  # fmt: skip
    points, shares = zip(*(principal(doubles(one.ckpts[name])[0]) for name in names), strict=True)
    said = {"of": names, "of_variance": [share.tolist() for share in shares]}
    return {"embeddings.pca": TraceBlock(np.stack(points).astype("<f4"), about=said)}


def principal(vectors: torch.Tensor, directions: int = 3) -> tuple[Array, Array]:
    """Principal components of vectors [P, D]: coordinates [P, directions], and the share of the variance of each.

    The sign of a direction is such that its largest coordinate is positive, so a run drawn again is not mirrored.
    Directions that there are not, of fewer tokens, are zeros.
    """
    centred = vectors - vectors.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = min(directions, len(s))
    points, shares = np.zeros((len(vectors), directions)), np.zeros(directions)
    if kept and float(s[0]) > 1e-12 * float(vectors.norm()):  # of equal vectors rounding is left
        found = (u * s)[:, :kept].numpy()
        signs = np.sign(found[np.abs(found).argmax(0), np.arange(kept)])
        points[:, :kept] = found * np.where(signs == 0, 1, signs)
        shares[:kept] = (s.square() / s.square().sum())[:kept].numpy()
    return points, shares


def distributions(one: OneText) -> dict[str, TraceBlock]:
    """Histograms of what enters each norm and of what leaves it, and the dimensions that lie apart."""
    outputs = [name for name in one.ckpts.schema.names if name.endswith(".ckpt_normalized")]
    inputs = [place_of(name, one.ckpts.schema, "view").stream for name in outputs]
    edges, counts, said = [], [], dict[str, Any](of=[], clipped=[], total=[], outliers=[])
    said["of"] = [name.removesuffix(".ckpt_normalized") for name in outputs]
    for names in (inputs, outputs):
        rows = [_histogram(one, name) for name in names]
        edges.append([row[0] for row in rows])
        counts.append([row[1] for row in rows])
        said["total"].append([row[2] for row in rows])
        said["clipped"].append([row[2] - int(row[1].sum()) for row in rows])
        said["outliers"].append([_outliers(one, name) for name in names])
    return {
        "distributions.edges": TraceBlock(np.asarray(edges, "<f4")),
        "distributions.counts": TraceBlock(np.asarray(counts, "<u4"), about=said),
    }


def _histogram(one: OneText, name: str) -> tuple[Array, Array, int]:
    values = doubles(one.ckpts[name]).numpy().ravel()
    low, high = np.quantile(values, [(1 - _HELD) / 2, (1 + _HELD) / 2])
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.linspace(low - 0.5, high + 0.5, _BINS + 1)
    return edges, np.histogram(values, edges)[0], values.size


def _outliers(one: OneText, name: str) -> list[dict[str, float]]:
    values = doubles(one.ckpts[name])[0]
    found, means = scores(values.square().mean(0).sqrt().numpy()) > APART, values.abs().mean(0)
    apart = sorted(np.flatnonzero(found), key=lambda dimension: -float(means[dimension]))
    return [{"dimension": int(dimension), "mean_abs": float(means[dimension])} for dimension in apart[:8]]
