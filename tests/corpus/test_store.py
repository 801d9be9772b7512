"""Stores: what is on disk is what runs give, to the bit, however it came there, and a reader gets all of it."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import killed
import pellucid as pl
import samples
import support
from noticed import must_be_noticed
from pellucid import atomic
from pellucid.corpus import identity, intake, objects, part_making, place, plan
from pellucid.corpus import store as store_module
from pellucid.numerics import quickest

NAMES = ["resid_post", "attn.ckpt_z", "mlp.ckpt_pre"]
LENGTHS = (5, 2, 7, 3, 1, 12, 2, 9, 4, 6)
TEXTS = [*support.ragged_ids(*LENGTHS), support.ragged_ids(*LENGTHS)[2]]


@functools.cache
def shared() -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return support.glass()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few rows, so that texts lie across their borders."""
    monkeypatch.setattr(plan, "PART_BYTES", 1)
    monkeypatch.setattr(plan, "TEXTS_IN_A_PART", 1)


def captured(path: Path, texts: Any = TEXTS, **changes: Any) -> Any:
    return pl.corpus.capture(shared(), texts, **{"names": NAMES, "batch_tokens": 16, "path": path, **changes})


def files(folder: Path) -> dict[str, str]:
    """Every file of a store, by what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def check_rows(store: Any, model: pl.CkptedTransformer, texts: Any, tolerance: float) -> None:
    """Every row is that of its text, run alone."""
    assert len(store.texts) == len(texts)
    for text, stored in zip(texts, store.texts, strict=True):
        _, alone = model.run_with_ckpts([text], names=list(store))
        rows = slice(stored.rows.start, stored.rows.stop)
        assert store.tokens[rows].tolist() == list(text)
        for name in store:
            np.testing.assert_allclose(store[name][rows], alone[name][0], rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("small_parts")
def test_rows_are_those_of_runs(tmp_path: Path) -> None:
    store = captured(tmp_path / "a.zarr")
    assert store.plan.parts > 3
    assert store.is_complete
    assert store.tokens.shape == (sum(map(len, TEXTS)),)
    assert [text.number for text in store.texts] == [*range(len(TEXTS))]
    assert store.texts[2].digest == store.texts[-1].digest != store.texts[0].digest
    for outside in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError, match=f"text {outside} of {len(TEXTS)}"):
            store.texts[outside]
    check_rows(store, shared(), TEXTS, 1e-5)
    assert store.verify()
    assert store.verify().rows == sum(map(len, TEXTS))
    few = [store.verify(2, seed=seed) for seed in range(3)]
    assert all(few)
    assert {found.rows for found in few} == {2}


@pytest.mark.usefixtures("small_parts")
def test_rows_are_the_bits_of_the_planned_batches(tmp_path: Path) -> None:
    store, model = captured(tmp_path / "a.zarr"), shared()
    seen = np.zeros(store.plan.rows, int)
    for part in range(store.plan.parts):
        own = store.plan.rows_of(part)
        for batch in store.corpus.batches(part):
            longest = max(span.stop - span.start for span in batch)
            assert len(batch) == 1 or longest * len(batch) <= 16
            ids = [store.tokens[span.start : span.stop].tolist() for span in batch]
            _, ckpts = model.run_with_ckpts(ids, names=NAMES)
            for row, span in enumerate(batch):
                first = max(span.start, own.start)
                seen[first : span.stop] += 1
                for name in store:
                    expected = ckpts[name][row, -(span.stop - first) :]
                    assert torch.equal(torch.from_numpy(store[name][first : span.stop]), expected), (name, span)
    assert (seen == 1).all()


@pytest.mark.usefixtures("small_parts")
def test_tokens_and_texts_of_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of texts lies in chunks of its own, whose borders are nobody else's."""
    whole = captured(tmp_path / "a.zarr")
    monkeypatch.setattr(intake, "CHUNK_BYTES", 64)  # 16 tokens, 8 offsets, 2 digests
    store = captured(tmp_path / "b.zarr")
    assert len(list((tmp_path / "b.zarr" / "tokens").glob("c.*"))) == -(-store.plan.rows // 16) > 2
    assert store.tokens[:].tolist() == [token for text in TEXTS for token in text]
    assert list(store.texts) == list(whole.texts)
    for name in store:
        np.testing.assert_array_equal(store[name][:], whole[name][:])
    assert store.verify()


@pytest.mark.parametrize("family", support.few_of(samples.SAMPLES, "llama", "gpt_neox"))
def test_every_family(family: str, tmp_path: Path) -> None:
    model, texts = samples.shared(family), samples.ragged_ids(3, 9, 5)
    names = [name for name in model.ckpt_names if model.schema[name].axes[:2] == ("batch", "pos")]
    store = pl.corpus.capture(model, texts, names, tmp_path / "a.zarr")
    assert list(store) == names
    check_rows(store, model, texts, 1e-4)
    assert store.verify(model=model)


def test_opened_by_others(tmp_path: Path) -> None:
    import dask.array
    import xarray
    import zarr

    store = captured(tmp_path / "a.zarr")
    name = "blocks.1.attn.ckpt_z"
    found = xarray.open_zarr(tmp_path / "a.zarr")
    assert found[name].dims == ("row", "head", "d_head")
    assert found.sizes["row"] == sum(map(len, TEXTS))
    np.testing.assert_array_equal(found[name], store[name][:])
    np.testing.assert_array_equal(found["tokens"], np.concatenate(TEXTS))
    np.testing.assert_array_equal(dask.array.from_zarr(str(tmp_path / "a.zarr"), component=name), store[name][:])
    array = zarr.open_group(tmp_path / "a.zarr", mode="r")[name]
    assert array.chunks == (store.plan.part_rows, *array.shape[1:])
    mapped = np.memmap(tmp_path / "a.zarr" / name / "c.0.0.0", "<f4", "r").reshape(array.chunks)
    np.testing.assert_array_equal(mapped[: store.plan.rows], store[name][:])
    assert torch.equal(store.chunk(name, 0), torch.from_numpy(store[name][:]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    store = captured(tmp_path / "a.zarr", names="blocks.1.resid_post", dtype=dtype)
    whole = captured(tmp_path / "b.zarr", names="blocks.1.resid_post")
    array = store["blocks.1.resid_post"]
    assert array.attrs["dtype"] == dtype
    expected = torch.from_numpy(whole["blocks.1.resid_post"][:]).to(getattr(torch, dtype))
    bits = torch.from_numpy(array[:])
    assert torch.equal(bits.view(torch.bfloat16) if dtype == "bfloat16" else bits, expected)
    batch = next(iter(store.loader(1000, shuffle=False)))
    assert torch.equal(batch["blocks.1.resid_post"], expected)
    assert store.verify()


def test_the_model_of_the_provenance(bundled: pl.CkptedTransformer, tmp_path: Path) -> None:
    """The bundled one, and one in a folder."""
    texts = ["Once upon a time", "The end"]
    store = pl.corpus.capture(bundled, texts, "resid_post", tmp_path / "a.zarr")
    assert store.provenance["model"] == "bundled"
    assert pl.corpus.open(tmp_path / "a.zarr").verify()
    shared().save_pretrained(tmp_path / "model")
    model = pl.load(tmp_path / "model")
    pl.corpus.capture(model, TEXTS, "resid_post", tmp_path / "b.zarr")
    assert pl.corpus.open(tmp_path / "b.zarr").verify()
    with torch.no_grad():
        model.blocks[0].mlp.W_in[0, 0] += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(pl.InputError, match="weights") as caught:
        pl.corpus.open(tmp_path / "b.zarr").verify()
    assert caught.value.code == "corpus-misfit"


# What is wrong is found


@pytest.mark.usefixtures("small_parts")
def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    store = captured(tmp_path / "a.zarr")
    name, part = "blocks.1.resid_post", 2
    file = tmp_path / "a.zarr" / name / f"c.{part}.0"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    found = store.verify()
    assert not found
    assert found.damaged == [(name, part)]
    assert found.unequal == [(name, store.plan.rows_of(part).start)]
    assert "(blocks.1.resid_post', 2)" in repr(found) or "'blocks.1.resid_post', 2" in repr(found)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("what", ["tokens", "offsets"])
def test_other_tokens_than_were_written_are_found(what: str, tmp_path: Path) -> None:
    """Nothing is made of them, and what was made is not taken for right."""
    store, chunk = captured(tmp_path / "a.zarr"), tmp_path / "a.zarr" / what / "c.0"
    (tmp_path / "a.zarr" / place.chunk_key(part_making.LEDGER, 3, 3)).unlink()
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\1")
    before = files(tmp_path / "a.zarr")
    assert store.verify().damaged == [(what, 0)]
    with pytest.raises(pl.InputError, match=f"chunk 0 of '{what}' is not as it was written") as caught:
        captured(tmp_path / "a.zarr")
    assert caught.value.code == "corpus-damaged"
    assert files(tmp_path / "a.zarr") == before


def test_a_store_of_another_computation_is_found(tmp_path: Path) -> None:
    """Hooks are no part of what is known of a model, and what they change is seen."""
    model = support.glass()
    handle = model.blocks[0].mlp.register_forward_hook(lambda module, given, out: out * 2)
    store = pl.corpus.capture(model, TEXTS, "blocks.1.resid_post", tmp_path / "a.zarr")
    assert store.verify(model=model)
    handle.remove()
    found = store.verify(model=model)
    assert len(found.unequal) == store.plan.rows
    assert not found.damaged


def test_one_library_multiplies_for_a_store_in_fast_numerics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one is measured in each process otherwise, and its bits are not those of another."""
    model, seen = support.glass(numerics="fast"), set[str]()
    one = torch.ones(1, 1)
    model.blocks[0].mlp.register_forward_hook(lambda *given: seen.add(quickest.library_for(one, one, None)))
    capture = lambda: pl.corpus.capture(model, TEXTS, "blocks.1.resid_post", tmp_path / "a.zarr")  # noqa: E731
    monkeypatch.setenv("PELLUCID_PRODUCTS", "onednn")
    assert capture().provenance["products"] == "onednn"
    monkeypatch.setenv("PELLUCID_PRODUCTS", "torch")
    (tmp_path / "a.zarr" / "ledger" / "c.0.0.0").unlink()
    seen.clear()
    assert capture().verify(model=model)
    assert seen == {"onednn"}
    assert os.environ["PELLUCID_PRODUCTS"] == "torch"
    monkeypatch.delenv("PELLUCID_PRODUCTS")
    made = pl.corpus.capture(model, TEXTS, "blocks.1.resid_post", tmp_path / "b.zarr")
    assert made.provenance["products"] in ("torch", "onednn")
    assert captured(tmp_path / "c.zarr").provenance["products"] == ""


def test_a_simulation_cuts_as_the_store_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PART_BYTES", 100_000)
    texts = [support.some_ids(1, 64, seed=i)[0].tolist() for i in range(50)]
    store = pl.corpus.capture(shared(), texts, NAMES, tmp_path / "a.zarr")
    found = pl.corpus.simulate(shared(), NAMES, 50 * 64, workers=2, tokens_per_second=100)
    assert found.plan == store.plan
    assert (found.plan.parts, found.plan.part_rows, found.rounds) == (4, 800, 2)
    assert found.seconds == 2 * 800 / 100
    assert found.idle == 0
    assert found.bytes_per_worker == sum(len(store.chunk(n, 0)) * store.chunk(n, 0)[0].nbytes for n in store) * 2
    assert found.objects == len(
        [*(tmp_path / "a.zarr").glob("blocks.*/c.*"), *(tmp_path / "a.zarr").glob("ledger/c.*")]
    )
    three = pl.corpus.simulate(shared(), NAMES, 50 * 64, workers=3, tokens_per_second=100)
    assert (three.rounds, three.idle) == (2, 1 - 4 / 6)
    assert three.bytes_per_second == 3 * 100 * store.plan.row_bytes
    assert pl.corpus.simulate(shared(), NAMES, 10, 1, 100, dtype=torch.bfloat16).plan.dtype == "bfloat16"
    with pytest.raises(pl.UnknownNameError, match=r"names=\[\], expected one or more"):
        pl.corpus.simulate(shared(), [], 10, 1, 100)


@pytest.mark.remedy("corpus-speed")
def test_a_speed_that_cannot_be() -> None:
    for speed in (0, -1, float("nan"), float("inf"), "fast", True):
        with pytest.raises(pl.InputError, match="tokens_per_second") as caught:
            pl.corpus.simulate(shared(), NAMES, 10, workers=1, tokens_per_second=speed)
        assert caught.value.code == "corpus-speed"
    about = pl.corpus.estimate(shared(), TEXTS, NAMES)
    assert about.seconds
    assert pl.corpus.simulate(shared(), NAMES, 10, 1, about.rows / about.seconds).seconds > 0


# Going on


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("steps", support.few_of([["replace"], ["replace", "fsync"]], ["replace"]), ids=str)
def test_it_goes_on_where_it_was_killed(steps: Any, tmp_path: Path) -> None:
    """Before each of its steps on disk; the store is then that of a run that was never killed."""
    whole, begun, path = tmp_path / "whole.zarr", tmp_path / "begun.zarr", tmp_path / "a.zarr"
    about: dict[str, Any] = {"texts": TEXTS[:2], "names": "blocks.1.resid_post"}
    captured(whole, **about)
    shutil.copytree(whole, begun)
    for name in ("ledger", "blocks.1.resid_post"):
        for chunk in (begun / name).glob("c.*"):
            chunk.unlink()
    shutil.copytree(begun, path)
    left = set[int]()
    of_the_disk = tuple((os, step) for step in steps)
    for _ in killed.at_every_step(lambda: captured(path, **about), of_the_disk, after=False):
        store = pl.corpus.open(path)
        left.add(len(store.parts))
        assert not store.parts or store.verify(model=shared())
        captured(path, **about)
        assert files(path) == files(whole)
        shutil.rmtree(path)
        shutil.copytree(begun, path)
    ends = "fsync" in steps  # the last file has its name before its folder is flushed
    assert left == {*range(store.plan.parts + ends)}, "it was killed in the midst of it"


@pytest.mark.usefixtures("small_parts")
def test_it_is_begun_whole_or_not_at_all(tmp_path: Path) -> None:
    """While texts are read, nothing is at the path; what a kill leaves beside it is removed by the next call."""
    about: dict[str, Any] = {"texts": TEXTS[:1], "names": "blocks.1.resid_post"}
    steps = ((place.NewFolder, "put"), (atomic.Begun, "finish"), (atomic, "take_folder"))
    for _ in killed.at_every_step(lambda: captured(tmp_path / "a.zarr", **about), steps, after=False):
        if (tmp_path / "a.zarr").exists():
            pl.corpus.open(tmp_path / "a.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.usefixtures("small_parts")
def test_it_goes_on_after_kills_at_any_moment(tmp_path: Path) -> None:
    whole, path, about = tmp_path / "whole.zarr", tmp_path / "a.zarr", {"names": "blocks.1.resid_post"}
    begun = time.monotonic()
    captured(whole, **about)
    took = time.monotonic() - begun
    generator = random.Random(0)
    for _ in range(8):
        child = killed.in_a_child(lambda: captured(path, **about))
        time.sleep(generator.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store = captured(path, **about)
    assert files(path) == files(whole)
    assert store.verify()


@pytest.mark.usefixtures("small_parts")
def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    path, model, runs = tmp_path / "a.zarr", shared(), list[Any]()
    store = captured(path)
    before = files(path)
    (path / place.chunk_key(part_making.LEDGER, 3, 3)).unlink()
    (path / place.chunk_key("blocks.0.resid_post", 1, 2)).unlink()
    assert not store.is_complete
    assert np.isnan(store["blocks.0.resid_post"][store.plan.rows_of(1).start]).all()
    handle = model.register_forward_pre_hook(lambda module, given: runs.append(len(given[0])))
    try:
        captured(path)
    finally:
        handle.remove()
    assert len(runs) == sum(len(list(store.corpus.batches(part))) for part in (1, 3))
    assert files(path) == before


@pytest.mark.usefixtures("small_parts")
def test_what_is_not_there_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    captured(path)
    before = files(path)
    (path / place.chunk_key("blocks.0.resid_post", 1, 2)).unlink()
    captured(path)
    assert files(path) == before


def test_parts_do_not_depend_on_their_order(tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on when the disk is asked to take what is there."""
    store, settled = captured(tmp_path / "a.zarr"), list[str]()
    before, plain = files(tmp_path / "a.zarr"), atomic.Begun.settle
    for entry in (tmp_path / "a.zarr" / part_making.LEDGER).glob("c.*"):
        entry.unlink()
    monkeypatch.setattr(part_making, "SETTLED", 1)
    monkeypatch.setattr(atomic.Begun, "settle", lambda self: (settled.append(self.path.parent.name), plain(self)))
    for part in reversed(range(store.plan.parts)):
        with part_making.Keeper(store.place, store.corpus) as keeper:
            keeper.make(shared(), part)
    assert files(tmp_path / "a.zarr") == before
    assert settled.count(part_making.LEDGER) == store.plan.parts
    assert settled.count("blocks.1.resid_post") > store.plan.parts


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "another text": ({"texts": [*TEXTS[:-1], [1, 2]]}, "the texts differ"),
    "one text fewer": ({"texts": TEXTS[:-1]}, "the texts differ"),
    "another order": ({"texts": TEXTS[::-1]}, "the texts differ"),
    "another checkpoint": ({"names": "resid_mid"}, "the checkpoints differ"),
    "another dtype": ({"dtype": "float16"}, "the dtype of what is stored differs"),
    "other batches": ({"batch_tokens": 17}, "batch_tokens differs"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGED)
def test_a_store_of_something_else_is_not_gone_on_with(case: str, tmp_path: Path) -> None:
    changes, said = CHANGED[case]
    captured(tmp_path / "a.zarr")
    before = files(tmp_path / "a.zarr")
    with pytest.raises(pl.InputError, match=said) as caught:
        captured(tmp_path / "a.zarr", **changes)
    assert caught.value.code == "corpus-misfit"
    assert files(tmp_path / "a.zarr") == before
    other = support.glass(seed=1)
    with pytest.raises(pl.InputError, match="weights"):
        pl.corpus.capture(other, TEXTS, NAMES, tmp_path / "a.zarr", batch_tokens=16)


def test_a_machine_that_rounds_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = captured(tmp_path / "a.zarr")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(pl.InputError, match="number of threads") as caught:
            captured(tmp_path / "a.zarr")
        assert f"torch.set_num_threads({threads})" in caught.value.remedy
        with pytest.raises(pl.InputError, match="number of threads"):
            store.verify()
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(pl.InputError, match="torch's version differs"):
        captured(tmp_path / "a.zarr")


# What cannot be

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"texts": []}, "no-texts"),
    "a text that is empty": ({"texts": [[1, 2], []]}, "empty-text"),
    "one string": ({"texts": "a text"}, "texts-kind"),
    "a number": ({"texts": [[3.5]]}, "ids-dtype"), "a row that is in no list": ({"texts": [3, 5]}, "texts-kind"),
    "words without a tokenizer": ({"texts": ["a text"]}, "no-tokenizer"),
    "too long": ({"texts": [[1] * 100]}, "too-long"),
    "an id outside": ({"texts": [[10**6]]}, "id-out-of-range"),
    "no such checkpoint": ({"names": "resid_pots"}, "unknown-checkpoint"),
    "a pattern": ({"names": "attn.ckpt_pattern"}, "corpus-axes"),
    "a dtype": ({"dtype": "int8"}, "corpus-dtype"),
    "no name": ({"names": []}, "unknown-checkpoint"),
    "a table": ({"texts": {"text": ["a text"]}}, "texts-kind"),
    "no batch": ({"batch_tokens": 0}, "not-a-whole-number"),
    "long texts": ({"long_texts": "cut"}, "corpus-long-texts"),
    "options of a folder": ({"storage_options": {"anon": True}}, "corpus-options"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_captured(case: str, tmp_path: Path) -> None:
    changes, code = WRONG[case]
    with pytest.raises(pl.PellucidError) as caught:
        captured(tmp_path / "new" / "a.zarr", **changes)
    assert caught.value.code == code, caught.value
    assert not list(tmp_path.iterdir()), "nothing is left, nor a folder that was made"


def test_numbers_that_float16_cannot_hold(tmp_path: Path) -> None:
    model, name = support.glass(), "blocks.0.resid_pre"
    with torch.no_grad():
        model.embed.W_E.mul_(1e8)
    with pytest.raises(pl.InputError, match=rf"{name} holds .* which float16 cannot") as caught:
        pl.corpus.capture(model, TEXTS, name, tmp_path / "a.zarr", dtype="float16")
    assert caught.value.code == "corpus-dtype"
    assert pl.corpus.capture(model, TEXTS, name, tmp_path / "b.zarr", dtype="bfloat16").is_complete


def test_a_narrow_dtype_is_made_where_the_rows_are_and_a_wide_one_where_they_are_stored() -> None:
    fetched: list[torch.dtype] = []

    def fetch(rows: torch.Tensor) -> torch.Tensor:
        fetched.append(rows.dtype)
        return rows.as_subclass(torch.Tensor)

    rows = torch.ones(2, 3).as_subclass(type("Elsewhere", (torch.Tensor,), {"cpu": fetch}))
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    assert [part_making._stored("a", rows, dtype).dtype for dtype in dtypes] == dtypes
    assert fetched == [torch.float16, torch.bfloat16, torch.float32, torch.float32]


def test_long_texts_are_split_on_request(tmp_path: Path) -> None:
    model = shared()
    size = model.schema.sizes["n_ctx"]
    long = support.some_ids(1, 2 * size + 3)[0].tolist()
    store = captured(
        tmp_path / "a.zarr", [[5, 6], torch.tensor([long]), [7]], names="blocks.1.resid_post", long_texts="split"
    )
    pieces = [[5, 6], long[:size], long[size : 2 * size], long[2 * size :], [7]]
    check_rows(store, model, pieces, 1e-5)
    assert [text.number for text in store.texts] == [0, 1, 1, 1, 2]
    assert len({text.digest for text in store.texts}) == 3


def test_something_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("mine")
    (tmp_path / "c").write_text("mine")
    for path in (tmp_path / "a", tmp_path / "c"):
        for act in (captured, pl.corpus.open):
            with pytest.raises(pl.PellucidError) as caught:
                act(path)
            assert caught.value.code == "not-a-corpus"
    assert (tmp_path / "a" / "b.txt").read_text() == "mine"
    with pytest.raises(pl.NotFoundError):
        pl.corpus.open(tmp_path / "nothing")
    captured(tmp_path / "d.zarr")
    said = (tmp_path / "d.zarr" / "zarr.json").read_text()
    lies: list[Callable[[Any], Any]] = [
        lambda about: about.update(format="pellucid.corpus/99"),
        lambda about: about.pop("plan"),
        lambda about: about.update(plan=[]),
        lambda about: about.update(provenance=None),
        lambda about: about["plan"].pop("columns"),
        lambda about: about["plan"].update(rows=10**12),
        lambda about: about["plan"].update(rows="x"),
        lambda about: about["plan"].update(part_rows=0),
        lambda about: about["plan"].update(dtype="int7"),
        lambda about: about["plan"]["columns"][0].update(name="../../x"),
        lambda about: about["plan"]["columns"][0].update(shape=[10**9]),
    ]
    for lie in lies:
        about = json.loads(said)
        lie(about["attributes"]["pellucid.corpus"])
        (tmp_path / "d.zarr" / "zarr.json").write_text(json.dumps(about))
        with pytest.raises(pl.InputError, match="no store"):
            pl.corpus.open(tmp_path / "d.zarr")


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert captured(tmp_path).is_complete


def test_somebody_else_writes(tmp_path: Path) -> None:
    captured(tmp_path / "a.zarr")
    with atomic.alone(tmp_path / "a.zarr"), pytest.raises(pl.InputError, match="another process") as caught:
        captured(tmp_path / "a.zarr")
    assert caught.value.code == "corpus-busy"


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    """It is said of the whole before anything is written, and of what is left of it."""
    path, little = tmp_path / "a.zarr", lambda path: SimpleNamespace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", little)
        assert "; 1,000 bytes are free" in repr(pl.corpus.estimate(shared(), TEXTS, NAMES, path))
        with pytest.raises(pl.InputError, match="has 1,000 bytes free") as caught:
            captured(path)
        assert caught.value.code == "corpus-disk"
    assert not list(tmp_path.iterdir())
    before = files(captured(path).place.path)
    for part in (1, 2):
        (path / place.chunk_key(part_making.LEDGER, part, 3)).unlink()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", little)
        with pytest.raises(pl.InputError, match=r"2 of \d+ parts are left, .* has 1,000 bytes free") as caught:
            captured(path)
        assert "make the same call again" in caught.value.remedy
    captured(path)
    assert files(path) == before


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    whole, plain = tmp_path / "whole.zarr", os.replace
    captured(whole)

    def replace(made: Any, path: Any) -> None:
        if path == tmp_path / "a.zarr" / "blocks.1.resid_post" / "c.2.0":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(made, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(pl.InputError, match=r"no room left for .*c\.2\.0") as caught:
            captured(tmp_path / "a.zarr")
        assert caught.value.code == "corpus-disk"
        assert "make the same call again" in caught.value.remedy
    assert 0 < len(pl.corpus.open(tmp_path / "a.zarr").parts) < pl.corpus.open(whole).plan.parts
    captured(tmp_path / "a.zarr")
    assert files(tmp_path / "a.zarr") == files(whole)


@pytest.mark.parametrize("step", [(Path, "write_bytes"), (atomic, "temporary_folder"), (atomic, "_flush")])
def test_a_disk_that_is_full_as_a_store_is_begun(
    step: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(*step, fails)
    with pytest.raises(pl.InputError, match=r"no room left for .*a\.zarr\b") as caught:
        captured(tmp_path / "a.zarr")
    assert caught.value.code == "corpus-disk"
    assert not list(tmp_path.iterdir())


def test_rows_that_the_disk_lost_before_the_end_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk says once that it could not take what was written; all later flushes succeed."""
    path, flush, write, lost = tmp_path / "a.zarr", atomic._flush, part_making.PartWriter.write, list[Path]()

    def flush_but_once(file: Path) -> None:
        if not lost and file.suffix == ".part" and file.parent.parent == path:
            lost.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(file)

    def write_and_wait(writer: Any, rows: Any) -> None:
        write(writer, rows)
        futures.wait([writer._settling])

    with monkeypatch.context() as patched:
        patched.setattr(part_making, "SETTLED", 1)
        patched.setattr(atomic, "_flush", flush_but_once)
        patched.setattr(part_making.PartWriter, "write", write_and_wait)
        with pytest.raises(pl.PellucidError, match=os.strerror(errno.EIO)):
            captured(path)
    assert lost
    assert not pl.corpus.open(path).parts
    assert captured(path).is_complete


def test_unknown_names_and_parts_of_a_store(tmp_path: Path) -> None:
    store = captured(tmp_path / "a.zarr")
    with pytest.raises(pl.UnknownNameError, match=r"blocks\.0\.resid_pots"):
        store["blocks.0.resid_pots"]
    with pytest.raises(pl.InputError, match="part=9"):
        store.chunk("blocks.0.resid_post", 9)
    assert "blocks.0.resid_post" in store
    assert "tokens" not in store


# An object store


def test_objects(tmp_path: Path, small_parts: None) -> None:
    """The same values under an address; parts that are there are not made again."""
    import fsspec

    url = f"memory://{tmp_path.name}/a.zarr"
    store, folder = captured(url), captured(tmp_path / "a.zarr")
    for name in store:
        np.testing.assert_array_equal(store[name][:], folder[name][:])
    assert store.verify()
    assert pl.corpus.open(url).is_complete
    for shuffle in (True, False):
        a, b = ([batch.tokens for batch in one.loader(5, shuffle=shuffle)] for one in (store, folder))
        assert torch.equal(torch.cat(a), torch.cat(b))
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}/a.zarr/ledger/c.2.0.0")
    assert not store.is_complete
    assert captured(url).is_complete
    with pytest.raises(pl.NotFoundError):
        pl.corpus.open(f"memory://{tmp_path.name}/b.zarr")


def test_a_network_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(objects, "FIRST_WAIT", 0.0)
    plain, asked = MemoryFileSystem.pipe_file, dict[str, int]()

    def failing(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        asked[path] = asked.get(path, 0) + 1
        if asked[path] < 3:
            raise OSError("the network is gone")
        return plain(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", failing)
    assert captured(f"memory://{tmp_path.name}/c.zarr").verify()
    asked.clear()
    monkeypatch.setattr(objects, "TRIES", 2)
    with pytest.raises(pl.InputError, match="after 2 tries: OSError: the network is gone") as caught:
        captured(f"memory://{tmp_path.name}/d.zarr")
    assert caught.value.code == "corpus-network"


def test_only_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network, and a store that is busy; no answer that stays the same, and no fault."""
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.0)
    place = objects.Objects("memory://nothing", {})
    dropped = type("EndpointConnectionError", (type("ConnectionError", (Exception,), {}),), {"__module__": "botocore"})
    unlike = type("ParamValidationError", (Exception,), {"__module__": "botocore"})
    for error, tries, raised in (
        (OSError(errno.EBUSY, "slow down"), objects.TRIES, "corpus-network"),
        (TimeoutError(), objects.TRIES, "corpus-network"),
        (dropped("nobody there"), objects.TRIES, "corpus-network"),
        (OSError(errno.EINVAL, "no such location"), 1, "corpus-address"),
        (unlike("no name of a bucket"), 1, "corpus-address"),
        (PermissionError("not yours"), 1, "corpus-access"),
        (ValueError("a fault"), 1, None),
    ):
        asked = list[int]()

        def ask(error: Exception = error, asked: list[int] = asked) -> None:
            asked.append(1)
            raise error

        with pytest.raises(Exception) as caught:
            place.asked(ask)
        assert len(asked) == tries, error
        assert getattr(caught.value, "code", None) == raised


# Disks that refuse


def test_a_place_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a file")
    with pytest.raises(pl.WeightsError, match=r"a\.zarr: cannot be written") as caught:
        captured(tmp_path / "a.txt" / "a.zarr")
    assert caught.value.code == "path-not-writable"

    def refused(*given: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for owner, name in ((Path, "mkdir"), (atomic, "remove_leftovers")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refused)
            with pytest.raises(pl.WeightsError, match=r"a\.zarr: cannot be written: Permission denied") as caught:
                captured(tmp_path / "a.zarr")
            assert caught.value.code == "path-not-writable"
    assert captured(tmp_path / "a.zarr").is_complete


READS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "what it says of itself": (Path, "read_bytes", pl.corpus.open),
    "a folder that is listed": (os, "listdir", lambda path: pl.corpus.open(path.parent / "b.zarr")),
    "whether a part is there": (Path, "stat", lambda path: pl.corpus.open(path).is_complete),
    "its lock": (os, "open", captured),
    "a chunk": (Path, "open", lambda path: pl.corpus.open(path).chunk("blocks.0.resid_post", 0)),
}
"""What is read, by what, and who reads it."""


@pytest.mark.parametrize("what", READS)
def test_a_folder_that_cannot_be_read(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, read = READS[what]
    captured(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").mkdir()
    plain = getattr(owner, name)

    def refused(path: Any, *given: Any, **more: Any) -> Any:
        if (".zarr" in str(path) and not str(path).endswith((".json", "c.0"))) or name == "read_bytes":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *given, **more)

    monkeypatch.setattr(owner, name, refused)
    with pytest.raises(pl.WeightsError, match=r"\.zarr.*: cannot be read: Permission denied") as caught:
        read(tmp_path / "a.zarr")
    assert caught.value.code == "path-unreadable"
    monkeypatch.undo()
    read(tmp_path / "a.zarr") if what != "a folder that is listed" else captured(tmp_path / "b.zarr")


# Mutants


def _by_the_entry_alone(plain: Any) -> Any:
    def entry(at: Any, plan: Any, part: int) -> Any:
        there = at.get(place.chunk_key(part_making.LEDGER, part, 3)) is not None
        return dict.fromkeys(plan.names, b"") if there else None

    return entry


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "rows of the part before": (
        plan.CorpusPlan, "rows_of", lambda plain: lambda self, part: plain(self, max(part - 1, 0)),
        test_rows_are_those_of_runs,
    ),
    "pads are taken for text": (
        part_making.Corpus, "run",
        lambda plain: lambda self, model, batch, names: (
            (span, {name: value.roll(1, 0) for name, value in values.items()})
            for span, values in plain(self, model, batch, names)
        ),
        test_rows_are_those_of_runs,
    ),
    "a part without a chunk counts as whole": (
        store_module, "entry", _by_the_entry_alone,
        test_what_is_not_there_is_made,
    ),
    "values are not compared": (
        identity, "bits", lambda plain: lambda tensor: torch.zeros_like(plain(tensor)),
        test_a_changed_bit_is_found,
    ),
}  # fmt: skip


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_is_noticed(what: str, tmp_path: Path) -> None:
    owner, name, make, check = MUTANTS[what]
    must_be_noticed((owner, name, make(getattr(owner, name)), check), tmp_path)
