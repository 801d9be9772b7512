"""Values and norms of a run as labelled float64 arrays, with where they come from.

A missing entry (NaN) is a pad, or a key that its query cannot see, and nothing else: a value that is not finite at a
real position is an error that says where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid import aliases
from pellucid._version import __version__
from pellucid.axes import ATTENTION, POSITIONS, Axes, Axis, coordinate
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.measure.captured import Captured, find
from pellucid.run.activations import ActivationCkpts
from pellucid.text.batch import Batch

if TYPE_CHECKING:
    import xarray

Array = NDArray[Any]


def values(ckpts: ActivationCkpts, name: aliases.Name) -> xarray.DataArray:
    """Return a checkpoint's values as a labelled array in float64.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A template over the blocks ("resid_post"), a checkpoint around them ("ckpt_embed"), or one block's
            ("blocks.3.resid_post").

    Returns:
        [(layer,) batch, pos, ...], the axes of the checkpoint. Pads are NaN, in scores and patterns also the keys
        that a query cannot see. Coordinates: the tokens' texts, and `position`, counted from each text's own first
        real token (-1 at pads).

    Raises:
        UnknownNameError: If there is no such checkpoint, or it was not captured.
        InputError: If a value at a real position is not finite.
        MissingExtraError: If xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.resid_post")
        >>> dict(pl.measure.values(ckpts, "resid_post").sizes)
        {'layer': 4, 'batch': 1, 'pos': 4, 'd_model': 256}
    """
    source = find(ckpts, name)
    data = stacked(source, list(source.float64()))
    return labelled(data, dims_of(source, source.axes), source, source.kind, units(source))


def norms(ckpts: ActivationCkpts, name: aliases.Name, *, log: bool = False) -> xarray.DataArray:
    """Return the Euclidean length of a checkpoint's vectors, the root of the sum of squares over its last axis.

    It is computed in float64, whatever the model's dtype.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A template over the blocks ("attn.ckpt_attn_out"), a checkpoint around them ("ln_final.ckpt_normalized"),
            or one block's ("blocks.3.resid_post").
        log: Whether to take the natural logarithm.

    Returns:
        [layer, batch, pos], without `layer` around the blocks and with `head` if the checkpoint has heads; NaN at
        pads. For scores and patterns [layer, batch, head, query], over the keys that a query can see. Coordinates and
        attributes as for `values`.

    Raises:
        UnknownNameError: If there is no such checkpoint, or it was not captured.
        InputError: If a value is not finite, or `log` meets a vector of zeros.
        MissingExtraError: If xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_attn_out")
        >>> norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
        >>> norms.dims, norms.token.values.tolist()
        (('layer', 'batch', 'pos'), [['Once', ' upon', ' a', ' time']])
    """
    source = find(ckpts, name)
    data = stacked(source, [_lengths(source, number, tensor) for number, tensor in enumerate(source.tensors)])
    dims = dims_of(source, source.axes[:-1])
    if not log:
        return labelled(data, dims, source, "norm", units(source))
    if (data == 0).any():
        at = ", ".join(f"{dim} {int(i)}" for dim, i in zip(dims, np.argwhere(data == 0)[0], strict=True))
        raise InputError(
            f"norms of {source.kind}: a vector of zeros at {at}, which has no logarithm.",
            code="log-of-zero",
            remedy="Take the norms without log=True, or leave out what an edit set to zero.",
        )
    return labelled(np.log(data), dims, source, "log_norm", f"log of {units(source)}")


def _lengths(source: Captured, number: int, tensor: Tensor) -> Tensor:
    """Return the lengths of one block's vectors, [B, P, ...]."""
    value, real = tensor.detach().cpu(), source.real
    if real is not None and source.axes == ATTENTION:  # masked scores hold the dtype's minimum, which is no length
        value = value.masked_fill(~real, 0.0)
        real = real.any(-1)
    elif real is not None:
        real = real.squeeze(-1)
    length = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float64)
    source.require_finite(length, number)
    return length if real is None else length.masked_fill(~real, torch.nan)


