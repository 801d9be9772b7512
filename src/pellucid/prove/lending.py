"""The caller's own modules, lent for a run, and the weights that they compute from other tensors.

What runs is what the caller runs, and all of it comes back as it was. A deep copy is not always the same program:
functions are not copied, so a closure over the caller's modules (minGPT's MLP, a wrapped forward) runs those, in the
caller's mode and dtype. Here the module objects stay, and their state is a copy for the length of a run: modes, hooks,
buffers and attributes, and the parameters that something writes into.

Of torch's parametrizations, its older norms and pruning, what counts is the weight that comes out, in the program's own
dtype, under the name that the module gives it. In a float64 run it stays that weight: computing it again from rounded
tensors would give another one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.prove.copies import Moved, is_compiled, is_scripted

ROUNDING = 8
"""How many steps of its dtype, at its largest value, a weight may be off that is computed from what stands for it."""


@dataclass(frozen=True)
class Computed:
    """A weight that a module computes.

    Attributes:
        name: Its name, as if it were a parameter.
        value: What is computed, evaluating.
        how: What computes it, in words.
        stored: The tensors that it is computed from, without what the computation keeps for itself.
        undo: From a weight to such tensors; None if the computation does not say.
    """

    name: str
    value: Tensor
    how: str
    stored: tuple[Tensor, ...]
    undo: Callable[[Tensor], Sequence[Tensor]] | None = None

    def comes_from(self, weight: Tensor) -> bool:
        """Whether the stored tensors are, to the bit, those that stand for a weight, and give it but for rounding."""
        size = float(weight.abs().max()) if weight.numel() else 0.0
        gap = (self.value - weight.to(self.value)).abs()
        if self.undo is None or not bool((gap <= ROUNDING * torch.finfo(self.value.dtype).eps * size).all()):
            return False
        try:
            with torch.no_grad():
                made = self.undo(weight.to(self.value))
        except Exception:  # whatever a foreign inverse raises: then nothing is shown
            return False
        return len(made) == len(self.stored) and all(map(torch.equal, made, self.stored))


def computed_in(module: nn.Module) -> dict[str, Computed]:
    """The computed weights of a module by name.

    Args:
        module: Evaluating, and lent: the older norms write what they compute into it.
    """
    found: dict[str, Computed] = {}
    with torch.no_grad():
        for path, child in module.named_modules():
            made = (*_parametrized(child), *_hooked(child))
            found |= {name: weight for weight in made if (name := f"{path}.{weight.name}".lstrip("."))}
    return found


def computes(module: nn.Module) -> bool:
    """Whether a module computes any of its weights."""
    return any(
        parametrize.is_parametrized(child) or any(map(_target, child._forward_pre_hooks.values()))
        for child in module.modules()
    )


def with_computed(held: Mapping[str, Tensor], computed: Mapping[str, Computed]) -> dict[str, Tensor]:
    """A state dict with computed weights in the place of what they are computed from."""
    made: dict[str, Tensor] = {}
    for name, tensor in held.items():
        whole = next((weight for weight in computed if name.startswith(_beginnings(weight))), None)
        made[name if whole is None else whole] = tensor if whole is None else computed[whole].value
    return made


def _beginnings(weight: str) -> tuple[str, str]:
    """How names of tensors begin that a weight is computed from."""
    path, _, attribute = weight.rpartition(".")
    return f"{path}.parametrizations.{attribute}.".lstrip("."), f"{weight}_"


def hold(module: nn.Module, name: str, value: Tensor) -> None:
    """Keep a lent module from computing a weight again: it becomes a constant."""
    path, _, attribute = name.rpartition(".")
    child = module.get_submodule(path)
    if parametrize.is_parametrized(child, attribute):
        cast(nn.ModuleDict, child.parametrizations)._modules[attribute] = _Constant(value)
        return
    for key in [key for key, hook in child._forward_pre_hooks.items() if _target(hook) == attribute]:
        del child._forward_pre_hooks[key]
    vars(child)[attribute] = value


class _Constant(nn.Module):
    """What stands where a parametrization was."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Any:
        return self.value


def _parametrized(child: nn.Module) -> Iterator[Computed]:
    if not parametrize.is_parametrized(child):
        return
    for attribute, made in cast(nn.ModuleDict, child.parametrizations).items():
        steps = list(cast(parametrize.ParametrizationList, made))
        how = " and ".join(type(step).__name__.lstrip("_") for step in steps)
        yield Computed(
            attribute, made().detach().clone(), how,
            tuple(tensor.detach() for name, tensor in made.named_parameters(recurse=False) if name[:8] == "original"),
            lambda weight, steps=steps: _inverted(steps, weight),
        )  # fmt: skip


def _inverted(steps: Sequence[nn.Module], weight: Tensor) -> Sequence[Tensor]:
    made: Any = weight
    for step in reversed(steps):
        made = cast(Any, step).right_inverse(made)
    return (made,) if isinstance(made, Tensor) else made


