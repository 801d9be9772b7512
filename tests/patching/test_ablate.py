"""Ablation is a loop of whole runs with zeros, means or drawn values put in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from loops import METRIC, everywhere, exact, two

import pellucid as pl
import support
from pellucid.patching import baselines

REFERENCE = support.ragged_ids(7, 9, 8, seed=90)


@pytest.mark.parametrize("name", ["attn.ckpt_z", "attn.ckpt_q", "attn.ckpt_pattern"])
def test_zero_is_the_loop(name: str) -> None:
    model, (ids, _) = exact(), two()
    ablated = pl.patching.ablate(model, ids, name, over=("layer", "head"), how="zero", metric=METRIC)
    for layer in range(3):
        for head in range(4):
            edit = pl.Edit.zero(f"blocks.{layer}.{name}", heads=head)
            plain = METRIC(model.run(ids, edits=edit).detach(), model.tokenize(ids))
            assert float(ablated[layer, head]) == pytest.approx(float(plain.mean()), abs=1e-10)
    assert ablated.attrs["plain"] == pytest.approx(float(METRIC(model(ids).detach(), model.tokenize(ids)).mean()))


@pytest.mark.parametrize("reference", [REFERENCE, None], ids=["others", "themselves"])
def test_mean_is_the_loop(reference: list[list[int]] | None) -> None:
    """Over the texts and tokens of the reference, pads left out, as `Edit.mean_ablate` has it."""
    model = exact()
    ids = support.ragged_ids(6, 4)
    ablated = pl.patching.ablate(
        model, ids, "mlp.ckpt_post", over=("layer", "pos"), how="mean", reference=reference, metric=METRIC,
        per_text=True,
    )  # fmt: skip
    mean = pl.patching.ablate(
        model, ids, "mlp.ckpt_post", over=("layer", "pos"), how="mean", reference=reference, metric=METRIC
    )
    _, known = model.run_with_ckpts(ids if reference is None else reference)
    batch = model.tokenize(ids)
    for layer in range(3):
        for pos in range(6):
            real = batch.mask[:, pos]
            rows = real.nonzero().flatten().tolist()
            edit = pl.Edit.mean_ablate(f"blocks.{layer}.mlp.ckpt_post", known, pos=pos, rows=rows)
            loop = METRIC(model.run(batch, edits=edit).detach(), batch)
            given = torch.from_numpy(ablated.values[layer, pos])
            assert torch.allclose(given[real], loop[real], rtol=0, atol=1e-10)
            assert bool(given[~real].isnan().all())
            assert float(mean[layer, pos]) == pytest.approx(float(loop.mean()), abs=1e-10)


def test_the_mean_at_each_position_is_the_loop() -> None:
    """Over the texts that have the position, counted from each one's first token."""
    model, ids = exact(), support.ragged_ids(6, 4)
    about: dict[str, Any] = {"over": ("layer", "pos"), "how": "mean_by_pos", "metric": METRIC, "per_text": True}
    ablated = pl.patching.ablate(model, ids, "attn.ckpt_z", reference=REFERENCE, **about)
    _, known = model.run_with_ckpts(REFERENCE)
    batch, mask = model.tokenize(ids), known.batch.mask
    for layer in range(3):
        name = f"blocks.{layer}.attn.ckpt_z"
        for text, length in enumerate((6, 4)):
            for pos in range(length):
                column = batch.shape[1] - length + pos
                each = [known[name][row, mask[row]][pos] for row in range(len(REFERENCE)) if mask[row].sum() > pos]
                edit = pl.Edit.replace(name, torch.stack(each).mean(0), pos=column, rows=text)
                loop = METRIC(model.run(batch, edits=edit).detach(), batch)[text]
                assert float(ablated[layer, column, text]) == pytest.approx(float(loop), abs=1e-10)


@pytest.mark.parametrize(
    ("how", "reference", "runs"), [("zero", None, 2), ("zero", REFERENCE, 2), ("mean", None, 2), ("mean", REFERENCE, 3)]
)
def test_what_is_known_is_not_run_again(how: Any, reference: Any, runs: int) -> None:
    """The plain run, a reference that is read, and one batch that holds every ablation and all of them at once."""
    model, (ids, _) = exact(), two()
    rows: list[int] = []
    model.blocks[2].ln1.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    pl.patching.ablate(model, ids, "attn.ckpt_z", over=("layer", "head"), how=how, reference=reference, metric=METRIC)
    assert len(rows) == runs
    assert rows[-1] == 2 * (12 + 1)


