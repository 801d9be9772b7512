"""What a sweep says: effects on one scale, and how they stand to the spread over texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import InputError
from pellucid.extras import need

if TYPE_CHECKING:
    import xarray

_BATCH = str(Axis.BATCH)


def normalized(swept: xarray.DataArray) -> xarray.DataArray:
    """Return a sweep on the scale on which 0 is the corrupted run and 1 the clean one.

    It is (m - m_corrupted) / (m_clean - m_corrupted) (Wang et al. 2022, arXiv:2211.00593). In an ablation, 0 is the run
    in which everything that was gone over is ablated at once, and 1 the plain one. An array that keeps its texts is put
    on each text's own scale.

    Args:
        swept: What `sweep`, `path` or `ablate` returned.

    Raises:
        InputError: If the array holds something else, or the metric does not tell the two runs apart.

    Example:
        >>> import pellucid as pl
        >>> swept = pl.patching.sweep(
        ...     pl.load(), "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the", "resid_post",
        ...     over=("layer",), metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> round(float(pl.patching.normalized(swept)[-1]), 4)
        1.0
    """
    by = "normalized"
    sides = ("plain", "ablated") if "how" in _attrs(swept, by) else ("clean", "corrupted")
    one, nothing = (_plain(swept, side, by) for side in sides)
    span = one - nothing
    if np.any(zero := np.asarray(span == 0)):
        text = f" of text {int(swept[_BATCH].values.ravel()[zero.argmax()])}" if _keeps_texts(swept) else ""
        raise InputError(
            f"{by}: the metric is the same in the {sides[0]} and in the {sides[1]} run{text}.",
            code="nothing-to-normalize",
            remedy="Choose a metric or texts in which the two runs differ.",
        )
    values = ((swept - nothing) / span).transpose(*swept.dims).values
    unchanged = float("how" in swept.attrs or swept.attrs.get("direction") == "noise")
    return swept.copy(data=values).assign_attrs(units=f"share of {sides[0]} - {sides[1]}", unchanged=unchanged)


def effect_sizes(swept: xarray.DataArray) -> xarray.DataArray:
    """Return the mean effect over texts, divided by its standard deviation over texts: Cohen's d of paired samples.

    The effect is what the change does to the metric of the plain run. Around 0.2 is called small, 0.8 large (Cohen
    1988, Statistical Power Analysis for the Behavioral Sciences, section 2.2).

    Args:
        swept: What `sweep`, `path` or `ablate` returned with `per_text=True`, of two texts or more.

    Raises:
        InputError: If the array has no texts, or one.

    Example:
        >>> import pellucid as pl
        >>> ablated = pl.patching.ablate(
        ...     pl.load(), ["Once upon a", "There was a little"], "mlp.ckpt_mlp_out", over=("layer",), how="zero",
        ...     metric=pl.metrics.loss(), per_text=True)
        >>> pl.patching.effect_sizes(ablated).sizes
        Frozen({'layer': 4})
    """
    attrs, side = _attrs(swept, "effect_sizes"), "plain"
    if _BATCH not in swept.dims or swept.sizes[_BATCH] < 2:
        raise InputError(
            "effect_sizes: an array of two texts or more is needed.",
            code="no-texts",
            remedy="Sweep several texts with per_text=True.",
        )
    if "direction" in attrs:
        side = "corrupted" if attrs["direction"] == "denoise" else "clean"
    effects = swept - _plain(swept, side, "effect_sizes")
    sizes = effects.mean(_BATCH) / effects.std(_BATCH, ddof=1)
    return sizes.rename(swept.name).assign_attrs(attrs, units="standard deviations", unchanged=0.0)


def _attrs(swept: xarray.DataArray, by: str) -> Mapping[Any, Any]:
    if not isinstance(swept, need("xarray", "pellucid.patching").DataArray):
        raise _no_sweep(f"{by}: {type(swept).__name__} given, expected a labelled array.")
    return swept.attrs


def _keeps_texts(swept: xarray.DataArray) -> bool:
    """Whether an array has its texts apart, or is of one that was taken from such an array."""
    return _BATCH in swept.dims or _BATCH in swept.coords


def _plain(swept: xarray.DataArray, side: str, by: str) -> Any:
    """The metric of a plain run; of each text that is there, along their axis, if the array keeps them."""
    if side not in swept.attrs:
        raise _no_sweep(f"{by}: an array without the attribute {side!r}, which is the metric of a plain run.")
    if not _keeps_texts(swept):
        return swept.attrs[side]
    texts, every = swept[_BATCH], np.asarray(swept.attrs[f"{side}_by_text"], dtype=np.float64)
    return need("xarray", "pellucid.patching").DataArray(every[texts.values], dims=texts.dims)


def _no_sweep(what: str) -> InputError:
    remedy = "Give what pl.patching.sweep, path or ablate returned."
    return InputError(what, code="nothing-to-normalize", remedy=remedy)
