"""`HookPoint`: a named value of a run, to which hooks can be added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, ShapeError

Hook = Callable[..., Any]
"""`hook(value, hook=point)` -> None, or the value to go on with; the value may also be written into."""

_DIRECTIONS = {"fwd": ("fwd_hooks",), "bwd": ("bwd_hooks",), "both": ("fwd_hooks", "bwd_hooks")}


@dataclass(frozen=True, eq=False)
class Handle:
    """A hook that was added."""

    call: Hook
    is_permanent: bool  # whether `reset_hooks` leaves it in place
    # how many `with model.hooks(...)` were open when one of them added it; None outside of them
    context_level: int | None


class HookPoint(nn.Module):
    """A named value of a run, to which hooks can be added.

    Attributes:
        name: Such as "blocks.0.attn.hook_pattern".
        ctx: For hooks to keep things in.
        fwd_hooks: Called with the value, in this order.
        bwd_hooks: Called with its gradient.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[Handle] = []
        self.bwd_hooks: list[Handle] = []

    def forward(self, value: Tensor) -> Tensor:
        """The value after its hooks; the very tensor that was given if none of them changed it.

        Each hook gets a copy of its own, which it may keep, and may write into as in HookedTransformer.

        Raises:
            ShapeError: A hook returned a value of another shape or dtype.
        """
        own = value
        for handle in [*self.fwd_hooks]:
            given = own.clone()
            before = None if given.is_inference() else given._version
            returned = handle.call(given, hook=self)
            if returned is not None and returned is not given:
                own = self._fitting(returned, value)
            elif given._version != before if before is not None else not torch.equal(given, own):
                own = given
        if self.bwd_hooks and own.requires_grad:
            own = own.view_as(own)  # another tensor, so that a value computed beside the fused kernel counts
            for handle in [*self.bwd_hooks]:
                own.register_hook(self._backward(handle.call))
        return own

    def add_hook(
        self,
        hook: Hook,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook on the value ("fwd") or on its gradient ("bwd"); `prepend` puts it before the others."""
        lists = _lists(dir)
        if len(lists) != 1:
            raise _wrong_direction(dir)
        handles: list[Handle] = getattr(self, lists[0])
        handles.insert(0 if prepend else len(handles), Handle(hook, is_permanent, level))

    def add_perma_hook(self, hook: Hook, dir: str = "fwd") -> None:
        """Add a hook that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(self, dir: str = "fwd", including_permanent: bool = False, level: int | None = None) -> None:
        """Remove hooks: all of a level, or of every level; permanent ones only if asked for."""
        for name in _lists(dir):
            kept = [
                handle
                for handle in getattr(self, name)
                if not including_permanent
                and (handle.is_permanent or (level is not None and handle.context_level != level))
            ]
            setattr(self, name, kept)

    def has_hooks(self, dir: str = "both", including_permanent: bool = True, level: int | None = None) -> bool:
        """Whether any hook is there."""
        return any(
            (including_permanent or not handle.is_permanent) and level in (None, handle.context_level)
            for name in _lists(dir)
            for handle in getattr(self, name)
        )

    def clear_context(self) -> None:
        """Forget what hooks kept in `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """The block that the value belongs to.

        Raises:
            InputError: It belongs to none.
        """
        parts = self.name.split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise InputError(
                f"hook.layer: {self.name!r} is a value of no block.",
                code="hook-without-layer",
                remedy="Ask points whose name begins with 'blocks.'.",
            )
        return int(parts[1])

    def extra_repr(self) -> str:
        return self.name

    def _fitting(self, returned: Any, value: Tensor) -> Tensor:
        if isinstance(returned, Tensor) and returned.shape == value.shape and returned.dtype == value.dtype:
            return returned
        given = (
            f"{list(returned.shape)} of {returned.dtype}" if isinstance(returned, Tensor) else type(returned).__name__
        )
        raise ShapeError(
            f"a hook at {self.name!r} returned {given}, expected {list(value.shape)} of {value.dtype}.",
            code="hook-value",
            remedy="Return None to leave the value as it is, or a tensor of the shape and dtype that the hook got.",
        )

    def _backward(self, call: Hook) -> Callable[[Tensor], Tensor | None]:
        def called(gradient: Tensor) -> Tensor | None:
            returned = call(gradient, hook=self)
            return returned[0] if isinstance(returned, tuple) else returned

        return called


def _lists(direction: str) -> tuple[str, ...]:
    if direction not in _DIRECTIONS:
        raise _wrong_direction(direction)
    return _DIRECTIONS[direction]


def _wrong_direction(direction: str) -> InputError:
    return InputError(
        f"hook: dir={direction!r}, expected 'fwd' or 'bwd'.",
        code="hook-direction",
        remedy="Give dir='fwd' for the value, or dir='bwd' for its gradient.",
    )
