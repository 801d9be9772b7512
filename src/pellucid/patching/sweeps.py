"""Patching swept over a model: the metric after each of many changes, every one in a run of its own; what it costs, and
what it says on one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.html.listing import counted
from pellucid.metrics import Metric
from pellucid.names.aliases import Names
from pellucid.patching.measured_runs import Direction, Texts, kept_bytes, patches, require_room, results
from pellucid.patching.reruns import Rerun, Sharing
from pellucid.patching.roles import Roles
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.schema import Axis
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray

_BATCH = str(Axis.BATCH)


def sweep(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    per_text: bool = False,
    direction: Direction = "denoise",
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | bool | None = None,
    max_bytes: int | None = None,
    progress: bool = False,
) -> xarray.DataArray:
    """Patch one value after another of a clean run into a corrupted run, and measure what each changes.

    Activation patching, or causal tracing (Vig et al. 2020, arXiv:2004.12265; Meng et al. 2022, arXiv:2202.05262). Each
    entry of the result is the metric of a whole run of its own; no run is made twice, and what a patch cannot change is
    not computed again.

    Args:
        model: What runs.
        clean: Texts whose values are put in.
        corrupted: As many texts, whose runs are patched. If lengths are unequal, give `align` or a negative `pos`.
        names: A checkpoint, or a list of them. Without a block, "resid_pre", it is that of every block.
        over: What to go over: some of "layer", "head", "pos" (the query for scores and patterns) and "neuron" (the last
            axis). What is not among them is patched as a whole: with ("layer",), each patch takes every position; with
            (), there is one patch.
        metric: What to read off each run; see `pellucid.metrics`.
        per_text: Keep one number for each text, along "batch", instead of the mean over texts.
        direction: "denoise" puts clean values into corrupted runs, "noise" corrupted ones into clean runs.
        pos, heads, neurons: What each patch is limited to, and what the sweep goes over.
        align: Which positions belong together, from `pellucid.patching.align`; "pos" then goes over its parts. True for
            what `align` finds by itself.
        max_bytes: The memory that may be taken; what the machine has free if None.
        progress: Whether to draw a bar on stderr, if that is a terminal.

    Returns:
        [checkpoint, *over, batch] in the metric's unit, "checkpoint" for a list of names and "batch" with `per_text`;
        NaN where a combination does not exist. "pos" are columns of the padded batch: a text that has no token in one
        is unchanged there, and counts so in the mean. Attributes: `clean` and `corrupted`, the metric of the two plain
        runs. Control-C ends it with a warning; what was not measured then is NaN. Before the first patch it is a
        `KeyboardInterrupt`, which says that nothing was measured.

    Raises:
        InputError: If the checkpoint has no such axes, texts do not fit, or the sweep does not fit into memory.
        NumericsError: If the metric is not finite on a plain run.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> metric = pl.metrics.logit_difference(" ball", " cat")
        >>> swept = pl.patching.sweep(pl.load(), clean, corrupted, "resid_pre", over=("layer", "pos"), metric=metric)
        >>> swept.sizes, swept.attrs["clean"] > swept.attrs["corrupted"]
        (Frozen({'layer': 4, 'pos': 8}), True)
    """
    pair = Texts.of(model, clean, corrupted, direction, align)
    cells = pair.cells(model.schema, names, over, Region(pos, heads, neurons))
    runs = pair.run(model, metric, cells.names, max_bytes=max_bytes, begin=cells.begin)
    found = results(runs.base, cells, patches(cells, runs.source), progress=progress)
    title = f"{', '.join(cells.kinds)}, {pair.taken} into {pair.into}"
    about = {"checkpoint": ", ".join(cells.kinds), "direction": direction, **runs.about, "title": title}
    return found.labelled("sweep", about, per_text=per_text)


@dataclass(frozen=True)
class SweepCost:
    """What a sweep would take.

    Attributes:
        runs: Edited runs.
        batches: Batches that they share.
        kept: Bytes that are kept throughout: the source's values, the base run's, and logits of whole texts.
        batch: Bytes that the values of a batch take at most.
    """

    runs: int
    batches: int
    kept: int
    batch: int

    @property
    def nbytes(self) -> int:
        """Bytes beside the model, at most."""
        return self.kept + self.batch

    def __int__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        return f"{counted(self.runs, 'run')} in {counted(self.batches, 'batch')}, at most {self.nbytes:,} bytes"


def estimate_sweep(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    direction: Direction = "denoise",
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | bool | None = None,
    max_bytes: int | None = None,
) -> SweepCost:
    """Count the runs, batches and bytes of a sweep; runs nothing. Arguments and errors are those of `sweep`.

    Example:
        >>> import pellucid as pl
        >>> pl.patching.estimate_sweep(
        ...     pl.load(), "Tom has a ball.", "Tom has a cat.", "resid_pre", over=("layer", "pos"),
        ...     metric=pl.metrics.logit(" He"))
        20 runs in 1 batch, at most 2,663,045 bytes
    """
    pair = Texts.of(model, clean, corrupted, direction, align)
    cells = pair.cells(model.schema, names, over, Region(pos, heads, neurons))
    room = require_room(model, pair.base, pair.source, cells.names, metric, max_bytes, cells.begin)
    trials = [Rerun(cell.puts(dict.fromkeys(cell.names, torch.empty(0, device="cpu")))) for cell in cells]
    sharing = Sharing.of(model, pair.base, metric, room)
    batches = list(sharing.batches(trials))
    most = max((sharing.bytes_of(len(group), min(trials[i].begin for i in group)) for group in batches), default=0)
    kept = kept_bytes(model, pair.base, pair.source, cells.names) + sharing.whole_logits
    return SweepCost(len(trials), len(batches), kept, most)


_SHARE, _DEVIATIONS = "share of", "standard deviations"
"""The units of arrays that are no more in those of their metric."""


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
    values = ((_metric(swept, by) - nothing) / span).transpose(*swept.dims).values
    unchanged = float("how" in swept.attrs or swept.attrs.get("direction") == "noise")
    return swept.copy(data=values).assign_attrs(units=f"{_SHARE} {sides[0]} - {sides[1]}", unchanged=unchanged)


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
    attrs = _attrs(swept, "effect_sizes")
    if _BATCH not in swept.dims or swept.sizes[_BATCH] < 2:
        raise InputError(
            "effect_sizes: an array of two texts or more is needed.",
            code="no-texts",
            remedy="Sweep several texts with per_text=True.",
        )
    side = _base(attrs)
    effects = _metric(swept, "effect_sizes") - _plain(swept, side, "effect_sizes")
    sizes = effects.mean(_BATCH) / effects.std(_BATCH, ddof=1)
    return sizes.rename(swept.name).assign_attrs(attrs, units=_DEVIATIONS, unchanged=0.0)


def _base(attrs: Mapping[Any, Any]) -> str:
    """The plain run that is changed."""
    return {"denoise": "corrupted", "noise": "clean"}.get(str(attrs.get("direction")), "plain")


def _metric(swept: xarray.DataArray, by: str) -> xarray.DataArray:
    """The metric after each change; an estimate by gradients, which takes steps, is what the change adds to it."""
    return swept + _plain(swept, _base(swept.attrs), by) if "steps" in swept.attrs else swept


def _attrs(swept: xarray.DataArray, by: str) -> Mapping[Any, Any]:
    if not isinstance(swept, need("xarray", "pellucid.patching").DataArray):
        raise _no_sweep(f"{by}: {type(swept).__name__} given, expected a labelled array.")
    units = str(swept.attrs.get("units"))
    if units.startswith(_SHARE) or units == _DEVIATIONS:
        raise _no_sweep(f"{by}: an array in {units}, expected one in the units of its metric.")
    return swept.attrs


def _keeps_texts(swept: xarray.DataArray) -> bool:
    """Whether an array has its texts apart, or is of one that was taken from such an array."""
    return _BATCH in swept.dims or _BATCH in swept.coords


def _plain(swept: xarray.DataArray, side: str, by: str) -> Any:
    """The metric of a plain run; of each text that is there, along their axis, if the array keeps them."""
    kept = f"{side}_by_text" if _keeps_texts(swept) else side
    if kept not in swept.attrs:
        raise _no_sweep(f"{by}: an array without the attribute {kept!r}, which is the metric of a plain run.")
    if kept == side:
        return swept.attrs[side]
    every = np.atleast_1d(np.asarray(swept.attrs[kept], dtype=np.float64))  # netCDF keeps a list of one as a number
    texts = swept[_BATCH]
    if not _are_places(texts, len(every), labelled=_BATCH in swept.coords):
        given, own = shown(texts.values.tolist()), counted(len(every), "text")
        raise _no_sweep(f"{by}: texts labelled {given}, which are no labels of a sweep of {own}.")
    return need("xarray", "pellucid.patching").DataArray(every[texts.values], dims=texts.dims)


def _are_places(texts: xarray.DataArray, count: int, *, labelled: bool) -> bool:
    """Whether the labels of texts are those of a sweep, of which some may have been selected, each once.

    Joined arrays have some twice, and their texts another plain run. What a caller labelled may be in another order.
    """
    labels = texts.values
    if labels.dtype.kind not in "iu" or bool(((labels < 0) | (labels >= count)).any()):
        return False
    if texts.dims != (_BATCH,):  # stacked: each label stands for several entries, each of which is there once
        return all(index.is_unique for index in texts.indexes.values())
    return len(np.unique(labels)) == labels.size and (labelled or labels.size == count)


def _no_sweep(what: str) -> InputError:
    remedy = "Give what pl.patching.sweep, path or ablate returned; relabel, join or draw texts afterwards."
    return InputError(what, code="nothing-to-normalize", remedy=remedy)
