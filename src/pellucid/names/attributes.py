"""Attributes of other libraries' objects that do not exist here, and what to use instead.

One table for each kind of object, read by the errors of the objects and by the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pellucid.errors import UnknownAttributeError

_LAYERS = "torch.stack([{} for block in model.blocks])"

MODEL: Mapping[str, str] = {
    # HookedTransformer
    "run_with_cache": "model.run_with_ckpts(inputs)",
    "run_with_hooks": "model.run_with_ckpts(inputs, edits=[pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3)])",
    "add_hook": "model.get_submodule('blocks.0.resid_post').register_forward_hook(hook)",
    "add_perma_hook": "model.get_submodule('blocks.0.resid_post').register_forward_hook(hook)",
    "reset_hooks": "handle.remove(), if a hook was registered; run_with_ckpts leaves nothing behind",
    "remove_all_hook_fns": "handle.remove(), if a hook was registered; run_with_ckpts leaves nothing behind",
    "hooks": "model.run_with_ckpts(inputs, edits=[pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3)])",
    "hook_dict": "model.ckpt_names",
    "hook_points": "model.ckpt_names",
    "hook_embed": "model.ckpt_embed",
    "hook_pos_embed": "model.ckpt_pos_embed",
    "to_tokens": "model.tokenize(text).ids",
    "to_str_tokens": "model.tokenize(text).strings[0]",
    "to_string": "model.tokenizer.decode(ids)",
    "to_single_token": "model.tokenizer.token_id(' cat')",
    "to_single_str_token": "model.tokenizer.decode(token)",
    "get_token_position": "model.tokenize(text).ids[0].tolist().index(model.tokenizer.token_id(' cat'))",
    "cfg": "model.config",
    "W_E": "model.embed.W_E",
    "W_pos": "model.pos_embed.W_pos",
    "W_U": "model.unembed.W_U",
    "b_U": "no tensor: GPT-2's head has no bias",
    **{name: _LAYERS.format(f"block.attn.{name}") for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")},
    **{name: _LAYERS.format(f"block.mlp.{name}") for name in ("W_in", "W_out", "b_in", "b_out")},
    "QK": _LAYERS.format("block.attn.W_Q @ block.attn.W_K.mT"),
    "OV": _LAYERS.format("block.attn.W_V @ block.attn.W_O"),
    "tokens_to_residual_directions": "model.unembed.W_U[:, tokens]",
    "loss_fn": "model.loss(inputs)",
    **dict.fromkeys(
        (
            "fold_layer_norm",
            "fold_value_biases",
            "process_weights_",
            "center_unembed",
            "center_writing_weights",
            "load_and_process_state_dict",
        ),
        "pl.fold(model), which gives other weights and the same probabilities",
    ),
    "refactor_factored_attn_matrices": "pl.fold(model, refactor_factored_attn_matrices=True)",
    "set_use_attn_result": "torch.einsum('bphk,hkd->bphd', ckpts['z', 0], model.blocks[0].attn.W_O)",
    "set_use_split_qkv_input": "pl.Edit.zero('blocks.0.attn.ckpt_q', heads=3)",
    "set_use_attn_in": "pl.Edit.zero('blocks.0.attn.ckpt_q', heads=3)",
    "set_use_hook_mlp_in": "pl.Edit.zero('blocks.0.ln2.ckpt_normalized')",
    "accumulated_bias": "sum(block.attn.b_O + block.mlp.b_out for block in model.blocks)",
    "all_head_labels": "[(block, head) for block in range(len(model.blocks)) for head in range(model.config.n_head)]",
    "input_to_embed": "model.run_with_ckpts(inputs, names=['embed', 'pos_embed'])",
    "get_residual": "model.run_with_ckpts(inputs, names='resid_pre')",
    "mod_dict": "dict(model.named_modules())",
    "add_caching_hooks": "model.run_with_ckpts(inputs)",
    "get_caching_hooks": "model.run_with_ckpts(inputs)",
    "cache_all": "model.run_with_ckpts(inputs)",
    "cache_some": "model.run_with_ckpts(inputs, names='pattern')",
    "check_hooks_to_add": "model.ckpt_names",
    "generate_stream": "model.stream(inputs)",
    "sample_datapoint": "model.tokenize(text)",
    "load_sample_training_dataset": "model.tokenize(text)",
    "set_tokenizer": "model.tokenizer = pl.load().tokenizer",
    "cuda_device": "model.device",
    # transformers
    "transformer": "model.blocks, model.embed, model.pos_embed and model.ln_final",
    "lm_head": "model.unembed",
    "wte": "model.embed",
    "wpe": "model.pos_embed",
    "h": "model.blocks",
    "ln_f": "model.ln_final",
    "hidden_states": "model.run_with_ckpts(inputs, names='resid_post')",
    "attentions": "model.run_with_ckpts(inputs, names='pattern')",
    "generation_config": "model.generation",
    "resize_token_embeddings": "transformers' method: pl.to_hf(model).resize_token_embeddings(size), then pl.from_hf",
    "push_to_hub": "model.save_pretrained('folder')",
    "num_parameters": "pl.count_parameters(model).unique",
    "tie_weights": "pl.tie(model)",
    "base_model": "model.blocks, model.embed, model.pos_embed and model.ln_final",
    "get_memory_footprint": "pl.count_parameters(model).bytes",
    "save_model": "model.save_pretrained('folder')",
    "compute_transition_scores": "model.generate(inputs).logprobs",
    "beam_search": "model.generate(inputs, num_beams=4)",
    "greedy_search": "model.generate(inputs)",
    "contrastive_search": "model.generate(inputs)",
    "sample": "model.generate(inputs, sampler=pl.Sampler())",
    "init_weights": "pl.CkptedTransformer(model.config)",
    **dict.fromkeys(
        ("gradient_checkpointing_enable", "enable_input_require_grads"),
        "torch.utils.checkpoint.checkpoint(model, ids, use_reentrant=False)",
    ),
    # nanoGPT
    "configure_optimizers": "torch.optim.AdamW(model.parameters())",
    "get_num_params": "pl.count_parameters(model).unique",
    # nnsight and DoTLMViz
    "session": "model.run_with_ckpts(inputs)",
    "edit": "model.run_with_ckpts(inputs, edits=[pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3)])",
    "scan": "pl.estimate(model, text)",
    "trace": "model.run_with_ckpts(inputs, edits=[pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3)])",
    "ckpts": "logits, ckpts = model.run_with_ckpts(inputs)",
    "get_all_checkpoints": "model.ckpt_names",
}
"""Attributes of other libraries' models -> what to use here."""

