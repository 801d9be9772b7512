"""`pellucid demo`: what the tour says is computed, and would be different if it were not so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
import support
from pages import balanced
from pellucid.cli.shared import demo_page
from pellucid.cli.work import demo
from pellucid.html.page import Page


@pytest.fixture(scope="module")
def run(bundled: pl.CkptedTransformer) -> tuple[torch.Tensor, pl.ActivationCkpts]:
    """The demo's text through the library."""
    logits, ckpts = bundled.run_with_ckpts(demo.TEXT)
    assert logits is not None
    return logits, ckpts


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page goes into a folder of the test's own, and is written by the tests that are about it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "write_page", lambda model, path: path.write_text("a page", encoding="utf-8"))


def test_json(cli_json: Any, bundled: Any, run: Any) -> None:
    logits, ckpts = run
    found = cli_json("demo")
    assert list(found) == ["text", "tokens", "ids", "sizes", "heads", "checkpoints", "next", "proof", "page"]
    assert "".join(found["tokens"]) == found["text"] == demo.TEXT
    assert found["ids"] == bundled.tokenizer.encode(demo.TEXT)
    assert found["sizes"] == {"blocks": 4, "heads": 4, "width": 256, "parameters": 4273664}
    assert [one["name"] for one in found["checkpoints"]] == [
        f"blocks.{found['heads']['layer']}.{name}" for name in support.schema(1).in_blocks
    ]
    assert found["next"][0]["id"] == int(logits[0, -1].argmax())
    assert found["proof"] == {"equal": True, "numbers": logits.numel(), "checkpoints": len(ckpts)}


def test_the_scores_and_the_winner(cli_json: Any, run: Any) -> None:
    _, ckpts = run
    heads = cli_json("demo")["heads"]
    by_hand = {}
    for layer, row in enumerate(heads["scores"]):
        for head, score in enumerate(row):
            pattern = ckpts[f"blocks.{layer}.attn.ckpt_pattern"][0, head]
            looks = [float(pattern[query, query - 1]) for query in range(1, len(pattern))]
            by_hand[layer, head] = sum(looks) / len(looks)
            assert score == pytest.approx(by_hand[layer, head], rel=1e-5)
    assert len(by_hand) == 16
    assert (heads["layer"], heads["head"]) == max(by_hand, key=lambda place: by_hand[place])
    assert heads["score"] == max(map(max, heads["scores"]))
    winner = ckpts[f"blocks.{heads['layer']}.attn.ckpt_pattern"][0, heads["head"]]
    assert heads["pattern"] == winner.tolist()


def test_a_head_that_looks_back_is_found() -> None:
    pattern = torch.full((3, 2, 5, 5), 0.2).tril()
    pattern[:, :, 0, 0] = 1.0
    pattern[2, 1] = torch.eye(5).roll(-1, 1)  # each query looks at the key before it
    pattern[2, 1, 0] = torch.eye(5)[0]
    pattern[0, 1] = torch.eye(5)  # each at itself: no previous-token head
    found = demo.previous_token_heads(pattern)
    assert (found.layer, found.head, found.score) == (2, 1, 1.0)
    assert found.scores[0][1] == 0.0
    assert found.scores[1][0] == pytest.approx(0.2)


def test_text(cli: Any, cli_json: Any) -> None:
    found, shown = cli_json("demo"), cli("demo").stdout
    heads = found["heads"]
    assert f"Head {heads['head']} of block {heads['layer']} has the highest" in shown
    lines = shown.splitlines()
    marked = [line for line in lines if "◀" in line]
    assert len(marked) == 1
    assert marked[0].startswith(f"block {heads['layer']} ")
    assert f"{heads['score']:.2f}◀" in marked[0]
    for layer, row in enumerate(heads["scores"]):
        line = next(line for line in lines if line.startswith(f"block {layer} "))
        assert [word.rstrip("◀") for word in line.split() if "." in word] == [f"{score:.2f}" for score in row]
    for one in found["checkpoints"]:
        line = next(line for line in lines if line.startswith(f"{one['name']} "))
        assert one["meaning"] in line
    likeliest = found["next"][0]
    assert f"{likeliest['token'].replace(' ', '·')} " in shown
    assert f"{likeliest['probability']:.1%}" in shown
    assert "equal to the last bit" in shown
    assert max(map(len, lines)) <= 80


