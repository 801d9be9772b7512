"""Remedies of measures and streams, followed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import pellucid as pl
import support
from following import Case, follow, params

M = pl.measure
LONG, SHORT = support.ragged_ids(20, 11)
Here = SimpleNamespace


def _run(here: Here, rows: Any = (LONG, SHORT), **more: Any) -> pl.ActivationCkpts:
    return here.model.run_with_ckpts(list(rows), **more)[1]


def _norms(here: Here, *rows: list[int], kind: str = "resid_post", **more: Any) -> xr.DataArray:
    return M.norms(_run(here, rows or (LONG, SHORT), **more), kind)


def _with(array: xr.DataArray, value: float) -> xr.DataArray:
    array = array.copy()
    array.values[0, 0, 3] = value
    return array


def _stream(here: Here, texts: Any = (LONG, SHORT), statistics: Any = None, **more: Any) -> Any:
    return M.stream(here.model, texts, statistics or [M.Moments("resid_post")], **more)


def _interrupted(here: Here, name: str, **more: Any) -> Path:
    """A file of a stream that broke off after its first text."""

    def texts() -> Any:
        yield LONG
        raise KeyError("the power fails")

    path = here.folder / name
    with pytest.raises(KeyError):
        _stream(here, texts(), batch_size=1, checkpoint=M.Saving(path, every_texts=1), **more)
    return path


def _zeroed(here: Here, *, log: bool) -> xr.DataArray:
    return M.norms(_run(here, edits=pl.Edit.zero("resid_post")), "resid_post", log=log)


def _far(here: Here) -> xr.DataArray:
    array = _norms(here)
    array.values[:, :, 0] = 1e12
    return array


def _gathered(here: Here, *runs: pl.ActivationCkpts, kind: str = "attn.ckpt_z") -> M.Moments:
    statistic = M.Moments(kind)
    for run in runs:
        statistic.update(run)
    return statistic


def _fit(here: Here, **more: Any) -> Any:
    return M.autoregression(_norms(here), 1, **more)


def _constant(here: Here) -> xr.DataArray:
    return _norms(here) * 0 + 1


def _some_constant(here: Here) -> Any:
    array = _norms(here)
    array.values[1] = 1.0
    return M.autoregression(array, 1)


REMEDIES: dict[str, list[Case]] = {
    "not-finite": [
        Case(
            lambda h: M.norms(_run(h, edits=pl.Edit.replace("resid_post", torch.inf)), "resid_post"),
            "Find the first checkpoint",
            lambda h: M.norms(_run(h), "resid_post"),
        ),
        Case(
            lambda h: M.moments(_with(_norms(h), np.inf)),
            "array.where(np.isfinite(array))",
            lambda h: M.moments((array := _with(_norms(h), np.inf)).where(np.isfinite(array))),
        ),
    ],
    "not-ckpts": [
        Case(
            lambda h: M.norms({"resid_post": torch.zeros(2)}, "resid_post"),
            "run_with_ckpts",
            lambda h: M.norms(_run(h), "resid_post"),
        )
    ],
    "not-measurable": [
        Case(lambda h: M.moments(_norms(h), "resid_post"), "without one", lambda h: M.moments(_norms(h))),
        Case(lambda h: M.moments(_run(h)), "and a name", lambda h: M.moments(_run(h), "resid_post")),
        Case(lambda h: M.aligned([1.0]), "what norms or values returned", lambda h: M.aligned(_norms(h))),
        Case(
            lambda h: M.autoregression(np.random.default_rng(0).random((2, 1, 30)), 1),
            "xarray.DataArray(numbers, dims=('layer', 'batch', 'pos'))",
            lambda h: M.autoregression(
                xr.DataArray(np.random.default_rng(0).random((2, 1, 30)), dims=("layer", "batch", "pos")), 1
            ),
        ),
    ],
    "no-such-axis": [
        Case(
            lambda h: M.moments(_norms(h), over=()), "in over=", lambda h: M.moments(_norms(h), over=["batch", "pos"])
        ),
        Case(
            lambda h: M.moments(_norms(h), over=["head"]),
            "Name some of layer, batch, pos",
            lambda h: M.moments(_norms(h), over=["pos"]),
        ),
        Case(lambda h: M.outliers(_norms(h)), "resid_post", lambda h: M.outliers(_run(h), "resid_post")),
        Case(
            lambda h: M.autoregression(_norms(h).isel(pos=0), 1),
            "(layer, batch, pos)",
            lambda h: M.autoregression(_norms(h), 1),
        ),
        Case(
            lambda h: M.Moments("resid_post", over=["d_model"]).update(_run(h)),
            "at least batch, pos",
            lambda h: M.Moments("resid_post", over=["batch", "pos"]).update(_run(h)),
        ),
        Case(
            lambda h: _stream(h, statistics=[M.Covariance("attn.ckpt_pattern")]),
            "resid_post",
            lambda h: _stream(h, statistics=[M.Covariance("resid_post")]),
        ),
    ],
    "no-positions": [
        Case(
            lambda h: M.aligned(_norms(h).drop_vars("position")),
            "what norms or values returned",
            lambda h: M.aligned(_norms(h)),
        )
    ],
    "induction-length": [
        Case(
            lambda h: M.induction(h.model, length=40, texts=2),
            "a whole number from 2 to 32",
            lambda h: M.induction(h.model, length=32, texts=2),
        )
    ],
    "nothing-to-attend": [
        Case(lambda h: M.entropy(_run(h, [[5], [6]])), "two tokens", lambda h: M.entropy(_run(h, [[5, 1], [6, 2]])))
    ],
    "quantile-range": [
        Case(
            lambda h: M.distribution(_norms(h), quantiles=[25]),
            "shares, not %",
            lambda h: M.distribution(_norms(h), quantiles=[0.25]),
        )
    ],
    "bandwidth": [
        Case(
            lambda h: M.distribution(_norms(h), bandwidth="wide"),
            "bandwidth='silverman'",
            lambda h: M.distribution(_norms(h), bandwidth="silverman"),
        )
    ],
    "bins": [
        Case(lambda h: M.distribution(_norms(h), bins="fdd"), "'fd'", lambda h: M.distribution(_norms(h), bins="fd"))
    ],
    "too-many-bins": [
        Case(lambda h: M.distribution(_far(h)), "bins=100", lambda h: M.distribution(_far(h), bins=100)),
        Case(
            lambda h: M.distribution(_far(h)),
            "leave the first token out",
            lambda h: M.distribution(_far(h).isel(pos=slice(1, None))),
        ),
    ],
    "log-of-zero": [Case(lambda h: _zeroed(h, log=True), "without log=True", lambda h: _zeroed(h, log=False))],
    "empty-axis": [
        Case(
            lambda h: M.moments(_norms(h).isel(layer=[])),
            "along 'layer'",
            lambda h: M.moments(_norms(h).isel(layer=[0])),
        )
    ],
    "level": [
        Case(
            lambda h: M.outliers(_run(h), "resid_post", threshold="six"),
            "such as 6",
            lambda h: M.outliers(_run(h), "resid_post", threshold=6),
        ),
        Case(lambda h: _fit(h).interval(95), "0.95", lambda h: _fit(h).interval(0.95)),
    ],
    "unknown-covariance": [
        Case(
            lambda h: _fit(h, cov="robust"),
            "cov=pl.measure.HAC(maxlags=4)",
            lambda h: _fit(h, cov=pl.measure.HAC(maxlags=4)),
        )
    ],
    "too-short": [
        Case(
            lambda h: M.autoregression(_norms(h, LONG[:5]), 3), "longer", lambda h: M.autoregression(_norms(h, LONG), 3)
        ),
        Case(
            lambda h: M.autoregression(_norms(h, LONG[:5]), 3),
            "fewer lags",
            lambda h: M.autoregression(_norms(h, LONG[:5]), 1),
        ),
    ],
    "not-fitted": [
        Case(
            lambda h: _some_constant(h).summary(1),
            "a layer that has a fit",
            lambda h: [
                _some_constant(h).summary(layer) for layer, problem in _some_constant(h).problems.items() if not problem
            ],
        ),
        Case(lambda h: M.select_lags(_constant(h), 2), "a constant series", lambda h: M.select_lags(_norms(h), 2)),
    ],
    "regressor-misfit": [
        Case(
            lambda h: _fit(h, regressors=_norms(h).position),
            'regressors={"position": norms.position}',
            lambda h: _fit(h, regressors={"position": _norms(h).position}),
        ),
        Case(
            lambda h: _fit(h, regressors={"x": np.ones(3)}),
            "[batch, pos]",
            lambda h: _fit(h, regressors={"x": np.random.default_rng(0).random((2, 20))}),
        ),
    ],
    "name-taken": [
        Case(
            lambda h: _fit(h, regressors={"y": np.random.default_rng(0).random((2, 20))}),
            "another name",
            lambda h: _fit(h, regressors={"z": np.random.default_rng(0).random((2, 20))}),
        )
    ],
    "lags-range": [
        Case(lambda h: M.autoregression(_norms(h), -1), "0 or more", lambda h: M.autoregression(_norms(h), 0)),
        Case(lambda h: _fit(h).ljung_box(99), "fewer lags", lambda h: _fit(h).ljung_box(5)),
        Case(lambda h: _fit(h).robust(99), "from 0 to", lambda h: _fit(h).robust(0)),
    ],
    "no-series": [
        Case(
            lambda h: _stream(h, statistics=[M.Autoregression("resid_post", 1)])[0].residuals,
            "pl.measure.autoregression",
            lambda h: _fit(h).residuals,
        )
    ],
    "no-such-row": [Case(lambda h: _fit(h).summary(9), "a label of (layer)", lambda h: _fit(h).summary(2))],
    "unknown-correction": [
        Case(lambda h: _fit(h).corrected("bonferoni"), "'holm'", lambda h: _fit(h).corrected("holm")),
        Case(lambda h: _fit(h).corrected("fdr"), "'bh'", lambda h: _fit(h).corrected("bh")),
    ],
    "positions-not-adjacent": [
        Case(
            lambda h: M.autoregression(_norms(h, LONG, pos=slice(0, 20, 2)), 1),
            "a slice of step 1",
            lambda h: M.autoregression(_norms(h, LONG, pos=slice(0, 20, 1)), 1),
        )
    ],
    "unknown-of": [
        Case(lambda h: M.Moments("resid_post", "size"), "of='norm'", lambda h: M.Moments("resid_post", of="norm"))
    ],
    "merge-misfit": [
        Case(
            lambda h: M.Moments("resid_post").merge(M.Moments("resid_pre")),
            "the same arguments",
            lambda h: M.Moments("resid_post").merge(M.Moments("resid_post")),
        ),
        Case(
            lambda h: _gathered(h, _run(h), _run(h, heads=[0])),
            "the same blocks and heads",
            lambda h: _gathered(h, _run(h), _run(h)),
        ),
        Case(
            lambda h: _stream(h).merge(_stream(h, statistics=[M.Moments("resid_post"), M.Moments("resid_pre")])),
            "the same statistics",
            lambda h: _stream(h).merge(_stream(h)),
        ),
    ],
    "no-texts": [
        Case(
            lambda h: M.Moments("resid_post").result(),
            "Give it texts first",
            lambda h: _gathered(h, _run(h), kind="resid_post").result(),
        ),
        Case(lambda h: _stream(h, iter(())), "a generator that was read before", _stream),
    ],
    "texts-kind": [
        Case(lambda h: _stream(h, "a cat"), "into a list", lambda h: _stream(Here(model=h.told), ["a cat"]))
    ],
    "sketch-error": [
        Case(lambda h: M.Quantiles("resid_post", error=2), "0.01", lambda h: M.Quantiles("resid_post", error=0.01))
    ],
    "batch-size": [Case(lambda h: _stream(h, batch_size=0), "1 or more", lambda h: _stream(h, batch_size=1))],
    "statistics-kind": [
        Case(
            lambda h: _stream(h, statistics=M.Moments("resid_post")),
            "[pl.measure.Moments('resid_post')]",
            lambda h: _stream(h, statistics=[pl.measure.Moments("resid_post")]),
        )
    ],
    "stream-misfit": [
        Case(
            lambda h: M.Saving("stream.safetensors", every_texts=-1),
            "Saving('stream.safetensors', every_texts=10_000, every_seconds=60)",
            lambda h: M.Saving("stream.safetensors", every_texts=10_000, every_seconds=60),
        ),
        Case(
            lambda h: _stream(h, checkpoint=_interrupted(h, "a.safetensors"), batch_size=2),
            "the same model, batch_size",
            lambda h: _stream(h, checkpoint=h.folder / "a.safetensors", batch_size=1),
        ),
        Case(
            lambda h: _stream(h, checkpoint=_interrupted(h, "c.safetensors"), batch_size=3),
            "another file",
            lambda h: _stream(h, checkpoint=h.folder / "b.safetensors", batch_size=3),
        ),
        Case(
            lambda h: _stream(h, [SHORT], checkpoint=_interrupted(h, "c.safetensors"), batch_size=1),
            "the same texts in the same order",
            lambda h: _stream(h, [LONG, SHORT], checkpoint=h.folder / "c.safetensors", batch_size=1),
        ),
    ],
    "not-a-stream": [
        Case(
            lambda h: _stream(h, checkpoint=h.weights),
            "a name that is free",
            lambda h: _stream(h, checkpoint=h.folder / "free.safetensors"),
        )
    ],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("remedies")
    model = support.glass()
    model.save_pretrained(folder / "model")
    return Here(model=model, told=pl.load(), folder=folder, weights=folder / "model" / "model.safetensors")


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)
