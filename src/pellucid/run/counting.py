"""How many numbers a model's parameters hold, each in memory once and under each of its names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from pellucid.network import Network


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model's parameters hold.

    Attributes:
        unique: Each number in memory once, however many names it has.
        by_name: Each name's numbers, so that a tied tensor counts once for each of its names.
        bytes: Memory of the unique ones.
        components: Unique parameters under each component; a tied tensor belongs to the first that has it.
        tied: Numbers that a component holds under further names of a tensor, counted before.
    """

    unique: int
    by_name: int
    bytes: int
    components: dict[str, int]
    tied: dict[str, int]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.components.items())
        return f"{self.unique:,} parameters in {self.bytes:,} bytes ({self.by_name:,} by name): {parts}"


def storage_key(tensor: Tensor) -> tuple[int, int]:
    """What two tensors share exactly when they show the same memory from the same place on."""
    address = tensor.untyped_storage().data_ptr()
    return (address, int(tensor.storage_offset())) if address else (id(tensor), 0)  # meta tensors have no address


def _count(named: list[tuple[str, Tensor]], component: Callable[[str], str]) -> ParameterCount:
    """Count parameters given under all of their names."""
    seen: set[tuple[int, int]] = set()
    unique = size = 0
    components = {component(name): 0 for name, _ in named}
    tied = dict(components)
    for name, tensor in named:
        if storage_key(tensor) in seen:
            tied[component(name)] += tensor.numel()
        elif tensor.numel():
            seen.add(storage_key(tensor))
            unique += tensor.numel()
            size += tensor.numel() * tensor.element_size()
            components[component(name)] += tensor.numel()
    return ParameterCount(unique, sum(tensor.numel() for _, tensor in named), size, components, tied)


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of any module, each number once and each name once, per component.

    Example:
        >>> import pellucid as pl
        >>> model = pl.CkptedTransformer(pl.TransformerConfig.from_pretrained("distilgpt2"))
        >>> counted = pl.count_parameters(model)
        >>> counted.unique, counted.by_name
        (81912576, 120509952)
    """
    named: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    if not isinstance(model, Network):
        return _count(named, lambda name: name.split(".", 1)[0])
    if model.unembed.tied:
        named.append(("unembed.W_U", model.embed.W_E))
    return _count(named, _component)


def _component(name: str) -> str:
    parts = name.split(".")
    part = parts[2] if parts[0] == "blocks" else parts[0]
    return "ln" if part.startswith("ln") else part
