"""Values along a text: one neuron's, those of any kind as the colours of its tokens, and texts that activate a unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import require_whole
from pellucid.errors import InputError, ShapeError
from pellucid.html.listing import counted
from pellucid.measure.labelled import values
from pellucid.plot.canvas import (
    canvas,
    colour_bar,
    extent,
    label_of,
    legend_above,
    longest,
    model_name,
    place_of,
    put_tokens,
    remember,
    say_what,
    wrapped,
)
from pellucid.plot.inputs import (
    as_array,
    labelled,
    quantity,
    require_run,
    require_some,
    require_table,
    sizes,
    texts_of,
)
from pellucid.plot.matrix import colour_limits, readable
from pellucid.plot.themes import COLUMN, LABEL, SMALL, Theme, pandas, xarray
from pellucid.schema import POSITIONS, Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataArray

    from pellucid.run.activations import ActivationCkpts

SHAPES = "so^"
"""A marker for each value before the activation; a gated MLP has two."""

PAD = 0.22
"""Between a token and the edge of its ground, relative to the size of the text."""

NEXT_LINE = 2.0 * LABEL
"""Points from one line of tokens to the next."""

BESIDE = 62.0
"""Points that the colour bar takes of the width of a text."""


def neuron(
    ckpts: ActivationCkpts, layer: int, number: int, *, text: int = 0, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the value of one neuron of an MLP at each token of a text: before the activation and after it.

    Bars are what the neuron gives, markers what it is made of: in a gated MLP both the gate and what is gated.

    Args:
        ckpts: A run that captured the values of the neurons, `names="blocks.2.mlp.*"` for example.
        layer: The block; negative ones count from the end.
        number: The neuron, from 0.
        text: The number of the text.
        title: What the figure shows; neuron, layer, model and number of tokens if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with a row for each token: position, token, and a column for each
        checkpoint, such as `mlp.ckpt_pre` and `mlp.ckpt_post`.

    Raises:
        InputError: If there is no such neuron or text, or a value is not finite.
        UnknownNameError: If the values were not captured.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Lily had a red ball.", names="blocks.1.mlp.*")
        >>> table = pl.plot.data(pl.plot.neuron(ckpts, 1, 7))
        >>> table.columns.tolist(), len(table)
        (['position', 'token', 'mlp.ckpt_pre', 'mlp.ckpt_post'], 6)
    """
    table, meanings, model = _neuron(ckpts, layer, number, text)
    count, (*before, after) = len(table), list(meanings)
    strings = table["token"].tolist()
    with canvas(ax, (COLUMN, (150 + longest(map(label_of, strings))) / 72)) as (axes, look):
        places, slot = np.arange(count), extent(axes)[0] / count
        axes.bar(places, table[after], width=0.8, color=look.marks[0], label=meanings[after])
        for name, shape, colour in zip(before, SHAPES, look.marks[1:], strict=False):
            axes.plot(
                places, table[name], linestyle="none", marker=shape, color=colour, label=meanings[name],
                markersize=float(np.clip(0.5 * slot, 1.2, 4.0)), markerfacecolor="none", markeredgewidth=0.8,
            )  # fmt: skip
        axes.axhline(0, color=look.ink, linewidth=0.6)
        axes.set_xlim(-0.6, count - 0.4)
        put_tokens(axes.xaxis, strings, table["position"].tolist(), [0.0], 1.0)
        axes.set_ylabel("value")
        legend_above(axes)
        where = f"neuron {number} of layer {layer % len(ckpts.schema.blocks)}"
        about = where, model, counted(count, "token")
        say_what(axes, *about, title=title)
        return remember(axes, table)


def _neuron(ckpts: Any, layer: Any, number: Any, text: Any) -> tuple[Any, dict[str, str], str]:
    """A row for each token, what each column is, in the order of computation, and the model."""
    where = "plot.neuron"
    schema = require_run(where, ckpts).schema
    count = len(schema.blocks)
    block = require_whole(f"{where}: layer", layer, at_least=-count, at_most=count - 1) % count
    points = [point for point in schema.blocks[block] if Axis.D_MLP in point.axes]
    row = require_whole(f"{where}: text", text, at_most=len(ckpts.batch) - 1)
    which = require_whole(f"{where}: number", number, at_most=schema.sizes["d_mlp"] - 1)
    arrays = {point.name: values(ckpts, f"blocks.{block}.{point.name}").isel(batch=row) for point in points}
    first = next(iter(arrays.values()))
    real = np.flatnonzero(first.position.values >= 0)
    if not len(real):
        raise InputError(
            f"{where}: text {row} has no tokens at the positions that were kept, expected at least one.",
            code="nothing-to-draw",
            remedy="Give a text with tokens, or keep more positions.",
        )
    columns = {name: array.values[real, which] for name, array in arrays.items()}
    shown = {"position": first.position.values[real], "token": first.token.values[real]}
    meanings = {point.name: point.meaning for point in points}
    return pandas().DataFrame({**shown, **columns}), meanings, model_name(first.attrs)