def test_on_the_scale_of_an_ablation_one_is_the_plain_run() -> None:
    """And nothing is the run without all that was gone over."""
    model, (ids, _) = exact(), two()
    about: dict[str, Any] = {"how": "zero", "metric": METRIC, "per_text": True}
    ablated = pl.patching.ablate(model, ids, "attn.ckpt_z", over=("layer", "head"), heads=[0, 2], **about)
    edit = pl.Edit.zero("blocks.*.attn.ckpt_z", heads=[0, 2])
    gone = METRIC(model.run(ids, edits=edit).detach(), model.tokenize(ids)).numpy()
    np.testing.assert_allclose(ablated.attrs["ablated_by_text"], gone, rtol=0, atol=1e-10)
    plain = np.asarray(ablated.attrs["plain_by_text"])
    np.testing.assert_allclose(pl.patching.normalized(ablated).values, (ablated.values - gone) / (plain - gone))


def test_as_many_heads_as_were_ablated_are_drawn() -> None:
    model, (ids, _) = exact(), two()
    about: dict[str, Any] = {"over": (), "how": "zero", "metric": METRIC, "heads": [0, 2], "per_text": True}
    drawn = pl.patching.ablation_baseline(model, ids, "blocks.1.attn.ckpt_z", of="heads", draws=12, **about)
    assert drawn.dims == ("draw", "batch")
    pairs = itertools.combinations(itertools.product(range(3), range(4)), 2)
    edits = [[pl.Edit.zero(f"blocks.{layer}.attn.ckpt_z", heads=head) for layer, head in pair] for pair in pairs]
    possible = np.stack([METRIC(model.run(ids, edits=pair).detach(), model.tokenize(ids)).numpy() for pair in edits])
    for values in drawn.values:
        assert np.abs(possible - values).max(-1).min() < 1e-10
    assert len(np.unique(drawn.values.round(9), axis=0)) > 6


def test_resample_takes_each_position_from_a_text_that_is_drawn() -> None:
    model, (ids, _) = exact(), two()
    reference = support.some_ids(5, 6, seed=33)
    ablated = pl.patching.ablate(
        model, ids, "resid_mid", over=(), how="resample", reference=reference, metric=everywhere, per_text=True, seed=4
    )
    _, known = model.run_with_ckpts(reference)
    drawn: list[Any] = []

    again = pl.patching.ablate(model, ids, "resid_mid", over=(), how="resample", reference=reference, metric=everywhere,
                               per_text=True, seed=4)  # fmt: skip
    np.testing.assert_array_equal(ablated.values, again.values)
    other = pl.patching.ablate(model, ids, "resid_mid", over=(), how="resample", reference=reference, metric=everywhere,
                               per_text=True, seed=5)  # fmt: skip
    assert (other.values != ablated.values).any()
    handle = model.get_submodule("blocks.2.resid_mid").register_forward_hook(
        lambda module, given, out: drawn.append(out)
    )
    pl.patching.ablate(model, ids, "resid_mid", over=(), how="resample", reference=reference, metric=METRIC, seed=4)
    handle.remove()
    put, stored = drawn[-1], known["blocks.2.resid_mid"]
    sources = [(stored[:, pos] == put[text, pos]).all(-1).nonzero().flatten().tolist() for text in range(2)
               for pos in range(6)]  # fmt: skip
    assert all(len(rows) == 1 for rows in sources), "each value stands at this position in one text of the reference"
    assert len({rows[0] for rows in sources}) > 2, "and not all come from one text"


def test_heads_of_a_layer_at_a_position() -> None:
    model, (ids, _) = exact(), two()
    ablated = pl.patching.ablate(
        model, ids, "blocks.1.attn.ckpt_z", over=("head", "pos"), how="zero", metric=METRIC, pos=[0, -1]
    )
    assert ablated.dims == ("head", "pos")
    assert ablated["pos"].values.tolist() == [0, 5]
    edit = pl.Edit.zero("blocks.1.attn.ckpt_z", heads=2, pos=-1)
    loop = METRIC(model.run(ids, edits=edit).detach(), model.tokenize(ids)).mean()
    assert float(ablated.sel(head=2, pos=5)) == pytest.approx(float(loop), abs=1e-10)


