"""Attribution to features, features taken out one by one, and an autoencoder's quality, against plain computations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import F, by_formula, make
from torch import Tensor

import pellucid as pl
import samples
import support
from noticed import must_be_noticed
from pellucid.sae import feature_effects, quality
from pellucid.sae.autoencoder import SparseAutoencoder

RAGGED = samples.ragged_ids(7, 4, 6)
METRIC = pl.metrics.logit_difference(5, 9)
AT = "blocks.1.resid_pre"
WIDTH = support.SIZES["n_embd"]


# Attribution


def check_sum(family: str, at: str, **fields: Any) -> None:
    """The features, the biases and the error sum to what the value adds, as `pl.attribution.direct` has it."""
    model = samples.shared(family, torch.float64)
    sizes = model.schema.sizes
    width = (
        sizes["head"] * sizes["d_head"]
        if at.endswith("_z")
        else sizes["d_mlp" if at.endswith("post") and "mlp" in at else "d_model"]
    )
    _, ckpts = model.run_with_ckpts(RAGGED)
    sae = make(at, width, dtype=torch.float64, **fields)
    target = (5, 9)
    parts = feature_effects.direct(sae, ckpts, target)
    place = sae.place(model.schema)
    block = int(place.split(".")[1])
    if place.endswith("_z"):
        whole = pl.attribution.direct(ckpts, target, by="head")
        expected = whole.where(whole.component.str.match(rf"blocks\.{block}\.attn\[\d+\]"), drop=True).sum(
            "component", skipna=False
        )
    elif place.endswith("ckpt_post"):
        whole = pl.attribution.direct(ckpts, target, by="neuron")
        expected = whole.where(whole.component.str.match(rf"blocks\.{block}\.mlp\[\d+\]"), drop=True).sum(
            "component", skipna=False
        )
    else:
        whole = pl.attribution.direct(ckpts, target)
        before = (whole.layer < block) & (whole.component != "ln_final.b")
        chosen = before if "resid_pre" in place else whole.component == f"blocks.{block}.mlp"
        expected = whole.where(chosen, drop=True).sum("component", skipna=False)
    np.testing.assert_allclose(parts.sum("component", skipna=False), expected, rtol=0, atol=1e-10)
    assert np.isnan(parts.values[:, 1, :3]).all()
    active = (np.nan_to_num(sae.features(ckpts).values) > 0).any((0, 1)).nonzero()[0].tolist()
    assert parts["index"].values[: len(active)].tolist() == active
    assert {"b_dec", "error"} <= set(parts.component.values[len(active) :].tolist())


PLACES = ["blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.1.mlp.ckpt_post"]


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("family", samples.SAMPLES)
def test_the_parts_sum_to_what_the_value_adds(family: str, at: str) -> None:
    check_sum(family, at)


@pytest.mark.parametrize(
    "fields",
    [
        {"normalization": "layer_norm"},
        {"centred": True},
        {"normalization": "constant_norm_rescale"},
        {"activation": "topk", "rescaled": True},
    ],
    ids=str,
)
def test_the_parts_sum_for_normalized_inputs(fields: dict[str, Any]) -> None:
    check_sum("gpt2", AT, **fields)


def check_units() -> None:
    model = samples.shared("gpt2", torch.float64)
    _, ckpts = model.run_with_ckpts(RAGGED)
    sae = make(AT, WIDTH, dtype=torch.float64, normalization="layer_norm")
    units, parts = (pl.sae.direct(sae, ckpts, 5, per_unit=per_unit) for per_unit in (True, False))
    found = sae.features(ckpts).sel(feature=units["index"].values).transpose("feature", "batch", "pos")
    assert not {"b_dec", "error", "mean"} & set(units.component.values.tolist())
    np.testing.assert_allclose(units.values * found.values, parts.values[: len(units)], rtol=0, atol=1e-11)
    # by hand: the decoder's direction, through the last norm with the run's own statistics, onto a column of W_U
    row, column, feature = 2, -1, int(units["index"][0])
    stream = ckpts["blocks.2.resid_post"][row, column]
    direction = sae.W_dec.detach()[feature] * ckpts[AT][row, column].std()
    scaled = (direction - direction.mean()) / (stream.var(unbiased=False) + model.config.layer_norm_epsilon).sqrt()
    by_hand = (scaled * model.parameter("ln_final.w").detach()) @ model.parameter("unembed.W_U").detach()[:, 5]
    assert abs(float(units[0, row, column]) - float(by_hand)) < 1e-12


def test_a_feature_adds_its_activation_times_what_a_unit_of_it_adds() -> None:
    check_units()


def test_features_of_one_head_sum_to_the_head() -> None:
    model = samples.shared("gpt2", torch.float64)
    _, ckpts = model.run_with_ckpts(RAGGED)
    parts = pl.sae.direct(make("blocks.1.attn.hook_z", 12, dtype=torch.float64, head=2), ckpts, 5)
    expected = pl.attribution.direct(ckpts, 5, by="head").sel(component="blocks.1.attn[2]")
    np.testing.assert_allclose(parts.sum("component", skipna=False), expected, rtol=0, atol=1e-10)


def test_what_features_add_to_a_later_query() -> None:
    model = samples.shared("gpt2", torch.float64)
    _, ckpts = model.run_with_ckpts(RAGGED)
    sae = make("blocks.0.hook_mlp_out", WIDTH, dtype=torch.float64)
    target = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    place = "blocks.2.attn.ckpt_q"
    parts = pl.sae.direct(sae, ckpts, target, at=place)
    expected = pl.attribution.direct(ckpts, target, at=place).sel(component="blocks.0.mlp")
    np.testing.assert_allclose(parts.sum("component", skipna=False), expected, rtol=0, atol=1e-10)


# Ablation


def check_ablation(at: str = AT, **fields: Any) -> None:
    """Each entry is the metric of a run of its own with `sae.zero`."""
    model = samples.shared("gpt2", torch.float64)
    sae = make(at, fields.pop("width", WIDTH), dtype=torch.float64, **fields)
    found = feature_effects.ablate(sae, model, RAGGED, metric=METRIC, per_text=True)
    batch = model.tokenize(RAGGED)
    assert found.dims == ("feature", "batch")
    assert len(found) > 10
    for feature in found.feature.values.tolist():
        expected = METRIC(model.run(batch, edits=sae.zero(feature)), batch).detach()
        torch.testing.assert_close(torch.from_numpy(found.sel(feature=feature).values), expected, rtol=0, atol=1e-10)
    plain = METRIC(model(batch), batch).detach()
    assert abs(found.attrs["plain"] - float(plain.mean())) < 1e-12
    assert float(abs(found - plain.numpy()).max()) > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        pytest.param({"normalization": "layer_norm"}, marks=pytest.mark.long),
        {"activation": "topk", "rescaled": True},
        pytest.param({"at": "blocks.2.hook_mlp_out"}, marks=pytest.mark.long),
        pytest.param({"at": "blocks.0.attn.hook_z"}, marks=pytest.mark.long),
        {"at": "blocks.0.attn.hook_z", "head": 1, "width": 12},
    ],
    ids=str,
)
def test_ablating_features_is_that_many_runs(fields: dict[str, Any]) -> None:
    check_ablation(**fields)


def test_chosen_features_and_those_that_are_never_active() -> None:
    model, sae = samples.shared("gpt2", torch.float64), make(AT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc[7] = -1e6
    found = pl.sae.ablate(sae, model, RAGGED, metric=METRIC, features=[7, 3, -1])
    assert found.feature.values.tolist() == [7, 3, F - 1]
    assert float(found[0]) == found.attrs["plain"]
    assert 7 not in pl.sae.ablate(sae, model, RAGGED, metric=METRIC).feature.values
    one_by_one = pl.sae.ablate(sae, model, RAGGED, metric=METRIC, features=[7, 3, -1], max_bytes=400_000)
    np.testing.assert_allclose(one_by_one, found, rtol=0, atol=1e-10)


def test_an_interrupted_ablation_keeps_what_was_measured() -> None:
    calls = 0

    def metric(logits: Tensor, batch: pl.Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return METRIC(logits, batch)

    sae = make(AT, WIDTH)
    with pytest.warns(pl.PellucidWarning, match="2 of [0-9]+ runs were measured") as seen:
        found = pl.sae.ablate(sae, samples.shared("gpt2"), RAGGED, metric=metric)
    assert int(found.notnull().sum()) == 2
    assert seen[0].filename == __file__


def test_patching_features_is_that_many_runs() -> None:
    """Each entry is the metric of a run of its own, whose feature is set to what it is in the other run."""
    model, other = samples.shared("gpt2", torch.float64), [row[::-1] for row in RAGGED]
    sae = make(AT, WIDTH, dtype=torch.float64)
    found = feature_effects.patch(sae, model, other, RAGGED, metric=METRIC, per_text=True)
    batch = model.tokenize(RAGGED)
    clean = sae.features(model.run_with_ckpts(other, names=AT)[1])
    assert len(found) > 10
    for feature in found.feature.values.tolist():
        edit = sae.set(feature, torch.from_numpy(clean.values[..., [feature]]).nan_to_num())
        expected = METRIC(model.run(batch, edits=edit), batch).detach()
        torch.testing.assert_close(torch.from_numpy(found.sel(feature=feature).values), expected, rtol=0, atol=1e-10)
    assert float(abs(found - found.attrs["corrupted_by_text"]).max()) > 1e-3


def test_what_patches_of_features_are_between() -> None:
    """The other direction changes the other run; texts of other lengths have no pairs of positions."""
    model, sae, other = samples.shared("gpt2"), make(AT, WIDTH), [row[::-1] for row in RAGGED]
    found, back = (
        pl.sae.patch(sae, model, other, RAGGED, metric=METRIC, features=[3, 5], direction=way)
        for way in ("denoise", "noise")
    )
    assert found.feature.values.tolist() == [3, 5]
    assert (found.attrs["unchanged"], back.attrs["unchanged"]) == (found.attrs["corrupted"], found.attrs["clean"])
    with pytest.raises(pl.ShapeError) as caught:
        pl.sae.patch(sae, model, [[5, 6], [3]], [[5, 6], [3, 4]], metric=METRIC)
    assert caught.value.code == "texts-of-unequal-length"


# Quality


def check_quality(at: str = AT, skip: int = 0, **fields: Any) -> None:
    """Every number of a report, from values and whole runs."""
    model = samples.shared("gpt2", torch.float64)
    heads = [1] if "head" in fields else None
    width = 12 if heads else WIDTH
    sae = make(at, width, dtype=torch.float64, **fields)
    with torch.no_grad():
        sae.b_enc[7] = -1e6
    report = quality.evaluate(sae, model, RAGGED, skip=skip, batch_size=2)
    rows = [model.run_with_ckpts([text], names=at)[1][at][0] for text in RAGGED]
    x = torch.cat([row[skip:] if heads is None else row[skip:, 1] for row in rows]).flatten(1)
    features, stands = by_formula(sae, x)
    assert report.tokens == len(x)
    assert report.texts == 3
    assert report.l0 == pytest.approx(float((features > 0).sum(1).double().mean()), abs=1e-12)
    assert list(report.dead) == (features > 0).any(0).logical_not().nonzero().flatten().tolist()
    assert 7 in report.dead
    explained = 1 - float((x - stands).square().sum() / (x - x.mean(0)).square().sum())
    assert report.explained_variance == pytest.approx(explained, abs=1e-10)

    def stand(part: Tensor) -> Tensor:
        return by_formula(sae, part.flatten(2) if heads else part)[1].reshape(part.shape)

    runs = {"plain": (), "reconstructed": pl.Edit.apply(at, stand, heads=heads), "zero": pl.Edit.zero(at, heads=heads)}
    losses = {}
    for run, edits in runs.items():
        each = [
            -model.run([text], edits=edits).log_softmax(-1)[0, range(len(text) - 1), text[1:]].mean() for text in RAGGED
        ]
        losses[run] = float(torch.stack(each).mean().detach())
        assert report.metric[run] == pytest.approx(losses[run], abs=1e-10)
    assert report.metric["with error"] == report.metric["plain"]
    recovered = (losses["zero"] - losses["reconstructed"]) / (losses["zero"] - losses["plain"])
    assert report.recovered == pytest.approx(recovered, abs=1e-8)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"skip": 2},
        {"activation": "topk"},
        {"centred": True, "normalization": "constant_norm_rescale"},
        {"at": "blocks.1.attn.hook_z", "head": 1},
    ],
    ids=str,
)
def test_a_report_has_the_numbers_of_the_definitions(fields: dict[str, Any]) -> None:
    check_quality(**fields)


def test_a_report_prints_and_takes_another_metric() -> None:
    sae, model = make(AT, WIDTH), samples.shared("gpt2")
    report = pl.sae.evaluate(sae, model, RAGGED, metric=METRIC)
    lines = repr(report).splitlines()
    assert lines[0] == "40 features on 3 texts, 17 tokens"
    assert repr(replace(report, features=1, texts=1, tokens=1)).startswith("1 feature on 1 text, 1 token\n")
    assert [line.split()[0] for line in lines[1:]] == ["L0", "dead", "explained", "logit", "recovered"]
    assert "with error" in lines[4]
    assert lines[4].endswith("(logits)")


# Mutants


def _without_scale(self: SparseAutoencoder, x: Tensor) -> Any:
    return REAL_FRAME(self, x)._replace(scale=None)


REAL_FRAME, REAL_SPLIT = SparseAutoencoder.frame, SparseAutoencoder.split


def _no_error(self: SparseAutoencoder, x: Tensor) -> Any:
    found = REAL_SPLIT(self, x)
    return found._replace(error=torch.zeros_like(found.error))


def test_parts_without_the_error_are_noticed() -> None:
    must_be_noticed((SparseAutoencoder, "split", _no_error, check_sum), "gpt2", AT)


def test_parts_without_the_scale_are_noticed() -> None:
    must_be_noticed((SparseAutoencoder, "frame", _without_scale, check_units))


def test_an_ablation_that_forgets_the_scale_is_noticed() -> None:
    must_be_noticed(
        (
            SparseAutoencoder,
            "moved",
            lambda self, x, difference, features: (difference @ self.W_dec[features]).reshape(x.shape),
            check_edit_scale,
        )
    )


def check_edit_scale() -> None:
    sae = make(AT, WIDTH, dtype=torch.float64, normalization="layer_norm")
    x = 3 * torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = sae.moved(x, torch.ones(2, 1, dtype=torch.float64), torch.tensor([4]))
    features = sae.encode(x)
    features[:, 4] += 1
    torch.testing.assert_close(x + moved, x + sae.decode(features, x) - sae.decode(sae.encode(x), x))


def test_an_ablation_of_other_features_is_noticed() -> None:
    real = SparseAutoencoder.moved
    must_be_noticed(
        (
            SparseAutoencoder,
            "moved",
            lambda self, x, d, features: real(self, x, d, (features + 1) % F),
            check_edit_scale,
        )
    )


def test_a_report_that_puts_zeros_for_the_reconstruction_is_noticed() -> None:
    must_be_noticed((SparseAutoencoder, "reconstruct", lambda self: pl.Edit.zero(self.config.at), check_quality))
