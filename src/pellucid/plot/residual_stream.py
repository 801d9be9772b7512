"""The residual stream from layer to layer: how its norm grows, and what a normalization does to its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import require_one_of
from pellucid.errors import InputError
from pellucid.measure.distributions import outliers
from pellucid.measure.labelled import find, values
from pellucid.plot.canvas import (
    canvas,
    extent,
    layer_axis,
    legend_above,
    logarithmic,
    model_name,
    remember,
    say_what,
)
from pellucid.plot.inputs import Layers, Numbers, by_layer, is_log, require_run, sizes, without_first
from pellucid.plot.layers import say_how_many
from pellucid.plot.themes import COLUMN, SMALL, Theme, pandas
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

TOKENS_AT_MOST = 60
"""Tokens that are drawn as a line each; more become a band."""

TAIL = 0.005
"""The share of the values of a layer on each side beyond which the axis may end."""

BINS = 120
"""Bins of a density, over the width of the axis."""

SIDES = ("before", "after")

NAMED_AT_MOST = 2
"""Outlier dimensions that are named in a layer."""

ROW = 24.0
"""Points of a row in which a density and a line of text have room."""

TALLEST = 420.0
"""Points: the height of all rows at most."""


def residual_growth(norms: DataArray, *, skip: int = 0, ax: Axes | None = None) -> Axes:
    """Draw how the norm of the residual stream grows over the layers: the tokens, their median, the first token.

    Up to 60 tokens are a thin line each; more are bands, from the 5th to the 95th and from the 25th to the 75th
    percentile. The first token of each text, which GPT-2 gives a norm of its own, is a dashed line (the median over
    the texts) and part of neither bands nor median. The axis is logarithmic unless the values are logarithms.

    Args:
        norms: Labelled norms with axes `layer` and `pos`, such as `pl.measure.norms(ckpts, "resid_post")`, (layer,
            batch, pos); nan at pads.
        skip: First tokens of each text to leave out; with one or more the dashed line is left out too.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the array, nan where a value was left out.

    Raises:
        ShapeError: If it is no labelled array.
        InputError: If a value is infinite or not above zero, or none is left to draw.
        MissingExtraError: If matplotlib or xarray is not installed.

    Example:
        >>> import numpy as np, xarray, pellucid as pl
        >>> values = np.random.default_rng(0).gamma(9, size=(3, 1, 40)).cumsum(0)
        >>> ax = pl.plot.residual_growth(xarray.DataArray(values, dims=("layer", "batch", "pos")))
        >>> ax.get_yscale()
        'log'
    """
    where = "plot.residual_growth"
    layers = by_layer(where, norms, skip)
    logarithms = is_log(layers.array)
    if not logarithms and min(values.min() for values in layers.values) <= 0:
        raise InputError(
            f"{where}: values that are not above zero in {sizes(layers.array)}, expected norms.",
            code="not-norms",
            remedy="Pass norms, or logarithms that say so: array.attrs['units'] = 'log of ...'.",
        )
    first, others = _first_token(where, layers) if skip == 0 else (None, layers)
    with canvas(ax, (COLUMN, 2.3)) as (axes, look):
        if others is not None:
            _draw_tokens(axes, look, others)
        if first is not None:
            medians = first.quantiles([0.5])[0]
            axes.plot(medians, color=look.marks[1], linewidth=1.4, linestyle="--", label="first token", zorder=4)
        if not logarithms:
            logarithmic(axes)
        layer_axis(axes.xaxis, layers.numbers)
        axes.set_ylabel(layers.label)
        axes.grid(axis="y", color=look.soft, linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        legend_above(axes)
        say_how_many(axes, f"{layers.label} from layer to layer", layers)
        return remember(axes, layers.array)


def _first_token(where: str, layers: Layers) -> tuple[Layers | None, Layers | None]:
    """Return the first token of each text, and all others; None for what does not exist."""
    if str(Axis.POS) not in layers.array.dims:
        return None, layers
    others = without_first(where, layers.array, 1)
    first = layers.array.where(others.isnull())
    some = [by_layer(where, array) if bool(array.notnull().any()) else None for array in (first, others)]
    return some[0], some[1]


def _draw_tokens(axes: Axes, look: Theme, layers: Layers) -> None:
    colour, places = look.marks[0], np.arange(len(layers.values))
    if 1 < layers.most <= TOKENS_AT_MOST and len({len(values) for values in layers.values}) == 1:
        lines = axes.plot(places, np.stack(layers.values), color=colour, linewidth=0.5, alpha=0.35)
        lines[0].set_label("a token")
    elif layers.most > 1:
        low, q1, q3, high = layers.quantiles([0.05, 0.25, 0.75, 0.95])
        axes.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0, label="90 %")
        axes.fill_between(places, q1, q3, color=colour, alpha=0.32, linewidth=0, label="50 %")
    medians = layers.quantiles([0.5])[0]
    marker = "o" if len(places) == 1 else ""
    axes.plot(places, medians, color=colour, linewidth=1.8, marker=marker, label="median", zorder=3)


@dataclass(frozen=True)
class Side:
    """The values on one side of the norms, by layer."""

    title: str  # which checkpoint, and in which units
    values: list[Numbers]  # of each layer, pads and skipped tokens left out
    outliers: list[list[int]]  # of each layer, the dimensions that lie apart, the largest first

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis: of no layer more than half a percent of the values lies beyond either."""
        low, high = (np.array([np.quantile(rows, at) for rows in self.values]) for at in (TAIL, 1 - TAIL))
        room = 0.05 * (float(high.max()) - float(low.min())) or 0.5
        return float(low.min()) - room, float(high.max()) + room


