"""`Family`: what a kind of model has to say about itself, so that everything else works with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pellucid.layout import Layout
from pellucid.network import Network, Run
from pellucid.part import Weights
from pellucid.schema import Schema
from pellucid.tap import Tap


@dataclass(frozen=True)
class Live:
    """What was read off a live model of transformers.

    Attributes:
        tensors: Under transformers' names, as its own classes store them; the model's own memory where nothing had to
            be turned. The head is among them unless it is the embedding.
        config: What the modules are; where it differs from the model's configuration, the modules count.
        notes: What the reader may want to know, by topic.
    """

    tensors: dict[str, Tensor]
    config: Any
    notes: dict[str, str]


@dataclass(frozen=True)
class InTransformers:
    """What transformers calls a family.

    Attributes:
        config: The class of its configurations.
        model: The class of its models.
        base: The class of its models without a head.
        read: Reads a live one, or refuses by name what cannot be carried over.
        stored: The tensors of one of its modules, by its path, as transformers' own classes store them.
        turned: Whether a module, by its path, keeps the matrix of a `Conv1D` the other way round, as a `Linear`.
        shown: Where a model without a head and of so many blocks shows our checkpoints, in their order.
    """

    config: str
    model: str
    base: str
    read: Callable[[nn.Module], Live]
    stored: Callable[[str, nn.Module], dict[str, Tensor]]
    turned: Callable[[str, nn.Module], bool]
    shown: Callable[[int], Iterable[Shown]]


class Shown(NamedTuple):
    """Where a module of transformers shows checkpoints of ours.

    Attributes:
        path: The module, below the model without its head.
        entering: True if what enters it is meant, else what leaves it.
        names: The checkpoints; several if the value holds them side by side along its last axis.
    """

    path: str
    entering: bool
    names: tuple[str, ...]


class StepDecoder(Protocol):
    """Runs a text one column after another.

    Attributes:
        dtype: The dtype of the keys and values that it reads.
    """

    dtype: torch.dtype

    def step(
        self, ids: Tensor, positions: Tensor, cache: Any, names: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the next column, which the cache has room for and then holds.

        Args:
            ids: [B].
            positions: [B].
            cache: A `KeyValueCache` in `dtype`; its mask says that the column holds tokens.
            names: Checkpoints to give.

        Returns:
            Logits [B, V], and the captured values with one position each.
        """
        ...


@dataclass(frozen=True)
class Kernels:
    """Compiled decoding of a family.

    Attributes:
        take: Whether the kernels compute what a model computes.
        decoder: What runs its steps; None if one of the checkpoints cannot be shown.
        bytes_needed: Memory of the weights that are prepared for it.
        forget: Drops them.
    """

    take: Callable[[Network], bool]
    decoder: Callable[[Network, Collection[str]], StepDecoder | None]
    bytes_needed: Callable[[Network], int]
    forget: Callable[[Network], None]


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of model; `pellucid.families` has a line for each.

    Attributes:
        name: As its schema says.
        config: The class of its configurations.
        build: Gives a network the family's modules around stored parameters, fresh ones if None.
        transform: Runs a network that was built so.
        schema_of: The schema of a model of which only sizes are known.
        published: The fields of a published model's configuration by its name; None for no such name.
        layouts: How its weights are stored by others, transformers' first.
        in_transformers: What transformers calls it.
        layout_of: Which of them tensors under canonical names have; None for none.
        matrices: The matrices that a run multiplies by, as [in, out], in the order in which it reads them.
        kernels: Compiled decoding; None if there is none.
        differing: Fields of a configuration, with the sizes that tensors in a layout show instead.
    """

    name: str
    config: type[Any]
    build: Callable[[Network, Any, Weights | None], None]
    transform: Callable[[Network, Run, Tap | None], Tensor]
    schema_of: Callable[[Mapping[str, int]], Schema]
    published: Callable[[str], dict[str, Any] | None]
    layouts: tuple[Layout, ...]
    in_transformers: InTransformers
    layout_of: Callable[[Mapping[str, Tensor]], Layout | None]
    matrices: Callable[[Network], Iterable[Tensor]]
    kernels: Kernels | None
    differing: Callable[[Mapping[str, Tensor], Layout, Any], dict[str, Any]]
