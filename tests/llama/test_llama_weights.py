"""Llamas opened, copied and saved: equal to transformers' reading of the same files, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

import llamas
import pellucid as pl

IDS = llamas.some_ids(2, 9)
CASES: dict[str, dict[str, Any]] = {
    "untied": {}, "tied": {"tie_word_embeddings": True}, "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": llamas.LLAMA3},
}  # fmt: skip


@torch.no_grad()
def same_logits(ours: Any, hf: Any) -> bool:
    return torch.equal(ours(IDS), hf(IDS).logits)


@pytest.mark.parametrize("headless", [False, True])
def test_live_models(headless: bool) -> None:
    ours, hf = llamas.pair(headless=headless)
    back = pl.to_hf(ours)
    assert type(back) is LlamaForCausalLM
    assert same_logits(ours, back)
    assert back.config.tie_word_embeddings is headless
    assert (back.lm_head.weight is back.model.embed_tokens.weight) is headless
    with torch.no_grad():
        hf.get_input_embeddings().weight.zero_()
        assert same_logits(ours, back), "the copy shares memory with the model given"


def test_state_dicts(tmp_path: Path) -> None:
    """Ours and theirs, bare and under a trainer's prefix, and as a file without strides."""
    ours, hf = llamas.pair(attention_bias=True)
    wrapped = {f"lm.module.{name}": tensor for name, tensor in hf.state_dict().items()}
    bare = {name.removeprefix("model."): tensor for name, tensor in hf.state_dict().items()}
    plain = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in ours.state_dict().items()}, plain)
    torch.save(ours.state_dict(), tmp_path / "own.pt")
    for given, layout in (
        (hf.state_dict(), "hf"), (wrapped, "hf"), (bare, "hf"), (ours.state_dict(), "pellucid"),
        (plain, "pellucid"), (tmp_path / "own.pt", "pellucid"),
    ):  # fmt: skip
        model = pl.load(given, config=ours.config)
        assert model.provenance["layout"] == layout
        assert same_logits(model, hf)


def test_parameters_are_those_of_the_contract() -> None:
    ours, hf = llamas.pair(attention_bias=True, mlp_bias=True)
    shapes = {name: list(ours.parameter(name).shape) for name in ours.parameter_names}
    assert shapes["blocks.1.attn.W_Q"] == [6, 24, 10]
    assert shapes["blocks.1.attn.W_K"] == shapes["blocks.1.attn.W_V"] == [2, 24, 10]
    assert shapes["blocks.1.attn.W_O"] == [6, 10, 24]
    assert shapes["blocks.1.attn.b_K"] == [2, 10]
    assert shapes["blocks.1.mlp.W_gate"] == shapes["blocks.1.mlp.W_in"] == [24, 41]
    assert shapes["blocks.1.mlp.W_out"] == [41, 24]
    assert shapes["unembed.W_U"] == [24, 61]
    assert set(ours.state_dict()) == set(ours.parameter_names)
    layer = hf.model.layers[1]
    x = torch.randn(5, 24)
    assert torch.allclose(
        x @ ours.blocks[1].attn.W_K[1], layer.self_attn.k_proj(x)[:, 10:] - ours.blocks[1].attn.b_K[1]
    )
    assert torch.equal(ours.blocks[1].mlp.W_in, layer.mlp.up_proj.weight.t())
    assert pl.count_parameters(ours).unique == sum(p.numel() for p in hf.parameters())


def test_frequencies_of_old_files_are_dropped() -> None:
    ours, hf = llamas.pair()
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(5) for i in range(3)}
    assert same_logits(pl.load({**hf.state_dict(), **old}, config=ours.config), hf)


WRONG: dict[str, tuple[Any, str, str]] = {
    "a weight is missing": (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "weights-missing", "up_proj"),
    "a weight too many": (
        lambda t: t.update({"model.layers.1.self_attn.q_norm.weight": torch.ones(10)}), "weights-unexplained", "q_norm",
    ),
    "another shape": (
        lambda t: t.update({"model.norm.weight": torch.ones(25)}), "weights-misshapen", r"\[25\], expected \[24\]",
    ),
    "a bias of one projection": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(60)}),
        "weights-unexplained", "q_proj.bias",
    ),
    "adapters": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 24)}),
        "weights-foreign", "adapters",
    ),
    "no head": (lambda t: t.pop("lm_head.weight"), "head-missing", "tie_word_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused(case: str) -> None:
    ours, hf = llamas.pair()
    change, code, said = WRONG[case]
    tensors = dict(hf.state_dict())
    change(tensors)
    with pytest.raises(pl.WeightsError, match=said) as caught:
        pl.load(tensors, config=ours.config)
    assert caught.value.code == code


def test_the_sizes_that_the_weights_show_are_the_remedy() -> None:
    ours, hf = llamas.pair(attention_bias=True)
    wrong = ours.config.replace(intermediate_size=40, attention_bias=False)
    with pytest.raises(pl.WeightsError, match="intermediate_size") as caught:
        pl.load(hf.state_dict(), config=wrong)
    said = caught.value.remedy.split("config=", 1)[1].split("}", 1)[0] + "}"
    fields = {**wrong.to_dict(), **eval(said)}
    assert same_logits(pl.load(hf.state_dict(), config=fields), hf)


def test_an_unknown_type_names_the_families(tmp_path: Path) -> None:
    llamas.reference().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(pl.ConfigError, match="'gpt2' or 'llama'") as caught:
        pl.load(tmp_path)
    assert caught.value.code == "config-model-type"
    assert "config={'model_type': 'llama'}" in caught.value.remedy
    reference = LlamaForCausalLM.from_pretrained(tmp_path)
    assert same_logits(pl.load(tmp_path, config={"model_type": "llama"}), reference)


def test_a_given_configuration_of_another_type_is_changed(tmp_path: Path) -> None:
    """What is given by config= is not lost when the remedy is followed."""
    hf = llamas.reference()
    hf.save_pretrained(tmp_path)
    weights, path = (tmp_path / "model.safetensors").rename(tmp_path / "w.safetensors"), tmp_path / "mistral.json"
    config = json.loads((tmp_path / "config.json").rename(path).read_text())
    copied = {**config, "model_type": "llama"}
    config["model_type"] = "mistral"
    path.write_text(json.dumps(config))
    (tmp_path / "copy.json").write_text(json.dumps(copied))
    theirs = SimpleNamespace(to_dict=lambda: config)
    for given, said, followed in (
        (path, "give by config= a copy of this configuration with 'model_type': 'llama'", tmp_path / "copy.json"),
        (config, "pass config={**config, 'model_type': 'llama'}", {**config, "model_type": "llama"}),
        (
            theirs,
            "pass config={**config.to_dict(), 'model_type': 'llama'}",
            {**theirs.to_dict(), "model_type": "llama"},
        ),
    ):
        with pytest.raises(pl.ConfigError) as caught:
            pl.load(weights, config=given)
        assert caught.value.code == "config-model-type"
        assert said in caught.value.remedy
        assert same_logits(pl.load(weights, config=followed), hf)
