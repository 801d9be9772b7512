"""Streams: equal to the measures in memory, mergeable, resumable to the bit, in constant memory, quiet."""

from __future__ import annotations

import functools
import io
import itertools
import os
import pickle
import signal
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure_cases as cases
import numpy as np
import pytest
import torch
import xarray as xr

import killed
import pellucid as pl
import support
from pellucid.measure import Autoregression, Covariance, Moments, Quantiles, Saving, Streamed, stream
from pellucid.run.origin import Known
from pellucid.weights import own_file

TEXTS = cases.texts_of([9, 4, 14, 1, 30, 2, 8, 8, 21, 5, 17])
RTOL = 1e-9
"""What is promised of moments and regressions."""


def statistics() -> list[Any]:
    """One of each kind, and of each thing gathered."""
    return [
        Moments("resid_post"),
        Moments("attn.ckpt_z", of="norm"),
        Moments("attn.ckpt_scores"),
        Moments("resid_mid", over=["batch", "pos", "d_model"]),
        Covariance("resid_post"),
        Covariance("attn.ckpt_q"),
        Quantiles("mlp.ckpt_post", over=["batch", "pos", "d_mlp"]),
        Quantiles("ln_final.ckpt_normalized", of="log_norm", quantiles=[0.1, 0.5]),
        Autoregression("attn.ckpt_attn_out", lags=2, skip=1, log=True),
        Autoregression("attn.ckpt_z", lags=1),
        Autoregression("blocks.1.resid_post", lags=1),
        Autoregression("ckpt_embed", lags=1),
    ]


@functools.cache
def in_memory(side: str = "left") -> list[Any]:
    """The same from one run of all texts."""
    run = cases.run_of(TEXTS, side=side)
    norms = {
        name: pl.measure.norms(run, name, log=log)
        for name, log in (
            ("attn.ckpt_attn_out", True), ("attn.ckpt_z", False), ("blocks.1.resid_post", False), ("ckpt_embed", False)
        )
    }  # fmt: skip
    return [
        pl.measure.moments(run, "resid_post"),
        pl.measure.moments(norms["attn.ckpt_z"]),
        pl.measure.moments(run, "attn.ckpt_scores"),
        pl.measure.moments(run, "resid_mid", over=["batch", "pos", "d_model"]),
        pl.measure.covariance(run, "resid_post"),
        pl.measure.covariance(run, "attn.ckpt_q"),
        pl.measure.values(run, "mlp.ckpt_post"),
        pl.measure.norms(run, "ln_final.ckpt_normalized", log=True),
        pl.measure.autoregression(norms["attn.ckpt_attn_out"], 2, 1),
        *(pl.measure.autoregression(norms[name], 1) for name in ("attn.ckpt_z", "blocks.1.resid_post", "ckpt_embed")),
    ]


def assert_equals_in_memory(gathered: Streamed, expected: list[Any]) -> None:
    for statistic, found, known in zip(gathered.statistics, gathered, expected, strict=True):
        if isinstance(statistic, Moments):
            for name in ("count", "mean", "variance", "skewness", "kurtosis"):
                assert found[name].dims == known[name].dims
                np.testing.assert_allclose(found[name], known[name], rtol=RTOL, atol=RTOL)
            assert found["count"].equals(known["count"]), "counts are exact"
            assert set(found.coords) == set(known.coords)
        elif isinstance(statistic, Covariance):
            assert found.dims == known.dims
            np.testing.assert_allclose(found, known, rtol=RTOL, atol=RTOL)
        elif isinstance(statistic, Quantiles):
            shares = found["quantile"].values
            over = [dim for dim in known.dims if dim not in found.dims]
            true = known.quantile(shares, over, method="lower").transpose(*found.dims)
            assert np.all(np.abs(found.values - true.values) <= 0.01 * np.abs(true.values))
            assert found.attrs["relative_error"] == 0.01
        else:
            for table in ("params", "bse", "pvalues", "conf_int", "rsquared", "aic", "condition"):
                np.testing.assert_allclose(getattr(found, table), getattr(known, table), rtol=RTOL, atol=RTOL)
                assert getattr(found, table).index.equals(getattr(known, table).index)
            assert (found.nobs, found.basis.texts, found.basis.short) == (
                known.nobs,
                known.basis.texts,
                known.basis.short,
            )


