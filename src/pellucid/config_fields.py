"""What is known about the fields of published GPT-2 configurations: synonyms, neutral ones, refused ones."""

from __future__ import annotations

ACTIVATIONS = (
    "gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_python_tanh", "gelu_accurate",
    "gelu_10", "quick_gelu", "relu", "relu2", "relu6", "silu", "swish", "mish", "tanh", "sigmoid", "linear",
    "leaky_relu", "hardswish", "laplace", "sqrtsoftplus",
)  # fmt: skip
"""transformers' names of the activation functions without parameters; `pellucid.nonlinear` computes them."""

SYNONYMS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Other spellings that transformers accepts; where both are given the synonym wins, as it does there."""

NEUTRAL = frozenset(
    """
    architectures dtype torch_dtype transformers_version _name_or_path name_or_path tokenizer_class prefix n_ctx
    use_cache output_past output_attentions output_hidden_states return_dict return_dict_in_generate output_scores
    torchscript use_bfloat16 tf_legacy_loss _attn_implementation attn_implementation _attn_implementation_autoset
    _experts_implementation gradient_checkpointing chunk_size_feed_forward
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    predict_special_tokens finetuning_task task_specific_params problem_type id2label label2id num_labels
    classifier_dropout hidden_dropout is_decoder decoder_start_token_id sep_token_id
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    scale_attn_by_layer_idx apply_query_key_layer_scaling normalize_attention_scores
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Fields that never change what transformers' GPT-2 computes in a forward pass."""

REFUSED = {
    "auto_map": "it names code of the repository's own that would replace GPT-2's",
    "quantization_config": "its weights are quantized",
    "add_cross_attention": "cross-attention layers are not GPT-2's decoder",
    "cross_attention_hidden_size": "cross-attention layers are not GPT-2's decoder",
    "is_encoder_decoder": "encoder-decoder models are not implemented",
    "attention_head_type": "multi-query attention is not implemented",
    "multi_query": "multi-query attention is not implemented",
    "attn_mult": "muP multipliers are not implemented",
    "output_mult": "muP multipliers are not implemented",
    "width_mult": "muP multipliers are not implemented",
    "embedding_mult": "muP multipliers are not implemented",
    "mup": "muP multipliers are not implemented",
    "pruned_heads": "pruned heads are not implemented",
    "tie_encoder_decoder": "encoder-decoder models are not implemented",
}
"""Fields that change the computation in ways that this library does not implement; harmless when falsy."""

PUBLISHED_SIZES = {
    "gpt2-small": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
    "distilgpt2": (768, 6, 12),
}
"""n_embd, n_layer, n_head of the published models (Radford et al. 2019; Sanh et al. 2019)."""
