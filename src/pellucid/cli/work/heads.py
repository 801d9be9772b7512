"""`pellucid heads`: what heads do on a text, and how they compose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.shared.tables import heading, number, panels, require_format, say_written, write_csv, write_figure
from pellucid.cli.shared.texts import token_of
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Heads
from pellucid.errors import visible
from pellucid.extras import need

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Scored:
    """What heads do on a text."""

    model: str
    tokens: list[str]
    token: str | None  # whose movers are scored; None for none
    heads: list[dict[str, Any]]  # a row for each head: `layer`, `head`, and its scores by name
    movers: list[dict[str, Any]] | None  # the same of the token's name movers


@dataclass(frozen=True)
class Composed:
    """Which heads read what earlier ones write."""

    model: str
    kind: str  # with what the later head reads
    pairs: list[dict[str, Any]]  # the strongest: `layer`, `head`, `layer_to`, `head_to`, `composition`


def heads(wish: Heads) -> None:
    """Score heads, show the strongest, and write what was asked for."""
    require_format(wish.figure)
    text = None if wish.composition is not None else wish.given()
    model = wish.open()
    result = _composed(wish, model) if wish.composition is not None else _scored(wish, model, text)
    if wish.as_json:
        show_json(asdict(result))
        return
    if isinstance(result, Composed):
        _show_pairs(result)
    else:
        _show(result, wish.top)
    say_written(wish)


def _composed(wish: Heads, model: pl.CkptedTransformer) -> Composed:
    with progress("multiplying"):
        scores = pl.heads.composition(model, cast(Any, wish.composition))
    table = scores.to_dataframe().drop(columns="kind", errors="ignore").dropna().reset_index()
    table = table.sort_values("composition", ascending=False, kind="stable")
    if wish.csv is not None:
        write_csv(wish.csv, table)
    if wish.figure is not None:
        random = model.schema.sizes["d_model"] ** -0.5  # about what heads of random weights score
        write_figure(wish.figure, lambda: pl.plot.heatmap(_by_pair(scores), centre=random).get_figure())
    return Composed(wish.model_name, str(wish.composition), _records(table.head(wish.top)))


def _by_pair(scores: xarray.DataArray) -> xarray.DataArray:
    """The scores with heads named by layer and number, [from, to]."""
    flat = scores.stack(start=("layer", "head"), end=("layer_to", "head_to"))
    names = {dim: [f"{layer}.{head}" for layer, head in flat[dim].values] for dim in ("start", "end")}
    about = {"title": f"{scores.attrs['kind']}-composition", "units": "score"}
    found = need("xarray", "--figure").DataArray(flat.values, dims=("from", "to"), name="score", attrs=about)
    return found.assign_coords({"from": names["start"], "to": names["end"]})


def _scored(wish: Heads, model: pl.CkptedTransformer, text: str | None) -> Scored:
    with progress("running"):
        batch = model.tokenize([wish.row(model, text)])
        found = pl.heads.scores(model, batch)
        movers = None
        if wish.token is not None:
            movers = pl.heads.name_movers(model, batch, token_of(model, wish.token))
    tables = [_table(found), *([] if movers is None else [_table(movers)])]
    if wish.csv is not None:
        both = (
            tables[0]
            if movers is None
            else tables[0].merge(tables[1], on=["layer", "head"], suffixes=("", "_of_token"))
        )
        write_csv(wish.csv, both)
    if wish.figure is not None:
        write_figure(wish.figure, lambda: _draw(found if movers is None else movers))
    names = [_records(table) for table in tables]
    return Scored(wish.model_name, batch.strings[0], wish.token, names[0], names[1] if len(names) > 1 else None)


def _table(found: xarray.Dataset) -> Any:
    """A row for each head, in the order of layers."""
    return found.to_dataframe(dim_order=["layer", "head"]).reset_index()


def _records(table: Any) -> list[dict[str, Any]]:
    return table.to_dict("records")


def _draw(found: xarray.Dataset) -> Any:
    """A panel for each score that there is."""
    there = [array.rename(str(name)) for name, array in found.items() if bool(array.notnull().any())]
    figure, axes = panels(len(there))
    for ax, array in zip(np.atleast_1d(axes), there, strict=True):
        pl.plot.head_scores(array, ax=ax)
        ax.set_title(str(array.name).replace("_", " "))
    return figure


def _show(result: Scored, top: int) -> None:
    count = len(result.tokens)
    show(heading(f"{count} token{'s' * (count != 1)}: heads among the first {top} of a score", first=True))
    show(_strongest(result.heads, top))
    if result.movers is not None:
        show(heading(f"from the end to {visible(str(result.token))}"))
        show(_strongest(result.movers, top))


def _strongest(rows: list[dict[str, Any]], top: int) -> Grid:
    """The heads that are among the first of any score, whose numbers are bold where they are."""
    names = [name for name in rows[0] if name not in ("layer", "head")]
    best = {
        name: {
            id(row) for row in sorted(rows, key=lambda row, name=name: -np.nan_to_num(row[name]))[:top] if row[name] > 0
        }
        for name in names
    }
    titles = (Column(name.replace("_", " "), right=True) for name in names)
    grid = Grid(Column("head", style="cyan", label=True), *titles)
    for row in rows:
        if any(id(row) in chosen for chosen in best.values()):
            shown = ["" if np.isnan(row[name]) else number(row[name]) for name in names]
            cells = [Text(one, "bold" * (id(row) in best[name])) for one, name in zip(shown, names, strict=True)]
            grid.add(f"{row['layer']}.{row['head']}", *cells)
    return grid


def _show_pairs(result: Composed) -> None:
    what = {"Q": "queries", "K": "keys", "V": "values"}[result.kind]
    show(heading(f"heads whose {what} read what earlier heads write", first=True))
    grid = Grid(
        Column("from", style="cyan", label=True), Column("to", style="cyan", label=True), Column("score", right=True)
    )
    for pair in result.pairs:
        ends = (f"{pair['layer']}.{pair['head']}", f"{pair['layer_to']}.{pair['head_to']}")
        grid.add(*ends, number(pair["composition"]))
    show(grid)
