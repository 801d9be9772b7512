"""Mini-batches of stored rows: each row once, its values together, in the order that the seed says."""

from __future__ import annotations

import functools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.corpus import loader, place, plan

NAMES = ["blocks.0.resid_post", "blocks.2.attn.ckpt_z"]
TEXTS = [[length, *support.some_ids(1, length)[0].tolist()] for length in range(19)]
"""No two begin alike, so that no two rows are alike."""


@functools.cache
def shared() -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return support.glass()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """About ten parts."""
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 1)
    return pl.corpus.capture(shared(), TEXTS, NAMES, tmp_path / "a.zarr")


def rows_of(batches: list[Any], store: Any) -> list[int]:
    """Which rows these are, seen by their values; both names and the token must be of the same row."""
    first, second = (torch.from_numpy(store[name][:]) for name in NAMES)
    numbers = {row.numpy().tobytes(): number for number, row in enumerate(first)}
    assert len(numbers) == len(first)
    found: list[int] = []
    for batch in batches:
        assert list(batch) == NAMES
        rows = [numbers[row.numpy().tobytes()] for row in batch[NAMES[0]]]
        assert torch.equal(batch[NAMES[1]], second[rows])
        assert torch.equal(batch.tokens, torch.from_numpy(store.tokens[:].astype(np.int64))[rows])
        assert batch.rows.tolist() == rows
        found += rows
    return found


ORDERS: dict[str, dict[str, Any]] = {
    "as it lies": {"shuffle": False}, "as it lies, in windows": {"shuffle": False, "window": 50}, "a permutation": {},
    "a window of a part": {"window": 1}, "a window of three": {"window": 70}, "a window of all": {"window": 10**6},
}  # fmt: skip