TOKENIZER: Mapping[str, str] = {
    # transformers
    "tokenize": "tokenizer.pieces(tokenizer.encode(text))",
    "encode_plus": "tokenizer(text)",
    "batch_encode_plus": "tokenizer([text])",
    "convert_tokens_to_string": "tokenizer.decode(ids)",
    "vocab": "tokenizer.get_vocab()",
    **{f"{name}_token": f"tokenizer.convert_ids_to_tokens(tokenizer.{name}_token_id)" for name in ("bos", "eos")},
    "pad_token": "model.tokenize(text), which pads and masks texts",
    "add_tokens": "pl.to_hf(model) with a tokenizer of transformers', and pl.from_hf of what it became",
    "add_special_tokens": "pl.to_hf(model) with a tokenizer of transformers', and pl.from_hf of what it became",
    "save_pretrained": "tokenizer.save('folder')",
    "pad": "model.tokenize([[1, 2], [3]])",
    "padding_side": "model.tokenize(text, padding_side='right')",
    "truncation_side": "tokenizer.encode(text)[-64:]",
    "model_max_length": "model.config.sizes['n_ctx']",
    "name_or_path": "model.provenance['source']",
    **dict.fromkeys(
        ("all_special_ids", "special_tokens_map"),
        "tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id",
    ),
    "apply_chat_template": "a text with the words of the template in it",
    # tokenizers
    "encode_batch": "tokenizer([text])",
    "decode_batch": "tokenizer.batch_decode([ids])",
    "id_to_token": "tokenizer.convert_ids_to_tokens(token)",
    "token_to_id": "tokenizer.token_id(' cat')",
    "get_vocab_size": "len(tokenizer)",
    "to_str": "tokenizer.to_json()",
    # tiktoken
    "n_vocab": "len(tokenizer)",
    "encode_ordinary": "tokenizer.encode(text)",
    "eot_token": "tokenizer.eos_token_id",
}
"""Attributes of other libraries' tokenizers -> what to use here."""

