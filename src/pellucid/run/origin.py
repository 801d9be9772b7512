"""Which model made some values: its name, and a fingerprint of its weights that is worked out when somebody asks."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pellucid.errors import InputError
from pellucid.numerics.execution import Execution
from pellucid.parameters import state_of, submodules

CHANGED = "unknown: the weights were written to since the run"

_FINGERPRINTS: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


class Origin:
    """The model of a run, which is held, and what it was then.

    Args:
        name: Where the weights came from.
        model: What ran.
        state: The state of its parameters when it did.
    """

    def __init__(self, name: str, model: nn.Module, state: Any) -> None:
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


def model_of(origin: Origin | Known | None, given: nn.Module | None, by: str) -> nn.Module:
    """The model that made some values, with the weights that it had then.

    Args:
        origin: What is known of it.
        given: The model that the caller gave; None for the one that is held.
        by: The function that the user called, for messages.

    Raises:
        InputError: No model is held and none was given, it was changed since the run, or another one was given.
    """
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
    weights = "" if origin is None else origin.facts.get("weights", "")
    if weights and weights != weights_fingerprint(given):
        raise InputError(
            f"{by}: model= has other weights than the model that captured these values.",
            code="captures-of-another-model",
            remedy="Give the model that made them, or run the texts again with this one.",
        )
    assert given is not None
    return given


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
