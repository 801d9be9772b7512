"""The tensors that a program computes with, under the names of the modules that hold them.

Of torch's parametrizations, its older norms and pruning, what counts is the weight that comes out, in the program's own
dtype, under the name that the module gives it. In a float64 run it stays that weight: computing it again from rounded
tensors would give another one. A quantized layer counts with the weight that its whole numbers stand for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pellucid.check import attribute


def held_in(module: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """The parameters and kept buffers of a module and those inside it, and which of the names are buffers'.

    Read from the modules themselves: a `state_dict` of its own, or hooks on it, may rename, add or leave out. What lies
    on the meta device has no values, and is not among them: see `all_in`.
    """
    held, buffers = all_in(module)
    return {name: tensor for name, tensor in held.items() if not tensor.is_meta}, buffers


def all_in(module: nn.Module) -> tuple[dict[str, Tensor], set[str]]:
    """The same with what has no values."""
    held: dict[str, Tensor] = {}
    buffers: set[str] = set()
    for path, child in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        passing = getattr(child, "_non_persistent_buffers_set", set[str]())
        held |= dict(nn.Module.named_parameters(child, prefix=path, recurse=False, remove_duplicate=False))
        kept = dict(nn.Module.named_buffers(child, prefix=path, recurse=False, remove_duplicate=False))
        kept = {name: tensor for name, tensor in kept.items() if name.removeprefix(prefix) not in passing}
        held, buffers = held | kept, buffers | set(kept)
    return held, buffers


DEEPEST = 6
"""How deep plain containers may hold each other: blocks of layers of weights, and what is around them."""


def hidden_in(module: nn.Module) -> dict[str, Tensor]:
    """Tensors that modules keep in plain attributes, lists and mappings, where torch does not look for parameters."""
    seen = {id(tensor) for tensor in (*module.parameters(), *module.buffers())} | {id(m) for m in module.modules()}
    own, found = set(vars(nn.Module())), dict[str, Tensor]()
    for path, child in module.named_modules():
        for name, value in vars(child).items():
            if name not in own:
                found |= _inside(value, f"{path}.{name}".lstrip("."), seen, DEEPEST)
    return found


def _inside(value: Any, name: str, seen: set[int], deep: int) -> dict[str, Tensor]:
    """The tensors in a value that were not seen before, by the way to them."""
    if id(value) in seen or deep == 0:
        return {}
    if isinstance(value, Tensor):
        seen.add(id(value))
        return {} if value.is_meta else {name: value}
    if isinstance(value, nn.Module):
        return {f"{name}.{inner}": tensor for inner, tensor in held_in(value)[0].items() if id(tensor) not in seen}
    items: Any = {}
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value)
    elif isinstance(value, (list, tuple)):
        items = dict(enumerate(cast("Sequence[Any]", value)))
    elif isinstance(value, SimpleNamespace):
        items = vars(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):  # which may have slots
        items = {field.name: attribute(value, field.name) for field in dataclasses.fields(value)}
        items |= getattr(value, "__dict__", {})  # what it set beside its fields
    found: dict[str, Tensor] = {}
    for key, item in items.items():
        found |= _inside(item, f"{name}.{key}", seen, deep - 1)
    return found


ROUNDING = 8
"""How many steps of its dtype, at its largest value, a weight may be off that is computed from what stands for it."""


@dataclass(frozen=True)
class Computed:
    """A weight that a module computes."""

    name: str  # its name, as if it were a parameter
    value: Tensor  # what is computed, evaluating
    how: str  # what computes it, in words
    stored: tuple[Tensor, ...]  # the tensors that it is computed from, without what the computation keeps for itself
    # from a weight to such tensors; None if the computation does not say
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
    """The computed weights of a module by name; it is lent, because older norms write what they compute into it."""
    found: dict[str, Computed] = {}
    with torch.no_grad():
        for path, child in module.named_modules():
            made = (*_parametrized(child), *_hooked(child), *_quantized(child))
            found |= {name: weight for weight in made if (name := f"{path}.{weight.name}".lstrip("."))}
    return found


def computes(module: nn.Module) -> bool:
    """Whether a module computes any of its weights."""
    return any(
        bool(_parametrizations(child)) or any(map(_target, child._forward_pre_hooks.values()))
        for child in module.modules()
    )


def with_computed(held: Mapping[str, Tensor], computed: Mapping[str, Computed]) -> dict[str, Tensor]:
    """A state dict with computed weights in the place of what they are computed from."""
    made: dict[str, Tensor] = {}
    for name, tensor in held.items():
        whole = next((weight for weight in computed if name.startswith(_beginnings(weight))), None)
        made[name if whole is None else whole] = tensor if whole is None else computed[whole].value
    return {**made, **{name: weight.value for name, weight in computed.items() if name not in made}}


def _beginnings(weight: str) -> tuple[str, str]:
    """How names of tensors begin that a weight is computed from."""
    path, _, attribute = weight.rpartition(".")
    return f"{path}.parametrizations.{attribute}.".lstrip("."), f"{weight}_"


def hold(module: nn.Module, name: str, value: Tensor) -> None:
    """Keep a lent module from computing a weight again: it becomes a constant."""
    path, _, attribute = name.rpartition(".")
    child = module.get_submodule(path)
    if attribute in (made := _parametrizations(child)):
        made[attribute] = _Constant(value)
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


def _parametrizations(child: nn.Module) -> dict[str, nn.Module]:
    """The parametrizations of a module's own weights, by their names."""
    # not by its attribute, since `__getattr__` may be the program's own
    held = dict(child.named_children()).get("parametrizations")
    return held._modules if isinstance(held, nn.ModuleDict) else {}


def _parametrized(child: nn.Module) -> Iterator[Computed]:
    for name, made in _parametrizations(child).items():
        steps = list(cast(parametrize.ParametrizationList, made))
        how = " and ".join(type(step).__name__.lstrip("_") for step in steps)
        yield Computed(
            name, made().detach().clone(), how,
            tuple(tensor.detach() for key, tensor in made.named_parameters(recurse=False) if key[:8] == "original"),
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
        target = _target(hook)
        if target is None:
            continue
        hook(child, ())
        held = {**child._parameters, **child._buffers}
        stored = [t.detach() for name, t in held.items() if t is not None and name.startswith(f"{target}_")]
        dim: Any = getattr(hook, "dim", None)
        norm = type(hook).__name__ == "WeightNorm"
        undo = (lambda weight, d=dim: (torch.norm_except_dim(weight, 2, d), weight)) if norm else None
        value = cast(Tensor, getattr(child, target)).detach().clone()
        yield Computed(target, value, type(hook).__name__, tuple(stored), undo)


def _target(hook: Any) -> str | None:
    """The attribute that a hook of torch.nn.utils computes; None of any other hook."""
    if not type(hook).__module__.startswith("torch.nn.utils."):
        return None
    found = getattr(hook, "name", getattr(hook, "_tensor_name", None))
    return found if isinstance(found, str) else None


def _quantized(child: nn.Module) -> Iterator[Computed]:
    """What the whole numbers of a layer of `torch.ao` stand for; it keeps them where torch sees no parameters."""
    weight, bias = attribute(child, "weight"), attribute(child, "bias")
    if not type(child).__module__.startswith("torch.ao.nn.quantized.") or not callable(weight):
        return
    made: Any = weight()
    if isinstance(made, Tensor) and made.is_quantized:
        how = f"quantized {type(child).__name__}"
        yield Computed("weight", made.dequantize(), how, ())
        shift: Any = bias() if callable(bias) else None
        if isinstance(shift, Tensor):
            yield Computed("bias", shift.detach(), how, ())