def test_an_answer_that_looking_changes_is_1(cli: Any, cli_json: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    look = pl.CkptedTransformer.run_with_ckpts

    def meddle(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits, ckpts = look(self, *args, **kwargs)
        assert logits is not None
        logits[0, 3, 5] = torch.nextafter(logits[0, 3, 5], torch.tensor(torch.inf))
        return logits, ckpts

    monkeypatch.setattr(pl.CkptedTransformer, "run_with_ckpts", meddle)
    result = cli("demo")
    assert result.exit_code == 1
    assert "DIFFERENT" in result.stdout
    assert "equal to the last bit" not in result.stdout
    assert cli_json("demo", expect=1)["proof"]["equal"] is False


BARE = {name: value for name, value in os.environ.items() if name != "PATH"} | {"PATH": "/usr/bin:/bin"}
"""A shell that does not find the program by its name."""
WITHOUT_THE_PAGE = """
from pellucid.cli.work import demo
demo.write_page = lambda model, path: path.write_text("a page", encoding="utf-8")
"""
"""What a program runs before anything else, so that it writes no page: that takes seconds."""
BEGIN = """
import runpy, sys
sys.argv = ["env/pellucid", "demo"]
{}
runpy.run_path("env/pellucid", run_name="__main__")
"""


@pytest.mark.parametrize(
    "before", [WITHOUT_THE_PAGE, pytest.param("", marks=pytest.mark.long)], ids=["without its page", "with it"]
)
def test_as_a_command_in_a_pipe(before: str, cli: Any, tmp_path: Path) -> None:
    """As `make demo` calls it, by a path; and what it says to type runs where it was typed."""
    (tmp_path / "env").symlink_to(Path(sys.executable).parent)
    (tmp_path / "begin.py").write_text(BEGIN.format(before), encoding="utf-8")
    command = [sys.executable, "begin.py"] if before else ["env/pellucid", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=BARE, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "equal to the last bit" in done.stdout
    assert done.stdout.endswith("more of it in pellucid-demo.html\n")
    if not before:
        as_promised((tmp_path / "pellucid-demo.html").read_text(encoding="utf-8"))
    line = next(line for line in done.stdout.splitlines() if 'run "your own text"' in line)
    assert line.split("  ")[0] == 'env/pellucid run "your own text"'
    assert cli("run", "your own text").exit_code == 0


def as_promised(html: str) -> None:
    """That a page holds all of the tour, and needs nothing else."""
    assert balanced(html)
    around = re.sub(r'srcdoc="[^"]*"', "", html)
    assert len(around) < len(html) - 500_000, "the view is in the page"
    assert html.index("<iframe") < html.index("Samples, not picked"), "and is what one sees first"
    assert not re.search(r"https?://|<script|<link|@import|url\(", around), "it needs no network"
    for words in (
        "identical to transformers", "Samples, not picked", "equal to the bit", "What attention adds, by layer",
        "embed.W_E", "lag1", "Every head",
    ):  # fmt: skip
        assert words in html
    assert html.count("data:image/svg+xml;base64,") == 6


def test_the_page(bundled: Any, tmp_path: Path) -> None:
    demo_page.write_page(bundled, tmp_path / "page.html")
    as_promised((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_the_card_is_the_shipped_one() -> None:
    sections = list(demo_page.card_sections(demo_page.CARD.read_text(encoding="utf-8")))
    table = next(section for section in sections if section.kind == "table")
    card = json.loads((demo_page.CARD.parent / "card.json").read_text(encoding="utf-8"))
    shown = {row[0]: row[1] for row in table.rows}
    assert shown["Indirect-object sentences answered right"] == f"{card['figures']['indirect_object']['accuracy']:.3f}"
    samples = [section.text for section in sections if "Once upon a time" in getattr(section, "text", "")]
    expected = [" ".join((s["prompt"] + s["text"]).split()) for s in card["figures"]["samples"]]
    assert [text.replace("> ", "") for text in samples] == expected


def test_without_the_extras_the_page_says_so(bundled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise pl.MissingExtraError("not here", code="missing-extra", remedy="pip")

    monkeypatch.setattr(demo_page.pl, "to_hf", missing)
    monkeypatch.setattr(demo_page, "_measured", missing)
    html = demo_page.page_of(bundled, demo_page.CARD.read_text(encoding="utf-8")).render()
    assert "pip install &#39;pellucid[hf]&#39;" in html
    assert "pip install &#39;pellucid[stats]&#39;" in html
    assert "identical to transformers" not in html


def test_a_page_that_cannot_be_written(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(demo, "write_page", lambda model, path: pl.save_html(Empty(), path))
    result = cli("demo", "--html", "file/page.html")
    assert result.exit_code == 4
    assert "path-not-writable" in result.stderr


class Empty:
    def page(self) -> Page:
        return Page("empty", "", None, "", ())
