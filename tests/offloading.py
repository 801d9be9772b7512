"""What accelerate does to a model whose tensors it keeps elsewhere, and its `remove_hook_from_module` afterwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class AlignDevicesHook:
    """Stands for accelerate's hook that moves tensors to where a module runs.

    Args:
        module: The module.
        home: The device that its tensors were on when they were taken away; "" if they stay.
    """

    def __init__(self, module: nn.Module, home: str) -> None:
        self.offload = bool(home)
        self.kept = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
        self.original_devices = {name: torch.device(home or "cpu") for name in self.kept}


class SequentialHook:
    """Stands for accelerate's several hooks of one module."""

    def __init__(self, *hooks: AlignDevicesHook) -> None:
        self.hooks = hooks


def moved_by_accelerate(model: Any, home: str = "") -> Any:
    """The model with such a hook in each module; with a home, meta tensors stand in the place of its own."""
    for module in model.modules():
        module._hf_hook = SequentialHook(AlignDevicesHook(module, ""), AlignDevicesHook(module, home))
        module._old_forward = module.forward
        module.forward = lambda *given, own=module.forward, **named: own(*given, **named)
        for name, tensor in module._hf_hook.hooks[1].kept.items() if home else ():
            module._parameters[name] = nn.Parameter(tensor.detach().to("meta"))
    return model


def brought_back(model: Any) -> Any:
    """The model without these hooks, as accelerate leaves it: the class's own forward stays in each module."""
    for module in model.modules():
        module._parameters.update(module._hf_hook.hooks[1].kept)
        module.forward = module._old_forward
        del module._hf_hook, module._old_forward
    return model
