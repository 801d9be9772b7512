"""`Family`: what a kind of model has to say about itself, so everything else works with it; and those there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from pellucid.errors import ConfigError, UnknownNameError, shown
from pellucid.family.blocks import Architecture
from pellucid.family.config import as_names
from pellucid.family.json_config import Config
from pellucid.family.layout import Layout
from pellucid.family.network import Network
from pellucid.family.part import Weights
from pellucid.names import aliases
from pellucid.schema import Schema
from pellucid.weights import hub


@dataclass(frozen=True)
class InTransformers:
    """What transformers calls a family."""

    config: str  # the class of its configurations
    model: str  # the class of its models
    base: str  # the class of its models without a head
    kind: Any  # how a live one is read: `pellucid.weights.living.Kind`
    # what ours computes with beside its parameters -> its name in the model with a head
    buffers: Mapping[str, str] = field(default_factory=dict)
    files: Layout | None = None  # the layout of its files, if tensors have other names there than in its modules


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
    residual: Tensor | None = None  # what enters the first block, if it is not the embeddings' sum
    step: int = 1  # the logits of every so many-th token are computed; 1 for all
    # end the last block where attention was added, if the model has such a place: nothing after it is computed
    half: bool = False
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
    quick: bool = False  # whether float64 takes it hardly longer than float32, so nothing is computed coarsely first
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


@dataclass(frozen=True)
class Recognition:
    """How a model is recognised that does not say what it is."""

    # configurations that tensors in a layout fit, the plainest first; `KeyError` if tensors are missing
    configs: Callable[[Mapping[str, Tensor], Layout], Iterator[Any]]
    # ways to read a module whose tensors are given by name; each gives, the likeliest first, configurations and stored
    # parameters that the module may have
    readings: Callable[[nn.Module, Mapping[str, Tensor]], Iterator[Iterator[tuple[Any, Weights]]]] = field(
        default=lambda module, tensors: iter(())
    )


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of model; `pellucid.family.families` has a line for each."""

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
    # the mistakes that a comparison tries, for a configuration, the parameters by name (live views among them) and what
    # was seen, the likely ones first; None if the family has no plain model for them
    suspects: Callable[[Any, Mapping[str, Tensor], Seen], Iterator[Suspect]] | None = None
    # the mistakes that are tried else, as `Change`s of a network, for a network; None if none are known
    mistakes: Callable[[Network], Iterator[Any]] | None = None


_REGISTERED = ("pellucid.gpt2.family.GPT2", "pellucid.llama.family.LLAMA", "pellucid.neox.family.NEOX")


class _Families(Sequence[Family]):
    """The families in their order; each is imported when somebody comes to it."""

    def __init__(self) -> None:
        self._loaded: dict[int, Family] = {}  # every run asks for its family, and torch.compile traces no import

    def __len__(self) -> int:
        return len(_REGISTERED)

    @overload
    def __getitem__(self, index: int) -> Family: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Family]: ...

    def __getitem__(self, index: int | slice) -> Family | Sequence[Family]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self._loaded:
            module, _, name = _REGISTERED[index].rpartition(".")
            self._loaded[index] = getattr(importlib.import_module(module), name)
        return self._loaded[index]


FAMILIES: Sequence[Family] = _Families()


def one_of_them() -> str:
    """What messages say of all families, such as "a GPT-2 or a Llama"."""
    *others, last = (f"a {family.config.about.family}" for family in FAMILIES)
    return f"{', '.join(others)} or {last}"


def class_for(foreign: object) -> str:
    """The name of the class that reads a configuration of transformers'."""
    model_type = getattr(foreign, "model_type", None)
    return next((one for one in FAMILIES if one.name == model_type), FAMILIES[0]).config.__name__


def family_of(config: object) -> Family:
    """The family of a configuration."""
    for family in FAMILIES:
        if isinstance(config, family.config):
            return family
    expected = " or ".join(family.config.__name__ for family in FAMILIES)
    if config is None:
        raise ConfigError(
            f"config: not given, expected a {expected}.",
            code="config-missing",
            remedy="Give pl.TransformerConfig(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12) "
            "for a fresh GPT-2 small; pl.load() opens a trained model.",
        )
    raise ConfigError(
        f"config: {type(config).__name__} given, expected a {expected}.",
        code="config-wrong-type",
        remedy=f"Read another library's with pl.{class_for(config)}.from_dict(config.to_dict()), or open its model; "
        "of a model of pellucid's, give model.config.",
    )


def config_of(
    own: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    ignore: Collection[str] = (),
    change: str = "",
) -> Config:
    """Read a Hugging Face `config.json` of any family, already parsed; `given` counts before what it says.

    `change` says in a remedy how to change a field, at {field}, if the fields were not read beside the weights.
    """
    ignore = as_names(ignore)
    model_type = {**own, **(given or {})}.get("model_type")
    family = next((one for one in FAMILIES if one.name == model_type), None)
    if family is None and model_type is not None and "model_type" not in ignore:
        change = change or ("pass config={{field}}" if given is None else "pass config={**config, {field}}")
        raise _other_kind(model_type, {**own, **(given or {})}, change)
    family = family or FAMILIES[0]
    if given is None:
        return family.config.from_dict(own, ignore=ignore)
    return family.config.changed(own, given, ignore=ignore)


def _other_kind(model_type: object, own: Mapping[str, Any], change: str) -> ConfigError:
    """The error for a configuration of another kind, which may describe what is a model of a family all the same."""
    names = " or ".join(repr(one.name) for one in FAMILIES)
    fits = (one for one in FAMILIES[1:] if {*one.config.about.whole} <= {*own} and not one.config.unimplemented(own))
    other = next(fits, None)
    about, how = FAMILIES[0].config.about, "pass ignore_config=['model_type']"
    if other is not None and FAMILIES[0].config.unimplemented(own):
        about, how = other.config.about, change.replace("{field}", f"'model_type': {other.name!r}")
    return ConfigError(
        f"config: model_type={shown(model_type)}, expected {names}.",
        code="config-model-type",
        remedy=f"If the weights are a {about.family} all the same, {how}.",
    )


def config_named(name: str, *, ignore: Collection[str] = ()) -> Config:
    """The configuration of a published model, of a folder or of a hub id."""
    published = (family.config.about.published.get(name) for family in FAMILIES)
    fields = next(filter(None, published), None) or hub.read_config(name)
    return config_of(fields, ignore=ignore, change="give by config= a copy of this configuration with {field}")


def schema_of(family: str, sizes: Mapping[str, int]) -> Schema:
    """The schema of a family's model, of which only sizes are known."""
    for known in FAMILIES:
        if known.name == family:
            return known.schema_of(sizes)
    raise ValueError(f"family {family!r}, expected one of {', '.join(known.name for known in FAMILIES)}")


def kind_and_block(name: aliases.Name) -> tuple[str, str | None]:
    """`aliases.kind_and_block` in the first family that knows the name, before there is a model."""
    for family in FAMILIES:
        with suppress(UnknownNameError):
            return aliases.kind_and_block(name, family.schema_of({"layer": 1}))
    return aliases.kind_and_block(name, FAMILIES[-1].schema_of({"layer": 1}))  # which says what names there are


def axes_of(kind: str) -> tuple[str, ...]:
    """The axes of a kind of checkpoint, such as "attn.ckpt_z", in the first family that has it."""
    for family in FAMILIES:
        schema = family.schema_of({"layer": 1})
        if found := schema.in_blocks.get(kind) or schema.around.get(kind):
            return found.axes
    raise KeyError(kind)
