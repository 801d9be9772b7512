"""What happens in a run beside its mathematics: where it starts and stops, which tap captures and which one edits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pellucid.errors import EditError, InputError, ShapeError, UnknownNameError, shown, warn
from pellucid.family.network import Network
from pellucid.family.part import Part, submodules
from pellucid.names import aliases
from pellucid.names.aliases import Names, selected, several
from pellucid.numerics.products import recordable
from pellucid.run.changes import Site
from pellucid.run.edit import Edit
from pellucid.run.region import Region, take
from pellucid.schema import Schema
from pellucid.text.batch import Batch


@dataclass
class Recorder:
    """The tap that captures: snapshots, or with `grads` the very tensors on the path of the gradient."""

    names: frozenset[str]  # what to keep
    schema: Schema  # the model's schema
    region: Region  # which part of each value
    grads: bool  # whether gradients have to reach what is kept
    # Whether to copy what nobody writes to any more. Nothing in the model writes into a value that it has passed on, so
    # that only native hooks can make copies necessary.
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

    If a text is run piece by piece, `start` is the first column of what runs; positions are those of the text.
    """

    def __init__(self, edits: Edit | Sequence[Edit], batch: Batch, model: Network, start: int | None = None) -> None:
        schema = model.schema
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
            if edit.source is not None:
                edit.source.made_by(model, f"Edit.{edit.what}")
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


def warn_of_dropout(model: Network, verb: str, modules: Iterable[nn.Module] | None = None) -> None:
    """Warn that what a verb returns is random, if the model trains and dropout acts.

    Training is not warned of: it calls the model, or a verb whose values gradients flow back from. `modules` are
    the model's, if the caller has them.
    """
    rates = {name: getattr(model.config, name) for name in model.config.about.dropouts}
    if not any(rates.values()):
        return
    if any(module.training for module in modules or submodules(model) if isinstance(module, Part)):
        named = ", ".join(f"{name}={rate:g}" for name, rate in rates.items() if rate)
        warn(
            f"{verb}: the model is in training mode, where dropout ({named}) makes every run another one. "
            "Call model.eval() first, and model.train() to go on training."
        )


Start = tuple[aliases.Name, Tensor]
"""The name of a block's `resid_pre`, and the value [B, P, D] that enters there."""


def beginning(start_at: Start, schema: Schema, batch: Batch, like: Tensor) -> tuple[str, tuple[int, Tensor]]:
    """Read `start_at=`: the checkpoint's whole name; the number of its block, and the value in the model's dtype."""
    if not isinstance(start_at, tuple) or len(start_at) != 2 or not isinstance(start_at[1], Tensor):
        raise InputError(
            f"start_at: {shown(start_at)} given, expected a pair of a name and a tensor.",
            code="start-at",
            remedy="Give start_at=('blocks.4.resid_pre', value) with a value [B, P, D].",
        )
    name, value = aliases.resolved(start_at[0], schema), start_at[1]
    _, block, kind = (*name.split(".", 2), "", "")[:3]
    if kind != "resid_pre":
        raise InputError(
            f"start_at: {shown(name)}, expected the resid_pre of a block.",
            code="start-at",
            remedy="Start at what enters a block; what leaves block 3 enters block 4: 'blocks.4.resid_pre'.",
        )
    expected = [*batch.ids.shape, schema.sizes["d_model"]]
    if list(value.shape) != expected or not value.is_floating_point():
        raise ShapeError(
            f"start_at: a value of {value.dtype} {list(value.shape)}, expected floating point {expected} "
            "(batch, pos, d_model).",
            code="start-value",
            remedy="Give a value for each token of the batch, pads included, such as a captured resid_pre.",
        )
    return name, (int(block), recordable(value.to(device=like.device, dtype=like.dtype)))


def unchecked_beginning(start_at: Start) -> tuple[int, Tensor]:
    """Read `start_at=` while torch.compile traces the call, which cannot trace the reader of all names."""
    parts = start_at[0].split(".") if isinstance(start_at[0], str) else []
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit() or parts[2] != "resid_pre":
        raise InputError(
            f"start_at: {shown(start_at[0])} in a compiled call, expected a name such as 'blocks.4.resid_pre'.",
            code="start-at",
            remedy="Give start_at=('blocks.4.resid_pre', value) with a value [B, P, D].",
        )
    return int(parts[1]), start_at[1]


def captured(names: Names, schema: Schema, first: str | None, last: str | None) -> frozenset[str]:
    """The checkpoints that a run captures."""
    if first is None and last is None:
        return frozenset(schema.names if names is None else selected(names, schema))
    wanted = None if names is None else several(names)
    begin = 0 if first is None else schema.names.index(first)
    end = len(schema) if last is None else schema.names.index(last) + 1
    reachable = frozenset(schema.names[begin:end])
    for name in (*([] if last is None else [last]), *(wanted or ())):
        found = selected([name], schema)
        if not reachable.isdisjoint(found):
            continue
        if last is not None and schema.names.index(found[0]) >= end:
            raise UnknownNameError(
                f"{name!r} cannot fire: the run stops at {last!r}, before it.",
                code="checkpoint-after-stop",
                remedy="Choose a later stop_at, or leave the name out.",
            )
        raise UnknownNameError(
            f"{name!r} cannot fire: the run starts at {first!r}, after it.",
            code="checkpoint-before-start",
            remedy="Choose an earlier start_at, or leave the name out.",
        )
    return reachable.intersection(selected(wanted, schema))
