"""The facts that define one GPT-2, frozen, under the names that transformers' `GPT2Config` uses.

A configuration is read before anything is run: fields that change the computation in ways this library
does not implement are refused by name, fields known to be neutral are kept and written back, and a field
nobody knows is an error until the caller names it in `ignore`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from pellucid.config_fields import ACTIVATIONS, NEUTRAL, PUBLISHED_SIZES, REFUSED, SYNONYMS
from pellucid.errors import ConfigError, PellucidWarning, nearest
from pellucid.weights import hub


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a GPT-2 is, apart from its weights.

    The five sizes have no default: they are the checkpoint's to supply. The others default to what
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
        for name in ("vocab_size", "n_positions", "n_embd", "n_head"):
            _require_count(name, getattr(self, name), at_least=1)
        _require_count("n_layer", self.n_layer, at_least=0)
        if self.n_inner is not None:
            _require_count("n_inner", self.n_inner, at_least=1)
        if self.n_embd % self.n_head:
            raise ConfigError(
                f"config: n_embd={self.n_embd} is not a multiple of n_head={self.n_head}.",
                code="config-heads-do-not-divide",
                remedy="Give a number of heads that divides n_embd.",
            )
        if self.activation_function not in ACTIVATIONS:
            raise ConfigError(
                f"config: activation_function={self.activation_function!r} is not implemented.",
                code="config-activation",
                remedy=f"{nearest(str(self.activation_function), ACTIVATIONS)} Implemented: {', '.join(ACTIVATIONS)}.",
            )
        for name, high in _NUMBERS.items():
            _require_number(name, getattr(self, name), low=0.0, high=high)
            object.__setattr__(self, name, float(getattr(self, name)))  # transformers refuses whole numbers there
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _wrong_type(name, getattr(self, name), "true or false")
        self._check_token_ids()
        object.__setattr__(self, "neutral", MappingProxyType(dict(self.neutral)))

    def _check_token_ids(self) -> None:
        eos = self.eos_token_id
        if isinstance(eos, list):
            object.__setattr__(self, "eos_token_id", tuple(eos))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token in value if name == "eos_token_id" and isinstance(value, (list, tuple)) else [value]:
                if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
                    raise _wrong_type(name, value, "a token id or null")

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return (_from_fields, ({**values, "neutral": dict(self.neutral)},))

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.n_embd // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer of each MLP, M."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

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
    def from_dict(cls, given: Mapping[str, Any], *, ignore: Collection[str] = ()) -> TransformerConfig:
        """Read a Hugging Face `config.json`, already parsed.

        Args:
            given: The fields, under transformers' names or synonyms.
            ignore: Fields that may be dropped although this library does not know or does not implement them.

        Raises:
            ConfigError: An impossible, missing, unknown or unimplemented field.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"config: {type(given).__name__} given, expected the fields of a config.json as a mapping.",
                code="config-wrong-type",
                remedy="Give a dict; a transformers configuration gives one by config.to_dict().",
            )
        given = {name: value for name, value in given.items() if name not in set(ignore)}
        model_type = given.pop("model_type", "gpt2")
        if model_type != "gpt2":
            raise ConfigError(
                f"config: model_type={model_type!r}, expected 'gpt2'.",
                code="config-model-type",
                remedy="pellucid reads GPT-2 only. If the weights are a GPT-2 all the same, pass "
                "ignore_config=['model_type'].",
            )
        for synonym, name in SYNONYMS.items():
            if synonym in given:
                given[name] = given.pop(synonym)
        _refuse_unimplemented(given)
        known = {f.name for f in fields(cls)} - {"neutral"}
        neutral = {name: value for name, value in given.items() if name in NEUTRAL}
        unknown = sorted(set(given) - known - NEUTRAL - set(REFUSED) - {"is_causal"})
        if unknown:
            hints = " ".join(filter(None, (nearest(name, known) for name in unknown)))
            raise ConfigError(
                f"config: unknown field{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}.",
                code="config-unknown-field",
                remedy=f"{hints} If the computation does not depend on it, pass ignore_config={unknown!r}.".strip(),
            )
        missing = [name for name in _SIZES if name not in given]
        if missing:
            raise ConfigError(
                f"config: {', '.join(missing)} missing.",
                code="config-missing-field",
                remedy="Add the sizes of this checkpoint; pellucid does not guess them.",
            )
        return cls(**{name: given[name] for name in known if name in given}, neutral=neutral)

    @classmethod
    def from_pretrained(cls, name: str, **overrides: Any) -> TransformerConfig:
        """The configuration of a published model, with some fields replaced.

        Args:
            name: An alias (`gpt2-small`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, `distilgpt2`), whose sizes are
                built in, so that nothing is downloaded; a folder with a `config.json`; or a hub id.
            **overrides: Any field of this class, or one that transformers knows to be neutral.

        Raises:
            ConfigError: An override that does not exist or cannot be.
            NotFoundError: No such folder or repository.
        """
        published = _published(name)
        if published is None:
            published = hub.read_config(name)
        return cls.from_dict(published).override(**overrides)

    def override(self, **overrides: Any) -> TransformerConfig:
        """This configuration with some fields replaced; checks them like `from_dict`."""
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


