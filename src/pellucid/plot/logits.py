"""What a logit is made of, and what each block would say."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pellucid.check import require_whole
from pellucid.errors import InputError, ShapeError
from pellucid.html.listing import counted
from pellucid.plot.canvas import (
    canvas,
    colour_bar,
    extent,
    label_of,
    layer_axis,
    longest,
    model_name,
    put_tokens,
    remember,
    say_what,
)
from pellucid.plot.inputs import labelled, require_some, sizes
from pellucid.plot.matrix import write_in_cell
from pellucid.plot.themes import COLUMN, PAGE, SMALL, Theme, pandas, xarray
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

COMPONENT = "component"

SUM = "sum"
"""The name of the last bar."""

BAR_HEIGHT = 0.17
"""Inches from one bar to the next."""

CELL = (30.0, 11.0)
"""Points: the width and height of a cell in which its token is written."""

NARROWEST = 16.0
"""Points: the width of a cell in which a token can be made out."""

AROUND = (64.0, 34.0)
"""Points that the labels and the colour bar of a lens take of its width and height, beside those of the tokens."""


class Lens(Protocol):
    """What each block says, as `pl.lens.logit` gives it."""

    def top(self, n: int = 5) -> DataArray: ...


def attribution(parts: DataArray, *, most: int = 16, ax: Axes | None = None) -> Axes:
    """Draw the parts of a logit as bars, the largest first, and their sum.

    Args:
        parts: What `pl.attribution.direct` gives, at one position of one text: [component].
        most: How many parts have bars of their own; those of the others are one bar, their sum.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table of the bars: component and value.

    Raises:
        ShapeError: If it has other axes.
        InputError: If a value is missing or infinite.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Lily and Tom went to the park. Tom gave a ball to")
        >>> parts = pl.attribution.direct(ckpts, (" Lily", " Tom"), by="head").isel(batch=0, pos=-1)
        >>> table = pl.plot.data(pl.plot.attribution(parts, most=3))
        >>> table.component.tolist()
        ['blocks.2.attn[1]', 'blocks.1.mlp', 'blocks.3.attn[1]', '24 others', 'sum']
    """
    table = _bars(_read_parts(parts), require_whole("plot.attribution: most", most, at_least=1))
    wide = 72 * COLUMN - longest(table[COMPONENT]) if ax is None else None
    places = np.arange(len(table)) + 0.3 * (table[COMPONENT] == SUM).to_numpy()
    with canvas(ax, (COLUMN, 0.55 + BAR_HEIGHT * len(table))) as (axes, look):
        values = table["value"].to_numpy()
        colours = [look.ink if name == SUM else look.marks[value < 0] for name, value in table.to_numpy()]
        bars = axes.barh(places, values, color=colours, height=0.7)
        axes.axvline(0, color=look.ink, linewidth=0.6)
        axes.bar_label(bars, [f"{value:+z.2f}" for value in values], padding=2, fontsize=SMALL)
        # numbers stand beyond the ends of the bars
        room = (72 * COLUMN - longest(table[COMPONENT]) - 24) if ax is None else extent(axes)[0]
        axes.set_xlim(*_limits(values, longest([f"{value:+z.2f}" for value in values]) + 4, room))
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_yticks(places, table[COMPONENT])
        axes.tick_params(axis="y", length=0, labelsize=SMALL)
        axes.spines[["left"]].set_visible(False)
        target = parts.attrs.get("target")
        axes.set_xlabel(f"added to {_target(target)}" if target else "added")
        say_what(axes, "what each part of the model adds", model_name(parts.attrs), _where(parts), room=wide)
        return remember(axes, table)


def _where(parts: DataArray) -> str:
    """Say at which token the parts were taken, if the array knows it."""
    known = all(name in parts.coords and parts[name].size == 1 for name in ("token", "position"))
    return f"at {str(parts.token.item())!r}, position {parts.position.item()}" if known else ""


def _target(target: Any) -> str:
    """What the parts are added to, in which `$` begins no formula: a logit, or the difference of two."""
    try:
        given = ast.literal_eval(str(target))
    except (ValueError, SyntaxError):  # a direction
        given, text = (), str(target)
    else:
        pair = given if isinstance(given, tuple) else (given,)
        text = " - ".join(f"logit {one!r}" for one in pair)
    text = text.replace("$", r"\$")
    return text if len(text) <= 40 else f"{text[:39]}…"


def _read_parts(parts: Any) -> DataArray:
    where = "plot.attribution"
    found = labelled(where, parts)
    found = found.squeeze([dim for dim, size in found.sizes.items() if size == 1 and dim != COMPONENT], drop=True)
    if found.dims != (COMPONENT,):
        raise ShapeError(
            f"{where}: axes {sizes(found)}, expected ({COMPONENT}).",
            code="component-axes",
            remedy="Choose a text and a position: parts.isel(batch=0, pos=-1).",
        )
    if bool(found.isnull().any()):
        raise InputError(
            f"{where}: a part is missing in {sizes(found)}, as it is at pads.",
            code="nothing-to-draw",
            remedy="Choose a position that is a token of the text: parts.isel(batch=0, pos=-1).",
        )
    return found


def _bars(parts: DataArray, most: int) -> Any:
    """A row for each bar: the largest parts, the others together, and the sum."""
    order = abs(parts).argsort().values[::-1]
    kept, others = order[:most], order[most:]
    rows = [(str(parts[COMPONENT].values[i]), float(parts[i])) for i in kept]
    if len(others):
        rows.append((counted(len(others), "other"), float(parts[others].sum())))
    return pandas().DataFrame([*rows, (SUM, float(parts.sum()))], columns=[COMPONENT, "value"])


def _limits(values: Any, text: float, room: float) -> tuple[float, float]:
    """The ends of the axis, at which each number has its points beyond its bar."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    sides = (low < 0) + (high > 0) or 1
    unit = (high - low or 1.0) / max(room - sides * text, 0.3 * room)
    return low - unit * text * (low < 0), (high or 1.0 * (low == 0)) + unit * text * (high > 0)


