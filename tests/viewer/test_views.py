"""A view as a file, in a notebook and from the command line: it holds all, loads nothing, escapes what it shows."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from watched_page import Watched

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.cli import app
from pellucid.viewer import Trace, views

TEXT = "Lily and Tom went to the park. Tom gave a ball to"
OF_24 = "Once upon a time there was a little girl named Lily. She liked to play with her friend Tom in the park."
HOSTILE = "</script><img src=x onerror=window.bad=1> \"'><b>& \u202ereversed\u202c \u200b<!--<script>"
Open = Callable[..., Watched]


class Parsed(html.parser.HTMLParser):
    """The elements of a page, with their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        key = attributes.get("id") or tag
        self.text[key] = self.text.get(key, "") + data


@pytest.fixture(scope="module")
def model() -> pl.CkptedTransformer:
    return pl.load()


def trace_in(page: str) -> Trace:
    return Trace.from_bytes(base64.b64decode(Parsed(page).text["pellucid-trace"]))


def test_a_page_holds_everything_and_loads_nothing(model: pl.CkptedTransformer, tmp_path: Path) -> None:
    pl.view(model, OF_24).save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(model.tokenize(OF_24).ids[0]) == 24
    assert len(page.encode()) <= 2_000_000
    parsed = Parsed(page)
    assert parsed.text["title"].strip() == f"{OF_24} · pellucid"
    tags = [tag for tag, _ in parsed.elements]
    assert set(tags) == {"html", "head", "meta", "title", "body", "script", "div", "p"}
    assert all(not {"src", "href", "style"} & set(attributes) for _, attributes in parsed.elements)
    assert ("div", {"id": "pellucid-viewer"}) in parsed.elements
    assert set(re.findall(r"url\(([^#)]+)\)", page)) == set()
    policy = next(a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(views.script().encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-" + digest)
    assert trace_in(page).header["left_out"] == []
    assert "</script" not in views.script()


def test_what_is_hostile_is_text(model: pl.CkptedTransformer, opened: Open, tmp_path: Path) -> None:
    seen = pl.view(model, HOSTILE)
    seen.trace.header["model"]["name"] = HOSTILE
    seen.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in Parsed(page).elements].count("script") == 3  # the trace, the readings and the viewer
    assert "img" not in {tag for tag, _ in Parsed(page).elements}
    assert "\u202e" not in page
    assert "\\u202e" in Parsed(page).text["title"]
    watched = opened(tmp_path / "page.html")
    assert watched.run("window.bad") is None
    assert watched.run("document.querySelectorAll('img').length") == 0
    listed = views.page(seen.trace, examples=[{"id": "x", "text": HOSTILE, "look_for": HOSTILE}])
    assert [tag for tag, _ in Parsed(listed).elements].count("script") == 4
    cell = views.cell(seen.trace)
    assert [tag for tag, _ in Parsed(cell).elements].count("script") == 1
    assert "\u202e" not in cell


def test_a_saved_page_opens_from_a_file_and_in_a_sandbox(
    model: pl.CkptedTransformer, opened: Open, tmp_path: Path
) -> None:
    seen = pl.view(model, TEXT)
    seen.save(tmp_path / "page.html")
    watched = opened(tmp_path / "page.html")
    assert watched.page.locator(".token").count() == len(seen.trace.header["tokens"])
    assert watched.run("document.title") == f"{TEXT} · pellucid"
    frame = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{html.escape(seen.html())}"></iframe>'
    (tmp_path / "frame.html").write_text(f'<!doctype html><meta charset="utf-8">{frame}', encoding="utf-8")
    outside = opened(tmp_path / "frame.html", until="iframe")
    inside = outside.page.frame_locator("iframe").locator(".token")
    inside.first.wait_for()
    assert inside.count() == len(seen.trace.header["tokens"])


def test_two_cells_of_a_notebook_do_not_meet(model: pl.CkptedTransformer, opened: Open, tmp_path: Path) -> None:
    cells = [pl.view(model, text)._repr_mimebundle_()["text/html"] for text in (TEXT, "Once upon a time")]
    (tmp_path / "notebook.html").write_text('<!doctype html><meta charset="utf-8">' + "".join(cells), encoding="utf-8")
    watched = opened(tmp_path / "notebook.html", until="div[id^=pellucid-]")
    hosts = "[...document.querySelectorAll('div[id^=pellucid-]')]"
    counts = f"{hosts}.map((host) => host.shadowRoot.querySelectorAll('.token').length)"
    watched.page.wait_for_function(f"{counts}.every((n) => n > 0)")
    assert watched.run(counts) == [len(model.tokenize(TEXT).ids[0]), 4]
    assert watched.run("document.querySelectorAll('.token').length") == 0
    assert watched.run(f"{hosts}.map((host) => host.getBoundingClientRect().height)") == [720, 720]


def test_what_a_notebook_shows(model: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot as plt

    seen, before = pl.view(model, TEXT), plt.get_fignums()
    shown = seen._repr_mimebundle_()
    assert plt.get_fignums() == before, "the picture is not a figure of the cell's own"
    assert set(shown) == {"text/html", "image/png", "text/plain"}
    assert shown["image/png"].startswith(b"\x89PNG")
    assert shown["text/plain"] == repr(seen)
    assert repr(seen).startswith(
        f"View of {TEXT!r} in bundled: {len(model.tokenize(TEXT).ids[0])} tokens, likely next "
    )
    assert 'attachShadow({mode:"open"})' in shown["text/html"]

    def missing(module: str, by: str) -> Any:
        raise pl.MissingExtraError("not there", code="missing-extra", remedy="install it")

    monkeypatch.setattr(views, "need", missing)
    assert set(seen._repr_mimebundle_()) == {"text/html", "text/plain"}
    wide = pl.view(support.glass(n_head=24, n_embd=48, n_positions=64), [[1, 2, 3]])
    monkeypatch.undo()
    assert wide._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")
    for other in (support.glass(n_layer=9, n_head=8, n_embd=16), support.glass(n_layer=0)):  # nothing of one token
        assert set(pl.view(other, [[1]])._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_an_edited_view_shows_the_run_without_its_edits_too(model: pl.CkptedTransformer) -> None:
    seen = pl.view(model, TEXT, edits=pl.Edit.zero("blocks.2.attn.ckpt_z", heads=[1]))
    parsed = Parsed(seen.html())
    edited, plain = (Trace.from_bytes(base64.b64decode(parsed.text[f"pellucid-trace{end}"])) for end in ("", "-2"))
    with torch.no_grad():
        assert (plain["prediction.logits"].data == model(TEXT)[0, -1].numpy()).all()
    assert not (plain["prediction.logits"].data == edited["prediction.logits"].data).all()
    assert (len(edited.header["edits"]), plain.header["edits"]) == (1, [])


EDITS = [pl.Edit.zero("blocks.2.attn.ckpt_z", heads=[1])]


@pytest.mark.parametrize(
    ("text", "edits"),
    [
        pytest.param(TEXT, [], marks=pytest.mark.long),
        ('it\'s "quoted" $HOME `x` \\n\nnext', []),
        ([[5, 9, 300, 5]], []),
        (TEXT, EDITS),
    ],
    ids=["text", "quotes", "ids", "edited"],
)
def test_the_calls_make_the_same_run_again(
    model: pl.CkptedTransformer, text: Any, edits: list[pl.Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = pl.view(model, text, edits=edits).trace
    calls = made.header["calls"]
    names: dict[str, Any] = {}
    exec(calls["values"], names)
    assert (names["logits"][0, -1].numpy() == made["prediction.logits"].data).all()
    exec(calls["python"].replace("pl.view(", "seen = pl.view("), names)
    again = [names["seen"].trace]
    if edits:
        assert calls["shell"] is None
    else:
        program, *words = shlex.split(calls["shell"])
        assert program == "pellucid"
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        again.append(trace_in(Path("page.html").read_text(encoding="utf-8")))
    for one in again:
        assert one.header == made.header
        assert all(one[name].data.tobytes() == made[name].data.tobytes() for name in made)


def test_a_model_of_a_folder_is_opened_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pl.load().save_pretrained("a 'model'")
    made = pl.view(pl.load("a 'model'", dtype="float64"), "Once upon").trace
    names: dict[str, Any] = {}
    exec(made.header["calls"]["python"].replace("pl.view(", "seen = pl.view("), names)
    assert names["seen"].trace.header == made.header
    assert CliRunner().invoke(app, shlex.split(made.header["calls"]["shell"])[1:]).exit_code == 0
    assert trace_in(Path("page.html").read_text(encoding="utf-8")).header == made.header
    fast = pl.view(pl.load(numerics="fast"), "Once upon").trace.header["calls"]
    assert (fast["python"], fast["shell"]) == (
        "import pellucid as pl\n\nmodel = pl.load(numerics='fast')\npl.view(model, 'Once upon')", None,
    )  # fmt: skip
    assert set(pl.view(support.glass(), [[1]]).trace.header["calls"].values()) == {None}


def test_everything_that_can_be_looked_at_is_saved(model: pl.CkptedTransformer, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    ckpts = model.run_with_ckpts(TEXT)[1]
    for what in (ckpts, ckpts.view(), ckpts.view().trace):
        pl.save_view(what, path)
        assert trace_in(path.read_text(encoding="utf-8")).header["text"] == TEXT
    pl.save_view(pl.compare(model, pl.load(), inputs="Once upon a time"), path)
    assert "identical" in path.read_text(encoding="utf-8")


def test_the_command_line_writes_a_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["view", TEXT, "--html", str(path), "--token", " Lily", "--json"])
    said = json.loads(done.stdout)
    assert (said["page"], said["bytes"], said["left_out"]) == (str(path), path.stat().st_size, [])
    assert said["target"]["text"] == trace_in(path.read_text(encoding="utf-8")).header["target"]["text"] == " Lily"
    for words, code in (
        ([""], 4),
        ([TEXT, "-m", "nowhere/at/all"], 3),
        (["a " * 400], 4),
        ([], 2),
        (["two", "words"], 2),
    ):
        refused = CliRunner().invoke(app, ["view", *words, "--html", str(tmp_path / "other.html")])
        assert (refused.exit_code, (tmp_path / "other.html").exists()) == (code, False), words
    assert CliRunner().invoke(app, ["view", TEXT, "--html", str(tmp_path)]).exit_code == 4


def _saved(here: Any, what: Any) -> None:
    pl.save_view(what, here[1])


REMEDIES: dict[str, list[Case]] = {
    "no-view": [Case(lambda h: _saved(h, 3), "run_with_ckpts", lambda h: _saved(h, h[0].run_with_ckpts("a")[1]))]
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_a_remedy_helps(code: str, case: Case, model: pl.CkptedTransformer, tmp_path: Path) -> None:
    follow(code, case, (model, tmp_path / "p.html"))
