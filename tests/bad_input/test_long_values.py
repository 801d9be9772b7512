"""What was given is repeated in a message, but never all of a long value."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid import errors

LONG: dict[str, Any] = {
    "text": "x" * 5000,
    "bytes": b"x" * 5000,
    "a list": list(range(5000)),
    "texts": ["y" * 90] * 90,
    "a mapping": {"z" * 900: {"z": ["z" * 900] * 90}},
    "a number": 10**6000,
}

MOST = 600


def settings() -> list[Callable[[Any], Any]]:
    """Every setting of a sampler, given a value."""
    return [lambda value, name=name: pl.Sampler(**{name: value}) for name in pl.Sampler.__dataclass_fields__]


def lengths() -> list[Callable[[Any], Any]]:
    """A call that takes a whole number."""
    return [lambda v: support.glass().generate([[1, 2]], max_new_tokens=v)]


def doors() -> list[Callable[[Any], Any]]:
    """Calls that take one value of the caller's, most of which cannot be."""
    model, two = support.glass(), [[1, 2]]
    return [
        *settings(),
        lambda v: model.generate(two, max_new_tokens=v),
        lambda v: model.generate(two, max_new_tokens=1, num_beams=v),
        lambda v: model.generate(two, max_new_tokens=1, num_beams=2, early_stopping=v),
        lambda v: model.generate(two, max_new_tokens=1, seed=v),
        lambda v: model.generate(two, max_new_tokens=1, stop=v),
        lambda v: model.tokenize(two, mask=v),
        model.tokenize,
        lambda v: model.run_with_ckpts(two, names=v),
        lambda v: model.run_with_ckpts(two, stop_at=v),
        lambda v: model.run_with_ckpts(two, names="resid_post", pos=v),
        lambda v: model.run_with_ckpts(two, edits=[pl.Edit.zero("blocks.0.attn.ckpt_z", heads=v)]),
        lambda v: model.run_with_ckpts(two)[1].get("pattern", v, 0),
        model.run_with_ckpts(two)[1].stack,
        model.parameter,
        lambda v: pl.load(config={"n_layer": v}),
        lambda v: pl.load(config={"auto_map": v}),
        lambda v: pl.load(config={"activation_function": v}),
        lambda v: pl.load(dtype=v),
        lambda v: pl.load(attention=v),
        lambda v: pl.metrics.logit(v)(model(two), model.tokenize(two)),
        lambda v: pl.exercises.check_sampling(lambda logits: 1, exercise=v),
    ]


def refusals(calls: list[Callable[[Any], Any]]) -> list[pl.PellucidError]:
    found: list[pl.PellucidError] = []
    for call, value in itertools.product(calls, LONG.values()):
        try:
            call(value)
        except pl.PellucidError as error:
            found.append(error)
    return found


def check(calls: Callable[[], list[Callable[[Any], Any]]]) -> None:
    found = refusals(calls())
    assert len(found) > len(calls()) * len(LONG) / 2, "doors that refuse nothing show nothing"
    assert not [text for error in found for text in (error.message, error.remedy) if len(text) > MOST]


def test_no_message_repeats_all_of_a_long_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(doors)
    must_be_noticed((errors._BRIEF, "repr", repr, check), lengths, by=(ValueError,))
