"""`pellucid patch`: the numbers are those of the library's sweep, in every form that they are given."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid as pl

CLEAN, CORRUPTED = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
ANSWERS = ("--token", " ball", "--against", " cat")
METRIC = pl.metrics.logit_difference(" ball", " cat")


def test_json_is_the_sweep(bundled: pl.CkptedTransformer, cli_json: Any) -> None:
    found = cli_json("patch", CLEAN, CORRUPTED)
    swept = pl.patching.sweep(bundled, CLEAN, CORRUPTED, "resid_pre", over=("layer", "pos"), metric=METRIC)
    np.testing.assert_array_equal(found["values"], swept.values)
    assert found["axes"] == {"layer": [*range(4)], "pos": [*range(8)]}
    assert (found["clean"], found["corrupted"]) == (swept.attrs["clean"], swept.attrs["corrupted"])
    assert (found["token"], found["against"]) == (" ball", " cat"), "the likeliest after each text"
    assert (found["model"], found["names"], found["direction"]) == ("bundled", ["resid_pre"], "denoise")
    assert found["tokens"][3] == " cat", "of the run that is patched"
    assert (found["metric"], found["units"]) == (swept.attrs["metric"], "logits")


def test_what_is_asked_for_is_swept(bundled: pl.CkptedTransformer, cli_json: Any) -> None:
    names = ["attn.ckpt_z", "attn.ckpt_v"]
    words = [word for name in names for word in ("--names", name)]
    found = cli_json("patch", CLEAN, CORRUPTED, *ANSWERS, *words, "--over", "layer, head", "--direction", "noise")
    swept = pl.patching.sweep(
        bundled, CLEAN, CORRUPTED, names, over=("layer", "head"), metric=METRIC, direction="noise"
    )  # fmt: skip
    np.testing.assert_array_equal(found["values"], swept.values)
    assert found["axes"]["checkpoint"] == names
    assert found["tokens"][3] == " ball"
    alone = cli_json("patch", CLEAN, CORRUPTED, "--token", " ball", "--over", "")
    assert (alone["against"], alone["axes"]) == (None, {})
    assert alone["values"] == pytest.approx(alone["clean"], abs=1e-4), "the whole stream is the other run"


def test_texts_of_unequal_length(bundled: pl.CkptedTransformer, cli_json: Any) -> None:
    longer = "Tom has a big ball. Tom likes the"
    found = cli_json("patch", longer, CORRUPTED, *ANSWERS, "--align")
    roles = pl.patching.align(bundled, longer, CORRUPTED)
    swept = pl.patching.sweep(
        bundled, longer, CORRUPTED, "resid_pre", over=("layer", "pos"), metric=METRIC, align=roles
    )  # fmt: skip
    np.testing.assert_array_equal(found["values"], swept.values)
    assert found["axes"]["pos"] == list(roles.names)


def test_the_table_has_the_strongest_first(cli: Any) -> None:
    shown = cli("patch", CLEAN, CORRUPTED, *ANSWERS, "--names", "attn.ckpt_z", "--over", "layer,head", "--top", "3")
    lines = shown.stdout.splitlines()
    assert lines[:2] == ["attn.ckpt_z, clean into corrupted", "logit difference of ' ball', ' cat' at -1"]
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["3", "0"], ["3", "1"], ["3", "3"]]
    changes = [abs(float(row[3])) for row in rows]
    assert changes == sorted(changes, reverse=True)
    assert "and 13 that change less" in shown.stdout


def test_files(bundled: pl.CkptedTransformer, cli: Any, tmp_path: Path) -> None:
    figure, table = tmp_path / "a.svg", tmp_path / "a.csv"
    said = cli("patch", CLEAN, CORRUPTED, *ANSWERS, "--figure", str(figure), "--csv", str(table)).stdout
    assert str(figure) in said
    assert "clean into corrupted" in figure.read_text(encoding="utf-8")
    swept = pl.patching.sweep(bundled, CLEAN, CORRUPTED, "resid_pre", over=("layer", "pos"), metric=METRIC)
    rows = [*csv.DictReader(table.read_text(encoding="utf-8").splitlines())]
    assert len(rows) == swept.size
    for row in rows:
        expected = float(swept.sel(layer=int(row["layer"]), pos=int(row["pos"])))
        assert float(row["value"]) == pytest.approx(expected, rel=1e-12)
    assert rows[3]["token"] == " cat"


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        ((CLEAN, "Tom"), "texts-of-unequal-length", 4),
        ((CLEAN, CORRUPTED, "--names", "resid_pro"), "unknown-checkpoint", 4),
        ((CLEAN, CORRUPTED, "--over", "head"), "no-such-axis", 4),
        ((CLEAN, CORRUPTED, "--token", "bouquets of"), "not-one-token", 4),
        ((CLEAN, CORRUPTED, "--figure", "a.doc"), "figure-format", 4),
        ((CLEAN, CORRUPTED, "-m", "no/such/folder"), "path-not-found", 3),
        (("", CORRUPTED), "empty-text", 4),
        ((CLEAN, CORRUPTED, "--over", "pos,pos"), "usage", 2),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(words: tuple[str, ...], code: str, exit_code: int, cli_json: Any) -> None:
    assert cli_json("patch", *words, expect=exit_code)["error"]["code"] == code
