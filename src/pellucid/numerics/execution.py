"""How the same mathematics is run: the caller's two choices, checked."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""The dtypes that a model may have, by name."""

ATTENTION = ("auto", "eager")
NUMERICS = ("exact", "fast", "bfloat16")


@dataclass(frozen=True)
class Execution:
    """How a model is run.

    Args:
        attention: "auto" fuses every layer that nobody looks inside; "eager" makes every layer explicit.
        numerics: "exact" performs the reference implementation's operations; "fast" may fuse them; "bfloat16" is fast
            and multiplies by the weights in bfloat16.

    Raises:
        ConfigError: Another choice.
    """

    attention: str = "auto"
    numerics: str = "exact"

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION:
            raise _unknown("attention", self.attention, ATTENTION, "unknown-attention")
        if self.numerics not in NUMERICS:
            raise _unknown("numerics", self.numerics, NUMERICS, "unknown-numerics")

    @property
    def is_fast(self) -> bool:
        """Whether other operations than the reference implementation's may give the values."""
        return self.numerics != "exact"

    @property
    def rounds_to(self) -> torch.dtype | None:
        """What matrices are rounded to before values are multiplied by them; None if they are not."""
        return torch.bfloat16 if self.numerics == "bfloat16" else None


EXACT = Execution()
"""The default: fused attention, the reference's operations."""


def is_transformed() -> bool:
    """Whether torch.compile, torch.func or forward differentiation run what is called, and so must know it."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  (there is no public way to ask)
    return (
        torch.compiler.is_compiling()
        or functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


@contextmanager
def ordinary_tensors() -> Generator[None]:
    """Tensors made inside are ordinary ones: a model opened under `torch.inference_mode` can be trained afterwards.

    They are made on the processor where no device is named, whatever `torch.set_default_device` says, so that their
    numbers can be looked at.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu") if elsewhere else nullcontext():
        yield


def is_batched(tensor: Tensor) -> bool:
    """Whether `torch.func.vmap` runs several samples as this tensor, at whatever depth of transforms."""
    functorch = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    if torch.compiler.is_compiling():  # which does not know these functions
        return False
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def _unknown(option: str, given: object, choices: tuple[str, ...], code: str) -> ConfigError:
    return ConfigError(
        f"{option}={given!r}, expected {' or '.join(map(repr, choices))}.", code=code, remedy="Give one of these."
    )
