"""What objects show of themselves: one table, printed as lines and shown in a notebook as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.generate import generation
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


class Made(listing.Listed):
    def _listing(self) -> listing.Listing:
        return listing.Listing("made", ("text",), [("<script> & Lily",)])


def shown_by(model: pl.CkptedTransformer) -> list[tuple[Any, list[str]]]:
    """Objects, and the cells that they should show."""
    text = "<script> & Lily"
    batch = model.tokenize([text, "Once"])
    _, ckpts = model.run_with_ckpts("Once", names="ckpt_embed")
    pieces = "|".join(batch.strings[0]).replace(" ", "·")
    return [
        (batch, ["length", "tokens", f"{len(batch.strings[0])} tokens", pieces, "1 token", "Once"]),
        (ckpts, ["checkpoint", "shape", "dtype", "ckpt_embed", "[1, 1, 256]", "torch.float32"]),
        (Made(), ["text", "<script> & Lily"]),
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


def shows_probabilities(model: pl.CkptedTransformer) -> None:
    out = model.generate(["<b> Lily & Tom", "Once"], max_new_tokens=3)
    seen = Spans()
    seen.feed(out._repr_html_())
    for text in out.texts:
        assert f"{text} (length)" in "".join(seen.found)
    assert seen.titles == [f"{p:.1%}" for row in out.logprobs for p in row.exp().tolist()]
    assert repr(out).splitlines()[1].endswith("  (length)")


class Spans(Cells):
    """All texts, and the titles of spans."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.found.append("")

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("div", "p", "span")
        self.titles += [value for name, value in attrs if name == "title"]


def test_a_generated_text_is_shown_with_the_probabilities_of_its_tokens() -> None:
    model = pl.load()
    shows_probabilities(model)
    must_be_noticed((generation, "escape", str, shows_probabilities), model)


@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.long, device="meta"), support.some_ids(70, 90)])
def test_a_batch_is_short_whatever_it_holds(ids: torch.Tensor) -> None:
    ones = torch.ones_like(ids)
    assert repr(pl.Batch(ids, ones.bool(), ones)).startswith(f"Batch of {len(ids)} texts in {ids.size(1)} columns")
    assert len(repr(pl.Batch(ids, ones.bool(), ones))) < 40_000
