"""Every figure can be walked, read as a table, and taken away in every form, and says the trace's own numbers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from watched_page import Watched, content, rows_of, taken
from written_traces import WORDS, numbers, page_of, written

Open = Callable[..., Watched]
SHOWN = [word.replace(" ", "␣").replace("\n", "⏎") for word in WORDS]


def test_a_figure_leaves_the_page_in_every_form(opened: Open) -> None:
    watched = opened(state="#attention?layer=1&head=1")
    title = "Layer 1, head 1"
    svg = ET.fromstring(taken(watched, title, "SVG").read_text(encoding="utf-8"))
    texts = ["".join(one.itertext()) for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert title in texts
    assert set(SHOWN) <= set(texts)
    with Image.open(taken(watched, title, "PNG")) as picture:
        assert picture.size == (3 * int(svg.attrib["width"]), 3 * int(svg.attrib["height"]))
    pdf = taken(watched, title, "PDF").read_bytes()
    assert pdf.startswith(b"%PDF-1.4")
    assert pdf.endswith(b"%%EOF\n")
    place = int(pdf.rsplit(b"startxref\n", 1)[1].split()[0])
    assert pdf[place : place + 4] == b"xref"
    entries = pdf[place:].split(b"\n")[3:9]
    assert [pdf[int(entry.split()[0]) :][:7] for entry in entries] == [b"%d 0 obj" % at for at in range(1, 7)]
    said = json.loads(taken(watched, title, "JSON").read_text(encoding="utf-8"))
    assert said["text"] == "".join(WORDS)
    assert said["model"]["fingerprint"] == "sha256:" + "0" * 64
    assert said["python"] == 'import pellucid as pl\n\nckpts["blocks.1.attn.ckpt_pattern"][0, 1]\n'
    pattern = (numbers(written())["attention.pattern"][1, 1] / 255.0) ** 2
    assert [row[-1] for row in said["rows"]] == pytest.approx(pattern.tolist(), rel=1e-6)
    kept = taken(watched, title, "CSV").read_bytes().decode("utf-8")
    assert kept == content(watched, title, "CSV"), "which is what tests of numbers read"


def test_names_lines_and_links_are_copied(opened: Open) -> None:
    watched = opened(state="#overview?q=2")
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    watched.page.bring_to_front()
    copied = []
    for form in ("Copy as Python", "Copy as command line", "Copy link"):
        figure = watched.figure("What comes next")
        figure.locator("summary").click()
        figure.get_by_role("button", name=form).click()
        watched.page.wait_for_selector(".notice span")
        copied.append(watched.run("navigator.clipboard.readText()"))
    assert copied[0].endswith("probabilities = logits[0, 2].softmax(-1)\nprobabilities.topk(8)\n")
    assert copied[1] == "pellucid view"
    assert copied[2].endswith(".html#overview?q=2")


def test_the_cursor_reads_each_cell_and_stays_among_them(opened: Open) -> None:
    watched = opened(state="#attention?layer=0&head=1&q=4")
    pattern = (numbers(written())["attention.pattern"][0, 1] / 255.0) ** 2
    watched.canvas("Layer 0, head 1").focus()

    def cell(query: int, key: int) -> str:
        share = pattern[query * (query + 1) // 2 + key]
        return f"query ‘{SHOWN[query]}’ → key ‘{SHOWN[key]}’, {share:.2f}"

    walk = {"ArrowDown": (4, 0), "ArrowRight": (4, 1), "ArrowUp": (3, 1), "End": (3, 3)}
    for pressed, where in walk.items():
        watched.page.keyboard.press(pressed)
        assert watched.said() == cell(*where)
    watched.page.keyboard.press("ArrowRight")  # a later key is no cell
    assert watched.said() == cell(3, 3)
    lit = watched.page.locator(".token.at-query, .token.at-key")
    watched.wait("document.querySelectorAll('.token.at-query, .token.at-key').length == 1")  # drawn after it is said
    assert lit.all_inner_texts() == [SHOWN[3]]
    watched.page.keyboard.press("Enter")
    watched.wait("location.hash.includes('k=3') && location.hash.includes('q=3')")


def test_the_pointer_lights_the_same_tokens_everywhere(opened: Open) -> None:
    watched = opened(state="#attention?layer=0&head=0")
    canvas = watched.canvas("Layer 0, head 0")
    box = canvas.bounding_box()
    assert box is not None
    canvas.hover(position={"x": box["width"] * 0.5, "y": box["height"] * 0.8})
    said = watched.figure("Layer 0, head 0").locator(".readout").inner_text()
    lit = watched.page.locator(".token.at-query").inner_text(), watched.page.locator(".token.at-key").inner_text()
    assert said.startswith(f"query ‘{lit[0]}’ → key ‘{lit[1]}’, ")
    watched.page.mouse.move(2, 2)
    assert watched.page.locator(".token.at-query, .token.at-key").count() == 0


def test_the_steps_of_attention_are_those_of_the_run(opened: Open) -> None:
    watched = opened(state="#attention?layer=1&head=1&q=5")
    found = numbers(written())
    products = found["attention.k"][1, :, 1].astype("f8") @ found["attention.q"][1, 5, 1].astype("f8")
    scaled = products[:6] * 8**-0.5
    shares = np.exp(scaled) / np.exp(scaled).sum()
    title = f"How ‘{SHOWN[5]}’ divides its attention"
    rows = rows_of(watched, title)
    assert rows[0] == ["key", "token", "q_dot_k", "scaled", "masked", "share"]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(products.tolist(), rel=1e-9)
    assert [float(row[5]) for row in rows[1:7]] == pytest.approx(shares.tolist(), rel=1e-9)
    assert [row[4:] for row in rows[7:]] == [["masked", "0"]] * 3


def test_heads_are_sorted_by_their_measures(opened: Open) -> None:
    watched = opened(state="#attention")
    for at, measure in enumerate(["previous", "first", "induction", "duplicate", "entropy"]):
        watched.page.get_by_role("combobox", name="Sort by").select_option(measure)
        values = numbers(written())["attention.measures"][at].ravel()
        order = np.argsort(values if measure == "entropy" else -values, kind="stable")
        rows = rows_of(watched, "All heads")
        assert [(int(row[0]), int(row[1])) for row in rows[1:]] == [divmod(int(at), 2) for at in order], measure


def test_the_overview_says_the_norms_and_the_most_probable_tokens(opened: Open) -> None:
    watched = opened(state="#overview?q=3")
    found = numbers(written())
    rows = rows_of(watched, "What comes next")
    assert [int(row[1]) for row in rows[1:]] == found["prediction.top.ids"][3, :8].tolist()
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(
        np.exp(found["prediction.top.logprobs"][3, :8]).tolist()
    )
    assert '"\'\n"' in content(watched, "The ladder of blocks", "CSV"), "no token is computed by a spreadsheet"
    norms = [row for row in rows_of(watched, "The ladder of blocks") if row[0] == "mlp_out"]
    assert [float(row[4]) for row in norms] == pytest.approx(found["norms"][3].ravel().tolist())


def test_what_is_missing_is_said_in_the_words_of_the_trace(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(written(without=["attention.q", "attention.value_norm"])), encoding="utf-8")
    watched = opened(path, state="#attention")
    assert "attention.q is too large for this page" in watched.page.locator(".missing").inner_text()
    assert watched.page.get_by_text("weighted by the norm of the value").count() == 0
