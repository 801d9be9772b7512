"""Scores of the parts of a model, read off the labelled arrays of sweeps, attributions and edges."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import InputError
from pellucid.patching.paths import MLP_OUT, PART, Z

if TYPE_CHECKING:
    import xarray

Edge = tuple[str, str]
"""Sender and receiver."""

EMBEDDINGS = "embeddings"


def arrays_of(given: Any) -> list[Any]:
    """Labelled arrays that were given; none if something else was."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    xarray = sys.modules.get("xarray")  # where it was not imported, nobody has an array of its
    found = [one for one in several if xarray is not None and isinstance(one, xarray.DataArray)]
    return found if len(found) == len(several) else []


def scored_nodes(array: xarray.DataArray) -> Iterator[tuple[str, float]]:
    """Each node of a sweep, and how far its patch moved the metric."""
    if "component" in array.dims:
        yield from _attributed_nodes(array)
        return
    kind = str(array.attrs.get("checkpoint", ""))
    wanted = {Z: ("layer", "head"), MLP_OUT: ("layer",)}.get(kind)
    if wanted is None or set(array.dims) != set(wanted):
        raise InputError(
            f"circuit: scores of {kind or 'no checkpoint'} over ({', '.join(map(str, array.dims))}), whose nodes are "
            "not known.",
            code="circuit-scores",
            remedy="Sweep 'attn.ckpt_z' over ('layer', 'head'), or 'mlp.ckpt_mlp_out' over ('layer',).",
        )
    for at in np.ndindex(*array.shape):
        place = {str(dim): int(array[dim].values[i]) for dim, i in zip(array.dims, at, strict=True)}
        value = float(array.values[at]) - float(array.attrs.get("unchanged", 0.0))
        if np.isfinite(value):
            yield f"blocks.{place['layer']}." + (f"attn[{place['head']}]" if "head" in place else "mlp"), value


def _attributed_nodes(array: xarray.DataArray) -> Iterator[tuple[str, float]]:
    """Each node of a direct attribution by head, and what it adds on average over texts; biases are no nodes."""
    if array.attrs.get("by") != "head" or not set(array.dims) <= {"component", "batch"}:
        raise InputError(
            f"circuit: an attribution by {array.attrs.get('by')} over ({', '.join(map(str, array.dims))}), whose nodes "
            "are not known.",
            code="circuit-scores",
            remedy="Give pl.attribution.direct(ckpts, token, by='head').isel(pos=-1), one position of each text.",
        )
    values = array.mean("batch") if "batch" in array.dims else array
    found: dict[str, float] = {}
    for name, value in zip(map(str, array["component"].values), values.values.tolist(), strict=True):
        node = EMBEDDINGS if name.endswith("embed") else name
        if node == EMBEDDINGS or PART.fullmatch(node):
            found[node] = found.get(node, 0.0) + value
    yield from found.items()


def scored_edges(array: xarray.DataArray) -> Iterator[tuple[Edge, float]]:
    """Each edge with its score."""
    if set(array.dims) != {"sender", "receiver"}:
        raise InputError(
            f"circuit: scores over ({', '.join(map(str, array.dims))}), expected (sender, receiver).",
            code="circuit-scores",
            remedy="Give what pl.attribution.edges returned.",
        )
    array = array.transpose("sender", "receiver")
    for at in np.argwhere(np.isfinite(array.values)):
        sender, receiver = str(array["sender"].values[at[0]]), str(array["receiver"].values[at[1]])
        yield (sender, receiver), float(array.values[tuple(at)])
