"""The page as its readers meet it: offline, by keyboard, with hostile tokens, narrow, as a file and in a frame."""

from __future__ import annotations

import base64
import html
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import kept_pictures
import numpy as np
import pytest
from layout_faults import faults
from PIL import Image
from watched_page import Watched, rows_of, screens
from written_traces import VIEWER, WORDS, page_of, written

import support
from pellucid.viewer import trace

_HELD = importlib.util.find_spec("axe_playwright_python")
AXE = None if _HELD is None or _HELD.origin is None else Path(_HELD.origin).with_name("axe.min.js")
"""The rules of axe-core; None in an environment without them, which `make` never sets up."""

HOSTILE = [
    "<script>window.bad=1</script>",
    "</script><img src=x onerror=window.bad=2>",
    "\"'><b>x</b>",
    "\u202eright to left\u202c",
    "\x00null",
    "\u200b",
    "é\u0301",
    "\r\n\t",
    "=1+1",
]
Open = Callable[..., Watched]
ON_NARROW = "runOnly: ['color-contrast', 'scrollable-region-focusable', 'target-size', 'css-orientation-lock']"
"""What axe has to find on a narrow, dark page again: the rest says the same of it as of a wide one."""


# Axe finds what depends on the theme or on the width in either of two, and takes as long as all the rest.
@pytest.mark.parametrize(
    ("width", "theme", "audited"),
    support.few_of(
        [(1280, "light", True), (1280, "dark", False), (375, "light", False), (375, "dark", True)],
        (1280, "light", True), (375, "dark", True),
    ),
)  # fmt: skip
def test_every_screen_fits_looks_as_kept_and_is_accessible(opened: Open, width: int, theme: str, audited: bool) -> None:
    watched = opened(width=width, theme=theme)
    found: dict[str, list[str]] = {}
    if audited and AXE is not None:
        watched.run(AXE.read_text(encoding="utf-8"))
    for screen in screens(watched):
        watched.show(screen)
        found[screen] = [*faults(watched), *unlike_kept(watched, screen, width, theme)]
        if audited and AXE is not None:
            result = watched.run(
                f"axe.run(document, {{resultTypes: ['violations'], {'' if width > 900 else ON_NARROW}}})"
            )
            found[screen] += [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in result["violations"]]
    assert {screen: wrong for screen, wrong in found.items() if wrong} == {}


def unlike_kept(watched: Watched, screen: str, width: int, theme: str = "light") -> list[str]:
    picture = kept_pictures.small(watched.page.screenshot(full_page=True), width)
    with Image.open(kept_pictures.path_of(screen, width, theme)) as kept:
        how_far = kept_pictures.distance(picture, kept.convert("RGB"))
    return [f"{how_far:.1f} levels from the kept picture"] * (how_far > kept_pictures.TOLERANCE)


BREAKS = {
    "another palette": (".pellucid { --paper: #dfe8d8 !important; --panel: #cfe0ff !important; }", "levels from"),
    "a figure that is gone": (".screen > *:nth-child(3) { display: none !important; }", "not shown: section.figure"),
    "tokens that are gone": (".token { display: none !important; }", "not shown: span.token"),
    "figures that are not drawn": (".figure canvas { visibility: hidden !important; }", "not shown: canvas"),
    "figures that are squeezed": (".figure canvas { width: 120px !important; }", "stretched: section.figure"),
    "a figure over its neighbour": (".screen > * { margin-top: -40px !important; }", "covers what comes before it"),
    "a page that is too wide": (".screen > * { width: 1400px !important; }", "beyond the screen"),
}


def test_a_broken_page_is_noticed(opened: Open) -> None:
    width = 375
    watched = opened(width=width, state="#attention")
    for css, said in BREAKS.values():
        watched.style(css)
        watched.drawn()
        found = [*faults(watched), *unlike_kept(watched, "attention", width)]
        assert any(said in fault for fault in found), (css, found)
    font = '.pellucid, .pellucid * { font-family: "DejaVu Serif", "Liberation Serif", serif !important; }'
    watched.style(font)  # another font is no fault
    watched.drawn()
    assert [*faults(watched), *unlike_kept(watched, "attention", width)] == []


def test_a_link_shows_this_very_state(opened: Open) -> None:
    watched = opened(state="#overview?layer=1&q=3&point=blocks.0.mlp.ckpt_post")
    assert watched.page.locator(".about h2").inner_text() == "blocks.1.mlp.ckpt_post"
    assert watched.page.locator(".token[aria-selected=true]").inner_text() == "␣time"
    watched.page.locator(".token").nth(5).click()
    watched.wait("location.hash.includes('q=5')")
    again = opened(state=watched.run("location.hash"))
    assert again.page.locator(".token[aria-selected=true]").inner_text() == "␣was"
    assert again.page.locator(".about h2").inner_text() == "blocks.1.mlp.ckpt_post"


