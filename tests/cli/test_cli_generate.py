"""`pellucid generate`: what it writes is what the library generates; stops cleanly when it is interrupted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import pellucid as pl
from pellucid.cli.work import generate as verb
from pellucid.generate.generation import GeneratedRow, Generation

PROMPT = "Once upon a time"


def test_the_text_is_that_of_the_library(cli: Any, bundled: pl.CkptedTransformer) -> None:
    result = cli("generate", PROMPT, "--max-new-tokens", "12")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == bundled.generate(PROMPT, max_new_tokens=12).text + "\n"


def test_json_is_everything(cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    found = cli_json("generate", PROMPT, "--max-new-tokens", "9", "--temperature", "0.8", "--top-k", "50",
                     "--top-p", "0.95", "--seed", "3")  # fmt: skip
    sampler = pl.Sampler(temperature=0.8, top_k=50, top_p=0.95)
    out = bundled.generate(PROMPT, max_new_tokens=9, sampler=sampler, seed=3)
    assert found["text"] == out.text
    assert [token["id"] for token in found["tokens"]] == out.new_ids[0].tolist()
    assert [token["logprob"] for token in found["tokens"]] == pytest.approx(out.logprobs[0].tolist(), abs=1e-6)
    assert (found["model"], found["prompt"], found["seed"], found["stopped"]) == ("bundled", PROMPT, 3, "length")
    assert found["sampler"]["top_p"] == 0.95
    memory = pl.estimate_generation(bundled, PROMPT, max_new_tokens=9)
    assert (found["cache_bytes"], found["prepared_bytes"]) == (memory.cache, 0)
    assert all(token["stages"] is None for token in found["tokens"])


def test_explanations(cli: Any, cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    words = ("generate", PROMPT, "--max-new-tokens", "3", "--top-k", "8", "--repetition-penalty", "1.2", "--seed", "1")
    found = cli_json(*words, "--explain")
    text = bundled.tokenizer.encode(PROMPT)
    for token in found["tokens"]:
        assert list(token["stages"]) == ["model", "repetition_penalty", "top_k"]
        with torch.no_grad():
            logits = bundled(torch.tensor([text]))[0, -1]
        expected = pl.Sampler(top_k=8, repetition_penalty=1.2).explain(logits, text)
        for name, candidates in token["stages"].items():
            probabilities = expected[name].sort(descending=True)
            assert [c["id"] for c in candidates] == probabilities.indices[:5].tolist()
            assert [c["probability"] for c in candidates] == pytest.approx(probabilities.values[:5].tolist(), abs=1e-5)
        assert math.exp(token["logprob"]) == pytest.approx(float(expected["model"][token["id"]]), rel=1e-4)
        text = [*text, token["id"]]
    shown = cli(*words, "--explain").stdout
    assert shown.count("repetition_penalty") == 3
    assert found["text"] in shown


def test_beams(cli: Any, cli_json: Any, bundled: pl.CkptedTransformer) -> None:
    words = ("generate", PROMPT, "--num-beams", "3", "--max-new-tokens", "8", "--length-penalty", "0.5")
    out = bundled.generate(PROMPT, max_new_tokens=8, num_beams=3, length_penalty=0.5)
    assert cli(*words).stdout == f"{out.text}\n"
    found = cli_json(*words)
    assert found["text"] == out.text
    assert [token["id"] for token in found["tokens"]] == out.new_ids[0].tolist()


def test_fast_numerics(cli_json: Any) -> None:
    exact, fast = (cli_json("generate", PROMPT, "--numerics", numerics) for numerics in ("exact", "fast"))
    assert fast["text"] == exact["text"]
    assert fast["prepared_bytes"] > 0


def test_stops_and_ends(cli_json: Any) -> None:
    found = cli_json("generate", PROMPT, "--stop", "girl", "--stop", "boy")
    assert found["stopped"] == "stop"
    assert found["text"].endswith(("girl", "boy"))
    assert cli_json("generate", PROMPT, "--max-new-tokens", "0")["text"] == PROMPT


def test_standard_input(cli: Any) -> None:
    result = cli("generate", "-", "--max-new-tokens", "3", stdin=f"{PROMPT}\n".encode())
    assert result.stdout.startswith(PROMPT + ",")


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted(as_json: bool, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = pl.CkptedTransformer.stream

    def interrupted(self: Any, *args: Any, **options: Any) -> Any:
        for number, token in enumerate(stream(self, *args, **options)):
            if number == 4:
                raise KeyboardInterrupt
            yield token

    monkeypatch.setattr(pl.CkptedTransformer, "stream", interrupted)
    result = cli("generate", PROMPT, *(["--json"] if as_json else []))
    assert result.exit_code == 130
    text = f"{PROMPT}, there was a"
    if as_json:
        found = json.loads(result.stdout)
        assert (found["text"], found["stopped"], len(found["tokens"])) == (text, "interrupted", 4)
    else:
        assert result.stdout == f"{text}\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("",), "empty-text"),
        ((PROMPT, "--max-new-tokens", "-1"), "max-new-tokens"),
        ((PROMPT, "--max-new-tokens", "400"), "too-long"),
        ((PROMPT, "--temperature", "-1"), "sampler-setting"),
        ((PROMPT, "--top-p", "1.5"), "sampler-setting"),
        ((PROMPT, "--stop", ""), "empty-stop"),
        ((PROMPT, "--numerics", "quick"), "unknown-numerics"),
    ],
)
def test_bad_input(words: tuple[str, ...], code: str, cli: Any) -> None:
    result = cli("generate", *words, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"]["code"] == code


def test_temperature_follows_from_the_filters(cli_json: Any) -> None:
    assert cli_json("generate", PROMPT, "--max-new-tokens", "1")["sampler"]["temperature"] == 0
    assert cli_json("generate", PROMPT, "--max-new-tokens", "1", "--top-k", "3")["sampler"]["temperature"] == 1
    found = cli_json("generate", PROMPT, "--max-new-tokens", "1", "--top-k", "3", "--temperature", "0")
    assert found["sampler"]["temperature"] == 0


def test_a_terminal_is_not_steered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    verb.write("a\x1b[31mb\nc")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[31mb\nc"


def test_no_new_tokens_are_no_interruption(cli: Any, cli_json: Any) -> None:
    assert cli_json("generate", PROMPT, "--max-new-tokens", "0")["stopped"] == "length"
    assert cli("generate", PROMPT, "--max-new-tokens", "0").exit_code == 0


FILE = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 6, "stop_strings": ["!"]}


@pytest.fixture
def folder(bundled: pl.CkptedTransformer, tmp_path: Path) -> Path:
    """The bundled model with settings of its own."""
    bundled.save_pretrained(tmp_path)
    settle(tmp_path, FILE)
    return tmp_path


def settle(folder: Path, fields: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(fields), encoding="utf-8")


def test_the_settings_of_the_file(cli_json: Any, folder: Path) -> None:
    model = pl.load(folder)
    words = ("generate", PROMPT, "-m", str(folder), "--sampler", "file", "--seed", "5")
    found = cli_json(*words)
    assert found["text"] == model.generate(PROMPT, sampler="file", seed=5).text
    assert len(found["tokens"]) == 6
    assert (found["sampler"]["temperature"], found["sampler"]["top_p"]) == (0.7, 0.9)
    longer = cli_json(*words, "--max-new-tokens", "9", "--stop", "the")
    assert longer["text"] == model.generate(PROMPT, sampler="file", seed=5, max_new_tokens=9, stop="the").text
    assert longer["text"] != found["text"]


def test_the_beams_of_the_file(cli: Any, cli_json: Any, folder: Path) -> None:
    settle(folder, {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.1, "max_new_tokens": 7})
    model = pl.load(folder)
    words = ("generate", PROMPT, "-m", str(folder), "--sampler", "file")
    best = model.generate(PROMPT, sampler="file", num_return_sequences=1).text
    assert cli_json(*words)["text"] == best
    assert cli(*words).stdout == f"{best}\n"
    plain = model.generate(PROMPT, sampler="file", num_return_sequences=1, num_beams=1).text
    assert cli_json(*words, "--num-beams", "1")["text"] == plain
    assert json.loads(cli(*words, "--explain", "--json").stdout)["error"]["code"] == "look-and-beams"
    assert cli(*words, "--explain", "--num-beams", "1").exit_code == 0


@pytest.mark.parametrize("words", [("--sampler", "fil"), ("--sampler", "file", "--top-k", "0")])
def test_another_source_of_settings_is_misuse(words: tuple[str, ...], cli: Any) -> None:
    result = cli("generate", PROMPT, *words)
    assert result.exit_code == 2
    assert "--sampler" in result.stderr


def test_a_search_is_not_explained(cli: Any) -> None:
    result = cli("generate", PROMPT, "--num-beams", "2", "--explain", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (4, "look-and-beams")


def test_beams_give_whole_characters(cli_json: Any, bundled: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch):
    assert bundled.tokenizer is not None
    ids = torch.tensor(bundled.tokenizer.encode("☃é"))
    assert len(ids) > 2
    prompt = torch.tensor(bundled.tokenizer.encode("a"))
    found = Generation((GeneratedRow(prompt, ids, torch.zeros(len(ids)), "length"),), bundled.tokenizer, True)
    monkeypatch.setattr(pl.CkptedTransformer, "generate", lambda *_, **__: found)
    written = cli_json("generate", "a", "--num-beams", "2")
    assert written["text"] == "a☃é"
    assert [token["id"] for token in written["tokens"]] == ids.tolist()
    assert "".join(token["text"] for token in written["tokens"]) == "☃é"


def test_beams_write_text_as_it_is(cli: Any):
    result = cli("generate", "a\tb", "--num-beams", "2", "--max-new-tokens", "1")
    assert result.stdout.startswith("a\tb")
