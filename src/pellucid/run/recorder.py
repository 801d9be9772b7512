"""The tap that captures the values of one run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.errors import UnknownNameError
from pellucid.run.region import Region, take
from pellucid.schema import Schema


@dataclass
class Recorder:
    """The tap that captures: snapshots, or with `grads` the very tensors on the path of the gradient.

    Args:
        names: What to keep.
        schema: The model's schema.
        region: Which part of each value.
        grads: Whether gradients have to reach what is kept.
        copies: Whether to copy what nobody writes to any more. Nothing in the model writes into a value that it has
            passed on, so that only native hooks can make copies necessary.
    """

    names: frozenset[str]
    schema: Schema
    region: Region
    grads: bool
    copies: bool = True
    values: dict[str, Tensor] = field(default_factory=dict)
    _held: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._everything = self.region.is_everything
        self.wants = self.names.__contains__  # asked at every checkpoint

    def check_fired(self) -> None:
        """Raise for names whose value never came by."""
        if len(self.values) < len(self.names):
            missing = self.names - self.values.keys()
            silent = [name for name in self.schema.names if name in missing]
            raise UnknownNameError(
                f"never fired: {', '.join(silent[:5])}.",
                code="checkpoint-never-fired",
                remedy="Remove the hook or the replaced module that keeps the value from passing through its "
                "checkpoint, or leave the name out.",
            )

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if self.grads:
            value = value.view_as(value)  # another tensor than came in: what was computed beside now counts
            if not value.requires_grad:  # of frozen weights: the gradient begins here
                value.requires_grad_()
            kept = value if self._everything else self._part(name, value)[0]
            kept.retain_grad()
            self.values[name] = kept
            return value
        kept, is_new = (value, False) if self._everything else self._part(name, value)
        if kept.requires_grad:
            kept = kept.detach()
        self.values[name] = kept if is_new or self._may_hand_out(kept) else _copy(kept)
        return value

    def _part(self, name: str, value: Tensor) -> tuple[Tensor, bool]:
        """The region's part of a value, and whether that is another tensor."""
        indices = self.region.indices(name, value.shape, self.schema.axes[name], strict=False)
        return take(value, indices), bool(indices)

    def _may_hand_out(self, value: Tensor) -> bool:
        """Whether a value is alone in its memory, nobody writes into it, and nothing else that is kept is the same."""
        if self.copies or value.untyped_storage().nbytes() != value.nbytes or not value.is_contiguous():
            return False
        memory = value.data_ptr()
        is_first = memory not in self._held
        self._held.add(memory)
        return is_first


def _copy(value: Tensor) -> Tensor:
    return value.clone(memory_format=torch.contiguous_format)
