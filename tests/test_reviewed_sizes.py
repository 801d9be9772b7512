"""Sizes, settings and files of a wrong kind: refused where they are given, not where they would do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.generate import verbs as generating
from pellucid.gpt2 import config
from pellucid.run import cache

MODEL = support.glass()
CACHE = pl.KeyValueCache(MODEL.config, 2)
SIZES = {"vocab_size": 10, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize("name", ["layer_norm_epsilon", "initializer_range", "embd_pdrop", "attn_pdrop", "resid_pdrop"])
def test_whole_numbers_are_written_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    model = pl.CkptedTransformer(pl.TransformerConfig(**{**SIZES, name: 1})).eval()
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert getattr(again.config, name) == 1.0
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.eval()(ids).logits, model(ids))
    assert torch.equal(pl.to_hf(model)(ids).logits, model(ids))


def test_an_estimate_holds_while_beams_change_places() -> None:
    cache = pl.KeyValueCache(MODEL.config, 8)
    cache.content.normal_()
    cache.length = cache.capacity
    expected = cache.content[:, :, torch.arange(7, -1, -1)].clone()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        cache.reorder(torch.arange(7, -1, -1))
    assert torch.equal(cache.content, expected)
    largest = max(abs(event.cpu_memory_usage) for event in seen.events())
    assert 0 < largest <= 1.1 * cache.content[0].nbytes


def _lying(folder: Path, content: torch.Tensor, mask: torch.Tensor) -> pl.KeyValueCache:
    save_file({"keys_and_values": content, "mask": mask}, folder / "cache.safetensors")
    return pl.KeyValueCache.load(folder / "cache.safetensors")


WRONG: dict[str, Callable[[Path], Any]] = {
    "a cache of three parts": lambda folder: _lying(folder, torch.zeros(3, 3, 1, 4, 2, 12), torch.ones(1, 2).bool()),
    "a cache whose mask holds numbers": lambda folder: _lying(folder, torch.zeros(3, 2, 1, 4, 2, 12), torch.ones(1, 2)),
    "a cache of whole numbers": lambda _: pl.KeyValueCache(MODEL.config, dtype=torch.int64),
    "a cache of a model": lambda _: pl.KeyValueCache(MODEL),
    "a cache of half a row": lambda _: pl.KeyValueCache(MODEL.config, 1.5),
    "half a column back": lambda _: CACHE.rewind(0.5),
    "a fork in words": lambda _: CACHE.fork("a"),
    "less than no tokens": lambda _: pl.estimate_generation(MODEL, [[1]], max_new_tokens=-5),
    "tokens in words": lambda _: pl.estimate_generation(MODEL, [[1]], max_new_tokens="a"),
    "less than no rows": lambda _: pl.estimate_generation(MODEL, [[1]], rows_each=-1),
    "a sampler in words": lambda _: MODEL.generate([[1]], sampler="greedy"),
    "half an end": lambda _: MODEL.generate([[1]], end_ids=1.5),
    "stop bytes": lambda _: MODEL.generate([[1]], stop=b"a"),
    "half a stop": lambda _: MODEL.generate([[1]], stop=1.5),
    "several beginnings": lambda _: pl.TransformerConfig(**SIZES, bos_token_id=[1]),
    "several pads": lambda _: pl.TransformerConfig(**SIZES, pad_token_id=(1, 2)),
    "an MLP of no width": lambda _: pl.TransformerConfig(**SIZES, n_inner=0),
    "another library's configuration": lambda _: pl.CkptedTransformer(GPT2Config(**SIZES)),
    "another library's configuration as fields": lambda _: pl.TransformerConfig.from_dict(GPT2Config(**SIZES)),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_an_error_of_ours(what: str, tmp_path: Path) -> None:
    with pytest.raises(pl.PellucidError):
        WRONG[what](tmp_path)


def _all_at_once(self: pl.KeyValueCache, rows: torch.Tensor) -> None:
    self.content.copy_(self.content.index_select(2, rows))


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "a cache is copied whole": (
        pl.KeyValueCache, "reorder", _all_at_once, lambda _: test_an_estimate_holds_while_beams_change_places()),
    "numbers stay as they are given": (
        config, "_NUMBERS", {},
        lambda folder: test_whole_numbers_are_written_as_transformers_reads_them("layer_norm_epsilon", folder)),
    "caches are believed": (
        cache, "_are_a_cache", lambda content, mask: True,
        lambda folder: test_what_is_wrong_is_an_error_of_ours("a cache of three parts", folder)),
    "samplers are not looked at": (
        generating, "sampler_of", lambda given: given,
        lambda folder: test_what_is_wrong_is_an_error_of_ours("a sampler in words", folder)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path) -> None:
    must_be_noticed(MUTANTS[name], tmp_path, by=[AttributeError, StrictDataclassFieldValidationError])