def test_effect_sizes_are_cohens_d_of_paired_samples() -> None:
    model, ids = exact(), support.some_ids(6, 5)
    more: dict[str, Any] = {"over": ("layer",), "how": "zero", "metric": METRIC}
    ablated = pl.patching.ablate(model, ids, "mlp.ckpt_mlp_out", per_text=True, **more)
    effect = ablated.values - np.asarray(ablated.attrs["plain_by_text"])
    expected = effect.mean(-1) / effect.std(-1, ddof=1)
    np.testing.assert_allclose(pl.patching.effect_sizes(ablated).values, expected, rtol=1e-12)
    swept = pl.patching.sweep(model, ids, ids.flip(0), "resid_mid", over=("layer",), metric=METRIC, per_text=True,
                              direction="noise")  # fmt: skip
    effect = swept.values - np.asarray(swept.attrs["clean_by_text"])
    np.testing.assert_allclose(pl.patching.effect_sizes(swept).values, effect.mean(-1) / effect.std(-1, ddof=1))


def test_the_baseline_moves_as_far_in_other_directions() -> None:
    """Each drawn change is as long as the patch of a cell, lies in the same part, and repeats with its seed."""
    model, (clean, corrupted) = exact(), two(1)
    (_, values), (_, base) = (model.run_with_ckpts(ids) for ids in (clean, corrupted))
    seen: list[Any] = []
    more: dict[str, Any] = {"over": ("pos",), "metric": METRIC, "draws": 12}
    name = "blocks.1.resid_mid"
    handle = model.get_submodule("blocks.1.resid_mid").register_forward_hook(
        lambda module, given, out: seen.append(out)
    )
    drawn = pl.patching.baseline(model, clean, corrupted, name, **more)
    handle.remove()
    assert drawn.dims == ("draw",)
    assert drawn.attrs["clean"] != drawn.attrs["corrupted"]
    np.testing.assert_array_equal(drawn.values, pl.patching.baseline(model, clean, corrupted, name, **more).values)
    lengths = (values[name] - base[name])[0].norm(dim=-1)
    found: list[float] = []
    for row in (row for rows in seen[2:] for row in rows):  # after the two plain runs
        difference = row - base[name][0, -row.size(0) :]
        moved = difference.norm(dim=-1)
        at = int(moved.argmax())
        if moved[at] > 0:
            pos = 6 - row.size(0) + at
            assert float(moved[at]) == pytest.approx(float(lengths[pos]), rel=1e-9)
            cosine = torch.cosine_similarity(difference[at], (values[name] - base[name])[0, pos], dim=0)
            found.append(float(cosine))
    assert len(found) >= 12
    assert max(map(abs, found)) < 0.9, "another direction"


