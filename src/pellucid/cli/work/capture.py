"""`pellucid capture`: the values of a corpus on disk, and whether they are what the model gives."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.failures import Exit
from pellucid.cli.shared.screen import messages, note_a_missing_folder, progress, show, show_json
from pellucid.cli.verbs import Capture
from pellucid.corpus.identity import reopened
from pellucid.run.interrupts import is_watched


def capture(wish: Capture) -> None:
    """Keep values, or verify those that were kept."""
    if wish.verify:
        _verify(wish)
        return
    if "://" not in wish.out:
        note_a_missing_folder(Path(wish.out))
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
    seen = is_watched(messages()) and not wish.as_json
    by: dict[str, Any] = {"engine": wish.engine, "workers": wish.workers}
    with redirect_stdout(sys.stderr):  # where Ray says of processes that died
        store = pl.corpus.capture(model, texts(), names, wish.out, progress=seen, **about, **by)
    if not wish.as_json:
        show(Text(f"{wish.out}: {store!r}"))
        return
    plan = store.plan
    show_json({
        "model": wish.model_name, "out": wish.out, "rows": plan.rows, "texts": plan.texts, "parts": len(store.parts),
        "nbytes": plan.nbytes, "dtype": plan.dtype,
        "names": {column.name: [plan.rows, *column.shape] for column in plan.columns},
        "provenance": store.provenance,
    })  # fmt: skip


def _verify(wish: Capture) -> None:
    store = pl.corpus.open(wish.out)
    with progress("running rows again"):
        model = wish.open() if wish.model is not None else reopened(store.provenance)
        found = store.verify(1000 if wish.rows is None else wish.rows, model)
    if wish.as_json:
        show_json({
            "out": wish.out, "equal": bool(found), "rows": found.rows, "batches": found.batches,
            "missing": found.missing, "unequal": found.unequal, "damaged": found.damaged,
        })  # fmt: skip
    else:
        show(Text(f"{wish.out}: {found!r}", style="green" if found else "bold red"))
    if not found:
        raise typer.Exit(Exit.CHECK_FAILED)
