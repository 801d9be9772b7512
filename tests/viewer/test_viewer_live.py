"""The page with the real server and the bundled model: edits, two models, and the lines that make both again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from watched_page import Watched, command_of, content, ran, rows_of
from written_traces import WORDS, numbers, page_of, written

import pellucid as pl
import support

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Open = Callable[..., Watched]
TEXT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Anna and Paul went to the store, Paul gave$& to"


@pytest.fixture(scope="module")
def address(bundled: pl.CkptedTransformer) -> Iterator[str]:
    pytest.importorskip("starlette")
    server = pl.serve(bundled, TEXT, port=0)
    yield server.url
    server.stop()


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Callable[..., Watched]]:
    tabs: list[Watched] = []

    def open_tab(state: str = "", width: int = 1280) -> Watched:
        tabs.append(Watched(browser, width, 900, "light"))
        tabs[-1].go(address + state)
        return tabs[-1]

    yield open_tab
    for one in tabs:
        one.close()
        assert one.requests == []
        assert [fault for fault in one.faults if "400" not in fault] == []


def columns(watched: Watched, title: str) -> dict[str, list[Any]]:
    found = json.loads(content(watched, title, "JSON"))
    return {name: [row[i] for row in found["rows"]] for i, name in enumerate(found["columns"])} | {"": found["python"]}


def answered(watched: Watched, title: str, name: str) -> dict[str, list[Any]]:
    """The columns of a figure that the server has to be asked for, once it has answered."""
    for _ in range(200):
        found = columns(watched, title)
        if found[name][-1] is not None:
            return found
        watched.page.wait_for_timeout(50)
    raise AssertionError(f"{title}: no answer came")


def test_a_key_changes_the_selected_head_and_every_panel_shows_both_runs(
    tab: Any, bundled: pl.CkptedTransformer
) -> None:
    watched, other = tab("#attention?layer=2&head=1"), tab("#attention?layer=2&head=1")
    watched.canvas("All heads").focus()
    watched.page.keyboard.press("x")
    watched.page.wait_for_selector(".edit-bar")
    assert "head 2.1: set to zero" in watched.page.locator(".edits").inner_text()
    assert "another head of the layer" in watched.page.locator(".edit-bar").inner_text()
    assert other.page.locator(".edit-bar").count() == 0, "another tab goes on as it was"
    with torch.no_grad():
        plain, before = bundled.run_with_ckpts(TEXT)
        logits, after = bundled.run_with_ckpts(TEXT, edits=pl.Edit.zero("blocks.2.attn.ckpt_z", heads=1))
    assert watched.page.get_by_role("radio", name="Edited").is_checked()
    watched.page.get_by_role("radio", name="Difference").check()
    watched.page.get_by_role("combobox", name="Layer").last.select_option("3")
    found = columns(watched, "Layer 3, head 1")
    rows, keys = np.tril_indices(14)
    for side, run in (("base", before), ("edited", after)):
        expected = run["blocks.3.attn.ckpt_pattern"][0, 1].detach().numpy()[rows, keys]
        assert found[f"share {side}"] == pytest.approx(expected.tolist(), abs=0.004)
    assert found["share difference"] == pytest.approx(np.subtract(found["share edited"], found["share base"]).tolist())
    watched.page.get_by_role("tab", name="Change it").click()
    tokens = columns(watched, "What comes next, before and after")
    for side, run in (("base", plain), ("edited", logits)):
        expected = run[0, -1].double().softmax(-1)
        assert tokens[side] == pytest.approx(expected[tokens["id"]].tolist(), rel=1e-5)
    effect = columns(watched, "How far it goes")
    p, q = (run[0, -1].double().log_softmax(-1) for run in (plain, logits))
    assert effect["kl"] == [pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-6)]
    assert effect["control"][0].startswith("another head: ")
    parts = columns(watched, "Who makes the difference to ‘␣Mary’")
    mary = found_id(bundled, " Mary")
    assert sum(parts["difference"]) == pytest.approx(float(logits[0, -1, mary] - plain[0, -1, mary]), abs=1e-4)
    watched.page.keyboard.press("u")
    watched.page.wait_for_selector(".edit-bar", state="detached")
    watched.wait("!location.hash.includes('edits')")


def found_id(model: pl.CkptedTransformer, piece: str) -> int:
    assert model.tokenizer is not None
    (one,) = model.tokenizer.encode(piece)
    return one


def test_a_patch_is_made_by_its_lines_of_python_and_by_its_link(
    tab: Any, bundled: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pl, "load", lambda: bundled)  # of four times that the same lines load it
    watched = tab("#attention?layer=3&head=0")
    watched.page.keyboard.press("p")
    field = watched.page.get_by_role("textbox", name="Second text")
    watched.wait("document.activeElement && document.activeElement.name === 'other'")
    watched.page.keyboard.type(OTHER)
    watched.page.keyboard.press("Enter")
    watched.page.wait_for_selector(".edit-bar")
    assert field.input_value() == OTHER
    watched.page.get_by_role("combobox", name="What").select_option("block")
    watched.page.get_by_role("combobox", name="How").select_option("mean")
    watched.page.get_by_role("button", name="Change", exact=True).click()
    watched.wait("document.querySelectorAll('.edits li').length === 2")
    watched.wait("!document.querySelector('.notice').innerText.includes('Running')")
    titles = ["What comes next, before and after", "How far it goes", "Where the change arrives"]
    titles.append("Who makes the difference to ‘␣Mary’")
    found = {title: columns(watched, title) for title in titles}
    made = {title: run_whole(one[""]) for title, one in found.items()}
    tokens, effect, arrives, parts = titles
    difference = made[tokens].double()[found[tokens]["id"]]
    assert found[tokens]["difference"] == pytest.approx(difference.tolist(), abs=1e-6)
    assert len(found[effect]["kl"]) == 3
    assert found[effect]["kl"][0] == pytest.approx(float(made[effect]), rel=1e-4)
    assert found[arrives]["difference"][14:] == pytest.approx(made[arrives].values.ravel().tolist(), abs=1e-4)
    assert sorted(found[parts]["difference"]) == pytest.approx(sorted(made[parts].values.tolist()), abs=1e-5)
    watched.wait("location.hash.includes('edits=')")
    again = tab(watched.run("location.hash"))
    again.wait("document.querySelectorAll('.edits li').length === 2")
    assert rows_of(again, effect)[1][:2] == rows_of(watched, effect)[1][:2]
    again.page.get_by_role("button", name="Remove: block 3").click()
    again.wait("document.querySelectorAll('.edits li').length === 1")


def run_whole(code: str) -> Any:
    """The value of the last line of a figure's lines, all of which are run."""
    *lines, last = code.strip().splitlines()
    space: dict[str, Any] = {}
    exec("\n".join(lines), space)
    return eval(last, space)


