"""Neurons, vectors and distributions say the trace's own numbers, and what the page computes of them is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from watched_page import Watched, rows_of, screens
from written_traces import D_MLP, WORDS, numbers, page_of, written

import samples
import support
from pellucid.attribution.reading import place_of
from pellucid.viewer import trace

Open = Callable[..., Watched]
SHOWN = [word.replace(" ", "␣").replace("\n", "⏎") for word in WORDS]


def read(text: str) -> float:
    return float(text.replace("≈", "").replace("−", "-").split()[0])


def test_a_neuron_is_found_by_its_number_and_walked_along_the_text(opened: Open) -> None:
    watched = opened(state="#neurons?layer=1&neuron=5")
    number = watched.page.get_by_role("spinbutton", name="Neuron")
    number.fill("31")
    number.press("Enter")
    found = numbers(written())
    before, after = (found[f"neurons.{name}"][1, :, 31].astype(float) for name in ("pre", "post"))
    head, *rows = rows_of(watched, "Neuron 1.31 along the text")
    assert head == ["pos", "token", "mlp.ckpt_pre", "mlp.ckpt_post"]
    assert [float(row[2]) for row in rows] == pytest.approx(before.tolist())
    assert [float(row[3]) for row in rows] == pytest.approx(after.tolist())
    watched.canvas("Neuron 1.31 along the text").focus()
    for key in ("ArrowRight", "Home", "ArrowRight"):
        watched.page.keyboard.press(key)
    said = watched.said()
    assert said.startswith(f"at ‘{SHOWN[1]}’: mlp.ckpt_pre ≈ ")
    assert [read(part.split("≈")[1]) for part in said.split(",")] == pytest.approx([before[1], after[1]], rel=5e-3)
    watched.page.keyboard.press("Enter")
    watched.wait("location.hash.includes('q=1') && location.hash.includes('neuron=31')")
    largest = rows_of(watched, "Its largest tokens")[1:]
    assert [int(row[0]) for row in largest] == np.argsort(-after, kind="stable").tolist()
    number.fill(str(D_MLP))
    number.press("Enter")
    assert watched.page.locator(".notice").inner_text() == f"Neurons have numbers from 0 to {D_MLP - 1}."
    assert number.input_value() == "31"


def test_the_strongest_neurons_and_what_they_add(opened: Open) -> None:
    watched = opened(state="#neurons?layer=0&q=4")
    found = numbers(written())
    post, effect = found["neurons.post"].astype(float), found["neurons.effect"].astype(float)
    # Until one is chosen it is the layer's strongest at the last token.
    first = int(abs(post[0, -1]).argmax())
    assert watched.figure(f"Neuron 0.{first} along the text").count() == 1
    adds = post[0, -1, first] * effect[0, first]
    shown = watched.page.locator(".closing")
    assert read(shown.locator("dd").nth(2).inner_text()) == pytest.approx(adds, rel=5e-3)
    rank = 1 + int((abs(post[:, -1] * effect) > abs(adds)).sum())
    assert shown.locator("dt").nth(2).inner_text() == f"So it adds, as no. {rank} of {2 * D_MLP}"
    by_value = rows_of(watched, f"The strongest neurons at ‘{SHOWN[4]}’")[1:]
    order = np.argsort(-abs(post[:, 4]).ravel(), kind="stable")
    assert [D_MLP * int(row[0]) + int(row[1]) for row in by_value] == order.tolist()
    target = int(found["prediction.logits"].argmax())
    watched.page.get_by_role("combobox", name="Strong by").select_option("effect")
    watched.page.get_by_role("combobox", name="of", exact=True).select_option("layer")
    by_effect = rows_of(watched, f"The neurons that add most to ‘␣w{target}’")[1:]
    parts = post[0, -1] * effect[0]
    assert [int(row[1]) for row in by_effect] == np.argsort(-abs(parts), kind="stable").tolist()
    assert [float(row[2]) for row in by_effect] == pytest.approx(sorted(parts, key=abs, reverse=True), rel=1e-6)


def test_neurons_that_are_missing_are_said_in_the_words_of_the_trace(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(written(without=["neurons"])), encoding="utf-8")
    watched = opened(path, state="#neurons")
    assert "neurons is too large for this page" in watched.page.locator(".missing").inner_text()


def test_vectors_are_scattered_and_coloured_by_what_is_known_of_their_tokens(opened: Open) -> None:
    watched = opened(state="#embeddings?place=blocks.0.resid_post&plane=2+and+3&shade=kl")
    found = numbers(written())
    title = "Principal components of blocks.0.resid_post"
    head, *rows = rows_of(watched, title)
    assert head == ["pos", "token", "pc1", "pc2", "pc3", "position", "norm", "entropy", "kl", "next", "target"]
    points = np.array([[float(cell) for cell in row[2:5]] for row in rows])
    assert points.ravel().tolist() == pytest.approx(found["embeddings.pca"][2].ravel().tolist())
    expected = {
        "norm": found["norms"][4, 0],
        "entropy": found["lens.entropy"][1],
        "kl": found["lens.kl"][1],
        "next": np.exp(found["lens.next_logprob"][1]),
        "target": np.exp(found["lens.target_logprob"][1]),
    }
    for name, values in expected.items():
        assert [float(row[head.index(name)]) for row in rows] == pytest.approx(values.tolist())
    watched.canvas(title).focus()
    for key in ("ArrowRight", "Home", "ArrowRight", "ArrowRight"):
        watched.page.keyboard.press(key)
    said = watched.said()
    assert said.startswith(f"‘{SHOWN[2]}’ at position 2: ")
    assert [read(part) for part in said.split(": ")[1].split(";")[0].split(", ")] == pytest.approx(
        points[2, 1:].tolist(), rel=5e-3
    )
    assert read(said.split("distance to the output ")[1]) == pytest.approx(float(expected["kl"][2]), rel=5e-3)
    watched.page.keyboard.press("Enter")
    watched.wait("location.hash.includes('q=2')")
    # Another place is chosen among the small pictures.
    watched.canvas("The same tokens, layer by layer").focus()
    for key in ("ArrowRight", "ArrowRight"):
        watched.page.keyboard.press(key)
    assert watched.said() == "blocks.1.resid_post: the first two components explain 70.0 % of the variance"
    watched.page.keyboard.press("Enter")
    assert watched.figure("Principal components of blocks.1.resid_post").count() == 1


def test_one_dot_has_no_variance(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(trace(support.glass(), [[5, 5, 5]]).to_bytes()), encoding="utf-8")
    watched = opened(path, state="#embeddings?place=ckpt_embed")
    content_of = watched.figure("Principal components of ckpt_embed")
    content_of.get_by_role("button", name="Table").click()
    assert "no variance: all dots are one" in content_of.inner_text()
    watched.canvas("The same tokens, layer by layer").focus()
    watched.page.keyboard.press("Home")
    assert watched.said().endswith("no variance: all dots are one")


def test_what_the_embeddings_lack_is_said(opened: Open) -> None:
    watched = opened(state="#embeddings?place=ckpt_embed&method=tsne&shade=norm")
    figure = watched.figure("Principal components of ckpt_embed")
    assert figure.get_by_role("status").inner_text() == (
        "t-SNE is computed on request: pellucid serve shows it. These are the principal components."
    )
    # The trace has no lengths of embeddings, so there is nothing to colour by.
    assert figure.get_by_role("combobox", name="Colour").input_value() == "position"
    assert "norm" not in rows_of(watched, "Principal components of ckpt_embed")[0]


def test_distributions_are_counted_and_what_lies_outside_is_said(opened: Open) -> None:
    watched = opened(state="#distributions?norm=blocks.1.ln2")
    counts = numbers(written())["distributions.counts"]
    rows = rows_of(watched, "Before and after each norm")[1:]
    for side, name in enumerate(("before", "after")):
        assert [int(row[4]) for row in rows if row[1] == name] == counts[side].ravel().tolist()
    assert {row[0] for row in rows} == {"ln_final", *(f"blocks.{i}.ln{k}" for i in (0, 1) for k in (1, 2))}
    one = rows_of(watched, "blocks.1.ln2 in numbers")[1:]
    assert [int(row[3]) for row in one] == counts[:, 3].ravel().tolist()
    notes = watched.figure("blocks.1.ln2 in numbers").locator(".note").all_inner_texts()
    assert notes[0] == (
        "before: 143 of 144 values lie between −3.00 and 3.00, 1 (0.69 %) outside. "
        "Outlier dimensions: 3 (mean size 9.50)."
    )
    watched.canvas("blocks.1.ln2 in numbers").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        watched.page.keyboard.press(key)
    assert watched.said() == f"blocks.1.ln2.ckpt_normalized: {counts[1, 3, 1]} values between −2.85 and −2.70"
    watched.canvas("Before and after each norm").focus()
    for key in ("ArrowRight", "PageDown", "Enter"):
        watched.page.keyboard.press(key)
    assert watched.figure("ln_final in numbers").count() == 1
    outliers = rows_of(watched, "Outlier dimensions")[1:]
    assert [row[1] for row in outliers] == [
        *(f"blocks.{i}.resid_{at}" for i in (0, 1) for at in ("pre", "mid")),
        "blocks.1.resid_post",
    ]
    assert all(row[2:] == ["3", "9.5"] for row in outliers)


def test_lengths_are_drawn_by_layer_and_regressed(opened: Open) -> None:
    watched = opened(state="#distributions?norms_of=mlp_out&lags=1")
    norms = numbers(written())["norms"][3].astype(float)
    rows = rows_of(watched, "How long the vectors are")[1:]
    assert [float(row[3]) for row in rows] == pytest.approx(norms.ravel().tolist())
    watched.canvas("How long the vectors are").focus()
    for key in ("ArrowRight", "PageUp", "ArrowRight"):
        watched.page.keyboard.press(key)
    assert watched.said().startswith(f"‘{SHOWN[0]}’: length of blocks.1.mlp.ckpt_mlp_out {norms[1, 0]:.2f}; half of")
    fitted = rows_of(watched, "Does a token’s length follow from those before?")[1:]
    for layer, row in enumerate(fitted):
        y, x = np.log(norms[layer, 2:]), np.log(norms[layer, 1:-1])
        slope = np.polyfit(x, y, 1)[0]
        rest = y - y.mean() - slope * (x - x.mean())
        error = np.sqrt(rest @ rest / (len(y) - 2) / ((x - x.mean()) ** 2).sum())
        assert row[:2] == [str(layer), "lag1"]
        assert [float(cell) for cell in row[2:]] == pytest.approx(
            [slope, slope - 2.570581835636314 * error, slope + 2.570581835636314 * error], rel=1e-6
        )


def test_a_text_that_is_too_short_for_a_regression_is_told_so(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page_of(written(WORDS[:6], without=["distributions"])), encoding="utf-8")
    watched = opened(path, state="#distributions")
    said = watched.page.get_by_text("A regression on").inner_text()
    assert said == "A regression on 2 tokens before takes 7 tokens; this text has 6."
    assert "distributions is too large for this page" in watched.page.locator(".missing").inner_text()
    assert len(rows_of(watched, "How long the vectors are")) == 1 + 2 * 6


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.long), "gpt_neox"])
def test_every_family_is_drawn_on_every_screen(opened: Open, tmp_path: Path, family: str) -> None:
    made = trace(samples.glass(family), [[5, 9, 5, 17, 9, 5, 30, 2, 8, 11, 5, 9]])
    path = tmp_path / "page.html"
    path.write_text(page_of(made.to_bytes()), encoding="utf-8")
    watched = opened(path)
    for screen in screens(watched):
        watched.show(screen)
        assert watched.page.locator(".figure canvas, .card").count() > 0, screen
        if screen in ("neurons", "embeddings", "distributions"):
            assert watched.page.locator(".missing").count() == 0, screen
    watched.run("location.hash = '#neurons?neuron=3&layer=1'")
    head, *rows = rows_of(watched, "Neuron 1.3 along the text")
    inner = ["gate", "up", "post"] if family == "llama" else ["pre", "post"]
    assert head[2:] == [f"mlp.ckpt_{name}" for name in inner]
    assert [float(row[-1]) for row in rows] == pytest.approx(made["neurons.post"].values[1, :, 3].tolist())
    watched.show("distributions")
    watched.canvas("Before and after each norm").focus()
    names = made["distributions.counts"].about["of"]
    for name in names:
        watched.page.keyboard.press("ArrowDown")
        read_by = place_of(f"{name}.ckpt_normalized", samples.glass(family).schema, "view").stream
        assert watched.said().startswith(f"{read_by}: ")
