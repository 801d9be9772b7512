"""Tensors without values, on the meta device or in a lazy module: no obstacle if no run reads them, else refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pellucid.check import require_tree
from pellucid.errors import InputError, shown
from pellucid.numerics.dispatch import DispatchMode
from pellucid.prove.calling import working_call
from pellucid.prove.copies import eagerly, undisturbed
from pellucid.prove.held import all_in, filled, has_memory
from pellucid.prove.lending import Loan


def with_values(tensor: Tensor, name: str) -> Tensor:
    """A tensor with every value in memory, a sparse or quantized one multiplied out."""
    if tensor.is_meta or nn.parameter.is_lazy(tensor):  # refused by `require_values`, which says more
        return tensor
    made = filled(tensor)
    if made is None:
        raise InputError(
            f"compare: {shown(name)} is a {type(tensor).__name__} whose values cannot be read one by one.",
            code="compare-no-values",
            remedy="Give plain tensors; of a nested one, its parts: tensor.unbind().",
        )
    return made


def require_values(side: Tensor | nn.Module | Mapping[str, Tensor]) -> tuple[str, ...]:
    """Notes of tensors without values that no run reads; `InputError` if a side has others."""
    if isinstance(side, nn.Module):
        require_tree(side, "compare")
        held = all_in(side)[0]
    else:
        held = {"the tensor": side} if isinstance(side, Tensor) else dict(side)
    waiting = [name for name, tensor in held.items() if nn.parameter.is_lazy(tensor)]
    if waiting:
        raise InputError(
            f"compare: {shown(waiting[0])} of {type(side).__name__} has no shape yet: a lazy module makes its "
            "parameters at its first run.",
            code="compare-no-values",
            remedy="Run the model once on a batch of ids, and remove lazy modules that do not run.",
        )
    empty = [name for name, tensor in held.items() if tensor.is_meta]
    if not empty:
        return ()
    if isinstance(side, nn.Module) and len(empty) < len(held) and _runs_without_them(side):
        return (f"on the meta device, where nothing has values, and not read in a run of two ids: {shown(empty)}",)
    raise InputError(
        f"compare: {shown(empty[0])} of {type(side).__name__} is on the meta device and has no values"
        f" ({len(empty)} of {len(held)} tensors are).",
        code="compare-no-values",
        remedy="Give it values first: model.to_empty(device='cpu'), then model.load_state_dict(weights)."
        if isinstance(side, nn.Module)
        else "Give tensors with values, such as torch.load(file, map_location='cpu') returns.",
    )


class _Reader(DispatchMode):
    """Sees which memory is read, and whether anything computes with a tensor on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.empty = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        tensors = [one for one in tree_leaves((args, given)) if isinstance(one, Tensor)]
        self.empty |= any(tensor.is_meta for tensor in tensors)
        self.read |= {tensor.untyped_storage().data_ptr() for tensor in tensors if has_memory(tensor)}
        return func(*args, **given)


def _runs_without_them(module: nn.Module) -> bool:
    """Whether a module runs on two ids, and nothing in the run reads a tensor on the meta device."""
    with Loan(module).taken() as lent:
        reader = _reader_of(lent)
    return reader is not None and not reader.empty


def read_in(module: nn.Module) -> set[str] | None:
    """The names of the tensors that a run of two ids reads; None if the module does not run so."""
    with Loan(module).taken() as lent:
        reader, held = _reader_of(lent), all_in(lent)[0]
        if reader is None:
            return None
        known = {name: tensor for name, tensor in held.items() if has_memory(tensor)}
        read = {name for name, tensor in known.items() if tensor.untyped_storage().data_ptr() in reader.read}
    return read | (held.keys() - known.keys())


def _reader_of(lent: nn.Module) -> _Reader | None:
    """What a run of two ids reads; None if the module raises."""
    ids = torch.zeros(1, 2, dtype=torch.long)
    ids = ids.to(next((p.device for p in lent.parameters() if not p.is_meta), ids.device))
    with torch.no_grad(), eagerly(), undisturbed(lent), _Reader() as reader:
        try:
            working_call(lent, ids)
        except Exception:  # whatever a foreign forward raises
            return None
    return reader
