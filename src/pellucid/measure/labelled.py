"""Values and norms of a run as labelled float64 arrays, with where they come from.

A missing entry (NaN) is a pad, or a key that its query cannot see, and nothing else: a value that is not finite at a
real position is an error that says where it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid._version import __version__
from pellucid.errors import InputError
from pellucid.extras import need
from pellucid.family import families
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import ATTENTION, Axes, Axis
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
    return source.array(source.float64(), source.axes, source.kind, source.units)


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
    lengths = source.array(source.lengths(), source.axes[:-1], "norm", source.units)
    if not log:
        return lengths
    zeros = lengths.values == 0
    if zeros.any():
        at = first_place(lengths.dims, zeros)[1]
        raise InputError(
            f"norms of {source.kind}: a vector of zeros at {at}, which has no logarithm.",
            code="log-of-zero",
            remedy="Take the norms without log=True, or leave out what an edit set to zero.",
        )
    logs = lengths.copy(data=np.log(lengths.values)).rename("log_norm")
    return logs.assign_attrs(units=f"log of {source.units}")


@dataclass(frozen=True)
class Captured:
    """One kind of checkpoint of a run, block by block."""

    kind: str  # the checkpoint's name without the block, such as "attn.ckpt_attn_out"
    tensors: tuple[Tensor, ...]  # the raw values, one tensor for each block
    layers: tuple[int, ...] | None  # the numbers of the blocks; None if the checkpoint is around them
    whole: bool  # whether the values get a layer axis; the full name of a single block's checkpoint gives none
    axes: Axes  # the axes of each tensor
    ckpts: ActivationCkpts

    @cached_property
    def position(self) -> Tensor:
        """The positions of the kept columns, [B, P], counted from each text's own first real token; -1 at pads."""
        batch = self.ckpts.batch
        return batch.positions.cpu().masked_fill(~batch.mask.cpu(), -1)[:, self.ckpts.columns]

    @cached_property
    def real(self) -> Tensor | None:
        """Which entries are measured, in a shape that broadcasts to a tensor's; None for all of them."""
        mask, columns = self.ckpts.batch.mask.cpu(), self.ckpts.columns
        if self.axes == ATTENTION:
            seen = torch.arange(mask.size(1), device="cpu") <= columns[:, None]
            return seen & mask[:, None, None, :] & mask[:, None, columns, None]
        if not self.ckpts.batch.padded:
            return None
        kept = mask[:, columns]
        return kept.reshape(*kept.shape, *[1] * (len(self.axes) - 2))

    def float64(self) -> Iterator[Tensor]:
        """Yield each block's values in float64 on the CPU, NaN where nothing is measured; see `require_finite`."""
        for number, tensor in enumerate(self.tensors):
            value = tensor.detach().cpu().double()
            self.require_finite(value, number)
            yield value if self.real is None else value.masked_fill(~self.real, torch.nan)

    def require_finite(self, value: Tensor, number: int) -> None:
        """Raise `InputError` if a measured value of this block, or the length of a vector, is not finite."""
        real = self.real
        if real is not None and self.axes == ATTENTION and value.dim() < len(self.axes):
            real = real.any(-1)
        elif real is not None:
            real = real.reshape(*real.shape[: value.dim()])
        wrong = ~value.isfinite() if real is None else ~value.isfinite() & real
        if not bool(wrong.any()):
            return
        at, where = first_place(self.axes[: wrong.dim()], wrong.numpy())
        block = "" if self.layers is None else f"blocks.{self.layers[number]}."
        raise InputError(
            f"{block}{self.kind}: {float(value[at])} at {where}, expected finite numbers.",
            code="not-finite",
            remedy="Find the first checkpoint that is not finite; run in float32 if it overflowed in half precision.",
        )

    def lengths(self) -> Iterator[Tensor]:
        """Yield the lengths of each block's vectors, as `float64` does their values."""
        real = self.real
        masked = real if self.axes == ATTENTION else None  # masked scores hold the dtype's minimum, which is no length
        if real is not None:
            real = real.any(-1) if self.axes == ATTENTION else real.squeeze(-1)
        for number, tensor in enumerate(self.tensors):
            value = tensor.detach().cpu()
            value = value if masked is None else value.masked_fill(~masked, 0.0)
            length = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float64)
            self.require_finite(length, number)
            yield length if real is None else length.masked_fill(~real, torch.nan)

    def array(self, blocks: Iterable[Tensor], axes: Axes, name: str, unit: str) -> xarray.DataArray:
        """Return numbers of each block, [axes], as one array with coordinates and provenance."""
        every = list(blocks)
        data = torch.stack(every).numpy() if self.whole else every[0].numpy()
        dims = tuple(map(str, (Axis.LAYER, *axes) if self.whole else axes))
        coords = self.ckpts.coordinates(dims, of=self.kind)
        if self.layers is not None:
            coords = {str(Axis.LAYER): list(self.layers) if self.whole else self.layers[0], **coords}
        attrs = {**self.attributes(), "units": unit}
        return need("xarray", "pellucid.measure").DataArray(data, dims=dims, coords=coords, name=name, attrs=attrs)

    @property
    def units(self) -> str:
        """The units of the values, as the schema says them; those of q are "units of q"."""
        schema = self.ckpts.schema
        point = schema.around.get(self.kind) or schema.in_blocks[self.kind]
        return point.unit or f"units of {point.name.rpartition('_')[2]}"

    def attributes(self) -> dict[str, str]:
        """Return the provenance: checkpoint, version, the text's hash, and what the run says of its model."""
        model = {str(key): str(value) for key, value in self.ckpts.provenance.items()}
        single = self.layers is not None and not self.whole
        name = f"blocks.{self.layers[0]}.{self.kind}" if single and self.layers else self.kind
        return {"checkpoint": name, "text": text_hash(self.ckpts.batch), "pellucid": __version__, **model}


