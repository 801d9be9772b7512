"""Keys and values that are kept: continuing, forking, rewinding, trimming, saving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache

import pellucid as pl
import support
from noticed import must_be_noticed

IDS = support.some_ids(3, 14)


@pytest.fixture(autouse=True)
def _no_grad() -> None:
    torch.set_grad_enabled(False)


def fresh(model: pl.CkptedTransformer, rows: int = 3, capacity: int = 20) -> pl.KeyValueCache:
    return pl.KeyValueCache(model.config, rows, capacity, dtype=model.dtype)


@pytest.mark.parametrize("pieces", [(14,), (1,) * 14, (5, 9), (1, 12, 1), (3, 4, 7)])
def test_pieces_give_the_logits_of_the_whole(pieces: tuple[int, ...], glass64: pl.CkptedTransformer) -> None:
    cache = fresh(glass64)
    parts = [glass64(piece, cache=cache) for piece in IDS.split(pieces, 1)]
    assert cache.length == 14
    assert (torch.cat(parts, 1) - glass64(IDS)).abs().max() < 1e-12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_equal_those_of_transformers(rows: int, attention: str) -> None:
    """Equal to the bit, as far as was tried."""
    ours, hf = support.pair(attention=attention)
    cache, theirs = fresh(ours, rows), DynamicCache(config=hf.config)
    for piece in IDS[:rows].split([6, *[1] * 8], 1):
        expected = hf(piece, **{support.CACHE_WORD: theirs}, use_cache=True).logits
        assert torch.equal(ours(piece, cache=cache), expected)


def test_padded_rows(glass64: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(9, 4, 6)
    cache = fresh(glass64)
    first = glass64.tokenize([row[:-2] for row in rows])
    logits = [glass64(first, cache=cache)[:, -1:]]
    logits += [glass64(torch.tensor([[row[i]] for row in rows]), cache=cache) for i in (-2, -1)]
    for number, row in enumerate(rows):
        alone = glass64([row])[0, -3:]
        assert (torch.cat(logits, 1)[number] - alone).abs().max() < 1e-12
    assert cache.counts.tolist() == [9, 4, 6]


def test_next_token_logits(glass: pl.CkptedTransformer) -> None:
    rows = support.ragged_ids(9, 4, 6)
    for side in ("left", "right"):
        batch = glass.tokenize(rows, padding_side=side)
        last = [glass(batch)[i, m.nonzero().max()] for i, m in enumerate(batch.mask)]
        assert (glass.next_token_logits(batch) - torch.stack(last)).abs().max() < 1e-5
    cache = fresh(glass)
    glass(IDS[:, :9], cache=cache)
    assert (glass.next_token_logits(IDS[:, 9:], cache=cache) - glass(IDS)[:, -1]).abs().max() < 1e-5


def test_rewind(glass64: pl.CkptedTransformer) -> None:
    cache = fresh(glass64)
    glass64(IDS, cache=cache)
    cache.rewind(5)
    again = glass64(IDS[:, 5:9], cache=cache)
    assert cache.length == 9
    assert (again - glass64(IDS[:, :9])[:, 5:]).abs().max() < 1e-12
    with pytest.raises(pl.InputError, match="expected 0 to 9"):
        cache.rewind(10)


def test_forks_go_their_own_ways(glass64: pl.CkptedTransformer) -> None:
    cache = fresh(glass64, rows=2, capacity=8)
    glass64(IDS[:2, :6], cache=cache)
    fork = cache.fork(rows=2, capacity=30)
    assert (fork.rows, fork.capacity, fork.length) == (4, 30, 6)
    other = glass64(IDS[0, 6:9].expand(4, 3), cache=fork)
    logits = glass64(IDS[:2, 6:8], cache=cache)
    assert (logits - glass64(IDS[:2, :8])[:, 6:]).abs().max() < 1e-12
    texts = torch.cat([IDS[:2, :6].repeat_interleave(2, 0), IDS[0, 6:9].expand(4, 3)], 1)
    assert (other - glass64(texts)[:, 6:]).abs().max() < 1e-12
    with pytest.raises(pl.InputError, match="at least one of 8"):
        cache.fork(capacity=3)


def test_reorder(glass64: pl.CkptedTransformer) -> None:
    cache = fresh(glass64)
    glass64(IDS[:, :6], cache=cache)
    before = cache.content.data_ptr()
    order = torch.tensor([2, 2, 0])
    cache.reorder(order)
    assert cache.content.data_ptr() == before
    expected = glass64(IDS[order])[:, 6:]
    assert (glass64(IDS[order, 6:], cache=cache) - expected).abs().max() < 1e-12


def test_trim_and_memory(glass: pl.CkptedTransformer) -> None:
    needed = pl.KeyValueCache.bytes_needed(glass.config, np.uint8(3), np.uint8(20))
    cache = fresh(glass)
    assert cache.nbytes == needed == 3 * 20 * (2 * 3 * 48 * 4 + 1)
    assert cache.content.untyped_storage().nbytes() + cache.mask.untyped_storage().nbytes() == needed
    glass(IDS[:, :5], cache=cache)
    cache.trim()
    assert (cache.capacity, cache.length) == (5, 5)
    assert cache.nbytes == pl.KeyValueCache.bytes_needed(glass.config, 3, 5)
    with pytest.raises(pl.InputError, match="5 \\+ 1 columns, expected at most 5"):
        glass(IDS[:, :1], cache=cache)
    assert "3 x 5 of 5 columns" in repr(cache)


def test_saved_and_loaded(glass: pl.CkptedTransformer, tmp_path: Path) -> None:
    cache = fresh(glass)
    glass(glass.tokenize(support.ragged_ids(9, 4, 6)), cache=cache)
    cache.save(tmp_path / "cache.safetensors")
    again = pl.KeyValueCache.load(tmp_path / "cache.safetensors").fork(capacity=12)
    more = IDS[:, :2]
    assert torch.equal(glass(more, cache=again), glass(more, cache=cache))
    glass.save_pretrained(tmp_path / "model")
    with pytest.raises(pl.InputError, match="holds no keys and values"):
        pl.KeyValueCache.load(tmp_path / "model" / "model.safetensors")


def test_a_failed_run_leaves_the_cache_as_it_was(glass: pl.CkptedTransformer) -> None:
    cache = fresh(glass, capacity=64)
    glass(IDS[:, :5], cache=cache)
    handle = glass.blocks[2].resid_mid.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        glass(IDS[:, 5:9], cache=cache)
    handle.remove()
    assert cache.length == 5
    assert (glass(IDS[:, 5:9], cache=cache) - glass(IDS[:, :9])[:, 5:]).abs().max() < 1e-5


def test_what_does_not_fit(glass: pl.CkptedTransformer) -> None:
    cache = fresh(glass, capacity=100)
    glass(support.some_ids(3, 60), cache=cache)
    with pytest.raises(pl.InputError, match="a text of 65 tokens with what is cached, expected at most 64"):
        glass(IDS[:, :5], cache=cache)
    with pytest.raises(pl.ShapeError, match="2 rows given, expected 3"):
        glass(IDS[:2, :1], cache=cache)
    with pytest.raises(pl.InputError, match="0 rows of 5 columns"):
        pl.KeyValueCache(glass.config, 0, 5)
    assert cache.length == 60


@pytest.mark.long
def test_a_compiled_model_goes_on_with_a_cache(tiny: pl.CkptedTransformer):
    with torch.no_grad():
        cache, compiled = pl.KeyValueCache(tiny.config), torch.compile(tiny, backend="eager")
        compiled(support.ROW[:, :4], cache=cache)
        assert cache.length == 4
        assert torch.allclose(compiled(support.ROW[:, 4:], cache=cache)[:, -1], tiny(support.ROW)[:, -1], atol=1e-4)


def test_a_cache_of_another_model_is_refused(tiny: pl.CkptedTransformer):
    for fields in ({"n_layer": 3}, {"n_head": 2}, {"n_embd": 32}):
        other = pl.KeyValueCache(tiny.config.replace(**fields))
        with pytest.raises(pl.InputError, match="2 layers, 4 heads of 6") as caught:
            tiny(support.ROW, cache=other)
        assert caught.value.code == "cache-misfit"
    with pytest.raises(pl.InputError, match="meta"):
        tiny(support.ROW, cache=pl.KeyValueCache(tiny.config, device="meta"))


MISUSES: dict[str, Callable[[pl.CkptedTransformer], Any]] = {
    r"'float32', expected a torch\.dtype": lambda m: pl.KeyValueCache(m.config, dtype="float32"),  # type: ignore[arg-type]
    r"'int', expected a torch\.dtype": lambda m: pl.KeyValueCache.bytes_needed(m.config, 1, 2, "int"),  # type: ignore[arg-type]
    "cannot be had on nonsense": lambda m: pl.KeyValueCache(m.config, device="nonsense"),
    "cannot be had on cpu": lambda m: pl.KeyValueCache(m.config, 10**9, 10**6),
    "dict given, expected a KeyValueCache": lambda m: m(support.ROW, cache={}),
    "expected a tensor of 2 numbers from 0 to 1": lambda m: pl.KeyValueCache(m.config, 2).reorder(torch.tensor([0, 2])),
    r"reorder by \[1, 0\]": lambda m: pl.KeyValueCache(m.config, 2).reorder([1, 0]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("said", MISUSES)
def test_what_is_no_cache_or_cannot_be_one(said: str, tiny: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.InputError, match=said):
        MISUSES[said](tiny)


def test_an_accelerator_without_memory_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    config = support.glass(n_layer=1).config
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        pl.KeyValueCache(config)


def test_an_estimate_holds_while_beams_change_places() -> None:
    cache = pl.KeyValueCache(support.glass().config, 8)
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


def _cache(**fields: Any) -> pl.KeyValueCache:
    return pl.KeyValueCache(support.glass(n_layer=1).config, **fields)


WRONG: dict[str, Callable[[Path], Any]] = {
    "of three parts": lambda folder: _lying(folder, torch.zeros(3, 3, 1, 4, 2, 12), torch.ones(1, 2).bool()),
    "whose mask holds numbers": lambda folder: _lying(folder, torch.zeros(3, 2, 1, 4, 2, 12), torch.ones(1, 2)),
    "of whole numbers": lambda _: _cache(dtype=torch.int64),
    "of a model": lambda _: pl.KeyValueCache(support.glass(n_layer=1)),
    "of half a row": lambda _: _cache(rows=1.5),
    "half a column back": lambda _: _cache().rewind(0.5),
    "forked in words": lambda _: _cache().fork("a"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_cache_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(pl.PellucidError):
        WRONG[what](tmp_path)


def _all_at_once(self: pl.KeyValueCache, rows: torch.Tensor) -> None:
    self.content.copy_(self.content.index_select(2, rows))


def test_copying_a_cache_whole_is_noticed() -> None:
    must_be_noticed((pl.KeyValueCache, "reorder", _all_at_once, test_an_estimate_holds_while_beams_change_places))
