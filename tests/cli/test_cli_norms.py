"""`pellucid norms`: the numbers are the library's, texts come from arguments and files, what cannot be is refused."""

from __future__ import annotations

import copy
import csv
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from pellucid.cli.shared.tables import spark

TEXT = "Once upon a time there was a little cat who lived with her mother in a big house. She liked to play."
AT = "attn.ckpt_attn_out"


@pytest.fixture(scope="module")
def norms(bundled: pl.CkptedTransformer) -> Any:
    return pl.measure.norms(bundled.run_with_ckpts(TEXT, names=f"blocks.*.{AT}")[1], AT, log=True)


def test_json_is_what_is_measured(cli_json: Any, norms: Any) -> None:
    found = cli_json("norms", TEXT)
    kept = norms[:, 0, 1:].values
    assert (found["model"], found["at"], found["log"], found["skip"], found["lags"]) == ("bundled", AT, True, 1, 2)
    assert found["texts"] == [norms.sizes["pos"]]
    for layer, row in zip(found["layers"], kept, strict=True):
        stated = [layer[name] for name in ("tokens", "mean", "std", "min", "max")]
        assert stated == pytest.approx([len(row), row.mean(), row.std(), row.min(), row.max()], rel=1e-9)
        edges = np.linspace(kept.min(), kept.max(), len(layer["histogram"]) + 1)
        assert layer["histogram"] == np.histogram(row, edges)[0].tolist()
    fit = pl.measure.autoregression(norms, lags=2, skip=1)
    assert [row["estimate"] for row in found["regression"]] == pytest.approx(fit.params.values.ravel(), rel=1e-9)
    assert [row["p_holm"] for row in found["regression"]] == pytest.approx(fit.corrected("holm").values.ravel())
    assert found["rsquared"] == pytest.approx(fit.rsquared.values)


def test_the_table(cli: Any) -> None:
    shown = cli("norms", TEXT).stdout
    assert "log norm of attn.ckpt_attn_out: 1 text" in shown
    assert "y[t] = const + lag1 y[t-1] + lag2 y[t-2]" in shown
    assert sum(character in shown for character in "▁▂▃▄▅▆▇█") > 3
    without = cli("norms", TEXT, "--lags", "0", "--linear", "--skip", "0").stdout
    assert "y[t]" not in without
    assert without.startswith("norm of attn.ckpt_attn_out: 1 text, 24 tokens\n")


def test_other_checkpoints(cli_json: Any) -> None:
    assert len(cli_json("norms", TEXT, "--at", "resid_post")["layers"]) == 4
    assert [layer["layer"] for layer in cli_json("norms", TEXT, "--at", "ln_final.ckpt_normalized")["layers"]] == [0]


