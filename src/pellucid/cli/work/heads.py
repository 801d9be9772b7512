"""`pellucid heads`: what heads do on a text, and how they compose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.options import token_of
from pellucid.cli.shared.screen import progress, show
from pellucid.cli.shared.tables import deliver, heading, number, panels, require_format
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Heads
from pellucid.errors import visible
from pellucid.extras import need
from pellucid.html.listing import counted

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


def heads(wish: Heads) -> None:
    """Score heads, show the strongest, and write what was asked for."""
    require_format(wish.figure)
    text = None if wish.composition is not None else wish.given()
    model = wish.open()
    if wish.composition is not None:
        _compose(wish, model)
    else:
        _score(wish, model, text)


def _compose(wish: Heads, model: pl.CkptedTransformer) -> None:
    with progress("multiplying"):
        scores = pl.heads.composition(model, cast(Any, wish.composition))
    table = scores.to_dataframe().drop(columns="kind", errors="ignore").dropna().reset_index()
    table = table.sort_values("composition", ascending=False, kind="stable")
    random = model.schema.sizes["d_model"] ** -0.5  # about what heads of random weights score
    kind, pairs = str(wish.composition), table.head(wish.top).to_dict("records")
    deliver(
        wish, {"model": wish.model_name, "kind": kind, "pairs": pairs}, lambda: _show_pairs(kind, pairs), lambda: table,
        lambda: pl.plot.heatmap(_by_pair(scores), centre=random).get_figure(),
    )  # fmt: skip


def _by_pair(scores: xarray.DataArray) -> xarray.DataArray:
    """The scores with heads named by layer and number, [from, to]."""
    flat = scores.stack(start=("layer", "head"), end=("layer_to", "head_to"))
    names = {dim: [f"{layer}.{head}" for layer, head in flat[dim].values] for dim in ("start", "end")}
    about = {"title": f"{scores.attrs['kind']}-composition", "units": "score"}
    found = need("xarray", "--figure").DataArray(flat.values, dims=("from", "to"), name="score", attrs=about)
    return found.assign_coords({"from": names["start"], "to": names["end"]})


def _score(wish: Heads, model: pl.CkptedTransformer, text: str | None) -> None:
    with progress("running"):
        batch = model.tokenize([wish.row(model, text)])
        found = pl.heads.scores(model, batch)
        movers = None if wish.token is None else pl.heads.name_movers(model, batch, token_of(model, wish.token))
    table = both = _table(found)
    moved = None
    if movers is not None:
        of_token = _table(movers)
        both = table.merge(of_token, on=["layer", "head"], suffixes=("", "_of_token"))
        moved = of_token.to_dict("records")
    result = Scored(wish.model_name, batch.strings[0], wish.token, table.to_dict("records"), moved)
    deliver(
        wish, asdict(result), lambda: _show(result, wish.top), lambda: both,
        lambda: _draw(found if movers is None else movers),
    )  # fmt: skip


def _table(found: xarray.Dataset) -> Any:
    """A row for each head, in the order of layers."""
    return found.to_dataframe(dim_order=["layer", "head"]).reset_index()


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
    show(heading(f"{counted(count, 'token')}: heads among the first {top} of a score", first=True))
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


def _show_pairs(kind: str, pairs: list[dict[str, Any]]) -> None:
    what = {"Q": "queries", "K": "keys", "V": "values"}[kind]
    show(heading(f"heads whose {what} read what earlier heads write", first=True))
    grid = Grid(
        Column("from", style="cyan", label=True), Column("to", style="cyan", label=True), Column("score", right=True)
    )
    for pair in pairs:
        ends = (f"{pair['layer']}.{pair['head']}", f"{pair['layer_to']}.{pair['head_to']}")
        grid.add(*ends, number(pair["composition"]))
    show(grid)
