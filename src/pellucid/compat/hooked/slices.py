"""HookedTransformer's way to say which positions or rows are meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError, shown


class Slice:
    """Entries along one axis: a number drops the axis, a tuple is a range, a list chooses, None keeps everything.

    Args:
        input_slice: 3; (stop,), (start, stop) or (start, stop, step); a slice; a list, array or tensor of indices or
            of booleans; None.

    Attributes:
        mode: "int", "slice", "array" or "identity".

    Example:
        >>> import torch
        >>> from pellucid.compat.hooked.utils import Slice
        >>> Slice((1, 3)).apply(torch.arange(5)), Slice(-1).apply(torch.arange(5))
        (tensor([1, 2]), tensor(4))
    """

    def __init__(self, input_slice: Any = None) -> None:
        self.slice: Any
        if isinstance(input_slice, tuple):
            self.slice, self.mode = slice(*input_slice), "slice"
        elif isinstance(input_slice, slice):
            self.slice, self.mode = input_slice, "slice"
        elif isinstance(input_slice, int) and not isinstance(input_slice, bool):
            self.slice, self.mode = input_slice, "int"
        elif isinstance(input_slice, (list, Tensor, np.ndarray)):
            self.slice, self.mode = np.asarray(input_slice), "array"
        elif input_slice is None:
            self.slice, self.mode = slice(None), "identity"
        else:
            raise InputError(
                f"Slice: {shown(input_slice)} given, expected a number, a tuple, a list or None.",
                code="slice-kind",
                remedy="Give -1 for the last position, (1, 4) for a range, or [0, 2] for some.",
            )

    def apply(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """The chosen entries along an axis of a tensor."""
        index: list[Any] = [slice(None)] * tensor.dim()
        index[dim] = torch.as_tensor(self.slice, device=tensor.device) if self.mode == "array" else self.slice
        return tensor[tuple(index)]

    def indices(self, max_ctx: int | None = None) -> np.ndarray[Any, Any]:
        """The indices that are chosen along an axis of this length; the length is not needed for one number."""
        if self.mode == "int":
            return np.array([self.slice], dtype=np.int64)
        if max_ctx is None:
            raise InputError(
                "Slice.indices: no length, which a range or a choice needs.",
                code="slice-without-length",
                remedy="Give max_ctx=, the length of the axis.",
            )
        return np.arange(max_ctx, dtype=np.int64)[self.slice]

    def __repr__(self) -> str:
        return f"Slice({self.slice!r}, mode={self.mode!r})"

    @classmethod
    def of(cls, slice_input: Any) -> Slice:
        """A slice, which may be one already."""
        return slice_input if isinstance(slice_input, Slice) else cls(slice_input)

    @classmethod
    def unwrap(cls, slice_input: Any) -> Slice:
        """A slice that keeps its axis: one number is a choice of one."""
        if isinstance(slice_input, Slice):
            return slice_input
        return cls([slice_input] if isinstance(slice_input, int) and not isinstance(slice_input, bool) else slice_input)
