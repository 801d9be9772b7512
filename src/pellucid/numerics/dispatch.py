"""Torch's modes around a call: what it records and where it makes tensors, and a `TorchDispatchMode` of our own."""

from __future__ import annotations

import functools
import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Torch's mode that sees every operation inside it, whose first use does not import torch's compiler.

    Torch puts a wrapper around that method, which keeps the compiler out of it and, to do so, imports the compiler: a
    second in every process that compares or checks. A compiler that nobody has imported need not be kept out.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        plain = cls.__dict__.get("__torch_dispatch__")
        super().__init_subclass__(**kwargs)
        wrapped: Any = cls.__torch_dispatch__
        if plain is None or plain is wrapped:
            return

        @functools.wraps(plain)
        def dispatch(self: Any, *args: Any, **given: Any) -> Any:
            return (wrapped if "torch._dynamo" in sys.modules else plain)(self, *args, **given)

        cls.__torch_dispatch__ = dispatch


@contextmanager
def ordinary_tensors() -> Generator[None]:
    """Tensors made inside are ordinary ones: a model opened under `torch.inference_mode` can be trained afterwards.

    They are made on the processor if no device is named, whatever `torch.set_default_device` says, so that their
    numbers can be looked at.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu") if elsewhere else nullcontext():
        yield


@contextmanager
def recorded() -> Generator[None]:
    """Gradients are recorded inside, whatever the caller switched off: many notebooks begin by switching them off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
