"""What runs the steps of a generation: a family's kernels, a recorded step on an accelerator, or the model itself."""

from __future__ import annotations

from collections.abc import Collection

import torch

from pellucid.families import family_of
from pellucid.family import Kernels, StepDecoder
from pellucid.fast.graphed import GraphDecoder, can_record
from pellucid.network import Network
from pellucid.part import has_native_hooks, runs_as_written, submodules

MOST_ROWS = 32
"""Rows up to which reading the weights is what takes time; beyond, matrix products of torch are quicker."""


def decoder(model: Network, rows: int, names: Collection[str] = ()) -> StepDecoder | None:
    """What runs the steps of a model; None if the model has to run itself.

    It has to where it trains, has native hooks, or was changed since it was built; on the CPU where it has other
    activation functions or dtypes than the kernels know, or more rows than `MOST_ROWS`; on an accelerator where values
    are looked at or under autocast, or checkpoints are asked for that the kernels do not show.

    Raises:
        NumericsError: The kernels cannot be compiled.
    """
    weight, modules = model.embed.W_E, submodules(model)
    if model.training or has_native_hooks(modules) or not runs_as_written(modules):
        return None
    if can_record(weight.device):  # autocast keeps rounded weights of its own, and drops them when it likes
        return None if names or torch.is_autocast_enabled(weight.device.type) else GraphDecoder(model)
    kernels = kernels_for(model, rows)
    return None if kernels is None else kernels.decoder(model, names)


def kernels_for(model: Network, rows: int) -> Kernels | None:
    """Its family's kernels, if they know what this model is made of and are quicker at so many rows."""
    kernels = family_of(model.config).kernels
    return kernels if kernels is not None and rows <= MOST_ROWS and kernels.take(model) else None


def forget(model: Network) -> None:
    """Drop what was prepared from the weights of a model."""
    kernels = family_of(model.config).kernels
    if kernels is not None:
        kernels.forget(model)