def tokens(
    array: Any, *, tokens: Sequence[str] | None = None, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw a text, each token on a ground whose colour is its value.

    Colours begin at zero; of values on both sides of zero, they go as far to either side. A token without a value
    (nan) has no ground, and a line end begins a new line.

    Args:
        array: A labelled array of one text, (pos), such as `pl.measure.norms(...).sel(layer=2, batch=0)`; or numbers.
        tokens: A string for each number, if the array does not bring its own.
        title: What the figure shows; what the array says if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled array (pos), pads left out.

    Raises:
        ShapeError: If it has another number of axes, or there is another number of tokens.
        InputError: If a value is infinite, or there is none.

    Example:
        >>> import pellucid as pl
        >>> model, text = pl.load(), "Lily had a red ball."
        >>> logprobs = model.logprobs(text)[0].tolist()  # of each token but the first, in nats
        >>> ax = pl.plot.tokens([float("nan"), *logprobs], tokens=model.tokenize(text).strings[0])
        >>> pl.plot.data(ax).token.values.tolist()
        ['Lily', ' had', ' a', ' red', ' ball', '.']
    """
    found = _one_text(array, tokens)
    about = quantity(found), place_of(found), counted(len(found), "token")
    ends = [str(token).endswith("\n") for token in found.token.values]
    return _draw_tokens(found, ends, about if title is None else (title,), ax)


def examples(table: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the examples of one unit, a line or more for each, strongest first; a token's ground is its activation.

    Args:
        table: What `pl.corpus.examples` gave, of one unit: `table.sel(unit=12)`.
        title: What the figure shows; unit, checkpoint and number of examples if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is the labelled array of all activations (pos), with the coordinates token,
        rank and row.

    Raises:
        ShapeError: If these are no examples of one unit, or there is none.

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> texts = ["Once upon a time there was a cat.", "Tom has a ball."]
        >>> name, path = "blocks.1.mlp.ckpt_post", tempfile.mkdtemp() + "/acts.zarr"
        >>> store = pl.corpus.capture(pl.load(), texts, name, path)
        >>> ax = pl.plot.examples(pl.corpus.examples(store, name, [7], count=1, around=2).sel(unit=7))
        >>> pl.plot.data(ax).sizes["pos"]
        5
    """
    one = _of_one(table)
    there = one["row"].values >= 0
    values, strings = one["passage"].values[there], one["token"].values[there]
    if not np.isfinite(values).any():
        raise ShapeError(
            f"plot.examples: unit {int(one.unit)} is active at no token, expected an example.",
            code="nothing-to-draw",
            remedy="Choose a unit with a density above zero, as pl.corpus.densities tells.",
        )
    ranks, offsets = np.nonzero(~np.isnan(values))
    kept = [int(number) for number in one["row"].values[there]]
    array = xarray().DataArray(
        values[ranks, offsets], dims="pos", name="activation",
        coords={"token": ("pos", strings[ranks, offsets]), "rank": ("pos", ranks),
                "row": ("pos", np.asarray(kept)[ranks] + one.offset.values[offsets])},
    )  # fmt: skip
    ends = [*(ranks[1:] != ranks[:-1]).tolist(), True]
    what = f"unit {int(one.unit)} of {one.attrs['checkpoint']}"
    about = what, model_name(one.attrs), counted(len(kept), "example")
    return _draw_tokens(array, ends, about if title is None else (title,), ax)


def _of_one(table: Any) -> Any:
    where = "plot.examples"
    require_table(where, table, ("passage", "unit"), "pl.corpus.examples(store, name, [12])")
    one = table.squeeze("unit") if "unit" in table.dims and table.sizes["unit"] == 1 else table
    if "unit" in one.dims:
        raise ShapeError(
            f"{where}: {one.sizes['unit']} units, expected one.",
            code="corpus-units",
            remedy=f"Choose one: table.sel(unit={int(one.unit.values[0])}).",
        )
    return one


def _draw_tokens(found: DataArray, ends: Sequence[bool], about: Sequence[str], ax: Axes | None) -> Axes:
    """Draw tokens on grounds of their values."""
    labels = [label_of(str(token)).replace("$", r"\$") for token in found.token.values]
    room = (72 * COLUMN - BESIDE) if ax is None else 0.85 * extent(ax)[0]
    places, lines = _lines(ends, labels, room)
    name = quantity(found)
    above = SMALL * 1.3 * wrapped(about, room).count("\n")
    height = max(lines * NEXT_LINE, longest([_scale(found, name)], LABEL), 48.0)
    with canvas(ax, (COLUMN, (height + above + 22) / 72)) as (axes, look):
        bar = _colours(axes, look, found, name, height if ax is None else None)
        for (x, y), label, value in zip(places, labels, found.to_numpy(), strict=True):
            ground = "none" if np.isnan(value) else bar.to_rgba(value)
            ink = look.ink if np.isnan(value) else readable(look, ground)
            box = {"boxstyle": f"square,pad={PAD}", "facecolor": ground, "edgecolor": "none"}
            written = axes.annotate(
                label, (0, 1), (x, -y), xycoords="axes fraction", textcoords="offset points", va="top", ha="left",
                fontsize=LABEL, color=ink, bbox=box, usetex=False,
            )  # fmt: skip
            written.set_in_layout(False)
        axes.plot(0.5, 0.5, linestyle="none")  # so the axes know that there is something on them
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        say_what(axes, *about, room=room)
        return remember(axes, found)


def _one_text(given: Any, strings: Sequence[str] | None) -> DataArray:
    """The values of one text (pos), with its tokens."""
    where = "plot.tokens"
    array = as_array(where, given, ("pos",))
    single = [dim for dim, size in array.sizes.items() if size == 1]
    if single and len(single) == array.ndim:  # a text of one token, whose positions stay
        single.remove(next((dim for dim in single if dim in POSITIONS), single[-1]))
    array = array.squeeze(single)
    if array.ndim != 1:
        raise ShapeError(
            f"{where}: axes {sizes(array)}, expected the positions of one text.",
            code="text-axes",
            remedy="Choose one entry of each other axis, as in array.sel(layer=2, batch=0).",
        )
    if strings is not None and (isinstance(strings, str) or len(strings) != array.size):
        raise ShapeError(
            f"{where}: {'a string' if isinstance(strings, str) else f'{len(strings)} tokens'} for {array.size} values, "
            "expected one token for each.",
            code="tokens-length",
            remedy="Pass ckpts.batch.strings[row], or model.tokenize(text).strings[0].",
        )
    found = labelled(where, array.rename({array.dims[0]: "pos"}))
    if strings is not None:
        found = found.assign_coords(token=("pos", texts_of(strings)))
    if "token" not in found.coords:
        raise ShapeError(
            f"{where}: {array.size} values without tokens, expected one for each.",
            code="tokens-length",
            remedy="Pass tokens=ckpts.batch.strings[row], or a labelled array that has them.",
        )
    if "position" in found.coords:
        found = found.isel(pos=np.flatnonzero(found.position.values >= 0))
    require_some(where, found, "Give a text in which something was measured.")
    return found


def _lines(ends: Sequence[bool], labels: list[str], room: float) -> tuple[list[tuple[float, float]], int]:
    """Where each token begins, in points from the upper left corner, and how many lines there are."""
    edge = PAD * LABEL
    places: list[tuple[float, float]] = []
    x, line = edge, 0
    for end, label in zip(ends, labels, strict=True):
        width = text_width(label, LABEL) + 2 * edge + 0.5
        if x > edge and x + width > room:
            x, line = edge, line + 1
        places.append((x, edge + line * NEXT_LINE))
        x += width
        if end:
            x, line = edge, line + 1
    return places, line + (x > edge)


@lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """Return how many points a text takes along the line, with what stands free at its ends."""
    from matplotlib.textpath import TextPath

    whole, bars = (TextPath((0, 0), f"|{inside}|", size=size).get_extents().width for inside in (text, ""))
    return float(whole - bars)


def _colours(axes: Axes, look: Theme, found: DataArray, name: str, height: float | None) -> Any:
    """Draw the colour bar, and return what turns a value into a colour."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = colour_limits(found.to_numpy())
    colours = ScalarMappable(Normalize(low, high), look.heat_map(signed=low < 0))
    colour_bar(axes, colours, _scale(found, name), height=height)
    return colours


def _scale(found: DataArray, name: str) -> str:
    """What stands beside the colour bar: the units, or what the values are if they have none."""
    units = str(found.attrs.get("units", "1"))
    return name if units in ("1", "", "probability") else units
