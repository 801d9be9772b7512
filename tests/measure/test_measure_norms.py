"""`values` and `norms`: the numbers, their labels and units, pads, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import measure_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
import support
from pellucid.measure.labelled import text_hash
from pellucid.run.origin import Known
from pellucid.schema import ATTENTION

TEXTS = cases.texts_of([3, 7, 5])
BLOCK = support.schema(1).in_blocks
KINDS = [*BLOCK, *support.schema(1).around]
SIDES = ["left", "right"]


def full_names(kind: str) -> list[str]:
    return [f"blocks.{i}.{kind}" for i in range(cases.LAYERS)] if kind in BLOCK else [kind]


def expected_norms(kind: str) -> list[list[Any]]:
    """Per block, per text: lengths over the last axis, [P, ...], with loops."""
    blocks = []
    for name in full_names(kind):
        rows = []
        for text in TEXTS:
            value = cases.made_up(name, text).double().numpy()
            if support.schema(cases.LAYERS).axes[name] == ATTENTION:
                seen = np.tril(np.ones(value.shape[-2:]))
                value = np.where(seen > 0, value, 0.0)
            rows.append(np.sqrt((value**2).sum(-1)))
        blocks.append(rows)
    return blocks


@pytest.mark.parametrize(
    ("kind", "side"),
    support.few_of(itertools.product(KINDS, SIDES), *((kind, "left") for kind in KINDS), ("resid_post", "right")),
)
def test_norms_are_lengths_of_every_kind(kind: str, side: str) -> None:
    """To 1e-14, a few times the rounding of a sum of ten squares in float64."""
    norms = pl.measure.norms(cases.run_of(TEXTS, side=side), kind)
    blocks = [norms] if kind not in BLOCK else [norms.isel(layer=i) for i in range(cases.LAYERS)]
    assert ("layer" in norms.dims) == (kind in BLOCK)
    for block, rows in zip(blocks, expected_norms(kind), strict=True):
        for text, row in enumerate(rows):
            real = block.isel(batch=text)
            time = "query" if "query" in real.dims else "pos"
            present = real.isel({time: real[f"{'query_' if time == 'query' else ''}position"].values >= 0})
            assert np.allclose(present.values, row, rtol=1e-14, atol=0)
            assert np.isnan(real.values).sum() == real.size - present.size, "pads, and only pads, are NaN"


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_captured_ones(kind: str) -> None:
    values = pl.measure.values(cases.run_of(TEXTS, side="right"), kind)
    axes = support.schema(cases.LAYERS).axes[full_names(kind)[0]]
    assert values.dims == (("layer", *axes) if kind in BLOCK else axes)
    assert values.dtype == np.float64
    for number, name in enumerate(full_names(kind)):
        block = values.isel(layer=number) if kind in BLOCK else values
        for row, text in enumerate(TEXTS):
            raw, size = cases.made_up(name, text).double().numpy(), len(text)
            if axes == ATTENTION:
                inside = block.values[row, :, :size, :size]
                seen = np.tril(np.ones((size, size), dtype=bool))
                assert np.array_equal(inside[:, seen], raw[:, seen])
                assert np.isnan(inside[:, ~seen]).all(), "a key that the query cannot see is missing"
                assert np.isnan(block.values[row, :, size:]).all()
                assert np.isnan(block.values[row, :, :, size:]).all()
            else:
                assert np.array_equal(block.values[row, :size], raw)
                assert np.isnan(block.values[row, size:]).all()


def test_logarithm_is_natural() -> None:
    run = cases.run_of(TEXTS)
    plain, log = (pl.measure.norms(run, "resid_post", log=flag) for flag in (False, True))
    assert np.array_equal(np.log(plain.values), log.values, equal_nan=True)
    assert (plain.name, log.name) == ("norm", "log_norm")
    assert (plain.units, log.units) == ("residual-stream units", "log of residual-stream units")
    assert list(log.to_dataframe().columns) == ["token", "position", "log_norm"]


def test_units_and_meanings_are_those_of_the_schema() -> None:
    run = cases.run_of(TEXTS)
    arrays = run.to_xarray()
    points = {**run.schema.around, **run.schema.in_blocks}
    assert set(arrays) == set(points)
    for kind, point in points.items():
        assert (arrays[kind].units, arrays[kind].meaning) == (point.unit, point.meaning)
        assert pl.measure.values(run, kind).units == (point.unit or f"units of {kind.rsplit('_', 1)[-1]}")
    assert pl.measure.values(run, "attn.ckpt_q").units == "units of q"
    assert pl.measure.values(run, "attn.ckpt_scores").units == "nats"


def test_labels() -> None:
    norms = pl.measure.norms(cases.run_of(TEXTS), "attn.ckpt_z")
    assert norms.dims == ("layer", "batch", "pos", "head")
    assert norms.layer.values.tolist() == [0, 1, 2]
    assert norms["head"].values.tolist() == [0, 1]
    assert norms.pos.values.tolist() == list(range(7))
    assert norms.token.values[0].tolist() == ["", "", "", "", *map(str, TEXTS[0])]
    assert norms.position.values[0].tolist() == [-1, -1, -1, -1, 0, 1, 2]
    scores = pl.measure.norms(cases.run_of(TEXTS), "attn.ckpt_scores")
    assert scores.dims == ("layer", "batch", "head", "query")
    assert scores.query_position.values[1].tolist() == list(range(7))
    assert pl.measure.values(cases.run_of(TEXTS), "attn.ckpt_pattern").key_token.values[1].tolist() == [
        str(i) for i in TEXTS[1]
    ]


def test_a_token_that_is_a_nul_is_not_taken_for_a_pad() -> None:
    run = cases.run_of([[5], [6, 7]])
    run.batch = pl.Batch(run.batch.ids, run.batch.mask, run.batch.positions, labels=[["\0"], ["a\0", "b"]])
    norms = pl.measure.norms(run, "resid_post")
    assert norms.token.values.tolist() == [["", "\0"], ["a\0", "b"]]
    assert pl.measure.aligned(norms).token.values.tolist() == [["\0", ""], ["a\0", "b"]]
    assert run.to_xarray().token.values.tolist() == [["", "\0"], ["a\0", "b"]]


def test_one_block_by_its_full_name_and_other_names_for_the_same() -> None:
    run = cases.run_of(TEXTS)
    every = pl.measure.norms(run, "resid_post")
    one = pl.measure.norms(run, "blocks.2.resid_post")
    assert one.dims == ("batch", "pos")
    assert one.layer == 2
    assert one.checkpoint == "blocks.2.resid_post"
    assert one.equals(every.sel(layer=2))
    for name in ("blocks.*.resid_post", "hook_resid_post", "blocks.*.hook_resid_post", ("resid_post", "*")):
        assert pl.measure.norms(run, name).identical(every)
    assert pl.measure.norms(run, "hook_embed").identical(pl.measure.norms(run, "ckpt_embed"))


def test_some_blocks_only() -> None:
    run = cases.run_of(TEXTS, ["blocks.0.resid_post", "blocks.2.resid_post"])
    assert pl.measure.norms(run, "resid_post").layer.values.tolist() == [0, 2]


def test_selected_columns_and_heads(glass: pl.CkptedTransformer) -> None:
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    _, whole = glass.run_with_ckpts(texts, names="**.ckpt_z")
    for heads, labels in (([1, 3], [1, 3]), (2, [2]), (slice(1, 3), [1, 2]), (slice(None, 2), [0, 1])):
        _, part = glass.run_with_ckpts(texts, names="**.ckpt_z", pos=[-1, 3], heads=heads)
        norms = pl.measure.norms(part, "attn.ckpt_z")
        assert norms["head"].values.tolist() == labels
        assert norms.pos.values.tolist() == [4, 3]
        assert norms.position.values.tolist() == [[2, 1], [4, 3]]
        assert norms.equals(pl.measure.norms(whole, "attn.ckpt_z").sel(pos=[4, 3], head=labels))
    _, part = glass.run_with_ckpts(texts, names="**.ckpt_z", heads=[-1])
    assert pl.measure.norms(part, "attn.ckpt_z")["head"].values.tolist() == [glass.config.n_head - 1]


def test_half_precision_is_measured_in_float64() -> None:
    run = cases.run_of(TEXTS, "blocks.*.resid_post", dtype=torch.bfloat16)
    norms = pl.measure.norms(run, "resid_post")
    raw = run["blocks.1.resid_post"][1].double().numpy()
    assert np.allclose(norms.sel(layer=1, batch=1), np.linalg.norm(raw, axis=-1), rtol=1e-15)


def test_provenance() -> None:
    run = cases.run_of(TEXTS)
    run._origin = Known({"model": "made up", "weights": "abc"})
    attrs = pl.measure.norms(run, "resid_post").attrs
    assert attrs == {
        "checkpoint": "resid_post", "text": text_hash(run.batch), "pellucid": pl.__version__, "model": "made up",
        "weights": "abc", "units": "residual-stream units",
    }  # fmt: skip


def test_the_hash_is_that_of_the_texts() -> None:
    left, right = (text_hash(cases.batch_of(TEXTS, side)) for side in SIDES)
    assert left == right
    assert text_hash(cases.batch_of([[1, 2], [3]])) != text_hash(cases.batch_of([[1], [2, 3]]))
    assert text_hash(cases.batch_of([[1, 2]])) != text_hash(cases.batch_of([[1, 3]]))


def test_labelled_arrays_go_to_disk_and_back() -> None:
    norms = pl.measure.norms(cases.run_of(TEXTS), "resid_post")
    again = type(norms).from_dict(norms.to_dict())
    assert again.identical(norms)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_side_of_the_pads_changes_nothing(lengths: list[int], seed: int) -> None:
    texts = cases.texts_of(lengths, seed)
    left, right = (
        pl.measure.aligned(pl.measure.norms(cases.run_of(texts, "blocks.*.resid_post", side=side), "resid_post"))
        for side in SIDES
    )
    assert left.identical(right)


def test_aligned_puts_first_tokens_first_and_once_is_enough() -> None:
    norms = pl.measure.norms(cases.run_of(TEXTS), "attn.ckpt_scores")
    moved = pl.measure.aligned(norms, "query")
    assert moved.dims == norms.dims
    for row, text in enumerate(TEXTS):
        kept = norms.isel(batch=row).values[..., 7 - len(text) :]
        assert np.array_equal(moved.isel(batch=row).values[..., : len(text)], kept)
        assert np.isnan(moved.isel(batch=row).values[..., len(text) :]).all()
    assert pl.measure.aligned(moved, "query").identical(moved)
    with pytest.raises(pl.InputError) as caught:
        pl.measure.aligned(norms.drop_vars("query_position"), "query")
    assert caught.value.code == "no-positions"


BAD = [
    ("resid_pst", "unknown-checkpoint"),
    ("blocks.9.resid_post", "unknown-checkpoint"),
    (7, "unknown-checkpoint"),
    ("blocks.*.resid_*", "several-kinds"),
    ("**.resid_post", "several-kinds"),
    ("blocks.*.ln1.hook_scale", "alias-refused"),
    ("ckpt_embed", "not-captured"),
    ("mlp.ckpt_pre", "not-captured"),
    ("blocks.1.mlp.ckpt_pre", "not-captured"),
]


@pytest.mark.parametrize(("name", "code"), BAD)
def test_names_that_cannot_be_measured(name: Any, code: str) -> None:
    run = cases.run_of(TEXTS, "blocks.*.resid_post")
    with pytest.raises(pl.PellucidError) as caught:
        pl.measure.norms(run, name)
    assert caught.value.code == code


def test_what_is_no_run() -> None:
    with pytest.raises(pl.InputError) as caught:
        pl.measure.norms({"resid_post": torch.zeros(2)}, "resid_post")  # type: ignore[arg-type]
    assert caught.value.code == "not-ckpts"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["resid_post", "attn.ckpt_z", "attn.ckpt_pattern"])
def test_a_value_that_is_not_finite_is_named(kind: str, value: float) -> None:
    run = cases.run_of(TEXTS, f"blocks.*.{kind}")
    run[f"blocks.1.{kind}"][1, 1, 1] = value
    for measure in (pl.measure.norms, pl.measure.values):
        with pytest.raises(pl.InputError, match=f"blocks.1.{kind}: .* batch 1") as caught:
            measure(run, kind)
        assert caught.value.code == "not-finite"


def test_a_pad_may_hold_anything() -> None:
    run = cases.run_of(TEXTS)
    before = pl.measure.norms(run, "resid_post"), pl.measure.values(run, "attn.ckpt_pattern")
    run["blocks.0.resid_post"][0, :4] = torch.nan
    run["blocks.0.attn.ckpt_pattern"][0, :, :4] = torch.inf
    run["blocks.0.attn.ckpt_pattern"][0, :, :, :4] = torch.nan
    after = pl.measure.norms(run, "resid_post"), pl.measure.values(run, "attn.ckpt_pattern")
    assert all(a.identical(b) for a, b in zip(before, after, strict=True))


def test_a_vector_of_zeros_has_no_logarithm() -> None:
    run = cases.run_of(TEXTS)
    run["blocks.2.resid_post"][1, 4] = 0.0
    assert pl.measure.norms(run, "resid_post").sel(layer=2, batch=1, pos=4) == 0
    with pytest.raises(pl.InputError, match="layer 2, batch 1, pos 4") as caught:
        pl.measure.norms(run, "resid_post", log=True)
    assert caught.value.code == "log-of-zero"


def test_one_token() -> None:
    norms = pl.measure.norms(cases.run_of([[5]]), "attn.ckpt_pattern")
    assert norms.values.ravel().tolist() == [1.0] * norms.size
