"""`save_hf` saves what comes back as the same model, and otherwise leaves everything as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl
from pellucid.ties import audit_ties, save_hf, saving
from support import few_of
from ties import cases
from weights.checkpoints import stored_bytes


@pytest.fixture(autouse=True)
def _transformers() -> None:
    pytest.importorskip("transformers")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("row", few_of([*cases.ROWS, *cases.MORE], *cases.SOME))
def test_it_saves_exactly_what_comes_back(row: str, tmp_path: Path) -> None:
    """Saved if, and only if, the reload computes the same and is tied as the model is."""
    model = cases.changed(row)
    survives, tied_after, _ = cases.reality(row)
    tied = getattr(model.lm_head, "weight", None) is not None and any(
        {"lm_head.weight", "transformer.wte.weight"} <= set(group.names) and group.kind != "equal"
        for group in audit_ties(model).groups
    )
    same = survives is True and tied == tied_after and set(model.state_dict()) == set(cases.small().state_dict())
    if not same:
        with pytest.raises(pl.WeightsError, match="nothing was saved") as caught:
            save_hf(model, tmp_path / "here")
        assert caught.value.remedy
        assert not (tmp_path / "here").exists()
        return
    saved = save_hf(model, tmp_path / "here")
    again = type(model).from_pretrained(tmp_path / "here").eval()
    assert (again.lm_head.weight is again.transformer.wte.weight) == tied == saved.tied
    ids = torch.arange(8)[None]
    assert cases.close(model(ids)[0], again(ids)[0])
    assert saved.outputs
    assert saved.tensors == len(model.state_dict())
    assert saved.nbytes == sum(len(content) for content in listing(tmp_path / "here").values())
    assert sorted(listing(tmp_path)) == sorted(f"here/{name}" for name in saved.files)


def test_what_it_writes_is_what_transformers_writes(tmp_path: Path) -> None:
    """Save for the id by which the files of one save are known, and the place in the file where the numbers begin."""
    model = cases.small()
    model.save_pretrained(tmp_path / "theirs")
    save_hf(model, tmp_path / "ours")
    theirs, ours = listing(tmp_path / "theirs"), listing(tmp_path / "ours")
    assert set(ours) == set(theirs)
    assert ours["generation_config.json"] == theirs["generation_config.json"]
    fields = json.loads(ours["config.json"])
    assert fields == {**json.loads(theirs["config.json"]), "pellucid_save": fields["pellucid_save"]}
    weights = [tmp_path / side / "model.safetensors" for side in ("theirs", "ours")]
    assert stored_bytes(weights[0]) == stored_bytes(weights[1])
    pl.load(tmp_path / "ours")


def test_a_refusal_keeps_what_was_there(tmp_path: Path) -> None:
    save_hf(cases.small(), tmp_path / "here")
    before = listing(tmp_path)
    with pytest.raises(pl.WeightsError):
        save_hf(cases.changed("Sequential(Linear)"), tmp_path / "here")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("stage", ["save_pretrained", "from_pretrained", "replace"])
def test_a_failure_at_any_stage_leaves_nothing(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cases.small()
    save_hf(model, tmp_path / "here")
    before = listing(tmp_path)
    with torch.no_grad():
        model.transformer.wpe.weight.add_(1)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if stage == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        right = getattr(type(model), stage)
        # Reading without a folder is how it is predicted.
        monkeypatch.setattr(type(model), stage, lambda *a, **o: right(*a, **o) if a == (None,) else fail())
    with pytest.raises(pl.WeightsError, match="No space left") as caught:
        save_hf(model, tmp_path / "here")
    assert caught.value.code == "path-not-writable"
    monkeypatch.undo()
    assert listing(tmp_path) == before


def test_a_reload_that_differs_is_refused_even_if_it_was_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cases.small()
    right = type(model).from_pretrained

    def wrong(*args: Any, **options: Any) -> Any:
        again = right(*args, **options)
        if args == (None,):  # which is how it is predicted
            return again
        with torch.no_grad():
            again.transformer.ln_f.bias[0] += 1e-7
        return again

    monkeypatch.setattr(type(model), "from_pretrained", wrong)
    with pytest.raises(pl.WeightsError, match=r"transformer\.ln_f\.bias not the same numbers"):
        save_hf(model, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_compared_even_where_tensors_agree(tmp_path: Path) -> None:
    """A hook that steers the model is not saved with it."""
    model = cases.small()
    model.transformer.ln_f.register_forward_hook(lambda module, args, out: out * 1.0001)
    with pytest.raises(pl.WeightsError, match="other outputs"):
        save_hf(model, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_left_as_it_is(tmp_path: Path) -> None:
    model = cases.small().train()
    model.transformer.h[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    config, bits = dict(vars(model.config)), torch.get_rng_state()
    tensors = [(name, id(p), p._version) for name, p in model.named_parameters(remove_duplicate=False)]
    save_hf(model, tmp_path)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert dict(vars(model.config)) == config
    assert torch.equal(torch.get_rng_state(), bits)
    assert [(name, id(p), p._version) for name, p in model.named_parameters(remove_duplicate=False)] == tensors


@pytest.mark.parametrize("family", ["headless", "classifier", "bert", "llama, tied"])
def test_other_classes(family: str, tmp_path: Path) -> None:
    from ties.test_table import families

    cls, config = families()[family]
    model = cls(config).eval()
    saved = save_hf(model, tmp_path)
    assert saved.outputs
    assert saved.tensors == len(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    assert save_hf(cases.small().to(dtype), tmp_path).outputs


def test_an_older_sharded_save_is_not_read_instead(tmp_path: Path) -> None:
    old, new = cases.small(), cases.small(seed=1)
    old.save_pretrained(tmp_path, max_shard_size="4KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    (tmp_path / "notes.txt").write_text("mine")
    save_hf(new, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors*")) == ["model.safetensors"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    again = type(new).from_pretrained(tmp_path)
    assert torch.equal(again.transformer.wpe.weight, new.transformer.wpe.weight)


def test_what_is_no_transformers_model(tmp_path: Path) -> None:
    for model in (nn.Linear(2, 2), pl.load(), None):
        with pytest.raises(pl.InputError) as caught:
            save_hf(model, tmp_path / "here")
        assert caught.value.code == "not-a-transformers-model"
    (tmp_path / "file").write_text("")
    with pytest.raises(pl.WeightsError):
        save_hf(cases.small(), tmp_path / "file")
    with pytest.raises(pl.WeightsError):
        save_hf(cases.small(), tmp_path / "file" / "below")


def test_it_says_what_it_did(tmp_path: Path) -> None:
    text = repr(save_hf(cases.small(), tmp_path))
    assert "model.safetensors" in text
    assert "and the outputs equal after a reload, tied" in text


def test_a_model_that_cannot_be_run_on_ids_is_compared_by_tensors(tmp_path: Path) -> None:
    import transformers as t

    config = t.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )

    class Captioner(GPT2LMHeadModel):
        """Needs pixels, and raises an AttributeError without, as Blip does."""

        def forward(self, input_ids: Any, pixels: Any = None) -> Any:
            return super().forward(input_ids + pixels.shape[0])

    class Nested(GPT2LMHeadModel):
        """Returns no tensor first."""

        def forward(self, input_ids: Any) -> Any:
            return ((super().forward(input_ids).logits,),)

    for model in (t.ViTModel(config), *(cls(GPT2Config(**cases.SIZES)) for cls in (Captioner, Nested))):
        saved = save_hf(model.eval(), tmp_path / type(model).__name__)
        assert (saved.outputs, saved.tensors) == (False, len(model.state_dict()))


def test_comparing_finds_broken_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cases.small()
    right = type(model).from_pretrained

    def untied(*args: Any, **options: Any) -> Any:
        again = right(*args, **options)
        if args != (None,):  # which is how it is predicted
            again.lm_head.weight = nn.Parameter(again.lm_head.weight.detach().clone())
        return again

    monkeypatch.setattr(type(model), "from_pretrained", untied)
    with pytest.raises(pl.WeightsError, match=r"lm_head\.weight, transformer\.wte\.weight not tied as before"):
        save_hf(model, tmp_path)


def test_a_generation_configuration_that_cannot_be_saved(tmp_path: Path):
    hf = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0))
    hf.generation_config.temperature = 0.7
    with pytest.raises(pl.WeightsError) as caught:
        pl.save_hf(hf, tmp_path / "x")
    assert caught.value.code == "save-would-lose"
    assert "generation_config" in caught.value.remedy
    assert not (tmp_path / "x").exists()


def test_a_model_on_several_devices_is_compared_with_its_reload_on_one() -> None:
    """Its tensors are, and outputs are not: without what moves numbers between its devices it does not run."""
    moved = {"device": torch.device("cuda"), "to": lambda tensor, _: tensor.as_subclass(Tensor)}
    there = torch.ones(2).as_subclass(type("Elsewhere", (Tensor,), moved))
    mine: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=4), device="cpu")
    mine.state_dict = lambda: {"a": torch.ones(2)}
    again: Any = SimpleNamespace(state_dict=lambda: {"a": there})
    assert saving._different_tensors(mine, again) == ""
    mine.state_dict = lambda: {"a": torch.ones(2), "b": there}
    assert saving._same_outputs(mine, again) is None