@pytest.mark.parametrize("order", support.few_of(ORDERS, "a permutation", "a window of three", "as it lies"))
def test_each_row_once(order: str, store: Any) -> None:
    about = ORDERS[order]
    made = store.loader(7, seed=3, **about)
    batches = list(made)
    assert len(batches) == len(made) == -(-store.plan.rows // 7)
    assert [len(batch.tokens) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    rows = rows_of(batches, store)
    assert sorted(rows) == [*range(store.plan.rows)]
    assert (rows == sorted(rows)) == ("as it lies" in order)
    assert rows_of(list(made), store) == rows, "a second pass is the first"
    assert rows_of(list(store.loader(5, seed=3, **about)), store) == rows, "the order is not that of the batches"
    if "shuffle" not in about:
        assert rows_of(list(store.loader(7, seed=4, **about)), store) != rows


def test_windows_hold_whole_parts(store: Any) -> None:
    size = store.plan.part_rows
    rows = rows_of(list(store.loader(1, window=3 * size)), store)
    for start in range(0, store.plan.rows, 3 * size):
        parts = {row // size for row in rows[start : start + 2 * size]}
        assert len(parts) <= 3
    assert rows[:size] != sorted(rows[:size])
    spread = rows_of(list(store.loader(1)), store)
    assert len({row // size for row in spread[: 3 * size]}) > 3


@pytest.mark.parametrize(
    ("given", "code"),
    [({"batch_size": 0}, "not-a-whole-number"), ({"batch_size": 2.5}, "not-a-whole-number"),
     ({"window": 0}, "not-a-whole-number"), ({"seed": "a"}, "not-a-whole-number")],
)  # fmt: skip
def test_arguments(given: dict[str, Any], code: str, store: Any) -> None:
    with pytest.raises(pl.InputError) as caught:
        store.loader(**{"batch_size": 4, **given})
    assert caught.value.code == code


def test_a_store_that_is_not_finished(store: Any, tmp_path: Path) -> None:
    (tmp_path / "a.zarr" / place.chunk_key("ledger", 1, 3)).unlink()
    with pytest.raises(pl.InputError, match="not finished") as caught:
        store.loader(4)
    assert caught.value.code == "corpus-unfinished"
    pl.corpus.capture(shared(), TEXTS, NAMES, tmp_path / "a.zarr")
    assert sum(len(batch.tokens) for batch in store.loader(4)) == store.plan.rows


def test_a_chunk_that_is_cut_while_it_is_read(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size was right when it was asked for; no row may be what memory held before."""
    read = place.Folder.read

    def cut(self: place.Folder, key: str, into: torch.Tensor) -> None:
        path = self.path / key
        path.write_bytes(path.read_bytes()[:-1])
        read(self, key, into)

    monkeypatch.setattr(place.Folder, "read", cut)
    with pytest.raises(pl.WeightsError, match="became shorter") as caught:
        list(store.loader(16, window=1))
    assert caught.value.code == "path-unreadable"


def test_rows_are_mixed_evenly_within_the_stated_window(store: Any) -> None:
    """Over many seeds every row of the first window comes everywhere in it: on average in the middle."""
    size = store.loader(1, window=70).window
    assert size == 70 // store.plan.part_rows * store.plan.part_rows
    assert store.loader(1, window=10**9).window == store.plan.rows
    assert store.loader(1, window=1).window == store.plan.part_rows
    places: dict[int, list[int]] = {}
    for seed in range(100):
        rows = next(iter(store.loader(size, seed=seed, window=size))).rows.tolist()
        for at, row in enumerate(rows):
            places.setdefault(row, []).append(at)
    assert sorted(places) == [*range(store.plan.rows)]
    for row, seen in places.items():
        if len(seen) > 20:  # six standard errors of a mean of so many
            assert abs(np.mean(seen) - (size - 1) / 2) < 6 * size / (12 * len(seen)) ** 0.5, row


def test_a_stream_without_an_end(store: Any) -> None:
    """As trainers of sparse autoencoders read it: `next` and `for`, mini-batches of one size, a new order each pass."""
    name, rows = NAMES[0], store.plan.rows
    stream = store.stream(name, 16, seed=5)
    assert iter(stream) is stream
    assert json.loads(json.dumps(stream.config))["rows"] == rows
    whole = rows // 16
    passes = [list(islice(stream, whole)) for _ in range(2)]
    for number, batches in enumerate(passes):
        expected = list(store.loader(16, seed=5 + number))[:whole]
        for got, batch in zip(batches, expected, strict=False):
            assert got.shape == (16, 48)
            assert torch.equal(got, batch[name]), number
    both = next(store.stream(None, 16, window=50))
    assert {name: list(value.shape) for name, value in both.items()} == {NAMES[0]: [16, 48], NAMES[1]: [16, 4, 12]}
    with pytest.raises(pl.UnknownNameError):
        store.stream("blocks.1.resid_pots", 4)
    with pytest.raises(pl.InputError) as caught:
        store.stream(name, rows + 1)
    assert caught.value.code == "not-a-whole-number"


def test_saelens_trains_on_it(store: Any) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = sae_lens.StandardTrainingSAE(sae_lens.StandardTrainingSAEConfig(d_in=48, d_sae=64))
    about = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=320, device="cpu",
        autocast=False, lr=1e-3, lr_end=1e-4, lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9,
        adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=16,
        dead_feature_window=100, feature_sampling_window=100, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    before = sae.W_dec.detach().clone()
    trainer = SAETrainer(about, sae, store.stream(NAMES[0], 16))
    trainer.fit()
    assert trainer.n_training_samples == 320
    assert not torch.equal(sae.W_dec, before)


def test_dictionary_learning_trains_on_it(store: Any, tmp_path: Path) -> None:
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import AutoEncoder
    from dictionary_learning.trainers import StandardTrainer
    from dictionary_learning.training import trainSAE

    about = {
        "trainer": StandardTrainer, "steps": 20, "activation_dim": 48, "dict_size": 64, "layer": 0, "lm_name": "glass",
        "device": "cpu", "dict_class": AutoEncoder, "warmup_steps": 1, "sparsity_warmup_steps": 1,
    }  # fmt: skip
    trainSAE(store.stream(NAMES[0], 16), [about], steps=20, save_dir=str(tmp_path / "trained"), device="cpu")
    kept = json.loads((tmp_path / "trained" / "trainer_0" / "config.json").read_text())
    assert kept["buffer"]["rows"] == store.plan.rows
    assert (tmp_path / "trained" / "trainer_0" / "ae.pt").exists()


def test_a_mistake_is_noticed(store: Any) -> None:
    def regrouped(self: Any, pieces: Any) -> Any:
        return (piece for piece in pieces if len(piece["tokens"]) == self.batch_size)

    must_be_noticed((loader.Loader, "_regrouped", regrouped, test_each_row_once), "a permutation", store)
