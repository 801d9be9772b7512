"""Verdicts, what a comparison says of a model that is no GPT-2 small, and what Control-C leaves of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

import pellucid as pl
from pellucid.cli import app
from pellucid.reproduce import Published, Reproduced, Reproduction, measures
from pellucid.reproduce.published import EXPERIMENTS

INF = float("inf")


def published(**fields: Any) -> Published:
    return Published(**{"name": "a number", "value": 2.0, "tolerance": 0.5, "source": "a paper", **fields})


def test_what_is_within_the_tolerance() -> None:
    two_sided = {1.4: False, 1.5: True, 2.0: True, 2.5: True, 2.6: False, math.nan: False, INF: False, -2.0: False}
    for computed, expected in two_sided.items():
        assert published().agrees(computed) == expected, computed
    for computed, expected in {1.4: False, 1.5: True, 9.0: True, math.nan: False, -INF: False}.items():
        assert published(relation="at least").agrees(computed) == expected, computed
    for computed, expected in {2.6: False, 2.5: True, -9.0: True, math.nan: False, INF: False}.items():
        assert published(relation="at most").agrees(computed) == expected, computed


def test_only_what_was_computed_and_agrees_is_a_success() -> None:
    good, bad, none = (Reproduced(published(), value) for value in (2.1, 3.0, None))
    assert [one.verdict for one in (good, bad, none)] == ["within", "outside", "not computed"]
    for checks, expected in (((good,), True), ((good, bad), False), ((good, none), False)):
        assert bool(Reproduction("m", checks, {}, 0.0)) == expected


MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "the wrong side of a bound": (Published, "agrees", lambda self, x: abs(x - self.value) <= self.tolerance),
    "below a number is enough": (Published, "agrees", lambda self, x: x - self.value <= self.tolerance),
    "NaN agrees": (Published, "agrees", lambda self, x: not abs(x - self.value) > self.tolerance),
    "what was not computed counts": (Reproduction, "__bool__", lambda self: "outside" not in self.counts()),
    "any is enough": (Reproduction, "__bool__", lambda self: "within" in self.counts()),
}  # fmt: skip


@pytest.mark.parametrize("what", MUTANTS)
def test_a_mistake_in_a_verdict_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = MUTANTS[what]
    monkeypatch.setattr(owner, name, wrong)

    def checks() -> None:
        test_what_is_within_the_tolerance()
        test_only_what_was_computed_and_agrees_is_a_success()

    with pytest.raises(AssertionError):
        checks()


@pytest.fixture(scope="module", name="found")
def _found(bundled: pl.CkptedTransformer) -> Reproduction:
    return pl.reproduce.gpt2(bundled, quick=True, name="bundled")


def test_a_model_that_is_no_gpt2_small_fails_and_says_why(found: Reproduction) -> None:
    quick = [experiment for experiment in EXPERIMENTS if not experiment.slow]
    assert [check.published for check in found.checks] == [p for experiment in quick for p in experiment.published]
    assert not found
    assert found.counts()["not computed"] > 20
    by_name = {check.published.name: check for check in found.checks}
    assert by_name["Mary - John: head 9.9"].detail == "reproduce: no head 9.9 in 4 layers of 4 heads and 1024 neurons."
    assert by_name["mean logit difference"].computed is not None
    said = repr(found)
    assert said.startswith(f"bundled: {found.counts()['outside']} outside")
    assert "5.3319 ± 0.0001 " in said
    assert "3.5600 ± 1 (kind)" in said


def test_the_same_seed_gives_the_same_numbers(found: Reproduction, bundled: pl.CkptedTransformer) -> None:
    again = pl.reproduce.gpt2(bundled, quick=True)
    assert [check.computed for check in again.checks] == [check.computed for check in found.checks]
    assert again.settings == found.settings
    other = pl.reproduce.gpt2(bundled, quick=True, seed=1)
    assert [check.computed for check in other.checks] != [check.computed for check in found.checks]


def test_every_figure_has_a_source_and_a_name_of_its_own() -> None:
    every = [one for experiment in EXPERIMENTS for one in experiment.published]
    assert len({one.name for one in every}) == len(every)
    assert all(one.source and one.tolerance >= 0 for one in every)
    assert {one.name for one in every if one.exact} >= {"loss of 'Hello world!' in nats", "Mary: neuron 11.611"}


def interrupted_in(monkeypatch: pytest.MonkeyPatch, name: str, how: Callable[[Any], Any]) -> None:
    experiments = [(e if e.name != name else type(e)(e.name, how, e.published, e.runs)) for e in EXPERIMENTS]
    monkeypatch.setattr("pellucid.reproduce.EXPERIMENTS", tuple(experiments))


def _control_c(study: Any) -> Any:
    raise KeyboardInterrupt


def _cut_off(study: measures.Study) -> Any:
    """Control-C in the midst of a sweep, which ends with a warning and holes."""

    def metric(logits: Any, batch: Any) -> Any:
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return logits[:, -1, 0]

    seen = list[int]()
    pl.patching.sweep(study.model, "a b c", "a b d", "resid_pre", over=("layer", "pos"), metric=metric)
    raise AssertionError("a sweep that was cut off is no result")


@pytest.mark.parametrize("how", [_control_c, _cut_off])
def test_an_interruption_keeps_what_was_computed(
    how: Any, bundled: pl.CkptedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_in(monkeypatch, "attention", how)
    found = pl.reproduce.gpt2(bundled, quick=True)
    assert found.interrupted
    assert not found
    names = [check.published.name for check in found.checks if check.detail == "interrupted before"]
    assert names[0] == "name movers' attention to IO"
    assert found.checks[0].computed is not None
    assert "interrupted" in repr(found).splitlines()[0]


@pytest.mark.long
def test_a_stand_in_of_the_right_shape_is_computed_whole(gpt2_tokenizer: pl.Tokenizer) -> None:
    from test_reproduce_measures import model_of

    model = model_of(gpt2_tokenizer, n_layer=12, n_embd=12, n_inner=640).float()
    found = pl.reproduce.gpt2(model, quick=True)
    assert "not computed" not in found.counts()
    assert not found


def as_json(*words: str, expect: int) -> Any:
    result = CliRunner().invoke(app, ["reproduce", *words, "--json"])
    assert (result.exit_code, result.stderr) == (expect, "")
    return json.loads(result.stdout)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["reproduce", "gpt2", "-m", "bundled", "--quick"])
    assert result.exit_code == 1
    assert result.stderr.startswith("bundled: ")
    assert "GB" in result.stderr
    assert "not computed" in result.stdout
    found = as_json("gpt2", "-m", "bundled", "--quick", expect=1)
    assert (found["model"], found["agrees"], found["settings"]["quick"]) == ("bundled", False, True)
    assert {"name", "value", "tolerance", "source", "exact", "relation", "computed", "detail", "verdict"} == {
        *found["checks"][0]
    }
    fine = Reproduction("bundled", (Reproduced(published(), 2.0),), {}, 0.0)
    monkeypatch.setattr(pl.reproduce, "gpt2", lambda *args, **more: fine)
    assert as_json("gpt2", "-m", "bundled", expect=0)["agrees"]
    assert CliRunner().invoke(app, ["reproduce", "gpt3"]).exit_code == 2
