"""Vectors as points: their first two principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pellucid.errors import InputError, ShapeError, shown
from pellucid.html.listing import counted
from pellucid.plot.canvas import (
    LINE,
    canvas,
    colour_bar,
    label_of,
    longest,
    place_of,
    remember,
    say_what,
)
from pellucid.plot.inputs import Numbers, as_array, as_numbers, labelled, quantity, sizes, texts_of
from pellucid.plot.layers import RASTER
from pellucid.plot.themes import COLUMN, SMALL, Theme, pandas, xarray
from pellucid.schema import NEURONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from xarray import DataArray

POINTS_TRIED = 1000
"""How many points may get a label; if there are more, those farthest from the middle."""

SIDES = ((1, 0, "left", "center"), (-1, 0, "right", "center"), (0, 1, "center", "bottom"), (0, -1, "center", "top"))
"""Where a label may stand beside its point: the direction, and how the text is aligned."""


def scatter(
    vectors: Any,
    *,
    tokens: Sequence[str] | None = None,
    colour: Any = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw vectors as points: their first two principal components, with the share of the variance that each explains.

    The components are exact, from a singular value decomposition of the centred vectors in float64 (Pearson 1901,
    doi:10.1080/14786440109462720); both axes have one scale. Tokens are written beside as many points as there is room
    for, first those farthest from the middle.

    Args:
        vectors: A labelled array, such as `pl.measure.values(ckpts, "blocks.2.resid_post")`, whose vectors lie along
            d_model, d_mlp or d_head, else along its last axis; the vectors of all other axes are drawn, pads left
            out. Or numbers [n, d], such as `model.embed.W_E`.
        tokens: A string for each vector, if the array does not bring its own.
        colour: The name of a coordinate of numbers, such as "layer"; or a number for each vector, labelled or not, such
            as `pl.measure.norms(...)`. If None, the position in the text, if it is known.
        title: What the figure shows; what the array says if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with a row for each vector: token, if known; pc1 and pc2; and what
        it is coloured by. Its `attrs["explained"]` are the two shares.

    Raises:
        ShapeError: If these are no vectors, or there is another number of tokens or colours.
        InputError: If a value is infinite, no vector is left, or there is no such coordinate.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Lily had a red ball and a red hat.", names="blocks.3.resid_post")
        >>> ax = pl.plot.scatter(pl.measure.values(ckpts, "blocks.3.resid_post"))
        >>> pl.plot.data(ax).columns.tolist()
        ['token', 'position', 'pc1', 'pc2']
    """
    array, others = _read(vectors, tokens)
    table = _table(array, *_colour_of(array, others, colour))
    places, name = table[["pc1", "pc2"]].to_numpy(), table.attrs["colour"]
    with canvas(ax, (COLUMN, 3.0)) as (axes, look):
        size = float(np.clip(60 / len(table) ** 0.5, 1.2, 4.0))
        style: dict[str, Any] = {"s": size**2, "linewidths": 0, "rasterized": len(table) > RASTER}
        if name:
            drawn = axes.scatter(*places.T, c=table[name], cmap=_map(look), **style)
            bar = colour_bar(axes, drawn, table.attrs["units"])
            if float(table[name].min()) == float(table[name].max()):
                bar.set_ticks([table[name].iloc[0]])
        else:
            axes.scatter(*places.T, color=look.marks[0], **style)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.12)
        for side, number, share in zip((axes.xaxis, axes.yaxis), (1, 2), table.attrs["explained"], strict=True):
            side.set_label_text(f"component {number}: {share:.1%} of the variance")
        labelled_points = _write_tokens(axes, look, table, new=ax is None) if "token" in table else 0
        count = counted(len(table), "vector")
        some = f"{labelled_points:,} labelled" if 0 < labelled_points < len(table) else ""
        what = quantity(array) if array.name else ""
        say_what(axes, what, place_of(array), count, some, title=title)
        return remember(axes, table)


def principal_components(vectors: Numbers) -> tuple[Numbers, tuple[float, float]]:
    """Return the first two components of each vector, [n, 2], and the shares of the variance that they explain.

    Each points to where its largest weight is positive, since the sign of a component has no meaning.
    """
    centred = vectors - vectors.mean(0)
    narrow = np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred  # of the same spectrum
    _, strengths, directions = np.linalg.svd(narrow, full_matrices=False)
    first = np.zeros((2, vectors.shape[1]))
    first[: len(directions)] = directions[:2]
    first *= np.sign(np.take_along_axis(first, np.abs(first).argmax(1)[:, None], 1))
    everything = float((strengths**2).sum()) or 1.0
    shares = [float(strength) ** 2 / everything for strength in [*strengths, 0.0, 0.0][:2]]
    return centred @ first.T, (shares[0], shares[1])


def _read(given: Any, strings: Sequence[str] | None) -> tuple[DataArray, list[Any]]:
    """The vectors (point, along), in float64, without pads, with their coordinates; and the axes that points had."""
    where = "plot.scatter"
    array = as_array(where, given, ("vector", "along"))
    if array.ndim < 2:
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected vectors.",
            code="vector-axes",
            remedy="Pass vectors, such as pl.measure.values(ckpts, 'blocks.2.resid_post') or model.embed.W_E.",
        )
    along = next((str(axis) for axis in NEURONS if axis in array.dims), str(array.dims[-1]))
    others = [dim for dim in array.dims if dim != along]
    found = labelled(where, array).transpose(*others, along)
    if strings is not None:
        found = _with_tokens(where, found, strings, others)
    every = found.stack(point=others, create_index=False).transpose("point", along)
    every = every.isel(point=np.flatnonzero(every.notnull().all(along).values))
    if not every.size:
        raise InputError(
            f"{where}: no vectors in {sizes(array)}, expected at least one.",
            code="nothing-to-draw",
            remedy="Give a text with at least one real token.",
        )
    return every, others


