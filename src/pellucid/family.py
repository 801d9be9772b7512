"""`Family`: what a kind of model has to say about itself, so that everything else works with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pellucid.layout import Layout
from pellucid.network import Network, Run
from pellucid.part import Weights
from pellucid.schema import Schema
from pellucid.tap import Tap


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
        layout_of: Which of them tensors under canonical names have; None for none.
        differing: Fields of a configuration, with the sizes that tensors in a layout show instead.
    """

    name: str
    config: type[Any]
    build: Callable[[Network, Any, Weights | None], None]
    transform: Callable[[Network, Run, Tap | None], Tensor]
    schema_of: Callable[[Mapping[str, int]], Schema]
    published: Callable[[str], dict[str, Any] | None]
    layouts: tuple[Layout, ...]
    layout_of: Callable[[Mapping[str, Tensor]], Layout | None]
    differing: Callable[[Mapping[str, Tensor], Layout, Any], dict[str, Any]]
