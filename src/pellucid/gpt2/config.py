"""The facts that define one GPT-2, frozen, under the names that transformers' `GPT2Config` uses.

A configuration is read before anything is run: fields that change the computation in ways this library
does not implement are refused by name; every other field is kept and written back, and those that transformers' GPT-2
never reads, so that they cannot change what it computes, are listed (`TransformerConfig.unread`).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

from pellucid import config_values
from pellucid.errors import ConfigError, PellucidWarning, nearest, shown
from pellucid.gpt2.config_fields import ACTIVATIONS, NEUTRAL, PUBLISHED_SIZES, SYNONYMS, variant_of
from pellucid.gpt2.schema import schema_of
from pellucid.schema import Schema
from pellucid.weights import hub


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a GPT-2 is, apart from its weights.

    The five sizes have no default: they come with the weights. The others default to what
    transformers assumes when a published `config.json` leaves them out.

    Example:
        >>> from pellucid import TransformerConfig
        >>> config = TransformerConfig.from_pretrained("gpt2-small", vocab_size=5000)
        >>> config.vocab_size, config.n_embd, config.d_head, config.d_mlp
        (5000, 768, 64, 3072)
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in (*_SIZES, "n_inner"):
            if name != "n_inner" or self.n_inner is not None:
                self._set(name, config_values.size(name, getattr(self, name)))
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"config: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}.",
                code="config-heads-do-not-divide",
                remedy="Give a number of heads that divides n_embd.",
            )
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"config: activation_function={shown(self.activation_function)} is not implemented.",
                code="config-activation",
                remedy=f"{nearest(str(self.activation_function), ACTIVATIONS)} "
                f"Give one of {', '.join(ACTIVATIONS)}.".strip(),
            )
        for name, high in _NUMBERS.items():
            self._set(name, config_values.number(name, getattr(self, name), high))
        for name in _FLAGS:
            self._set(name, config_values.flag(name, getattr(self, name)))
        for name in ("bos_token_id", "pad_token_id"):
            self._set(name, config_values.token_id(name, getattr(self, name)))
        eos = self.eos_token_id
        several = isinstance(eos, (list, tuple))
        ids = config_values.token_ids("eos_token_id", eos) if several else config_values.token_id("eos_token_id", eos)
        self._set("eos_token_id", ids)
        self._set("neutral", MappingProxyType(dict(self.neutral)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return (_from_fields, ({**values, "neutral": dict(self.neutral)},))

    @property
    def unread(self) -> tuple[str, ...]:
        """The fields, sorted, that are kept although transformers' GPT-2 never reads them."""
        return tuple(sorted(name for name in set(self.neutral) - NEUTRAL if variant_of(name) is None))

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.n_embd // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer of each MLP, M."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        return MappingProxyType({
            "layer": self.n_layer, "head": self.n_head, "d_model": self.n_embd, "d_head": self.d_head,
            "d_qkv": 3 * self.n_embd, "d_mlp": self.d_mlp, "d_vocab": self.vocab_size, "n_ctx": self.n_positions,
        })  # fmt: skip

    @property
    def sizes(self) -> Mapping[str, int]:
        """Name of an axis -> its length; "layer" is the number of blocks, "n_ctx" that of positions."""
        return self._sizes

    @property
    def schema(self) -> Schema:
        """The checkpoints and parameters of a model with this configuration."""
        return self._schema

    @cached_property
    def _schema(self) -> Schema:
        sizes = tuple(self.sizes.items())
        return schema_of(sizes, tied=self.tie_word_embeddings, upcast=self.reorder_and_upcast_attn)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        eos = self.eos_token_id
        return () if eos is None else eos if isinstance(eos, tuple) else (eos,)

    def attention_scale(self, block: int) -> float:
        """What the scores of this block are multiplied by: 1/sqrt(d_head), 1/(block + 1), both or neither."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / float(block + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Self:
        """Read a Hugging Face `config.json`, already parsed.

        Args:
            given: The fields, under transformers' names or synonyms.
            ignore: Fields to drop, although they are known to change the computation.

        Raises:
            ConfigError: An impossible, missing or unimplemented field; or one to ignore that there is not.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"config: {type(given).__name__} given, expected the fields of a config.json as a mapping.",
                code="config-wrong-type",
                remedy="Give a dict; a transformers configuration gives one by config.to_dict().",
            )
        refuse_misspelt(ignore, map(str, given))
        given = {name: value for name, value in given.items() if name not in {*ignore, config_values.SAVE_ID}}
        _refuse_unimplemented(given)
        given.pop("model_type", None)
        for synonym, name in SYNONYMS.items():
            if synonym in given:
                given[name] = given.pop(synonym)
        missing = [name for name in _SIZES if name not in given]
        if missing:
            hints = dict.fromkeys(nearest(name, map(str, given)) for name in missing)
            raise ConfigError(
                f"config: {', '.join(missing)} missing.",
                code="config-missing-field",
                remedy=f"Add the sizes of this model; pellucid does not guess them. {' '.join(hints)}".strip(),
            )
        known = _declared()
        others = {name: value for name, value in given.items() if name not in known}
        return cls(**{name: given[name] for name in known if name in given}, neutral=others)

    @classmethod
    def changed(cls, own: Mapping[str, Any], given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> Self:
        """Read a file's configuration of which the caller gives some fields, or all.

        Args:
            own: What the file says.
            given: What counts before it; a spelling mistake is an error here unless this is a whole configuration.
            ignore: As in `from_dict`.

        Raises:
            ConfigError: As in `from_dict`; or a field that does not exist.
        """
        if not {"vocab_size", "n_embd", "n_layer"} <= set(given):
            refuse_misspelt(given, own)
        return cls.from_dict({**own, **given}, ignore=ignore)

    @classmethod
    def from_pretrained(cls, name: str, *, ignore_config: Collection[str] = (), **overrides: Any) -> TransformerConfig:
        """The configuration of a published model, with some fields replaced.

        Args:
            name: An alias (`gpt2-small`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, `distilgpt2`), whose sizes are
                built in, so that nothing is downloaded; a folder with a `config.json`; or a hub id.
            ignore_config: Fields of the file to drop, although they are known to change the computation.
            **overrides: Any field of this class, or one that transformers knows to be neutral.

        Raises:
            ConfigError: An override that does not exist or cannot be.
            NotFoundError: No such folder or repository.
        """
        published = published_fields(name) or hub.read_config(name)
        return cls.from_dict(published, ignore=ignore_config).override(**overrides)

    def override(self, **overrides: Any) -> TransformerConfig:
        """This configuration with some fields replaced; checks them like `from_dict`.

        Raises:
            ConfigError: A field that does not exist: what a file may hold unread is a spelling mistake here.
        """
        refuse_misspelt(overrides, self.neutral)
        if "n_ctx" in overrides and overrides["n_ctx"] != overrides.get("n_positions", self.n_positions):
            warnings.warn(
                f"n_ctx={overrides['n_ctx']} changes nothing: GPT-2 reads its context length from n_positions "
                f"({overrides.get('n_positions', self.n_positions)}), as in transformers.",
                PellucidWarning,
                stacklevel=3,
            )
        return type(self).from_dict({**self.to_dict(), **overrides})

    def to_dict(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json` that describes this model, neutral ones included."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "neutral"}
        if isinstance(self.eos_token_id, tuple):
            own["eos_token_id"] = list(self.eos_token_id)
        return {"model_type": "gpt2", **self.neutral, **own}

    def to_json(self) -> str:
        """`to_dict` as the text of a `config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def replace(self, **changes: Any) -> TransformerConfig:
        """This configuration with declared fields replaced (`dataclasses.replace`)."""
        return replace(self, **changes)


def refuse_misspelt(names: Iterable[str], beside: Iterable[str] = ()) -> None:
    """See that every field that a caller names exists.

    Args:
        names: What the caller names.
        beside: Other fields of the configuration that these replace.

    Raises:
        ConfigError: A field that neither this library nor transformers knows.
    """
    known = {*_declared(), *SYNONYMS, *NEUTRAL, *beside, "model_type"}
    unknown = sorted(str(name) for name in names if name not in known and variant_of(str(name)) is None)
    if unknown:
        hints = " ".join(dict.fromkeys(filter(None, (nearest(name, _declared()) for name in unknown))))
        raise ConfigError(
            f"config: no field{'s' if len(unknown) > 1 else ''} {', '.join(map(shown, unknown))}.",
            code="config-unknown-field",
            remedy=f"{hints} Leave out what is no field of a GPT-2's configuration.".strip(),
        )


_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_NUMBERS = {"embd_pdrop": 1.0, "attn_pdrop": 1.0, "resid_pdrop": 1.0, "layer_norm_epsilon": math.inf,
            "initializer_range": math.inf}  # fmt: skip
"""Fields that hold a number from 0 on -> the largest."""
_FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")


def _declared() -> tuple[str, ...]:
    return tuple(f.name for f in fields(TransformerConfig) if f.name != "neutral")


def published_fields(name: str) -> dict[str, Any] | None:
    """The fields of a published model's configuration; None if this is not the name of one."""
    sizes = PUBLISHED_SIZES.get("gpt2-small" if name == "gpt2" else str(name))
    if sizes is None:
        return None
    n_embd, n_layer, n_head = sizes
    return {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip


def _from_fields(values: dict[str, Any]) -> TransformerConfig:
    return TransformerConfig(**values)


def unimplemented(given: Mapping[str, Any]) -> dict[str, str]:
    """The fields that make another model of a GPT-2, each with what is not implemented."""
    known = {*_declared(), *SYNONYMS}
    found = {name: variant for name in given if name not in known and (variant := variant_of(name)) is not None}
    return {name: found[name].reason for name in found if not found[name].is_harmless(given[name], given)}


def _refuse_unimplemented(given: Mapping[Any, Any]) -> None:
    wrong = next((name for name in given if not isinstance(name, str)), None)
    if wrong is not None:
        raise config_values.wrong_type("a field's name", wrong, "text")
    model_type = given.get("model_type")
    if model_type not in (None, "gpt2"):
        raise ConfigError(
            f"config: model_type={shown(model_type)}, expected 'gpt2'.",
            code="config-model-type",
            remedy="pellucid reads GPT-2 only. If the weights are a GPT-2 all the same, pass "
            "ignore_config=['model_type'].",
        )
    refused = unimplemented(given)
    if refused:
        said = "; ".join(f"{name}={shown(given[name])}: {reason}" for name, reason in refused.items())
        raise ConfigError(
            f"config: {said}.",
            code="config-not-implemented",
            remedy=f"Use the weights of a plain GPT-2, or pass ignore_config={list(refused)!r} if "
            f"{'it does' if len(refused) == 1 else 'they do'} not apply.",
        )