@pytest.mark.parametrize("at", ["attn.ckpt_z", "attn.ckpt_pattern"])
def test_heads_have_rows_of_their_own(at: str, cli: Any, cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    found = cli_json("norms", TEXT, "--at", at, "--linear")
    norms = pl.measure.norms(bundled.run_with_ckpts(TEXT, names=f"blocks.*.{at}")[1], at)
    fit = pl.measure.autoregression(norms, lags=2, skip=1)
    time = "query" if at.endswith("pattern") else "pos"
    assert [(row["layer"], row["head"]) for row in found["layers"]] == list(fit.index)
    assert found["rsquared"] == pytest.approx(fit.rsquared.values)
    for row in found["layers"]:
        own = norms.sel(layer=row["layer"], head=row["head"]).isel(batch=0, **{time: slice(1, None)}).values
        assert [row["tokens"], row["mean"]] == pytest.approx([len(own), own.mean()])
    lines = [line.split() for line in cli("norms", TEXT, "--at", at, "--linear").stdout.splitlines()]
    starts = [line[:2] for line in lines if line[:2] == ["3", "1"]]
    assert ["layer", "head"] in [line[:2] for line in lines]
    assert len(starts) == 2, "one in each table"


def test_one_block_keeps_its_number(cli_json: Any) -> None:
    found = cli_json("norms", TEXT, "--at", "blocks.3.resid_post")
    assert [(row["layer"], row["head"]) for row in found["layers"]] == [(3, None)]
    assert found["layers"][0]["mean"] == cli_json("norms", TEXT, "--at", "resid_post")["layers"][3]["mean"]


ENDS = {"svg": b"<svg", "pdf": b"%PDF", "png": b"PNG"}
"""End of a file's name -> what is in its first bytes."""


@pytest.mark.parametrize(
    ("at", "kind"),
    support.few_of(
        [("attn.ckpt_pattern", "png"), ("blocks.3.resid_post", "svg"), ("attn.ckpt_z", "pdf")],
        "attn.ckpt_pattern", "blocks.3.resid_post",
    ),
)  # fmt: skip
def test_figures_of_any_checkpoint(at: str, kind: str, cli: Any, tmp_path: Path) -> None:
    path = tmp_path / f"norms.{kind}"
    assert cli("norms", TEXT, "--at", at, "--linear", "--figure", str(path)).exit_code == 0
    assert ENDS[kind] in path.read_bytes()[:400]


def test_files_and_long_texts(cli_json: Any, tmp_path: Path, bundled: pl.CkptedTransformer) -> None:
    long = " ".join([TEXT] * 30)
    (tmp_path / "long.txt").write_text(long, encoding="utf-8")
    found = cli_json("norms", str(tmp_path / "long.txt"), TEXT)
    count = len(bundled.tokenizer.encode(long))
    assert found["texts"] == [256] * (count // 256) + [count % 256, len(bundled.tokenizer.encode(TEXT))]
    assert found["layers"][0]["tokens"] == sum(found["texts"]) - len(found["texts"])


def test_many_texts_are_measured_as_one(cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    """Batches of texts of unequal length give what one batch gives."""
    texts = [" ".join([TEXT] * (1 + i % 3)) for i in range(19)]
    found = cli_json("norms", *texts)
    ckpts = bundled.run_with_ckpts(texts, names=f"blocks.*.{AT}")[1]
    fit = pl.measure.autoregression(pl.measure.norms(ckpts, AT, log=True), lags=2, skip=1)
    assert [row["estimate"] for row in found["regression"]] == pytest.approx(fit.params.values.ravel(), rel=1e-4)


def test_csv(cli: Any, tmp_path: Path, norms: Any) -> None:
    path = tmp_path / "norms.csv"
    assert str(path) in cli("norms", TEXT, "--csv", str(path)).stdout
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == norms.size
    assert [row["token"] for row in rows[: norms.sizes["pos"]]] == norms.token.values[0].tolist()
    assert [float(row["log_norm"]) for row in rows] == pytest.approx(norms.values.ravel(), rel=1e-12)


def test_a_figure_is_wide(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "norms.png"
    assert cli("norms", TEXT, "--figure", str(path)).exit_code == 0
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width > 3 * height


def test_standard_input(cli: Any) -> None:
    assert "24 tokens" in cli("norms", "-", stdin=TEXT.encode()).stdout


def test_a_text_of_any_system_is_the_same(cli: Any, tmp_path: Path) -> None:
    words = ("norms", "--json", "--lags", "0")
    expected = json.loads(cli(*words, "-", stdin=f"{TEXT}\n\n".encode()).stdout)
    kinds = (("utf-8", "\r\n"), ("utf-8-sig", "\r"), ("utf-16", "\n"), ("utf-32", "\r\n"))
    for number, (encoding, ending) in enumerate(kinds):
        if number % 2:  # from a file and through a pipe, in turn
            written, given = (TEXT + "\n").replace("\n", ending).encode(encoding), str(tmp_path / "text.txt")
            (tmp_path / "text.txt").write_bytes(written)
        else:
            written, given = f"{TEXT}\n\n".replace("\n", ending).encode(encoding), "-"
        assert json.loads(cli(*words, given, stdin=written).stdout) == expected, (encoding, ending)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((""), "empty-text"),
        (("One",), "too-short"),
        (("One two three four", "--lags", "3"), "too-short"),
        (("One", "--lags", "0"), "too-short"),
        ((TEXT, "--at", "attn.ckpt_atn_out"), "unknown-checkpoint"),
        ((TEXT, "--at", "attn.ckpt_z"), None),
        ((TEXT, "--at", "blocks.*.**"), "several-kinds"),
        ((TEXT, "--csv", "file/norms.csv"), "path-not-writable"),
        ((TEXT, "--figure", "norms.doc"), "figure-format"),
        ((TEXT, "--figure", "file/norms.png"), "path-not-writable"),
        (("latin.txt",), "text-not-utf8"),
        (("folder",), "path-not-regular"),
        (("pipe",), "path-not-regular"),
        (("/dev/null",), "path-not-regular"),
        (("loop",), "path-unreadable"),
    ],
)
def test_bad_input(words: Any, code: str | None, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    result = cli("norms", *([words] if isinstance(words, str) else words), "--json")
    if code is None:
        assert result.exit_code == 0
    else:
        assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (4, code)
    assert sorted(tmp_path.iterdir()) == before


def test_spark() -> None:
    assert spark([0, 1, 4, 8]) == " ▂▅█"
    assert spark([0, 0]) == "  "
    assert spark([1, 1000]) == "▁█"


def test_a_misspelt_file_is_not_measured_as_text(cli: Any, tmp_path: Path):
    assert cli("norms", str(tmp_path / "alice.txt")).exit_code == 3


def test_positions_in_tables_are_whole_numbers(cli: Any, tmp_path: Path):
    text = "Lily had a red ball. One day, the red ball"
    texts = [text] * 8 + [text + " rolled away."]
    assert cli("norms", *texts, "--csv", str(tmp_path / "n.csv")).exit_code == 0
    head, first, *_ = (tmp_path / "n.csv").read_text().splitlines()
    assert first.split(",")[head.split(",").index("position")].isdigit()


def test_equal_norms_have_as_many_bins_as_others(cli_json: Any, bundled: pl.CkptedTransformer, tmp_path: Path):
    equal = copy.deepcopy(bundled)
    with torch.no_grad():
        for name, parameter in equal.named_parameters():
            parameter.fill_(name == "embed.W_E")
    equal.save_pretrained(tmp_path)
    options = ("--lags", "0", "--linear", "--skip", "0")
    others, found = (
        cli_json("norms", TEXT, *options, *where) for where in ((), ("--at", "resid_post", "--model", str(tmp_path)))
    )
    assert {layer["std"] for layer in found["layers"]} == {0.0}
    for layer, other in zip(found["layers"], others["layers"], strict=True):
        assert sum(layer["histogram"]) == layer["tokens"] == other["tokens"]
        assert len(layer["histogram"]) == len(other["histogram"])


def test_a_token_has_its_place_in_its_own_text(cli: Any, tmp_path: Path) -> None:
    """Texts of unequal length run together, in batches and padded; each token is numbered from its text's first."""
    texts = [" ".join([TEXT] * (1 + i % 3)) for i in range(9)]
    tables = {name: tmp_path / f"{name}.csv" for name in ("together", "alone")}
    assert cli("norms", *texts, "--csv", str(tables["together"])).exit_code == 0
    assert cli("norms", texts[0], "--csv", str(tables["alone"])).exit_code == 0
    together, alone = (list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) for path in tables.values())
    first = [row for row in together if row["batch"] == "0"]
    for name in ("layer", "pos", "position", "token"):
        assert [row[name] for row in first] == [row[name] for row in alone]
    assert [float(row["log_norm"]) for row in first] == pytest.approx(
        [float(row["log_norm"]) for row in alone], abs=1e-5
    )