def normalization(
    ckpts: ActivationCkpts, norm: str = "ln1", *, skip: int = 0, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the density of the values that enter a norm, and of those that leave it, layer by layer.

    Every density is a histogram, as high as any other: what compares is place, width and shape. The axes are cut where
    at most half a percent of a layer's values lies beyond; the figure prints how many do, and names the dimensions
    that `pl.measure.outliers` finds among the values before.

    Args:
        ckpts: A run that captured what the norm reads (`resid_pre` for "ln1", `resid_mid` or in parallel blocks
            `resid_pre` for "ln2", the last `resid_post` for "ln_final") and its `ckpt_normalized`.
        norm: "ln1", "ln2", or "ln_final".
        skip: First tokens of each text to leave out; GPT-2's first token has values unlike all others.
        title: What the figure shows; norm, model and number of values if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table: layer, side ("before" or "after"), left, right, density, and
        beyond, the share of the layer's values that the axis does not show.

    Raises:
        InputError: If there is no such norm, a value is not finite, or no value is left.
        UnknownNameError: If what it reads or gives was not captured.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time there was a cat.")
        >>> table = pl.plot.data(pl.plot.normalization(ckpts, "ln2", skip=1))
        >>> table.groupby("side").beyond.max().lt(0.02).to_dict()
        {'after': True, 'before': True}
    """
    where = "plot.normalization"
    layers, sides, model = _read(where, ckpts, norm, skip)
    height = float(np.clip(ROW * len(layers), 2 * ROW, TALLEST))
    with canvas(ax, (COLUMN, (height + 80) / 72)) as (axes, look):
        named = (height if ax is None else extent(axes)[1]) / len(layers) >= 0.75 * ROW
        rows: list[Any] = []
        for number, (name, side) in enumerate(zip(SIDES, sides, strict=True)):
            column = axes.inset_axes((0.52 * number, 0, 0.48, 1))
            rows += _draw(column, look, side, look.marks[number], (layers, name, named))
            layer_axis(column.yaxis, layers if not number else [""] * len(layers))
            if number:
                column.set_yticks([])
                column.set_ylabel("")
        axes.plot(0.5, 0.5, linestyle="none")  # so the axes know that there is something on them
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        count = len(sides[0].values[0])
        about = f"{norm}, before and after", model, f"{count:,} values a layer"
        say_what(axes, *about, title=title)
        return remember(axes, pandas().concat(rows, ignore_index=True))


def _read(where: str, ckpts: Any, norm: str, skip: int) -> tuple[list[Any], tuple[Side, Side], str]:
    """The layers, what is before and after the norm in each, and the model."""
    names = require_run(where, ckpts).schema.names
    known = list(dict.fromkeys(name.split(".")[-2] for name in names if name.endswith(".ckpt_normalized")))
    require_one_of(f"{where}: norm", norm, known, code="unknown-norm")
    every = [name for name in names if name.endswith(f"{norm}.ckpt_normalized")]
    chosen = [name for name in every if name in ckpts] or every[:1]
    read = [[n for n in names[: names.index(name)] if n.rpartition(".")[2].startswith("resid_")] for name in chosen]
    layers = [name.split(".")[1] if name.startswith("blocks.") else "" for name in chosen]
    pairs = [(before[-1], after) for before, after in zip(read, chosen, strict=True) if before]
    if not pairs:
        raise InputError(
            f"{where}: {norm} reads no point of the residual stream, expected a model with at least one block.",
            code="nothing-to-draw",
            remedy="Give a run of a model with blocks.",
        )
    sides = [_side(where, ckpts, [pair[number] for pair in pairs], skip) for number in (0, 1)]
    return [int(layer) if layer else "" for layer in layers], (sides[0], sides[1]), model_name(ckpts.provenance)


def _side(where: str, ckpts: ActivationCkpts, names: list[str], skip: int) -> Side:
    arrays = [without_first(where, values(ckpts, name), skip) for name in names]
    rows = [array.values[~np.isnan(array.values)] for array in arrays]
    if not all(len(numbers) for numbers in rows):
        raise InputError(
            f"{where}: no values are left, pads and skip={skip} left out; expected at least one a layer.",
            code="nothing-to-draw",
            remedy="Give a longer text, or a smaller skip=.",
        )
    kind, units = find(ckpts, names[0]).kind, find(ckpts, names[0]).units
    return Side(
        kind if units.startswith("units of") else f"{kind}\n({units})", rows, [_apart(array) for array in arrays]
    )


def _apart(array: DataArray) -> list[int]:
    """The dimensions that lie apart from the others, the largest first."""
    found = outliers(array)
    order = np.argsort(-np.nan_to_num(found.score.values), kind="stable")
    return [int(dimension) for dimension in order if found.outlier.values[dimension]]


def _draw(column: Axes, look: Theme, side: Side, colour: str, about: tuple[Sequence[Any], str, bool]) -> list[Any]:
    """Draw one side, a row for each layer; return a table of each."""
    layers, name, named = about
    low, high = side.limits
    tables: list[Any] = []
    for i, (layer, numbers) in enumerate(zip(layers, side.values, strict=True)):
        counts, edges = np.histogram(numbers, BINS, (low, high))
        beyond = 1 - counts.sum() / len(numbers)
        heights = (0.62 if named else 0.95) * counts / max(counts.max(), 1)
        column.stairs(i + heights, edges, baseline=i, fill=True, color=colour)
        density = counts / len(numbers) / np.diff(edges)
        found = {"layer": layer, "side": name, "left": edges[:-1], "right": edges[1:], "density": density}
        tables.append(pandas().DataFrame({**found, "beyond": beyond}))
        if named:
            words = _words(beyond, side.outliers[i])
            column.annotate(words, (1, i + 0.64), xycoords=("axes fraction", "data"), ha="right", fontsize=SMALL)
    column.set(xlim=(low, high), ylim=(-0.08, len(layers)))
    column.spines[["left"]].set_visible(False)
    column.tick_params(axis="y", length=0)
    most = max(table["beyond"].iloc[0] for table in tables)
    column.set_xlabel(f"{name}: {side.title}\nat most {_share(most)} beyond the axis", fontsize=SMALL)
    return tables


def _words(beyond: float, apart: list[int]) -> str:
    """How much the axis does not show, and the largest of the dimensions that lie apart."""
    named = ", ".join(map(str, apart[:NAMED_AT_MOST])) + " …" * (len(apart) > NAMED_AT_MOST)
    return "; ".join(filter(None, (f"{_share(beyond)} beyond" if beyond else "", f"dim {named}" if named else "")))


def _share(part: float) -> str:
    return "<0.1%" if 0 < part < 0.0005 else f"{part:.1%}"