TOKENIZER_CLASS: Mapping[str, str] = {
    "from_pretrained": "pl.load(name).tokenizer for that of a model, or pl.Tokenizer.from_folder(folder)",
    "from_str": "pl.Tokenizer(tokenizers.Tokenizer.from_str(text))",
    "from_buffer": "pl.Tokenizer(tokenizers.Tokenizer.from_buffer(content))",
}
"""Ways in which other libraries open a tokenizer -> what to use here."""

_TURNED = "'attn.ckpt_rot_q' and 'attn.ckpt_rot_k' in names=: positions turn queries and keys, and are in no tensor"

ROTARY_MODEL: Mapping[str, str] = {
    **MODEL,
    **dict.fromkeys(("hook_pos_embed", "W_pos", "pos_embed", "wpe"), _TURNED),
    **dict.fromkeys(("transformer", "base_model"), "model.blocks, model.embed and model.ln_final"),
    "input_to_embed": "model.run_with_ckpts(inputs, names=['embed'])",
    "layers": "model.blocks",
    "rotary_emb": "model.rotary",
    "all_head_labels": "[(block, head) for block in range(len(model.blocks)) "
    "for head in range(model.config.num_attention_heads)]",
}
"""The same of a model with rotary positions, under the names of transformers' modules."""

CKPTS: Mapping[str, str] = {
    "stack_activation": "ckpts.stack('pattern')",
    "accumulated_resid": "ckpts.stack('resid_pre'), and ckpts['resid_post', -1] for the last",
    "decompose_resid": "ckpts['embed'], ckpts['pos_embed'], ckpts.stack('attn_out') and ckpts.stack('mlp_out')",
    "get_full_resid_decomposition": "ckpts['embed'], ckpts['pos_embed'], ckpts.stack('attn_out') and "
    "ckpts.stack('mlp_out')",
    "stack_head_results": "torch.einsum('lbphk,lhkd->lbphd', ckpts.stack('z'), "
    "torch.stack([block.attn.W_O for block in model.blocks]))",
    "compute_head_results": "torch.einsum('lbphk,lhkd->lbphd', ckpts.stack('z'), "
    "torch.stack([block.attn.W_O for block in model.blocks]))",
    "stack_neuron_results": "ckpts['post', 0][..., None] * model.blocks[0].mlp.W_out",
    "get_neuron_results": "ckpts['post', 0][..., None] * model.blocks[0].mlp.W_out",
    "logit_attrs": "pl.attribution.direct(ckpts, token, by='head')",
    "apply_ln_to_stack": "pl.attribution.direct(ckpts, token)",
    "remove_batch_dim": "ckpts[name][0]",
    "cache_dict": "dict(ckpts)",
    "model": "the model that made them",
    "toggle_autodiff": "model.run_with_ckpts(inputs, grads=True)",
    "hidden_states": "ckpts.stack('resid_post')",
    "attentions": "ckpts.stack('pattern')",
}
"""Attributes of other libraries' captured values -> what to use here."""

_SIZES = {
    "layer": ("n_layer", "n_layers", "num_layers", "num_hidden_layers"),
    "head": ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    "head_kv": ("n_key_value_heads", "num_key_value_heads"),
    "d_model": ("n_embd", "d_model", "hidden_size", "dim", "embed_dim"),
    "d_head": ("d_head", "head_dim"),
    "d_mlp": ("d_mlp", "n_inner", "intermediate_size"),
    "d_vocab": ("vocab_size", "d_vocab"),
    "n_ctx": ("n_positions", "n_ctx", "block_size", "max_position_embeddings", "context_length"),
}

