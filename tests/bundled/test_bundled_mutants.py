"""The checks of test_card.py can fail: each mutant of the model or the card is found out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import card
import evaluate
import support
from corpus import encode_documents, read_documents
from indirect_object import Sentence, held_out_sentences


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    """A fresh copy that a test may spoil."""
    return evaluate.load(folder)[0]


def silence_values(model: PreTrainedModel, layer: int, head: int) -> None:
    """Zero W_V and b_V of one head, so that what it attends to no longer matters."""
    width = model.config.n_embd
    size = width // model.config.n_head
    columns = slice(2 * width + head * size, 2 * width + (head + 1) * size)
    attention = model.transformer.h[layer].attn.c_attn
    with torch.no_grad():
        attention.weight[:, columns] = 0
        attention.bias[columns] = 0


@pytest.mark.long
def test_without_its_induction_heads_the_model_no_longer_copies(model: PreTrainedModel, stated: dict[str, Any]) -> None:
    for layer, head in stated["figures"]["induction"]["heads"]:
        silence_values(model, layer, head)
    assert evaluate.induction(model)["gain"] < 1


@pytest.mark.long
def test_without_a_head_that_is_no_induction_head_it_still_copies(
    model: PreTrainedModel, stated: dict[str, Any]
) -> None:
    figure = stated["figures"]["induction"]
    layer = figure["layer"]
    other = next(h for h in range(model.config.n_head) if [layer, h] not in figure["heads"])
    silence_values(model, layer, other)
    assert evaluate.induction(model)["gain"] > 3


@pytest.mark.long
def test_without_position_embeddings_there_is_no_previous_token_head(
    model: PreTrainedModel, folder: Path, texts: Path
) -> None:
    _, tokenizer = evaluate.load(folder)
    stream = encode_documents(tokenizer, read_documents(texts / "ts_valid.txt.xz"))
    with torch.no_grad():
        model.transformer.wpe.weight.zero_()
    assert evaluate.previous_token(model, stream)["score"] < 0.5


@pytest.mark.long
def test_swapped_names_are_answered_wrong(model: PreTrainedModel, folder: Path, stated: dict[str, Any]) -> None:
    _, tokenizer = evaluate.load(folder)
    swapped = [Sentence(s.prompt, s.subject, s.indirect_object) for s in held_out_sentences()]
    figure = evaluate.indirect_object(model, tokenizer, swapped)
    assert figure["right"] == figure["sentences"] - stated["figures"]["indirect_object"]["right"]


@pytest.mark.parametrize("mutant", support.few_of(["gelu", "epsilon"], "epsilon"))
def test_a_slightly_wrong_forward_pass_moves_the_loss_beyond_the_tolerance(
    model: PreTrainedModel, folder: Path, texts: Path, mutant: str
) -> None:
    right, tokenizer = evaluate.load(folder)
    documents = read_documents(texts / "ts_valid.txt.xz")[:8]
    for block in model.transformer.h:
        if mutant == "gelu":
            block.mlp.act = nn.ReLU()
        else:
            block.ln_1.eps = block.ln_2.eps = 1e-2
    losses = [evaluate.text_loss(each, tokenizer, documents) for each in (right, right, model)]
    assert card.disagreements(losses[0], losses[1]) == []
    assert card.disagreements(losses[0], losses[2]) != []


@pytest.mark.parametrize(
    ("keys", "change"),
    [
        (("ts_valid", "nats_per_token"), 2e-3),
        (("mix_valid", "bits_per_byte"), -2e-3),
        (("mix_valid", "tokens"), 1),
        (("induction", "layer"), 1),
        (("indirect_object", "right"), -1),
        (("parameters",), 1),
    ],
)
def test_a_wrong_number_in_the_card_is_found(stated: dict[str, Any], keys: tuple[str, ...], change: float) -> None:
    wrong = copy.deepcopy(stated["figures"])
    inner = wrong
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] += change
    (line,) = card.disagreements(wrong, stated["figures"])
    assert line.startswith("figures." + ".".join(keys))


def test_a_changed_sample_or_a_missing_figure_is_found(stated: dict[str, Any]) -> None:
    wrong = copy.deepcopy(stated["figures"])
    wrong["samples"][1]["text"] += " "
    assert len(card.disagreements(wrong, stated["figures"])) == 1
    del wrong["induction"]
    assert card.disagreements(wrong, stated["figures"]) != []


@pytest.mark.parametrize("threshold", evaluate.THRESHOLDS, ids=lambda t: ".".join(t.keys))
def test_thresholds_can_be_missed(threshold: evaluate.Threshold, stated: dict[str, Any]) -> None:
    wrong = copy.deepcopy(stated["figures"])
    inner = wrong
    for key in threshold.keys[:-1]:
        inner = inner[key]
    inner[threshold.keys[-1]] = threshold.bound
    assert not threshold.met(wrong)
