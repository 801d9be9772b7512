"""`pellucid compare`: verdicts, exit codes, and the forms of the report."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pellucid as pl
import support
from pellucid.cli import app
from pellucid.open import BUNDLED


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", *words], prog_name="pellucid")
    return result.exit_code, result.stdout


@pytest.fixture(scope="module", name="changed")
def _changed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundled model with one weight one ulp away."""
    model, folder = pl.load(), tmp_path_factory.mktemp("changed")
    with torch.no_grad():
        weight = model.blocks[1].mlp.W_in
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(math.inf))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model of the bundled one's words in float16, and in float32 with a weight one ulp away."""
    model, folder = support.glass(n_layer=1, n_embd=32, vocab_size=4096, n_positions=64), tmp_path_factory.mktemp("two")
    model.tokenizer = pl.load().tokenizer
    model.half().save_pretrained(folder / "half")
    with torch.no_grad():
        weight = model.float().blocks[0].mlp.W_in
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(math.inf))
    model.save_pretrained(folder / "changed")
    return str(folder / "half"), str(folder / "changed")


def test_both_sides_through_transformers_have_their_tokenizer(small: tuple[str, str]):
    half, changed = small
    assert run(f"hf:{half}", f"hf:{half}")[0] == 0
    code, shown = run(f"hf:{half}", f"hf:{changed}/model.safetensors", "--dtype", "float32")
    assert (code, shown.splitlines()[0]) == (1, "different")


def test_a_file_through_transformers_is_identical(small: tuple[str, str]):
    code, shown = run(small[0], f"hf:{small[0]}/model.safetensors")
    assert (code, shown.splitlines()[0]) == (0, "identical")


def test_one_ulp_is_different_and_named(changed: str, tmp_path):
    code, shown = run(str(BUNDLED), changed, "--dtype", "float32", "--json", "--html", str(tmp_path / "report.html"))
    report = json.loads(shown)
    assert code == 1
    assert report["verdict"] == "different"
    assert report["first_divergence"]["where"] == "blocks.1.mlp.W_in"
    assert "(1 ulp" in report["first_divergence"]["detail"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "different" in page
    assert "blocks.1.mlp.W_in" in page


def test_a_summary_for_a_pull_request(changed: str):
    code, shown = run("bundled", changed, "--dtype", "float32", "--markdown")
    assert code == 1
    assert shown.startswith("**different**")
    assert "| `blocks.1.mlp.W_in` |" in shown
    code, shown = run("bundled", changed, "--markdown", "--json")
    assert (code, "leave out --markdown" in json.loads(shown)["error"]["message"]) == (2, True)


def test_what_is_not_there_is_exit_3(tmp_path):
    assert run("bundled", str(tmp_path / "nothing"))[0] == 3
    assert run("bundled", f"hf:{tmp_path / 'nothing'}")[0] == 3


def test_what_transformers_cannot_open_is_exit_4(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert run("bundled", f"hf:{tmp_path}")[0] == 4


def test_each_side_has_options_of_its_own(changed: str, tmp_path: Path):
    """The file alone says neither its configuration nor its tokenizer."""
    alone = tmp_path / "alone.safetensors"
    shutil.copyfile(Path(changed) / "model.safetensors", alone)
    fields = json.loads((Path(changed) / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "given.json").write_text(json.dumps({**fields, "add_cross_attention": True}), encoding="utf-8")
    words = ["compare", changed, str(alone)]
    for more, code in (
        ([], "config-needed"),
        (["--config", f"A={tmp_path}/given.json"], "config-not-implemented"),
        (["--config", f"B={tmp_path}/given.json"], "config-not-implemented"),
        (
            ["--config", f"B={tmp_path}/given.json", "--ignore-config", "A=add_cross_attention"],
            "config-not-implemented",
        ),
    ):
        shown = CliRunner().invoke(app, [*words, *more, "--json"], prog_name="pellucid")
        assert json.loads(shown.stdout)["error"]["code"] == code
    assert run(*words[1:], "--config", f"B={tmp_path}/given.json", "--ignore-config", "B=add_cross_attention")[0] == 0
    code, shown = run(
        *words[1:], "--config", f"{tmp_path}/given.json", "--ignore-config", "add_cross_attention", "--json"
    )
    assert (code, json.loads(shown)["verdict"]) == (0, "identical")


def test_a_side_is_opened_as_it_is_stored(small: tuple[str, str]):
    """The file holds float16: beside a float32 of it that differs by less, it is rounded alike."""
    half, changed = small
    assert run(half, changed)[1].splitlines()[0] == "equivalent"
    assert run(half, changed, "--dtype", "A=float32")[1].splitlines()[0] == "different"
    assert run(half, f"hf:{half}", "--dtype", "B=float32")[1].splitlines()[0] == "equivalent"
    assert run(half, f"hf:{half}", "--dtype", "bfloat16")[1].splitlines()[0] == "identical"
    assert run(half, half, "--dtype", "float32", "--dtype", "float16")[0] == 2
