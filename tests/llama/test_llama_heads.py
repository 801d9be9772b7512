"""Keys and values with fewer heads than queries, wherever heads are counted: on each value's own axis."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import llamas
import pellucid as pl

ROWS = llamas.ragged_ids(3, 9)


def test_edits_count_heads_on_each_values_own_axis() -> None:
    model = llamas.glass()
    for name, heads in (("ckpt_rot_k", 1), ("ckpt_v", -1), ("ckpt_rot_q", 5), ("ckpt_z", 5)):
        edit = pl.Edit.zero(f"blocks.1.attn.{name}", heads=[heads])
        _, ckpts = model.run_with_ckpts(ROWS, names=f"blocks.1.attn.{name}", edits=[edit])
        value = ckpts[f"blocks.1.attn.{name}"]
        zeroed = value.eq(0).all(-1).all(0).all(0)
        assert zeroed.nonzero().flatten().tolist() == [heads % value.size(2)]
    for name in ("ckpt_k", "ckpt_rot_k", "ckpt_v"):
        with pytest.raises(pl.InputError, match="indices from 0 to 1"):
            model.run_with_ckpts(ROWS, edits=[pl.Edit.zero(f"blocks.1.attn.{name}", heads=[2])])


def test_an_edit_of_a_shared_head_reaches_the_queries_that_share_it() -> None:
    model = llamas.glass()
    edit = pl.Edit.scale("blocks.1.attn.ckpt_rot_k", 0.5, heads=[1])
    names = "blocks.1.attn.ckpt_pattern"
    plain, edited = (model.run_with_ckpts(ROWS, names=names, edits=e)[1][names] for e in ((), [edit]))
    changed = [head for head in range(6) if not torch.equal(plain[:, head], edited[:, head])]
    assert changed == [3, 4, 5]


def test_captured_heads() -> None:
    model = llamas.glass()
    _, both = model.run_with_ckpts(ROWS, names=["**.ckpt_rot_*"], heads=[0, 1])
    assert both["blocks.0.attn.ckpt_rot_q"].shape[2] == both["blocks.0.attn.ckpt_rot_k"].shape[2] == 2
    _, queries = model.run_with_ckpts(ROWS, names="**.ckpt_z", heads=[-1])
    assert queries.part.heads == [5]
    _, keys = model.run_with_ckpts(ROWS, names="**.ckpt_k", heads=[-1])
    assert keys.part.heads == [1]
    with pytest.raises(pl.InputError, match="2 than where there are 6"):
        model.run_with_ckpts(ROWS, names=["**.ckpt_rot_*"], heads=[-1])
    with pytest.raises(pl.InputError, match="indices from 0 to 1"):
        model.run_with_ckpts(ROWS, names=["**.ckpt_rot_*"], heads=[5])


def test_labelled_arrays_have_the_heads_of_their_value() -> None:
    model = llamas.glass()
    _, ckpts = model.run_with_ckpts(ROWS)
    data = ckpts.to_xarray()
    assert dict(data.sizes)["head"] == 6
    assert dict(data.sizes)["head_kv"] == 2
    assert data["attn.ckpt_z"].dims == ("layer", "batch", "pos", "head", "d_head")
    assert data["attn.ckpt_rot_k"].dims == ("layer", "batch", "pos", "head_kv", "d_head")
    assert data["attn.ckpt_k"].coords["head_kv"].values.tolist() == [0, 1]
    first = data["attn.ckpt_rot_k"].sel(layer=1, batch=1).values
    assert first.tolist() == ckpts["blocks.1.attn.ckpt_rot_k"][1].numpy().tolist()
    for name, count in (("attn.ckpt_v", 2), ("attn.ckpt_q", 6)):
        norms = pl.measure.norms(ckpts, name)
        assert norms.coords["head"].values.tolist() == list(range(count))
        assert pl.measure.values(ckpts, name).sizes["head"] == count


@pytest.mark.parametrize("heads", [None, [1]])
def test_captures_are_kept(heads: list[int] | None, tmp_path: Path) -> None:
    model = llamas.glass()
    _, ckpts = model.run_with_ckpts(ROWS, heads=heads)
    ckpts.save(tmp_path / "c.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "c.safetensors")
    assert list(again) == list(ckpts)
    assert all(torch.equal(again[name], value) for name, value in ckpts.items())
    assert again.schema.family == "llama"
    assert again.part.heads == heads


def test_estimates_are_what_is_captured_and_cached() -> None:
    model = llamas.glass()
    for heads in (None, [1]):
        _, ckpts = model.run_with_ckpts(ROWS, heads=heads)
        assert pl.estimate(model, ROWS, heads=heads).nbytes == ckpts.nbytes
    cache = pl.KeyValueCache(model.config, 2, 7)
    assert cache.nbytes == pl.KeyValueCache.bytes_needed(model.config, 2, 7) == 2 * 7 * (3 * 2 * 2 * 10 * 4 + 1)


def test_sweeps_go_over_the_heads_that_there_are() -> None:
    model, ids = llamas.glass(), [llamas.some_ids(1, 5, seed) for seed in (0, 1)]
    for name, count in (("attn.ckpt_rot_k", 2), ("attn.ckpt_rot_q", 6)):
        sweep = pl.patching.sweep(model, *ids, name, over=("layer", "head"), metric=pl.metrics.logit(5))
        assert dict(sweep.sizes) == {"layer": 3, "head": count}
        edit = pl.Edit.patch(f"blocks.1.{name}", model.run_with_ckpts(ids[0])[1], heads=[1])
        by_hand = model.run(ids[1], edits=[edit]).detach()[0, -1, 5]
        assert float(sweep.sel(layer=1, head=1)) == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("by", ["component", "head", "neuron", "block"])
def test_parts_of_a_logit_add_up(by: str) -> None:
    model = llamas.glass(attention_bias=True)
    logits, ckpts = model.run_with_ckpts(ROWS)
    parts = pl.attribution.direct(ckpts, 7, by=by)
    mask = ckpts.batch.mask
    total, given = torch.tensor(parts.sum(parts.dims[0]).values)[mask], logits.detach()[mask][:, 7]
    assert torch.allclose(total.double(), given.double(), atol=1e-4)
    assert float(torch.tensor(parts.values)[:, mask].abs().max()) > 0.5


def test_a_cache_of_another_number_of_heads_is_refused() -> None:
    model = llamas.glass()
    with pytest.raises(pl.InputError, match=r"6 heads of 10.*expected.*2 heads of 10"):
        model(ROWS, cache=pl.KeyValueCache(model.config.replace(num_key_value_heads=6), 2))
