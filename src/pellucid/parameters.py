"""Parameters by the field's names: live views of what is stored fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from pellucid.errors import WeightsError


def submodules(root: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once; a tenth of the time of `modules()`, which every captured run would feel."""
    found, seen = [root], {root}
    for module in found:
        if module._modules:
            for child in module._modules.values():
                if child is not None and child not in seen:
                    seen.add(child)
                    found.append(child)
    return found


def state_of(modules: Iterable[nn.Module]) -> tuple[tuple[int, int], ...]:
    """Where their own parameters are, and how often each was written to: changes with every change of a weight.

    A write that goes around torch's counting, such as one into `parameter.data`, is not seen; nor is one into a
    parameter that was made under `torch.inference_mode`.
    """
    parameters = [p for module in modules if module._parameters for p in module._parameters.values() if p is not None]
    try:
        return tuple([(parameter.data_ptr(), parameter._version) for parameter in parameters])
    except RuntimeError:  # raised where torch does not count
        return tuple([(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters])


def has_native_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether torch's forward hooks would run in one of these modules, or in all that there are."""
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return bool(everywhere) or any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum is one pass without temporaries, and any NaN or infinity spoils it. Only a sum that overflowed or was
    spoiled needs the closer look.
    """
    flat = tensor.detach()
    wide = torch.float32 if flat.element_size() < 4 else flat.dtype
    if bool(flat.sum(dtype=wide).isfinite()):
        return True
    rows = flat if flat.dim() > 1 else flat[None]
    return all(bool(row.isfinite().all()) for row in rows)


def require_numbers(verb: str, tensors: Iterable[Tensor]) -> None:
    """Refuse a model on the meta device, where tensors have shapes and no numbers.

    Raises:
        WeightsError: One of the tensors is there.
    """
    if any(tensor.is_meta for tensor in tensors):
        raise WeightsError(
            f"{verb}: the model is on the meta device, which holds no numbers.",
            code="meta-device",
            remedy="Load its weights first, such as with pl.load(name) or transformers' from_pretrained(name).",
        )


def put_buffers(root: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Put tensors in the place of buffers, by their dotted names."""
    for name, tensor in buffers.items():
        place, _, own = name.rpartition(".")
        root.get_submodule(place)._buffers[own] = tensor


def runs_as_written(modules: Iterable[nn.Module]) -> bool:
    """Whether each of these modules runs the forward that this package wrote, neither patched nor replaced."""
    return all(
        "forward" not in vars(module)
        and (isinstance(module, nn.ModuleList) or type(module).forward.__module__.startswith("pellucid."))
        for module in modules
    )


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
