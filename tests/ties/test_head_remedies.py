"""Remedies for heads that do not come back, followed as they are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

import pellucid as pl
import support
from pellucid.errors import WeightsError
from pellucid.ties import audit_ties
from ties import cases

VOCAB, WIDTH = cases.VOCAB, cases.WIDTH


class WithBias(transformers.GPT2LMHeadModel):
    """What the remedy says: a subclass whose __init__ makes the head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lm_head = torch.nn.Linear(config.n_embd, config.vocab_size)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def code_in(remedy: str) -> str:
    return remedy.split("`")[1]


def configure(folder: Path, **fields: Any) -> None:
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, **fields}))


def codes(x: Any) -> set[str]:
    return {problem.code for problem in audit_ties(x).problems}


def test_an_embedding_and_a_head_of_different_rows(tmp_path: Path) -> None:
    path = saved(cases.small(tie_word_embeddings=False), tmp_path)
    tensors = safetensors.torch.load_file(path)
    tensors["transformer.wte.weight"] = nn.functional.pad(tensors["transformer.wte.weight"], (0, 0, 0, 4), value=1.0)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    (problem,) = audit_ties(tmp_path).problems
    assert f"set vocab_size to {VOCAB + 4}" in problem.remedy
    exec(code_in(problem.remedy), {"safetensors": safetensors, "torch": torch, "path": path})
    configure(tmp_path, vocab_size=VOCAB + 4, tie_word_embeddings=False)
    assert not codes(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight[:VOCAB], tensors["lm_head.weight"])


@pytest.mark.remedy("reload-raises")
def test_a_live_embedding_and_head_of_different_rows() -> None:
    model = cases.small(tie_word_embeddings=False)
    model.transformer.wte = nn.Embedding(VOCAB + 4, WIDTH)
    problem = next(p for p in audit_ties(model).problems if p.code == "reload-raises")
    exec(problem.remedy.split("rows. ")[1].partition(" gives")[0], {"model": model})
    assert audit_ties(model).after_reload.survives


def test_one_size_that_the_configuration_does_not_have(tmp_path: Path) -> None:
    saved(cases.small(), tmp_path)
    configure(tmp_path, vocab_size=VOCAB - 1)
    (problem,) = audit_ties(tmp_path).problems
    assert f"vocab_size is {VOCAB} then" in problem.remedy
    configure(tmp_path, vocab_size=VOCAB)
    assert not codes(tmp_path)


@pytest.mark.remedy("reload-dropped")
def test_a_bias_in_a_file(tmp_path: Path) -> None:
    model = cases.small(tie_word_embeddings=False)
    model.lm_head = cases.linear(bias=True)
    path = saved(model, tmp_path)
    problem = next(p for p in audit_ties(tmp_path).problems if p.code == "reload-dropped")
    assert (
        "sets self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size), which has a bias" in problem.remedy
    )
    again = WithBias.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.bias, model.lm_head.bias)
    assert audit_ties(again).after_reload.survives
    assert "delete lm_head.bias from the file" in problem.remedy
    tensors = safetensors.torch.load_file(path)
    del tensors["lm_head.bias"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert not codes(tmp_path)


@pytest.mark.remedy("reload-dropped")
def test_a_live_bias() -> None:
    model = cases.small(tie_word_embeddings=False)
    model.lm_head = cases.linear(bias=True)
    problem = next(p for p in audit_ties(model).problems if p.code == "reload-dropped")
    exec(problem.remedy.partition("set ")[2].rstrip("."), {"model": model})
    assert audit_ties(model).after_reload.survives


@pytest.mark.remedy("reload-dropped", "reload-replaced")
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_in_a_sequential(tied: bool, tmp_path: Path) -> None:
    model = cases.small(tie_word_embeddings=tied)
    model.lm_head = nn.Sequential(cases.linear())
    head = model.lm_head[0].weight.detach().clone()
    path = saved(model, tmp_path)
    problem = next(p for p in audit_ties(tmp_path).problems if p.code == "reload-dropped")
    exec(code_in(problem.remedy), {"safetensors": safetensors, "path": path})
    configure(tmp_path, tie_word_embeddings=False)
    assert not codes(tmp_path)
    assert torch.equal(transformers.GPT2LMHeadModel.from_pretrained(tmp_path).lm_head.weight, head)

    problem = next(p for p in audit_ties(model).problems if p.code == "reload-replaced")
    eval(problem.remedy.partition(" keeps")[0], {"model": model, "pl": pl})
    assert audit_ties(model).after_reload.survives
    assert torch.equal(model.lm_head.weight, head)


@pytest.mark.parametrize("shared", ["transformer.ln_f", "transformer.h.1"])
def test_what_stands_in_two_places_is_no_matter_of_the_head(shared: str, tmp_path: Path) -> None:
    model = support.reference()
    blocks = model.transformer.h
    model.set_submodule(shared, blocks[0].ln_1 if shared.endswith("ln_f") else blocks[0])
    with pytest.raises(WeightsError) as refused:
        pl.save_hf(model, tmp_path / "saved")
    remedy = str(refused.value.remedy).partition(": ")[2]
    exec(remedy, {"model": model, "pl": pl, "folder": tmp_path / "saved"})
    again, ids = type(model).from_pretrained(tmp_path / "saved"), torch.tensor([[1, 2, 3]])
    given, expected = (one.eval()(ids, use_cache=False).logits for one in (again, model))  # one block has one cache
    assert torch.equal(given, expected)


@pytest.mark.parametrize("change", [pl.tie, pl.untie])
def test_a_head_in_a_buffer_is_a_head(change: Any, tmp_path: Path) -> None:
    model = support.reference()
    matrix = model.lm_head.weight.detach().clone()
    del model.lm_head.weight
    model.lm_head.register_buffer("weight", matrix)
    change(model)
    assert pl.save_hf(model, tmp_path / "saved").outputs


def test_a_head_that_is_computed_is_refused_by_name() -> None:
    model = support.reference()
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)
    with pytest.raises(WeightsError, match="weight is computed, expected one that is stored") as refused:
        pl.tie(model)
    assert "pl.replace_head(" in str(refused.value.remedy)


def test_a_head_of_another_class_is_not_handed_to_replace_head() -> None:
    model = support.reference()
    matrix = model.lm_head.weight
    model.lm_head = torch.nn.Module()
    model.lm_head.weight = matrix
    model.lm_head.forward = lambda x: x @ matrix.T
    problem = next(problem for problem in pl.audit_ties(model).problems if problem.code == "reload-replaced")
    assert "get_submodule" not in problem.remedy


def test_hooks_are_in_no_file(tmp_path: Path) -> None:
    model = support.reference()
    hook = model.lm_head.register_forward_hook(lambda *args: args[-1] * 2)
    assert "hooks on lm_head are in no file" in pl.audit_ties(model).after_reload.reason
    with pytest.raises(WeightsError, match="other outputs") as refused:
        pl.save_hf(model, tmp_path / "saved")
    assert "handle.remove()" in str(refused.value.remedy)
    hook.remove()
    model(torch.tensor([[1, 2]]), output_hidden_states=True)  # transformers' own hooks look on, and stay
    assert model.transformer.h[0]._forward_hooks
    assert "hooks" not in pl.audit_ties(model).after_reload.reason
    assert pl.save_hf(model, tmp_path / "saved").outputs
