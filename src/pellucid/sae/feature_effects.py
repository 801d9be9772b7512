"""What features do: what each adds directly to a logit, and what a run is without it, or with that of another run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
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
from pellucid.extras import need
from pellucid.family.network import Network
from pellucid.metrics import Metric
from pellucid.names import aliases
from pellucid.patching.measured_runs import (
    UNMEASURED,
    Direction,
    Texts,
    described,
    require_room,
    until_interrupted,
)
from pellucid.patching.reruns import Base, Rerun
from pellucid.patching.roles import Columns, Put
from pellucid.run.activations import ActivationCkpts
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, entries
from pellucid.run.taps import warn_of_dropout
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_files import require_autoencoder, require_fitting
from pellucid.sae.splice import captured, heads_of, own_part
from pellucid.schema import STREAM, Axis
from pellucid.text.batch import Inputs

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
    require_autoencoder(sae, by)
    maker, place = opened(ckpts, model, at, by)
    name = sae.place(maker.schema)
    require_captured(ckpts, [place.stream, name], by)
    weights = own_part(sae, _taken_back(maker, name, reading(maker, ckpts, target, place, by), by))
    own, value = sae.double_copy(), doubles(captured(sae, ckpts)[1])
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
    scale = torch.ones((), device="cpu") if scale is None else scale
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


def ablate(
    sae: SparseAutoencoder,
    model: CkptedTransformer,
    inputs: Inputs,
    *,
    metric: Metric,
    features: Index = None,
    per_text: bool = False,
    max_bytes: int | None = None,
    progress: bool = False,
) -> xarray.DataArray:
    """Set one feature after another to zero, and measure what is left; the error term stays.

    Each entry is the metric of a run with `sae.zero(feature)`. Runs share batches as those of `pl.patching.ablate` do,
    start at the autoencoder's block and at the first token where the feature is active, and a feature that is active
    nowhere is not run at all.

    Args:
        sae: The autoencoder.
        model: What runs.
        inputs: Whose runs are changed.
        metric: What to read off each run; see `pl.metrics`.
        features: Which features; those that are active anywhere in the texts if None.
        per_text: Whether to keep the texts apart.
        max_bytes: The memory that may be taken; what the machine has free if None.
        progress: Whether to draw a bar on stderr, if that is a terminal.

    Returns:
        [feature], or [feature, batch] with `per_text`, in the metric's unit. Attributes: `plain`, the metric of the run
        as it is. Control-C ends it with a warning; what was not measured then is NaN.

    Raises:
        InputError: If features do not exist, or do not fit into memory.
        NumericsError: If the metric is not finite on the plain run.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> weights = {"W_enc": torch.eye(256), "b_enc": torch.zeros(256), "W_dec": torch.eye(256)}
        >>> weights["b_dec"] = torch.zeros(256)
        >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.2.resid_pre", "topk", k=4), weights)
        >>> found = pl.sae.ablate(sae, pl.load(), "Once upon a", metric=pl.metrics.logit(" time"))
        >>> found.dims, bool((found != found.attrs["plain"]).any())
        (('feature',), True)
    """
    require_fitting(sae, model)
    batch, name = model.tokenize(inputs), sae.place(model.schema)
    room = require_room(model, batch, batch, [name], metric, max_bytes)
    warn_of_dropout(model, "sae.ablate")
    with told(UNMEASURED):
        base = Base(model, batch, metric, [name], of="the plain run", max_bytes=room)
    changes = -_features(sae, base.values[name])
    values = _measured(sae, base, name, changes, features, per_text=per_text, progress=progress)
    about = {"checkpoint": name, "plain": float(base.plain.mean()), "plain_by_text": base.plain.tolist(),
             **described(model, metric, base.plain, f"features of {name} set to zero")}  # fmt: skip
    return values.rename("ablate").assign_attrs(about)


def patch(
    sae: SparseAutoencoder,
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    *,
    metric: Metric,
    features: Index = None,
    per_text: bool = False,
    direction: Direction = "denoise",
    max_bytes: int | None = None,
    progress: bool = False,
) -> xarray.DataArray:
    """Put one feature after another of a clean run into a corrupted run, at every token; the error term stays.

    Each entry is the metric of a run in which one feature has the activations of the other run, and everything else of
    the value is its own. Runs share batches as those of `ablate` do.

    Args:
        sae: The autoencoder.
        model: What runs.
        clean: Texts whose features are put in.
        corrupted: As many texts of the same lengths, whose runs are patched.
        metric: What to read off each run; see `pl.metrics`.
        features: Which features; those that differ anywhere if None.
        per_text: Whether to keep the texts apart.
        direction: "denoise" puts clean features into corrupted runs, "noise" corrupted ones into clean runs.
        max_bytes: The memory that may be taken; what the machine has free if None.
        progress: Whether to draw a bar on stderr, if that is a terminal.

    Returns:
        [feature], or [feature, batch] with `per_text`, in the metric's unit. Attributes: `clean` and `corrupted`, the
        metric of the two plain runs. Control-C ends it with a warning; what was not measured then is NaN.

    Raises:
        InputError: If features do not exist, texts have other lengths, or all of it does not fit into memory.
        NumericsError: If the metric is not finite on a plain run.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> weights = {"W_enc": torch.eye(256), "b_enc": torch.zeros(256), "W_dec": torch.eye(256)}
        >>> weights["b_dec"] = torch.zeros(256)
        >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.2.resid_pre", "topk", k=4), weights)
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> found = pl.sae.patch(sae, pl.load(), clean, corrupted, metric=pl.metrics.logit(" ball"))
        >>> found.dims, found.attrs["clean"] > found.attrs["corrupted"]
        (('feature',), True)
    """
    require_fitting(sae, model)
    name = sae.place(model.schema)
    pair = Texts.of(model, clean, corrupted, direction, None)
    pair.require_equal_lengths("sae.patch", "Give texts of as many tokens.")
    runs = pair.run(model, metric, [name], [name], max_bytes=max_bytes)
    changes = _features(sae, runs.source[name]) - _features(sae, runs.base.values[name])
    values = _measured(sae, runs.base, name, changes, features, per_text=per_text, progress=progress)
    title = f"features of {name}, {pair.taken} into {pair.into}"
    about = {"checkpoint": name, "direction": direction, **runs.about, "title": title}
    return values.rename("patch").assign_attrs(about)


def _features(sae: SparseAutoencoder, value: Tensor) -> Tensor:
    """The features [B, P, F] of a checkpoint's whole value."""
    with torch.no_grad():
        return sae.encode(own_part(sae, value))


