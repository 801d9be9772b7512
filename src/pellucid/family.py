"""`Family`: what a kind of model has to say about itself, so that everything else works with it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pellucid.blocks import Architecture
from pellucid.json_config import Config
from pellucid.layout import Layout
from pellucid.network import Network
from pellucid.part import Weights
from pellucid.schema import Schema


@dataclass(frozen=True)
class InTransformers:
    """What transformers calls a family."""

    config: str  # the class of its configurations
    model: str  # the class of its models
    base: str  # the class of its models without a head
    live: str  # the module whose `KIND` says how a live one is read
    # what ours computes with beside its parameters -> its name in the model with a head
    buffers: Mapping[str, str] = field(default_factory=dict)
    files: Layout | None = None  # the layout of its files, if tensors have other names there than in its modules

    @property
    def kind(self) -> Any:
        """How a live one is read, imported at its first use: `pellucid.weights.living.Kind`."""
        return importlib.import_module(self.live).KIND


class StepDecoder(Protocol):
    """Runs a text one column after another."""

    dtype: torch.dtype  # the dtype of the keys and values that it reads

    def step(
        self, ids: Tensor, positions: Tensor, cache: Any, names: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the next column, ids and positions [B], which the cache, of this `dtype`, has room for and then holds.

        Returns logits [B, V], and the named values with one position each.
        """
        ...


@dataclass(frozen=True)
class Kernels:
    """Compiled decoding of a family."""

    take: Callable[[Network], bool]  # whether the kernels compute what a model computes
    # what runs its steps; None if one of the checkpoints cannot be shown
    decoder: Callable[[Network, Collection[str]], StepDecoder | None]
    bytes_needed: Callable[[Network], int]  # memory of the weights that are prepared for it
    forget: Callable[[Network], None]  # drops them


@dataclass(frozen=True)
class Span:
    """Part of a model: from the embeddings or the input of a block, to the end of a block or the logits."""

    ids: Tensor  # [B, P]
    first: int = -1  # the first block; -1 begins with the embeddings
    last: int = 1 << 30  # the last block; `n_layer` ends with the logits
    residual: Tensor | None = None  # what enters the first block, where it is not the embeddings' sum
    step: int = 1  # the logits of every so many-th token are computed; 1 for all
    by_place: bool = False  # name a block's values by its place in the order of blocks instead of its own number


@dataclass(frozen=True)
class Suspect:
    """A mistake that a program may have made, in a plain float64 model of the reference's parameters."""

    report: str  # what a report says of it
    # What the model with the mistake computes on a span, coarsely (in float32, to refuse it quickly) if the second
    # argument says so. The values are "logits" and others by place: the name of a parameter, a module or a block, then
    # `<` for what enters the module that it is, or that holds it, and `>` for what leaves it; "blocks.0.attn.W_Q>" are
    # queries. `RuntimeError` or `IndexError` if it cannot be made in these sizes.
    run: Callable[[Span, bool], dict[str, Tensor]]
    begins: int  # the first block that is computed otherwise; -1 for the embeddings, the number of blocks for the end
    # the same mistake in some blocks alone, which its report names; None if that cannot be
    only_in: Callable[[tuple[int, ...]], Suspect] | None = None
    is_of_order: bool = False  # whether it changes which blocks are applied, so only a run of the whole model shows it
    is_of_logits: bool = False  # whether it needs the logits of all tokens at once
    harmless: bool = False  # whether it is rounding all the same, or no text can show it
    slight: bool = False  # whether it is rounding, so it explains no large error
    what: Any = None  # the family's own description of the mistake, for `beside`
    # the same mistake in a model that also makes another, which is given; None if that cannot be
    beside: Callable[[Suspect], Suspect] | None = None


@dataclass(frozen=True)
class Seen:
    """What a comparison saw of a program, from which a family suspects mistakes."""

    ids: Tensor  # what was run, [B, P]
    where: str  # the checkpoint at which it first differs, or "logits"
    observed: Tensor  # what it has there
    expected: Mapping[str, Tensor]  # what the reference has, by checkpoint, and "logits"
    alone: Mapping[str, Tensor]  # tensors of its own that are no parameters of the reference
    # parameter -> which of the reference's heads stands at each place, if they are in another order
    heads: Mapping[str, tuple[int, ...]]

    @property
    def right(self) -> Tensor:
        """What the reference has where the program first differs."""
        return self.expected[self.where]


def later(module: str, name: str) -> Callable[..., Any]:
    """A function of a module that is imported at its first call: who opens a model need not wait for a comparison's."""

    def call(*given: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*given)

    return call


def _none(*_: Any) -> Iterator[Any]:
    return iter(())


@dataclass(frozen=True)
class Recognition:
    """How a model is recognised that does not say what it is."""

    # configurations that tensors in a layout fit, the plainest first; `KeyError` if tensors are missing
    configs: Callable[[Mapping[str, Tensor], Layout], Iterator[Any]]
    # ways to read a module whose tensors are given by name; each gives, the likeliest first, configurations and stored
    # parameters that the module may have
    readings: Callable[[nn.Module, Mapping[str, Tensor]], Iterator[Iterator[tuple[Any, Weights]]]] = _none


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of model; `pellucid.families` has a line for each."""

    name: str  # as its schema says
    config: type[Config]  # the class of its configurations
    architecture: Architecture  # the modules of its networks, and the way through them
    schema_of: Callable[[Mapping[str, int]], Schema]  # the schema of a model of which only sizes are known
    layouts: tuple[Layout, ...]  # how its weights are stored by others, transformers' first
    in_transformers: InTransformers  # what transformers calls it
    # which of them tensors under canonical names have; None for none
    layout_of: Callable[[Mapping[str, Tensor]], Layout | None]
    kernels: Kernels | None  # compiled decoding; None if there is none
    # fields of a configuration, with the sizes that tensors in a layout show instead
    differing: Callable[[Mapping[str, Tensor], Layout, Any], dict[str, Any]]
    # parameters of a block that no text can show, with the reason
    unseen: Mapping[str, str] = field(default_factory=dict[str, str])
    # gives a network, before it is run in float64 beside another program, the constants as that program rounds them,
    # which are among the tensors that it keeps beside parameters, or unrounded ones, and returns by their id those that
    # the program is given unrounded; None if the family has no constants that are kept in float32
    adopt: Callable[[Network, Sequence[Tensor]], Mapping[int, Tensor]] | None = None
    recognition: Recognition | None = None  # how its models are recognised; None if they have to say what they are
    dropouts: tuple[str, ...] = ()  # the fields of its configurations that are rates of dropout
    # the mistakes that a comparison tries, for a configuration, the parameters by name (live views among them) and what
    # was seen, the likely ones first; None if the family has no plain model for them
    suspects: Callable[[Any, Mapping[str, Tensor], Seen], Iterator[Suspect]] | None = None
    # the mistakes that are tried else, as `Change`s of a network, for a network; None if none are known
    mistakes: Callable[[Network], Iterator[Any]] | None = None
