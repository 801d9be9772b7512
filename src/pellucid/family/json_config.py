"""`Config`: a configuration as Hugging Face's `config.json` has it, read before anything is run.

Fields that change the computation in ways that the family does not implement are refused by name; every other field is
kept and written back, and those that transformers' class never reads, so that they cannot change what it computes, are
listed (`unread`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from pellucid.errors import ConfigError, nearest, shown
from pellucid.family.config import (
    READ,
    SAVE_ID,
    Variant,
    as_names,
    read_flag,
    read_number,
    read_size,
    read_token_id,
    read_tokens,
    wrong_type,
)
from pellucid.names.attributes import CONFIG, unknown_attribute
from pellucid.names.calls import named_methods
from pellucid.numerics import nonlinear
from pellucid.schema import Schema
from pellucid.weights import hub
from pellucid.weights.manifests import json_text


@dataclass(frozen=True)
class Fields:
    """What is known about the fields of a family's configurations."""

    model_type: str  # what `config.json` calls the family
    family: str  # what messages call it, such as "GPT-2"
    sizes: Mapping[str, int]  # whole numbers that a file has to give -> the least
    # whole numbers that a file may leave out -> what a message says of null, which "" refuses
    optional_sizes: Mapping[str, str]
    numbers: Mapping[str, float]  # fields that hold a number from 0 on -> the largest
    flags: tuple[str, ...]  # fields that hold a truth value
    whole: tuple[str, ...]  # sizes by which a configuration that somebody gives is seen to be a whole one
    activation: str  # the field that names the activation function
    epsilon: str  # the field that holds what norms add below the root
    width: str  # the field that holds the width of the residual stream
    # other spellings that transformers accepts; if both are given the synonym wins, as it does there
    synonyms: Mapping[str, str]
    # fields that transformers reads, or once read, and that never change what its class computes
    neutral: frozenset[str]
    variants: tuple[Variant, ...]  # what other fields make another model
    dropouts: tuple[str, ...] = ()  # the fields that are rates of dropout
    # the fields of published models' configurations by their names
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def variant_of(self, name: str) -> Variant | None:
        """The variant that a field belongs to; None for a field of the plain model and for one that nobody reads."""
        if name in self.neutral:
            return None
        return next((variant for variant in self.variants if variant.has(name)), None)