def test_a_link_that_is_followed_is_never_written_over(opened: Open) -> None:
    """Not even while its event has not come yet; what it says is shown, and what was being written is forgotten."""
    watched = opened()
    watched.run("addEventListener('hashchange', (event) => window.deaf && event.stopImmediatePropagation(), true)")
    watched.run("window.deaf = true")
    watched.page.locator(".token").nth(5).click()
    watched.run("location.hash = '#attention?q=3'")
    watched.page.wait_for_timeout(200)  # an address is written after 120 ms
    assert watched.run("location.hash") == "#attention?q=3"
    watched.run("window.deaf = false, dispatchEvent(new HashChangeEvent('hashchange'))")
    assert watched.page.locator(".token[aria-selected=true]").inner_text() == "␣time"
    watched.page.locator(".token").nth(1).click()
    watched.wait("location.hash === '#attention?q=1'")
    watched.run("location.hash = '#%E0%A4%A'")  # of an unknown screen the first is shown
    watched.page.get_by_role("heading", name="What happens in between?").wait_for()


def test_what_is_chosen_is_in_view_beside_the_names_of_the_rows(opened: Open) -> None:
    watched = opened(width=375, state="#lens")
    scrolled = "document.querySelector('.figure-frame').scrollLeft"
    watched.wait(f"{scrolled} > 0")  # the last token
    figure = watched.figure("What each layer would say")
    said = figure.locator(".readout")
    box = figure.locator(".figure-frame").bounding_box()
    assert box is not None
    watched.page.mouse.move(box["x"] + box["width"] - 20, box["y"] + 60)
    watched.wait("document.querySelector('.readout').innerText.includes('at ‘⏎’')")
    watched.page.mouse.move(box["x"] + 20, box["y"] + 60)  # the name of a row, and below it a cell
    assert said.inner_text() == ""
    inked = f"""(() => {{ const canvas = document.querySelector('.figure-frame .top');
      const {{data}} = canvas.getContext('2d').getImageData({scrolled}, 0, 60, canvas.height);
      return data.some((level, at) => at % 4 === 0 && data[at + 3] && level < 200); }})()"""
    assert watched.run(inked), "names are drawn where the figure was scrolled to"
    watched.page.locator(".token").first.click()
    watched.wait(f"{scrolled} === 0")


def test_hostile_tokens_are_text(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(written(HOSTILE)), encoding="utf-8")
    watched = opened(path)
    for screen in screens(watched):
        watched.show(screen)
        assert watched.run("window.bad") is None
        assert watched.run("document.querySelectorAll('#pellucid-viewer script, #pellucid-viewer img').length") == 0
    shown = watched.page.locator(".token").all_inner_texts()
    assert shown[0] == HOSTILE[0].replace(" ", "␣")
    assert shown[3] == "⟨U+202E⟩right␣to␣left⟨U+202C⟩"
    assert shown[4:6] == ["⟨U+0000⟩null", "⟨U+200B⟩"]
    assert shown[7] == "⟨U+000D⟩⏎⇥"


