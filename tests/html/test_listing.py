"""What objects show of themselves: one table, printed as lines and shown in a notebook as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.html import listing


class Cells(HTMLParser):
    """The texts of a table's cells, and the tags around them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.found.append("")

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1] += data


def shown_by(model: pl.CkptedTransformer) -> list[tuple[Any, list[str]]]:
    """Objects, and the cells that they should show."""
    text = "<script> & Lily"
    batch = model.tokenize([text, "Once"])
    _, ckpts = model.run_with_ckpts("Once", names="ckpt_embed")
    out = model.generate(text, max_new_tokens=2)
    pieces = "|".join(batch.strings[0]).replace(" ", "·")
    return [
        (batch, ["length", "tokens", f"{len(batch.strings[0])} tokens", pieces, "1 token", "Once"]),
        (ckpts, ["checkpoint", "shape", "dtype", "ckpt_embed", "[1, 1, 256]", "torch.float32"]),
        (out, ["text", "stopped", repr(out.text), "(length)"]),
    ]


def check(model: pl.CkptedTransformer) -> None:
    for thing, cells in shown_by(model):
        seen = Cells()
        seen.feed(thing._repr_html_())
        assert seen.found == cells
        assert seen.tags == {"div", "table", "tr", "th", "td"}
        assert all(cell in repr(thing) for cell in cells[3:])


def test_what_is_printed_is_shown_as_a_table() -> None:
    model = pl.load()
    check(model)
    must_be_noticed((listing, "escape", str, check), model)


@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.long, device="meta"), support.some_ids(70, 90)])
def test_a_batch_is_short_whatever_it_holds(ids: torch.Tensor) -> None:
    ones = torch.ones_like(ids)
    assert repr(pl.Batch(ids, ones.bool(), ones)).startswith(f"Batch of {len(ids)} texts in {ids.size(1)} columns")
    assert len(repr(pl.Batch(ids, ones.bool(), ones))) < 40_000