@pytest.mark.parametrize(
    ("batch_size", "side"),
    support.few_of(itertools.product((1, 3, 100), ("left", "right")), (1, "left"), (3, "right"), (100, "left")),
)
def test_a_stream_equals_the_measures_in_memory(batch_size: int, side: str) -> None:
    gathered = stream(cases.Model(side=side), TEXTS, statistics(), batch_size=batch_size)
    assert_equals_in_memory(gathered, in_memory(side=side))
    assert gathered.texts == len(TEXTS)


def test_a_stream_through_the_real_model() -> None:
    """In float64, where a text's values depend on its neighbours in the batch by 1e-12 at most."""
    model = pl.load(dtype="float64")
    texts = ["Once upon a time there was a cat", "The end", "A dog sat on the mat, and the cat sat on the dog", "Hi"]
    names = [Moments("resid_post"), Covariance("attn.ckpt_z"), Autoregression("attn.ckpt_attn_out", 1, 1, log=True)]
    gathered = stream(model, iter(texts), names, batch_size=2)
    _, run = model.run_with_ckpts(texts)
    norms = pl.measure.norms(run, "attn.ckpt_attn_out", log=True)
    known = [pl.measure.moments(run, "resid_post"), pl.measure.covariance(run, "attn.ckpt_z"),
             pl.measure.autoregression(norms, 1, 1)]  # fmt: skip
    assert_equals_in_memory(gathered, known)


def test_labels_and_provenance_are_those_in_memory() -> None:
    gathered = stream(cases.Model(), TEXTS, statistics())
    for found, known in zip(gathered, in_memory(), strict=True):
        for key in ("checkpoint", "pellucid", "units"):
            assert found.attrs.get(key) == known.attrs.get(key) or isinstance(known, type(None))
        assert found.attrs["texts"] == len(TEXTS)
        assert len(found.attrs["text"]) == 64
    assert gathered[0].identical(gathered[0])
    assert gathered[-1].index.tolist() == [0]
    assert [type(r) for r in gathered[1:3]] == [type(r) for r in gathered[:2]]
    assert "12 statistics of 11 texts" in repr(gathered)


@functools.cache
def whole(batch_size: int) -> Streamed:
    """All texts in one stream; nobody changes it."""
    return stream(cases.Model(), TEXTS, statistics(), batch_size=batch_size)


def arrays_of(gathered: Streamed) -> list[bytes]:
    """Every number and label that was gathered, as bytes."""
    return [array.tobytes() for s in gathered.statistics for _, array in sorted(s.state().items())]


@pytest.mark.parametrize(
    ("cut", "batch_size"), support.few_of([(0, 4), (1, 3), (5, 5), (7, 1), (11, 2)], (0, 4), (1, 3))
)
def test_merging_equals_one_stream(cut: int, batch_size: int) -> None:
    known = in_memory()
    parts = [part for part in (TEXTS[:cut], TEXTS[cut:]) if part]
    merged = [stream(cases.Model(), part, statistics(), batch_size=batch_size) for part in parts]
    both = merged[0] if len(merged) == 1 else merged[0].merge(merged[1])
    assert both.texts == whole(4).texts
    assert_equals_in_memory(both, known)
    for a, b in zip(both.statistics, whole(4).statistics, strict=True):
        if isinstance(a, Quantiles):
            assert np.array_equal(a.result(), b.result()), "sketches merge exactly"
    if len(merged) == 2:
        turned = merged[1].merge(merged[0])
        assert_equals_in_memory(turned, known)
        assert turned.digest != both.digest


def test_merging_leaves_the_parts_as_they_were() -> None:
    parts = [stream(cases.Model(), part, statistics()) for part in (TEXTS[:5], TEXTS[5:])]
    before = [arrays_of(part) for part in parts]
    first, second = parts[0].merge(parts[1]), parts[0].merge(parts[1])
    assert arrays_of(first) == arrays_of(second)
    assert [arrays_of(part) for part in parts] == before


