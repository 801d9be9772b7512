"""Checkpoints: the named points that every intermediate value of a forward pass goes through.

A `Ckpt` is a module, so it shows in `print(model)`, native hooks work on it, and what it returns is what the
model goes on with. A family's `Schema` says which there are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.execution import is_transformed
from pellucid.tap import Tap


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

    def replacement(self, value: Tensor, tap: Tap | None) -> Tensor | None:
        """Pass on a value that was computed only to be seen.

        Returns:
            What someone put in its place, or None where it was only looked at: the same tensor came back and
            nothing was written into it.
        """
        if not self.is_watched(tap):
            return None
        if value.is_inference():  # inference tensors have no version counter
            before = value.clone()
            seen = self(value, tap=tap)
            unwritten = _same_bytes(before, value)
        else:
            version = value._version
            seen = self(value, tap=tap)
            unwritten = value._version == version
        return None if seen is value and unwritten else seen


def changed_rows(before: Tensor, after: Tensor) -> Tensor | None:
    """[B, 1, ...], true for each row of the batch in which a replaced value differs; None if all of them count.

    The other rows go on as if nothing had been replaced, so an edit of one row leaves the bits of the others alone.
    All count where a gradient has to reach the value, and where the value was written in place.
    """
    if after is before or after.shape != before.shape or after.requires_grad or is_transformed():
        return None
    return (after != before).flatten(1).any(1).view(-1, *[1] * (before.dim() - 1))


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def name_checkpoints(root: nn.Module) -> None:
    """Tell every checkpoint below `root` its dotted name."""
    for name, module in root.named_modules():
        if isinstance(module, Ckpt):
            module.name = name
