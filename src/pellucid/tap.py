"""What a run hands down through `forward`: a value arrives with its name, and what comes back is used.

A tap is an argument. It cannot leak into another run, two threads can run two taps on one model, and
nothing is registered or removed. Recording, editing and stopping are taps; `None` is the plain run.

A `Ckpt` is what a value passes through: a module, so it shows in `print(model)`, native hooks work on it, and what
it returns is what the model goes on with. A family's `Schema` says which there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.numerics.products import is_transformed


class Tap(Protocol):
    """`(checkpoint name, value) -> value`, and which names it cares about.

    `wants` lets the model skip values that nobody looks at (scores, patterns, scaled values). A tap that only
    looks returns the very tensor that it was given; returning another tensor is an edit.
    """

    def wants(self, name: str, /) -> bool:
        """Whether the value under this name matters to the tap."""
        ...

    def __call__(self, name: str, value: Tensor, /) -> Tensor:
        """Look at the value, or return another one to go on with."""
        ...


class Chain:
    """Several taps as one; each sees what the one before it returned."""

    def __init__(self, taps: Sequence[Tap]) -> None:
        self._taps = tuple(taps)

    def wants(self, name: str) -> bool:
        return any(tap.wants(name) for tap in self._taps)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for tap in self._taps:
            if tap.wants(name):
                value = tap(name, value)
        return value


class Stopped(Exception):  # noqa: N818  (it is control flow, not an error)
    """Raised by `StopAfter` to leave the forward pass; never reaches the caller."""


class StopAfter:
    """Ends the forward pass once the value under one name has passed; comes last in a chain."""

    def __init__(self, name: str) -> None:
        self._name = name

    def wants(self, name: str) -> bool:
        return name == self._name

    def __call__(self, name: str, value: Tensor) -> Tensor:
        raise Stopped(name)


class Ckpt(nn.Module):
    """The identity, with a name: the value passes through, and what comes out is what the model goes on with.

    The tap is always passed as a keyword: a native pre-hook that returns the value alone replaces all positional
    arguments, and must not take the tap with it.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name

    def __call__(self, value: Tensor, tap: Tap | None = None) -> Tensor:
        if self._is_hooked():
            return super().__call__(value, tap=tap)
        # without what torch does around it, which a small model would feel
        return value if tap is None else self.forward(value, tap)

    def forward(self, value: Tensor, tap: Tap | None = None) -> Tensor:
        return value if tap is None or not tap.wants(self.name) else tap(self.name, value)

    def is_watched(self, tap: Tap | None) -> bool:
        """Whether a tap or a native hook would see a value here; if not, it need not be computed."""
        return (tap is not None and tap.wants(self.name)) or self._is_hooked()

    def _is_hooked(self) -> bool:
        return bool(
            self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks
            or torch_module._has_any_global_hook()
        )  # fmt: skip

    def replacement(self, value: Tensor, tap: Tap | None) -> Replaced | None:
        """Pass on a value that was computed only to be seen.

        Returns what someone put in its place; None if it was only looked at, so the same tensor came back and nothing
        was written into it.
        """
        if not self.is_watched(tap):
            return None
        if value.is_inference():  # inference tensors have no version counter
            before = value.clone()
            seen = self(value, tap=tap)
            unwritten = torch.equal(before.view(torch.uint8), value.view(torch.uint8))
        else:
            version = value._version
            seen = self(value, tap=tap)
            unwritten = value._version == version
        if seen is value and unwritten:
            return None
        return Replaced(seen, _changed_rows(value, seen) if unwritten else None)


class Replaced(NamedTuple):
    """What someone put in a value's place."""

    value: Tensor  # what the model goes on with
    # [B, 1, ...], true for the rows of the batch in which it differs; None if all of them count. The other rows go on
    # as if nothing had been replaced, so an edit of one row leaves the bits of the others alone.
    rows: Tensor | None


def _changed_rows(before: Tensor, after: Tensor) -> Tensor | None:
    """See `Replaced.rows`. All rows count where a gradient has to reach the value."""
    if after.shape != before.shape or after.requires_grad or is_transformed() or before.dim() < 2 or len(before) < 2:
        return None
    rows = (after != before).flatten(1).any(1)
    if not rows.is_cuda and bool(rows.all()):  # an accelerator would have to be waited for
        return None
    return rows.view(-1, *[1] * (before.dim() - 1))


def name_checkpoints(root: nn.Module, place: str = "") -> None:
    """Tell every checkpoint below a module its dotted name behind `place`, such as "blocks.3"; taps know it by that."""
    for name, module in root.named_modules(prefix=place):
        if isinstance(module, Ckpt):
            module.name = name