def test_the_statistics_given_stay_empty() -> None:
    given = statistics()
    stream(cases.Model(), TEXTS, given)
    assert all(statistic.state() == {} for statistic in given)
    with pytest.raises(pl.InputError) as caught:
        given[0].result()
    assert caught.value.code == "no-texts"


@pytest.mark.parametrize(
    ("kill_at", "every"),
    support.few_of(itertools.product((0, 1, 2, 3), (1, 5, 1000)), (0, 1), (2, 1), (3, 5), (3, 1000)),
)
def test_a_killed_stream_goes_on_to_the_same_bits(tmp_path: Path, kill_at: int, every: int) -> None:
    saving = Saving(tmp_path / "state", every_texts=every)
    with pytest.raises(KeyboardInterrupt):
        stream(cases.Model(kill_at), TEXTS, statistics(), batch_size=3, checkpoint=saving)
    model = cases.Model()
    again = stream(model, TEXTS, statistics(), batch_size=3, checkpoint=saving)
    assert arrays_of(again) == arrays_of(whole(3))
    assert (again.texts, again.digest) == (whole(3).texts, whole(3).digest)
    saved = {1: kill_at, 5: kill_at // 2 * 2, 1000: 0}[every]
    assert len(model.batches) == 4 - saved, "what was written down is not run again"
    done = cases.Model()
    third = stream(done, TEXTS, statistics(), batch_size=3, checkpoint=saving)
    assert done.batches == []
    assert arrays_of(third) == arrays_of(whole(3))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_seconds_make_it_write_too(tmp_path: Path) -> None:
    saving = Saving(tmp_path / "state", every_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        stream(cases.Model(2), TEXTS, statistics(), batch_size=3, checkpoint=saving)
    model = cases.Model()
    stream(model, TEXTS, statistics(), batch_size=3, checkpoint=saving)
    assert len(model.batches) == 2


class Killed(cases.Model):
    """It ends its process, for good, in the third batch."""

    def run_with_ckpts(self, *args: Any, **options: Any) -> Any:
        if len(self.batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run_with_ckpts(*args, **options)


def test_a_process_that_was_killed_outright(tmp_path: Path) -> None:
    saving = Saving(tmp_path / "state", every_texts=1)
    child = killed.in_a_child(lambda: stream(Killed(), TEXTS, statistics(), batch_size=3, checkpoint=saving))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    model = cases.Model()
    again = stream(model, TEXTS, statistics(), batch_size=3, checkpoint=tmp_path / "state")
    assert len(model.batches) == 2
    assert arrays_of(again) == arrays_of(whole(3))


def saved(folder: Path) -> Path:
    stream(cases.Model(), TEXTS[:6], statistics(), batch_size=3, checkpoint=folder / "state")
    return folder / "state"


def test_a_file_of_another_stream_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path)
    content = file.read_bytes()
    turned = [TEXTS[1], TEXTS[0], *TEXTS[2:]]
    for texts, wanted, batch_size in (
        (turned, statistics(), 3),
        (TEXTS[:4], statistics(), 3),
        ([], statistics(), 3),
        (TEXTS, statistics()[:-1], 3),
        (TEXTS, [*statistics()[:-1], Autoregression("ckpt_embed", lags=2)], 3),
        (TEXTS, statistics(), 4),
    ):
        with pytest.raises(pl.InputError) as caught:
            stream(cases.Model(), texts, wanted, batch_size=batch_size, checkpoint=file)
        assert caught.value.code == "stream-misfit"
        assert file.read_bytes() == content


def test_a_file_of_another_model_is_refused(tmp_path: Path, glass: pl.CkptedTransformer) -> None:
    texts, names = [[1, 2, 3], [4, 5]], [Moments("resid_post")]
    stream(glass, texts, names, checkpoint=tmp_path / "state")
    assert stream(glass, texts, names, checkpoint=tmp_path / "state").texts == 2
    import copy

    other = copy.deepcopy(glass)
    with torch.no_grad():
        other.blocks[1].mlp.b_out[3] += 1e-3
    with pytest.raises(pl.InputError, match="weights") as caught:
        stream(other, texts, names, checkpoint=tmp_path / "state")
    assert caught.value.code == "stream-misfit"


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(pl.InputError) as caught:
        stream(cases.Model(), TEXTS, statistics(), checkpoint=tmp_path / "state")
    assert caught.value.code == "not-a-stream"
    assert (tmp_path / "state").read_bytes() == content


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pl.WeightsError) as caught:
        stream(cases.Model(), TEXTS, statistics(), checkpoint=tmp_path / "file" / "state")
    assert caught.value.code == "path-not-writable"


class Cheap(cases.Model):
    """Values of a few strides, so that thousands of texts cost little."""

    def run_with_ckpts(self, inputs: Any, *, names: Any = None, stop_at: Any = None) -> tuple[Any, pl.ActivationCkpts]:
        batch = cases.batch_of(inputs)
        values = {}
        for number, name in enumerate(names):
            draw = np.random.default_rng([len(self.batches), number])
            values[name] = torch.from_numpy(draw.standard_normal((*batch.ids.shape, 6)))
        self.batches.append(len(inputs))
        return None, pl.ActivationCkpts(values, batch, support.schema(cases.LAYERS))


def peak(count: int, file: Path) -> tuple[int, int]:
    """While `count` texts are gathered, bytes allocated by numpy and Python at the highest; and of what is left."""
    names = [Moments("resid_post"), Covariance("resid_post"), Quantiles("resid_post", of="norm"),
             Autoregression("resid_mid", 2, 1)]  # fmt: skip
    texts: Iterator[list[int]] = ([(i + j) % 97 for j in range(8)] for i in range(count))
    saving = Saving(file, every_texts=500)
    tracemalloc.start()
    gathered = stream(Cheap(), texts, names, batch_size=50, checkpoint=saving)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest, len(pickle.dumps(gathered))


def assert_constant_memory(folder: Path, count: int) -> None:
    """The values of 1,000 texts would take 2.5 MB, their norms 0.4 MB; the tracing itself grows by some hundred KB.

    What is left differs by the sketch's room for new extremes: of norms that differ by a factor of less than 1000, at
    most 3 layers, 2 signs and log(1000) / 0.02 buckets of 8 bytes.
    """
    peak(50, folder / "warm")  # modules are imported, caches filled
    few, many = peak(50, folder / "few"), peak(count, folder / "many")
    assert many[0] - few[0] < 1_000_000
    assert many[1] - few[1] < 3 * 2 * 8 * np.log(1000) / 0.02


@pytest.mark.parametrize("count", support.few_of([600, 1_000], 600))
def test_many_texts_take_the_memory_of_one_batch(count: int, tmp_path: Path) -> None:
    assert_constant_memory(tmp_path, count)


def terminal(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> io.StringIO:
    class Stderr(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stderr = Stderr()
    monkeypatch.setattr(sys, "stderr", stderr)
    return stderr


@pytest.mark.parametrize(("wanted", "is_terminal"), [(False, True), (True, False), (False, False)])
def test_nothing_is_drawn_unless_wanted_and_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: bool, is_terminal: bool
) -> None:
    stderr = terminal(monkeypatch, is_terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what colours logs makes no terminal of them
    stream(cases.Model(), TEXTS, [Moments("resid_post")], progress=wanted)
    assert stderr.getvalue() == ""
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("sized", [True, False])
def test_a_bar_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sized: bool
) -> None:
    stderr = terminal(monkeypatch, True)
    texts = TEXTS if sized else iter(TEXTS)
    stream(cases.Model(), texts, [Moments("resid_post")], batch_size=1, progress=True)
    drawn = stderr.getvalue()
    assert "11/11" in drawn if sized else "11/?" in drawn
    assert "texts/s" in drawn
    assert "0:00:00" in drawn or not sized, "time left is not known of a generator"
    assert capsys.readouterr().out == ""


BAD = [
    ("a text", {}, "texts-kind"),
    (5, {}, "texts-kind"),
    ({"text": ["a column, whose name would be read"]}, {}, "texts-kind"),
    ([], {}, "no-texts"),
    (TEXTS, {"statistics": []}, "statistics-kind"),
    (TEXTS, {"statistics": Moments("resid_post")}, "statistics-kind"),
    (TEXTS, {"statistics": ["resid_post"]}, "statistics-kind"),
    (TEXTS, {"batch_size": 0}, "batch-size"),
    (TEXTS, {"batch_size": True}, "batch-size"),
]


@pytest.mark.parametrize(("texts", "options", "code"), BAD)
def test_what_cannot_be_streamed(texts: Any, options: dict[str, Any], code: str) -> None:
    given = {"statistics": [Moments("resid_post")], **options}
    with pytest.raises(pl.InputError) as caught:
        stream(cases.Model(), texts, given.pop("statistics"), **given)
    assert caught.value.code == code


def test_an_error_says_which_texts_it_came_of(glass: pl.CkptedTransformer) -> None:
    texts = [[1, 2], [3], [4, 5], [6, 6, 6], []]
    with pytest.raises(pl.InputError, match="stream, text 4: ") as caught:
        stream(glass, texts, [Moments("resid_post")], batch_size=2)
    assert caught.value.code == "empty-text"
    with pytest.raises(pl.InputError, match="texts 0 to 1: ") as caught:
        stream(glass, [[1], [0] * 65], [Moments("resid_post")], batch_size=2)
    assert caught.value.code == "too-long"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Moments("resid_pst"), "unknown-checkpoint"),
        (lambda: Moments("resid_post", of="norms"), "unknown-of"),  # type: ignore[arg-type]
        (lambda: Moments("resid_post", over=["batch"]), "no-such-axis"),
        (lambda: Moments("resid_post", over=["batch", "pos", "head"]), "no-such-axis"),
        (lambda: Moments("resid_post", of="norm", over=["batch", "pos", "d_model"]), "no-such-axis"),
        (lambda: Covariance("attn.ckpt_pattern"), "no-such-axis"),
        (lambda: Quantiles("resid_post", error=0), "sketch-error"),
        (lambda: Quantiles("resid_post", error=1), "sketch-error"),
        (lambda: Quantiles("resid_post", quantiles=[50]), "quantile-range"),
        (lambda: Autoregression("resid_post", lags=-1), "lags-range"),
    ],
)
def test_statistics_that_cannot_be(make: Any, code: str) -> None:
    with pytest.raises(pl.PellucidError) as caught:
        make()
    assert caught.value.code == code


