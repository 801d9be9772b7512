"""Numbers are numbers whoever made them, and what a message shows is bounded and harmless."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch

from pellucid.check import as_number, as_python, as_whole, require_one_of, require_seed, require_whole, takes
from pellucid.errors import ConfigError, InputError, printable, shown


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
)
def test_whole_numbers_are_whole_whoever_made_them(value: object) -> None:
    found = as_whole(value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), np.array(True), 3.0, "3", None, [3], np.array([3]), torch.tensor([3]),
     torch.tensor(3.0), np.float32(3), 3j],
)  # fmt: skip
def test_what_is_no_whole_number(value: object) -> None:
    assert as_whole(value) is None


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), np.float64(2.5), np.array(2.5), torch.tensor(2.5)])
def test_numbers(value: object) -> None:
    found = as_number(value)
    assert found == 2.5
    assert type(found) is float


def test_numbers_at_the_edges() -> None:
    assert as_number(10**400) == math.inf
    assert as_number(-(10**400)) == -math.inf
    assert math.isnan(as_number(np.float32("nan")) or 0.0)
    assert as_number(np.int64(2)) == 2.0
    for other in (True, np.True_, torch.tensor(True), "2", None, [2.0], torch.tensor([2.0]), 2j):
        assert as_number(other) is None


def test_numbers_become_pythons_own_alone_and_together() -> None:
    for given, expected in (
        (np.int64(3), 3), (torch.tensor(2.5), 2.5), (np.array([1, 2]), (1, 2)),
        ([np.int64(1), torch.tensor(2.5), [np.float32(3)]], (1, 2.5, (3.0,))),
    ):  # fmt: skip
        found = as_python(given)
        assert (found, type(found)) == (expected, type(expected))
    for other in ("ab", b"ab", None, True, np.array("x"), math):
        assert as_python(other) is other


def test_a_seed_is_whatever_torch_takes() -> None:
    for number in (0, -1, -(2**63), 2**64 - 1):
        torch.Generator().manual_seed(require_seed("seed", number))
    for other in (-(2**63) - 1, 2**64, True, 1.0, "1", None):
        with pytest.raises(InputError, match="seed="):
            require_seed("verb: seed", other)


def test_what_can_be_called_with_so_many_arguments() -> None:
    assert takes(lambda a, b: a, 2)
    assert not takes(lambda a, b: a, 1)
    assert takes(max, 2), "what is compiled may have no signature"
    assert not takes(3, 0)


def test_require_whole_says_what_was_given_and_expected() -> None:
    assert require_whole("f: n", np.int32(4), at_least=1, at_most=4) == 4
    within = require_whole("f: n", 0), require_whole("f: n", 1, at_least=1), require_whole("f: n", 2, at_most=4)
    assert within == (0, 1, 2)
    with pytest.raises(InputError, match="f: n=5, expected a whole number from 1 to 4") as caught:
        require_whole("f: n", 5, at_least=1, at_most=4)
    assert caught.value.code == "not-a-whole-number"
    with pytest.raises(ConfigError, match="f: n=True, expected a whole number of 1 or more"):
        require_whole("f: n", True, at_least=1, error=ConfigError)


def test_messages_never_hold_control_characters_and_are_bounded() -> None:
    error = InputError("a \x1b]0;title\x07 b \u202e c\n next", code="c", remedy="d \x9b e \t")
    assert error.message == "a \\x1b]0;title\\x07 b \\u202e c\n next"
    assert error.remedy == "d \\x9b e \\t"
    assert pickle.loads(pickle.dumps(error)).message == error.message
    assert len(InputError("x" * 10_000_000, code="c", remedy="d").message) <= 4000
    assert printable("Grüße 日本語 🙂\u00a0") == "Grüße 日本語 🙂\u00a0"


def test_values_are_shown_within_bounds() -> None:
    nested: tuple[object, ...] = (1, 2)
    for _ in range(28):
        nested = (nested, nested)  # 2**29 leaves by sharing
    assert len(shown(nested)) < 200
    assert len(shown("x" * 10**7)) < 200
    assert shown(1 << 100_000) == "a whole number of 100001 bits"
    assert shown({"a": [1, 2, 3]}) == "{'a': [1, 2, 3]}"


@pytest.mark.parametrize("given", ["both", None, ["a"], 1])
def test_a_word_that_is_none_of_those_expected(given: object) -> None:
    require_one_of("verb: side", "b", {"a": 1, "b": 2, "c": 3}, code="side")
    with pytest.raises(InputError, match=r"^verb: side=.*, expected 'a', 'b' or 'c'\.") as raised:
        require_one_of("verb: side", given, {"a": 1, "b": 2, "c": 3}, code="side")
    assert (raised.value.code, raised.value.remedy) == ("side", "Give side='a' or side='b' or side='c'.")
