"""Copies to run instead of the caller's models, so that nothing of theirs can change, whatever a forward does.

A copy shares the parameters' memory (or holds them in another dtype) and has modes, hooks and buffers of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


def working_copy(module: M, dtype: torch.dtype | None = None) -> M:
    """An evaluating copy of a module.

    Args:
        module: Left as it is.
        dtype: Of the copy's floating tensors; None keeps the dtypes and shares the parameters' memory.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        kept = dtype is None or not parameter.is_floating_point() or parameter.dtype == dtype
        memo[id(parameter)] = parameter if kept else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for child in module.modules():
        if getattr(child, "max_norm", None) is not None:  # such an embedding writes into its weight as it runs
            own = [parameter for parameter in child.parameters(recurse=False) if memo[id(parameter)] is parameter]
            memo |= {id(parameter): nn.Parameter(parameter.detach().clone(), False) for parameter in own}
        for value in vars(child).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy these
                memo[id(value)] = value.detach()
    made = copy.deepcopy(module, memo)
    return (made if dtype is None else made.to(dtype)).eval()


def parameter_dtypes(module: nn.Module) -> set[torch.dtype]:
    """The floating dtypes of a module's parameters."""
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


@contextmanager
def quietly(module: nn.Module, *, double: bool = False, dropout: bool = True) -> Generator[None]:
    """Run without gradients and without moving any random state; with `double`, float32 means float64.

    A program that writes `.float()`, `dtype=torch.float32` or a bare `torch.tensor(0.5)` means full precision; in a
    float64 run that is float64, else the run could not tell rounding from error.
    """
    devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
    default = torch.get_default_dtype()
    with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        try:
            if double:
                torch.set_default_dtype(torch.float64)
            with _Rewritten(double=double, dropout=dropout):
                yield
        finally:
            torch.set_default_dtype(default)


class _Rewritten(TorchFunctionMode):
    def __init__(self, *, double: bool, dropout: bool) -> None:
        super().__init__()
        self.double = double
        self.dropout = dropout

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not self.dropout and func in (F.dropout, torch.dropout):
            return args[0] if args else given["input"]
        if self.double:
            func = torch.Tensor.double if func is torch.Tensor.float else func
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
            given = {name: torch.float64 if arg is torch.float32 else arg for name, arg in given.items()}
        return func(*args, **given)
