"""The caller's own modules, lent for a run, and which of their tensors a run reads.

What runs is what the caller runs, and all of it comes back as it was. A deep copy is not always the same program:
functions are not copied, so a closure over the caller's modules (minGPT's MLP, a wrapped forward) runs those, in the
caller's mode and dtype. Here the module objects stay, and their state is a copy for the length of a run: modes, hooks,
buffers and attributes, and the parameters that something writes into.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pellucid.numerics.dense import has_memory
from pellucid.numerics.dispatch import DispatchMode
from pellucid.prove.calling import working_call
from pellucid.prove.copies import (
    CONTAINERS,
    UNCHANGING,
    Moved,
    copied,
    eagerly,
    is_compiled,
    is_scripted,
    undisturbed,
    writes_as_it_looks_up,
)
from pellucid.prove.held import all_in, hold


class Loan:
    """A module that can be taken for one run after another, each of which begins with the caller's state.

    Args:
        module: The caller's.
        dtype: The dtype of the floating parameters and buffers during a run; None keeps theirs.
        computed: Weights that the module computes, by name: constants in a run in another dtype than the module's own.
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype | None = None, computed: Mapping[str, Tensor] | None = None
    ) -> None:
        self.module = module
        self.dtype = dtype
        self.computed: Mapping[str, Tensor] = computed or {}
        self.constants: Mapping[int, Tensor] = {}
        moved = Moved()
        # what stands in the place of the caller's parameters, by their id
        self.replaced: dict[int, nn.Parameter] = {
            id(parameter): nn.Parameter(held, parameter.requires_grad)
            for parameter in module.parameters()
            if (held := moved.instead(parameter, dtype)) is not None
        }

    def _written(self) -> list[nn.Parameter]:
        """The caller's parameters that something writes into as it evaluates, so that each run has its own."""
        writing = [c for c in self.module.modules() if writes_as_it_looks_up(c) or _merges(c)]
        return [parameter for child in writing for parameter in child.parameters(recurse=False)]

    def replacing(self, parameters: Mapping[int, nn.Parameter]) -> Loan:
        """The same with some parameters in the place of the caller's."""
        made = copy.copy(self)
        made.replaced = {**self.replaced, **parameters}
        return made

    def doubled(self) -> Loan:
        """The same with every parameter in float64."""
        held = {id(p): self.replaced.get(id(p), p) for p in self.module.parameters() if p.is_floating_point()}
        made = self.replacing({key: _like(parameter, torch.float64) for key, parameter in held.items()})
        made.dtype = torch.float64
        return made

    def with_constants(self, constants: Mapping[int, Tensor]) -> Loan:
        """The same with other tensors in float64 runs in the place of some that are no parameters, by their id."""
        made = copy.copy(self)
        made.constants = constants
        return made

    @contextmanager
    def taken(self, *, double: bool = False) -> Generator[nn.Module]:
        """The module, evaluating, for a run; afterwards it is what it was, even if the run raised."""
        if is_scripted(self.module):
            made = copy.deepcopy(self.module).eval()  # a compiled program is copied whole
            yield made if self.dtype is None and not double else made.to(torch.float64 if double else self.dtype)
            return
        children = [child for child in self.module.modules() if not is_scripted(child)]
        kept = [(child, dict(vars(child))) for child in children]
        memo: dict[int, Any] = {id(child): child for child in children}
        memo |= {id(parameter): parameter for parameter in self.module.parameters()} | self.replaced
        memo |= {id(parameter): _like(memo[id(parameter)], None) for parameter in self._written()}
        memo |= self.constants if double else {}
        try:
            lent = [(vars(child), self._lent(child, state, memo, double=double)) for child, state in kept]
            for held, state in lent:
                held.clear()
                held.update(state)
            dtype = torch.float64 if double else self.dtype
            for name, value in self.computed.items() if dtype is not None else ():
                hold(self.module, name, value.to(dtype))
            _evaluate(self.module)
            yield self.module
        finally:
            _give_back(kept)

    def _lent(self, child: nn.Module, state: dict[str, Any], memo: dict[int, Any], *, double: bool) -> dict[str, Any]:
        """A module's state with everything copied that a run can change."""
        compiled = is_compiled(child)
        lent: dict[str, Any] = {}
        for name, value in state.items():
            kind = type(value)
            if kind in UNCHANGING or (compiled and name[:1] != "_"):
                lent[name] = value
            elif kind in CONTAINERS and not value:  # most are: hooks that nobody set; several modules may share one
                lent[name] = memo[id(value)] if id(value) in memo else memo.setdefault(id(value), kind())
            else:
                lent[name] = _copied(value, memo)
        dtype = torch.float64 if double else self.dtype
        if dtype is not None:
            lent = {name: _in_dtype(value, dtype) for name, value in lent.items()}
            lent["_buffers"] = {name: _in_dtype(value, dtype) for name, value in lent["_buffers"].items()}
        return lent


def _give_back(kept: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for child, state in kept:
        vars(child).clear()
        vars(child).update(state)


def _evaluate(module: nn.Module) -> None:
    """Put a module into the mode in which it evaluates; one that refuses, as exported ones do, stays in its own."""
    try:
        module.eval()
    except Exception:  # whatever a foreign `train` raises
        return


def _merges(module: nn.Module) -> bool:
    """Whether a change of mode may write into parameters, as adapters do that merge themselves to evaluate."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def _like(parameter: nn.Parameter, dtype: torch.dtype | None) -> nn.Parameter:
    kept = dtype if parameter.is_floating_point() else None
    made = parameter.detach().clone() if kept in (None, parameter.dtype) else parameter.detach().to(kept)
    return nn.Parameter(made, parameter.requires_grad)


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.is_floating_point():
        return value.to(dtype)
    return value


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy; the value itself if it cannot be copied, such as a lock or an open file."""
    if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy these
        return memo.setdefault(id(value), value.detach().clone())
    try:
        return copied(value, memo)
    except Exception:  # whatever a foreign __deepcopy__ raises
        return value


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


def runs_without_meta(module: nn.Module) -> bool:
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
