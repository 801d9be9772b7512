"""The caller's own modules, lent for a run.

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

from pellucid.prove.copies import UNCHANGING, Moved, copied, is_compiled, is_scripted, writes_as_it_looks_up
from pellucid.prove.held import hold


class Loan:
    """A module that can be taken for one run after another, each of which begins with the caller's state.

    Args:
        module: The caller's.
        dtype: The dtype of the floating parameters and buffers during a run; None keeps theirs.
        replaced: Parameters by the id of the caller's in whose place they stand.
        computed: Weights that the module computes, by name: constants in a run in another dtype than the module's own.
        constants: What stands, in a float64 run, in the place of tensors that are no parameters, by their id.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype | None = None,
        replaced: Mapping[int, nn.Parameter] | None = None,
        computed: Mapping[str, Tensor] | None = None,
        constants: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.module = module
        self.dtype = dtype
        self.computed, self.constants = dict(computed or {}), dict(constants or {})
        moved, given = Moved(), dict(replaced or {})
        for parameter in module.parameters():
            held = moved.instead(parameter, dtype)
            if held is not None:
                given.setdefault(id(parameter), nn.Parameter(held, parameter.requires_grad))
        self.replaced = given

    def _written(self) -> list[nn.Parameter]:
        """The caller's parameters that something writes into as it evaluates, so that each run has its own."""
        writing = [c for c in self.module.modules() if writes_as_it_looks_up(c) or _merges(c)]
        return [parameter for child in writing for parameter in child.parameters(recurse=False)]

    def replacing(self, parameters: Mapping[int, nn.Parameter]) -> Loan:
        """The same with some parameters in the place of the caller's."""
        return Loan(self.module, self.dtype, {**self.replaced, **parameters}, self.computed, self.constants)

    def doubled(self) -> Loan:
        """The same with every parameter in float64."""
        held = {id(p): self.replaced.get(id(p), p) for p in self.module.parameters() if p.is_floating_point()}
        made = {key: _like(parameter, torch.float64) for key, parameter in held.items()}
        return Loan(self.module, torch.float64, {**self.replaced, **made}, self.computed, self.constants)

    def with_constants(self, constants: Mapping[int, Tensor]) -> Loan:
        """The same with other tensors in float64 runs in the place of some that are no parameters, by their id."""
        return Loan(self.module, self.dtype, self.replaced, self.computed, constants)

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
            if type(value) in UNCHANGING or (compiled and name[:1] != "_"):
                lent[name] = value
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