def _hooked(child: nn.Module) -> Iterator[Computed]:
    """Weights that hooks of torch.nn.utils compute before each call."""
    for hook in list(child._forward_pre_hooks.values()):
        attribute = _target(hook)
        if attribute is None:
            continue
        hook(child, ())
        held = {**child._parameters, **child._buffers}
        stored = [t.detach() for name, t in held.items() if t is not None and name.startswith(f"{attribute}_")]
        dim: Any = getattr(hook, "dim", None)
        norm = type(hook).__name__ == "WeightNorm"
        undo = (lambda weight, d=dim: (torch.norm_except_dim(weight, 2, d), weight)) if norm else None
        value = cast(Tensor, getattr(child, attribute)).detach().clone()
        yield Computed(attribute, value, type(hook).__name__, tuple(stored), undo)


def _target(hook: Any) -> str | None:
    """The attribute that a hook of torch.nn.utils computes; None of any other hook."""
    if not type(hook).__module__.startswith("torch.nn.utils."):
        return None
    found = getattr(hook, "name", getattr(hook, "_tensor_name", None))
    return found if isinstance(found, str) else None


class Loan:
    """A module that can be taken for one run after another, each of which begins with the caller's state.

    Args:
        module: The caller's.
        dtype: The dtype of the floating parameters and buffers during a run; None keeps theirs.
        replaced: Parameters by the id of the caller's in whose place they stand.
        computed: Weights that the module computes, by name: constants in a run in another dtype than the module's own.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype | None = None,
        replaced: Mapping[int, nn.Parameter] | None = None,
        computed: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.module = module
        self.dtype = dtype
        self.computed = dict(computed or {})
        moved, given = Moved(), dict(replaced or {})
        for parameter in module.parameters():
            held = parameter.detach().to(dtype) if self._is_other(parameter) else moved.aligned(parameter.detach())
            if held.data_ptr() != parameter.data_ptr():
                given.setdefault(id(parameter), nn.Parameter(held, parameter.requires_grad))
        self.replaced = given

    def _written(self) -> list[nn.Parameter]:
        """The caller's parameters that something writes into as it evaluates, so that each run has its own."""
        writing = [c for c in self.module.modules() if getattr(c, "max_norm", None) is not None or _merges(c)]
        return [parameter for child in writing for parameter in child.parameters(recurse=False)]

    def _is_other(self, tensor: Tensor) -> bool:
        return self.dtype is not None and tensor.is_floating_point() and tensor.dtype != self.dtype

    def replacing(self, parameters: Mapping[int, nn.Parameter]) -> Loan:
        """The same with some parameters in the place of the caller's."""
        return Loan(self.module, self.dtype, {**self.replaced, **parameters}, self.computed)

    def doubled(self) -> Loan:
        """The same with every parameter in float64."""
        held = {id(p): self.replaced.get(id(p), p) for p in self.module.parameters() if p.is_floating_point()}
        made = {key: _like(parameter, torch.float64) for key, parameter in held.items()}
        return Loan(self.module, torch.float64, made, self.computed)

    @contextmanager
    def taken(self, *, double: bool = False) -> Generator[nn.Module]:
        """The module, evaluating, for a run; afterwards it is what it was, also where the run raised.

        Args:
            double: Whether what it keeps beside parameters is float64.
        """
        if is_scripted(self.module):
            made = copy.deepcopy(self.module).eval()  # a compiled program is copied whole
            yield made if self.dtype is None and not double else made.to(torch.float64 if double else self.dtype)
            return
        children = [child for child in self.module.modules() if not is_scripted(child)]
        kept = [(child, dict(vars(child))) for child in children]
        memo: dict[int, Any] = {id(child): child for child in children}
        memo |= {id(parameter): parameter for parameter in self.module.parameters()} | self.replaced
        memo |= {id(parameter): _like(memo[id(parameter)], None) for parameter in self._written()}
        try:
            lent = [(vars(child), self._lent(child, state, memo, double=double)) for child, state in kept]
            for held, state in lent:
                held.clear()
                held.update(state)
            dtype = torch.float64 if double else self.dtype
            for name, value in self.computed.items() if dtype is not None else ():
                hold(self.module, name, value.to(dtype))
            yield self.module.eval()
        finally:
            _give_back(kept)

    def _lent(self, child: nn.Module, state: dict[str, Any], memo: dict[int, Any], *, double: bool) -> dict[str, Any]:
        """A module's state with everything copied that a run can change."""
        compiled = is_compiled(child)
        lent = {name: value if compiled and name[:1] != "_" else _copied(value, memo) for name, value in state.items()}
        dtype = torch.float64 if double else self.dtype
        if dtype is not None:
            lent = {name: _in_dtype(value, dtype) for name, value in lent.items()}
            lent["_buffers"] = {name: _in_dtype(value, dtype) for name, value in lent["_buffers"].items()}
        return lent


def _give_back(kept: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for child, state in kept:
        vars(child).clear()
        vars(child).update(state)


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
    """A copy; the value itself where it cannot be copied, such as a lock or an open file."""
    if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy these
        return memo.setdefault(id(value), value.detach().clone())
    if type(value) in (dict, list, tuple) and not value:
        return cast(Any, type(value)())
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # whatever a foreign __deepcopy__ raises
        return value