def test_an_edited_run_is_continued_with_its_edits_which_stay(tab: Any, bundled: pl.CkptedTransformer) -> None:
    patch = {"what": "block", "layer": 1, "how": "patch", "other": TEXT}
    edits = [{"what": "head", "layer": 3, "at": 0, "how": "zero"}, patch]
    watched = tab(f"#prediction?{urlencode({'temperature': 0, 'edits': json.dumps(edits)})}")
    watched.page.wait_for_selector(".edit-bar")
    assert "drawn from the edited run" in watched.page.locator(".draw").inner_text()
    watched.page.get_by_role("button", name="Continue by 20 tokens").click()
    watched.wait("document.querySelectorAll('.edits li').length === 1")  # a patch of 14 tokens does not fit 34
    watched.wait("document.querySelector('.notice').innerText.startsWith('1 of 2 edits do not fit this text')")
    out = bundled.generate(TEXT, max_new_tokens=20, edits=[pl.Edit.zero("blocks.3.attn.ckpt_z", heads=0)])
    shown = [one.get_attribute("title") for one in watched.page.locator(".token").all()]
    assert shown == [f"position {at}, id {token}" for at, token in enumerate(out.ids[0].tolist())]
    watched.page.get_by_role("radio", name="Base").check()
    assert "edited run" not in watched.page.locator(".draw").inner_text()


def test_an_edit_that_is_refused_is_said_in_the_library_s_words_and_changes_nothing(tab: Any) -> None:
    watched = tab("#change?what=head&how=patch")
    watched.page.get_by_role("textbox", name="Second text").fill("Too short")
    watched.page.get_by_role("button", name="Patch").click()
    watched.page.wait_for_selector(".fault")
    assert "14" in watched.page.locator(".fault").inner_text()
    assert watched.page.locator(".edit-bar").count() == 0
    watched.wait("!location.hash.includes('edits')")


