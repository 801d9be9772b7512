"""The registered families of models: a line for each."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, overload

from pellucid import aliases
from pellucid.config import as_names
from pellucid.errors import ConfigError, UnknownNameError, shown
from pellucid.family import Family
from pellucid.json_config import Config
from pellucid.schema import Schema
from pellucid.weights import hub

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
        remedy="Read another library's with TransformerConfig.from_dict(config.to_dict()), or open its model; "
        "of a model of pellucid's, give model.config.",
    )


def config_of(
    own: Mapping[str, Any], given: Mapping[str, Any] | None = None, *, ignore: Collection[str] = ()
) -> Config:
    """Read a Hugging Face `config.json` of any family, already parsed; `given` counts before what it says."""
    ignore = as_names(ignore)
    model_type = {**own, **(given or {})}.get("model_type")
    family = next((one for one in FAMILIES if one.name == model_type), None)
    if family is None and model_type is not None and "model_type" not in ignore:
        names = " or ".join(repr(one.name) for one in FAMILIES)
        raise ConfigError(
            f"config: model_type={shown(model_type)}, expected {names}.",
            code="config-model-type",
            remedy=f"If the weights are a {FAMILIES[0].config.about.family} all the same, pass "
            "ignore_config=['model_type'].",
        )
    family = family or FAMILIES[0]
    if given is None:
        return family.config.from_dict(own, ignore=ignore)
    return family.config.changed(own, given, ignore=ignore)


def config_named(name: str, *, ignore: Collection[str] = ()) -> Config:
    """The configuration of a published model, of a folder or of a hub id."""
    published = (family.config.about.published.get(name) for family in FAMILIES)
    return config_of(next(filter(None, published), None) or hub.read_config(name), ignore=ignore)


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
