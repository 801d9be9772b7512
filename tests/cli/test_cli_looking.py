"""`pellucid attribute`, `lens` and `heads`: the numbers are the library's, and what cannot be is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pellucid as pl
import support

TEXT = "Lily and Tom went to the park. Tom gave a ball to"


@pytest.fixture(scope="module", name="run")
def _run(bundled: pl.CkptedTransformer) -> Any:
    return bundled.run_with_ckpts(TEXT)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


# attribute


@pytest.mark.parametrize("by", ["component", "head", "neuron", "block"])
def test_parts_are_those_of_direct_attribution(by: Any, cli_json: Any, run: Any) -> None:
    logits, ckpts = run
    found = cli_json("attribute", TEXT, "--token", " Lily", "--against", " Tom", "--by", by)
    parts = pl.attribution.direct(ckpts, (" Lily", " Tom"), by=by).isel(batch=0, pos=-1)
    assert [part["component"] for part in found["parts"]] == parts.component.values.tolist()
    assert [part["value"] for part in found["parts"]] == pytest.approx(parts.values, rel=1e-12)
    assert [part["index"] for part in found["parts"]] == [i if i >= 0 else None for i in parts["index"].values.tolist()]
    ids = [found["token"]["id"], found["against"]["id"]]
    assert found["logit"] == float(logits[0, -1, ids[0]].double() - logits[0, -1, ids[1]].double())
    assert found["sum"] == pytest.approx(found["logit"], rel=1e-4)


def test_the_likeliest_token_after_any_token(cli_json: Any, run: Any) -> None:
    logits, _ = run
    for pos in (-1, 3, 0):
        found = cli_json("attribute", TEXT, "--pos", str(pos))
        assert found["token"]["id"] == int(logits[0, pos].argmax())
        assert found["pos"] == pos % logits.size(1)
        assert found["against"] is None
        assert found["sum"] == pytest.approx(float(logits[0, pos].max()), rel=1e-4)


def test_the_table_of_parts(cli: Any) -> None:
    shown = cli("attribute", TEXT, "--against", " Tom", "--by", "head", "--top", "2").stdout.splitlines()
    assert shown[0].startswith("logit of ·Lily (")
    assert [line.split()[0] for line in shown[2:5]] == ["blocks.2.attn[1]", "blocks.1.mlp", "25"]
    numbers = [float(line.split()[2 if "others" in line else 1]) for line in shown[2:6]]
    assert numbers[3] == pytest.approx(sum(numbers[:3]), abs=0.002)
    assert shown[5].startswith("sum")


def test_files_of_parts(cli: Any, cli_json: Any, tmp_path: Path) -> None:
    made = tmp_path / "parts.csv", tmp_path / "parts.png"
    shown = cli("attribute", TEXT, "--by", "head", "--csv", str(made[0]), "--figure", str(made[1])).stdout
    assert all(str(path) in shown for path in made)
    parts = cli_json("attribute", TEXT, "--by", "head")["parts"]
    rows = rows_of(made[0])
    assert [row["component"] for row in rows] == [part["component"] for part in parts]
    assert [float(row["value"]) for row in rows] == pytest.approx([part["value"] for part in parts], rel=1e-12)
    assert [row["layer"] for row in rows] == ["" if part["layer"] is None else str(part["layer"]) for part in parts]
    assert made[1].read_bytes().startswith(b"\x89PNG")


# lens


def test_what_blocks_say_is_the_lens(cli_json: Any, run: Any, bundled: pl.CkptedTransformer) -> None:
    found = cli_json("lens", TEXT, "--token", " Lily", "--pos", "4", "--top", "3")
    read = pl.lens.logit(run[1])
    assert found["grid"] == read.top(1).text.values[:, 0, :, 0].tolist()
    top, kl, rank = read.top(3), read.kl(), read.rank(" Lily")
    for layer, said in enumerate(found["layers"]):
        assert said["layer"] == layer
        assert [one["id"] for one in said["top"]] == top[layer, 0, 4].values.tolist()
        assert [one["token"] for one in said["top"]] == bundled.tokenizer.pieces([one["id"] for one in said["top"]])
        probabilities = np.exp(top.logprob[layer, 0, 4].values)
        assert [one["probability"] for one in said["top"]] == pytest.approx(probabilities, rel=1e-12)
        assert said["kl"] == pytest.approx(float(kl[layer, 0, 4]), rel=1e-9, abs=1e-12)
        assert said["rank"] == int(rank[layer, 0, 4])
        assert said["probability"] == pytest.approx(float(np.exp(read.logprobs(" Lily")[layer, 0, 4])), rel=1e-12)


@pytest.mark.parametrize(
    ("at", "layers"), [("blocks.1.resid_mid", [1]), ("ckpt_embed", [None]), ("attn.ckpt_attn_out", [0, 1, 2, 3])]
)
def test_other_places(at: str, layers: list[int | None], cli: Any, cli_json: Any, tmp_path: Path) -> None:
    found = cli_json("lens", TEXT, "--at", at)
    assert [said["layer"] for said in found["layers"]] == layers
    assert len(found["grid"]) == len(layers)
    assert {said["rank"] for said in found["layers"]} == {None}
    if layers == [None]:
        assert cli("lens", TEXT, "--at", at, "--figure", str(tmp_path / "lens.svg")).exit_code == 0


def test_a_tuned_lens(cli_json: Any, bundled: pl.CkptedTransformer, tmp_path: Path) -> None:
    tuned = pl.lens.TunedLens.fit(bundled, [TEXT] * 4, epochs=2)
    tuned.save(tmp_path / "lens.safetensors")
    found = cli_json("lens", TEXT, "--tuned", str(tmp_path / "lens.safetensors"))
    kl = tuned.read(bundled.run_with_ckpts(TEXT, names="resid_post")[1]).kl()
    assert [said["kl"] for said in found["layers"]] == pytest.approx(kl[:, 0, -1].values, rel=1e-9, abs=1e-12)


def test_the_grid_and_its_file(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "lens.csv"
    shown = cli("lens", TEXT, "--top", "2", "--csv", str(path)).stdout.splitlines()
    assert shown[1].split() == ["token", "0", "1", "2", "3"]
    assert shown[3].split() == ["1", "·and", "·said", "·Ben", "·her", "·her"]
    rows = rows_of(path)
    assert len(rows) == 13 * 4 * 2
    assert [row["next"] for row in rows[8:16:2]] == [" said", " Ben", " her", " her"]


# heads


def test_scores_are_those_of_heads(cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    found = cli_json("heads", TEXT, "--token", " Tom")
    for rows, expected in (
        (found["heads"], pl.heads.scores(bundled, TEXT)),
        (found["movers"], pl.heads.name_movers(bundled, TEXT, " Tom")),
    ):
        assert [(row["layer"], row["head"]) for row in rows] == [(i, j) for i in range(4) for j in range(4)]
        for name in expected:
            assert [row[name] for row in rows] == pytest.approx(expected[name].values.ravel(), rel=1e-9, nan_ok=True)


def test_what_is_missing_is_null_and_empty(cli: Any, cli_json: Any) -> None:
    assert {row["induction"] for row in cli_json("heads", "Once upon")["heads"]} == {None}
    row = next(line for line in cli("heads", "Once upon").stdout.splitlines() if line.startswith("0."))
    assert len(row.split()) == 4, "the head, previous, first, copying"


def test_the_strongest_heads(cli: Any, cli_json: Any, tmp_path: Path) -> None:
    path = tmp_path / "heads.csv"
    shown = cli("heads", TEXT, "--top", "1", "--csv", str(path), "--figure", str(tmp_path / "h.png")).stdout
    rows = cli_json("heads", TEXT)["heads"]
    best = {max(rows, key=lambda row, name=name: row[name])["layer"] for name in ("previous", "first", "induction")}
    names = [line.split()[0] for line in shown.splitlines() if line[:1].isdigit() and line[1:2] == "."]
    assert {int(name[0]) for name in names} >= best
    assert len(names) <= 5
    assert [float(row["previous"]) for row in rows_of(path)] == pytest.approx([row["previous"] for row in rows])
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", support.few_of("QKV", "K"))
def test_composition(kind: Any, cli: Any, cli_json: Any, bundled: pl.CkptedTransformer, tmp_path: Path) -> None:
    pairs = cli_json("heads", "--composition", kind, "--top", "4")["pairs"]
    scores = pl.heads.composition(bundled, kind)
    largest = np.sort(scores.values[~np.isnan(scores.values)])[::-1]
    assert [pair["composition"] for pair in pairs] == pytest.approx(largest[:4], rel=1e-12)
    assert float(scores.sel({name: pairs[0][name] for name in scores.dims})) == pairs[0]["composition"]
    files = "--csv", str(tmp_path / "pairs.csv"), "--figure", str(tmp_path / "pairs.png")
    assert cli("heads", "--composition", kind, *files).exit_code == 0
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows_of(tmp_path / "pairs.csv")) == len(largest)


# Refusals


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["attribute", TEXT, "--token", " Lily and"], "not-one-token"),
        (["attribute", TEXT, "--pos", "13"], "index-out-of-range"),
        (["attribute", TEXT, "--figure", "parts.doc"], "figure-format"),
        (["lens", TEXT, "--pos", "-14"], "index-out-of-range"),
        (["lens", TEXT, "--at", "mlp.ckpt_post"], "lens-place"),
        (["lens", TEXT, "--at", "resid_pots"], "unknown-checkpoint"),
        (["lens", TEXT, "--top", "99999"], "not-a-whole-number"),
        (["heads", "Once"], "nothing-to-attend"),
        (["heads", TEXT, "--token", " cat"], "token-not-in-the-text"),
    ],
)
def test_what_cannot_be(words: list[str], code: str, cli: Any, cli_json: Any) -> None:
    assert cli_json(*words, expect=4)["error"]["code"] == code
    assert f"[{code}]" in cli(*words).stderr


def test_a_format_that_needs_tex_is_refused_without_it(
    cli_json: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_: None)
    error = cli_json("attribute", TEXT, "--figure", str(tmp_path / "parts.pgf"), expect=4)["error"]
    assert (error["code"], "pgf," in error["message"]) == ("figure-format", False)


@pytest.mark.parametrize(
    "words",
    [
        ["attribute"], ["lens"], ["heads"], ["attribute", TEXT, "--by", "heads"], ["attribute", TEXT, "--top", "0"],
        ["heads", "--composition", "QK"], ["heads", TEXT, "--composition", "K"],
        ["heads", "--composition", "K", "--token", " Tom"], ["lens", TEXT, "--tuned", "x", "--at", "resid_mid"],
    ],
)  # fmt: skip
def test_usage(words: list[str], cli: Any) -> None:
    assert cli(*words).exit_code == 2