def test_what_a_stream_of_sums_cannot_tell_is_an_error() -> None:
    fit = stream(cases.Model(), TEXTS, [Autoregression("resid_post", 1)])[0]
    asks = [lambda: fit.residuals, fit.robust, fit.ljung_box, lambda: fit.summary(0),
            lambda: fit.design(0)]  # fmt: skip
    for ask in asks:
        with pytest.raises(pl.InputError) as caught:
            ask()
        assert caught.value.code == "no-series"
    assert "R2" in repr(fit)
    assert len(fit.to_dataframe()) == 6


@pytest.mark.parametrize("texts", [[[1]], [[1, 2, 3]], [[1], [2], [3, 4]]])
def test_texts_that_are_too_short_for_the_lags(texts: Any) -> None:
    gathered = stream(cases.Model(), texts, [Autoregression("resid_post", 2), Moments("resid_post")])
    with pytest.raises(pl.InputError) as caught:
        gathered[0]
    assert caught.value.code == "too-short"
    assert gathered[1]["count"].values[0, 0] == sum(map(len, texts))


class Smooth(cases.Model):
    """Norms on a smooth curve, with a little noise in block 0 and none in block 2; of block 1, as usual."""

    def run_with_ckpts(self, inputs: Any, *, names: Any = None, stop_at: Any = None) -> tuple[Any, pl.ActivationCkpts]:
        _, run = super().run_with_ckpts(inputs, names=names)
        for name in run:
            if "blocks.1." not in name:
                curve = torch.sin(torch.arange(run[name].size(1)).double() / 300) + 2
                noise = np.random.default_rng(0).standard_normal(curve.shape) * (1e-8 if "blocks.0." in name else 0)
                run._values[name] = (curve + torch.from_numpy(noise))[None, :, None].expand(run[name].shape).clone()
        return None, run


