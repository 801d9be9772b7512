"""`pellucid norms`: how long a checkpoint's vectors are, layer by layer, and how they follow from those before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.options import looks_like_a_file, parse_ids, read_text, text_of, tokens_of
from pellucid.cli.shared.screen import progress, show, tell
from pellucid.cli.shared.tables import deliver, heading, number, panels, require_format, spark
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Norms
from pellucid.corpus.sink import Sink, feed
from pellucid.errors import InputError, NotFoundError
from pellucid.extras import need
from pellucid.html.listing import counted
from pellucid.measure.labelled import capture_pattern
from pellucid.schema import coordinate
from pellucid.weights.manifests import reading, require_regular

if TYPE_CHECKING:
    import xarray

AT_ONCE = 8
"""Texts in a batch."""

BINS = 24
"""Columns of a sparkline."""

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Layer:
    """The norms of one layer, or of one of its heads, of the tokens that are not left out."""

    layer: int  # its number; 0 for a checkpoint around the blocks
    head: int | None  # its number; None for a checkpoint without heads
    tokens: int  # how many
    # mean, std, min, max: statistics of their norms, or of the logarithms
    mean: float
    std: float
    min: float
    max: float
    histogram: list[int]  # counts in `BINS` bins between the lowest and the highest of all layers

    @property
    def label(self) -> list[str]:
        """Layer, and head if there are heads."""
        return [str(number) for number in (self.layer, self.head) if number is not None]


@dataclass(frozen=True)
class NormTable:
    """What was asked for, and what is shown."""

    model: str
    at: str
    log: bool
    skip: int
    lags: int
    texts: list[int]  # tokens of each text
    layers: list[Layer]  # the norms of each layer, or of each head of each layer
    # a row for each of `layers` and parameter, as `AutoregressionFit.to_dataframe` has them; None without lags
    regression: list[dict[str, Any]] | None
    rsquared: list[float] | None  # the R² of each of `layers`


def norms(wish: Norms) -> None:
    """Measure the norms of texts, show them, and write what was asked for."""
    require_format(wish.figure)
    found = _read_texts(wish.texts or ())
    model = wish.open()
    with progress("running"):
        rows = _windows(model, [*(tokens_of(model, text) for text in found), *parse_ids(wish.ids or ())])
        if wish.lags:
            _require_length(rows, wish)
        gathered = _Gathered(wish.at, log=not wish.linear)
        feed(model, rows, gathered, batch_size=AT_ONCE, by="norms")
        values = gathered.norms()
        fit = pl.measure.autoregression(values, lags=wish.lags, skip=wish.skip) if wish.lags else None
    result = _summary(values, fit, wish)
    deliver(
        wish, asdict(result), lambda: _show(result), lambda: _of_tokens(values), lambda: _draw(values, fit, wish.skip)
    )


def _read_texts(given: Iterable[str]) -> list[str]:
    """Each argument as a text: a file's, if something of this name is there, else its own."""
    given = list(given)
    if len(given) > 1 and not any(os.path.lexists(one) or len(one.split()) > 1 for one in given):
        tell(Text(f"note: {len(given)} texts of one word; a text of several words stands in quotes"))
    return [_from_file(Path(one)) if os.path.lexists(one) else read_text(_no_name(one)) for one in given]


def _no_name(given: str) -> str:
    """The text, unless it can only be the name of a file."""
    if looks_like_a_file(given):
        raise NotFoundError(
            f"norms: no file {given!r}.", code="path-not-found", remedy="Give the path of a text file, or a text."
        )
    return given


def _from_file(path: Path) -> str:
    require_regular(path)
    with reading(path):
        content = path.read_bytes()
    return text_of(content, path)


def _windows(model: pl.CkptedTransformer, rows: Iterable[list[int]]) -> list[list[int]]:
    """Texts as ids, cut if they are longer than the model's context."""
    size = model.schema.sizes["n_ctx"]
    return [ids[start : start + size] for ids in map(_some, rows) for start in range(0, len(ids), size)]


def _some(ids: list[int]) -> list[int]:
    if not ids:
        raise InputError(
            "norms: an empty text, expected at least one token.", code="empty-text", remedy="Give some text."
        )
    return ids


def _require_length(rows: list[list[int]], wish: Norms) -> None:
    """Check that the texts give the regression more rows than it has parameters."""
    first, longest = wish.skip + wish.lags, max(map(len, rows))
    count, parameters = sum(max(0, len(row) - first) for row in rows), wish.lags + 1
    if count <= parameters:
        shorter = "--lags 0" if longest > wish.skip else "--lags 0 --skip 0"
        raise InputError(
            f"norms: the texts have {counted(count, 'token')} to regress (from token {first} on), "
            f"and {parameters} parameters need more.",
            code="too-short",
            remedy=f"Give longer texts, or {shorter}, which shows the norms alone.",
        )


class _Gathered(Sink):
    """The norms of all texts at once, kept in memory."""

    def __init__(self, at: str, *, log: bool) -> None:
        self.at, self.log = at, log
        self.parts: list[xarray.DataArray] = []

    @property
    def captures(self) -> list[str]:
        return [capture_pattern(self.at)]

    def take(self, ckpts: pl.ActivationCkpts, texts: range) -> None:
        self.parts.append(pl.measure.norms(ckpts, self.at, log=self.log).assign_coords(batch=list(texts)))

    def norms(self) -> xarray.DataArray:
        """The norms [layer, batch, pos], with the positions of each text, -1 at pads."""
        if len(self.parts) == 1:
            return self.parts[0]
        joined = need("xarray", "norms").concat(
            self.parts, dim="batch", join="outer", coords="minimal", compat="override", combine_attrs="drop_conflicts"
        )
        position = _position(joined)
        return joined.assign_coords({position: joined[position].fillna(-1).astype(int)})


