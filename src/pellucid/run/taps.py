"""What happens in a run beside its mathematics: one tap captures values, one applies edits; dropout is warned of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pellucid.aliases import selected
from pellucid.errors import EditError, UnknownNameError, warn
from pellucid.families import family_of
from pellucid.network import Network
from pellucid.parameters import submodules
from pellucid.part import Part
from pellucid.run.changes import Site
from pellucid.run.edit import Edit
from pellucid.run.region import Region, take
from pellucid.schema import Schema
from pellucid.text.batch import Batch


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


class EditTap:
    """The edits of one run: applies them in the order given and counts.

    Args:
        edits: One or several.
        batch: What runs.
        schema: The model's schema.
        start: The first column of what runs, where a text is run piece by piece; positions are then those of the text.
    """

    def __init__(self, edits: Edit | Sequence[Edit], batch: Batch, schema: Schema, start: int | None = None) -> None:
        self._axes = schema.axes
        self._batch = batch
        self._at: dict[str, list[Edit]] = {}
        self.start = start
        several = [edits] if isinstance(edits, Edit) or not isinstance(edits, Sequence) else list(edits)
        for edit in several:
            if not isinstance(edit, Edit):
                raise EditError(
                    f"edits: {type(edit).__name__} given, expected pl.Edit.",
                    code="edit-kind",
                    remedy="Make edits with pl.Edit.zero, replace, add, scale, mean_ablate, patch or apply.",
                )
        self.fired: dict[Edit, int] = dict.fromkeys(several, 0)
        for edit in several:
            if start is not None and edit.whole_text:
                raise EditError(
                    f"{edit!r}: it averages over a text that is not there yet.",
                    code="edit-needs-the-text",
                    remedy="Give the reference whose mean is meant: Edit.mean_ablate(names, ckpts).",
                )
            for name in _selected(edit, schema):
                self._at.setdefault(name, []).append(edit)

    def wants(self, name: str) -> bool:
        return name in self._at

    def __call__(self, name: str, value: Tensor) -> Tensor:
        for edit in self._at[name]:
            changed = edit.at(value, Site(name, self._axes[name], self._batch, value, self.start))
            if changed is not None:
                value = changed
                self.fired[edit] += 1
        return value

    def check_fired(self) -> None:
        """Raise for the edits that never fired."""
        silent = [edit for edit, times in self.fired.items() if not times]
        if silent:
            raise EditError(
                f"never fired: {', '.join(map(repr, silent))}.",
                code="edit-never-fired",
                remedy="The run stopped before their checkpoints or positions, or started after them; choose others, "
                "or leave them out.",
            )


def _selected(edit: Edit, schema: Schema) -> tuple[str, ...]:
    chosen = selected(edit.names, schema) if edit.names else ()
    if not chosen:
        raise EditError(
            f"{edit!r}: names no checkpoint.", code="edit-kind", remedy="Give the name of a checkpoint, or a pattern."
        )
    return chosen


def warn_of_dropout(model: Network, verb: str) -> None:
    """Warn that what a verb returns is random, if the model trains and dropout acts.

    Training is not warned of: it calls the model, or a verb whose values gradients flow back from.
    """
    rates = {name: getattr(model.config, name) for name in family_of(model.config).dropouts}
    if any(rates.values()) and any(isinstance(m, Part) and m.training for m in submodules(model)):
        named = ", ".join(f"{name}={rate:g}" for name, rate in rates.items() if rate)
        warn(
            f"{verb}: the model is in training mode, where dropout ({named}) makes every run another one. "
            "Call model.eval() first, and model.train() to go on training."
        )