def test_random_changes_are_made_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their directions are not all in memory at once; Control-C while some are drawn keeps what was measured."""
    model, (clean, corrupted) = exact(), two(1)
    more: dict[str, Any] = {"over": ("pos",), "metric": METRIC, "draws": 7}
    whole = pl.patching.baseline(model, clean, corrupted, "resid_pre", **more)
    drawn, calls = baselines._Random._drawn, 0

    def interrupted(self: Any, puts: Any, random: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return drawn(self, puts, random)

    monkeypatch.setattr(baselines._Random, "_at_once", lambda self, changing: 2)
    by_two = pl.patching.baseline(model, clean, corrupted, "resid_pre", **more)
    np.testing.assert_allclose(by_two.values, whole.values, rtol=0, atol=1e-10)
    monkeypatch.setattr(baselines._Random, "_drawn", interrupted)
    with pytest.warns(pl.PellucidWarning, match="4 of 7 runs"):
        kept = pl.patching.baseline(model, clean, corrupted, "resid_pre", **more)
    np.testing.assert_allclose(kept.values[:4], whole.values[:4], rtol=0, atol=1e-10)
    assert np.isnan(kept.values[4:]).all()


def test_each_text_that_is_selected_keeps_its_own_scale() -> None:
    model, (clean, corrupted) = exact(), two(4)
    swept = pl.patching.sweep(model, clean, corrupted, "resid_mid", over=("layer",), metric=METRIC, per_text=True)
    shares = pl.patching.normalized(swept)
    for some in ([2, 0], [1], 3):
        found = pl.patching.normalized(swept.isel(batch=some))
        np.testing.assert_allclose(found.values, shares.isel(batch=some).values, rtol=1e-12)
    np.testing.assert_allclose(pl.patching.normalized(swept.transpose()).values, shares.values.T, rtol=1e-12)
    effect = (swept.values - np.asarray(swept.attrs["corrupted_by_text"]))[:, [3, 1]]
    sizes = pl.patching.effect_sizes(swept.isel(batch=[3, 1]))
    np.testing.assert_allclose(sizes.values, effect.mean(-1) / effect.std(-1, ddof=1), rtol=1e-9)


def test_texts_are_on_their_own_scale_or_refused() -> None:
    """Labels say which text it is while they are a sweep's; those of joined and of relabelled arrays do not."""
    attrs = {"clean": 3.0, "clean_by_text": [2.0, 4.0], "corrupted": 0.5, "corrupted_by_text": [0.0, 1.0]}
    coords = {"layer": range(2), "batch": range(2)}
    swept = xarray.DataArray([[1.0, 1.0], [2.0, 2.5]], dims=("layer", "batch"), coords=coords, attrs=attrs)
    shares = np.array([[0.5, 0.0], [1.0, 0.5]])
    np.testing.assert_array_equal(pl.patching.normalized(swept.drop_vars("batch")).values, shares)
    np.testing.assert_array_equal(pl.patching.normalized(swept.stack(cell=("layer", "batch"))).values, shares.ravel())
    read = swept.isel(batch=[0]).assign_attrs(clean_by_text=2.0, corrupted_by_text=0.0)  # as netCDF keeps lists of one
    np.testing.assert_array_equal(pl.patching.normalized(read).values, shares[:, :1])
    for other in (
        *(swept.assign_coords(batch=labels) for labels in (["Mary", "John"], [10, 11], [0.0, 1.0], [-1, 0])),
        swept.isel(batch=[0, 1, 0, 1]), swept.drop_vars("batch").isel(batch=[1, 1, 0]),
        xarray.concat([swept, swept], "batch").stack(cell=("layer", "batch")),
        swept.drop_vars("batch").isel(batch=[1]), swept.assign_attrs(clean_by_text=[2.0], corrupted_by_text=[0.0]),
    ):  # fmt: skip
        with pytest.raises(pl.InputError, match="no labels of a sweep of") as caught:
            pl.patching.normalized(other)
        assert "relabel, join or draw texts afterwards" in caught.value.remedy


def test_a_seed_is_looked_at_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = support.glass()
    monkeypatch.setattr(type(model), "forward", lambda *given, **more: pytest.fail("it ran"))
    with pytest.raises(pl.InputError, match=r"^ablate: seed='one'"):
        pl.patching.ablate(model, [[1, 2]], "resid_mid", over=(), how="zero", metric=METRIC, seed="one")


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_estimates_by_gradients_are_normalized_as_the_sweeps_that_they_estimate(direction: str) -> None:
    """They are what a change adds to the metric, where a sweep has the metric itself."""
    found = pl.attribution.gradient(
        support.glass(), [[1, 2, 3], [4, 5, 6]], [[1, 2, 7], [4, 5, 9]], "resid_post", over=("layer",), metric=METRIC,
        direction=direction, per_text=True,
    )  # fmt: skip
    clean, corrupted = (np.asarray(found.attrs[f"{side}_by_text"]) for side in ("clean", "corrupted"))
    unchanged = 1.0 if direction == "noise" else 0.0
    shares = pl.patching.normalized(found)
    np.testing.assert_allclose(shares.values, unchanged + found.values / (clean - corrupted), rtol=1e-9, atol=1e-12)
    sizes = found.values.mean(-1) / found.values.std(-1, ddof=1)
    np.testing.assert_allclose(pl.patching.effect_sizes(found).values, sizes, rtol=1e-6)