def labelled(data: Array, dims: tuple[str, ...], source: Captured, name: str, unit: str) -> xarray.DataArray:
    """Return numbers read off a checkpoint, [dims], with coordinates and provenance."""
    array = need("xarray", "pellucid.measure").DataArray
    attrs = {**attributes(source), "units": unit}
    return array(data, dims=dims, coords=coordinates(source, dims), name=name, attrs=attrs)


def stacked(source: Captured, blocks: list[Tensor]) -> Array:
    """Return the blocks' results as one array, with a layer axis if there is to be one."""
    return torch.stack(blocks).numpy() if source.whole else blocks[0].numpy()


def dims_of(source: Captured, axes: Axes) -> tuple[str, ...]:
    """Return the names of the axes, the layer first if there is one."""
    return tuple(str(axis) for axis in ((Axis.LAYER, *axes) if source.whole else axes))


def units(source: Captured) -> str:
    """Return the units of a checkpoint's values, as the schema says them; those of q are "units of q"."""
    schema = source.ckpts.schema
    point = schema.around.get(source.kind) or schema.in_blocks[source.kind]
    return point.unit or f"units of {point.name.rpartition('_')[2]}"


def attributes(source: Captured) -> dict[str, str]:
    """Return the provenance: checkpoint, version, the text's hash, and what the run says of its model."""
    given: Mapping[str, Any] = getattr(source.ckpts, "provenance", {})
    model = {str(key): str(value) for key, value in given.items()}
    single = source.layers is not None and not source.whole
    name = f"blocks.{source.layers[0]}.{source.kind}" if single and source.layers else source.kind
    return {"checkpoint": name, "text": text_hash(source.ckpts.batch), "pellucid": __version__, **model}


def text_hash(batch: Batch) -> str:
    """Return the SHA-256 of the texts' ids, each row preceded by its length; padding changes nothing."""
    digest = hashlib.sha256()
    for row in batch.rows():
        digest.update(np.int64(len(row)).tobytes() + row.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def coordinates(source: Captured, dims: tuple[str, ...]) -> dict[str, Any]:
    """Return labels along the axes that are there: blocks, texts, columns, tokens, positions, heads."""
    coords: dict[str, Any] = {}
    if source.layers is not None:
        coords["layer"] = list(source.layers) if source.whole else source.layers[0]
    if Axis.HEAD in dims:
        coords["head"] = _heads(source)
    if Axis.BATCH not in dims:
        return coords
    coords["batch"] = range(len(source.ckpts.batch))
    tokens = token_table(source.ckpts.batch)
    for axis in (*POSITIONS, Axis.KEY):
        if axis in dims:
            columns = list(range(tokens.shape[1])) if axis == Axis.KEY else source.columns.tolist()
            coords[str(axis)] = columns
            coords[coordinate(axis, "token")] = (["batch", str(axis)], tokens[:, columns])
            positions = source.positions if axis == Axis.KEY else source.position
            coords[coordinate(axis, "position")] = (["batch", str(axis)], positions.numpy())
    return coords


def positions_of(position: xarray.DataArray, *dims: str) -> Array:
    """Return a coordinate of positions along these axes, -1 at pads and where shorter arrays were filled up."""
    return position.transpose(*dims).fillna(-1).values.astype(np.int64)


def require_entries(sizes: Mapping[Any, int], what: str) -> None:
    """Raise `InputError` if an axis has no entry."""
    empty = [dim for dim, size in sizes.items() if not size]
    if empty:
        raise InputError(
            f"{what}: the axis {empty[0]!r} has no entry, expected one or more.",
            code="empty-axis",
            remedy=f"Select at least one entry along {empty[0]!r}.",
        )


def token_table(batch: Batch) -> Array:
    """Return the tokens' texts [B, P], "" at pads; as objects, because numpy's strings lose a token's last NUL."""
    mask = batch.mask.cpu().numpy()
    table = np.full(mask.shape, "", dtype=object)
    for row, real, strings in zip(table, mask, batch.strings, strict=True):
        row[real] = strings
    return table


def _heads(source: Captured) -> list[int]:
    """Return the numbers of the kept heads."""
    kept = source.ckpts.part.heads
    every = range(source.tensors[0].size(source.axes.index(Axis.HEAD)))
    return list(every if kept is None else cast("list[int]", kept))
