"""`pellucid view`: one page that shows a text's run."""

from __future__ import annotations

from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.options import token_of
from pellucid.cli.shared.screen import progress, show, show_json
from pellucid.cli.verbs import View


def view(wish: View) -> None:
    """Run the text, and write the page."""
    text = wish.given()
    model = wish.open()
    target = None if wish.token is None else token_of(model, wish.token)
    with progress("running"):
        seen = pl.view(model, wish.row(model, text), target=target, sae=wish.autoencoder(model))
    with progress("writing the page"):
        seen.save(wish.html)
    header = seen.trace.header
    if wish.as_json:
        show_json({
            "model": wish.model_name, "tokens": [token["text"] for token in header["tokens"]], "page": str(wish.html),
            "bytes": wish.html.stat().st_size, "target": header["target"], "left_out": header["left_out"],
        })  # fmt: skip
        return
    show(Text.assemble("wrote ", (str(wish.html), "bold"), f", {wish.html.stat().st_size / 1e6:.1f} MB"))
    for one in header["left_out"]:
        show(Text(f"without {one['what']}: {one['why']}", style="dim"))