def test_a_file_with_both_runs_shows_base_edited_and_difference(opened: Open, tmp_path: Path) -> None:
    edit = [{"name": "blocks.1.attn.ckpt_z", "heads": [1], "pos": None, "how": "zero", "python": ""}]
    target = {"id": 5, "text": " was", "pos": 8, "why": "asked for"}
    base, edited = written(seed=1, target=target), written(seed=2, target=target, edits=edit)
    path = tmp_path / "page.html"
    path.write_text(page_of(edited, second=base), encoding="utf-8")
    watched = opened(path, state="#lens?show=difference")
    found = columns(watched, "What each layer would say")
    one, two = numbers(base)["lens.entropy"].ravel(), numbers(edited)["lens.entropy"].ravel()
    assert found["entropy base"] == pytest.approx(one.tolist())
    assert found["entropy difference"] == pytest.approx((two.astype("f8") - one).tolist(), abs=1e-6)
    watched.canvas("What each layer would say").focus()
    watched.page.keyboard.press("ArrowRight")
    assert watched.said().startswith("difference ")
    watched.page.get_by_role("radio", name="Base").check()
    assert columns(watched, "What each layer would say")["entropy"] == pytest.approx(one.tolist())
    watched.page.keyboard.press("x")
    watched.page.wait_for_selector(".notice span")
    assert "pellucid serve" in watched.page.locator(".notice").inner_text()
    # The dimension that lies farthest apart is another one in each run, and is compared with itself.
    watched.run("location.hash = '#distributions?show=difference'")
    watched.canvas("Outlier dimensions").focus()
    watched.page.keyboard.press("ArrowRight")
    assert watched.said().startswith(
        "difference +5.0 (before 5.00); dimension 5 of blocks.0.resid_pre: mean size 10.00"
    )
    watched.page.get_by_role("tab", name="Change it").click()
    p, q = (torch.from_numpy(numbers(run)["prediction.logits"].astype("f8")).log_softmax(-1) for run in (base, edited))
    assert columns(watched, "How far it goes")["kl"] == [pytest.approx(float((p.exp() * (p - q)).sum()))]


def test_a_file_without_a_second_run_says_what_makes_one(opened: Open) -> None:
    watched = opened(state="#change")
    assert "pellucid serve" in watched.page.locator(".missing").inner_text()
    assert WORDS[0] in watched.page.locator(".token").first.inner_text()


