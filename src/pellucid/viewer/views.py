"""Views: a run to look at, in a notebook, in a browser, or as one file that can be sent on.

Nothing that a model or a text says becomes markup: it is base64, JSON without "<", or escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pellucid import atomic, plot
from pellucid.errors import InputError, MissingExtraError, shown, visible
from pellucid.extras import need
from pellucid.family.network import Network
from pellucid.html.listing import counted
from pellucid.html.page import save_html
from pellucid.metrics import Token
from pellucid.names.calls import named_arguments, named_methods
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_files import require_fitting
from pellucid.text.batch import Inputs
from pellucid.viewer.container import Trace
from pellucid.viewer.traces import trace, trace_of

STATIC = Path(__file__).parent / "static"

_LONGEST_TITLE = 300
_CELL_HEIGHT = 720
"""Pixels of a notebook's cell; what is inside scrolls, so the cell does not change its height by itself."""


@cache
def script() -> str:
    """The viewer: one script, with its styles inside."""
    return (STATIC / "viewer.js").read_text(encoding="utf-8")


@cache
def readings() -> str | None:
    """The readings as JSON; None if the package has none."""
    path = STATIC / "readings.json"
    return path.read_text(encoding="utf-8") if path.exists() else None


def _without_figures(held: str) -> str:
    """The readings for a page that is one file: what a figure shows is said in words, which weigh less."""
    figure = re.compile(r'<img src="data:[^"]*" alt="([^"]*)" />')
    said = r'<em class="note">Figure, which `pellucid serve` shows: \1</em>'
    pages = [{**one, "html": figure.sub(said, one["html"])} for one in json.loads(held)]
    return json.dumps(pages, ensure_ascii=False)


def page(
    trace: Trace | None, second: Trace | None = None, examples: Sequence[Mapping[str, Any]] = (), title: str = ""
) -> str:
    """A whole page of a trace, which needs nothing else and asks nobody for anything.

    It may be compared with a second, such as the same run without its edits; `examples` are texts to start from, each
    with its trace. Without a `title` the page has the text's.
    """
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    body = [_data("pellucid-trace", trace), _data("pellucid-trace-2", second)]
    if examples:
        body.append(_json("pellucid-examples", json.dumps(list(examples))))
    if readings() is not None:
        body.append(_json("pellucid-readings", _without_figures(str(readings()))))
    body += ['<div id="pellucid-viewer">', _said(trace), "</div>", f"<script>{script()}</script>"]
    return _frame(title or titled(trace), policy, body)


def served(token: str, trace: Trace) -> str:
    """The page of the server, which brings it everything else."""
    source = json.dumps({"token": token, "base": ""})
    body = [
        _json("pellucid-server", source),
        _data("pellucid-trace", trace),
        '<div id="pellucid-viewer">',
        _said(trace),
    ]
    return _frame(titled(trace), "", [*body, "</div>", '<script src="/viewer.js"></script>'])


@cache
def examples() -> list[dict[str, Any]]:
    """The texts to start from that ship with the package, each with its trace in base64."""
    path = STATIC / "examples.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def cell(trace: Trace, second: Trace | None = None) -> str:
    """The view for a notebook's cell: in a shadow root, so neither styles nor names meet those of the notebook."""
    name = f"pellucid-{secrets.token_hex(8)}"
    held = {"pellucid-trace": _encoded(trace), "pellucid-trace-2": _encoded(second)}
    data = json.dumps({key: value for key, value in held.items() if value})
    mount = (
        f"const host=document.getElementById({json.dumps(name)});"
        'const root=host.attachShadow({mode:"open"});'
        f"for(const [id,text] of Object.entries({data})){{"
        'const held=document.createElement("script");held.type="application/vnd.pellucid.trace";held.id=id;'
        "held.textContent=text;root.append(held)}"
        'const view=document.createElement("div");root.append(view);window.pellucid.mount(view);'
    )
    return (
        f'<div id="{name}" style="display:block;height:{_CELL_HEIGHT}px;overflow:auto">{_said(trace)}</div>\n'
        f"<script>{{{script()}\n{mount}}}</script>"
    )


def titled(trace: Trace | None) -> str:
    """The title of a page: its text, as far as there is room."""
    given = "" if trace is None else str(trace.header["text"])
    text = " ".join(visible(word) for word in given[: 2 * _LONGEST_TITLE].split(" "))
    return text if len(text) <= _LONGEST_TITLE else f"{text[: _LONGEST_TITLE - 1]}…"


def _frame(title: str, policy: str, body: Sequence[str]) -> str:
    meta = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">\n' if policy else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{meta}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)} · pellucid</title>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _encoded(trace: Trace | None) -> str:
    return "" if trace is None else base64.b64encode(trace.to_bytes()).decode()


def _data(name: str, trace: Trace | None) -> str:
    found = _encoded(trace)
    return found and f'<script type="application/vnd.pellucid.trace" id="{name}">{found}</script>'


def _json(name: str, text: str) -> str:
    safe = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{safe}</script>'


def _said(trace: Trace | None) -> str:
    """What is read where no script runs."""
    if trace is None:
        return ""
    tokens = html.escape(" | ".join(visible(token["text"]) for token in trace.header["tokens"]))
    ids = trace["prediction.top.ids"].data[-1][:5].tolist()
    likely = html.escape(", ".join(visible(trace.header["vocabulary"][str(i)]) for i in ids))
    return (
        f"<p>{tokens}</p><p>Likely next: {likely}</p><p>The rest is drawn by a script: trust this page to run it.</p>"
    )


