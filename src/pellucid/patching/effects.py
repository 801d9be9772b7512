"""What a sweep says: effects on one scale, how they stand to the spread over texts, and what random changes do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pellucid.aliases import Names
from pellucid.axes import Axis
from pellucid.check import require_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.metrics import Metric
from pellucid.patching.reruns import Rerun
from pellucid.patching.roles import Put, Roles
from pellucid.patching.sweeps import Direction, Texts, patches
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray


def normalized(swept: xarray.DataArray) -> xarray.DataArray:
    """Return a sweep on the scale on which 0 is the corrupted run and 1 the clean one.

    It is (m - m_corrupted) / (m_clean - m_corrupted) (Wang et al. 2022, arXiv:2211.00593). A sweep that keeps its texts
    is put on each text's own scale.

    Args:
        swept: What `sweep` or `path` returned.

    Raises:
        InputError: An array of something else, or a metric that does not tell the two runs apart.

    Example:
        >>> import pellucid as pl
        >>> swept = pl.patching.sweep(
        ...     pl.load(), "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the", "resid_post",
        ...     over=("layer",), metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> round(float(pl.patching.normalized(swept)[-1]), 4)
        1.0
    """
    clean, corrupted = (_plain(swept, side) for side in ("clean", "corrupted"))
    span = clean - corrupted
    if np.any(span == 0):
        raise InputError(
            "normalized: the metric is the same in the clean and in the corrupted run"
            + (f" of text {int(np.argmax(span == 0))}." if span.ndim else "."),
            code="nothing-to-normalize",
            remedy="Choose a metric or texts in which the two runs differ.",
        )
    values = (swept.values - corrupted) / span
    unchanged = float(swept.attrs.get("direction") == "noise")
    return swept.copy(data=values).assign_attrs(units="share of clean - corrupted", unchanged=unchanged)


def effect_sizes(swept: xarray.DataArray) -> xarray.DataArray:
    """Return the mean effect over texts, divided by its standard deviation over texts: Cohen's d of paired samples.

    The effect is what the change does to the metric of the plain run. Around 0.2 is called small, 0.8 large (Cohen
    1988, Statistical Power Analysis for the Behavioral Sciences, section 2.2).

    Args:
        swept: What `sweep`, `path` or `ablate` returned with `per_text=True`, of two texts or more.

    Raises:
        InputError: An array without texts, or of one.

    Example:
        >>> import pellucid as pl
        >>> ablated = pl.patching.ablate(
        ...     pl.load(), ["Once upon a", "There was a little"], "mlp.ckpt_mlp_out", over=("layer",), how="zero",
        ...     metric=pl.metrics.loss(), per_text=True)
        >>> pl.patching.effect_sizes(ablated).sizes
        Frozen({'layer': 4})
    """
    batch = str(Axis.BATCH)
    if batch not in swept.dims or swept.sizes[batch] < 2:
        raise InputError(
            "effect_sizes: an array of two texts or more is needed.",
            code="no-texts",
            remedy="Sweep several texts with per_text=True.",
        )
    attrs, side = swept.attrs, "plain"
    if "direction" in attrs:
        side = "corrupted" if attrs["direction"] == "denoise" else "clean"
    effects = swept - np.asarray(attrs[f"{side}_by_text"])
    return (effects.mean(batch) / effects.std(batch, ddof=1)).assign_attrs(
        attrs, units="standard deviations", unchanged=0.0
    )


def baseline(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    draws: int = 64,
    seed: int = 0,
    direction: Direction = "denoise",
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | None = None,
) -> xarray.DataArray:
    """Measure what changes of no meaning do: directions drawn at random, as long as the patches of a sweep.

    A cell of the sweep in which the two runs differ is drawn, and there each vector of the base run gets a random
    direction added to it, of the length of the difference that the patch makes. What a patch does beyond these, its
    direction does.

    Args:
        model, clean, corrupted, names, over, metric, direction, pos, heads, neurons, align: Those of the sweep.
        draws: How many changes to make.
        seed: Of the draws.

    Returns:
        [draw] in the metric's unit, the mean over texts, with the attributes of `sweep`.

    Raises:
        InputError: As `sweep`, or scores and patterns, which are no vectors.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> drawn = pl.patching.baseline(
        ...     pl.load(), clean, corrupted, "resid_pre", over=("layer", "pos"), draws=8,
        ...     metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> drawn.sizes
        Frozen({'draw': 8})
    """
    draws = require_whole("baseline: draws", draws, at_least=1)
    pair = Texts.of(model, clean, corrupted, direction, align)
    cells = pair.cells(model.schema, names, over, Region(pos, heads, neurons))
    if any(Axis.KEY in model.schema[name].axes for name in cells.names):
        raise InputError(
            f"baseline: {shown(names)} holds scores or patterns, which are no vectors of a space.",
            code="no-such-axis",
            remedy="Choose checkpoints whose last axis is d_model, d_head or d_mlp.",
        )
    runs = pair.run(model, metric, cells.names, cells.names)
    run, random = runs.base, torch.Generator().manual_seed(seed)
    every = [trial for _, trial in patches(cells, runs.source)]
    changing = [trial for trial in every if any(_changes(put, run.values[put.name], model) for put in trial.puts)]
    if not changing:
        raise InputError(
            f"baseline: the two runs have the same {shown(names)}, so that no patch changes anything.",
            code="nothing-to-normalize",
            remedy="Choose checkpoints or texts in which the two runs differ.",
        )
    trials: list[Rerun] = []
    for number in torch.randint(len(changing), (draws,), generator=random).tolist():
        puts = changing[number].puts
        trials.append(Rerun(tuple(_in_a_random_direction(put, run.values[put.name], model, random) for put in puts)))
    found = np.full((draws, len(pair.base)), np.nan)
    for number, value in run.differing(trials):
        found[number] = value.numpy()
    about: dict[str, Any] = {"checkpoint": ", ".join(cells.kinds), "direction": direction, "seed": seed}
    array = need("xarray", "pellucid.patching").DataArray
    return array(found.mean(-1), dims=("draw",), name="baseline", attrs={**about, **runs.about("random directions")})


def _changes(put: Put, base: Tensor, model: CkptedTransformer) -> bool:
    """Whether a patch puts other numbers there than the base run has."""
    patched = base.clone()
    put.write(patched, model.schema[put.name].axes, 0)
    return not torch.equal(patched, base)


def _in_a_random_direction(put: Put, base: Tensor, model: CkptedTransformer, random: torch.Generator) -> Put:
    """The patch of the same place whose difference from the base is as long and has another direction."""
    patched = base.clone()
    put.write(patched, model.schema[put.name].axes, 0)
    difference = (patched - base).double()
    drawn = torch.randn(difference.shape, generator=random, dtype=torch.float64).to(difference.device)
    drawn[difference == 0] = 0.0  # the direction lies among the entries that the patch changes
    lengths = [torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (difference, drawn)]
    scaled = drawn * (lengths[0] / lengths[1].clamp(min=torch.finfo(torch.float64).tiny))
    columns = None if put.columns is None else put.columns.in_place
    return Put(put.name, (base.double() + scaled).to(base.dtype), columns)


def _plain(swept: xarray.DataArray, side: str) -> Any:
    """The metric of a plain run, for each text where the array keeps them."""
    if side not in swept.attrs:
        raise InputError(
            f"normalized: an array without the attribute {side!r}.",
            code="nothing-to-normalize",
            remedy="Give what pl.patching.sweep or pl.patching.path returned.",
        )
    by_text = str(Axis.BATCH) in swept.dims
    return np.asarray(swept.attrs[f"{side}_by_text"] if by_text else swept.attrs[side], dtype=np.float64)
