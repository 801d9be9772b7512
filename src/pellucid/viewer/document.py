"""Pages of the viewer as HTML: one file, a notebook's cell, or what the server sends.

Nothing that a model or a text says becomes markup: it is base64, JSON without "<", or escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pellucid.errors import visible
from pellucid.viewer.container import Trace

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
