"""Which model made some values: its name, and a fingerprint of its weights that is worked out when somebody asks."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pellucid.numerics.execution import Execution
from pellucid.parameters import state_of, submodules

CHANGED = "unknown: the weights were written to since the run"

_FINGERPRINTS: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


class Origin:
    """The model of a run, as it was then.

    The model is held until somebody asks for its fingerprint, which takes a second for a thousand million weights.

    Args:
        name: Where the weights came from.
        model: What ran.
        state: The state of its parameters when it did.
    """

    def __init__(self, name: str, model: nn.Module, state: Any) -> None:
        self.name = name
        self._model: nn.Module | None = model
        self._state = state
        self._execution = execution_of(model)

    @cached_property
    def facts(self) -> dict[str, str]:
        """`model` and `weights`, and how it was run."""
        model, self._model = self._model, None
        same = model is not None and state_of(submodules(model)) == self._state
        return {"model": self.name, "weights": weights_fingerprint(model) if same else CHANGED, **self._execution}


@dataclass(frozen=True)
class Known:
    """What a file or a pickle says of the model."""

    facts: dict[str, str]

    @property
    def name(self) -> str:
        """Where the weights came from."""
        return str(self.facts.get("model", ""))


def execution_of(model: Any) -> dict[str, str]:
    """`numerics` and `attention` of a model, in which runs of the same weights differ; empty where it has none."""
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
