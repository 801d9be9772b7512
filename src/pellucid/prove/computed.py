"""Weights that a program computes from other tensors: torch's parametrizations, its older norms, and pruning.

What counts is the weight that comes out, in the program's own dtype, under the name that the module gives it. In a
float64 run it stays that weight: computing it again from rounded tensors would give another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
