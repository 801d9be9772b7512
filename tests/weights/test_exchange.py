"""transformers' live models, and what `save_pretrained` leaves on the disk when it is interrupted."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import pellucid as pl
from support import few_of
from weights.checkpoints import ODD, hf_dict, ids_for, same_logits, small_hf, stored_bytes


def bits(hf: Any) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        for name, tensor in hf.state_dict().items()
    }


@pytest.mark.parametrize(
    ("variant", "dtype"),
    few_of(
        itertools.product(ODD, (torch.float32, torch.bfloat16)),
        *((variant, torch.float32) for variant in ODD if variant != "twelve-blocks"),
        ("untied", torch.bfloat16),
    ),
)
def test_there_and_back_through_live_models(variant: str, dtype: torch.dtype) -> None:
    hf = small_hf(**ODD[variant]).to(dtype)
    before = bits(hf)
    model = pl.from_hf(hf)
    again = pl.to_hf(model)
    assert bits(again) == before == bits(hf)
    assert (again.lm_head.weight is again.transformer.wte.weight) == hf.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.equal(again(ids_for(hf)).logits, hf(ids_for(hf)).logits)
    for name in ("activation_function", "layer_norm_epsilon", "scale_attn_weights", "n_inner", "eos_token_id"):
        assert getattr(again.config, name) == getattr(hf.config, name)


def test_no_memory_is_shared_in_either_direction() -> None:
    hf = small_hf(tie_word_embeddings=False)
    before = bits(hf)
    model = pl.from_hf(hf)
    again = pl.to_hf(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert bits(hf) == before == bits(again)


def test_a_base_model_has_the_embedding_for_a_head() -> None:
    hf = small_hf()
    assert same_logits(pl.from_hf(hf.transformer), hf)
    assert pl.from_hf(hf.transformer).config.tie_word_embeddings


@pytest.mark.parametrize("training", [True, False])
def test_training_is_carried(training: bool) -> None:
    hf = small_hf().train(training)
    model = pl.from_hf(hf)
    assert model.training is training
    assert model.blocks[0].attn.training is training
    assert pl.to_hf(model).training is training
    assert hf.training is training


def test_the_tie_is_the_one_in_memory() -> None:
    replaced = small_hf()
    replaced.lm_head = nn.Linear(12, 61, bias=False)
    model = pl.from_hf(replaced)
    assert not model.config.tie_word_embeddings
    assert same_logits(model, replaced)
    assert same_logits(model, pl.to_hf(model))

    retied = small_hf(tie_word_embeddings=False)
    retied.lm_head.weight = retied.transformer.wte.weight
    model = pl.from_hf(retied)
    assert model.config.tie_word_embeddings
    assert "unembed.W_U" not in model.state_dict()
    assert same_logits(model, retied)

    one_storage = small_hf()
    one_storage.lm_head.weight = nn.Parameter(one_storage.transformer.wte.weight.detach())
    assert pl.from_hf(one_storage).config.tie_word_embeddings


@pytest.mark.parametrize(
    "head",
    [nn.Linear(12, 61), nn.Sequential(nn.Linear(12, 61, bias=False)), nn.Identity(), nn.Conv1d(12, 61, 1, bias=False)],
)
def test_a_head_that_is_no_plain_matrix_is_refused(head: nn.Module) -> None:
    hf = small_hf()
    hf.lm_head = head
    with pytest.raises(pl.WeightsError, match="plain Linear") as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-head"
    assert "\n" not in caught.value.message
    assert hf.lm_head is head


def test_a_head_of_another_vocabulary_is_refused() -> None:
    hf = small_hf()
    hf.lm_head = nn.Linear(12, 60, bias=False)
    with pytest.raises(pl.WeightsError, match=r"lm_head\.weight: given \[60, 12\], expected \[61, 12\]"):
        pl.from_hf(hf)


def _on_meta() -> Any:
    with torch.device("meta"):
        return GPT2LMHeadModel(small_hf().config)


def _with_adapter() -> Any:
    hf = small_hf()
    hf.transformer.h[0].mlp.c_fc = nn.Sequential(hf.transformer.h[0].mlp.c_fc)
    return hf


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (lambda: nn.Linear(3, 3), "hf-wrong-class"),
        (lambda: GPT2ForSequenceClassification(small_hf().config), "hf-wrong-class"),
        (lambda: nn.DataParallel(small_hf()), "hf-wrong-class"),
        (_on_meta, "meta-device"),
        (_with_adapter, "hf-part"),
    ],
)
def test_other_models_are_refused(given: Any, code: str) -> None:
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(given())
    assert caught.value.code == code
    assert caught.value.remedy


class Holder:
    """An object that is no module and keeps one, as pipelines do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def test_of_adapters_around_a_model_the_way_to_merge_them_is_said() -> None:
    class Adapters(Holder):
        def merge_and_unload(self) -> nn.Module:
            return self.model

    hf_model = Adapters(small_hf())
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(hf_model)  # pyright: ignore[reportArgumentType]
    merged = eval(caught.value.remedy.partition(": ")[2].removesuffix("."), {"pl": pl, "hf_model": hf_model})
    assert same_logits(merged, hf_model.model)


