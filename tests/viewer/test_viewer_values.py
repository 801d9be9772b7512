"""Neurons and vectors say the trace's own numbers, and what the page computes of them is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from watched_page import Watched, rows_of, screens
from written_traces import D_MLP, WORDS, numbers, page_of, written

import samples
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


def test_what_the_embeddings_lack_is_said(opened: Open) -> None:
    watched = opened(state="#embeddings?place=ckpt_embed&method=tsne&shade=norm")
    figure = watched.figure("Principal components of ckpt_embed")
    assert figure.get_by_role("status").inner_text() == (
        "t-SNE is computed on request: pellucid serve shows it. These are the principal components."
    )
    # The trace has no lengths of embeddings, so there is nothing to colour by.
    assert figure.get_by_role("combobox", name="Colour").input_value() == "position"
    assert "norm" not in rows_of(watched, "Principal components of ckpt_embed")[0]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_every_family_is_drawn_on_every_screen(opened: Open, tmp_path: Path, family: str) -> None:
    made = trace(samples.glass(family), [[5, 9, 5, 17, 9, 5, 30, 2, 8, 11, 5, 9]])
    path = tmp_path / "page.html"
    path.write_text(page_of(made.to_bytes()), encoding="utf-8")
    watched = opened(path)
    for screen in screens(watched):
        watched.show(screen)
        assert watched.page.locator(".figure canvas").count() > 0, screen
        if screen != "prediction":  # which says what only a server does
            assert watched.page.locator(".missing").count() == 0, screen
    watched.run("location.hash = '#neurons?neuron=3&layer=1'")
    head, *rows = rows_of(watched, "Neuron 1.3 along the text")
    inner = ["gate", "up", "post"] if family == "llama" else ["pre", "post"]
    assert head[2:] == [f"mlp.ckpt_{name}" for name in inner]
    assert [float(row[-1]) for row in rows] == pytest.approx(made["neurons.post"].values[1, :, 3].tolist())
