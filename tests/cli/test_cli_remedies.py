"""A remedy on the command line is made of options, and following it makes the problem go away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
from pellucid.cli.shared.remedies import PYTHON, WORDS, remedy_here
from pellucid.open import BUNDLED

TEXT = "Once upon a time"


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled weights without a tokenizer, beside them without anything, and a configuration with an odd field."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "plain").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(BUNDLED / name, folder / "plain" / name)
    (folder / "bare").mkdir()
    shutil.copyfile(BUNDLED / "model.safetensors", folder / "bare" / "model.safetensors")
    shutil.copyfile(BUNDLED / "model.safetensors", folder / "alone.safetensors")
    fields = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))
    odd = {**fields, "add_cross_attention": True}
    (folder / "odd.json").write_text(json.dumps(odd), encoding="utf-8")
    (folder / "type.json").write_text(json.dumps({**fields, "model_type": "gpt9"}), encoding="utf-8")
    shutil.copyfile(BUNDLED / "config.json", folder / "config.json.txt")
    return folder


C, T = str(BUNDLED / "config.json"), str(BUNDLED / "tokenizer.json")
FOLLOWED = [
    ("no-tokenizer", ["run", TEXT, "-m", "plain"], ["run", TEXT, "-m", "plain", "--tokenizer", T]),
    ("no-tokenizer", ["run", TEXT, "-m", "plain"], ["run", "-m", "plain", "--ids", "1,2,3"]),
    ("no-tokenizer", ["generate", TEXT, "-m", "plain"], ["generate", "-m", "plain", "--ids", "1,2,3"]),
    ("no-tokenizer", ["norms", TEXT, "-m", "plain"], ["norms", TEXT * 4, "-m", "plain", "--tokenizer", T]),
    ("no-tokenizer", ["norms", TEXT, "-m", "plain"], ["norms", "-m", "plain", "--ids", "1,2,3,4,5,6,7,8;9,10"]),
    ("no-tokenizer", ["compare", "plain", "plain", "--text", TEXT],
     ["compare", "plain", "plain", "--text", TEXT, "--tokenizer", T]),
    ("no-tokenizer", ["compare", "plain", "plain", "--text", TEXT], ["compare", "plain", "plain", "--ids", "1,2,3"]),
    ("config-needed", ["run", "-m", "alone.safetensors", "--ids", "1,2"],
     ["run", "-m", "alone.safetensors", "--ids", "1,2", "--config", C]),
    ("config-not-found", ["run", "-m", "bare", "--ids", "1,2"], ["run", "-m", "bare", "--ids", "1,2", "--config", C]),
    ("config-not-implemented", ["run", TEXT, "--config", "odd.json"],
     ["run", TEXT, "--config", "odd.json", "--ignore-config", "add_cross_attention"]),
    ("config-model-type", ["run", TEXT, "--config", "type.json"],
     ["run", TEXT, "--config", "type.json", "--ignore-config", "model_type"]),
    ("empty-text", ["run", ""], ["run", "", "--bos"]),
    ("empty-text", ["generate", ""], ["generate", "", "--bos"]),
    ("too-long", ["generate", TEXT, "--max-new-tokens", "260"],
     ["generate", TEXT, "--max-new-tokens", "260", "--overflow", "slide"]),
    ("overflow", ["generate", TEXT, "--overflow", "grow"], ["generate", TEXT, "--overflow", "slide"]),
    ("unknown-checkpoint", ["run", TEXT, "--names", "pattren"], ["run", "--list"]),
    ("too-short", ["norms", "Hi"], ["norms", "Hi", "--lags", "0", "--skip", "0"]),
    ("too-short", ["norms", "Hi Lily"], ["norms", "Hi Lily", "--lags", "0"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "before", "after"), FOLLOWED, ids=lambda value: " ".join(value)[:40])
def test_remedies_are_followed(
    code: str, before: list[str], after: list[str], cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    failed = cli(*before, "--json")
    error = json.loads(failed.stdout)["error"]
    assert error["code"] == code
    added = {word for word in after if word.startswith("--")} - set(before)
    assert added <= set(re.findall(r"--[a-z-]+", error["remedy"])), error["remedy"]
    assert not PYTHON.search(error["remedy"])
    assert error["remedy"] in " ".join(cli(*before).stderr.split())
    assert cli(*after, "--json").exit_code == 0


def test_options_in_remedies_exist(cli: Any) -> None:
    helps = "".join(cli(verb, "--help").stdout for verb in ("run", "generate", "norms", "compare"))
    for words in WORDS.values():
        for option in re.findall(r"--[a-z-]+", words if isinstance(words, str) else str(words[1])):
            assert option in helps or option == "--help"


def test_what_is_python_is_said_to_be() -> None:
    assert remedy_here("no-such-code", "Pass x=3 to pl.load.") == "In Python: Pass x=3 to pl.load."
    assert remedy_here("no-such-code", "Give a longer text.") == "Give a longer text."


def test_a_verb_has_remedies_of_its_own(cli: Any) -> None:
    """norms has no --bos, and a learner at a shell no exercises.starter."""
    for words, absent in ((["norms", ""], "--bos"), (["check", "none.py"], "In Python")):
        error = json.loads(cli(*words, "--json").stdout)["error"]
        assert absent not in error["remedy"]
    assert "--bos" in json.loads(cli("run", "", "--json").stdout)["error"]["remedy"]


def test_the_names_are_those_of_the_model(cli: Any, cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    assert cli("run", "--list").stdout.splitlines() == list(bundled.ckpt_names)
    found = cli_json("run", "--list", "--names", "*.1.attn.ckpt_z")
    assert found == {"model": "bundled", "names": ["blocks.1.attn.ckpt_z"]}
