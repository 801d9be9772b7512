"""The facts that define one GPT-NeoX, frozen, under the names that transformers' `GPTNeoXConfig` uses."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pellucid.errors import ConfigError, shown
from pellucid.family import config
from pellucid.family.config import Variant, read_size
from pellucid.family.json_config import Config, Fields
from pellucid.family.rotary_rules import Rule, checked, gathered, rule_of, stated
from pellucid.names.calls import named_arguments
from pellucid.neox.schema import schema_of
from pellucid.schema import Schema

FIELDS = Fields(
    model_type="gpt_neox",
    family="GPT-NeoX",
    sizes={"vocab_size": 1, "hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1},
    optional_sizes={"max_position_embeddings": ""},
    numbers={"attention_dropout": 1.0, "hidden_dropout": 1.0, "layer_norm_eps": math.inf,
             "initializer_range": math.inf},
    flags=("attention_bias", "use_parallel_residual", "tie_word_embeddings"),
    whole=("vocab_size", "hidden_size", "num_hidden_layers"),
    activation="hidden_act",
    epsilon="layer_norm_eps",
    width="hidden_size",
    synonyms={},
    neutral=config.NEUTRAL | {"classifier_dropout"},
    variants=(
        *config.COMMON,
        *config.LAYER_NORM_ALONE,
        config.PLAIN_MLP_ALONE,
        config.ROTARY_ALONE,
        config.own_keys_alone("num_attention_heads"),
        Variant("GPT-NeoX says use_parallel_residual, and reads no other such field",
                config.PARALLEL.names, config.PARALLEL.pattern),
    ),
    dropouts=("attention_dropout", "hidden_dropout"),
)  # fmt: skip

SAID = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
"""Fields of older files -> the part of `rope_parameters` that they say."""


@named_arguments()
@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(Config):
    """What a GPT-NeoX is, such as a Pythia, apart from its weights.

    The first five sizes have no default: they come with the weights. The others default to what transformers assumes
    when a published `config.json` leaves them out. `rope_parameters` also takes what older files say with
    `rotary_emb_base`, `rotary_pct` and `rope_scaling`, if it is read from such fields.

    Example:
        >>> from pellucid.neox import GPTNeoXConfig
        >>> config = GPTNeoXConfig(vocab_size=100, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        ...                        num_attention_heads=3)
        >>> config.d_head, config.sizes["d_rot"], config.rope_parameters["partial_rotary_factor"]
        (16, 4, 0.25)
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 2
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False
    use_parallel_residual: bool = True
    rope_parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    attention_bias: bool = True
    neutral: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    about = FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("hidden_size", "num_attention_heads", self.num_attention_heads)
        parameters = checked(self.rope_parameters, self.max_position_embeddings, partial_rotary_factor=0.25)
        self._set("rope_parameters", MappingProxyType(parameters))
        _ = self.rule

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rule(self) -> Rule:
        """What says how many entries of a head turn, and how fast."""
        part = self.rope_parameters["partial_rotary_factor"]
        return rule_of(dict(self.rope_parameters), self.max_position_embeddings, self.d_head, part)

    def _sizes_by_axis(self) -> dict[str, int]:
        return {
            "layer": self.num_hidden_layers, "head": self.num_attention_heads, "head_kv": self.num_attention_heads,
            "d_model": self.hidden_size, "d_head": self.d_head, "d_rot": self.rule.turned,
            "d_qkv": 3 * self.hidden_size, "d_mlp": self.intermediate_size, "d_vocab": self.vocab_size,
            "n_ctx": self.max_position_embeddings,
        }  # fmt: skip

    def _make_schema(self) -> Schema:
        return schema_of(
            tuple(self.sizes.items()),
            tied=self.tie_word_embeddings,
            attention_bias=self.attention_bias,
            parallel=self.use_parallel_residual,
        )

    @classmethod
    def _settled(cls, given: dict[str, Any]) -> dict[str, Any]:
        width = given.pop("head_dim", None)
        sizes = (read_size(name, given[name]) for name in ("hidden_size", "num_attention_heads"))
        if width is not None and read_size("head_dim", width) != operator.truediv(*sizes):
            raise ConfigError(  # transformers would turn a part of this width in heads of another one
                f"config: head_dim={shown(width)}: heads of another width than hidden_size / num_attention_heads "
                "are not implemented.",
                code="config-not-implemented",
                remedy="If it does not apply, pass ignore_config=['head_dim'].",
            )
        return gathered(given, SAID, partial_rotary_factor=0.25)

    @classmethod
    def _stated(cls, given: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
        return stated(given, own, SAID)
