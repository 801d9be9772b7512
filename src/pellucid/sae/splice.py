"""An autoencoder in a run: its features read off captured values, and edits of features.

An edit of features adds decode(f') - decode(f) to the value, so the error that the autoencoder makes stays, and a run
of which no feature is changed is the plain run to the last bit. Putting the reconstruction and then the error there
would not be: one rounding more changes the last bits of some entries.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pellucid.attribution.reading import require_all_heads
from pellucid.check import require_whole
from pellucid.extras import need
from pellucid.measure.labelled import Captured, find
from pellucid.run.changes import Site
from pellucid.run.edit import Edit
from pellucid.run.region import Index, Region
from pellucid.schema import Axis

if TYPE_CHECKING:
    import xarray

    from pellucid.run.activations import ActivationCkpts
    from pellucid.sae.autoencoder import SparseAutoencoder

_AXES = (Axis.BATCH, Axis.POS, Axis.FEATURE)


class FeatureEdit(Edit):
    """An edit of features, or of the error that they leave; `SparseAutoencoder` makes them."""

    def __repr__(self) -> str:
        return f"sae.{self.what} at {self.names!r}" + "".join(
            f", {name}={index!r}"
            for name, index in (("pos", self.region.pos), ("rows", self.region.rows))
            if index is not None
        )


def edited(sae: SparseAutoencoder, of_features: Edit) -> Edit:
    """Make an edit of features one of the value."""
    region = replace(of_features.region, neurons=None, heads=heads_of(sae))
    what = f"{of_features.what}({of_features.region.neurons})"
    inner = replace(of_features, region=Region(neurons=of_features.region.neurons))
    return FeatureEdit(what, sae.config.at, partial(_moved, sae, inner), region)


def reconstructed(sae: SparseAutoencoder, pos: Index, rows: Index) -> Edit:
    """The edit of `SparseAutoencoder.reconstruct`."""
    return FeatureEdit(
        "reconstruct()", sae.config.at, partial(_without_error, sae), Region(pos, heads_of(sae), None, rows)
    )


def heads_of(sae: SparseAutoencoder) -> list[int] | None:
    """The head that it reads, as a choice; None for all of a value."""
    return None if sae.config.head is None else [sae.config.head]


def own_part(sae: SparseAutoencoder, value: Tensor) -> Tensor:
    """What it reads of a checkpoint's whole value [B, P, ...]."""
    return value if sae.config.head is None else value[:, :, [sae.config.head]]


def _moved(sae: SparseAutoencoder, inner: Edit, part: Tensor, site: Site) -> Tensor:
    """A part of a value [b, p, ...] with decode(f') - decode(f) added."""
    features = sae.encode(part)
    changed = inner.at(features, Site(site.name, _AXES, site.batch, features, chosen=site.chosen))
    assert changed is not None, "only a text that is run piece by piece has positions in another piece"
    which = torch.as_tensor(inner.region.neurons, device=features.device)
    added = sae.moved(part, changed[..., which] - features[..., which], which)
    return torch.where(added == 0, part, part + added)  # adding 0.0 would make 0.0 of -0.0


def _without_error(sae: SparseAutoencoder, part: Tensor, site: Site) -> Tensor:
    return sae.split(part).reconstruction


def captured(sae: SparseAutoencoder, ckpts: ActivationCkpts) -> tuple[Captured, Tensor]:
    """The autoencoder's place in a run, and the value there [B, P, ...], without a gradient."""
    source = find(ckpts, sae.config.at)
    value = ckpts[sae.place(ckpts.schema)].detach()
    source.require_finite(value.cpu(), 0)
    if sae.config.has_heads:
        require_all_heads(ckpts, f"autoencoder of {sae.config.at!r}")
    return source, own_part(sae, value)


def features(sae: SparseAutoencoder, ckpts: ActivationCkpts) -> xarray.DataArray:
    """`SparseAutoencoder.features`."""
    source, value = captured(sae, ckpts)
    with torch.no_grad():
        found = sae.encode(value).cpu()
    found = found if found.dtype == torch.float64 else found.float()  # numpy has no bfloat16
    found = found if source.real is None else found.masked_fill(~_real(source), torch.nan)
    return source.array([found], _AXES, "features", "activation")


def top(sae: SparseAutoencoder, ckpts: ActivationCkpts, n: int) -> xarray.Dataset:
    """`SparseAutoencoder.top`."""
    n = require_whole("top: n", n, at_least=1, at_most=sae.n_features)
    source, value = captured(sae, ckpts)
    with torch.no_grad():
        found = sae.encode(value).cpu().double()
    if source.real is not None:
        found = found * _real(source)
    columns = found.size(1)
    largest, places = found.flatten(0, 1).max(0)
    chosen = largest.topk(n).indices
    chosen = chosen[largest[chosen] > 0]
    batch, pos = np.divmod(places[chosen].numpy(), columns)
    labels = ckpts.coordinates([str(Axis.BATCH), str(Axis.POS)])
    along = str(Axis.FEATURE)
    made = {
        "activation": (along, largest[chosen].numpy()),
        "token": (along, labels["token"][1][batch, pos]),
        "batch": (along, batch),
        "pos": (along, np.asarray(labels["pos"])[pos]),
        "count": (along, (found > 0).sum((0, 1))[chosen].numpy()),
    }
    attrs = {**source.attributes(), "tokens": int(ckpts.batch.mask.cpu()[:, ckpts.columns].sum())}
    return need("xarray", "pellucid.sae").Dataset(made, coords={along: chosen.numpy()}, attrs=attrs)


def _real(source: Captured) -> Tensor:
    assert source.real is not None
    return source.real.flatten(2)[..., :1]
