"""HookedTransformer's words: short names of values, and slices that say which positions or rows are meant."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError, shown

_LAYER_TYPES = {"a": "attn", "m": "mlp", "b": "", "block": "", "blocks": "", "attention": "attn"}
_VALUES = {
    "attn": "pattern", "attn_logits": "attn_scores", "key": "k", "query": "q", "value": "v", "mlp_pre": "pre",
    "mlp_post": "post",
}  # fmt: skip
_PLACES = {
    **dict.fromkeys(("k", "v", "q", "z", "rot_k", "rot_q", "result", "pattern", "attn_scores"), "attn"),
    **dict.fromkeys(("pre", "post", "pre_linear"), "mlp"),
}


def get_act_name(name: str, layer: int | str | None = None, layer_type: str | None = None) -> str:
    """The full name of a hook point.

    Args:
        name: A full name, which is returned, or a short one, such as "k", "pattern6" or "scale4ln1".
        layer: The block.
        layer_type: "attn" ("a"), "mlp" ("m"), "ln1" or "ln2", if a block has several values of that name.

    Example:
        >>> from pellucid.compat.hooked import utils
        >>> utils.get_act_name("k", 6, "a"), utils.get_act_name("pre5"), utils.get_act_name("scale4ln1")
        ('blocks.6.attn.hook_k', 'blocks.5.mlp.hook_pre', 'blocks.4.ln1.hook_scale')
        >>> utils.get_act_name("embed"), utils.get_act_name("normalized")
        ('hook_embed', 'ln_final.hook_normalized')
    """
    if ("." in name or name.startswith("hook_")) and layer is None and layer_type is None:
        return name
    if match := re.fullmatch(r"([a-z_]+)(\d+)([a-z]?.*)", name):
        name, layer, layer_type = match[1], match[2], match[3] or layer_type
    name = _VALUES.get(name, name)
    place = _PLACES.get(name) or _LAYER_TYPES.get(layer_type or "", layer_type or "")
    if name in ("scale", "normalized") and layer is None:
        place = place or "ln_final"
    block = "" if layer is None else f"blocks.{layer}."
    return f"{block}{place}{'.' if place else ''}hook_{name}"


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
