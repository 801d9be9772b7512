"""Parameters by the field's names: live views of what is stored fused, and how many there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class LiveView:
    """An attribute that shows part of a stored parameter under the field's name.

    Reading gives a view: writing into it (under `torch.no_grad()`, as for any parameter) changes the model.
    `stored` names the parameter that it is a view of, `view` takes the module and that parameter, or its
    gradient, to the part.
    """

    def __init__(self, stored: str, view: Callable[[Any, Tensor], Tensor], doc: str) -> None:
        self.stored = stored
        self.view = view
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        return self if module is None else self.view(module, getattr(module, self.stored))

    def __set__(self, module: nn.Module, value: object) -> None:
        raise AttributeError(
            f"{self._name} is a live view of the stored parameter {self.stored}; write into it: "
            f"`with torch.no_grad(): module.{self._name}.copy_(value)`"
        )


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model's parameters hold.

    Attributes:
        unique: Each number in memory once, however many names it has.
        by_name: Each name's numbers, so that a tied tensor counts once for each of its names.
        bytes: Memory of the unique ones.
        components: Unique parameters under each component; a tied tensor belongs to the first that has it.
    """

    unique: int
    by_name: int
    bytes: int
    components: dict[str, int]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.components.items())
        return f"{self.unique:,} parameters in {self.bytes:,} bytes ({self.by_name:,} by name): {parts}"


def storage_key(tensor: Tensor) -> tuple[int, int]:
    """What two tensors share exactly when they show the same memory from the same place on."""
    address = tensor.untyped_storage().data_ptr()
    return (address, int(tensor.storage_offset())) if address else (id(tensor), 0)  # meta tensors have no address


def count(named: list[tuple[str, Tensor]], component: Callable[[str], str]) -> ParameterCount:
    """Count parameters given under all of their names."""
    seen: set[tuple[int, int]] = set()
    unique = size = 0
    components: dict[str, int] = {}
    for name, tensor in named:
        group = component(name)
        components.setdefault(group, 0)
        if tensor.numel() and storage_key(tensor) not in seen:
            seen.add(storage_key(tensor))
            unique += tensor.numel()
            size += tensor.numel() * tensor.element_size()
            components[group] += tensor.numel()
    return ParameterCount(unique, sum(tensor.numel() for _, tensor in named), size, components)
