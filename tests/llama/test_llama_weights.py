"""Llamas opened, copied and saved: equal to transformers' reading of the same files, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import llamas
import pellucid as pl
import support

IDS = llamas.some_ids(2, 9)
CASES: dict[str, dict[str, Any]] = {
    "untied": {}, "tied": {"tie_word_embeddings": True}, "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": llamas.LLAMA3},
}  # fmt: skip


@torch.no_grad()
def same_logits(ours: Any, hf: Any) -> bool:
    return torch.equal(ours(IDS), hf(IDS).logits)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_transformers(case: str, tmp_path: Path) -> None:
    hf = llamas.reference(**CASES[case])
    hf.save_pretrained(tmp_path)
    for model in (pl.load(tmp_path), pl.CkptedTransformer.from_pretrained(tmp_path)):
        assert same_logits(model, hf)
        assert model.provenance["layout"] == "hf"
        assert model.unembed.tied == hf.config.tie_word_embeddings
        assert not model.training


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_we_save(case: str, tmp_path: Path) -> None:
    ours, hf = llamas.pair(**CASES[case])
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is LlamaForCausalLM
    assert same_logits(ours, again)
    assert same_logits(pl.load(tmp_path), again)
    hf.save_pretrained(tmp_path / "theirs")
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "theirs"))
    assert {n: t.tolist() for n, t in mine.items()} == {n: t.tolist() for n, t in theirs.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    """A model opened in a dtype has its frequencies whole; one that is converted has them rounded, as theirs has."""
    llamas.reference().save_pretrained(tmp_path)
    as_torch = getattr(torch, dtype)
    opened, theirs = pl.load(tmp_path, dtype=dtype), LlamaForCausalLM.from_pretrained(tmp_path, dtype=as_torch)
    assert same_logits(opened, theirs)
    assert same_logits(pl.from_hf(theirs), theirs)
    assert same_logits(opened, pl.to_hf(opened))
    converted = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).to(as_torch)
    assert same_logits(pl.load(tmp_path).to(as_torch), converted)
    copied = pl.from_hf(converted)
    assert same_logits(copied, converted)
    assert same_logits(copied, pl.to_hf(copied))
    rounded = dtype != "float64"
    assert torch.equal(copied.rotary.inv_freq.float(), opened.rotary.inv_freq) is not rounded


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


def test_fresh_weights_lie_as_imported_ones_do() -> None:
    fresh, imported = pl.CkptedTransformer(llamas.glass().config), llamas.glass()
    strides = [{n: t.stride() for n, t in model.state_dict().items()} for model in (fresh, imported)]
    assert strides[0] == strides[1]
    assert same_logits(fresh.eval(), pl.to_hf(fresh).eval())


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


def test_weights_of_another_family_are_refused() -> None:
    llama, gpt2 = llamas.pair()[1], support.reference()
    for tensors, config in ((llama, support.glass().config), (gpt2, llamas.glass().config)):
        with pytest.raises(pl.WeightsError, match="another architecture") as caught:
            pl.load(tensors.state_dict(), config=config)
        assert caught.value.code == "weights-foreign"


def test_an_unknown_type_names_the_families(tmp_path: Path) -> None:
    llamas.reference().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(pl.ConfigError, match="'gpt2' or 'llama'") as caught:
        pl.load(tmp_path)
    assert caught.value.code == "config-model-type"
    assert same_logits(pl.load(tmp_path, config={"model_type": "llama"}), LlamaForCausalLM.from_pretrained(tmp_path))
