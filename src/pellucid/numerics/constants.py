"""Constants as programs write them, rounded: GELU's and the scale of the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
ERF = ("gelu", "gelu_python")

ROOT = math.sqrt(2 / math.pi)
CUBIC = 0.044715
_PIS = {"3.14159": 3.14159, "3.1415926": 3.1415926, "3.1416": 3.1416, "3.14": 3.14}
_MISTYPED = (0.44715, 0.0044715, 0.04715, 0.044175, 0.47715, 0.04471)


class Constant(NamedTuple):
    """A constant as a program writes it."""

    value: float
    words: str  # how it is written
    exact: bool  # whether it is the right constant in float32


def written(right: float, more: dict[float, str] | None = None) -> list[Constant]:
    """The ways in which a constant is written that are not the constant itself, the finest first."""
    found = {float(torch.tensor(right)): "rounded to float32"}
    for digits in (8, 7, 6, 5, 4, 3, 2, 9):
        found.setdefault(float(f"{right:.{digits}g}"), f"{right:.{digits}g}")
    for digits in (8, 7, 6, 5, 4, 3, 2):
        cut = math.floor(right * 10**digits) / 10**digits
        found.setdefault(cut, f"{cut:.{digits}g}")
    found |= {value: words for value, words in (more or {}).items() if value not in found}
    return [
        Constant(value, words, is_same(value, right)) for value, words in found.items() if value not in (right, 0.0)
    ]


def is_same(value: float, right: float) -> bool:
    """Whether float32 cannot tell two numbers apart."""
    return bool(torch.tensor(value) == torch.tensor(right))


def inverses(right: float) -> list[Constant]:
    """The ways in which 1 / constant is written by writing the constant."""
    return [Constant(1 / way.value, f"1 / {way.words}", is_same(1 / way.value, 1 / right)) for way in written(right)]


class Formula(NamedTuple):
    """A GELU with a constant that is not the right one."""

    words: str
    function: Callable[[Tensor], Tensor]
    exact: bool


def gelus(activation: str) -> Iterator[Formula]:
    """A GELU, by its name, with other constants."""
    if activation in TANH:
        roots = written(ROOT, {math.sqrt(2 / pi): f"sqrt(2 / {words})" for words, pi in _PIS.items()})
        cubics = written(CUBIC, {value: f"{value:g}" for value in _MISTYPED})
        for way in roots:
            yield Formula(f"GELU's constant is {way.words} for sqrt(2/pi)", _tanh(way.value, CUBIC), way.exact)
        for way in cubics:
            yield Formula(f"GELU's constant is {way.words} for 0.044715", _tanh(ROOT, way.value), way.exact)
        for root in (way for way in roots if way.exact):
            for cubic in (way for way in cubics if way.exact):
                words = f"GELU's constants are {root.words} for sqrt(2/pi) and {cubic.words} for 0.044715"
                yield Formula(words, _tanh(root.value, cubic.value), True)
    if activation in ERF:
        for way in (*written(math.sqrt(0.5)), *inverses(math.sqrt(2))):
            yield Formula(f"GELU's constant is {way.words} for 1/sqrt(2)", _erf(way.value), way.exact)


def _tanh(root: float, cubic: float) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * x * (1 + torch.tanh(root * (x + cubic * x.pow(3))))


def _erf(root: float) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * x * (1 + torch.erf(x * root))


def scales(d_head: int) -> Iterator[Constant]:
    """1/sqrt(d_head) as programs round it."""
    stored = float(torch.tensor(d_head).sqrt()), float(torch.tensor(d_head**-0.5))
    in_float32 = (1 / stored[0], stored[1], float(1 / torch.tensor(stored[0])), float(torch.tensor(d_head).rsqrt()))
    yield from (Constant(value, "rounded to float32", True) for value in in_float32 if value != d_head**-0.5)
    yield from (way for way in (*written(d_head**-0.5), *inverses(d_head**0.5)) if way.value not in in_float32)
