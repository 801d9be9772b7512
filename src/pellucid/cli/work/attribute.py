"""`pellucid attribute`: what each part of the model adds to a logit, and that the parts are the whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

from rich.text import Text

import pellucid as pl
from pellucid.attribution.direct import By
from pellucid.cli.shared.options import position_of, token_of
from pellucid.cli.shared.screen import progress, show
from pellucid.cli.shared.tables import NextToken, bar, deliver, heading, likeliest, number, require_format
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Attribute
from pellucid.errors import visible
from pellucid.extras import need
from pellucid.html.listing import counted


@dataclass(frozen=True)
class Added:
    """A part of the sum; it has a `layer` and an `index` (of its head or neuron), or None if it belongs to none."""

    component: str
    layer: int | None
    index: int | None
    value: float


@dataclass(frozen=True)
class Attributed:
    """What was asked for, and what is shown."""

    model: str
    tokens: list[str]
    pos: int  # the token after which the logit is read
    by: str
    # token, against: whose logits, with their probabilities; `against` is None for a single logit
    token: NextToken
    against: NextToken | None
    logit: float  # the logit or the difference, as the run gave it
    sum: float  # of the parts
    parts: list[Added]


def attribute(wish: Attribute) -> None:
    """Attribute a logit, show its parts, and write what was asked for."""
    require_format(wish.figure)
    text = wish.given()
    model = wish.open()
    with progress("running"):
        logits, ckpts = model.run_with_ckpts(wish.row(model, text))
        assert logits is not None, "only a run that stops early has no logits"
        pos = position_of(wish.pos, logits.size(1))
        here = logits[0, pos].double()
        pair = [_token(model, here, given) for given in (wish.token, wish.against) if given is not None]
        if wish.token is None:
            pair.insert(0, likeliest(here, model.tokenizer, 1)[0])
        target: Any = tuple(one.id for one in pair) if len(pair) > 1 else pair[0].id
        sae = wish.autoencoder(model)
        found = (
            pl.attribution.direct(ckpts, target, by=cast(By, wish.by or "component")) if sae is None
            else pl.sae.direct(sae, ckpts, target)
        )  # fmt: skip
        parts = found.isel(batch=0, pos=pos)
    result = Attributed(
        wish.model_name, ckpts.batch.strings[0], pos, str(found.attrs["by"]), pair[0],
        pair[1] if len(pair) > 1 else None,
        float(here[pair[0].id] - (here[pair[1].id] if len(pair) > 1 else 0)), float(parts.sum()), _parts(parts),
    )  # fmt: skip
    deliver(
        wish, asdict(result), lambda: _show(result, wish.top), lambda: _table(result.parts),
        lambda: pl.plot.attribution(_titled(parts, pair), most=wish.top).get_figure(),
    )  # fmt: skip


def _table(parts: list[Added]) -> Any:
    table = need("pandas", "--csv").DataFrame([asdict(part) for part in parts])
    return table.astype({"layer": "Int64", "index": "Int64"})


def _titled(parts: Any, pair: list[NextToken]) -> Any:
    """The parts with a target that says whose logits they are of, in the words of the text."""
    names = " - ".join(repr(one.token) for one in pair)
    return parts.assign_attrs(target=f"the logit{'s' * (len(pair) > 1)} {names}")


def _token(model: pl.CkptedTransformer, logits: Any, given: str) -> NextToken:
    found = token_of(model, given)
    return NextToken(given, found, float(logits.softmax(-1)[found]))


def _parts(parts: Any) -> list[Added]:
    rows = zip(*(parts[name].values.tolist() for name in ("component", "layer", "index")), parts.values, strict=True)
    return [Added(name, _known(layer), _known(index), float(value)) for name, layer, index, value in rows]


def _known(place: int) -> int | None:
    return None if place < 0 else place


def _show(result: Attributed, top: int) -> None:
    names = [f"{visible(one.token)} ({one.probability:.1%})" for one in (result.token, result.against) if one]
    show(
        heading(
            f"logit of {' less that of '.join(names)}, after {result.pos} {visible(result.tokens[result.pos])}",
            first=True,
        )
    )
    strongest = sorted(result.parts, key=lambda part: -abs(part.value))
    others = strongest[top:]
    rows = [(part.component, part.value) for part in strongest[:top]]
    if others:
        rows.append((counted(len(others), "other"), sum(part.value for part in others)))
    largest = max(*(abs(value) for _, value in rows), abs(result.sum)) or 1.0
    grid = Grid(Column("part", label=True, style="cyan"), Column("adds", right=True), Column(picture=True))
    for name, value in rows:
        grid.add(name, number(value), Text(bar(abs(value) / largest), "green" if value > 0 else "red"))
    grid.add(Text("sum", "bold"), Text(number(result.sum), "bold"), bar(abs(result.sum) / largest))
    of = "of the run's own" if result.by == "feature" else "the run's own"  # an autoencoder reads one value
    show(grid, Text(f"{of}: {number(result.logit)}", style="dim"))
