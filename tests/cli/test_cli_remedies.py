"""A remedy on the command line is made of options, and following it makes the problem go away."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import llamas
import pellucid as pl
from following import Typed, typed
from pellucid.cli import VERBS
from pellucid.cli.shared.failures import WORDS, remedy_here
from pellucid.cli.shared.options import read_text
from pellucid.errors import PYTHON
from pellucid.fast import compiled
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
    llamas.reference().save_pretrained(folder / "relative")
    (folder / "relative" / "config.json").rename(folder / "llama.json")
    relative = {**json.loads((folder / "llama.json").read_text(encoding="utf-8")), "model_type": "mistral"}
    (folder / "relative" / "config.json").write_text(json.dumps(relative), encoding="utf-8")
    (folder / "nobos.json").write_text(json.dumps({**fields, "bos_token_id": None}), encoding="utf-8")
    (folder / "untied.json").write_text(json.dumps({**fields, "tie_word_embeddings": False}), encoding="utf-8")
    told = {
        "narrow": {"num_beams": 0},
        "guided": {"guidance_scale": 2.0},
        "short": {"max_length": 2},
    }
    for name, asked in told.items():
        shutil.copytree(BUNDLED, folder / name)
        (folder / name / "generation_config.json").write_text(json.dumps(asked), encoding="utf-8")
    (folder / "letters.txt").write_text(TEXT * 9, encoding="utf-8")
    (folder / "latin.txt").write_bytes((TEXT * 9 + "é").encode("latin1"))
    (folder / "eighth").mkdir()
    shutil.copyfile(BUNDLED / "config.json", folder / "eighth" / "config.json")
    tensors = load_file(BUNDLED / "model.safetensors")
    zero = {name: tensor * ("attn.c_proj" not in name) for name, tensor in tensors.items()}
    for name in ("config.json", "tokenizer.json"):
        (folder / "zero").mkdir(exist_ok=True)
        shutil.copyfile(BUNDLED / name, folder / "zero" / name)
    save_file(zero, folder / "zero" / "model.safetensors")
    shutil.copytree(BUNDLED, folder / "nan")
    save_file({name: t * (float("nan") if "h.2.mlp" in name else 1) for name, t in tensors.items()},
              folder / "nan" / "model.safetensors")  # fmt: skip
    pl.lens.TunedLens.fit(pl.load(), [TEXT]).save(folder / "lens.safetensors")
    eighth = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(eighth, folder / "eighth" / "model.safetensors")
    return folder


C, T = str(BUNDLED / "config.json"), str(BUNDLED / "tokenizer.json")
FOLLOWED: list[Typed] = [
    ("lens-place", ["lens", TEXT, "--at", "attn.ckpt_z"], ["lens", TEXT, "--at", "attn.ckpt_attn_out"]),
    ("lens-of-another-model", ["lens", TEXT, "-m", "zero", "--tuned", "lens.safetensors"],
     ["lens", TEXT, "-m", "zero"]),
    ("token-not-in-the-text", ["heads", TEXT, "--token", " cat"], ["heads", TEXT, "--token", " upon"]),
    ("empty-text", ["attribute", ""], ["attribute", "", "--bos"]),
    ("empty-text", ["lens", ""], ["lens", "", "--bos"]),
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
    ("config-model-type", ["generate", "-m", "relative", "--ids", "1,2", "--max-new-tokens", "2"],
     ["generate", "-m", "relative", "--ids", "1,2", "--max-new-tokens", "2", "--config", "llama.json"]),
    ("config-model-type", ["run", "-m", "relative", "--ids", "1,2", "--config", "relative/config.json"],
     ["run", "-m", "relative", "--ids", "1,2", "--config", "llama.json"]),
    ("empty-text", ["run", ""], ["run", "", "--bos"]),
    ("empty-text", ["generate", ""], ["generate", "", "--bos"]),
    ("too-long", ["generate", TEXT * 60, "--max-new-tokens", "20"],
     ["generate", TEXT * 60, "--max-new-tokens", "20", "--overflow", "slide"]),
    ("overflow", ["generate", TEXT, "--overflow", "grow"], ["generate", TEXT, "--overflow", "slide"]),
    ("unknown-checkpoint", ["run", TEXT, "--names", "pattren"], ["run", "--list"]),
    ("too-short", ["norms", "Hi"], ["norms", "Hi", "--lags", "0", "--skip", "0"]),
    ("too-short", ["norms", "Hi Lily"], ["norms", "Hi Lily", "--lags", "0"]),
    ("log-of-zero", ["norms", TEXT * 9, "-m", "zero", "--lags", "0"],
     ["norms", TEXT * 9, "-m", "zero", "--lags", "0", "--linear"]),
    ("not-fitted", ["norms", TEXT * 9, "-m", "zero", "--linear"],
     ["norms", TEXT * 9, "-m", "zero", "--linear", "--lags", "0"]),
    ("max-new-tokens", ["generate", TEXT, "-m", "short", "--sampler", "file"],
     ["generate", TEXT, "-m", "short"]),
    ("path-not-found", ["run", TEXT, "--tokenizer", "plain"], ["run", TEXT, "--tokenizer", T]),
    ("path-not-found", ["norms", "letter.txt"], ["norms", "letters.txt"]),
    ("path-not-found", ["run", TEXT, "-m", "./plian"], ["run", TEXT, "-m", str(BUNDLED)]),
    ("text-not-utf8", ["norms", "latin.txt"], ["norms", "letters.txt"]),
    ("text-not-utf8", ["run", "caf\udce9"], ["run", "café"]),
    ("no-bos", ["run", TEXT, "--bos", "--config", "nobos.json"], ["run", TEXT, "--config", "nobos.json"]),
    ("no-bos", ["run", TEXT, "--bos", "--config", "nobos.json"], ["run", "--ids", "0,1", "--config", "nobos.json"]),
    ("figure-format", ["norms", TEXT * 9, "--figure", "a.doc"], ["norms", TEXT * 9, "--figure", "a.svg"]),
    ("path-not-writable", ["norms", TEXT * 9, "--figure", "plain"], ["norms", TEXT * 9, "--figure", "plain/a.svg"]),
    ("look-and-beams", ["generate", TEXT, "--explain", "--num-beams", "2"],
     ["generate", TEXT, "--explain", "--num-beams", "1"]),
    ("return-sequences", ["generate", TEXT, "--num-beams", "100000"], ["generate", TEXT, "--num-beams", "2"]),
    ("sampler-setting", ["generate", TEXT, "--top-p", "2"], ["generate", TEXT, "--top-p", "0.9"]),
    ("max-new-tokens", ["generate", TEXT, "--max-new-tokens", "-1"], ["generate", TEXT, "--max-new-tokens", "0"]),
    ("config-unknown-field", ["run", TEXT, "--ignore-config", "nonsense"], ["run", TEXT]),
    ("config-not-json", ["run", TEXT, "--config", "letters.txt"], ["run", TEXT, "--config", C]),
    ("dtype-unknown", ["run", TEXT, "--dtype", "float23"], ["run", TEXT, "--dtype", "float32"]),
    ("dtype-not-supported", ["run", "-m", "eighth", "--ids", "1,2", "--dtype", "stored"],
     ["run", "-m", "eighth", "--ids", "1,2", "--dtype", "float32"]),
    ("id-out-of-range", ["run", "--ids", "9999"], ["run", "--ids", "999"]),
    ("ids-dtype", ["run", "--ids", str(10**30)], ["run", "--ids", "10"]),
    ("return-sequences", ["generate", TEXT, "-m", "narrow", "--sampler", "file"], ["generate", TEXT, "-m", "narrow"]),
    ("generation-not-implemented", ["generate", TEXT, "-m", "guided", "--sampler", "file"],
     ["generate", TEXT, "-m", "guided"]),
    ("no-compiler", ["generate", TEXT, "--numerics", "fast"], ["generate", TEXT, "--numerics", "exact"]),
    ("head-missing", ["run", "-m", "plain", "--ids", "1,2", "--config", "untied.json"],
     ["run", "-m", "plain", "--ids", "1,2", "--config", C]),
    ("empty-stop", ["generate", TEXT, "--stop", ""], ["generate", TEXT]),
    ("texts-of-unequal-length", ["patch", TEXT, TEXT * 2], ["patch", TEXT, TEXT * 2, "--align"]),
    ("no-such-axis", ["patch", TEXT, TEXT, "--over", "layer,head"], ["patch", TEXT, TEXT, "--over", "layer"]),
    ("no-such-axis", ["patch", TEXT, TEXT, "--over", "layer,head"],
     ["patch", TEXT, TEXT, "--over", "layer,head", "--names", "attn.ckpt_z"]),
    ("no-tokenizer", ["patch", TEXT, TEXT, "-m", "plain"], ["patch", TEXT, TEXT, "-m", "plain", "--tokenizer", T]),
    ("texts-misfit", ["patch", TEXT, TEXT * 2, "--align", "--names", "pattern"],
     ["patch", TEXT, TEXT * 2, "--align", "--names", "attn.ckpt_z"]),
    ("not-one-token", ["patch", TEXT, TEXT, "--token", "bouquet"], ["patch", TEXT, TEXT, "--token", " flowers"]),
    ("empty-text", ["patch", "", TEXT], ["patch", TEXT, TEXT]),
    ("unknown-numerics", ["generate", TEXT, "--numerics", "quick"], ["generate", TEXT, "--numerics", "exact"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "before", "after"), typed(FOLLOWED))
def test_remedies_are_followed(
    code: str, before: list[str], after: list[str], cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CXX", "no-such-compiler")
    if code == "no-compiler":
        compiled.library.cache_clear()  # an earlier test of this process may have compiled it
    failed = cli(*before, "--json")
    error = json.loads(failed.stdout)["error"]
    assert error["code"] == code
    added = {word for word in after if word.startswith("--")} - set(before)
    assert added <= set(re.findall(r"--[a-z-]+", error["remedy"])), error["remedy"]
    assert not PYTHON.search(error["remedy"])
    assert cli(*after, "--json").exit_code == 0


def test_people_read_the_remedy_that_programs_get(cli: Any) -> None:
    command = ["run", TEXT, "--names", "pattren"]
    remedy = json.loads(cli(*command, "--json").stdout)["error"]["remedy"]
    assert remedy in " ".join(cli(*command).stderr.split())


def test_names_of_files_are_no_python() -> None:
    assert remedy_here("weights-not-found", "Give one of them, such as 'a/epoch=3.ckpt'.").startswith("Give one")
    assert remedy_here("hub-refused", "Do not use this address (HF_ENDPOINT, endpoint=).") == (
        "Do not use this address (HF_ENDPOINT)."
    )


def test_a_file_that_may_be_read_again_is_read(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 9, encoding="utf-8")

    def denied(self: Path, *_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        error = json.loads(cli("norms", str(tmp_path / "text.txt"), "--json").stdout)["error"]
    assert (error["code"], error["remedy"]) == (
        "path-unreadable",
        "Check the permissions of the file and of its folders.",
    )
    assert cli("norms", str(tmp_path / "text.txt")).exit_code == 0


@pytest.mark.remedy("attribution-not-finite")
def test_weights_that_are_not_finite(cli_json: Any, folder: Path) -> None:
    with pytest.warns(pl.PellucidWarning, match="not finite"):
        error = cli_json("attribute", TEXT, "-m", str(folder / "nan"), expect=4)["error"]
    assert (error["code"], error["remedy"]) == ("attribution-not-finite", "Give a model whose weights are finite.")
    assert cli_json("attribute", TEXT)["parts"]


@pytest.mark.remedy("stdin-closed")
def test_a_text_is_given_where_nothing_can_be_piped_in(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", None)
        with pytest.raises(pl.InputError, match="closed") as caught:
            read_text("-")
    assert caught.value.remedy == "Pipe a text in, or give TEXT."
    assert cli("run", "-", stdin=TEXT.encode()).stdout == cli("run", TEXT).stdout


def test_line_breaks_of_every_system_are_read_alike(cli: Any) -> None:
    one, other = (cli("run", "-", "--json", stdin=text) for text in (b"One\r\nday\r\n", b"One\nday"))
    assert one.stdout == other.stdout


def test_options_in_remedies_exist(cli: Any) -> None:
    helps = "".join(cli(verb, "--help").stdout for verb in VERBS)
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
