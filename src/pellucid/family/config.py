"""Values of configurations, each read or refused by name, and fields that make another model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from pellucid.check import as_flag, as_number, as_whole, is_several
from pellucid.errors import ConfigError, shown
from pellucid.schema import Schema


def require_schema(config: object) -> Schema:
    """The schema of a configuration."""
    schema, sizes = getattr(config, "schema", None), getattr(config, "sizes", None)  # a model has a schema alone
    if not isinstance(schema, Schema) or not isinstance(sizes, Mapping):
        raise ConfigError(
            f"config: {type(config).__name__} given, expected the configuration of a model.",
            code="config-wrong-type",
            remedy="Give a pl.TransformerConfig first, such as model.config, and tensors as weights={name: tensor}.",
        )
    return schema


SAVE_ID = "pellucid_save"
"""The field of a `config.json` by which a save is known; see `pellucid.weights.saves`."""
LARGEST = 2**63 - 1
"""What torch counts with."""


def read_size(name: str, value: Any, least: int = 1, null: str = "") -> int:
    """A size, from `least` on; `null` says what null would mean."""
    found = _whole(name, value, "a whole number")
    if not least <= found <= LARGEST:
        raise ConfigError(
            f"config: {name}={shown(found)}, expected a whole number from {least} to {LARGEST}.",
            code="config-out-of-range",
            remedy=f"Give a {name} of {least} or more. {null}".strip(),
        )
    return found


def read_token_id(name: str, value: Any) -> int | None:
    """A token id, which transformers does not compare with the vocabulary, or None."""
    if value is None:
        return None
    found = _whole(name, value, "a token id or null")
    if abs(found) > LARGEST:
        raise ConfigError(
            f"config: {name}={shown(found)}, expected a token id.",
            code="config-out-of-range",
            remedy=f"Give a {name} below vocab_size, or null.",
        )
    return found


def read_tokens(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """Several token ids."""
    found = (read_token_id(name, value) for value in values)
    return tuple(token for token in found if token is not None)


def read_number(name: str, value: Any, high: float) -> float:
    """A finite number from 0 on, as a float: transformers refuses whole numbers there."""
    found = as_number(value)
    if found is None:
        raise wrong_type(name, value, "a number")
    if not 0.0 <= found <= high or math.isinf(found):
        raise ConfigError(
            f"config: {name}={found}, expected a finite number from 0.0 to {high}.",
            code="config-out-of-range",
            remedy=f"Give a {name} within that range.",
        )
    return found


def read_flag(name: str, value: Any) -> bool:
    """A truth value, NumPy's and torch's included."""
    found = as_flag(value)
    if found is None:
        raise wrong_type(name, value, "true or false")
    return found


def as_names(given: object) -> tuple[str, ...]:
    """The names of fields to ignore: none, one alone, or several."""
    if given is None or isinstance(given, str):
        return () if given is None else (given,)
    if not is_several(given) or isinstance(given, Mapping):
        raise ConfigError(
            f"config: {shown(given)} given as the fields to ignore, expected their names.",
            code="config-wrong-type",
            remedy="Give their names in a list, such as ignore_config=['auto_map'].",
        )
    return tuple(map(str, given))


def _whole(name: str, value: Any, expected: str) -> int:
    """A whole number, even if JSON has it with a point, such as 3.0."""
    whole, real = as_whole(value), as_number(value)
    if whole is None and real is not None and real.is_integer():
        return int(real)
    if whole is None:
        raise wrong_type(name, value, expected)
    return whole


def wrong_type(name: str, value: object, expected: str) -> ConfigError:
    """The error for a field that holds another kind of value."""
    return ConfigError(
        f"config: {name}={shown(value)} ({type(value).__name__}), expected {expected}.",
        code="config-wrong-type",
        remedy=f"Give {name} as {expected}.",
    )


@dataclass(frozen=True)
class Variant:
    """Fields that make another model of a family's, and that this library does not implement."""

    reason: str  # the rest of a sentence after "the field says:"
    names: tuple[str, ...]  # their names, as published configurations have them
    pattern: str = ""  # their other spellings; "" for none
    # values that mean the plain model, beside null, false, 0 and what is empty; texts in lower case
    harmless: tuple[Any, ...] = ()
    on: bool = False  # whether true is the plain model, and false is the variant
    equal_to: str = ""  # a field of the plain model whose value, given here, means the plain model, too
    covers: bool = False  # whether a number of no less than the positions, or -1, means the plain model, too
    factors: str = ""  # the names, as a pattern, for which 1 means the plain model, too

    def has(self, name: str) -> bool:
        """Whether a field is one of this variant's."""
        return name in self.names or bool(self.pattern and re.search(self.pattern, name))

    def is_harmless(self, name: str, value: Any, given: Mapping[str, Any]) -> bool:
        """Whether a field of this variant says, with this value, that the model is the plain one."""
        if value is None or isinstance(value, bool):
            return value is None or value is self.on
        if isinstance(value, (list, tuple, dict)):
            items = cast("dict[Any, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value)
            return all(self.is_harmless(name, item, given) for item in items)
        if isinstance(value, str):
            return value.lower() in ("", "none", *self.harmless)
        if not isinstance(value, (int, float)):
            return not self.on and not value
        least = max((size for size in map(given.get, _POSITIONS) if isinstance(size, int)), default=0)
        if self.covers and (value == -1 or 0 < least <= value):
            return True
        one = value == 1 and bool(self.factors) and re.search(self.factors, name) is not None
        equal = bool(self.equal_to) and value == given.get(self.equal_to)
        return one or equal or value == self.on or value in self.harmless


_POSITIONS = ("n_positions", "max_position_embeddings")
"""What the families call the number of positions."""

COMMON = (
    Variant("it names code of the repository's own that would replace the family's", ("auto_map", "custom_pipelines")),
    Variant("its weights are quantized", ("quantization_config",), r"quantiz|^quant_"),
    Variant(
        "cross-attention layers are not the decoder's",
        ("add_cross_attention", "cross_attention_hidden_size", "is_cross_attention"),
        r"cross_?att",
    ),
    Variant(
        "encoder-decoder models are not implemented",
        ("is_encoder_decoder", "tie_encoder_decoder", "encoder", "decoder", "text_encoder", "generator"),
    ),
    Variant("a model inside another one is not implemented", ("text_config", "vision_config", "audio_config")),
    Variant("blocks of different kinds are not implemented", ("per_layer_config", "block_configs", "attn_layer_idx")),
    Variant("fused modules of the file's own are not implemented", ("fusion_config",)),
    Variant("its weights lie in a file of another name", ("transformers_weights",)),
    Variant(
        "muP multipliers are not implemented",
        (),
        r"^mup(_|$)|_mup$|use_mup|qk_dot_by_d|^attn_mult$",
        factors=r"^(?!.*att).*(scale|scaling|alpha|mult|multiplier|factor)$",
    ),
    Variant(
        "multipliers of values on their way are not implemented",
        (),
        r"^(attn|attention|emb\w*|residual|logits?|output|width|depth)_(mult|multiplier|scale|scaling|alpha)$"
        r"|^scale_(emb|logits|residual)",
        (1, 1.0),
    ),
    Variant("pruned heads are not implemented", ("pruned_heads",)),
    Variant("ALiBi is not implemented", ("alibi",), r"alibi"),
    Variant("relative positions are not implemented", ("relative_attention",), r"relative_(att|pos)|rel_pos"),
    Variant(
        "attention over a part of the text is not implemented",
        ("sliding_window", "window_size", "attention_window", "attention_chunk_size", "attention_types",
         "attention_layers", "layer_types", "layers_block_type", "kv_sharing_modes"),
        r"sliding|^(attn_|attention_|local_)?window(_size|_length)?$|local_att|block_sparse|sparse_att|attention_sink|num_sink|kv_shared",
        ("full_attention", "attention", "global", "full"),
        covers=True,
    ),
    Variant("attention over later positions is not implemented", ("is_causal", "causal"), on=True),
    Variant("norms of queries and keys are not implemented", ("qk_norm",), r"(^|_)qk_?(layer_?)?(norm|ln)"),
    Variant("capped logits are not implemented", ("final_logit_softcapping",), r"soft_?cap|logits?_(cap|clip)"),
    Variant("mixtures of experts are not implemented", ("num_experts",), r"(^|_)(moe|experts?)(_|$)|router",
            factors=r"^(n|num)_(\w+_)?experts?(_per_tok(en)?)?$"),
    Variant("differential or linear attention is not implemented", ("linear_attention",),
            r"^(use_)?(diff(erential)?|linear)_att"),
    Variant("state-space layers are not implemented", ("ssm_cfg",), r"^(ssm|mamba|hyena)(_|$)"),
    Variant("another place of the norms is not implemented", ("do_layer_norm_before",),
            r"^(pre_?(layer)?norm|norm_first|normalize_before|pre_ln)$", on=True),
    Variant("another place of the norms is not implemented", ("apply_residual_connection_post_layernorm",),
            r"^(post|sandwich)_?(layer)?(norm|ln)"),
)  # fmt: skip
"""Variants of every family that a field of its configuration is known to make."""

AT_LOADING = frozenset(("auto_map", "custom_pipelines", "quantization_config", "fusion_config", "transformers_weights"))
"""Fields of variants that transformers reads when it opens a file, so they say nothing of a live model."""

READ = AT_LOADING | frozenset(
    """
    add_cross_attention is_encoder_decoder text_config encoder decoder text_encoder generator per_layer_config
    layer_types sliding_window attention_chunk_size kv_sharing_modes is_causal
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields of variants that transformers reads, whatever the class: its masks, caches and configurations do."""

PARALLEL = Variant(
    "parallel attention and MLP are not implemented",
    ("parallel_residual",),
    r"parallel_(residual|attn|attention|block|layers?|mlp)",
)

LAYER_NORM_ALONE = (
    Variant("LayerNorms without bias are not implemented", ("layer_norm_bias", "layernorm_bias", "ln_bias"), on=True),
    Variant(
        "other norms than LayerNorm are not implemented",
        ("norm_type", "normalization", "layer_norm_type"),
        r"rms_?norm|^norm(alization)?(_type|_class|_layer)?$|deepnorm|no_?layer_?norm",
        ("layernorm", "layer_norm", "ln"),
    ),
)
"""Variants of a family whose norms are LayerNorms."""

PLAIN_MLP_ALONE = Variant(
    "gated MLPs are not implemented", ("gated_mlp",), r"(^|_)(swi|ge|re)?glu(_|$)|gated_(mlp|ffn|act)"
)

ROTARY_ALONE = Variant(
    "other position embeddings than rotary ones are not implemented",
    ("position_embedding_type",),
    r"^pos(ition(al|s)?)?_?(emb|enc)[a-z]*(_type|_kind)?$|^no_rope_",
    ("rope", "rotary"),
)


def own_keys_alone(heads: str) -> Variant:
    """The variant of a family whose queries never share keys and values; `heads` is its field of their number."""
    return Variant(
        "multi-query attention is not implemented",
        ("attention_head_type", "multi_query", "num_key_value_heads", "n_head_kv"),
        r"multi_?query|kv_heads?($|_)|kv_groups|grouped_query|^n_kv",
        ("multihead", "multi_head"),
        equal_to=heads,
    )


NEUTRAL = frozenset(
    """
architectures dtype torch_dtype transformers_version _name_or_path name_or_path tokenizer_class prefix use_cache
    output_past output_attentions output_hidden_states return_dict return_dict_in_generate output_scores torchscript
    use_bfloat16 tf_legacy_loss _attn_implementation attn_implementation _attn_implementation_autoset
    _experts_implementation experts_implementation gradient_checkpointing chunk_size_feed_forward _commit_hash
    _output_attentions base_model_tp_plan base_model_pp_plan distributed_config output_cross_attentions
    finetuning_task task_specific_params problem_type id2label label2id num_labels is_decoder decoder_start_token_id
    sep_token_id max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields that transformers reads, or once read, and that never change what a model computes forward."""
