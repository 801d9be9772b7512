"""`pellucid patch`: values of one text's run put into another's, and what each of them changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.options import read_text, token_of, tokens_of
from pellucid.cli.shared.screen import progress, show
from pellucid.cli.shared.tables import bar, deliver, heading, number, require_format
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Patch
from pellucid.errors import visible
from pellucid.patching.measured_runs import Direction

if TYPE_CHECKING:
    import xarray


def patch(wish: Patch) -> None:
    """Patch one text's run with another's, show the strongest patches, and write what was asked for."""
    require_format(wish.figure)
    texts = read_text(wish.clean), read_text(wish.corrupted)
    model = wish.open()
    with progress("running"):
        token, against = _answers(wish, model, texts)
        metric = pl.metrics.logit(token) if against is None else pl.metrics.logit_difference(token, against)
        align = pl.patching.align(model, *texts) if wish.align else None
    names: Any = wish.checkpoints if len(wish.checkpoints) > 1 else wish.checkpoints[0]
    how: Any = {"metric": metric, "direction": cast(Direction, wish.direction), "progress": not wish.as_json}
    sae = wish.autoencoder(model)
    swept = (
        pl.patching.sweep(model, *texts, names, over=wish.axes, align=align, **how) if sae is None
        else pl.sae.patch(sae, model, *texts, **how)
    )  # fmt: skip
    base = model.tokenize(texts[1 if wish.direction == "denoise" else 0]).strings[0]
    result = {
        "model": wish.model_name, "names": wish.checkpoints if sae is None else [sae.place(model.schema)],
        "direction": wish.direction, **{name: swept.attrs[name] for name in ("metric", "units", "clean", "corrupted")},
        "token": str(token), "against": None if against is None else str(against), "tokens": base,
        "axes": {str(dim): swept[dim].values.tolist() for dim in swept.dims}, "values": swept.values.tolist(),
    }  # fmt: skip
    deliver(
        wish, result, lambda: _show(swept, wish.top),
        lambda: swept.to_dataframe(name="value").dropna().reset_index(),
        lambda: pl.plot.heatmap(swept).get_figure(),
    )  # fmt: skip


def _answers(
    wish: Patch, model: pl.CkptedTransformer, texts: tuple[str, str]
) -> tuple[pl.metrics.Token, pl.metrics.Token | None]:
    """The tokens whose logits are read; the likeliest after each text, if they are not given."""
    given = [None if one is None else token_of(model, one) for one in (wish.token, wish.against)]
    if given[0] is not None:
        return _named(model, given[0]), None if given[1] is None else _named(model, given[1])
    likeliest = [int(model.next_token_logits(text).argmax()) for text in texts]
    found = [mine if mine is not None else other for mine, other in zip(given, likeliest, strict=True)]
    first, second = (_named(model, token) for token in found)
    return first, None if first == second else second


def _named(model: pl.CkptedTransformer, token: int) -> pl.metrics.Token:
    """A token as the metric's title shows it: its text, or its id if no text is this token alone."""
    text = "" if model.tokenizer is None else model.tokenizer.decode(token)
    return text if text and tokens_of(model, text) == [token] else token


def _show(swept: xarray.DataArray, top: int) -> None:
    """The patches that move the metric most, the strongest first."""
    attrs, values = swept.attrs, swept.values
    moved = np.abs(np.nan_to_num(values - attrs["unchanged"]))
    order = np.argsort(-moved, axis=None, kind="stable")[: min(top, int(np.isfinite(values).sum()))]
    span = abs(attrs["clean"] - attrs["corrupted"]) or float(moved.max()) or 1.0
    show(heading(attrs["title"], first=True), Text(attrs["metric"]))
    plain = Grid(Column(label=True, style="cyan"), Column(right=True), heading=None)
    for side in ("clean", "corrupted"):
        plain.add(f"the {side} run", number(attrs[side]))
    show(plain, Text(""))
    axes = [str(dim) for dim in swept.dims]
    grid = Grid(
        *(Column(axis, right=axis != "checkpoint", style="cyan", label=not place) for place, axis in enumerate(axes)),
        *([Column("token")] if "token" in swept.coords else []),
        Column("value", right=True), Column("change", right=True), Column(picture=True, style="green"),
    )  # fmt: skip
    for at in order:
        place = dict(zip(axes, np.unravel_index(at, values.shape), strict=True))
        entries = [str(swept[axis].values[i]) for axis, i in place.items()]
        token = [visible(str(swept["token"].values[place["pos"]]))] if "token" in swept.coords else []
        change = float(values.flat[at]) - attrs["unchanged"]
        grid.add(*entries, *token, number(float(values.flat[at])), number(change), bar(abs(change) / span, 16))
    show(grid)
    left = int(np.isfinite(values).sum()) - len(order)
    if left > 0:
        show(Text(f"and {left} that change less; a full bar is the difference of the two runs", style="dim"))
