"""`pellucid lens`: what each block would say next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.options import position_of, token_of
from pellucid.cli.shared.screen import progress, show
from pellucid.cli.shared.tables import NextToken, deliver, heading, number, require_format
from pellucid.cli.shared.widths import Column, Grid
from pellucid.cli.verbs import Lens
from pellucid.errors import visible
from pellucid.extras import need
from pellucid.measure.labelled import capture_pattern

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Said:
    """What one block says after one token."""

    layer: int | None  # its number; None for a checkpoint around the blocks
    kl: float  # KL(output || lens) in nats
    top: list[NextToken]  # the likeliest tokens
    # probability, rank: of the token that was asked about, 0 being the likeliest; None if none was
    probability: float | None
    rank: int | None


@dataclass(frozen=True)
class Looked:
    """What was asked for, and what is shown."""

    model: str
    at: str  # where it is read
    tokens: list[str]
    pos: int  # the token after which `layers` speak
    token: str | None  # the token that was asked about
    layers: list[Said]  # what each block says there
    grid: list[list[str]]  # the likeliest token of each block after each token of the text, [layer][pos]


def lens(wish: Lens) -> None:
    """Read a text through a lens, show it, and write what was asked for."""
    require_format(wish.figure)
    text = wish.given()
    through = None if wish.tuned is None else pl.lens.TunedLens.load(wish.tuned)
    model = wish.open()
    with progress("running"):
        last = f"blocks.{len(model.schema.blocks) - 1}.resid_post"
        _, ckpts = model.run_with_ckpts(wish.row(model, text), names=[capture_pattern(wish.at), last])
        read = pl.lens.logit(ckpts, wish.at) if through is None else through.read(ckpts)
        token = None if wish.token is None else token_of(model, wish.token)
        every = [list(said) for said in zip(*_said(read, wish.top, token), strict=True)]  # by token of the text
    tokens = ckpts.batch.strings[0]
    pos = position_of(wish.pos, len(tokens))
    grid = [[said.top[0].token for said in of_layer] for of_layer in zip(*every, strict=True)]
    result = Looked(wish.model_name, wish.at, tokens, pos, wish.token, every[pos], grid)
    deliver(
        wish, asdict(result), lambda: _show(result), lambda: need("pandas", "--csv").DataFrame(_rows(every, tokens)),
        lambda: pl.plot.lens(read).get_figure(),
    )  # fmt: skip


def _said(read: Any, top: int, token: int | None) -> Iterator[list[Said]]:
    """Yield what each block says after each token of the first text."""
    likeliest = read.top(top)
    layers: list[Any] = np.atleast_1d(likeliest.layer.values).tolist() if "layer" in likeliest.coords else [None]
    ids, texts, logprobs, kl = map(_first, (likeliest, likeliest.text, likeliest.logprob, read.kl()))
    probability = None if token is None else np.exp(_first(read.logprobs(token)))
    rank = None if token is None else _first(read.rank(token))
    for i, layer in enumerate(layers):
        yield [
            Said(
                layer, float(kl[i, p]),
                [NextToken(str(t), int(n), float(np.exp(q)))
                 for t, n, q in zip(texts[i, p], ids[i, p], logprobs[i, p], strict=True)],
                None if probability is None else float(probability[i, p]), None if rank is None else int(rank[i, p]),
            )
            for p in range(kl.shape[1])
        ]  # fmt: skip


def _first(array: xarray.DataArray) -> Any:
    """The numbers of the first text [layer, pos, ...]; one block, or none, is one layer."""
    numbers = array.isel(batch=0)
    return numbers.values if "layer" in numbers.dims else numbers.values[None]


def _rows(every: list[list[Said]], tokens: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of the file: each of the likeliest of each block after each token."""
    for pos, token in enumerate(tokens):
        for said in every[pos]:
            for place, one in enumerate(said.top):
                yield {"layer": said.layer, "pos": pos, "token": token, "kl": said.kl, "place": place,
                       "next": one.token, "id": one.id, "probability": one.probability}  # fmt: skip


def _show(result: Looked) -> None:
    names = ["" if said.layer is None else str(said.layer) for said in result.layers]
    show(heading(f"next token read at {result.at}", first=True))
    grid = Grid(Column("", right=True, style="dim", label=True), Column("token", style="bold", label=True), *names)
    for pos, token in enumerate(result.tokens):
        grid.add(str(pos), visible(token), *(visible(row[pos]) for row in result.grid))
    show(grid, heading(f"after {result.pos} {visible(result.tokens[result.pos])}"))
    asked = [] if result.token is None else [Column(visible(result.token), right=True), Column("rank", right=True)]
    table = Grid(
        Column("layer", right=True, style="cyan", label=True),
        Column("KL", right=True),
        *asked,
        Column("likeliest", prose=True),
    )
    for name, said in zip(names, result.layers, strict=True):
        likeliest = Text("  ").join(
            Text.assemble((visible(one.token), "bold"), f" {one.probability:.1%}") for one in said.top
        )
        own = [] if said.probability is None else [f"{said.probability:.1%}", str(said.rank)]
        table.add(name, number(said.kl), *own, likeliest)
    show(table)
