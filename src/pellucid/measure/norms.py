"""How long the vectors are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pellucid import aliases
from pellucid.axes import ATTENTION
from pellucid.errors import InputError
from pellucid.measure.captured import Captured, find
from pellucid.measure.labelled import Measured, dims_of, stacked, units
from pellucid.run.activations import ActivationCkpts

if TYPE_CHECKING:
    import xarray


def norms(ckpts: ActivationCkpts, name: aliases.Name, *, log: bool = False) -> xarray.DataArray:
    """The Euclidean length of a checkpoint's vectors, the square root of the sum of squares over its last axis.

    Computed in float64, whatever the model's dtype.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A template over the blocks ("attn.ckpt_attn_out"), a checkpoint around them ("ln_final.ckpt_normalized"),
            or one block's ("blocks.3.resid_post").
        log: Whether to take the natural logarithm.

    Returns:
        [layer, batch, pos], without `layer` around the blocks and with `head` where the checkpoint has heads; NaN at
        pads. For scores and patterns [layer, batch, head, query], over the keys that a query can see. Coordinates and
        attributes as for `values`.

    Raises:
        UnknownNameError: No such checkpoint, or it was not captured.
        InputError: A value is not finite, or `log` meets a vector of zeros.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time", names="blocks.*.attn.ckpt_attn_out")
        >>> norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
        >>> norms.dims, norms.token.values.tolist()
        (('layer', 'batch', 'pos'), [['Once', ' upon', ' a', ' time']])
    """
    return measured_norms(ckpts, name, log=log).labelled()


def measured_norms(ckpts: ActivationCkpts, name: aliases.Name, *, log: bool) -> Measured:
    """The same, before the labels."""
    source = find(ckpts, name)
    data = stacked(source, [_lengths(source, number, tensor) for number, tensor in enumerate(source.tensors)])
    dims = dims_of(source, source.axes[:-1])
    if not log:
        return Measured(data, dims, source, "norm", units(source))
    if (data == 0).any():
        at = ", ".join(f"{dim} {int(i)}" for dim, i in zip(dims, np.argwhere(data == 0)[0], strict=True))
        raise InputError(
            f"norms of {source.kind}: a vector of zeros at {at}, which has no logarithm.",
            code="log-of-zero",
            remedy="Take the norms without log=True, or leave out what an edit set to zero.",
        )
    return Measured(np.log(data), dims, source, "log_norm", f"log of {units(source)}")


def _lengths(source: Captured, number: int, tensor: Tensor) -> Tensor:
    """[B, P, ...] of one block."""
    value, real = tensor.detach().cpu(), source.real
    if real is not None and source.axes == ATTENTION:  # masked scores hold the dtype's minimum, which is no length
        value = value.masked_fill(~real, 0.0)
        real = real.any(-1)
    elif real is not None:
        real = real.squeeze(-1)
    length = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float64)
    source.require_finite(length, number)
    return length if real is None else length.masked_fill(~real, torch.nan)