def _measured(
    sae: SparseAutoencoder, base: Base, name: str, changes: Tensor, features: Index, *, per_text: bool, progress: bool
) -> xarray.DataArray:
    """The metric of each run in which one feature is changed; the base run's if nothing changes.

    `changes` [B, P, F] are what would be added to each feature, not at pads; without `features`, those with a change
    anywhere count.
    """
    changes = changes.masked_fill(~base.batch.mask.to(changes.device)[..., None], 0.0)
    changed = (changes != 0).any(0).any(0)
    chosen = changed.nonzero().flatten() if features is None else entries(features, sae.n_features, "sae: features")
    values = base.plain.numpy()[None].repeat(len(chosen), 0)
    todo = [number for number, feature in enumerate(chosen.tolist()) if bool(changed[feature])]
    values[todo] = np.nan
    runs = _runs(sae, base, name, changes, chosen, todo)
    until_interrupted(runs, len(todo), values.__setitem__, progress=progress)
    dims, coords = [str(Axis.FEATURE)], {str(Axis.FEATURE): chosen.numpy()}
    if per_text:
        dims, coords = [*dims, str(Axis.BATCH)], {**coords, str(Axis.BATCH): np.arange(len(base.batch))}
    array = need("xarray", "pellucid.sae").DataArray
    return array(values if per_text else values.mean(1), dims=dims, coords=coords)


def _runs(
    sae: SparseAutoencoder, base: Base, name: str, changes: Tensor, chosen: Tensor, todo: list[int]
) -> Iterator[tuple[int, Tensor]]:
    """The number and the metric [B] of each run; as many at a time as their values fit beside a shared batch."""
    heads, value = heads_of(sae), own_part(sae, base.values[name])
    at_once = max(1, base.sharing.max_bytes // max(1, 2 * base.values[name].nbytes))
    for first in range(0, len(todo), at_once):
        numbers, trials = todo[first : first + at_once], list[Rerun]()
        for number in numbers:
            which = chosen[number : number + 1].to(changes.device)
            change = changes[..., which]
            rows, columns = (change[..., 0] != 0).cpu().nonzero().unbind(1)
            with torch.no_grad():
                whole = value + sae.moved(value, change, which)
            if heads is not None:
                whole = base.values[name].index_copy(2, torch.tensor(heads, device=whole.device), whole)
            trials.append(Rerun((Put(name, whole, Columns(rows, columns, columns), heads),)))
        for place, measured in base.differing(trials):
            yield numbers[place], measured
