"""What is known about the fields of GPT-2 configurations: synonyms, neutral ones, and those of other variants."""

from __future__ import annotations

import math

from pellucid import config_variants
from pellucid.config_variants import Variant
from pellucid.json_config import Fields

SYNONYMS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Other spellings that transformers accepts; where both are given the synonym wins, as it does there."""

NEUTRAL = config_variants.NEUTRAL | frozenset(
    """
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    summary_last_dropout n_ctx predict_special_tokens classifier_dropout hidden_dropout attention_dropout init_std
    initializer_factor scale_attn_by_layer_idx apply_query_key_layer_scaling normalize_attention_scores
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields that transformers reads, or once read, and that never change what its GPT-2 computes in a forward pass."""

VARIANTS = (
    *config_variants.COMMON,
    config_variants.PARALLEL,
    config_variants.own_keys_alone("n_head"),
    Variant(
        "other position embeddings than GPT-2's learned ones are not implemented",
        ("position_embedding_type",),
        r"^pos(ition(al|s)?)?_?(emb|enc)[a-z]*(_type|_kind)?$",
        ("absolute", "learned", "learned_absolute", "learnable", "wpe"),
    ),
    Variant("rotary position embeddings are not implemented", ("rope_parameters",), r"rotary|(^|_)rope(_|$)"),
    *config_variants.LAYER_NORM_ALONE,
    config_variants.PLAIN_MLP_ALONE,
)
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
    published={name: _published(name) for name in PUBLISHED_SIZES} | {"gpt2": _published("gpt2-small")},
)  # fmt: skip
