"""Pages whose traces lie: each is refused in a sentence, or shown on every screen, without an error or a frozen tab."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from watched_page import Watched
from written_traces import packed, unpacked, written

from pellucid.viewer.container import ALWAYS
from support import few_of

Open = Callable[..., Watched]
Header = dict[str, Any]

_SHOWN = """async (held) => {
  const host = document.createElement("div"), root = host.attachShadow({mode: "open"});
  document.body.append(host);
  for (const [id, text] of Object.entries(held)) {
    const script = document.createElement("script");
    root.append(Object.assign(script, {type: "application/json", id, textContent: text}));
  }
  const view = document.createElement("div"), said = new Set();
  root.append(view);
  const look = async () => {
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    for (const fault of view.querySelectorAll(".fault")) said.add(fault.textContent);
  };
  await window.pellucid.mount(view);
  await look();
  for (const show of view.querySelectorAll("[name=pellucid-show]")) if (show.value === "difference") show.click();
  for (const tab of view.querySelectorAll("[role=tab]")) {
    tab.click();
    await look();
    for (const canvas of view.querySelectorAll("canvas[tabindex]"))
      for (const key of ["ArrowDown", "ArrowRight", "Enter"])
        canvas.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
    for (const button of view.querySelectorAll(".figure-tools > button")) button.click();
    await look();
  }
  host.remove();
  return [...said];
}"""
"""Shows a page's parts in an element of its own, walks through all screens, cells and tables, and returns what faults
were said."""


def said_of(change: Callable[[Header], Any], data: Callable[[bytes], bytes] = bytes) -> str:
    """The base64 of a trace whose header, or whose data, was changed."""
    header, raw = unpacked(written())
    changed = change(header)
    return base64.b64encode(packed(header if changed is None else changed, data(raw))).decode()


def block(name: str, **fields: Any) -> str:
    return said_of(lambda header: header["blocks"][name].update(fields))


def without(*names: str) -> str:
    return said_of(lambda header: [header["blocks"].pop(name) for name in names] and None)


def raw(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def point(**fields: Any) -> str:
    return said_of(lambda header: header["schema"]["points"][4].update(fields))


NO_TEXT = {"toString": None, "valueOf": None}
"""What cannot even be written down as text."""
MAY_BE_MISSING = [name for name in unpacked(written())[0]["blocks"] if name not in ALWAYS | {"attention.pattern"}]
GOOD = base64.b64encode(written()).decode()
EDIT = {"name": "blocks.0.attn.ckpt_z", "how": "zero"}
DAMAGED = "damaged or cut off"
LIES: dict[str, tuple[str, str]] = {
    "nothing": ("", "it holds no trace"),
    "no base64": ("<script>", DAMAGED),
    "base64 that is cut": (GOOD[:1001], DAMAGED),
    "deflated bytes that are cut": (base64.b64encode(written()[:-50]).decode(), DAMAGED),
    "something after the end": (base64.b64encode(written() + b"x").decode(), DAMAGED),
    "another kind of file": (base64.b64encode(b"PNG and so on").decode(), DAMAGED),
    "two bytes": (raw(b"ab"), "2 bytes, expected at least 8"),
    "a header beyond the end": (raw(b"\xff\xff\xff\xff{}  "), "should have 4294967295 bytes"),
    "no JSON": (raw(b"\x04\x00\x00\x00{]  "), "no JSON text"),
    "no UTF-8": (raw(b"\x04\x00\x00\x00\xff\xfe  "), "no JSON text"),
    "null": (raw(b"\x04\x00\x00\x00null"), "format"),
    "another version": (said_of(lambda h: {**h, "format": "pellucid-trace/2"}), '"pellucid-trace/2", expected'),
    "no model": (said_of(lambda h: h.pop("model") and None), "header.model is undefined, expected an object"),
    "a model that is a list": (said_of(lambda h: {**h, "model": []}), "header.model is [], expected an object"),
    "no tokens": (said_of(lambda h: {**h, "tokens": []}), "0 tokens"),
    "tokens that are none": (said_of(lambda h: {**h, "tokens": None}), "header.tokens is null, expected a list"),
    "a token that is text": (said_of(lambda h: {**h, "tokens": ["<b>"] * 9}), 'tokens.0 is "<b>", expected an object'),
    "a token too many": (said_of(lambda h: h["tokens"].append({"id": 1, "text": "a"})), "expected [5,2,10]"),
    "a target beyond the text": (said_of(lambda h: h["target"].update(pos=9)), "its target is at 9"),
    "layers as text": (said_of(lambda h: h["model"]["sizes"].update(layer="2")), 'layer is "2", expected a number'),
    "a negative number of layers": (said_of(lambda h: h["model"]["sizes"].update(layer=-1)), "is -1"),
    "half a layer": (said_of(lambda h: h["model"]["sizes"].update(layer=1.5)), "is 1.5"),
    "a thousand million layers": (said_of(lambda h: h["model"]["sizes"].update(layer=10**9)), "expected [1000000000]"),
    "a thousand million heads": (said_of(lambda h: h["model"]["sizes"].update(head=10**9)), "heads in a layer"),
    "neurons without end": (said_of(lambda h: h["model"]["sizes"].update(d_mlp=2**50)), "is [2,9,32], expected"),
    "another vocabulary": (said_of(lambda h: h["model"]["sizes"].update(d_vocab=50)), "expected [50]"),
    "a size that is text": (said_of(lambda h: h["model"]["sizes"].update(n_ctx="x")), 'sizes.n_ctx is "x", expected'),
    "an id that is infinite": (said_of(lambda h: h["tokens"][0].update(id=float("inf"))), "no JSON text"),
    "lists without end": (raw(b"\xa0\x86\x01\x00" + b"[" * 100_000), "no JSON text"),
    "a piece that is none": (said_of(lambda h: h["vocabulary"].update({"0": NO_TEXT})), "vocabulary.0 is {"),
    "no schema": (said_of(lambda h: {**h, "schema": {}}), "header.schema.points is undefined"),
    "calls that are numbers": (said_of(lambda h: h["calls"].update(values=3)), "calls.values is 3, expected a text"),
    "blocks that are text": (said_of(lambda h: {**h, "blocks": "all"}), 'header.blocks is "all"'),
    "a block that is null": (said_of(lambda h: h["blocks"].update(norms=None)), "block norms is null"),
    "no norms": (without("norms"), "holds no block norms"),
    "no patterns": (without("attention.pattern"), "holds no block attention.pattern"),
    "edges without counts": (without("distributions.edges"), "holds no block distributions.edges"),
    "an unknown dtype": (block("norms", dtype="i64"), 'unknown type "i64"'),
    "a dtype that every object has": (block("norms", dtype="constructor"), 'unknown type "constructor"'),
    "a negative size": (block("norms", shape=[-5, 2, 9]), "shape.0 is -5"),
    "a size that is true": (block("norms", shape=[5, 2, True]), "shape.2 is true"),
    "a huge size": (block("norms", shape=[5, 2, 10**12]), "ends at byte"),
    "sizes whose product is huge": (block("norms", shape=[2**50] * 30), "ends at byte"),
    "nothing of a huge size": (block("norms", shape=[0, 2**50]), "block norms is [0,"),
    "another shape": (block("lens.kl", shape=[9, 3]), "block lens.kl is [9,3], expected [3,9]"),
    "an offset outside": (block("norms", offset=10**8), "ends at byte"),
    "a negative offset": (block("norms", offset=-8), "offset is -8"),
    "an odd offset": (block("norms", offset=3), "ends at byte"),
    "an unknown code": (block("attention.pattern", code={"kind": "log"}), 'unknown code {"kind":"log"}'),
    "a code of floats": (block("norms", code={"kind": "sqrt"}), "unknown code"),
    "edges of cells that are none": (block("attention.pattern", code={"kind": "sqrt", "edges": 3}), "edges is 3, exp"),
    "neurons of no checkpoint": (block("neurons.post", of=NO_TEXT), "neurons.post.of is {"),
    "no names": (block("norms", of=None), "norms.of is null, expected a list"),
    "too few names": (block("norms", of=["resid_pre"]), "is [5,2,9], expected [1,2,9]"),
    "numbers for names": (block("attribution.components", of=[1] * 11), "of.0 is 1, expected a text"),
    "other names": (block("norms", of=["a", "b", "c", "d", "e"]), ""),
    "components of no layer": (block("attribution.components", of=["blocks.9.mlp"] * 11), "names blocks.9.mlp, but"),
    "histograms without counts outside": (block("distributions.counts", clipped=[]), "[], expected [5,5]"),
    "no shares of variance": (block("embeddings.pca", of_variance=[[0.5]] * 4), "is [1,1,1,1], expected [3,3,3,3]"),
    "a point of another length": (point(shape=[1, 10**9, 16]), "the shape of blocks.0.ln1.ckpt_normalized"),
    "a point without axes": (point(axes=[]), "expected []"),
    "a point that every object has": (point(short="constructor", equation="\\frac{{{" * 9), ""),
    "a point of no block": (point(block=NO_TEXT), "blocks.0.ln1.ckpt_normalized.block is {"),
    "numbers of the atlas in another shape": (block("atlas.ckpt_embed", shape=[16, 9]), "is [16,9], expected [9,16]"),
    "a scale that is none": (said_of(lambda h: h.update(attention={"scale": ["x"] * 2})), 'attention.scale.0 is "x"'),
    "a scale too few": (said_of(lambda h: h.update(attention={"scale": [0.5]})), "scale is [1], expected [2]"),
    "no scale": (said_of(lambda h: h.update(attention={})), "attention.scale is undefined, expected a list"),
    "edits of no heads": (said_of(lambda h: h.update(edits=[{**EDIT, "heads": NO_TEXT}])), "edits.heads is {"),
    "an edit at a text": (said_of(lambda h: h.update(edits=[{**EDIT, "pos": ["x"]}])), 'edits.pos.0 is "x"'),
    "nothing that may be missing": (without(*MAY_BE_MISSING), ""),
    "no number at all": (said_of(lambda _: None, lambda data: b"\xff" * len(data)), ""),
    "infinity everywhere": (said_of(lambda _: None, lambda data: b"\x00\x00\x80\x7f" * (len(data) // 4)), ""),
    "zero everywhere": (said_of(lambda _: None, lambda data: bytes(len(data))), ""),
    "a token of a million signs": (said_of(lambda h: h["tokens"][2].update(text="<i>" * 300_000)), ""),
}  # fmt: skip
OTHERS: dict[str, tuple[dict[str, str], str]] = {
    "a second run that is damaged": ({"pellucid-trace-2": GOOD[:99]}, DAMAGED),
    "a second run of other sizes": ({"pellucid-trace-2": base64.b64encode(written(layers=3)).decode()}, ""),
    "a second run of another text": ({"pellucid-trace-2": base64.b64encode(written(["a", " b"])).decode()}, ""),
    "readings that are no JSON": ({"pellucid-readings": "[{"}, "its part pellucid-readings is no JSON text"),
    "readings that are no list": ({"pellucid-readings": "{}"}, "pellucid-readings is {}, expected a list"),
    "a reading of no words": ({"pellucid-readings": '[{"slug": "a", "title": "A"}]'}, "readings.0.html is undefined"),
    "examples that are none": ({"pellucid-examples": '["Once"]'}, 'pellucid-examples.0 is "Once", expected an'),
    "a server without a token": ({"pellucid-server": '{"base": ""}'}, "pellucid-server.token is undefined"),
}


@pytest.mark.parametrize("part", few_of(range(6), 0))
def test_a_trace_that_lies_is_told_or_shown_and_never_breaks_the_page(part: int, opened: Open) -> None:
    watched = opened()
    pages = {name: ({"pellucid-trace": text}, expected) for name, (text, expected) in LIES.items()}
    pages |= {name: ({"pellucid-trace": GOOD, **more}, expected) for name, (more, expected) in OTHERS.items()}
    wrong: dict[str, Any] = {}
    for name, (held, expected) in list(pages.items())[part::6]:
        begun = time.monotonic()
        said = watched.page.evaluate(_SHOWN, held)
        told = [s for s in said if s.startswith("This page cannot be shown: ") and expected in s and len(s) < 400]
        if len(told) != bool(expected) or told != said or watched.faults or time.monotonic() - begun > 30:
            wrong[name] = said, [*watched.faults], time.monotonic() - begun
        watched.faults.clear()
    assert wrong == {}


@pytest.mark.long
def test_a_trace_that_inflates_without_end_is_cut_off(opened: Open) -> None:
    said = opened().page.evaluate(_SHOWN, {"pellucid-trace": raw(bytes((1 << 28) + 1))})
    assert "more than 268435456 bytes" in said[0]


def test_a_screen_that_cannot_be_drawn_leaves_the_others(opened: Open) -> None:
    """What no check foresaw is said where it happened."""
    watched = opened()
    watched.run("Float64Array.from = null")  # which the sampler's stages need
    watched.page.get_by_role("tab", name="Prediction").click()
    said = watched.page.locator(".screen .fault")
    said.wait_for()
    assert said.inner_text().startswith("This screen cannot be shown, and the others can: ")
    watched.page.get_by_role("tab", name="Lens").click()
    watched.figure("What each layer would say").wait_for()
    assert (said.count(), watched.faults) == (0, [])
