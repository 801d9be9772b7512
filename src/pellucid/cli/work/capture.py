"""`pellucid capture`: the values of a corpus on disk, and whether they are what the model gives."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import typer
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import messages, progress, show, show_json
from pellucid.cli.verbs import Capture
from pellucid.corpus.identity import reopened
from pellucid.corpus.store import Store


@dataclass(frozen=True)
class Kept:
    """What a store holds."""

    model: str
    out: str
    rows: int  # tokens, a row each
    texts: int  # texts, or pieces of them
    parts: int  # how many parts of the corpus were made
    nbytes: int  # bytes of all values
    dtype: str  # what they are written as
    names: dict[str, list[int]]  # checkpoint -> the shape of its array
    provenance: dict[str, Any]  # what made it


@dataclass(frozen=True)
class Verified:
    """What running rows again gave."""

    out: str
    equal: bool  # whether every row is equal to the bit, and every chunk as it was written
    rows: int  # how many rows were run again
    batches: int  # in how many batches
    missing: int  # how many parts are not there
    unequal: list[tuple[str, int]]  # [checkpoint, row] of what differs
    damaged: list[tuple[str, int]]  # [checkpoint, part] of chunks that are not as they were written


def capture(wish: Capture) -> None:
    """Keep values, or verify those that were kept."""
    if wish.verify:
        _verify(wish)
        return
    model = wish.open()
    texts = lambda: pl.corpus.read(wish.data or [], field=wish.field, lines=wish.lines)  # noqa: E731
    about: dict[str, Any] = {
        "batch_tokens": wish.batch_tokens,
        "dtype": wish.keep_as,
        "long_texts": "split",
        "packing": wish.pack,
    }
    names = wish.names or []
    if not wish.as_json:
        with progress("reading the texts"):
            try:
                said = repr(pl.corpus.open(wish.out)).partition("\n")[0]  # it is begun, and goes on
            except pl.NotFoundError:
                said = repr(pl.corpus.estimate(model, texts(), names, wish.out, **about))
        messages().print(Text(said), soft_wrap=True)
    seen = messages().is_terminal and not wish.as_json
    by: dict[str, Any] = {"engine": wish.engine, "workers": wish.workers}
    with redirect_stdout(sys.stderr):  # where Ray says of processes that died
        store = pl.corpus.capture(model, texts(), names, wish.out, progress=seen, **about, **by)
    if wish.as_json:
        show_json(asdict(_kept(wish, store)))
    else:
        show(Text(f"{wish.out}: {store!r}"))


def _kept(wish: Capture, store: Store) -> Kept:
    shapes = {column.name: [store.plan.rows, *column.shape] for column in store.plan.columns}
    return Kept(
        wish.model_name, wish.out, store.plan.rows, store.plan.texts, len(store.parts), store.plan.nbytes,
        store.plan.dtype, shapes, store.provenance,
    )  # fmt: skip


def _verify(wish: Capture) -> None:
    store = pl.corpus.open(wish.out)
    with progress("running rows again"):
        model = wish.open() if wish.model is not None else reopened(store.provenance)
        found = store.verify(1000 if wish.rows is None else wish.rows, model)
    if wish.as_json:
        show_json(asdict(Verified(
            wish.out, bool(found), found.rows, found.batches, found.missing, found.unequal, found.damaged
        )))  # fmt: skip
    else:
        show(Text(f"{wish.out}: {found!r}", style="green" if found else "bold red"))
    if not found:
        raise typer.Exit(Exit.CHECK_FAILED)
