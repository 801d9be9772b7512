"""`--sae`: what verbs show through an autoencoder is what the library gives; what its file leaves open can be said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
from following import Typed, typed
from pellucid.errors import PYTHON

CLEAN, CORRUPTED = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
BALL, CAT = 903, 753


@pytest.fixture(scope="module")
def folder(bundled: pl.CkptedTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder whose features are tokens; beside it files of the same that leave something open."""
    above = tmp_path_factory.mktemp("saes")
    embeddings = bundled.parameter("embed.W_E").detach()[:1024]
    mean = embeddings.mean(0)
    directions = torch.nn.functional.normalize(embeddings - mean, dim=-1)
    weights = {"W_enc": directions.T.clone(), "b_enc": torch.zeros(1024), "W_dec": directions, "b_dec": mean}
    for name, at in (("sae", "blocks.0.hook_resid_pre"), ("query", "blocks.0.attn.hook_q")):
        pl.sae.SparseAutoencoder(pl.sae.SaeConfig(at, "topk", k=1), weights).save(above / name)
    fields = json.loads((above / "sae" / "cfg.json").read_text(encoding="utf-8"))
    inner = fields.pop("metadata", {})
    whole = {**inner, **fields}
    for name, changes in {
        "placeless": {"hook_name": None}, "scaled": {"normalize_activations": "expected_average_only_in"},
        "old": {"sae_lens_version": "3.0.0", "model_from_pretrained_kwargs": None},
    }.items():  # fmt: skip
        shutil.copytree(above / "sae", above / name)
        own = {key: value for key, value in {**whole, **changes}.items() if value is not None}
        (above / name / "cfg.json").write_text(json.dumps(own), encoding="utf-8")
    return above


def test_a_run_shows_features_and_changes_them(
    bundled: pl.CkptedTransformer, cli: Any, cli_json: Any, folder: Path
) -> None:
    """At every token, or at the one that is kept; what comes next with features set stands below."""
    sae = pl.sae.load(folder / "sae")
    given = ("run", CLEAN, "--sae", str(folder / "sae"), "--feature", f"{BALL}=0", "--feature", f"{CAT}=1.5")
    found = cli_json(*given, "--names", "ckpt_embed")
    features = sae.features(bundled.run_with_ckpts(CLEAN)[1])[0].values
    assert found["sae"]["at"] == "blocks.0.resid_pre"
    assert found["sae"]["positions"] == [*range(8)]
    strongest = [[(one["feature"], one["activation"]) for one in row] for row in found["sae"]["features"]]
    assert strongest == [[(int(row.argmax()), float(row.max()))] for row in features]
    edited = bundled.run(CLEAN, edits=[sae.zero(BALL), sae.set(CAT, 1.5)])[0, -1]
    assert found["sae"]["edited"] == {str(BALL): 0.0, str(CAT): 1.5}
    assert [one["id"] for one in found["sae"]["next"]] == edited.topk(5).indices.tolist()
    assert found["next"] == cli_json("run", CLEAN)["next"], "looking changes nothing"
    alone = cli_json("run", CLEAN, "--sae", str(folder / "sae"), "--pos", "3")["sae"]
    assert (alone["positions"], alone["next"]) == ([3], None)
    assert alone["features"][0][0] == pytest.approx(found["sae"]["features"][3][0]), "another product by one row"
    shown = cli(*given, "--top", "1").stdout
    assert re.search(r"^3 +·ball +903: 1\.399", shown, re.MULTILINE)
    assert f"with feature {BALL} = 0, {CAT} = 1.5\n·cat" in shown


def test_attribution_by_features(bundled: pl.CkptedTransformer, cli: Any, cli_json: Any, folder: Path) -> None:
    given = ("attribute", CLEAN, "--against", " cat", "--sae", str(folder / "sae"))
    found = cli_json(*given)
    _, ckpts = bundled.run_with_ckpts(CLEAN)
    parts = pl.sae.direct(pl.sae.load(folder / "sae"), ckpts, (" ball", " cat"))[:, 0, -1]
    assert found["by"] == "feature"
    assert {part["component"]: part["value"] for part in found["parts"]} == dict(
        zip(parts.component.values.tolist(), parts.values.tolist(), strict=True)
    )
    assert f"of the run's own: {found['logit']:.3f}" in cli(*given).stdout


def test_patches_of_features(bundled: pl.CkptedTransformer, cli: Any, cli_json: Any, folder: Path) -> None:
    given = ("patch", CLEAN, CORRUPTED, "--sae", str(folder / "sae"))
    found = cli_json(*given, "--direction", "noise")
    patched = pl.sae.patch(
        pl.sae.load(folder / "sae"), bundled, CLEAN, CORRUPTED, direction="noise",
        metric=pl.metrics.logit_difference(" ball", " cat"),
    )  # fmt: skip
    np.testing.assert_array_equal(found["values"], patched.values)
    assert found["axes"] == {"feature": [CAT, BALL]}
    assert (found["names"], found["clean"]) == (["blocks.0.resid_pre"], patched.attrs["clean"])
    assert "features of blocks.0.resid_pre, clean into corrupted" in cli(*given).stdout


@pytest.mark.parametrize(
    "given",
    [("run", CLEAN, "--feature", "3=1"), ("run", CLEAN, "--sae-at", "resid_pre"), ("run", "--list", "--sae", "sae"),
     ("run", CLEAN, "--sae", "sae", "--feature", "x"),
     ("run", CLEAN, "--sae", "sae", "--feature", "3=1", "--feature", "3=0"),
     ("run", CLEAN, "--sae", "sae", "--sae-centred", "maybe"),
     ("attribute", CLEAN, "--sae", "sae", "--by", "head"), ("patch", CLEAN, CORRUPTED, "--sae", "sae", "--align"),
     ("patch", CLEAN, CORRUPTED, "--sae", "sae", "--over", "layer")],
    ids=" ".join,
)  # fmt: skip
def test_what_does_not_go_together(
    given: tuple[str, ...], cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert cli(*given).exit_code == 2


_RUN = ["run", CLEAN, "--sae"]
FOLLOWED: list[Typed] = [
    ("sae-place", [*_RUN, "placeless"], [*_RUN, "placeless", "--sae-at", "blocks.0.resid_pre"]),
    ("sae-centring", [*_RUN, "old"], [*_RUN, "old", "--sae-centred", "yes"]),
    ("sae-centring", [*_RUN, "old"], [*_RUN, "old", "--sae-centred", "no"]),
    ("sae-input-scale", [*_RUN, "scaled"], [*_RUN, "scaled", "--sae-scale", "0.5"]),
    ("sae-width", [*_RUN, "sae", "--sae-at", "blocks.0.mlp.ckpt_post"], [*_RUN, "sae"]),
    ("sae-not-in-the-stream", ["attribute", CLEAN, "--sae", "query"], ["attribute", CLEAN, "--sae", "sae"]),
]


@pytest.mark.parametrize(("code", "before", "after"), typed(FOLLOWED))
def test_remedies_are_followed(
    code: str, before: list[str], after: list[str], cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    error = json.loads(cli(*before, "--json").stdout)["error"]
    assert error["code"] == code, error
    added = {word for word in after if word.startswith("--")} - set(before)
    assert added <= set(re.findall(r"--[a-z-]+", error["remedy"])), error["remedy"]
    assert not PYTHON.search(error["remedy"])
    assert cli(*after, "--json").exit_code == 0
