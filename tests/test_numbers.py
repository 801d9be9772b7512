"""Numbers of NumPy and torch count as numbers wherever one is taken; truth values, fractions and texts do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid.generate import sampler as sampling

IDS = [[1, 2, 3]]
Model = pl.CkptedTransformer
TEXTS = [[1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 1, 2]]


@pytest.fixture(scope="module")
def model() -> Model:
    return support.glass(eos_token_id=9)


@pytest.fixture(scope="module")
def ckpts(model: Model) -> pl.ActivationCkpts:
    return model.run_with_ckpts([support.ragged_ids(40)[0]])[1]


def _written(model: Model, **settings: Any) -> list[Any]:
    out = model.generate(IDS, **{"max_new_tokens": 4, **settings})
    return [row.tolist() for row in out.ids]


def _fork(model: Model, **given: Any) -> str:
    return repr(pl.KeyValueCache(model.config, capacity=5).fork(**given))


def _rewound(model: Model, length: Any) -> Any:
    cache = pl.KeyValueCache(model.config)
    with torch.no_grad():
        model(IDS, cache=cache)
    cache.rewind(length)
    return cache.length


def _fit(ckpts: pl.ActivationCkpts, **given: Any) -> Any:
    norms = pl.measure.norms(ckpts, "resid_post")
    return pl.measure.autoregression(norms, **{"lags": 1, **given})


Call = Callable[[Model, pl.ActivationCkpts, Any], Any]

WHOLE: dict[str, tuple[int, Call]] = {
    "seed": (3, lambda m, c, n: _written(m, seed=n, sampler=pl.Sampler())),
    "max_new_tokens": (2, lambda m, c, n: _written(m, max_new_tokens=n)),
    "num_beams": (2, lambda m, c, n: _written(m, num_beams=n)),
    "num_return_sequences": (2, lambda m, c, n: _written(m, num_return_sequences=n, sampler=pl.Sampler(), seed=0)),
    "stop": (2, lambda m, c, n: _written(m, stop=n)),
    "stop in a list": (2, lambda m, c, n: _written(m, stop=[n])),
    "end_ids": (2, lambda m, c, n: _written(m, end_ids=n)),
    "end_ids in a list": (2, lambda m, c, n: _written(m, end_ids=[n])),
    "max_new_tokens of a stream": (2, lambda m, c, n: [t.id for t in m.stream(IDS, max_new_tokens=n)]),
    "top_k": (5, lambda m, c, n: pl.Sampler(top_k=n)),
    "no_repeat_ngram_size": (2, lambda m, c, n: pl.Sampler(no_repeat_ngram_size=n)),
    "min_new_tokens": (2, lambda m, c, n: pl.Sampler(min_new_tokens=n)),
    "suppress_tokens": (2, lambda m, c, n: pl.Sampler(suppress_tokens=[n])),
    "rows_each": (2, lambda m, c, n: repr(pl.estimate_generation(m, IDS, rows_each=n))),
    "max_new_tokens of an estimate": (2, lambda m, c, n: repr(pl.estimate_generation(m, IDS, max_new_tokens=n))),
    "rows of a cache": (2, lambda m, c, n: repr(pl.KeyValueCache(m.config, n))),
    "capacity of a cache": (2, lambda m, c, n: repr(pl.KeyValueCache(m.config, capacity=n))),
    "rewind": (2, lambda m, c, n: _rewound(m, n)),
    "rows of a fork": (2, lambda m, c, n: _fork(m, rows=n)),
    "capacity of a fork": (9, lambda m, c, n: _fork(m, capacity=n)),
    "pos": (1, lambda m, c, n: m.run_with_ckpts(IDS, names="ckpt_embed", pos=n)[1].nbytes),
    "pos in a list": (1, lambda m, c, n: m.run_with_ckpts(IDS, names="ckpt_embed", pos=[n])[1].nbytes),
    "heads": (1, lambda m, c, n: m.run_with_ckpts(IDS, names="pattern", heads=n)[1].nbytes),
    "neurons": (1, lambda m, c, n: m.run_with_ckpts(IDS, edits=pl.Edit.zero("embed", neurons=n))[1]["embed"].tolist()),
    "a block in a tuple": (1, lambda m, c, n: c["pattern", n].tolist()),
    "a block of get": (1, lambda m, c, n: c.get("pattern", block=n).tolist()),
    "an id": (1, lambda m, c, n: m.tokenize([n]).ids.tolist()),
    "lags": (2, lambda m, c, n: _fit(c, lags=n).params.to_numpy().tolist()),
    "skip": (2, lambda m, c, n: _fit(c, skip=n).params.to_numpy().tolist()),
    "lags of a test": (2, lambda m, c, n: _fit(c).ljung_box(n).to_numpy().tolist()),
    "maxlags": (2, lambda m, c, n: _fit(c).robust(n).bse.to_numpy().tolist()),
    "batch_size": (2, lambda m, c, n: pl.measure.stream(
        m, TEXTS, [pl.measure.Moments("resid_post")], batch_size=n)[0]["mean"].values.tolist()),
    "length": (3, lambda m, c, n: pl.measure.induction(m, length=n, texts=2).attrs["length"]),
    "texts": (2, lambda m, c, n: pl.measure.induction(m, length=3, texts=n).values.tolist()),
}  # fmt: skip

NUMBERS: dict[str, tuple[float, Call]] = {
    "temperature": (0.5, lambda m, c, n: pl.Sampler(temperature=n)),
    "top_p": (0.5, lambda m, c, n: pl.Sampler(top_p=n)),
    "repetition_penalty": (1.5, lambda m, c, n: pl.Sampler(repetition_penalty=n)),
    "length_penalty": (0.5, lambda m, c, n: _written(m, num_beams=2, length_penalty=n)),
    "level": (0.5, lambda m, c, n: _fit(c).interval(n).to_numpy().tolist()),
    "threshold": (0.5, lambda m, c, n: pl.measure.outliers(c, "resid_post", threshold=n).outlier.values.tolist()),
    "bandwidth": (0.5, lambda m, c, n: pl.measure.distribution(c, "resid_post", bandwidth=n).density.values.tolist()),
    "error": (0.5, lambda m, c, n: pl.measure.Quantiles("resid_post", error=n).spec),
}


@pytest.mark.parametrize("what", WHOLE)
def test_whole_numbers_of_others_are_whole_numbers(model: Model, ckpts: pl.ActivationCkpts, what: str) -> None:
    number, call = WHOLE[what]
    expected = call(model, ckpts, number)
    for same in (np.int64(number), np.uint8(number), np.array(number), torch.tensor(number)):
        assert call(model, ckpts, same) == expected


@pytest.mark.parametrize("what", WHOLE)
@pytest.mark.parametrize(
    "wrong", [True, np.True_, torch.tensor(True), 1.5, np.float64(1.5), "x", object()], ids=lambda v: type(v).__name__
)
def test_what_is_no_whole_number_is_refused(model: Model, ckpts: pl.ActivationCkpts, what: str, wrong: Any) -> None:
    if what == "stop" and wrong == "x":
        return  # a stop string
    with pytest.raises(pl.PellucidError):
        WHOLE[what][1](model, ckpts, wrong)


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_others_are_numbers(model: Model, ckpts: pl.ActivationCkpts, what: str) -> None:
    number, call = NUMBERS[what]
    expected = call(model, ckpts, number)
    for same in (np.float64(number), np.float32(number), np.array(number), torch.tensor(number)):
        assert call(model, ckpts, same) == expected


@pytest.mark.parametrize("what", NUMBERS)
def test_what_is_no_number_is_refused(model: Model, ckpts: pl.ActivationCkpts, what: str) -> None:
    for wrong in (True, np.True_, torch.tensor(True), "x", [0.5], torch.tensor([0.5, 0.5]), float("nan")):
        if what == "threshold" and isinstance(wrong, float):
            continue  # nothing lies above nan
        with pytest.raises(pl.PellucidError):
            NUMBERS[what][1](model, ckpts, wrong)


def test_a_sampler_holds_numbers_of_its_own() -> None:
    made = pl.Sampler(temperature=np.float32(0.5), top_k=torch.tensor(5), suppress_tokens=np.array([1, 2]))
    assert repr(made) == "Sampler(temperature=0.5, top_k=5, suppress_tokens=(1, 2))"
    assert made == pl.Sampler(temperature=0.5, top_k=5, suppress_tokens=[1, 2])


def test_end_ids_of_a_tensor(model: Model) -> None:
    for several in (torch.tensor([2, 3]), np.array([2, 3]), (np.int64(2), 3), {2, 3}):
        assert _written(model, end_ids=several) == _written(model, end_ids=[2, 3])


@pytest.mark.parametrize(
    "one", [np.int64(2), np.array(2), torch.tensor(2), np.uint16(2), [np.int64(2)], torch.tensor([2])]
)
def test_ids_are_decoded_from_whatever_holds_them(one: Any) -> None:
    tokenizer = pl.load().tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(one) == tokenizer.decode(2)
    for wrong in (2.5, [2.5], "2", None, True):
        with pytest.raises(pl.InputError):
            tokenizer.decode(wrong)  # pyright: ignore[reportArgumentType]


def test_what_is_broken_is_noticed() -> None:
    must_be_noticed(
        (sampling, "as_python", lambda value: value, test_a_sampler_holds_numbers_of_its_own), by=(pl.InputError,)
    )