def test_two_models_are_compared_and_the_lines_compare_them_again(
    tab: Any, bundled: pl.CkptedTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = pl.load()
    with torch.no_grad():
        other.parameter("blocks.2.attn.W_Q")[0, 0, 0] += 0.5
    other.save_pretrained(tmp_path / "other model")
    watched = tab("#models")
    field = watched.page.get_by_role("textbox", name="The other model")
    field.fill(str(tmp_path / "nowhere"))
    watched.page.get_by_role("button", name="Compare").click()
    watched.page.wait_for_selector(".fault")
    assert "nowhere" in watched.page.locator(".fault").inner_text()
    field.fill(str(tmp_path / "other model"))
    watched.page.keyboard.press("Enter")
    watched.page.wait_for_selector(".verdict", timeout=60_000)
    said = watched.page.locator(".verdict").inner_text()
    assert "The two models are different" in said
    assert "blocks.2.attn.W_Q" in said
    assert "unembed.W_U" in watched.page.locator(".ties").first.inner_text()
    title = "Every checkpoint of both"
    found = columns(watched, title)
    rows = run_whole(found[""])
    keys = ["checkpoint", "equal_to_the_bit", "fp32", "fp32_own", "fp64", "fp64_own"]
    expected = [[row[0], "yes" if row[1] else "no", *row[2:]] for row in rows]
    assert [list(row) for row in zip(*(found[key] for key in keys), strict=True)] == expected
    watched.canvas(title).focus()
    watched.page.keyboard.press("ArrowDown")  # the cursor begins where they first differ
    assert watched.said().startswith("blocks.2.attn.ckpt_q: differs by 0.")
    for key in ("PageUp", "Home", "ArrowRight"):
        watched.page.keyboard.press(key)
    assert watched.said() == "ckpt_pos_embed: equal to the bit"
    for key in ("ArrowRight", "ArrowDown"):  # nothing follows in its line; below it is the nearest
        watched.page.keyboard.press(key)
    assert watched.said() == "blocks.0.resid_pre: equal to the bit"
    words = shlex.split(command_of(watched, title))
    code, report = ran(words, capsys)
    assert (code, report["verdict"]) == (1, "different")
    assert [row["fp32"] for row in report["checkpoints"]] == found["fp32"]


def test_any_token_is_followed_through_the_layers_and_split_at_a_pinned_cell(
    tab: Any, bundled: pl.CkptedTransformer, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = tab("#lens?row=3&q=12&heads=1")
    watched.page.get_by_role("combobox", name="Follow").select_option("token")
    watched.page.get_by_role("textbox", name="or as written").fill(" John")
    watched.page.keyboard.press("Enter")
    watched.page.wait_for_selector("text=How ‘␣John’ comes up")
    path = answered(watched, "How ‘␣John’ comes up", "rank")
    _, ckpts = bundled.run_with_ckpts(TEXT)
    read = pl.lens.logit(ckpts)
    assert path["rank"][1:] == (read.rank(" John").values[:, 0, 12] + 1).tolist()
    assert path["logprob"][1:] == pytest.approx(read.logprobs(" John").values[:, 0, 12].tolist(), abs=1e-5)
    assert run_whole(path[""]).values[:, 0, 12].tolist() == [rank - 1 for rank in path["rank"][1:]]
    parts = answered(watched, "What attention and the MLPs add to ‘␣John’", "adds")
    with torch.no_grad():
        logits = bundled.unembed(bundled.ln_final(ckpts["blocks.2.resid_post"]))[0, 12]
    assert sum(parts["adds"]) == pytest.approx(float(logits[found_id(bundled, " John")]), abs=1e-4)
    by = dict(zip(parts["part"], parts["adds"], strict=True))
    made = run_whole(parts[""])
    assert by["2 head 1"] == pytest.approx(float(made.sel(component="blocks.2.attn[1]")), abs=1e-6)
    whole = run_whole(parts[""].strip() + ".sum() + offset.item()")
    assert float(whole) == pytest.approx(sum(parts["adds"]), abs=1e-6)
    code, said = ran(shlex.split(command_of(watched, "How ‘␣John’ comes up")), capsys)
    assert code == 0
    assert [row["rank"] + 1 for row in said["layers"]] == path["rank"][1:]
    cell = watched.figure("At the pinned cell: after 2, at ‘␣drink’").locator("canvas").first
    cell.focus()
    watched.page.keyboard.press("ArrowDown")
    watched.page.keyboard.press("Enter")
    piece = columns(watched, "At the pinned cell: after 2, at ‘␣drink’")["token"][0]
    watched.page.wait_for_selector(f"text=How ‘{piece.replace(' ', '␣')}’ comes up")
    watched.wait("location.hash.includes('token=')")


def test_of_a_long_text_the_server_gives_each_pair_of_tokens_for_the_chosen_head(browser: Browser) -> None:
    model, ids = support.glass(n_positions=300, n_layer=2), support.some_ids(1, 291)
    server = pl.serve(model, ids, port=0)
    watched = Watched(browser, 1280, 900, "light")
    try:
        watched.go(f"{server.url}#attention?layer=1&head=2")
        patterns = model.run_with_ckpts(ids, names="blocks.1.attn.ckpt_pattern")[1]["pattern", 1][0]
        for head in (2, 0):
            watched.page.get_by_role("combobox", name="Head").select_option(str(head))
            title = f"Layer 1, head {head}"
            watched.figure(title).wait_for()
            watched.wait("!document.querySelector('.notice').innerText")
            found = columns(watched, title)
            assert found["share"] == patterns[head].detach()[*torch.tril_indices(291, 291)].tolist()
            assert found["query_token"][-1] == str(int(ids[0][-1]))
    finally:
        watched.close()
        server.stop()
    assert watched.faults == watched.requests == []


def test_in_a_file_the_listed_tokens_are_followed(opened: Open) -> None:
    found = numbers(written())
    token = int(found["lens.ids"][1, 4, 2])
    watched = opened(state=f"#lens?follow=token&q=4&token={token}")
    title = watched.page.locator("h2", has_text="comes up").inner_text()
    path = columns(watched, title)
    listed = [row.tolist().index(token) + 1 if token in row else None for row in found["lens.ids"][:, 4]]
    assert path["rank"] == listed
    assert path["logprob"][1] == pytest.approx(float(found["lens.logprobs"][1, 4, 2]))
