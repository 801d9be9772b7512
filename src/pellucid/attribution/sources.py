"""Attribution to source tokens: what each head adds, split by the token that it attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid import aliases
from pellucid.attribution.reading import LOGITS, Contribution, doubles, labelled, opened, reading, require_captured
from pellucid.errors import InputError, shown
from pellucid.measure.labelled import find
from pellucid.network import Network
from pellucid.run.activations import ActivationCkpts

if TYPE_CHECKING:
    import xarray

_PATTERN, _V, _Z = "attn.ckpt_pattern", "attn.ckpt_v", "attn.ckpt_z"


def sources(
    ckpts: ActivationCkpts, target: Any, *, at: aliases.Name = LOGITS, model: Network | None = None
) -> xarray.DataArray:
    """Compute what each head adds to a logit or direction by way of each token that it attends to.

    A head's output at query q is the sum over keys k of pattern[q, k] v[k] W_O, and each term is attributed as
    `direct` attributes the whole.

    Args:
        ckpts: A run that captured whole patterns, values and the last point of the stream; the error says what is
            missing.
        target, at, model: As for `direct`.

    Returns:
        [component, batch, pos, key]; `pos` is where the head writes, `key` the token that it reads. The sum over `key`
        is the head's entry in `direct(..., by="head")`. Coordinates are those of `direct`. Pads are NaN, and so are
        keys that the query cannot see.

    Raises:
        UnknownNameError: A checkpoint that is needed was not captured.
        InputError: As for `direct`; or some positions or heads alone were kept, or `attn.ckpt_z` was edited.
        NumericsError: A number is not finite.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time")
        >>> pl.attribution.sources(ckpts, 300).sizes
        Frozen({'component': 16, 'batch': 1, 'pos': 4, 'key': 4})
    """
    by = "attribution.sources"
    maker, place = opened(ckpts, model, at, by)
    layers = _layers_before(place.stream, len(maker.schema.blocks))
    if not layers:
        raise InputError(
            f"{by}: no head writes into {place.at!r}, which comes before the first of them.",
            code="no-head-before",
            remedy="Give a later place: at='blocks.0.resid_post' or one behind it.",
        )
    names = [f"blocks.{layer}.{kind}" for layer in layers for kind in (_PATTERN, _V)]
    require_captured(ckpts, [place.stream, *names], by)
    if ckpts.part.pos is not None or ckpts.part.heads is not None:
        raise InputError(
            f"{by}: some positions or heads alone were kept of this run, expected all.",
            code="attribution-of-some-heads",
            remedy="Capture without pos= and heads=, and select from the result.",
        )
    edited = sorted({f"blocks.{layer}.{_Z}" for layer in layers} & (ckpts.edited or frozenset()))
    if edited:
        raise InputError(
            f"{by}: {edited[0]!r} was edited, so it is no longer the sum over the keys of pattern and values.",
            code="edited-behind-the-stream",
            remedy="Edit attn.ckpt_pattern or attn.ckpt_v instead, or attribute a run without this edit.",
        )
    read = reading(maker, ckpts, target, place, by)
    parts = [_by_key(maker, ckpts, read.weights, layer) for layer in layers]
    seen = find(ckpts, f"blocks.{layers[0]}.{_PATTERN}").real
    assert seen is not None
    return labelled(parts, ckpts, place, seen[:, 0], by="source", target=shown(target))


def _layers_before(stream: str, n_layer: int) -> list[int]:
    """The blocks whose heads have written into the stream at one of its points."""
    _, block, kind = stream.split(".")
    return list(range(min(int(block) + (kind != "resid_pre"), n_layer)))


def _by_key(model: Network, ckpts: ActivationCkpts, weights: Tensor, layer: int) -> Contribution:
    """What the heads of one block add, [head, B, Pq, Pk]."""
    pattern = doubles(ckpts[f"blocks.{layer}.{_PATTERN}"])
    values = doubles(ckpts[f"blocks.{layer}.{_V}"])
    values = values.repeat_interleave(pattern.size(1) // values.size(2), 2)  # heads of values that queries share
    through = torch.einsum("bpd,hkd->bphk", weights, doubles(model.parameter(f"blocks.{layer}.attn.W_O")))
    added = (pattern * torch.einsum("bqhk,bphk->bhqp", through, values)).transpose(0, 1)
    return Contribution([f"blocks.{layer}.attn[{head}]" for head in range(len(added))], layer, added)
