"""`DispatchMode`: torch's `TorchDispatchMode`, whose first use does not import torch's compiler."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Sees every operation that runs inside it, as its subclasses' `__torch_dispatch__` says.

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
