"""What the features of a run add to a logit: direct attribution, within the part that an autoencoder stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pellucid.attribution.reading import (
    COMPONENT,
    LOGITS,
    Contribution,
    Reading,
    doubles,
    labelled,
    opened,
    reading,
    require_captured,
)
from pellucid.errors import InputError, shown
from pellucid.family.network import Network
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.run.region import Index, entries
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.splice import captured
from pellucid.schema import STREAM

if TYPE_CHECKING:
    import xarray

_THROUGH = {"attn.ckpt_z": ("attn.W_O", "bpd,hkd->bphk"), "mlp.ckpt_post": ("mlp.W_out", "bpd,md->bpm")}
"""Values that one matrix writes into the stream -> the matrix, and how a reading of the stream is taken back."""


def direct(
    sae: SparseAutoencoder,
    ckpts: ActivationCkpts,
    target: Any,
    *,
    per_unit: bool = False,
    features: Index = None,
    at: aliases.Name = LOGITS,
    model: Network | None = None,
) -> xarray.DataArray:
    """Compute what each feature of a run adds directly to a logit, a difference of logits, or any direction.

    A feature adds its activation times <its decoder direction, the target>, taken back through the last norm with the
    run's own statistics, as `pl.attribution.direct` does for components. With the decoder's bias, the mean that was
    taken off (if one was) and the error, the features sum to what the value itself adds. Computed in float64.

    Args:
        sae: An autoencoder of the stream, of a value that is added to it, or of one that a matrix writes into it
            ("attn.ckpt_z", "mlp.ckpt_post").
        ckpts: A run that captured the autoencoder's place and the last "resid_post" (or the stream before `at`).
        target: A token, a pair of tokens, a list with one for each text, or a direction; see `pl.attribution.direct`.
        per_unit: Return what a feature would add if its activation were one, and nothing but features.
        features: Which features; those that are active anywhere in the run if None.
        at: Where the target is read; see `pl.attribution.direct`.
        model: The model that made the captured values, if they were saved or pickled since.

    Returns:
        [component, batch, pos]: "feature[12]" for each feature, "b_dec", "mean" and
        "error"; the coordinate `index` has the features' numbers, -1 for the others. Pads are NaN.

    Raises:
        UnknownNameError: If a checkpoint that is needed was not captured.
        InputError: If the value is not written into the stream before `at`.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> weights = {"W_enc": torch.eye(256), "W_dec": torch.eye(256), "b_enc": torch.zeros(256)}
        >>> weights["b_dec"] = torch.ones(256)
        >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.1.mlp.ckpt_mlp_out"), weights)
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time")
        >>> parts, whole = pl.sae.direct(sae, ckpts, 300), pl.attribution.direct(ckpts, 300)
        >>> bool(abs(parts.sum("component") - whole.sel(component="blocks.1.mlp")).max() < 1e-10)
        True
    """
    by = "sae.direct"
    maker, place = opened(ckpts, model, at, by)
    name = sae.place(maker.schema)
    require_captured(ckpts, [place.stream, name], by)
    weights = _taken_back(maker, name, reading(maker, ckpts, target, place, by), by)
    own, value = sae.double_copy(), doubles(captured(sae, ckpts)[1])
    if sae.config.head is not None:
        weights = weights[:, :, [sae.config.head]]
    found, _, error = own.split(value)
    _, mean, scale = own.frame(value)
    real = ckpts.batch.mask.cpu()[:, ckpts.columns]
    active = (
        found[real].any(0).nonzero().flatten() if features is None
        else entries(features, sae.n_features, f"{by}: features")
    )  # fmt: skip
    if sae.config.has_heads:
        weights, error = weights.flatten(-2), error.flatten(-2)
    directions = own.W_dec[active]
    if sae.config.rescaled:
        directions = directions / directions.norm(dim=-1, keepdim=True)
    scale = torch.ones(()) if scale is None else scale
    units = (weights @ directions.T * scale).movedim(-1, 0)
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
    parts = [Contribution([f"feature[{i}]" for i in active.tolist()], layer,
                          units if per_unit else units * found[..., active].movedim(-1, 0))]  # fmt: skip
    if not per_unit:
        rest = {"b_dec": own.b_dec * scale, "mean": mean, "error": error}
        parts += [Contribution([n], layer, (v * weights).sum(-1)[None]) for n, v in rest.items() if v is not None]
    array = labelled(parts, ckpts, place, real, by="feature", target=shown(target))
    index = [*active.tolist(), *[-1] * (array.sizes[COMPONENT] - len(active))]
    return array.assign_coords(index=(COMPONENT, index))


def _taken_back(model: Network, name: str, read: Reading, by: str) -> Tensor:
    """[B, P, ...] in the shape of the value: what it is multiplied by to give what it adds."""
    kind, schema = name.split(".", 2)[-1], model.schema
    written = schema[name].unit == STREAM or kind in _THROUGH
    if not written or schema.names.index(name) > schema.names.index(read.place.stream):
        raise InputError(
            f"{by}: {name!r} is not written into {read.place.stream!r}, from which {read.place.at!r} is read.",
            code="sae-not-in-the-stream",
            remedy="Give an autoencoder of the stream or of what is added to it, and a place at= that comes after it.",
        )
    if kind not in _THROUGH:
        return read.weights
    matrix, equation = _THROUGH[kind]
    return torch.einsum(equation, read.weights, doubles(model.parameter(name.removesuffix(kind) + matrix)))
