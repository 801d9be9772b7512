"""The facts that define one Llama, frozen, under the names that transformers' `LlamaConfig` uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pellucid.errors import ConfigError, shown
from pellucid.family import config
from pellucid.family.config import Variant, read_number
from pellucid.family.json_config import Config, Fields
from pellucid.family.rotary_rules import Rule, checked, gathered, rule_of, stated
from pellucid.llama.schema import schema_of
from pellucid.names.calls import named_arguments
from pellucid.schema import Schema

NEUTRAL = config.NEUTRAL | {"pretraining_tp", "classifier_dropout"}
"""Fields that transformers reads, or once read, and that never change what its Llama computes in a forward pass."""

VARIANTS = (
    *config.COMMON,
    config.PARALLEL,
    Variant(
        "other norms than RMSNorm are not implemented",
        ("norm_type", "normalization", "layer_norm_type"),
        r"^norm(alization)?(_type|_class|_layer)?$|deepnorm|no_?layer_?norm",
        ("rmsnorm", "rms_norm"),
    ),
    config.ROTARY_ALONE,
)
"""Every variant of Llama that a field of its configuration is known to make."""

FIELDS = Fields(
    model_type="llama",
    family="Llama",
    sizes={"vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1},
    optional_sizes={
        "num_key_value_heads": "num_key_value_heads=None means num_attention_heads.",
        "head_dim": "head_dim=None means hidden_size / num_attention_heads.",
        "max_position_embeddings": "",
    },
    numbers={"attention_dropout": 1.0, "rms_norm_eps": math.inf, "initializer_range": math.inf},
    flags=("attention_bias", "mlp_bias", "tie_word_embeddings"),
    whole=("vocab_size", "hidden_size", "num_hidden_layers"),
    activation="hidden_act",
    epsilon="rms_norm_eps",
    width="hidden_size",
    synonyms={},
    neutral=NEUTRAL,
    variants=VARIANTS,
    dropouts=("attention_dropout",),
)

SAID = {name: name for name in ("rope_theta", "partial_rotary_factor")}
"""Fields of older files -> the part of `rope_parameters` that they say."""


@named_arguments()
@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """What a Llama is, apart from its weights.

    The first five sizes have no default: they come with the weights. The others default to what transformers assumes
    when a published `config.json` leaves them out. `rope_parameters` also takes what older files say with
    `rope_theta` and `rope_scaling`, if it is read from such fields.

    Example:
        >>> from pellucid.llama import LlamaConfig
        >>> config = LlamaConfig(vocab_size=100, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        ...                      num_attention_heads=6, num_key_value_heads=2)
        >>> config.sizes["head"], config.sizes["head_kv"], config.d_head, config.rope_parameters["rope_type"]
        (6, 2, 8, 'default')
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    about = FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("hidden_size", "num_attention_heads", self.num_attention_heads)
        self._require_multiple("num_attention_heads", "num_key_value_heads", self.n_head_kv)
        parameters = checked(self.rope_parameters, self.max_position_embeddings)
        self._set("rope_parameters", MappingProxyType(parameters))
        turned = parameters.get("partial_rotary_factor")
        if parameters["rope_type"] != "default" and turned is not None and self._part(turned) != self.d_head:
            raise ConfigError(
                f"config: partial_rotary_factor={shown(turned)}: rotary positions of a part of each head are not "
                "implemented.",
                code="config-not-implemented",
                remedy="Use a model that turns whole heads; transformers' Llama cannot run this one either.",
            )
        _ = self.rule

    def _part(self, factor: Any) -> int:
        return int(self.d_head * read_number("partial_rotary_factor", factor, math.inf))

    @property
    def n_head_kv(self) -> int:
        """Heads of keys and values, which several queries may share."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def rule(self) -> Rule:
        """What says how fast pairs turn."""
        return rule_of(dict(self.rope_parameters), self.max_position_embeddings, self.d_head)

    def _sizes_by_axis(self) -> dict[str, int]:
        return {
            "layer": self.num_hidden_layers, "head": self.num_attention_heads, "head_kv": self.n_head_kv,
            "d_model": self.hidden_size, "d_head": self.d_head, "d_mlp": self.intermediate_size,
            "d_vocab": self.vocab_size, "n_ctx": self.max_position_embeddings,
        }  # fmt: skip

    def _make_schema(self) -> Schema:
        return schema_of(
            tuple(self.sizes.items()),
            tied=self.tie_word_embeddings,
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
        )

    @classmethod
    def _settled(cls, given: dict[str, Any]) -> dict[str, Any]:
        return gathered(given, SAID)

    @classmethod
    def _stated(cls, given: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
        return stated(given, own, SAID)
