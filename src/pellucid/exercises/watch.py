"""Every tensor that a piece of code computes, whatever it calls them.

A stage of the reference counts as computed when some tensor held the same numbers in any order of the axes, so
einsum and matmul, (head, query) and (query, head) all look the same, and nothing has to have a certain name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from pellucid.exercises.result import current_line, described
from pellucid.numerics.dispatch import DispatchMode
from pellucid.numerics.rounding import relative_error


@dataclass(frozen=True)
class _Seen:
    """A tensor that was computed, whose numbers are sorted only when they are asked for: not for a right answer."""

    values: Tensor  # a copy, since later code may write into it
    where: tuple[str, int] | None  # the line of code that did it

    @cached_property
    def numbers(self) -> Tensor:
        """The values in ascending order."""
        return _in_order(self.values)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The first and the last of them, by which most others are told from it."""
        return _ends(self.numbers)


class Watch(DispatchMode):
    """Keeps the values of every floating tensor that is computed inside it, and the line that computed it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[_Seen] = []
        self.coarse = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 1:
                self.coarse |= tensor.dtype != torch.float64
                self._seen.append(_Seen(tensor.detach().clone(), current_line()))
        return result

    def showed(self, value: Tensor, tolerance: float) -> bool:
        """Whether some tensor held these numbers."""
        return any(self._places(value, tolerance))

    def _places(self, value: Tensor, tolerance: float) -> Iterable[int]:
        """Where among all tensors those with these numbers stand, counted from 1."""
        wanted = _in_order(value)
        ends, size = _ends(wanted), wanted.numel()
        gap = tolerance * (max(map(abs, ends)) or 1.0) if all(map(math.isfinite, ends)) else math.inf
        return (
            number
            for number, seen in enumerate(self._seen, 1)
            if seen.values.numel() == size
            and all(_is_near(a, b, gap) for a, b in zip(seen.ends, ends, strict=True))
            and apart(seen.numbers, wanted) <= tolerance
        )

    def line_of(self, value: Tensor, tolerance: float) -> str | None:
        """The line of code that first computed these numbers; None if none did, or it cannot be told."""
        return self._line(next(iter(self._places(value, tolerance)), None))

    def line_after(self, value: Tensor | None, size: int, tolerance: float) -> str | None:
        """The first line behind the last that computed some numbers which makes a tensor of a size."""
        start = max(self._places(value, tolerance), default=0) if value is not None else 0
        sizes = (n for n, seen in enumerate(self._seen, 1) if n > start and seen.values.numel() == size)
        return self._line(next(sizes, None))

    def _line(self, number: int | None) -> str | None:
        where = self._seen[number - 1].where if number else None
        return described(*where) if where else None

    def first_missing(self, stages: Mapping[str, Tensor], tolerance: float) -> tuple[str, str | None]:
        """The first stage after the last that was computed as the reference does, and the line that may make it."""
        names = list(stages)
        right = [number for number, name in enumerate(names) if self.showed(stages[name], tolerance)]
        name = names[min(right[-1] + 1 if right else 0, len(names) - 1)]
        before = stages[names[right[-1]]] if right else None
        return name, self.line_after(before, stages[name].numel(), tolerance)


def _in_order(tensor: Tensor) -> Tensor:
    return tensor.detach().double().flatten().sort().values


def _ends(numbers: Tensor) -> tuple[float, float]:
    return (float(numbers[0]), float(numbers[-1])) if numbers.numel() and not numbers.is_meta else (0.0, 0.0)


def _is_near(a: float, b: float, gap: float) -> bool:
    """Whether two numbers are equal but for a gap; an infinity or a NaN is near itself alone."""
    return abs(a - b) <= gap if math.isfinite(a) and math.isfinite(b) else a == b or (a != a and b != b)


class Undropped(DispatchMode):
    """Makes every dropout the identity: a Bernoulli draw with probability p is p everywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else (kwargs or {}).get("p", 0.5))
        return func(*args, **(kwargs or {}))


class Unfilled(TorchFunctionMode):
    """Leaves embeddings without values: to draw them on the meta device, torch imports its compiler, for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return given["tensor"] if func is nn.init.normal_ else func(*args, **given)


def marked(x: Tensor, rate: float) -> Tensor:
    """What stands in for dropout: not linear, so that it shows to which tensor it was applied, and at which rate.

    Signs and magnitudes stay, so that masked scores, which are far below all others or -inf, are still masked.
    """
    return x + rate * x * (1 - 1 / (1 + x.abs()))


class Marked(TorchFunctionMode):
    """Makes every dropout in training its stand-in, `marked`; in fused attention, that of the pattern."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.dropout or func is torch.dropout:
            return self._dropped(dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | given)
        if func is F.scaled_dot_product_attention:
            return self._attended(*args, **given)
        return func(*args, **given)

    def _dropped(self, given: Mapping[str, Any]) -> Tensor:
        x, training = given["input"], given.get("training", given.get("train", True))
        result = marked(x, given.get("p", 0.5)) if training else x
        return x.copy_(result) if given.get("inplace") else result

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Tensor:
        arguments = dict(zip(("attn_mask", "dropout_p", "is_causal"), given, strict=False)) | named
        rate = arguments.pop("dropout_p", 0.0)
        if not rate:
            return F.scaled_dot_product_attention(query, key, value, **arguments)
        every = torch.eye(key.size(-2), dtype=key.dtype, device=key.device).expand(*key.shape[:-1], -1)
        return marked(F.scaled_dot_product_attention(query, key, every, **arguments), rate) @ value


class Drawn(DispatchMode):
    """Decides what `torch.multinomial` draws, and keeps the probabilities that it was given."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.multinomial.default:
            self.weights.append(args[0].detach().double().reshape(-1, args[0].shape[-1]).clone())
            return result.fill_(min(self.index, args[0].shape[-1] - 1))
        return result


def apart(given: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected value; equal infinities and NaN on both sides are equal."""
    if given.shape != expected.shape:
        return float("inf")
    return relative_error(given.detach().double(), expected.detach().double())