def test_a_frame_in_a_sandbox_shows_the_page(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "frame.html"
    inner = html.escape(page_of(written()), quote=True)
    frame = f'<iframe sandbox="allow-scripts" width="900" height="700" srcdoc="{inner}"></iframe>'
    path.write_text("<!doctype html>" + frame, encoding="utf-8")
    watched = opened(path, until="iframe")
    inside = watched.page.frame_locator("iframe")
    inside.get_by_role("tab").nth(0).click()
    assert inside.locator(".token").all_inner_texts()[1] == "␣upon"
    inside.locator(".token").nth(2).click()
    assert inside.locator(".token").nth(2).get_attribute("aria-selected") == "true"


def test_a_long_text_shows_means_and_says_where_the_rest_is(opened: Open, tmp_path: Path) -> None:
    made = trace(support.glass(n_positions=300, n_layer=2), support.some_ids(1, 291))
    path = tmp_path / "page.html"
    path.write_text(page_of(made.to_bytes()), encoding="utf-8")
    watched = opened(path, state="#attention?layer=1&head=2")
    assert faults(watched) == []
    edges = (made["attention.pooled"].code or {})["edges"]
    head, *rows = rows_of(watched, "Layer 1, head 2")
    assert (head[0], len(rows)) == ("query", 64 * 65 // 2)
    means = made["attention.pooled"].values[1, 2]
    assert [float(row[-1]) for row in rows] == pytest.approx(means[np.tril_indices(64)].tolist(), rel=1e-6, abs=1e-9)
    watched.canvas("Layer 1, head 2").focus()
    watched.page.keyboard.press("Home")
    watched.page.keyboard.press("ArrowRight")
    assert f"key tokens {edges[1]}–{edges[2] - 1}" in watched.said()
    for screen in screens(watched):
        watched.show(screen)
        assert faults(watched) == [], screen


def test_the_theme_follows_the_system_and_a_switch(opened: Open) -> None:
    watched = opened(theme="dark")
    root = watched.page.locator("#pellucid-viewer")
    assert root.get_attribute("data-theme") == "dark"
    watched.page.get_by_role("button", name="Theme").click()
    watched.wait("document.getElementById('pellucid-viewer').dataset.theme === 'light'")
    watched.wait("location.hash.includes('theme=light')")


def test_a_journey_by_keyboard_alone(opened: Open) -> None:
    """From the first tab stop to a token, a checkpoint and its name, with no pointer."""
    watched = opened()
    press = watched.page.keyboard.press
    press("Tab")  # the theme
    press("Tab")
    assert watched.run("document.activeElement.role || document.activeElement.getAttribute('role')") == "tab"
    press("Tab")
    assert watched.run("document.activeElement.getAttribute('role')") == "option"
    press("Home")
    press("ArrowRight")
    assert watched.page.locator(".token[aria-selected=true]").inner_text() == "␣upon"
    watched.canvas("From ids to logits").focus()
    press("ArrowDown")
    press("ArrowDown")
    assert watched.said().startswith("blocks.0.attn.ckpt_z")
    press("Enter")
    assert watched.page.locator(".about h2").inner_text() == "blocks.0.attn.ckpt_z"
    press("Escape")
    table = watched.figure("From ids to logits").get_by_role("button", name="Table")
    table.focus()
    press("Enter")
    assert watched.figure("From ids to logits").locator("tbody tr").count() == 2 + 2 * 17 + 2 + 1


def test_each_token_is_one_option_and_the_strip_one_stop(opened: Open) -> None:
    watched = opened()
    assert watched.page.locator(".token").all_inner_texts() == [
        word.replace(" ", "␣").replace("\n", "⏎") for word in WORDS
    ]
    assert watched.page.locator(".token[tabindex='0']").count() == 1


def test_a_shadow_root_holds_a_view_that_leaves_the_address_alone(opened: Open, tmp_path: Path) -> None:
    """A notebook's cell: neither its styles nor its names meet those of the notebook, and its address is not ours."""
    trace = base64.b64encode(written()).decode()
    script = VIEWER.read_text(encoding="utf-8")
    path = tmp_path / "cell.html"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><h1>A notebook</h1><div id="host"></div><script>'
        f"{script};for (const id of [1, 2]) {{const host = document.createElement('div');"
        "document.getElementById('host').append(host);"
        "const root = host.attachShadow({mode: 'open'});const held = document.createElement('script');"
        "held.type = 'application/vnd.pellucid.trace';held.id = 'pellucid-trace';"
        f"held.textContent = '{trace}';const view = document.createElement('div');"
        "root.append(held, view);window.pellucid.mount(view);}</script>",
        encoding="utf-8",
    )
    watched = opened(path)
    views = watched.page.locator("#host > div")
    views.nth(0).get_by_role("tab", name="Attention").click()
    views.nth(1).locator(".token").nth(2).click()
    assert views.nth(0).locator("h1").inner_text() == "What does the model look at?"
    assert views.nth(1).locator("h1").inner_text() == "What happens in between?"
    assert views.nth(0).locator(".token[aria-selected=true]").inner_text() == "⏎"
    assert watched.run("location.hash") == ""
    views.nth(0).locator("summary").first.click()
    assert views.nth(0).get_by_role("button", name="Copy link").count() == 0
    assert watched.run("getComputedStyle(document.querySelector('h1')).letterSpacing") == "normal"


def test_a_reading_opens_beside_a_screen_and_from_a_checkpoint(opened: Open, tmp_path: Path) -> None:
    words = '<h2>Who looks at whom</h2><p>Tokens look back. <a href="#" data-screen="neurons">Go on</a></p>'
    said = [{"slug": "attention", "title": "Attention", "html": words}]
    path = tmp_path / "page.html"
    held = json.dumps(said).replace("<", "\\u003c")
    path.write_text(page_of(written(), readings=held), encoding="utf-8")
    watched = opened(path)
    watched.page.get_by_role("button", name="Read: Attention").click()
    reading = watched.page.locator("section.reading")
    assert reading.locator("h2").inner_text() == "Who looks at whom"
    watched.wait("location.hash.includes('reading=attention')")
    reading.get_by_role("button", name="Close").click()
    assert reading.count() == 0
    watched.page.locator(".reading-list button").click()
    assert "Tokens look back." in reading.inner_text()
    reading.get_by_role("link", name="Go on").click()
    assert watched.page.locator("h1").inner_text() == "What sets a neuron off?"
    watched.wait("location.hash.startsWith('#neurons?') && location.hash.includes('reading=attention')")
