"""Parts of a sum as labelled arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pellucid.attribution.reading import ReadingPoint
from pellucid.axes import Axis
from pellucid.errors import NumericsError
from pellucid.extras import need
from pellucid.measure.labelled import find, first_place
from pellucid.run.activations import ActivationCkpts

if TYPE_CHECKING:
    import xarray

COMPONENT = "component"
"""The axis of the parts."""


class Contribution(NamedTuple):
    """Entries of the axis of parts that come from one place."""

    names: list[str]  # one for each entry
    layer: int  # the block; -1 for none
    values: Tensor  # [entries, B, P], perhaps with a further axis of keys


def labelled(
    parts: list[Contribution], ckpts: ActivationCkpts, place: ReadingPoint, real: Tensor, **attrs: str
) -> xarray.DataArray:
    """Return parts as an array [component, batch, pos], or [component, batch, pos, key].

    Parts of one name, such as the halves of a block, become one entry, their sum.
    """
    merged: dict[str, Contribution] = {}
    for part in parts:
        known = merged.get(part.names[0])
        merged[part.names[0]] = part if known is None else part._replace(values=known.values + part.values)
    data = torch.cat([part.values for part in merged.values()])
    names = [name for part in merged.values() for name in part.names]
    wrong = ~data.isfinite() & real
    dims = (COMPONENT, str(Axis.BATCH), str(Axis.POS), str(Axis.KEY))[: data.dim()]
    if bool(wrong.any()):
        at, where = first_place(dims, wrong.numpy())
        raise NumericsError(
            f"attribution: the part of {names[at[0]]} is not finite ({where}).",
            code="attribution-not-finite",
            remedy="Look for weights that are NaN or infinite: model.parameter(name).isfinite().",
        )
    several = [len(part.names) > 1 or part.names[0].endswith("]") for part in merged.values()]
    pairs = [(part, i if many else -1) for part, many in zip(merged.values(), several, strict=True)
             for i in range(len(part.names))]  # fmt: skip
    coords = {
        **ckpts.coordinates(dims[1:]),
        COMPONENT: names,
        "layer": (COMPONENT, [part.layer for part, _ in pairs]),
        "index": (COMPONENT, [index for _, index in pairs]),
    }
    values = data.masked_fill(~real, torch.nan).numpy()
    array = need("xarray", "pellucid.attribution").DataArray(values, dims=dims, coords=coords, name="attribution")
    return array.assign_attrs({**find(ckpts, place.stream).attributes(), "checkpoint": place.at, **attrs})
