"""Which stretch of the forward pass a run covers: from where it starts to where it stops."""

from __future__ import annotations

from torch import Tensor

from pellucid import aliases
from pellucid.aliases import Names, selected, several
from pellucid.errors import InputError, ShapeError, UnknownNameError, shown
from pellucid.schema import Schema
from pellucid.text.batch import Batch

Start = tuple[aliases.Name, Tensor]
"""The name of a block's `resid_pre`, and the value [B, P, D] that enters there."""


def beginning(start_at: Start, schema: Schema, batch: Batch, like: Tensor) -> tuple[str, tuple[int, Tensor]]:
    """Read `start_at=`.

    Args:
        start_at: What the caller gave.
        schema: The model's schema.
        batch: What runs.
        like: A tensor of the model's dtype and device.

    Returns:
        The checkpoint's whole name; the number of its block, and the value in the model's dtype.

    Raises:
        InputError: A place where no run can start, or something else than a pair.
        ShapeError: A value that does not fit the batch.
    """
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
            f"start_at: {name!r}, expected the resid_pre of a block.",
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
    return name, (int(block), value.to(device=like.device, dtype=like.dtype))


def unchecked_beginning(start_at: Start) -> tuple[int, Tensor]:
    """Read `start_at=` while torch.compile traces the call, which cannot trace the reader of all names.

    Raises:
        InputError: Another name than "blocks.4.resid_pre".
    """
    parts = start_at[0].split(".") if isinstance(start_at[0], str) else []
    if len(parts) != 3 or parts[0] != "blocks" or not parts[1].isdigit() or parts[2] != "resid_pre":
        raise InputError(
            f"start_at: {start_at[0]!r} in a compiled call, expected a name such as 'blocks.4.resid_pre'.",
            code="start-at",
            remedy="Give start_at=('blocks.4.resid_pre', value) with a value [B, P, D].",
        )
    return int(parts[1]), start_at[1]


def captured(names: Names, schema: Schema, first: str | None, last: str | None) -> frozenset[str]:
    """The checkpoints that a run captures.

    Args:
        names: What the caller asked for; None for all that the run reaches.
        schema: The model's schema.
        first: Where the run starts; None for the embeddings.
        last: Where it stops; None for the logits.

    Raises:
        UnknownNameError: A name that does not exist, or that the run does not reach.
    """
    wanted = None if names is None else several(names)
    if first is None and last is None:
        return frozenset(selected(wanted, schema))
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