_MOST_DRAWN = 64
"""Heads, and tokens, up to which the picture that stands for a view shows every pattern."""


@named_methods
class View:
    """A run to look at. As the last line of a notebook's cell it shows itself; `save` writes it as one HTML file.

    Attributes:
        trace: The run, as the page reads it.
    """

    def __init__(self, trace: Trace, second: Trace | None = None) -> None:
        self.trace = trace
        self._second = second

    def html(self, examples: Sequence[Mapping[str, Any]] = ()) -> str:
        """The page: it holds everything, and asks nobody for anything."""
        return page(self.trace, self._second, examples)

    def save(self, path: str | Path) -> None:
        """Write the page into a file, whole or not at all."""
        atomic.write_text(path, self.html())

    def __repr__(self) -> str:
        header = self.trace.header
        ids = self.trace["prediction.top.ids"].data[-1][:3].tolist()
        likely = ", ".join(visible(header["vocabulary"][str(i)]) for i in ids)
        left_out = [one["what"] for one in header["left_out"]]
        gone = f", without {', '.join(left_out)}" if left_out else ""
        return (
            f"View of {shown(header['text'])} in {header['model']['name']}: {counted(len(header['tokens']), 'token')}, "
            f"likely next {likely}{gone}. Save it with .save('page.html')."
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows: the view, or a picture or a line if it cannot run scripts."""
        found: dict[str, Any] = {"text/plain": repr(self), "text/html": cell(self.trace, self._second)}
        picture = self._png()
        if picture is not None:
            found["image/png"] = picture
        return found

    def _png(self) -> bytes | None:
        """A figure that stands for the view where a notebook is shown without its scripts; None if there is none."""
        try:
            need("matplotlib", "a view's picture")
            axes = self._figure()
        except (MissingExtraError, InputError):  # of one token many heads have no score, and no blocks have none
            return None
        out, figure = io.BytesIO(), axes.get_figure()
        figure.savefig(out, format="png")
        if pyplot := sys.modules.get("matplotlib.pyplot"):  # a cell would show it as a figure of its own
            pyplot.close(figure)
        return out.getvalue()

    def _figure(self) -> Any:
        block, tokens = self.trace.get("attention.pattern"), [token["text"] for token in self.trace.header["tokens"]]
        if block is None or len(tokens) > _MOST_DRAWN or not 0 < block.data[..., 0].size <= _MOST_DRAWN:
            return plot.head_scores(self.trace["attention.measures"].data[-1])
        patterns = np.zeros((*block.data.shape[:2], len(tokens), len(tokens)))
        patterns[:, :, *np.tril_indices(len(tokens))] = block.values
        return plot.attention_grid(patterns, tokens=tokens)


@named_arguments()
def view(
    model: CkptedTransformer,
    text: Inputs,
    *,
    edits: Edit | Sequence[Edit] = (),
    target: Token | None = None,
    sae: SparseAutoencoder | None = None,
) -> View:
    """Run a text and look at it: attention, the next token, the logit lens, who wrote it, neurons, every checkpoint.

    Args:
        model: What runs, of any family.
        text: One text, or the ids of one.
        edits: Changes on the way. The page then shows the run without them, too.
        target: The token whose logit is explained, an id or a text that is one token; None for the likeliest next one.
        sae: An autoencoder, whose features the screen of neurons then shows in their place.

    Raises:
        InputError: If it is not one text, is longer than the context or too large for a view, or has no such token.
        MissingExtraError: xarray is not installed.

    Example:
        >>> import pellucid as pl
        >>> seen = pl.view(pl.load(), "Once upon a time")
        >>> seen
        View of 'Once upon a time' in bundled: 4 tokens, likely next ,, ·there, ·a. Save it with .save('page.html').
        >>> seen.save("page.html")
    """
    changes = [edits] if isinstance(edits, Edit) else list(edits)
    if sae is not None:
        require_fitting(sae, model)
    made = trace(model, text, edits=changes, target=target, sae=sae)
    return View(made, trace(model, text, target=target, sae=sae) if changes else None)


def view_of(
    ckpts: ActivationCkpts, *, text: int = 0, target: Token | None = None, model: Network | None = None
) -> View:
    """Look at a run that was captured; `ActivationCkpts.view` says what the arguments are."""
    return View(trace_of(ckpts, text=text, target=target, model=model))


@named_arguments()
def save_view(what: Any, path: str | Path) -> None:
    """Write what can be looked at as one HTML file, which loads nothing from anywhere.

    Args:
        what: A view, a trace, the captured values of a run, or a report such as what `pl.compare` returns.
        path: Where; an existing file is replaced whole or not at all.

    Raises:
        InputError: If it is something else, or the captured values cannot be viewed.
        WeightsError: If it cannot be written.

    Example:
        >>> import pellucid as pl
        >>> _, ckpts = pl.load().run_with_ckpts("Once upon a time")
        >>> pl.save_view(ckpts, "page.html")
    """
    if isinstance(what, ActivationCkpts):
        what = view_of(what)
    if isinstance(what, Trace):
        what = View(what)
    if isinstance(what, View):
        what.save(path)
    elif callable(getattr(what, "page", None)):
        save_html(what, path)
    else:
        raise InputError(
            f"save_view: {type(what).__name__} given, expected captured values, a view or a report.",
            code="no-view",
            remedy="Give what run_with_ckpts, pl.view or pl.compare returned.",
        )