def test_a_stream_fits_what_a_fit_in_memory_can() -> None:
    """Sums of products would not determine block 0; nothing determines block 2."""
    texts = [list(range(60)), list(range(5)), list(range(41))]
    fit = stream(Smooth(), texts, [Autoregression("resid_post", 3)], batch_size=1)[0]
    norms = [
        pl.measure.norms(Smooth().run_with_ckpts([text], names="blocks.*.resid_post")[1], "resid_post")
        for text in texts
    ]
    known = pl.measure.autoregression(xr.concat(norms, "batch", join="outer"), 3)
    assert (
        fit.problems.tolist() == known.problems.tolist() == ["", "", "the columns of the design are linearly dependent"]
    )
    np.testing.assert_allclose(fit.params.loc[1], known.params.loc[1], rtol=RTOL)
    # Rounding of the norms moves these columns by 1e-8 of their noise; either fit is off by as much.
    np.testing.assert_allclose(fit.params.loc[0], known.params.loc[0], rtol=1e-5, atol=1e-6)
    with pytest.raises(pl.InputError) as caught:
        stream(Smooth(), [list(range(60))], [Autoregression("blocks.2.resid_post", 3)])[0]
    assert caught.value.code == "not-fitted"


def test_a_file_of_the_earlier_format_is_refused_with_the_reason(tmp_path: Path) -> None:
    file = saved(tmp_path)
    about, tensors = own_file.load(file, "pellucid.stream")
    own_file.save(file, "pellucid.stream", tensors, {**about, "format": "pellucid.stream/1"})
    with pytest.raises(pl.InputError, match="of an earlier version, which kept other sums") as caught:
        stream(cases.Model(), TEXTS, statistics(), batch_size=3, checkpoint=file)
    assert caught.value.code == "stream-misfit"
    assert caught.value.remedy == "Give another file; the texts are then gathered again."
    again = stream(cases.Model(), TEXTS, statistics(), batch_size=3, checkpoint=tmp_path / "another")
    assert again.texts == len(TEXTS)


