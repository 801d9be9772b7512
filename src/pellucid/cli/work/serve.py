"""`pellucid serve`: the viewer, with the model behind it."""

from __future__ import annotations

import webbrowser

from rich.text import Text

import pellucid as pl
from pellucid.cli.shared.screen import progress, show_json, tell, write
from pellucid.cli.verbs import Serve
from pellucid.viewer.serving import PORT, TEXT


def serve(wish: Serve) -> None:
    """Serve until interrupted."""
    model = wish.open()
    text = wish.text if wish.text is not None else [[0]] if model.tokenizer is None else TEXT
    with progress("running"):
        server = pl.serve(model, text, port=wish.port, sae=wish.autoencoder(model))
    try:
        if wish.port is None and server.port != PORT:
            tell(Text(f"port {PORT} is taken; this is {server.port}"))
        if wish.as_json:
            show_json({"model": wish.model_name, "url": server.url})
        else:
            write(f"{server.url}\n")
        if not wish.no_open:
            webbrowser.open(server.url)
        server.wait()
    finally:
        server.stop()
