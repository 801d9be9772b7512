"""Which tensors of a run a measure reads, and which of their entries count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pellucid import aliases, families
from pellucid.axes import ATTENTION, Axes, Axis
from pellucid.errors import InputError
from pellucid.run.activations import ActivationCkpts
from pellucid.run.region import Region, take


@dataclass(frozen=True)
class Captured:
    """One kind of checkpoint of a run, block by block.

    Attributes:
        kind: The checkpoint's name without the block, such as "attn.ckpt_attn_out".
        tensors: The raw values, one tensor for each block.
        layers: The numbers of the blocks; None if the checkpoint is around them.
        whole: Whether the values get a layer axis; the full name of a single block's checkpoint gives none.
        axes: The axes of each tensor.
        ckpts: The run.
    """

    kind: str
    tensors: tuple[Tensor, ...]
    layers: tuple[int, ...] | None
    whole: bool
    axes: Axes
    ckpts: ActivationCkpts

    @cached_property
    def columns(self) -> Tensor:
        """The columns of the batch that were kept, pads counted."""
        every = torch.arange(self.ckpts.batch.ids.size(1))
        chosen = Region(self.ckpts.part.pos).indices("batch", every.shape, (Axis.POS,), strict=True)
        return take(every, chosen)

    @cached_property
    def position(self) -> Tensor:
        """The positions of the kept columns, [B, P], counted from each text's own first real token; -1 at pads."""
        return self.positions[:, self.columns]

    @cached_property
    def positions(self) -> Tensor:
        """The positions of all columns, [B, P]."""
        batch = self.ckpts.batch
        return batch.positions.cpu().masked_fill(~batch.mask.cpu(), -1)

    @cached_property
    def real(self) -> Tensor | None:
        """Which entries are measured, in a shape that broadcasts to a tensor's; None for all of them."""
        mask = self.ckpts.batch.mask.cpu()
        if self.axes == ATTENTION:
            seen = torch.arange(mask.size(1)) <= self.columns[:, None]
            return seen & mask[:, None, None, :] & mask[:, None, self.columns, None]
        if not self.ckpts.batch.padded:
            return None
        return mask[:, self.columns].reshape(*mask[:, self.columns].shape, *[1] * (len(self.axes) - 2))

    def float64(self) -> Iterator[Tensor]:
        """Yield each block's values in float64 on the CPU, NaN where nothing is measured.

        Raises:
            InputError: If a measured value is not finite.
        """
        for number, tensor in enumerate(self.tensors):
            value = tensor.detach().cpu().double()
            self.require_finite(value, number)
            yield value if self.real is None else value.masked_fill(~self.real, torch.nan)

    def require_finite(self, value: Tensor, number: int) -> None:
        """Raise `InputError` if a measured value is not finite.

        Args:
            value: A block's values, or one number for each of its vectors.
            number: Which of the blocks it is.
        """
        real = self.real
        if real is not None and self.axes == ATTENTION and value.dim() < len(self.axes):
            real = real.any(-1)
        elif real is not None:
            real = real.reshape(*real.shape[: value.dim()])
        wrong = ~value.isfinite() if real is None else ~value.isfinite() & real
        if not bool(wrong.any()):
            return
        at = [int(i) for i in wrong.nonzero()[0]]
        where = ", ".join(f"{axis} {i}" for axis, i in zip(self.axes, at, strict=False))
        block = "" if self.layers is None else f"blocks.{self.layers[number]}."
        raise InputError(
            f"{block}{self.kind}: {float(value[tuple(at)])} at {where}, expected finite numbers.",
            code="not-finite",
            remedy="Find the first checkpoint that is not finite; run in float32 if it overflowed in half precision.",
        )


def find(ckpts: ActivationCkpts, name: aliases.Name) -> Captured:
    """Return one kind of checkpoint of a run.

    Args:
        ckpts: What `run_with_ckpts` captured.
        name: A template over the blocks ("attn.ckpt_attn_out"), a checkpoint around them ("ckpt_embed"), or a full
            name or pattern of one kind ("blocks.3.resid_post", "blocks.*.resid_post"); aliases are accepted.

    Raises:
        UnknownNameError: If there is no such checkpoint, or it was not captured.
        InputError: If a pattern matches several kinds, or `ckpts` is no run.
    """
    if not isinstance(ckpts, ActivationCkpts):
        raise InputError(
            f"measure: {type(ckpts).__name__} given, expected the captured values of a run.",
            code="not-ckpts",
            remedy="Pass the ActivationCkpts that run_with_ckpts returned, and the name of a checkpoint.",
        )
    kind, block = aliases.kind_and_block(name, ckpts.schema)
    if block is None:
        return Captured(kind, (ckpts[kind],), None, False, ckpts.schema[kind].axes, ckpts)
    wanted = aliases.selected(f"blocks.{block}.{kind}", ckpts.schema)
    held = [full for full in wanted if full in ckpts] or [wanted[0]]
    tensors = tuple(ckpts[full] for full in held)  # raises UnknownNameError if it was not captured
    layers = tuple(int(full.split(".")[1]) for full in held)
    return Captured(kind, tensors, layers, "*" in block, ckpts.schema.axes[held[0]], ckpts)


def capture_pattern(name: aliases.Name) -> str:
    """Return the pattern of names to capture so `find` finds them."""
    kind, block = families.kind_and_block(name)
    return kind if block is None else f"blocks.{block}.{kind}"
