"""Features of an autoencoder in the place of neurons: the trace has the library's numbers, and the page shows them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from watched_page import Watched, rows_of

import pellucid as pl
import samples
from pellucid.viewer import answers, trace
from pellucid.viewer.tabs import Session, Tabs

TEXT = [5, 9, 3, 3, 7]
WIDTH, F = 48, 70


def make(at: str = "blocks.1.resid_pre") -> pl.sae.SparseAutoencoder:
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(F, WIDTH, generator=random)
    weights = {
        "W_enc": directions.T.clone(), "W_dec": directions, "b_enc": torch.full((F,), -0.5),
        "b_dec": torch.zeros(WIDTH),
    }  # fmt: skip
    return pl.sae.SparseAutoencoder(pl.sae.SaeConfig(at), weights)


def test_the_trace_holds_features() -> None:
    model, sae = samples.shared("gpt2"), make()
    made = trace(model, [TEXT], sae=sae)
    _, ckpts = model.run_with_ckpts([TEXT])
    np.testing.assert_array_equal(made["features.post"].data[0], sae.features(ckpts).values[0])
    target = made.header["target"]
    units = pl.sae.direct(sae, ckpts, target["id"], per_unit=True, features=range(F)).values[:, 0, target["pos"]]
    np.testing.assert_allclose(made["features.effect"].data[0], units, rtol=1e-6)
    assert (units != 0).all(), "also of those that are not active"
    assert (made.header["features"]["count"], made.header["features"]["at"]) == (F, "blocks.1.resid_pre")
    plain = trace(model, [TEXT])
    assert "features" not in plain.header
    assert {name for name in made if name not in plain} == {"features.post", "features.effect"}
    apart = trace(model, [TEXT], sae=make("blocks.0.ln1.ckpt_normalized"))
    assert "features.post" in apart
    assert "is not written into" in next(
        one["why"] for one in apart.header["left_out"] if one["what"] == "features.effect"
    )


def test_the_server_has_them_too() -> None:
    model, sae = samples.shared("gpt2"), make()
    tabs, session = Tabs(model, [TEXT], sae), Session()
    found = answers.values(tabs, session, {"name": "features", "pos": [2]})
    assert isinstance(found, dict)
    values = np.frombuffer(base64.b64decode(found["data"]), "<f4").reshape(found["shape"])
    np.testing.assert_array_equal(values, sae.features(tabs.first.ckpts).values[0, [2]])
    again = answers.run(tabs, session, {"text": "", "ids": [TEXT[:3]]})
    assert again["features.post"].data.shape == (1, 3, F)
    with pytest.raises(pl.UnknownNameError):
        answers.values(Tabs(model, [TEXT]), Session(), {"name": "features"})
    with pytest.raises(pl.ShapeError, match="autoencoder"):
        Tabs(samples.shared("llama"), [TEXT], sae)


def test_the_page_shows_features_where_it_shows_neurons(opened: Callable[..., Watched], tmp_path: Path) -> None:
    model, sae = samples.shared("gpt2"), make()
    seen = pl.view(model, [TEXT], sae=sae)
    seen.save(tmp_path / "page.html")
    watched = opened(tmp_path / "page.html", state="#neurons?neuron=12&layer=2&q=1")
    values = seen.trace["features.post"].data[0]
    head, *rows = rows_of(watched, "Feature 12 along the text")
    assert head == ["pos", "token", "features"]
    assert [float(row[2]) for row in rows] == pytest.approx(values[:, 12].tolist(), rel=1e-5)
    assert watched.page.get_by_text("Of the autoencoder of blocks.1.resid_pre.").count() == 1
    assert watched.page.get_by_role("spinbutton", name="Feature").input_value() == "12"
    assert watched.page.get_by_role("heading", name="Before and after the activation").count() == 0
    strongest = watched.page.get_by_role("heading", name="The strongest features at").inner_text()
    first = rows_of(watched, strongest)[1]
    assert int(first[1]) == int(abs(values[1]).argmax())
