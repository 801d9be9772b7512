"""Every field of a published configuration works, is kept, or is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.gpt2.config import NEUTRAL, SYNONYMS
from pellucid.numerics.nonlinear import EXACT as ACTIVATIONS

SIZES = {"vocab_size": 11, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}

WORKING: dict[str, Any] = {
    "n_inner": 5, "activation_function": "gelu", "layer_norm_epsilon": 0.5, "scale_attn_weights": False,
    "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False, "initializer_range": 0.5,
    "reorder_and_upcast_attn": True, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "resid_pdrop": 0.5,
    "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4, **{name: 2 * value for name, value in SIZES.items()},
}  # fmt: skip
"""Every declared field, with a value that is not the default."""


def test_table_names_every_declared_field() -> None:
    assert set(WORKING) == {f.name for f in dataclasses.fields(pl.TransformerConfig)} - {"neutral"}


@pytest.mark.parametrize("name", WORKING)
def test_declared_fields_are_read_and_written(name: str) -> None:
    given = {**SIZES, name: WORKING[name]}
    config = pl.TransformerConfig.from_dict(given)
    value = getattr(config, name)
    assert (list(value) if isinstance(value, tuple) else value) == WORKING[name]
    assert value != getattr(pl.TransformerConfig.from_dict(SIZES), name)
    assert config.to_dict()[name] == WORKING[name]
    assert pl.TransformerConfig.from_dict(json.loads(config.to_json())) == config


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_neutral_fields_are_kept(name: str) -> None:
    given = {**SIZES, name: ["anything", {"at": 1}]}
    config = pl.TransformerConfig.from_dict(given)
    assert config.to_dict()[name] == given[name]
    assert json.loads(config.to_json())[name] == given[name]
    assert pl.TransformerConfig.from_dict(config.to_dict()).neutral == config.neutral
    assert config == pl.TransformerConfig.from_dict(SIZES), "a neutral field makes another model of it"


@pytest.mark.parametrize(("synonym", "name"), SYNONYMS.items())
def test_synonyms(synonym: str, name: str) -> None:
    assert getattr(pl.TransformerConfig.from_dict({**SIZES, synonym: 6}), name) == 6, "the synonym wins"
    without = {k: v for k, v in SIZES.items() if k != name}
    assert getattr(pl.TransformerConfig.from_dict({**without, synonym: 6}), name) == 6


def test_every_field_of_transformers_own_configuration_is_known() -> None:
    from transformers import GPT2Config

    config = pl.TransformerConfig.from_dict(GPT2Config().to_dict())
    assert config == pl.TransformerConfig.from_pretrained("gpt2-small").replace(**{
        name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    })  # fmt: skip
    for name, value in WORKING.items():
        theirs = getattr(GPT2Config(**SIZES), name)
        assert theirs == getattr(pl.TransformerConfig(**SIZES), name) or name.endswith("token_id"), (name, value)


def test_an_argument_that_is_no_field_is_a_spelling_mistake(tmp_path: Path) -> None:
    """What a file may hold unread is an error where a caller names it, at every door that takes single fields."""
    pl.load().save_pretrained(tmp_path)
    for call in (
        lambda: pl.TransformerConfig.from_pretrained("gpt2-small", n_lyer=3),
        lambda: pl.TransformerConfig(**SIZES).override(n_lyer=3),
        lambda: pl.load(tmp_path, config={"n_lyer": 3}),
    ):
        with pytest.raises(pl.ConfigError, match="n_lyer") as caught:
            call()
        assert caught.value.code == "config-unknown-field"
        assert "n_layer" in caught.value.remedy
    assert pl.load(tmp_path, config={"use_cache": False, "n_ctx": 5}).config.neutral["n_ctx"] == 5
    whole = {**pl.load(tmp_path).config.to_dict(), "n_special": 0}
    assert pl.load(tmp_path, config=whole).config.unread == ("n_special",)


def test_a_missing_size_names_the_field_that_may_be_meant() -> None:
    with pytest.raises(pl.ConfigError, match="n_embd missing") as caught:
        pl.TransformerConfig.from_dict({**{k: v for k, v in SIZES.items() if k != "n_embd"}, "n_embed": 12})
    assert "'n_embed'" in caught.value.remedy


def test_the_argument_is_not_changed() -> None:
    given = {**SIZES, "hidden_size": 6, "model_type": "gpt2", "eos_token_id": [1, 2]}
    before = copy.deepcopy(given)
    pl.TransformerConfig.from_dict(given)
    assert given == before


@pytest.mark.parametrize("three", [3, 3.0, np.int64(3), np.float32(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_every_kind_are_read(three: Any) -> None:
    config = pl.TransformerConfig(**{**SIZES, "n_head": three, "n_inner": three}, eos_token_id=[three, None])
    assert (config.n_head, config.n_inner, config.eos_token_id) == (3, 3, (3,))
    assert type(config.n_head) is int
    assert json.loads(config.to_json())["n_head"] == 3


@pytest.mark.every_pair
@pytest.mark.parametrize("value", [10**30, 2**63, -1, 0, float("nan"), float("inf"), "3", True, None, [3], 2.5])
@pytest.mark.parametrize("name", SIZES)
def test_every_size_is_bounded(name: str, value: Any) -> None:
    if (name, value) == ("n_layer", 0) and value is not False:
        assert pl.TransformerConfig(**{**SIZES, name: value}).n_layer == 0
        return
    with pytest.raises(pl.ConfigError, match=name) as caught:
        pl.TransformerConfig(**{**SIZES, name: value})
    assert caught.value.code in ("config-out-of-range", "config-wrong-type")


def test_numpys_truth_values_are_read() -> None:
    assert pl.TransformerConfig(**SIZES, scale_attn_weights=np.bool_(False)).scale_attn_weights is False  # type: ignore[arg-type]


def test_published_sizes() -> None:
    table = {
        "gpt2-small": (12, 768, 12),
        "gpt2": (12, 768, 12),
        "gpt2-medium": (24, 1024, 16),
        "gpt2-large": (36, 1280, 20),
        "gpt2-xl": (48, 1600, 25),
        "distilgpt2": (6, 768, 12),
    }
    for name, sizes in table.items():
        config = pl.TransformerConfig.from_pretrained(name)
        assert (config.n_layer, config.n_embd, config.n_head) == sizes
        assert (config.vocab_size, config.n_positions, config.d_mlp, config.d_head) == (50257, 1024, 4 * sizes[1], 64)
        assert config.activation_function == "gelu_new"
        assert config.tie_word_embeddings
        assert config.end_ids == (50256,)


def test_overrides_as_people_write_them() -> None:
    """A published configuration for another tokenizer, with the context length under its ineffective name."""
    tokenizer_size, context_length = 5000, 128
    with pytest.warns(pl.PellucidWarning, match=r"n_ctx=128 changes nothing.*n_positions"):
        config = pl.TransformerConfig.from_pretrained(
            "gpt2", vocab_size=tokenizer_size, n_ctx=context_length, bos_token_id=1, eos_token_id=2
        )
    assert (config.vocab_size, config.n_positions, config.bos_token_id, config.eos_token_id) == (5000, 1024, 1, 2)
    assert config.to_dict()["n_ctx"] == 128
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = pl.TransformerConfig.from_pretrained("gpt2", n_positions=128, n_ctx=128)
    assert config.n_positions == 128


def test_reads_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "gpt2", "use_cache": True}))
    config = pl.TransformerConfig.from_pretrained(str(tmp_path), n_layer=3)
    assert config.n_layer == 3
    assert config.neutral["use_cache"] is True


def test_it_is_frozen_hashable_where_it_can_be_and_picklable() -> None:
    config = pl.TransformerConfig.from_dict({**SIZES, "eos_token_id": [1, 2], "use_cache": True})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_layer = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.neutral["use_cache"] = False  # type: ignore[index]
    for again in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert again == config
        assert again.neutral == config.neutral
    assert hash(config) == hash(pickle.loads(pickle.dumps(config)))


def test_derived_facts() -> None:
    config = pl.TransformerConfig(**SIZES)
    assert (config.d_head, config.d_mlp) == (4, 48)
    assert config.replace(n_inner=1).d_mlp == 1
    assert config.attention_scale(5) == 0.5
    assert config.replace(scale_attn_by_inverse_layer_idx=True).attention_scale(4) == 0.1
    assert config.replace(scale_attn_weights=False).attention_scale(4) == 1.0
    assert config.replace(eos_token_id=(3, 4)).end_ids == (3, 4)
    assert config.replace(eos_token_id=3).end_ids == (3,)
    assert config.end_ids == ()


@pytest.mark.parametrize("name", ["n_inner", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
                                  "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"])  # fmt: skip
def test_fields_that_change_the_computation_change_it(name: str) -> None:
    value = {**WORKING, "n_inner": 96}[name]
    ids = support.some_ids(1, 9)
    assert not torch.equal(support.glass()(ids), support.glass(**{name: value})(ids))


@pytest.mark.parametrize("name", ["embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_each_dropout_takes_part_in_training(name: str) -> None:
    ids = support.some_ids(1, 9)
    without = support.glass(**support.NO_DROPOUT).train()
    assert torch.equal(without(ids), without(ids))
    only = support.glass(**{**support.NO_DROPOUT, name: 0.5}).train()
    assert not torch.equal(only(ids), only(ids))


def test_initialisation_is_gpt2s() -> None:
    config = pl.TransformerConfig(
        vocab_size=500, n_positions=64, n_embd=64, n_layer=4, n_head=4, initializer_range=0.05
    )
    model = pl.CkptedTransformer(config)
    assert model.training, "a fresh model trains"
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "w":
            assert bool((parameter == 1).all())
        elif kind.startswith("b"):
            assert not parameter.any()
        else:
            expected = 0.05 / 8**0.5 if kind in ("W_O", "W_out") else 0.05
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.05), name
            assert abs(float(parameter.detach().mean())) < 0.05 * expected + 1e-3


def test_the_list_of_activations_is_transformers_own_without_parameters() -> None:
    from transformers.activations import ACT2FN

    def parameters(name: str) -> int:
        return sum(1 for _ in ACT2FN[name].parameters())

    stateless = {name for name in ACT2FN if name not in ("prelu", "xielu")}
    assert set(ACTIVATIONS) == {name for name in stateless if parameters(name) == 0}


@pytest.mark.parametrize("name", ["layer_norm_epsilon", "initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_whole_numbers_are_written_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    model = pl.CkptedTransformer(pl.TransformerConfig(**{**SIZES, name: 1})).eval()
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert getattr(again.config, name) == 1.0
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.eval()(ids).logits, model(ids))
    assert torch.equal(pl.to_hf(model)(ids).logits, model(ids))


def test_whole_numbers_that_are_written_as_they_were_given_are_noticed(tmp_path: Path) -> None:
    plain = pl.TransformerConfig.to_dict
    as_given = (
        pl.TransformerConfig, "to_dict", lambda self: {**plain(self), "layer_norm_epsilon": 1},
        test_whole_numbers_are_written_as_transformers_reads_them,
    )  # fmt: skip
    must_be_noticed(as_given, "layer_norm_epsilon", tmp_path, by=[StrictDataclassFieldValidationError])


WRONG: dict[str, Callable[[], Any]] = {
    "several beginnings": lambda: pl.TransformerConfig(**SIZES, bos_token_id=[1]),
    "several pads": lambda: pl.TransformerConfig(**SIZES, pad_token_id=(1, 2)),
    "an MLP of no width": lambda: pl.TransformerConfig(**SIZES, n_inner=0),
    "another library's configuration": lambda: pl.CkptedTransformer(GPT2Config(**SIZES)),
    "another library's configuration as fields": lambda: pl.TransformerConfig.from_dict(GPT2Config(**SIZES)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_configuration_is_refused(what: str) -> None:
    with pytest.raises(pl.PellucidError):
        WRONG[what]()
