"""What was found in a corpus: the texts that activate a neuron or a feature most, and how often it is active."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.errors import ShapeError
from pellucid.plot.along_text import draw_tokens
from pellucid.plot.canvas import canvas, model_name, remember, say_what
from pellucid.plot.themes import COLUMN, pandas, xarray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    about = what, model_name(one.attrs), f"{len(kept)} example{'s' * (len(kept) != 1)}"
    return draw_tokens(array, ends, (title,) if title else about, ax)


def densities(table: Any, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how often units are active: of one, its activations; of several, at which share of tokens each is.

    Args:
        table: What `pl.corpus.densities` gave; of one unit by `table.sel(unit=12)`.
        title: What the figure shows; what the table says if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with a row for each bar: its edges and how many tokens, or units,
        lie between them.

    Raises:
        ShapeError: If these are no densities.

    Example:
        >>> import tempfile
        >>> import pellucid as pl
        >>> name, path = "blocks.1.mlp.ckpt_post", tempfile.mkdtemp() + "/acts.zarr"
        >>> store = pl.corpus.capture(pl.load(), ["Once upon a time there was a cat."], name, path)
        >>> ax = pl.plot.densities(pl.corpus.densities(store, name))
        >>> pl.plot.data(ax).columns.tolist()
        ['from', 'to', 'units']
    """
    if not isinstance(table, xarray().Dataset) or "density" not in table:
        raise _not_a_table("plot.densities", "pl.corpus.densities(store, name)")
    counts, edges, name, about = _bars(table)
    drawn = pandas().DataFrame({"from": edges[:-1], "to": edges[1:], name: counts})
    with canvas(ax, (COLUMN, 2.2)) as (axes, look):
        from matplotlib.ticker import MaxNLocator

        axes.stairs(counts, edges, fill=True, color=look.marks[0])
        axes.set_xlabel("activation" if name == "tokens" else "log10 of the share of tokens at which a unit is active")
        axes.set_ylabel(name)
        if name == "tokens":  # most are next to nothing, and a few are looked for
            axes.set_yscale("log")
        elif isinstance(locator := axes.yaxis.get_major_locator(), MaxNLocator):  # another has no such ticks
            locator.set_params(integer=True)
        axes.set_ylim(bottom=0.5 if axes.get_yscale() == "log" else 0)
        say_what(axes, *((title,) if title else about))
        return remember(axes, drawn)


def _bars(table: Any) -> tuple[Any, Any, str, tuple[str, ...]]:
    """How many lie between which edges, of what, and what the figure says."""
    rows, what, model = int(table.attrs["rows"]), str(table.attrs["checkpoint"]), model_name(table.attrs)
    if table["density"].ndim == 0:
        active = f"active at {float(table['density']):.2%} of {rows:,} tokens"
        about = f"unit {int(table.unit)} of {what}", model, active
        return table["histogram"].values, table["edges"].values, "tokens", about
    shares = table["density"].values
    least = -np.log10(rows) if rows > 1 else -1.0
    counts, edges = np.histogram(np.log10(shares[shares > 0]), bins=40, range=(least, 0.0))
    dead = int((shares == 0).sum())
    about = f"{len(shares):,} units of {what}", model, f"{rows:,} tokens", f"{dead:,} active nowhere"
    return counts, edges, "units", about


def _of_one(table: Any) -> Any:
    where = "plot.examples"
    if not isinstance(table, xarray().Dataset) or "passage" not in table or "unit" not in table.coords:
        raise _not_a_table(where, "pl.corpus.examples(store, name, [12])")
    one = table.squeeze("unit") if "unit" in table.dims and table.sizes["unit"] == 1 else table
    if "unit" in one.dims:
        raise ShapeError(
            f"{where}: {one.sizes['unit']} units, expected one.",
            code="corpus-units",
            remedy=f"Choose one: table.sel(unit={int(one.unit.values[0])}).",
        )
    return one


def _not_a_table(where: str, maker: str) -> ShapeError:
    return ShapeError(f"{where}: no such table.", code="corpus-table", remedy=f"Give what {maker} returns.")