def test_parts_that_do_not_fit_together() -> None:
    part = stream(cases.Model(), TEXTS, [Moments("resid_post"), Moments("resid_mid")])
    for other in ([Moments("resid_post")], [Moments("resid_mid"), Moments("resid_post")],
                  [Moments("resid_post"), Moments("resid_mid", of="norm")]):  # fmt: skip
        with pytest.raises(pl.InputError) as caught:
            part.merge(stream(cases.Model(), TEXTS, other))
        assert caught.value.code == "merge-misfit"


def test_runs_of_other_models_do_not_merge() -> None:
    runs = [cases.run_of(TEXTS), cases.run_of(TEXTS)]
    for number, run in enumerate(runs):
        run._origin = Known({"weights": str(number)})
    statistic, other = Moments("resid_post"), Moments("resid_post")
    statistic.update(runs[0])
    other.update(runs[1])
    for act in (lambda: statistic.update(runs[1]), lambda: statistic.merge(other)):
        with pytest.raises(pl.InputError) as caught:
            act()
        assert caught.value.code == "merge-misfit"


def test_covariance_is_numpys() -> None:
    run = cases.run_of(TEXTS)
    found = pl.measure.covariance(run, "attn.ckpt_q")
    assert found.dims == ("layer", "head", "d_head", "d_head_other")
    raw = np.concatenate([cases.made_up("blocks.2.attn.ckpt_q", t).double().numpy()[:, 1] for t in TEXTS])
    np.testing.assert_allclose(found.sel(layer=2, head=1), np.cov(raw.T, ddof=0), rtol=1e-12)
    variance = pl.measure.moments(run, "attn.ckpt_q").variance
    np.testing.assert_allclose(np.einsum("lhdd->lhd", found.values), variance, rtol=1e-12)
    assert found.attrs["count"] == sum(map(len, TEXTS))
