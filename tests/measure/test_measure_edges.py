"""What measures make of padded, joined, extreme and wrong input; each check also fails for something broken."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.measure import groups
from pellucid.run import origin

M = pl.measure
# the package's attributes of these names are functions
streams, regressions = (importlib.import_module(f"pellucid.measure.{name}") for name in ("stream", "autoregression"))
MODEL = support.glass()
LONG, SHORT = support.ragged_ids(11, 3)


def norms(inputs: Any, **options: Any) -> Any:
    return M.norms(
        MODEL.run_with_ckpts(MODEL.tokenize(inputs, **options), names="blocks.*.resid_post")[1], "resid_post"
    )


def test_kept_positions_count_from_each_text_whoever_else_is_there() -> None:
    both = norms([LONG, SHORT])
    counts = M.moments(both.isel(batch=[1]), over=["batch"])["count"].isel(layer=0)
    assert counts.values.tolist() == [1] * len(SHORT)
    held = torch.tensor([[0, 0, 1, 1, 1]])
    padded = norms(support.some_ids(1, 5), mask=held)
    assert M.moments(padded, over=["batch"])["count"].isel(layer=0).values.tolist() == [1, 1, 1]
    part = M.norms(MODEL.run_with_ckpts([LONG], names="blocks.*.resid_post", pos=[3, 4])[1], "resid_post")
    assert M.moments(part, over=["batch"]).pos.values.tolist() == [3, 4]


def test_a_gap_of_pads_is_refused_and_closed() -> None:
    held = torch.ones(1, 20, dtype=torch.bool)
    held[0, 7] = False
    gapped = norms(support.some_ids(1, 20), mask=held)
    with pytest.raises(pl.InputError, match=r"position 7 \(column 8\) follows position 6 \(column 6\)") as caught:
        M.autoregression(gapped, lags=2)
    assert caught.value.code == "positions-not-adjacent"
    assert M.autoregression(M.aligned(gapped), lags=2).nobs == 19 - 2


def test_runs_of_unequal_length_put_together_are_those_of_one_batch() -> None:
    joined: Any = xarray.concat([norms([LONG]), norms([SHORT])], "batch", join="outer")
    whole = norms([LONG, SHORT], padding_side="right")
    assert np.allclose(M.aligned(joined), M.aligned(whole), rtol=1e-5, equal_nan=True)
    assert M.aligned(joined).position.values.tolist() == M.aligned(whole).position.values.tolist()
    assert (
        M.moments(joined, over="batch")["count"].values.tolist()
        == M.moments(whole, over="batch")["count"].values.tolist()
    )
    assert M.autoregression(joined, lags=1).nobs == M.autoregression(whole, lags=1).nobs


def test_infinite_values_of_an_array_are_refused() -> None:
    array = norms([LONG])
    array.values[1, 0, 3] = np.inf
    for measure in (M.moments, M.distribution):
        with pytest.raises(pl.InputError, match="inf at layer 1, batch 0, pos 3") as caught:
            measure(array)
        assert caught.value.code == "not-finite"
    array.values[1, 0, 3] = np.nan
    assert M.moments(array)["count"].values.tolist() == [11, 10, 11]


def test_robust_errors_do_not_depend_on_the_unit() -> None:
    series = xarray.DataArray(np.random.default_rng(0).normal(size=(2, 1, 60)), dims=("layer", "batch", "pos"))
    plain = M.autoregression(series, lags=1).robust(2).bse.to_numpy()
    for unit in (1e80, 1e-90):
        scaled = M.autoregression(series * unit, lags=1).robust(2).bse.to_numpy()
        assert np.allclose(scaled / [unit, 1.0], plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("unit", [1e-160, 1e160])
def test_values_that_float64_cannot_square_are_marked(unit: float) -> None:
    series = xarray.DataArray(np.random.default_rng(0).normal(size=(2, 1, 60)), dims=("layer", "batch", "pos"))
    series.values[1] *= unit
    fit = M.autoregression(series, lags=1)
    assert fit.problems.tolist() == ["", f"its values are too {'small' if unit < 1 else 'large'} to square"]
    assert np.array_equal(fit.params.loc[0], M.autoregression(series[:1], lags=1).params.loc[0])
    assert fit.bse.loc[1].isna().all()


def test_an_axis_without_entries_is_an_error_unless_it_is_summed_over() -> None:
    array = norms([LONG, SHORT])
    for measure in (
        M.moments,
        M.distribution,
        M.aligned,
        lambda each: M.autoregression(each, 1),
        lambda each: M.select_lags(each, 1),
    ):
        with pytest.raises(pl.InputError, match="the axis 'layer' has no entry") as caught:
            measure(array.isel(layer=[]))
        assert caught.value.code == "empty-axis"
    for measure in (M.moments, M.distribution):
        assert measure(array.isel(pos=[]))["count"].values.tolist() == [0, 0, 0]
    assert M.moments(array.isel(layer=[0]))["count"].values.tolist() == [len(LONG) + len(SHORT)]


def test_streams_of_other_numerics_neither_resume_nor_merge(tmp_path: Path) -> None:
    def interrupted(count: int) -> Any:
        for number, text in enumerate([LONG, SHORT, LONG[:5]]):
            if number == count:
                raise KeyError
            yield text

    saving = M.Saving(tmp_path / "stream", every_texts=1)
    with pytest.raises(KeyError):
        M.stream(MODEL, interrupted(2), [M.Moments("resid_post")], batch_size=1, checkpoint=saving)
    fast = support.glass(numerics="fast")
    with pytest.raises(pl.InputError, match="numerics 'exact', expected 'fast'"):
        M.stream(fast, interrupted(9), [M.Moments("resid_post")], batch_size=1, checkpoint=saving)
    ours, theirs = (M.stream(model, [LONG], [M.Moments("resid_post")]) for model in (MODEL, fast))
    with pytest.raises(pl.InputError) as caught:
        ours.merge(theirs)
    assert caught.value.code == "merge-misfit"


CKPTS = MODEL.run_with_ckpts([LONG, SHORT], names=["blocks.*.resid_post", "blocks.*.attn.ckpt_z"])[1]
VALUE = CKPTS["blocks.0.resid_post"]
LIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "other axes": ({"blocks.0.resid_post": torch.zeros(3, 3)}, {}),
    "another width": ({"blocks.0.resid_post": VALUE[..., :-1].contiguous()}, {}),
    "whole numbers": ({"blocks.0.resid_post": VALUE.int()}, {}),
    "a mask of numbers": ({"batch.mask": CKPTS.batch.mask.float()}, {}),
    "positions of one text": ({"batch.positions": CKPTS.batch.positions[:1].contiguous()}, {}),
    "ids that are no ids": ({"batch.ids": CKPTS.batch.ids.float()}, {}),
    "other strings": ({}, {"strings": [["a"], ["b"]]}),
    "one head of four": ({}, {"heads": [0]}),
    "no provenance": ({}, {"provenance": 3}),
    "one block": ({}, {"sizes": {"layer": 1}}),
    "another family": ({}, {"family": "gpt1"}),
    "no number of blocks": ({}, {"sizes": {"head": 2}}),
    "a column that is not there": ({}, {"pos": [99]}),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(lie: str, tmp_path: Path) -> None:
    path = tmp_path / "ckpts.safetensors"
    CKPTS.save(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["pellucid.ckpts"])
    tensors, said = LIES[lie]
    save_file({**load_file(path), **tensors}, path, metadata={"pellucid.ckpts": json.dumps({**about, **said})})
    with pytest.raises(pl.InputError):
        pl.ActivationCkpts.load(path)


ARRAY = norms([LONG, SHORT])
FIT = M.autoregression(ARRAY, lags=1)
WRONG: dict[str, Callable[[], Any]] = {
    "a regressor without a name": lambda: M.autoregression(ARRAY, regressors=ARRAY.position),
    "a covariance of numbers": lambda: M.autoregression(ARRAY, cov=np.ones(3)),
    "a level in words": lambda: FIT.interval("0.95"),
    "methods in a list": lambda: FIT.corrected(["holm"]),
    "degrees of freedom below none": lambda: FIT.ljung_box(3, model_df=-5),
    "one quantile": lambda: M.distribution(ARRAY, quantiles=0.5),
    "widths in a list": lambda: M.distribution(ARRAY, bandwidth=[1]),
    "a threshold in words": lambda: M.outliers(CKPTS, "resid_post", threshold="a"),
    "a threshold that is none": lambda: M.outliers(CKPTS, "resid_post", threshold=float("nan")),
    "an axis to average over by number": lambda: M.outliers(CKPTS, "resid_post", over=5),
    "one edge of bins": lambda: M.distribution(ARRAY, bins=[5]),
    "rules in an array": lambda: M.distribution(ARRAY, bins=np.array([])),
    "an axis in a tensor": lambda: M.moments(ARRAY, over=torch.tensor(3)),
    "no run": lambda: M.previous_token(None),
    "an axis by number": lambda: M.moments(ARRAY, over=3),
    "an error in words": lambda: M.Quantiles("resid_post", error="a"),
    "a run to align": lambda: M.aligned(CKPTS),
    "half an id": lambda: M.induction(MODEL, length=5.5),
    "a negative seed": lambda: M.induction(MODEL, length=5, seed=-1),
    "nothing to merge": lambda: M.Moments("resid_post").merge(None),
    "no stream to merge": lambda: M.stream(MODEL, [LONG], [M.Moments("resid_post")]).merge(None),
    "a file that is a number": lambda: M.stream(MODEL, [LONG], [M.Moments("resid_post")], checkpoint=5),
    "texts in words": lambda: M.Saving("a", every_texts="a"),
    "a name in a list": lambda: CKPTS[["resid_post"]],
    "a slice of words": lambda: MODEL.run_with_ckpts([LONG], pos=slice("a", None)),
    "a step of 0": lambda: MODEL.generate(
        [LONG], max_new_tokens=1, edits=pl.Edit.zero("ckpt_embed", pos=slice(0, 5, 0))
    ),
    "more than numbers hold": lambda: MODEL.run_with_ckpts([LONG], edits=pl.Edit.replace("ckpt_embed", 10**400)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments_are_errors_of_ours(what: str) -> None:
    with pytest.raises(pl.PellucidError):
        WRONG[what]()


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[Path], None]]] = {
    "rows are compared with each other only": (
        groups, "_begins_apart", lambda array, axis: bool(array.isnull().any() and array.sizes["batch"] > 1),
        lambda _: test_kept_positions_count_from_each_text_whoever_else_is_there(),
    ),
    "gaps are passed over": (regressions, "require_adjacent", lambda position, what: None,
                             lambda _: test_a_gap_of_pads_is_refused_and_closed()),
    "infinity is a number": (np, "isinf", lambda values: np.zeros(np.shape(values), bool),
                             lambda _: test_infinite_values_of_an_array_are_refused()),
    "scores are squared as they are": (np, "abs", np.zeros_like,
                                       lambda _: test_robust_errors_do_not_depend_on_the_unit()),
    "numerics do not matter": (streams, "execution_of", lambda model: {},
                               test_streams_of_other_numerics_neither_resume_nor_merge),
    "missing positions are positions": (
        groups,
        "positions_of",
        lambda position, *dims: position.transpose(*dims).values,
        lambda _: test_runs_of_unequal_length_put_together_are_those_of_one_batch(),
    ),
    "files are believed": (origin.Captures, "require_one_run", lambda self: None,
                           lambda folder: test_files_that_lie("other axes", folder)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str, tmp_path: Path) -> None:
    must_be_noticed(MUTANTS[name], tmp_path, by=[RuntimeWarning, ValueError])
