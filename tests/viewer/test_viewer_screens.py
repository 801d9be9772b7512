"""The screens say the trace's own numbers, and what they compute is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import torch
from watched_page import Watched, content, rows_of
from written_traces import WORDS, numbers, page_of, written

import pellucid as pl

Open = Callable[..., Watched]
SHOWN = [word.replace(" ", "␣").replace("\n", "⏎") for word in WORDS]


def test_the_lens_says_what_each_layer_would_say(opened: Open) -> None:
    watched = opened(state="#lens?row=1&q=2")
    found = numbers(written())
    head, *rows = rows_of(watched, "What each layer would say")
    assert len(rows) == 3 * len(WORDS)
    for name, block in {"entropy": "lens.entropy", "kl": "lens.kl"}.items():
        assert [float(row[head.index(name)]) for row in rows] == pytest.approx(found[block].ravel().tolist())
    next_ranks = [int(row[head.index("next_rank")]) for row in rows]
    assert next_ranks == (found["lens.next_rank"].ravel() + 1).tolist()
    cell = rows_of(watched, f"At the pinned cell: after 0, at ‘{SHOWN[2]}’")[1:]
    assert [int(row[1]) for row in cell] == found["lens.ids"][1, 2].tolist()
    target = int(found["prediction.logits"].argmax())
    rise = rows_of(watched, f"How ‘␣w{target}’ comes up")[1:]
    assert [int(row[1]) for row in rise] == (found["lens.rank"][:, 2] + 1).tolist()
    adds = rows_of(watched, f"What attention and the MLPs add to ‘␣w{target}’")[1:]
    assert [row[0] for row in adds] == ["embeddings", "0 attention", "0 MLP", "1 attention", "1 MLP", "final offset"]
    assert sum(float(row[1]) for row in adds) == pytest.approx(found["attribution.logit"][0], rel=1e-12)


def test_the_answer_stays_from_the_row_on_that_is_said(opened: Open) -> None:
    watched = opened(state="#lens")
    first = numbers(written())["lens.ids"][..., 0]
    said = rows_of(watched, "From where on the answer stays")[1:]
    names = ["embeddings", "after 0", "after 1"]
    for pos, row in enumerate(said):
        start = names.index(row[2])
        assert len(set(first[start:, pos].tolist())) == 1
        assert start == 0 or first[start - 1, pos] != first[start, pos]


def test_the_river_closes_and_says_what_is_left(opened: Open) -> None:
    watched = opened(state="#river")
    found = numbers(written())
    total, logit = found["attribution.components"].sum(), found["attribution.logit"][0]
    target = int(found["prediction.logits"].argmax())
    seen = set[int]()
    for by in ("source", "head", "layer", "kind"):
        watched.page.get_by_role("combobox", name="Streams are").select_option(by)
        _, *rows = rows_of(watched, f"The river of ‘␣w{target}’")
        seen.add(len(rows))
        assert len({row[0] for row in rows}) == len(rows)
        assert sum(float(row[-1]) for row in rows) == pytest.approx(total, rel=1e-9)
        # After the first block's attention the streams are the embeddings' and those heads' parts.
        early = found["attribution.components"][:5].sum()
        assert sum(float(row[2]) for row in rows) == pytest.approx(early, rel=1e-9)
    assert len(seen) > 1
    sums = watched.page.locator(".closing dd").all_inner_texts()
    assert float(sums[0].replace("−", "-")) == pytest.approx(total, rel=1e-14)
    assert float(sums[1].replace("−", "-")) == logit
    left = float(sums[1].replace("−", "-")) - float(sums[0].replace("−", "-"))
    assert float(sums[2].replace("−", "-")) == pytest.approx(left, rel=1e-3)


def test_what_does_not_add_up_is_said(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(written(remainder=0.25)), encoding="utf-8")
    watched = opened(path, state="#river")
    assert watched.page.locator(".closing dd").nth(2).inner_text() == "2.500e−1"


def test_the_atlas_names_every_number(opened: Open) -> None:
    watched = opened(state="#atlas?tile=blocks.1.attn.ckpt_z")
    watched.context.grant_permissions(["clipboard-read", "clipboard-write"])
    watched.page.bring_to_front()
    value = numbers(written())["atlas.blocks.1.attn.ckpt_z"][2, 1, 3]
    watched.canvas("blocks.1.attn.ckpt_z").focus()
    for key in ["ArrowDown"] * 3 + ["ArrowRight"] * 11:
        watched.page.keyboard.press(key)
    said = watched.said()
    assert said.startswith('ckpts["blocks.1.attn.ckpt_z"][0, 2, 1, 3] ≈ ')
    assert said.endswith(f"(pos ‘{SHOWN[2]}’, head 1, d_head 3)")
    assert float(said.split("≈ ")[1].split(" ")[0].replace("−", "-")) == pytest.approx(float(value), rel=1e-3)
    watched.page.keyboard.press("Enter")
    watched.page.wait_for_selector(".notice span")
    assert watched.run("navigator.clipboard.readText()") == 'ckpts["blocks.1.attn.ckpt_z"][0, 2, 1, 3]'
    rows = rows_of(watched, "blocks.1.attn.ckpt_z")
    assert rows[0] == ["batch", "pos", "head", "d_head", "value"]
    assert len(rows) == 1 + len(WORDS) * 2 * 8


def test_the_atlas_leads_from_the_whole_model_to_one_checkpoint_and_back(opened: Open) -> None:
    watched = opened(state="#atlas")
    canvas = watched.canvas("The atlas of this run")
    canvas.focus()
    for key in ["ArrowDown"] * 10:
        watched.page.keyboard.press(key)
    assert watched.said().startswith("blocks.0.attn.ckpt_pattern")
    watched.page.keyboard.press("Enter")
    watched.canvas("blocks.0.attn.ckpt_pattern").focus()
    watched.page.keyboard.press("Escape")
    assert watched.figure("The atlas of this run").count() == 1
    assert len(rows_of(watched, "The atlas of this run")) == 1 + 2 + 2 * 17 + 2


SETTINGS: list[dict[str, float]] = [
    {"temperature": 0.0},
    {"temperature": 0.6, "top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.0},
    {"temperature": 1.4, "top_k": 20, "top_p": 0.35, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
    {},
]


def test_the_stages_are_those_of_the_sampler(opened: Open) -> None:
    watched = opened(state="#prediction")
    logits = torch.from_numpy(numbers(written())["prediction.logits"].copy())
    for settings in SETTINGS:
        watched.run(f"location.hash = '#prediction?{urlencode(settings)}'")
        watched.drawn()
        stages_are_those_of(watched, settings, logits)


def stages_are_those_of(watched: Watched, settings: dict[str, float], logits: torch.Tensor) -> None:
    expected = pl.Sampler(**settings).explain(logits, ids=range(len(WORDS)))  # type: ignore[arg-type]
    head, *rows = rows_of(watched, "Stage by stage")
    assert head == ["token", "id", *expected]
    ids = [int(row[1]) for row in rows]
    for name, probabilities in expected.items():
        found = torch.tensor([float(row[head.index(name)]) for row in rows])
        torch.testing.assert_close(found, probabilities[ids], rtol=1e-5, atol=1e-7)
        assert ((found == 0) == (probabilities[ids] == 0)).all()
    said = json.loads(content(watched, "Stage by stage", "JSON"))["python"]
    space: dict[str, Any] = {"logits": logits[None, None]}
    assert {name: p.tolist() for name, p in run_last(said, space).items()} == {
        name: p.tolist() for name, p in expected.items()
    }


def run_last(code: str, space: dict[str, Any]) -> Any:
    """The value of the last line of a code."""
    *lines, last = code.strip().splitlines()
    exec("\n".join(lines), space)
    return eval(last, space)


def test_moving_a_slider_changes_the_stages(opened: Open) -> None:
    watched = opened(state="#prediction")
    slider = watched.page.get_by_role("slider", name="Top-k")
    slider.focus()
    for _ in range(5):
        watched.page.keyboard.press("ArrowRight")
    watched.wait("location.hash.includes('top_k=5')")
    _, *rows = rows_of(watched, "Stage by stage")
    assert sum(float(row[-1]) > 0 for row in rows) == 5
    watched.page.get_by_role("button", name="As the model says").click()
    watched.wait("!location.hash.includes('top_k')")