def lens(read: Lens | DataArray, *, text: int = 0, ax: Axes | None = None) -> Axes:
    """Draw what each block would say next, at every position of a text: its likeliest token, and how likely it is.

    A row is a block, a column a token of the text. A token is written if cells are wide enough.

    Args:
        read: What `pl.lens.logit` or a tuned lens gives, or its `.top(n)`.
        text: The number of the text.
        ax: Axes to draw on; new ones by default, up to a page wide.

    Returns:
        The axes. `pl.plot.data` of them is the array of probabilities [layer, pos], with the coordinate `text`.

    Raises:
        ShapeError: If something else is given.
        InputError: If there is no such text, or none of its tokens was kept.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a", names="resid_post")
        >>> ax = pl.plot.lens(pl.lens.logit(ckpts))
        >>> pl.plot.data(ax).text.values[-1].tolist()
        [' upon', ' a', ' time']
    """
    found = _read_lens(read, text)
    rows, columns = found.shape
    tokens = [str(token) for token in found.token.values]
    below = longest(map(label_of, tokens)) + AROUND[1] + SMALL * 1.3
    width = min(columns * CELL[0], 72 * PAGE - AROUND[0])
    with canvas(ax, ((width + AROUND[0]) / 72, (rows * CELL[1] + below) / 72)) as (axes, look):
        width, height = (width, rows * CELL[1]) if ax is None else extent(axes)
        image = axes.imshow(found.to_numpy(), cmap=look.heat_map(), vmin=0.0, vmax=1.0, aspect="auto")
        layer_axis(axes.yaxis, found.layer.values.tolist())
        put_tokens(axes.xaxis, tokens, found.position.values.tolist(), [0.0], 1.0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if height / rows >= SMALL * 1.3 and width / columns >= NARROWEST:
            _write_tokens(axes, look, found, image, width / columns)
        colour_bar(axes, image, "probability", height=height)
        at = found.attrs["checkpoint"]
        about = f"likeliest next token{f' read from {at}' if at else ''}", model_name(found.attrs)
        say_what(axes, *about, counted(columns, "token"))
        return remember(axes, found)


def _read_lens(read: Any, text: int) -> DataArray:
    """The probability of the likeliest token [layer, pos] of one text."""
    where, layer = "plot.lens", str(Axis.LAYER)
    top: Any = read if isinstance(read, xarray().DataArray) else getattr(read, "top", lambda n: None)(1)
    if not isinstance(top, xarray().DataArray) or not {"top", "pos", "batch"} <= set(top.dims):
        raise ShapeError(
            f"{where}: {type(read).__name__} given, expected what a lens reads, or its .top(n).",
            code="not-a-readout",
            remedy="Pass pl.lens.logit(ckpts).",
        )
    number = require_whole(f"{where}: text", text, at_most=top.sizes["batch"] - 1)
    said = top.isel(top=0, batch=number, drop=True).reset_coords(["logprob", "text"])[["logprob", "text"]]
    if layer not in said.dims:
        said = said.expand_dims(layer) if layer in said.coords else said.expand_dims({layer: [""]})
    said = said.isel(pos=np.flatnonzero(said.position.values >= 0)).transpose(layer, "pos")
    require_some(where, said.logprob, "Choose a text with tokens at the positions that were kept.")
    about = {name: str(top.attrs.get(name, "")) for name in ("checkpoint", "model")}
    return np.exp(said.logprob).rename("probability").assign_coords(text=said.text).assign_attrs(about)


def _write_tokens(axes: Axes, look: Theme, found: DataArray, image: Any, width: float) -> None:
    """Write the token of each cell, as much of it as there are points for."""
    for place, said in np.ndenumerate(found.text.values):
        label = label_of(str(said))
        while len(label) > 1 and longest([label]) > width - 2:
            label = f"{label[:-2]}…"
        write_in_cell(axes, look, image, place, label)