def require_config(given: object) -> None:
    """See that this is a configuration of this library.

    Raises:
        ConfigError: It is another.
    """
    if not isinstance(given, TransformerConfig):
        raise ConfigError(
            f"config: {type(given).__name__} given, expected a TransformerConfig.",
            code="config-wrong-type",
            remedy="Read another library's with TransformerConfig.from_dict(config.to_dict()), or open its model.",
        )


_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_NUMBERS = {"embd_pdrop": 1.0, "attn_pdrop": 1.0, "resid_pdrop": 1.0, "layer_norm_epsilon": math.inf,
            "initializer_range": math.inf}  # fmt: skip
"""Fields that hold a number from 0 on -> the largest."""
_FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")


def _published(name: str) -> dict[str, Any] | None:
    sizes = PUBLISHED_SIZES.get("gpt2-small" if name == "gpt2" else name)
    if sizes is None:
        return None
    n_embd, n_layer, n_head = sizes
    return {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip


def _from_fields(values: dict[str, Any]) -> TransformerConfig:
    return TransformerConfig(**values)


def _refuse_unimplemented(given: Mapping[str, Any]) -> None:
    for name, reason in REFUSED.items():
        if given.get(name):
            raise ConfigError(
                f"config: {name}={given[name]!r}: {reason}.",
                code="config-not-implemented",
                remedy=f"Use a plain GPT-2 checkpoint, or pass ignore_config=[{name!r}] if it does not apply.",
            )
    if given.get("is_causal", True) is not True:
        raise ConfigError(
            f"config: is_causal={given['is_causal']!r}: attention over later positions is not implemented.",
            code="config-not-implemented",
            remedy="Use a causal GPT-2 checkpoint.",
        )


def _require_count(name: str, value: Any, *, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, value, "a whole number")
    if value < at_least:
        raise ConfigError(
            f"config: {name}={value}, expected at least {at_least}.",
            code="config-out-of-range",
            remedy=f"Give a {name} of {at_least} or more.",
        )


def _require_number(name: str, value: Any, *, low: float, high: float = math.inf) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _wrong_type(name, value, "a number")
    if not low <= value <= high or math.isinf(value):
        raise ConfigError(
            f"config: {name}={value}, expected a finite number from {low} to {high}.",
            code="config-out-of-range",
            remedy=f"Give a {name} within that range.",
        )


def _wrong_type(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"config: {name}={value!r} ({type(value).__name__}), expected {expected}.",
        code="config-wrong-type",
        remedy=f"Give {name} as {expected}.",
    )
