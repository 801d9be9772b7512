"""Every figure of the bundled model's card is computed again from what ships."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

import card
import evaluate
import indirect_object
from corpus import END_OF_TEXT, read_documents
from synthetic import SyntheticRows

TEXTS = ("ts_valid", "mix_valid")


@pytest.mark.long
def test_figures_are_as_stated(stated: dict[str, Any], found: dict[str, Any]) -> None:
    short = {name: figure for name, figure in stated["figures"].items() if name not in TEXTS}
    assert card.disagreements(short, found) == []


@pytest.mark.long
@pytest.mark.parametrize("text", TEXTS)
def test_the_loss_of_a_text_is_as_stated(text: str, stated: dict[str, Any], folder: Path, texts: Path) -> None:
    loss = evaluate.text_loss(*evaluate.load(folder), read_documents(texts / f"{text}.txt.xz"))
    assert card.disagreements(stated["figures"][text], loss) == []


@pytest.mark.parametrize("threshold", evaluate.THRESHOLDS, ids=lambda threshold: ".".join(threshold.keys))
def test_figures_reach_the_thresholds(threshold: evaluate.Threshold, stated: dict[str, Any]) -> None:
    assert threshold.met(stated["figures"]), threshold.value(stated["figures"])


def test_readme_is_rendered_from_the_card(stated: dict[str, Any], folder: Path) -> None:
    assert (folder / "README.md").read_text(encoding="utf-8") == card.render(stated)


def test_hashes(stated: dict[str, Any], folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{digest}  {name}" for name, digest in stated["sha256"].items()]
    for name, digest in stated["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_weights_are_float16_and_the_embedding_is_stored_once(stated: dict[str, Any], folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors.values()) == stated["figures"]["parameters"]
    assert "lm_head.weight" not in tensors


def test_transformers_loads_it_tied(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_tokenizer_round_trips_every_byte(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Every byte that can occur in UTF-8 is among those of these characters.
    characters = [chr(c) for c in (*range(0x800), *range(0x800, 0x110000, 59)) if not 0xD800 <= c < 0xE000]
    assert {byte for c in characters for byte in c.encode()} == {*range(0x80), *range(0x80, 0xC0), *range(0xC2, 0xF5)}
    for text in ("".join(characters), " ".join(characters)):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_has_all_bytes_and_end_of_text_last(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 4096
    assert tokenizer.token_to_id(END_OF_TEXT) == 4095
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())


def test_held_out_sentences_share_nothing_with_training(folder: Path) -> None:
    for part in ("names", "openings", "actions", "places", "objects"):
        held_out = set(getattr(indirect_object.HELD_OUT, part))
        assert not held_out & set(getattr(indirect_object.ANY_WORDS, part))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = SyntheticRows(tokenizer, np.zeros(1000, dtype=np.uint16), 256)
    rng = np.random.default_rng(0)
    drawn = [rows.sentences(rng, indirect_object.ANY_WORDS).tolist() for _ in range(200)]
    words = {word for ids in drawn for word in re.findall("[A-Za-z]+", tokenizer.decode(ids))}
    assert not words & {*indirect_object.HELD_OUT.names, "bridge", "candle"}
    assert len(set(indirect_object.HELD_OUT.names)) >= 10
    assert all(len(tokenizer.encode(f" {n}").ids) == 1 for n in indirect_object.HELD_OUT.names)
    sentences = indirect_object.held_out_sentences()
    assert len(sentences) >= 500
    first = [s.prompt.index(s.indirect_object) < s.prompt.index(s.subject) for s in sentences]
    assert sum(first) == len(sentences) / 2
