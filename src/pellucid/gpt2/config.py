"""The facts that define one GPT-2, frozen, under the names that transformers' `GPT2Config` uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pellucid.errors import warn
from pellucid.family import config
from pellucid.family.config import Variant
from pellucid.family.json_config import Config, Fields
from pellucid.gpt2.schema import schema_of
from pellucid.names.calls import named_arguments
from pellucid.schema import Schema

SYNONYMS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Other spellings that transformers accepts; if both are given the synonym wins, as it does there."""

NEUTRAL = config.NEUTRAL | frozenset(
    """
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    summary_last_dropout n_ctx predict_special_tokens classifier_dropout hidden_dropout attention_dropout init_std
    initializer_factor scale_attn_by_layer_idx apply_query_key_layer_scaling normalize_attention_scores rope_parameters
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields that transformers reads, or once read, and that never change what its GPT-2 computes in a forward pass."""

VARIANTS = (
    *config.COMMON,
    config.PARALLEL,
    config.own_keys_alone("n_head"),
    Variant(
        "other position embeddings than GPT-2's learned ones are not implemented",
        ("position_embedding_type",),
        r"^pos(ition(al|s)?)?_?(emb|enc)[a-z]*(_type|_kind)?$",
        ("absolute", "learned", "learned_absolute", "learnable", "wpe"),
    ),
    # What switches rotation on, such as flash-attention's rotary_emb_fraction. A field that only says how to rotate
    # (rope_theta) is left unread: a model whose positions are rotated has no table of them, and is refused for that.
    Variant("rotary position embeddings are not implemented", ("rotary",),
            r"^((use|with|apply)_)?(rope|rotary)(_?(emb|pos)[a-z]*){0,2}$|^rotary_emb_fraction$"),
    *config.LAYER_NORM_ALONE,
    config.PLAIN_MLP_ALONE,
)  # fmt: skip
"""Every variant of GPT-2 that a field of its configuration is known to make."""

PUBLISHED_SIZES = {
    "gpt2-small": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
    "distilgpt2": (768, 6, 12),
}
"""n_embd, n_layer, n_head of the published models (Radford et al. 2019; Sanh et al. 2019)."""


def _published(name: str) -> dict[str, int]:
    n_embd, n_layer, n_head = PUBLISHED_SIZES[name]
    return {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head,
        "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip


FIELDS = Fields(
    model_type="gpt2",
    family="GPT-2",
    sizes={"vocab_size": 1, "n_positions": 1, "n_embd": 1, "n_layer": 0, "n_head": 1},
    optional_sizes={"n_inner": "n_inner=None means 4 n_embd."},
    numbers={"embd_pdrop": 1.0, "attn_pdrop": 1.0, "resid_pdrop": 1.0, "layer_norm_epsilon": math.inf,
             "initializer_range": math.inf},
    flags=("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings"),
    whole=("vocab_size", "n_embd", "n_layer"),
    activation="activation_function",
    epsilon="layer_norm_epsilon",
    width="n_embd",
    synonyms=SYNONYMS,
    neutral=NEUTRAL,
    variants=VARIANTS,
    dropouts=("embd_pdrop", "attn_pdrop", "resid_pdrop"),
    published={name: _published(name) for name in PUBLISHED_SIZES} | {"gpt2": _published("gpt2-small")},
)  # fmt: skip


@named_arguments()
@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
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

    about = FIELDS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_multiple("n_embd", "n_head", self.n_head)

    @property
    def d_head(self) -> int:
        """Width of one attention head, K."""
        return self.n_embd // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the hidden layer of each MLP, M."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def _sizes_by_axis(self) -> dict[str, int]:
        return {
            "layer": self.n_layer, "head": self.n_head, "head_kv": self.n_head, "d_model": self.n_embd,
            "d_head": self.d_head, "d_qkv": 3 * self.n_embd, "d_mlp": self.d_mlp, "d_vocab": self.vocab_size,
            "n_ctx": self.n_positions,
        }  # fmt: skip

    def _make_schema(self) -> Schema:
        sizes = tuple(self.sizes.items())
        return schema_of(sizes, tied=self.tie_word_embeddings, upcast=self.reorder_and_upcast_attn)

    def attention_scale(self, block: int) -> float:
        """What the scores of this block are multiplied by: 1/sqrt(d_head), 1/(block + 1), both or neither."""
        scale = self.d_head**-0.5 if self.scale_attn_weights else 1.0
        return scale / float(block + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def override(self, **overrides: Any) -> Self:
        """This configuration with some fields replaced; checks them like `from_dict`."""
        made = super().override(**overrides)
        if "n_ctx" in overrides and overrides["n_ctx"] != made.n_positions:
            warn(
                f"n_ctx={overrides['n_ctx']} changes nothing: GPT-2 reads its context length from n_positions "
                f"({overrides.get('n_positions', self.n_positions)}), as in transformers."
            )
        return made