def _with_tokens(where: str, array: DataArray, strings: Sequence[str], others: list[Any]) -> DataArray:
    count = int(np.prod([array.sizes[dim] for dim in others]))
    if isinstance(strings, str) or len(strings) != count:
        given = "a string" if isinstance(strings, str) else f"{len(strings)} tokens"
        raise ShapeError(
            f"{where}: {given} for {count} vectors of {sizes(array)}, expected one for each.",
            code="tokens-length",
            remedy="Pass ckpts.batch.strings[0] for one text, or model.tokenizer.pieces(range(n)) for n embeddings.",
        )
    texts = texts_of(strings).reshape([array.sizes[dim] for dim in others])
    return array.drop_vars("token", errors="ignore").assign_coords(token=(others, texts))


def _colour_of(array: DataArray, others: list[Any], given: Any) -> tuple[str, str, Any]:
    """What the points are coloured by: its name, its name with units, and a number for each; "" for nothing."""
    where = "plot.scatter: colour"
    if given is None:
        known = "position" in array.coords and array["position"].ndim == 1
        return ("position", "position", array["position"].values) if known else ("", "", None)
    if isinstance(given, str):
        numeric = [str(n) for n, c in array.coords.items() if c.ndim == 1 and c.dtype.kind in "iuf"]
        if given not in numeric:
            raise InputError(
                f"{where}={shown(given)}, expected a coordinate of numbers, which are {', '.join(numeric) or 'none'}.",
                code="no-such-coordinate",
                remedy="Give one of these, or a number for each vector.",
            )
        return given, given, array[given].values
    name, units = "colour", ""
    if isinstance(given, xarray().DataArray):
        name, units = quantity(given), str(given.attrs.get("units", "1"))
        known = [dim for dim in others if dim in given.dims]
        numbers = as_numbers(where, given.transpose(..., *known).values).reshape(-1)  # as the vectors stand
        numbers = numbers[~np.isnan(numbers)]
    else:
        numbers = as_numbers(where, given).reshape(-1)
    if len(numbers) != array.sizes["point"] or not np.isfinite(numbers).all():
        raise ShapeError(
            f"{where}= has {len(numbers)} values, expected a finite one for each of {array.sizes['point']} vectors.",
            code="colours-length",
            remedy="Give the measure of the same run, such as pl.measure.norms(ckpts, 'blocks.2.resid_post').",
        )
    return name, f"{name} ({units})" if units not in ("1", "") else name, numbers


def _table(array: DataArray, name: str, units: str, colours: Any) -> Any:
    """A row for each vector."""
    components, explained = principal_components(array.to_numpy())
    table = pandas().DataFrame({"pc1": components[:, 0], "pc2": components[:, 1]})
    if name:
        table.insert(0, name, colours)
    if "token" in array.coords and array["token"].ndim == 1:
        table.insert(0, "token", [str(token) for token in array["token"].values])
    table.attrs.update(explained=explained, colour=name, units=units)
    return table


def _map(look: Theme) -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(look.layer_colours(256))


def _write_tokens(axes: Axes, look: Theme, table: Any, *, new: bool) -> int:
    """Write tokens beside their points as far as none covers another; return how many."""
    from matplotlib.patheffects import withStroke

    places, figure = table[["pc1", "pc2"]].to_numpy(), cast("Figure", axes.get_figure(root=True))
    if new:
        figure.draw_without_rendering()  # a layout makes room for the axes' names, and labels fit what it leaves
    else:
        axes.apply_aspect()
    unit = 0.95 * 72 / figure.dpi  # points to a dot, less what a second line of the title may take
    points, right = unit * axes.transData.transform(places), unit * axes.bbox.x1
    order = np.argsort(-((points - points.mean(0)) ** 2).sum(1), kind="stable")[:POINTS_TRIED]
    taken = np.empty((0, 4))
    for i in order:
        label = label_of(table["token"].iloc[i]).replace("$", r"\$")
        wide, high = longest([label]) / 2 + 1, SMALL * LINE / 2
        for x, y, across, up in SIDES:
            middle = points[i] + (x * (wide + 2), y * (high + 2))
            half = np.array((wide, high))
            box = np.concatenate([middle - half, middle + half])
            apart = (taken[:, :2] > box[2:]).any(1) | (taken[:, 2:] < box[:2]).any(1)
            if label and apart.all() and (x < 1 or box[2] < right):
                taken = np.vstack([taken, box])
                written = axes.annotate(
                    label, places[i], (3 * x, 3 * y), textcoords="offset points", va=up, ha=across, fontsize=SMALL,
                    usetex=False,
                )  # fmt: skip
                written.set_in_layout(False)
                written.set_path_effects([withStroke(linewidth=1.5, foreground=look.paper)])  # to be read on points
                break
    return len(taken)
