"""What sums a thing up: coefficients of a regression by layer, parameters of each part, how often units are active."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import nn

from pellucid.check import as_number, attribute
from pellucid.errors import InputError, shown
from pellucid.plot.canvas import canvas, extent, layer_axis, legend_above, longest, model_name, remember, say_what
from pellucid.plot.inputs import require_table
from pellucid.plot.themes import COLUMN, LABEL, Colour, Theme, matplotlib, pandas
from pellucid.run.cost import ParameterCount, count_parameters
from pellucid.run.origin import source_of
from pellucid.schema import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "so^Dv<>p"
"""A shape for each term, so colour is not needed to tell them apart."""

NAME_AT_MOST = 16
"""Characters of a component's name beside its bar; longer ones end in an ellipsis."""

INTERCEPT = "const"

USUAL = 0.05
"""The alpha of `conf_int`."""


class Fit(Protocol):
    """What is read of a regression: tables with a row for each layer and a column for each term."""

    @property
    def params(self) -> Any: ...
    @property
    def pvalues(self) -> Any: ...
    @property
    def conf_int(self) -> Any: ...
    def interval(self, level: float) -> Any: ...


def autoregression(
    fit: Fit,
    *,
    terms: Sequence[str] | None = None,
    alpha: float = USUAL,
    pvalues: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the coefficients of a regression by layer: a line and a confidence band for each term.

    A filled marker is significant, p < alpha; a hollow one is not. Each term has a marker and a colour of its own.

    Args:
        fit: What `pl.measure.autoregression` gives, by layer: its `params`, `pvalues`, and `conf_int` or `interval`.
        terms: Which columns of `params`, or which one; all but the intercept by default.
        alpha: From which p-value on a coefficient counts as not significant; bands hold 1 - alpha.
        pvalues: A table to take in place of `fit.pvalues`, such as `fit.corrected("holm")`.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table, a row for each layer and term: layer, term, coefficient, low,
        high, pvalue, significant.

    Raises:
        InputError: If it is no such fit or not by layer alone, a term is unknown, alpha is no probability, or no
            coefficient can be drawn.

    Example:
        >>> import pellucid as pl
        >>> text = "Once upon a time there was a little cat who lived with her mother in a big house."
        >>> _, ckpts = pl.load().run_with_ckpts(text, names="blocks.*.attn.ckpt_attn_out")
        >>> norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
        >>> ax = pl.plot.autoregression(pl.measure.autoregression(norms, lags=2, skip=1))
        >>> pl.plot.data(ax).groupby("term").size().to_dict()
        {'lag1': 4, 'lag2': 4}
    """
    table = _table(fit, terms, alpha, pvalues)
    names = list(dict.fromkeys(table["term"]))
    index = table.columns[0]
    layers = table[index].drop_duplicates().tolist()
    with canvas(ax, (COLUMN, 2.5)) as (axes, look):
        axes.axhline(0, color=look.ink, linewidth=0.6)
        size = float(np.clip(0.3 * extent(axes)[0] / len(layers), 1.6, 4.5))
        many = len(names) > len(look.marks)
        colours = look.layer_colours(len(names)) if many else look.marks
        for i, name in enumerate(names):
            rows = table[table["term"] == name]
            aside = 0.1 * (i - (len(names) - 1) / 2) if len(rows) == 1 else 0.0
            _draw_band(axes, rows, colours[i], aside, min(0.2, 0.6 / len(names)))
            _draw_line(axes, look, rows, aside, (colours[i], MARKERS[i % len(MARKERS)], size))
        layer_axis(axes.xaxis, layers, index)
        axes.set_xlim(-0.5, len(layers) - 0.5)
        axes.set_ylabel("coefficient")
        # of three terms and more, what filled and hollow mean begins a row of its own
        legend_above(axes, _legend(look, names, list(colours), alpha), 3 if len(names) == 3 else 4)
        rows, about = attribute(fit, "nobs"), model_name(attribute(fit, "attrs") or {})
        bands = f"coefficients by {index} with {100 * (1 - alpha):.4g} % bands"
        say_what(axes, bands, about, f"{rows:,} rows a {index}" if rows else "")
        return remember(axes, table)


def _draw_band(axes: Axes, rows: Any, colour: Colour | str, aside: float, alpha: float) -> None:
    places = np.arange(len(rows)) + aside
    axes.fill_between(places, rows["low"], rows["high"], color=colour, alpha=alpha, linewidth=0)
    if len(rows) == 1:  # a band between layers needs two of them
        axes.vlines(places, rows["low"], rows["high"], color=colour, linewidth=0.8)


def _draw_line(axes: Axes, look: Theme, rows: Any, aside: float, drawn_in: tuple[Colour | str, str, float]) -> None:
    colour, marker, size = drawn_in
    places = np.arange(len(rows)) + aside
    axes.plot(places, rows["coefficient"], color=colour, linewidth=0.9)
    for significant, face in ((True, colour), (False, look.paper)):
        chosen = (rows["significant"] == significant).to_numpy()
        axes.plot(
            places[chosen], rows["coefficient"][chosen], marker=marker, markersize=size, linestyle="none", color=colour,
            markerfacecolor=face, markeredgecolor=colour, markeredgewidth=0.8, zorder=3,
        )  # fmt: skip


def _legend(look: Theme, names: list[str], colours: list[Any], alpha: float) -> list[Any]:
    from matplotlib.lines import Line2D

    terms = [
        Line2D(
            [], [], color=colours[i], marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=0.9, label=_spoken(name)
        )
        for i, name in enumerate(names)
    ]
    kinds = [
        Line2D([], [], linestyle="none", marker="o", markersize=4, color=look.ink, markerfacecolor=face, label=label)
        for face, label in ((look.ink, f"p < {alpha:g}"), (look.paper, f"p ≥ {alpha:g}"))
    ]
    return [*terms, *kinds]


def _spoken(term: str) -> str:
    """Return `lag 1` for lag1."""
    return f"lag {term[3:]}" if term.startswith("lag") and term[3:].isdigit() else term


def _table(fit: Fit, terms: Sequence[str] | None, alpha: float, pvalues: Any) -> Any:
    """Return a row for each layer and term."""
    where = "plot.autoregression"
    try:
        params, pvalues = fit.params, fit.pvalues if pvalues is None else pvalues
        known = [str(term) for term in params.columns]
    except AttributeError as error:
        raise InputError(
            f"{where}: {type(fit).__name__} given ({error}), expected tables by layer.",
            code="not-a-fit",
            remedy="Pass what pl.measure.autoregression returns.",
        ) from error
    if list(getattr(pvalues, "columns", [])) != list(params.columns) or not params.index.equals(pvalues.index):
        raise InputError(
            f"{where}: pvalues= is {type(pvalues).__name__}, expected a table like the fit's own, with all its terms.",
            code="not-a-fit",
            remedy="Pass fit.corrected(...) as it is, and name the terms to draw in terms=.",
        )
    share = as_number(alpha)
    if share is None or not 0 < share < 1:
        raise InputError(
            f"{where}: alpha={shown(alpha)}, expected a probability between 0 and 1.",
            code="alpha",
            remedy="Give a probability such as 0.05.",
        )
    if terms is None:
        terms = [term for term in known if term != INTERCEPT]
    chosen = [terms] if isinstance(terms, str) else list(terms)
    unknown = [term for term in chosen if term not in known]
    if unknown or params.index.nlevels > 1 or not bool(params[chosen].notna().to_numpy().any()):
        raise InputError(
            f"{where}: terms {chosen} of a fit of {known} by {list(params.index.names)}, expected some of its terms, "
            "with coefficients that are not all nan, by layer alone.",
            code="no-coefficients",
            remedy="Name the fit's own terms in terms=; of a fit by layer and head choose one head before fitting.",
        )
    by = params.index.name or str(Axis.LAYER)
    bands = fit.conf_int if share == USUAL else fit.interval(1 - share)
    low, high = (bands.xs(side, axis=1, level=1) for side in ("lower", "upper"))
    wide = {"coefficient": params, "low": low, "high": high, "pvalue": pvalues, "significant": pvalues < share}
    long = {name: table[chosen].rename_axis(index=by, columns="term").unstack() for name, table in wide.items()}
    return pandas().DataFrame(long).reset_index()[[by, "term", *wide]]


def parameters(counted: ParameterCount | nn.Module, *, ax: Axes | None = None) -> Axes:
    """Draw how many parameters each component has, with those that are tied hatched: they are held elsewhere.

    Args:
        counted: What `pl.count_parameters` gives, or a model to count.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table, a row for each component: `unique` numbers and `tied` ones.

    Raises:
        InputError: If something else is given, or the model has no parameters.

    Example:
        >>> import pellucid as pl
        >>> ax = pl.plot.parameters(pl.load())
        >>> table = pl.plot.data(ax)
        >>> table.loc["unembed", "tied"] == table.loc["embed", "unique"]
        np.True_
    """
    model = ""
    if isinstance(counted, nn.Module):
        model, counted = model_name({"model": source_of(counted)}), count_parameters(counted)
    if not isinstance(counted, ParameterCount) or counted.unique == 0:
        given = "no parameters" if isinstance(counted, ParameterCount) else type(counted).__name__
        raise InputError(
            f"plot.parameters: {given}, expected a ParameterCount or a model.",
            code="not-counted",
            remedy="Pass pl.count_parameters(model).",
        )
    table = _components(counted)
    with canvas(ax, (COLUMN, 0.5 + 0.2 * len(table))) as (axes, look):
        places = range(len(table))
        axes.barh(places, table["unique"], color=look.marks[0], height=0.7)
        tied = axes.barh(
            places, table["tied"], left=table["unique"], height=0.7, facecolor=look.paper, edgecolor=look.marks[0],
            hatch="/////", linewidth=0.6,
        )  # fmt: skip
        texts = [_text(unique, again, counted.unique) for unique, again in table.to_numpy()]
        axes.bar_label(tied, texts, padding=3)
        ends = table.sum(axis=1).tolist()
        names = [name if len(name) <= NAME_AT_MOST else f"{name[: NAME_AT_MOST - 1]}…" for name in table.index]
        room = 72 * COLUMN - longest(names, LABEL) - 12 if ax is None else extent(axes)[0]
        axes.set_xlim(0, _end_of_axis(ends, texts, room))
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_yticks(list(places), names)
        axes.set_xticks([])
        axes.set_xlabel(f"parameters: {_short(counted.unique)} in memory", loc="left")
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        say_what(axes, "parameters of each component", model)
        return remember(axes, table)


def _components(counted: ParameterCount) -> Any:
    """Return a row for each component."""
    return pandas().DataFrame({"unique": counted.components, "tied": counted.tied}).rename_axis("component")


def _text(unique: int, tied: int, everything: int) -> str:
    part = unique / everything
    share = f"{_short(unique)}, {'<1%' if part < 0.005 else f'{part:.0%}'}" if unique else ""
    return ", ".join(text for text in (share, f"{_short(tied)} tied, counted once" if tied else "") if text)


def _end_of_axis(ends: Sequence[float], texts: Sequence[str], room: float) -> float:
    """Return how many parameters end the axis, so each bar and the text behind it fit into `room` points."""
    size = matplotlib().font_manager.FontProperties().get_size_in_points()
    behind = [min(3 + longest([text], size), 0.8 * room) for text in texts]
    return max(end * room / (room - taken) for end, taken in zip(ends, behind, strict=True))


def _short(count: float) -> str:
    """Return a count in three digits: 38.6 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            return f"{count / size:#.3g}".rstrip(".") + unit
    return f"{count:.0f}"


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
    require_table("plot.densities", table, ("density",), "pl.corpus.densities(store, name)")
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
        say_what(axes, *about, title=title)
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
