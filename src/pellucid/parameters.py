"""Parameters by the field's names: live views of what is stored fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def state_of(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where a module's parameters are and how often each was written to; equal as long as nothing changed.

    A write that goes around torch's counting (`parameter.data`, numpy) does not show.
    """
    return tuple((parameter.data_ptr(), parameter._version) for parameter in module.parameters())


def has_native_hooks(module: nn.Module) -> bool:
    """Whether torch's forward hooks would run in a module, or in all modules."""
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return bool(everywhere) or any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


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


class ViewedModule(nn.Module):
    """A module with live views: assigning to one is refused, whatever is assigned."""

    def __setattr__(self, name: str, value: object) -> None:
        view = getattr(type(self), name, None)
        if isinstance(view, LiveView):
            view.__set__(self, value)
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]  (any attribute)