@named_methods
class Config:
    """The facts that define one model, frozen, under the names that transformers' configuration uses.

    A family's configuration is a frozen dataclass of this kind, with these fields among its own.
    """

    about: ClassVar[Fields]  # what is known about its fields
    initializer_range: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_id: int | tuple[int, ...] | None
    pad_token_id: int | None
    neutral: Mapping[str, Any]  # fields that change nothing that the model computes, kept for whoever saves it

    def __post_init__(self) -> None:
        about = self.about
        for name, least in about.sizes.items():
            self._set(name, read_size(name, getattr(self, name), least))
        for name, null in about.optional_sizes.items():
            if getattr(self, name) is not None or not null:
                self._set(name, read_size(name, getattr(self, name), 1, null))
        activation: Any = self.activation
        if not isinstance(activation, str) or activation not in nonlinear.EXACT:
            raise ConfigError(
                f"config: {about.activation}={shown(activation)} is not implemented.",
                code="config-activation",
                remedy=f"{nearest(activation, nonlinear.EXACT)} Give one of {', '.join(nonlinear.EXACT)}.".strip(),
            )
        for name, high in about.numbers.items():
            self._set(name, read_number(name, getattr(self, name), high))
        for name in about.flags:
            self._set(name, read_flag(name, getattr(self, name)))
        for name in ("bos_token_id", "pad_token_id"):
            self._set(name, read_token_id(name, getattr(self, name)))
        eos = self.eos_token_id
        several = isinstance(eos, (list, tuple))
        ids = read_tokens("eos_token_id", eos) if several else read_token_id("eos_token_id", eos)
        self._set("eos_token_id", ids)
        if not isinstance(self.neutral, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong_type("neutral", self.neutral, "a mapping")
        self._set("neutral", MappingProxyType(dict(self.neutral)))

    def __getattr__(self, name: str) -> Any:
        kept = {field: f"config.neutral['{field}']" for field in vars(self).get("neutral", ())}
        raise unknown_attribute(f"{type(self).__name__!r} object", name, {**CONFIG, **kept})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _require_multiple(self, name: str, of: str, part: int) -> None:
        if getattr(self, name) % part:
            raise ConfigError(
                f"config: {name}={getattr(self, name)} is not a multiple of {of}={part}.",
                code="config-heads-do-not-divide",
                remedy=f"Give a {of} that divides {name}.",
            )

    def __getstate__(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self))}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        type(self).__init__(self, **state)

    @property
    def unread(self) -> tuple[str, ...]:
        """The fields, sorted, that are kept although transformers' class never reads them."""
        return tuple(sorted(self.unread_of(self.neutral)))

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name of an axis -> its length; "layer" is the number of blocks, "n_ctx" that of positions."""
        return self._sizes

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        return MappingProxyType(self._sizes_by_axis())

    def _sizes_by_axis(self) -> dict[str, int]:
        raise NotImplementedError

    @property
    def schema(self) -> Schema:
        """The checkpoints and parameters of a model with this configuration."""
        return self._schema

    @cached_property
    def _schema(self) -> Schema:
        return self._make_schema()

    def _make_schema(self) -> Schema:
        raise NotImplementedError

    @property
    def activation(self) -> str:
        """The name of the MLP's activation function."""
        return getattr(self, self.about.activation)

    @property
    def blocks_field(self) -> str:
        """The field that holds the number of blocks."""
        return next(name for name in self.about.sizes if name.endswith(("_layer", "_layers")))

    @property
    def epsilon(self) -> float:
        """What norms add below the root."""
        return getattr(self, self.about.epsilon)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        eos = self.eos_token_id
        return () if eos is None else eos if isinstance(eos, tuple) else (eos,)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Self:
        """Read a Hugging Face `config.json`, already parsed.

        Args:
            given: The fields, under transformers' names or synonyms.
            ignore: Fields to drop, although they are known to change the computation.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"config: {type(given).__name__} given, expected the fields of a config.json as a mapping.",
                code="config-wrong-type",
                remedy="Give a dict; a transformers configuration gives one by config.to_dict().",
            )
        ignore = as_names(ignore)
        cls._refuse_misspelt(ignore, map(str, given))
        given = {name: value for name, value in given.items() if name not in {*ignore, SAVE_ID}}
        for synonym, name in cls.about.synonyms.items():
            if synonym in given:
                given[name] = given.pop(synonym)
        cls._refuse_unimplemented(given)
        given.pop("model_type", None)
        missing = [name for name in cls.about.sizes if name not in given]
        if missing:
            hints = dict.fromkeys(nearest(name, map(str, given)) for name in missing)
            raise ConfigError(
                f"config: {', '.join(missing)} missing.",
                code="config-missing-field",
                remedy=f"Add the sizes of this model; pellucid does not guess them. {' '.join(hints)}".strip(),
            )
        given, known = cls._settled(cls._without_nulls(given)), cls.declared()
        own = {name: given[name] for name in known if name in given}
        own["neutral"] = {name: value for name, value in given.items() if name not in known}
        return cls(**own)

    @classmethod
    def _without_nulls(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The fields without flags and rates that are null if the default is false or 0, as in transformers 4.

        If the default is something else, null is ambiguous, and is refused.
        """
        read = (*cls.about.flags, *cls.about.numbers)
        off = {f.name for f in fields(cast(Any, cls)) if f.name in read and not f.default}
        return {name: value for name, value in given.items() if value is not None or name not in off}

    @classmethod
    def _settled(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The fields as this class declares them, if a file has other words for several together."""
        return given

    @classmethod
    def _stated(cls, given: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields that replace some of `own`, as this class declares them, if older files have other words."""
        return given

    @classmethod
    def changed(cls, own: Mapping[str, Any], given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Self:
        """Read a file's configuration of which the caller gives some fields, or all.

        A spelling mistake in what is given is an error unless it is a whole configuration.
        """
        if not set(cls.about.whole) <= set(given):
            given = cls._stated(given, own)
            cls._refuse_misspelt(given, own)
        return cls.from_dict({**own, **given}, ignore=ignore)

    @classmethod
    def from_pretrained(cls, name: str, *, ignore_config: Collection[str] = (), **overrides: Any) -> Self:
        """The configuration of a published model, with some fields replaced.

        Args:
            name: The alias of a model whose sizes are built in, so that nothing is downloaded; a folder with a
                `config.json`; or a hub id.
            ignore_config: Fields of the file to drop, although they are known to change the computation.
            **overrides: Any field of this class, or one that transformers knows to be neutral.

        Raises:
            ConfigError: If an override does not exist or is out of range.
            NotFoundError: If there is no such folder or repository.
        """
        published = cls.about.published.get(str(name)) or hub.read_config(name)
        return cls.from_dict(published, ignore=ignore_config).override(**overrides)

    def override(self, **overrides: Any) -> Self:
        """This configuration with some fields replaced; checks them like `from_dict`.

        Raises:
            ConfigError: If a field does not exist: what a file may hold unread is a spelling mistake here.
        """
        own = self.to_dict()
        given = self._stated(overrides, own)
        self._refuse_misspelt(given, self.neutral)
        return type(self).from_dict({**own, **given})

    def to_dict(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json` that describes this model, neutral ones included."""
        own = {name: _plain(getattr(self, name)) for name in self.declared()}
        return {"model_type": self.about.model_type, **self.neutral, **own}

    def to_json(self) -> str:
        """`to_dict` as the text of a `config.json`."""
        return json_text(self.to_dict())

    def replace(self, **changes: Any) -> Self:
        """This configuration with declared fields replaced (`dataclasses.replace`)."""
        return replace(cast(Any, self), **changes)

    @classmethod
    def declared(cls) -> tuple[str, ...]:
        """The fields that this class has; every other one is kept in `neutral`, or refused."""
        return tuple(f.name for f in fields(cast(Any, cls)) if f.name != "neutral")

    @classmethod
    def unimplemented(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """The fields that make another model than the family's, each with what is not implemented."""
        known = {*cls.declared(), *cls.about.synonyms}
        variants = {name: cls.about.variant_of(name) for name in given if name not in known}
        found = {name: variant for name, variant in variants.items() if variant is not None}
        return {name: found[name].reason for name in found if not found[name].is_harmless(name, given[name], given)}

    @classmethod
    def unread_of(cls, given: Mapping[str, Any]) -> set[str]:
        """The names among these that transformers' class does not read."""
        return set(given) - {*cls.declared(), "model_type", *cls.about.neutral, *READ, *cls.about.synonyms}

    @classmethod
    def _refuse_misspelt(cls, names: Iterable[str], beside: Iterable[str] = ()) -> None:
        """See that every field that a caller names exists, here or `beside` it in a file."""
        about, declared = cls.about, cls.declared()
        known = {*declared, *about.synonyms, *about.neutral, *beside, "model_type"}
        unknown = sorted(str(name) for name in names if name not in known and about.variant_of(str(name)) is None)
        if unknown:
            hints = " ".join(dict.fromkeys(filter(None, (nearest(name, declared) for name in unknown))))
            raise ConfigError(
                f"config: no field{'s' if len(unknown) > 1 else ''} {', '.join(map(shown, unknown))}.",
                code="config-unknown-field",
                remedy=f"{hints} Leave out what is no field of a {about.family}'s configuration.".strip(),
            )

    @classmethod
    def _refuse_unimplemented(cls, given: Mapping[Any, Any]) -> None:
        about = cls.about
        wrong = next((name for name in given if not isinstance(name, str)), None)
        if wrong is not None:
            raise wrong_type("a field's name", wrong, "text")
        model_type = given.get("model_type")
        if model_type not in (None, about.model_type):
            raise ConfigError(
                f"config: model_type={shown(model_type)}, expected {about.model_type!r}.",
                code="config-model-type",
                remedy=f"If the weights are a {about.family} all the same, pass ignore_config=['model_type'].",
            )
        refused = cls.unimplemented(given)
        if refused:
            said = "; ".join(f"{name}={shown(given[name])}: {reason}" for name, reason in refused.items())
            raise ConfigError(
                f"config: {said}.",
                code="config-not-implemented",
                remedy=f"Use the weights of a plain {about.family}, or pass ignore_config={list(refused)!r} if "
                f"{'it does' if len(refused) == 1 else 'they do'} not apply.",
            )


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    return dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
