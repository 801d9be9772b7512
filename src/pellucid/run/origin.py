"""Captured values beside their run: which model made them, with a fingerprint of its weights, and the file of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pellucid.check import require_whole
from pellucid.errors import InputError, shown
from pellucid.family import families
from pellucid.family.network import Network
from pellucid.family.part import state_of, submodules
from pellucid.numerics.products import Execution
from pellucid.run.region import Region
from pellucid.schema import HEADS, Axis, Schema
from pellucid.text.batch import Batch
from pellucid.weights import own_file

CHANGED = "unknown: the weights were written to since the run"

_ABOUT = "pellucid.ckpts"
"""Under which metadata key a file of captured values says what its tensors are."""

_MOST_LAYERS = 1_000
"""Far more than any model has: what a damaged file says is believed no further."""

_FINGERPRINTS: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def source_of(model: Any) -> str:
    """Where a model's weights came from; its class if they came from nowhere."""
    return str(getattr(model, "provenance", {}).get("source", type(model).__name__))


class Origin:
    """The model of a run, which is held, and what it was then."""

    def __init__(self, name: str, model: Network, state: Any) -> None:
        self.name = name
        self.model = model
        self._state = state
        self._execution = execution_of(model)

    @property
    def is_unchanged(self) -> bool:
        """Whether the weights are those of the run."""
        return state_of(submodules(self.model)) == self._state

    @cached_property
    def facts(self) -> dict[str, str]:
        """`model` and `weights`, worked out here: a second for a thousand million of them; and how it was run."""
        weights = weights_fingerprint(self.model) if self.is_unchanged else CHANGED
        return {"model": self.name, "weights": weights, **self._execution}


@dataclass(frozen=True)
class Known:
    """What a file or a pickle says of the model."""

    facts: dict[str, str]

    @property
    def name(self) -> str:
        """Where the weights came from."""
        return str(self.facts.get("model", ""))


def model_of(origin: Origin | Known | None, given: Network | None, by: str, schema: Schema) -> Network:
    """The model that made some values, as `ActivationCkpts.made_by` says; `schema` is that of the values."""
    if given is not None and not isinstance(given, Network):
        raise InputError(
            f"{by}: model={shown(given)}, expected the model that made the captured values.",
            code="captures-of-another-model",
            remedy="Give the CkptedTransformer whose run_with_ckpts returned them.",
        )
    held = origin if isinstance(origin, Origin) else None
    if given is None and held is None:
        raise InputError(
            f"{by}: captured values that were saved or pickled no longer hold their model.",
            code="captures-without-model",
            remedy="Give the model that made them: model=model.",
        )
    if held is not None and (given is None or given is held.model):
        if held.is_unchanged:
            return held.model
        raise InputError(
            f"{by}: the model's weights were written to, or moved, since the run that captured these values.",
            code="captures-of-a-changed-model",
            remedy="Run the texts again, and give the new captured values.",
        )
    assert given is not None
    weights = "" if origin is None else origin.facts.get("weights", "")
    other = "weights" if weights and weights != weights_fingerprint(given) else ""
    if not other and (given.schema.family, given.schema.names) != (schema.family, schema.names):
        other = "checkpoints"
    if other:
        raise InputError(
            f"{by}: the model has other {other} than the one that captured these values.",
            code="captures-of-another-model",
            remedy="Give the model that made them, or run the texts again with this one.",
        )
    return given


def execution_of(model: Any) -> dict[str, str]:
    """`numerics` and `attention` of a model, in which runs of the same weights differ; empty if it has none."""
    execution = getattr(model, "execution", None)
    return asdict(execution) if isinstance(execution, Execution) else {}


def weights_fingerprint(model: Any) -> str:
    """SHA-256 of a module's parameters and buffers with their names; "" for what is no module.

    Worked out once for as long as the parameters stay as they are.
    """
    if not isinstance(model, nn.Module):
        return ""
    state, found = state_of(submodules(model)), _FINGERPRINTS.get(model)
    if found is None or found[0] != state:
        found = _FINGERPRINTS[model] = (state, _digest(model))
    return found[1]


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {held.dtype} {list(held.shape)}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class Captures:
    """What a file of captured values holds; `ActivationCkpts` says what each part is."""

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


def load_captures(path: str | Path) -> Captures:
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
