"""The file of captured values: tensors by checkpoint, the tokens that made them, and what is known of the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pellucid import families, own_file
from pellucid.axes import Axis
from pellucid.check import require_whole
from pellucid.errors import InputError, shown
from pellucid.run.region import Region
from pellucid.schema import HEADS, Schema
from pellucid.text.batch import Batch

_ABOUT = "pellucid.ckpts"
"""Under which metadata key a saved file says what its tensors are."""

_MOST_LAYERS = 1_000
"""Far more than any model has: what a damaged file says is believed no further."""


@dataclass(frozen=True)
class Captures:
    """What such a file holds; `ActivationCkpts` says what each part is."""

    values: Mapping[str, Tensor]
    batch: Batch
    schema: Schema
    part: Region
    provenance: dict[str, str]
    edited: Collection[str] | None

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        columns = None if self.part.pos is None else self.part.columns(self.batch.shape[1]).tolist()
        about = {
            "family": self.schema.family, "sizes": dict(self.schema.sizes), "pos": columns, "heads": self.part.heads,
            "strings": self.batch.strings, "names": list(self.values), "provenance": self.provenance,
            "edited": None if self.edited is None else sorted(self.edited),
        }  # fmt: skip
        tokens = {f"batch.{name}": getattr(self.batch, name).cpu() for name in ("ids", "mask", "positions")}
        apart = {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in self.values.items()}
        own_file.save(path, _ABOUT, {**apart, **tokens}, about)

    def require_one_run(self) -> None:
        """Raise `ValueError` for values and tokens that no run can have given."""
        ids, mask, positions = self.batch.ids, self.batch.mask, self.batch.positions
        if not ids.dim() == 2 or not ids.shape == mask.shape == positions.shape or mask.dtype != torch.bool:
            raise ValueError("its ids, mask and positions do not fit together")
        if any(tokens.dtype not in (torch.int64, torch.int32, torch.int16) for tokens in (ids, positions)):
            raise ValueError("its ids or positions are no whole numbers")
        if [len(strings) for strings in self.batch.strings] != mask.sum(1).tolist():
            raise ValueError("it has other strings than tokens")
        columns = len(self.part.columns(ids.size(1)))
        sizes: dict[str, int] = {Axis.BATCH: len(ids), Axis.POS: columns, Axis.QUERY: columns, Axis.KEY: ids.size(1)}
        if self.part.heads is not None:
            sizes |= dict.fromkeys(HEADS, len(cast("list[int]", self.part.heads)))
        for name, value in self.values.items():
            axes = self.schema.dims(name)
            fits = len(axes) == value.dim() and value.is_floating_point()
            if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(axes, value.shape, strict=True)):
                raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, which does not fit the others")


def load(path: str | Path) -> Captures:
    """Read what `Captures.save` wrote; errors are those of `ActivationCkpts.load`."""
    try:
        about, tensors = own_file.load(path, _ABOUT)
        ids, mask, positions = (tensors[f"batch.{name}"] for name in ("ids", "mask", "positions"))
        values = {name: tensors[name] for name in _texts(about["names"])}
        batch = Batch(ids, mask, positions, labels=[_texts(row) for row in _listed(about["strings"])])
        provenance = about.get("provenance", {})
        if not isinstance(provenance, dict) or not all(isinstance(fact, str) for fact in provenance.values()):
            raise ValueError("its provenance is not texts by name")
        # files of the first version have the number of GPT-2's blocks alone
        sizes = _sizes(about.get("sizes", {"layer": about.get("n_layer")}))
        schema = families.schema_of(str(about.get("family", "gpt2")), sizes)
        part = Region(_numbers(about["pos"]), _numbers(about["heads"]))
        edited = None if about.get("edited") is None else _texts(about["edited"])
        read = Captures(values, batch, schema, part, provenance, edited)
        read.require_one_run()
        return read
    except (KeyError, ValueError, InputError) as error:
        raise InputError(
            f"{str(path)!r} holds no captured checkpoints ({error!r}).",
            code="not-ckpts",
            remedy="Give a file that ActivationCkpts.save wrote.",
        ) from error


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)}, expected a list")
    return value


def _texts(value: Any) -> list[str]:
    if not all(isinstance(text, str) for text in _listed(value)):
        raise ValueError(f"{shown(value)}, expected texts")
    return value


def _sizes(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or "layer" not in value:
        raise ValueError(f"{shown(value)}, expected sizes by axis")
    most = {"layer": _MOST_LAYERS}
    sizes = cast("dict[str, Any]", value).items()
    return {axis: require_whole(axis, size, at_most=most.get(axis)) for axis, size in sizes}


def _numbers(value: Any) -> list[int] | None:
    return None if value is None else [require_whole("an index", number) for number in _listed(value)]