@pytest.mark.parametrize("around", [nn.DataParallel, nn.Sequential, Holder, GPT2ForSequenceClassification])
def test_the_model_inside_another_object_is_named(around: Any) -> None:
    hf = small_hf()
    given = around(hf.config if around is GPT2ForSequenceClassification else hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.from_hf(given)
    instruction = caught.value.remedy.partition(": ")[2].partition(". What")[0]
    model = eval(instruction, {"pl": pl, "hf_model": given})
    inner = given.transformer if around is GPT2ForSequenceClassification else hf
    assert same_logits(model, inner) if inner is hf else model.config.n_embd == inner.config.n_embd


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("gpt2", "pl.load opens names"), ({"a": torch.ones(1)}, "state dicts"), (Path("x"), "folders"),
        (pl.load, "these of transformers only"), (small_hf, "pl.compare"), (None, "pl.compare"),
        (type(small_hf()), "GPT2LMHeadModel.from_pretrained(name)"),
        (pl.load().config, "these of transformers only"),
        (pl.CkptedTransformer(pl.TransformerConfig(vocab_size=3, n_positions=2, n_embd=2, n_layer=0, n_head=1)),
         "copy.deepcopy(model)"),
    ],
)  # fmt: skip
def test_what_is_no_model_of_transformers_is_sent_where_it_belongs(given: Any, remedy: str) -> None:
    with pytest.raises(pl.WeightsError, match="from_hf: given") as caught:
        pl.from_hf(given)
    assert remedy in caught.value.remedy


def test_cross_attention_is_refused() -> None:
    hf = GPT2LMHeadModel(GPT2Config(**{**small_hf().config.to_dict(), "add_cross_attention": True}))
    with pytest.raises(pl.ConfigError, match="add_cross_attention"):
        pl.from_hf(hf)


def test_attributes_that_gpt2_does_not_read_do_not_matter() -> None:
    hf = small_hf()
    hf.config.my_note = "trained on a Tuesday"
    assert same_logits(pl.from_hf(hf), hf)


def test_live_numbers_that_are_not_finite_are_told() -> None:
    hf = small_hf()
    with torch.no_grad():
        hf.transformer.wpe.weight[2, 2] = float("nan")
    with pytest.warns(pl.PellucidWarning, match=r"pos_embed\.W_pos"):
        model = pl.from_hf(hf)
    assert model.provenance["non_finite"] == "pos_embed.W_pos"


def test_a_model_on_its_way_draws_no_random_numbers_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    hf = small_hf()
    capfd.readouterr()
    before = torch.get_rng_state()
    pl.to_hf(pl.from_hf(hf))
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("variant", ["small", "untied"])
def test_what_is_saved_is_what_transformers_saves(variant: str, tmp_path: Path) -> None:
    hf = small_hf(**ODD[variant])
    hf.save_pretrained(tmp_path / "theirs")
    pl.from_hf(hf).save_pretrained(tmp_path / "ours")
    theirs, ours = (stored_bytes(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert theirs == ours
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["architectures"] == ["GPT2LMHeadModel"]
    assert (saved["dtype"], saved["model_type"]) == ("float32", "gpt2")
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "ours").iterdir():
        assert path.stat().st_mode == plain.stat().st_mode


def test_a_fused_parameter_made_strided_is_saved_right(tmp_path: Path) -> None:
    hf = small_hf()
    model = pl.from_hf(hf)
    stored = model.blocks[0].mlp.W_in
    stored.data = stored.data.t().contiguous().t()
    model.save_pretrained(tmp_path)
    assert same_logits(pl.load(tmp_path), hf)
    assert bits(GPT2LMHeadModel.from_pretrained(tmp_path)) == bits(hf)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pl.from_hf(small_hf()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def changed() -> pl.CkptedTransformer:
    model = pl.from_hf(small_hf())
    with torch.no_grad():
        model.embed.W_E.add_(1)
    return model


@pytest.mark.parametrize("step", ["replace", "fsync", "write_bytes", "write_tensors"])
def test_a_failure_before_the_renaming_leaves_the_old_files(
    step: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, model = contents(saved), changed()

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    targets = {"replace": (os, "replace"), "fsync": (os, "fsync"), "write_bytes": (Path, "write_bytes")}
    if step == "write_tensors":
        monkeypatch.setattr("pellucid.weights.exchange.write_tensors", full)
    else:
        monkeypatch.setattr(*targets[step], full)
    with pytest.raises(pl.WeightsError, match="No space left") as caught:
        model.save_pretrained(saved)
    assert caught.value.code == "path-not-writable"
    assert contents(saved) == before
    with pytest.raises(pl.WeightsError):
        model.save_pretrained(saved.parent / "new" / "deeper")
    assert not (saved.parent / "new").exists(), "no folder is left that was not there"


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(pl.WeightsError) as caught:
        changed().save_pretrained(tmp_path / "model")
    assert caught.value.code == "path-not-writable"
    assert (tmp_path / "model").read_text() == "mine"


def test_there_is_no_tokenizer_file_without_a_tokenizer(saved: Path) -> None:
    assert set(contents(saved)) == {"config.json", "model.safetensors"}
    assert "lm_head.weight" not in hf_dict(GPT2LMHeadModel.from_pretrained(saved))


def test_a_compiled_model_is_converted_as_it_was() -> None:
    model = pl.from_hf(small_hf())
    compiled = torch.compile(model, backend="eager")
    assert same_logits(model, pl.to_hf(compiled))  # pyright: ignore[reportArgumentType]