def _of_tokens(values: xarray.DataArray) -> Any:
    """A row for each token; shorter texts have pads before them, so its place is that in its text."""
    table = values.to_dataframe().dropna().reset_index()
    return table.assign(**{_time(values): table[_position(values)]})


def _time(values: xarray.DataArray) -> str:
    return "query" if "query" in values.dims else "pos"


def _position(values: xarray.DataArray) -> str:
    """The coordinate that counts the tokens of each text."""
    return coordinate(_time(values), "position")


def _summary(values: xarray.DataArray, fit: pl.measure.AutoregressionFit | None, wish: Norms) -> NormTable:
    position = values[_position(values)].transpose("batch", _time(values))
    kept = values.where(position >= wish.skip)
    everything = kept.values[~np.isnan(kept.values)]
    if not len(everything):
        raise InputError(
            f"norms: no text has more tokens than the {wish.skip} that are left out.",
            code="too-short",
            remedy="Give longer texts, or a smaller --skip.",
        )
    around = 0.5 if everything.min() == everything.max() else 0.0
    edges = np.linspace(everything.min() - around, everything.max() + around, BINS + 1)
    layers = [_layer(label, row[~np.isnan(row)], edges) for label, row in _series(kept)]
    lengths = (position.values >= 0).sum(-1).tolist()
    return NormTable(
        wish.model_name, wish.at, not wish.linear, wish.skip, wish.lags, texts=lengths, layers=layers,
        regression=None if fit is None else fit.to_dataframe().to_dict("records"),
        rsquared=None if fit is None else [float(value) for value in np.atleast_1d(fit.rsquared)],
    )  # fmt: skip


def _series(values: xarray.DataArray) -> Iterator[tuple[tuple[int, int | None], Any]]:
    """((layer, head), its values), in the order of the regression's rows."""
    layers = np.atleast_1d(values.coords["layer"].values).tolist() if "layer" in values.coords else [0]
    heads: list[Any] = values.coords["head"].values.tolist() if "head" in values.dims else [None]
    series = [dim for dim in ("layer", "head") if dim in values.dims]
    rows = values.transpose(*series, ...).values.reshape(len(layers) * len(heads), -1)
    return zip(product(layers, heads), rows, strict=True)


def _layer(label: tuple[int, int | None], row: Any, edges: Any) -> Layer:
    histogram = np.histogram(row, bins=edges)[0]
    numbers = (float(f(row)) for f in (np.mean, np.std, np.min, np.max))
    return Layer(*label, len(row), *numbers, histogram=histogram.tolist())


def _draw(values: xarray.DataArray, fit: pl.measure.AutoregressionFit | None, skip: int) -> Any:
    """Points and histograms, and the coefficients if there are some, by layer alone."""
    if fit is not None and fit.index.nlevels > 1:
        fit = None
    figure, axes = panels(2 if fit is None else 3)
    pl.plot.norms(values, skip=skip, ax=axes[0])
    pl.plot.norm_histograms(values, skip=skip, ax=axes[1])
    if fit is not None:
        pl.plot.autoregression(fit, ax=axes[2])
    return figure


def _show(result: NormTable) -> None:
    what = f"{'log norm' if result.log else 'norm'} of {result.at}"
    total = sum(result.texts)
    texts = f"{counted(len(result.texts), 'text')}, {counted(total, 'token')}"
    left_out = f", the first {result.skip if result.skip > 1 else ''} of each left out".replace("  ", " ")
    show(heading(f"{what}: {texts}{left_out * bool(result.skip)}", first=True), _table(result))
    if result.regression is not None:
        lags = "".join(f" + lag{i} y[t-{i}]" for i in range(1, result.lags + 1))
        show(heading(f"y[t] = const{lags}"), _coefficients(result))
        rows = "layers and heads" if _has_heads(result) else "layers"
        show(Text(f"* p < {SIGNIFICANT:g}, ** p < {SIGNIFICANT:g} corrected over {rows} (Holm 1979)", style="dim"))


def _labels(result: NormTable) -> list[Column]:
    """The columns that say which layer, and which head if there are heads."""
    titles = ("layer", "head") if _has_heads(result) else ("layer",)
    return [Column(title, right=True, style="cyan", label=True) for title in titles]


def _has_heads(result: NormTable) -> bool:
    return result.layers[0].head is not None


def _table(result: NormTable) -> Grid:
    lowest, highest = (number(f(getattr(layer, f.__name__) for layer in result.layers)) for f in (min, max))
    axis = f"{lowest} {'·' * (BINS - len(lowest) - len(highest) - 2)} {highest}"
    numbers = [Column(title, right=True) for title in ("tokens", "mean", "std", "min", "max")]
    grid = Grid(*_labels(result), *numbers, Column(axis, picture=True, style="green"))
    for layer in result.layers:
        shown = map(number, (layer.mean, layer.std, layer.min, layer.max))
        grid.add(*layer.label, f"{layer.tokens:,}", *shown, spark(layer.histogram))
    return grid


def _coefficients(result: NormTable) -> Grid:
    rows = result.regression or []
    names = list(dict.fromkeys(row["parameter"] for row in rows))
    grid = Grid(*_labels(result), *(Column(name, right=True) for name in (*names, "R²")))
    for place, layer in enumerate(result.layers):
        own = rows[place * len(names) : (place + 1) * len(names)]
        grid.add(*layer.label, *map(_estimate, own), number((result.rsquared or [])[place]))
    return grid


def _estimate(row: dict[str, Any]) -> Text:
    stars = "**" if row["p_holm"] < SIGNIFICANT else "*" if row["p"] < SIGNIFICANT else ""
    return Text.assemble(number(row["estimate"]), (f"{stars:2}", "bold green"))