CONFIG: Mapping[str, str] = {
    **{theirs: f"config.sizes['{ours}']" for ours, names in _SIZES.items() for theirs in names},
    **dict.fromkeys(("act_fn", "hidden_act", "activation_function"), "config.activation"),
    **dict.fromkeys(("eps", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"), "config.epsilon"),
    "dtype": "model.dtype",
    "device": "model.device",
}
"""What other libraries' configurations, and other families', call a fact -> what to use of a configuration here."""

_NOT_SPLIT = "{{here}}.{}; the input is not split by head here"

BLOCK: Mapping[str, str] = {
    "hook_resid_pre": "{here}.resid_pre",
    "hook_resid_mid": "{here}.resid_mid",
    "hook_resid_post": "{here}.resid_post",
    "hook_attn_out": "{here}.attn.ckpt_attn_out",
    "hook_mlp_out": "{here}.mlp.ckpt_mlp_out",
    "hook_attn_in": _NOT_SPLIT.format("resid_pre"),
    "hook_mlp_in": "{here}.resid_mid",
    **{f"hook_{part}_input": _NOT_SPLIT.format("ln1.ckpt_normalized") for part in "qkv"},
    "ln_1": "{here}.ln1",
    "ln_2": "{here}.ln2",
}
"""Attributes of other libraries' blocks -> what to use here; `{here}` is the module that was asked."""

ATTENTION: Mapping[str, str] = {
    **{f"hook_{part}": f"{{here}}.ckpt_{part}" for part in ("q", "k", "v", "z", "pattern")},
    "hook_attn_scores": "{here}.ckpt_scores",
    "hook_result": "torch.einsum('bphk,hkd->bphd', ckpts['z', 0], {here}.W_O)",
    "QK": "{here}.W_Q @ {here}.W_K.mT",
    "OV": "{here}.W_V @ {here}.W_O",
    "c_attn": "{here}.W_QKV and {here}.b_QKV",
    "c_proj": "{here}.W_O and {here}.b_O",
    "num_heads": "{here}.n_head",
    "head_dim": "model.config.d_head",
}

ROTARY_ATTENTION: Mapping[str, str] = {
    **{name: said for name, said in ATTENTION.items() if name not in ("c_attn", "c_proj")},
    **{f"hook_rot_{letter}": f"{{here}}.ckpt_rot_{letter}" for letter in "qk"},
    "QK": "{here}.W_Q @ {here}.W_K.mT, before rotation",
}

NOT_ROTATED = "its output are cosines and sines; the rotated values are attn.ckpt_rot_q and attn.ckpt_rot_k"

NOT_THE_SAME: Mapping[str, str] = {
    "attn.hook_result": "per-head outputs are not computed; each is ckpt_z[:, :, h] @ W_O[h]",
    **{f"hook_{part}_input": "the input is not split by head; it is ln1.ckpt_normalized" for part in "qkv"},
    "hook_attn_in": "the input is not split by head; it is resid_pre",
    "hook_mlp_in": "it is a copy of resid_mid; ask for resid_mid",
    **dict.fromkeys(("lm_head", "unembed"), "its output are the logits, which every run returns"),
}
"""Names whose values are close to a checkpoint's but not the same -> the reason, in every family."""

MLP: Mapping[str, str] = {
    "hook_pre": "{here}.ckpt_pre",
    "hook_post": "{here}.ckpt_post",
    "c_fc": "{here}.W_in and {here}.b_in",
    "c_proj": "{here}.W_out and {here}.b_out",
}

NORM: Mapping[str, str] = {
    "hook_scale": "{here}.ckpt_scaled; it holds the quotient, not the divisor",
    "hook_normalized": "{here}.ckpt_normalized",
    "weight": "{here}.w",
    "bias": "{here}.b",
}

POS_EMBED: Mapping[str, str] = {"weight": "model.pos_embed.W_pos"}
UNEMBED: Mapping[str, str] = {"b_U": MODEL["b_U"], "bias": MODEL["b_U"]}

_HOOKS = "module.register_forward_hook(hook), or edits=[pl.Edit.zero('embed')] of model.run_with_ckpts"

EDIT: Mapping[str, str] = {
    **dict.fromkeys(("ablate", "knockout", "zero_ablate"), "pl.Edit.zero('blocks.0.attn.ckpt_z', heads=3)"),
    **dict.fromkeys(("mean", "mean_ablation"), "pl.Edit.mean_ablate('blocks.0.mlp.ckpt_post', neurons=3)"),
    **dict.fromkeys(("steer", "steering", "noise"), "pl.Edit.add('blocks.0.resid_post', vector)"),
    **dict.fromkeys(("set", "set_value", "put", "fix"), "pl.Edit.replace('blocks.0.resid_post', vector, pos=-1)"),
    **dict.fromkeys(("multiply", "mul"), "pl.Edit.scale('blocks.0.attn.ckpt_z', 0.5)"),
    **dict.fromkeys(("patch_from", "swap", "interchange"), "pl.Edit.patch('blocks.0.resid_post', ckpts, pos=-1)"),
    **dict.fromkeys(("hook", "fn", "function", "custom"), "pl.Edit.apply('blocks.0.resid_post', hook)"),
}  # fmt: skip
"""What other libraries, or people, call an edit -> what it is called here."""

PACKAGE: Mapping[str, str] = {
    "HookedTransformer": "pl.load(); pellucid.compat.hooked has a HookedTransformer for code that was written for it",
    "HookedTransformerConfig": "pl.TransformerConfig",
    "ActivationCache": "pl.ActivationCkpts",
    **dict.fromkeys(("HookPoint", "Hook", "Hooks"), _HOOKS),
    "TransformerSampler": "pl.Sampler",
    "KernelDensityEstimator": "pl.measure.distribution",
    "GPT2SmallConfig": "pl.TransformerConfig",
    "GPT2Config": "pl.TransformerConfig",
    "AutoConfig": "pl.TransformerConfig",
    "GPT2Model": "pl.load()",
    "AutoModel": "pl.load()",
    "Converter": "pl.load; it reads every layout that it knows",
    "PCA": "pl.plot.scatter",
    "get_output_dist": "pl.load().next_token_logits(inputs).softmax(-1)",
    "cross_entropy_loss": "pl.load().loss(inputs)",
    **{
        name: f"pl.gpt2.{name}; import pellucid.gpt2 first, or the family of your model"
        for name in ("Embedding", "PosEmbedding", "LayerNorm", "Attention", "MLP", "TransformerBlock", "Transformer")
    },
    "GPT2LMHeadModel": "pl.load()",
    "AutoModelForCausalLM": "pl.load()",
    "AutoTokenizer": "pl.load().tokenizer",
    "GPT2Tokenizer": "pl.load().tokenizer",
    "GenerationConfig": "pl.GenerationSettings",
}
"""Classes that other libraries have -> what to use of this package."""


def unknown_attribute(owner: str, name: str, elsewhere: Mapping[str, str], here: str = "") -> AttributeError:
    """The error for an attribute that something does not have, with what to use instead if that is known.

    `owner` is who was asked, such as "'ActivationCkpts' object"; `here` is written in the place of `{here}`.
    """
    if name not in elsewhere:
        return AttributeError(f"{owner} has no attribute {name!r}")
    return UnknownAttributeError(
        f"{owner} has no attribute {name!r}, which is a name from another library.",
        code="unknown-attribute",
        remedy=f"Use {elsewhere[name].replace('{here}', here)}.",
    )


def said_of(module: str, words: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the `__getattr__` of a module, which says what to call for these words of others.

    Example:
        >>> import pellucid as pl
        >>> pl.metrics.logit_diff
        Traceback (most recent call last):
            ...
        pellucid.errors.UnknownAttributeError: module 'pellucid.metrics' has no attribute 'logit_diff', which is a name from another library.
          remedy: Use pl.metrics.logit_difference(right, wrong).  [unknown-attribute]
    """  # noqa: E501 (the message is one line)

    def missing(name: str) -> Any:
        raise unknown_attribute(f"module {module!r}", name, words)

    return missing
