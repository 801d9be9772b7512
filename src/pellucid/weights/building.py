"""What loading from disk and copying from a live model share: a model built around checked tensors."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pellucid.errors import WeightsError, shown, warn
from pellucid.family.json_config import Config
from pellucid.family.layout import HEAD
from pellucid.family.part import is_finite
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.numerics.products import DTYPES, Execution
from pellucid.weights.importing import Imported
from pellucid.weights.leftovers import described, listed


class Model(Protocol):
    """What loading and saving need of a model."""

    config: Config
    tokenizer: Any
    provenance: dict[str, str]
    training: bool
    execution: Execution

    @property
    def generation(self) -> GenerationSettings:
        """What its `generation_config.json`, or else its configuration, says."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The stored tensors, the head among them only when it is untied."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation."""
        ...


M_co = TypeVar("M_co", bound=Model, covariant=True)
M = TypeVar("M", bound=Model)


class ModelClass(Protocol[M_co]):
    """What builds a model around tensors, without copying them."""

    def __call__(
        self,
        config: Config,
        weights: dict[str, Tensor],
        *,
        tokenizer: Any = None,
        attention: str = "auto",
        numerics: str = "exact",
        provenance: dict[str, str] | None = None,
        generation: GenerationSettings | None = None,
    ) -> M_co:
        """A model of this configuration with these stored tensors."""
        ...


def convert(weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: str | torch.device) -> dict[str, Tensor]:
    """Tensors in one dtype (None: the narrowest that holds all of theirs) on a device; copied only if need be."""
    if dtype is None:
        dtypes = sorted({tensor.dtype for tensor in weights.values()}, key=str)
        try:
            dtype = functools.reduce(torch.promote_types, dtypes)
        except RuntimeError:  # eight-bit floats promote to nothing
            dtype = next(one for one in dtypes if one not in DTYPES.values())
        if dtype not in DTYPES.values():
            raise WeightsError(
                f"weights: stored as {dtype}, expected one of {', '.join(DTYPES)}.",
                code="dtype-not-supported",
                remedy="Pass dtype='float32' to have them converted.",
            )
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("the meta device holds no numbers")
        return separate({name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()})
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as problem:
        raise WeightsError(
            f"load: device={shown(str(device))}: {str(problem).splitlines()[0]}",
            code="device-not-available",
            remedy="Pass device='cpu', or the name of a device that torch can use on this machine.",
        ) from problem


def separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own: one that overlaps an earlier one is copied.

    A pickle may hold one storage under several names. As parameters of a model they would change together.
    """
    seen_end, separated = 0, dict(weights)
    for name in sorted(weights, key=lambda name: weights[name].data_ptr()):
        tensor = weights[name]
        if tensor.numel() == 0:
            continue
        start = tensor.data_ptr()
        if start < seen_end:
            separated[name] = tensor.clone(memory_format=torch.preserve_format)
        seen_end = max(seen_end, start + tensor.numel() * tensor.element_size())
    return separated


def describe(imported: Imported, weights: Mapping[str, Tensor], provenance: dict[str, str]) -> dict[str, str]:
    """Complete a provenance, and warn of what the reader should know."""
    remarks = list(imported.remarks)
    broken = [name for name, tensor in weights.items() if not is_finite(tensor)]
    if broken:
        rest = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        provenance = {**provenance, "non_finite": ", ".join(broken)}
        remarks.append(f"not finite numbers (NaN or infinity) in {', '.join(broken[:8])}{rest}")
    if remarks:
        provenance = {**provenance, "remarks": "; ".join(remarks)}
        warn(f"{provenance.get('source', 'weights')}: {'; '.join(remarks)}.")
    if imported.config.unread:
        provenance = {**provenance, "config_unread": listed(imported.config.unread, 100)}
    if imported.left_out:
        provenance = {**provenance, "left_out": described(imported.left_out)}
    if imported.filled:
        provenance = {**provenance, "zeros": f"no such biases in the weights file: {listed(imported.filled)}"}
    return {
        **provenance,
        "layout": imported.layout,
        "dtype": dtype_names(weights),
        "head": "untied" if HEAD in weights else "tied",
    }


def dtype_names(weights: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}))