def find(ckpts: ActivationCkpts, name: aliases.Name) -> Captured:
    """Return one kind of checkpoint of a run.

    The name is a template over the blocks ("attn.ckpt_attn_out"), a checkpoint around them ("ckpt_embed"), or a full
    name or pattern of one kind ("blocks.3.resid_post", "blocks.*.resid_post"); aliases are accepted.
    """
    if not isinstance(ckpts, ActivationCkpts):
        raise InputError(
            f"measure: {type(ckpts).__name__} given, expected the captured values of a run.",
            code="not-ckpts",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned, and the name of a checkpoint.",
        )
    kind, block = aliases.kind_and_block(name, ckpts.schema)
    if block is None:
        return Captured(kind, (ckpts[kind],), None, False, ckpts.schema[kind].axes, ckpts)
    wanted = aliases.selected(f"blocks.{block}.{kind}", ckpts.schema)
    held = [full for full in wanted if full in ckpts] or [wanted[0]]
    tensors = tuple(ckpts[full] for full in held)  # raises UnknownNameError if it was not captured
    layers = tuple(int(full.split(".")[1]) for full in held)
    return Captured(kind, tensors, layers, "*" in block, ckpts.schema.axes[held[0]], ckpts)


def capture_pattern(name: aliases.Name) -> str:
    """Return the pattern of names to capture so `find` finds them."""
    kind, block = families.kind_and_block(name)
    return kind if block is None else f"blocks.{block}.{kind}"


def text_hash(batch: Batch) -> str:
    """Return the SHA-256 of the texts' ids, each row preceded by its length; padding changes nothing."""
    digest = hashlib.sha256()
    for row in batch.rows():
        digest.update(np.int64(len(row)).tobytes() + row.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def first_place(dims: Sequence[Any], wrong: Array) -> tuple[tuple[int, ...], str]:
    """Return the first place at which something is wrong, as an index and in words: "layer 1, batch 0"."""
    at = tuple(map(int, np.argwhere(wrong)[0]))
    return at, ", ".join(f"{dim} {i}" for dim, i in zip(dims, at, strict=True))


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
