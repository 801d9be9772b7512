"""Tensors that are not dense, with numbers in memory of their own: what they are, and what brings their numbers back.

A model may hold its numbers elsewhere altogether: accelerate keeps them on the processor or on a disk, and meta tensors
stand in their place.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class NotDense(NamedTuple):
    """What a tensor is that is not dense."""

    said: str  # in words, after "is"
    made: str  # the call of the tensor that makes dense ones; "" if none is known
    instead: str = "Give dense tensors, with numbers in memory of their own."  # what to do if none is known

    def remedy(self, act: str = "Give") -> str:
        """What to do, such as to "Save" dense tensors."""
        return f"{act} dense tensors, as tensor.{self.made} makes them." if self.made else self.instead


_META = NotDense("on the meta device", "", "Load its numbers before it is saved.")
_LAZY = NotDense("without a shape yet", "", "Run the lazy module that holds it once, which makes its parameters.")
_NESTED = NotDense("nested", "unbind()")
_SHARDED = NotDense("sharded", "full_tensor()")
_QUANTIZED = NotDense("quantized", "dequantize()")


def not_dense(tensor: Tensor) -> NotDense | None:
    """What keeps a tensor from being dense, with numbers in memory of its own; None if nothing does."""
    if is_lazy(tensor):
        return _LAZY
    if tensor.is_meta:
        return _META
    if tensor.is_nested:
        return _NESTED
    if hasattr(tensor, "full_tensor"):  # a DTensor, whose class is not there without torch.distributed
        return _SHARDED
    if tensor.is_quantized or type(tensor).dequantize is not Tensor.dequantize:  # as torchao's are
        return _QUANTIZED
    if tensor.layout != torch.strided:
        return NotDense(str(tensor.layout).removeprefix("torch."), "to_dense()")
    return None if has_memory(tensor) else NotDense(f"a {type(tensor).__name__}, which has no memory of its own", "")


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in memory as strides say: no sparse one, and none of several sizes."""
    if is_lazy(tensor) or tensor.layout != torch.strided or tensor.is_nested or is_traceable_wrapper_subclass(tensor):
        return False
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # of a subclass that is a wrapper around others
        return False
    # Others, such as torch's MaskedTensor, say 0, as what is empty or on the meta device does.
    return place != 0 or tensor.is_meta or tensor.numel() == 0


def filled(tensor: Tensor) -> Tensor | None:
    """A tensor with every value in memory, a sparse or quantized one multiplied out; None if it cannot be.

    A sharded one cannot: to gather it, every process would have to ask for it.
    """
    kind = not_dense(tensor)
    if kind is None:
        return tensor
    try:
        with torch.no_grad():
            made = tensor.dequantize() if kind is _QUANTIZED else tensor.detach().to_dense()
    except (RuntimeError, NotImplementedError):
        return None
    return made if not_dense(made) is None else None


def bring_back(module: nn.Module) -> str:
    """What to do about a module's tensors that accelerate keeps elsewhere, with meta ones in their place; "" if none.

    When accelerate's hooks are removed they put a tensor back onto the device that it was on; it is the meta device if
    the model was opened with a part of it on a disk, and then they cannot.
    """
    homes: dict[str, str] = {}
    for path, child in module.named_modules():
        hook: Any = vars(child).get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            devices = getattr(one, "original_devices", {}) if getattr(one, "offload", False) else {}
            homes |= {f"{path}.{name}".lstrip("."): torch.device(device).type for name, device in devices.items()}
    listed = nn.Module.named_parameters, nn.Module.named_buffers  # torch's own: the module may have others
    held = chain.from_iterable(of(module) for of in listed)
    away = {homes[name] for name, tensor in held if name in homes and tensor.is_meta}
    if not away:
        return ""
    if "meta" in away:
        return "accelerate keeps tensors on a disk: open the model again without device_map."
    return "accelerate keeps tensors: accelerate.hooks.remove_hook_from_module(model, recurse=True) brings them back."
