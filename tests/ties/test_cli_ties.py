"""`pellucid ties`: what it shows, as JSON, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import support
from pellucid.cli import load_verb
from pellucid.ties import audit_ties
from ties import cases


@dataclass(frozen=True)
class Ran:
    exit_code: int
    stdout: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def command(*args: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            load_verb("ties")(list(args), prog_name="pellucid ties")
        return Ran(int(left.value.code or 0), capsys.readouterr().out)

    return command


@pytest.mark.parametrize("tied", [True, False])
def test_a_sound_checkpoint(tied: bool, run: Run, tmp_path: Path) -> None:
    support.glass(tie_word_embeddings=tied).save_pretrained(tmp_path)
    result = run(str(tmp_path))
    assert result.exit_code == 0
    assert "no problems" in result.stdout
    assert ("lm_head.weight" in result.stdout.split("after reload")[0]) is tied
    assert f"{audit_ties(tmp_path).unique:,} unique" in result.stdout


def test_problems_make_the_exit_code(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    cases.changed("Sequential(Linear)").save_pretrained(tmp_path)
    result = run(str(tmp_path))
    assert result.exit_code == 1
    assert "reload-dropped" in result.stdout
    assert "remedy:" in result.stdout
    result = run(str(tmp_path), "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["after_reload"]["survives"] is False
    assert content["problems"][0]["code"] == "reload-dropped"
    assert content == json.loads(json.dumps(content))


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    assert run(str(tmp_path / "nowhere.safetensors")).exit_code == 3
    (tmp_path / "model.safetensors").write_bytes(b"nonsense and more")
    assert run(str(tmp_path)).exit_code == 4
    assert run().exit_code == 2


def test_a_file_without_its_configuration_is_given_one(run: Run, tmp_path: Path) -> None:
    """The configuration decides the reading: none, its own, and one that does not tie."""
    support.glass(tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    alone = (tmp_path / "model" / "model.safetensors").rename(tmp_path / "alone.safetensors")
    config = tmp_path / "model" / "config.json"
    assert json.loads(run(str(alone), "--json").stdout)["after_reload"]["survives"] is None
    tied = run(str(alone), "--config", str(config), "--json")
    assert (tied.exit_code, json.loads(tied.stdout)["after_reload"]["survives"]) == (0, True)
    fields = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**fields, "tie_word_embeddings": False}), encoding="utf-8")
    untied = run(str(alone), "--config", str(config), "--json")
    assert (untied.exit_code, json.loads(untied.stdout)["after_reload"]["survives"]) == (1, False)
    ignored = run(str(alone), "--config", str(config), "--ignore-config", "tie_word_embeddings", "--json")
    assert (ignored.exit_code, json.loads(ignored.stdout)["after_reload"]["survives"]) == (0, True)
    assert run(str(alone), "--config", str(tmp_path / "none.json")).exit_code == 3
