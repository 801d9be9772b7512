"""What a check hands back: frozen, true or false, printed with a tick or a cross."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

import pellucid as pl
from pellucid import exercises
from pellucid.exercises import CheckResult
from pellucid.exercises.result import together
from pellucid.exercises.watch import Watch, apart

WRONG = CheckResult("attention", False, ("a",), "no <mask>", "masking", "pattern [query, key]", ("n",))


def test_it_prints_itself() -> None:
    assert repr(WRONG).splitlines() == [
        "✗ attention", "    mistake: no <mask>", "    step: masking", "    first shows in: pattern [query, key]",
        "    proved: a", "    note: n",
    ]  # fmt: skip
    assert str(CheckResult("greedy", True, ("it is",))) == "✓ greedy\n    proved: it is"
    assert "✗ attention" in WRONG._repr_html_()
    assert "no &lt;mask&gt;" in WRONG._repr_html_()


def test_it_is_frozen_and_true_when_passed() -> None:
    assert not WRONG
    assert CheckResult("greedy", True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        WRONG.passed = True  # type: ignore[misc]


def test_several_are_one() -> None:
    right = CheckResult("greedy", True, ("ties",))
    assert together("all", [right])
    both = together("all", [right, WRONG, CheckResult("top-k", False, mistake="other")])
    assert not both
    assert both.mistake == "attention: no <mask>"
    assert both.proved == ("greedy: ties", "attention: a")
    assert both.step == "attention: masking"
    assert repr(both).splitlines()[1:3] == ["    mistake: attention: no <mask>", "    mistake: top-k: other"]


def test_a_hint_gives_less_away() -> None:
    wrong = dataclasses.replace(WRONG, kind="a constant is wrong", line="3: x = 1", others=("top-k: other",))
    first, second, third = (wrong.hinted(level) for level in (1, 2, 3))
    assert repr(first).splitlines() == [
        "✗ attention", "    step: masking", "    first shows in: pattern [query, key]", "    line: 3: x = 1",
        "    proved: a",
    ]  # fmt: skip
    assert repr(second).splitlines()[1] == "    kind: a constant is wrong"
    assert "no <mask>" not in repr(second)
    assert third == wrong.hinted(None) == wrong
    right = CheckResult("greedy", True, ("it is",))
    assert right.hinted(1) == right


def test_a_stage_is_found_in_any_order_of_axes() -> None:
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    with Watch() as watch:
        torch.einsum("ab,bc->ca", x, y)
    assert watch.showed(x @ y, 1e-12)
    assert not watch.showed(x @ y + 1e-6, 1e-12)


def test_apart() -> None:
    one = torch.tensor([1.0, float("nan"), float("inf")])
    assert apart(one, one) == 0.0
    assert apart(torch.tensor([2.0]), torch.tensor([4.0])) == 0.5
    assert apart(torch.ones(2), torch.ones(3)) == float("inf")
    assert apart(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


@pytest.mark.parametrize("name", [name for name in exercises.__all__ if name not in ("CheckResult", "GPTConfig")])
def test_a_misspelt_argument_is_refused_by_name(name: str) -> None:
    call = getattr(exercises, name)
    known = inspect.signature(call).parameters
    meant = next(word for word in ("hint", "path", "reference", "activation_function") if word in known)
    with pytest.raises(pl.UnknownArgumentError) as caught:
        call(**{f"{meant}s": 1})
    assert f"{meant!r}" in str(caught.value.remedy)


def test_fields_of_other_configurations_are_told() -> None:
    with pytest.raises(pl.UnknownArgumentError, match="n_embd") as caught:
        exercises.GPTConfig(n_embd=64)  # type: ignore[call-arg]
    assert caught.value.remedy == "Pass hidden_size=."
