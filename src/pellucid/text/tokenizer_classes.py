"""transformers' classes of tokenizers: which of them a folder gets, and how those cut texts that take only vocabulary
and merges of a `tokenizer.json`.

Their constructors are the source: `GPT2Tokenizer`, `CodeGenTokenizer`, `GPTNeoXTokenizer` and `LlamaTokenizer` of
transformers 5. Every other class, `PreTrainedTokenizerFast` among them, runs the file as it is.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
_NEOX = "GPTNeoXTokenizer"
_BYTEWISE = ("GPT2Tokenizer", "CodeGenTokenizer", _NEOX)
_LLAMA = "LlamaTokenizer"
_OF_MODELS = {
    **dict.fromkeys(("codegen", "dbrx", "gpt2", "gpt_neo", "gptj", "jais2", "opt", "phi", "starcoder2"), _BYTEWISE[0]),
    **dict.fromkeys(("falcon_mamba", "gpt_neox", "mamba", "mamba2", "mpt", "olmo", "olmoe", "rwkv", "xlstm"), _NEOX),
}
"""The class that the folder of a kind of model gets if it names none; others run their file as it is."""
_AS_STORED = frozenset(
    """
    arctic aria chatlm ernie4_5 ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite gpt_bigcode granite
    granitemoe granitemoehybrid granitemoeshared h2ovl_chat hyperclovax internlm2 internlm3 iquestcoder jamba kimi_k25
    kimi_linear llava llava_next mimo_v2_flash minicpm3 minicpmv minimax_m2 ministral ministral3 mistral mistral3
    mixtral molmo molmo2 nemotron olmo2 olmo3 olmo_hybrid opencua openvla persimmon phi3 phi3_v phimoe pixtral qwen2
    smolvlm stablelm step3_vl vipllava voxtral
    """.split()  # noqa: SIM905 (names read better without a quote each)
)
"""Kinds of models that run their file as it is, whichever class their folder names."""


def class_of(settings: Mapping[str, Any], config: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The class that a folder gets, by its `tokenizer_config.json`, `config.json` and `tokenizer.json`, if any says it.

    None if it gets one that runs its file as it is, as a file that works on bytes is run if it is called a Llama's.
    """
    named, model = settings.get("tokenizer_class") or config.get("tokenizer_class"), str(config.get("model_type"))
    kind = str(named).removesuffix("Fast") if named else _OF_MODELS.get(model)
    return None if (kind == _LLAMA and _is_bytewise(stored)) or (stored and model in _AS_STORED) else kind


def special_tokens(kind: str | None) -> dict[str, str]:
    """The special tokens of a class, by name, for a folder that does not say them."""
    if kind == _LLAMA:
        return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found: dict[str, str] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    found = found if kind in _BYTEWISE else {}
    return {**found, "pad_token": "<|padding|>"} if kind == _NEOX else found


def objects(stored: Any) -> Generator[dict[str, Any]]:
    """Every object in what JSON holds, at any depth."""
    if isinstance(stored, dict):
        yield stored
    for inner in stored.values() if isinstance(stored, dict) else stored if isinstance(stored, list) else ():
        yield from objects(inner)


def _is_bytewise(stored: Mapping[str, Any]) -> bool:
    steps = objects([value for name, value in stored.items() if name != "model"])
    return any(step.get("type") == "ByteLevel" for step in steps)


def takes_only_vocabulary(kind: str | None, stored: Mapping[str, Any]) -> bool:
    """Whether a class takes only vocabulary and merges of what a `tokenizer.json` holds."""
    model = stored["model"]
    takes = kind == _LLAMA or (kind in _BYTEWISE and _is_bytewise(stored))
    return takes and model.get("type", "BPE") == "BPE" and "merges" in model


def rebuild(
    backend: tokenizers.Tokenizer,
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    settings: Mapping[str, Any],
) -> tokenizers.Tokenizer:
    """Give a tokenizer this vocabulary, and the steps of the class that the settings name; GPT-2's for none."""
    space, kind = settings.get("add_prefix_space"), settings.get("tokenizer_class")
    if kind != _LLAMA:
        backend.model = tokenizers.models.BPE(vocabulary, merges)
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(space))
        backend.decoder = decoders.ByteLevel()
        if kind == _NEOX:
            backend.normalizer = normalizers.NFC()
        return backend
    scheme = "never" if space is False else "always" if settings.get("legacy") else "first"
    backend.model = tokenizers.models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    stripped = [] if space is False else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    backend.decoder = decoders.Sequence(steps)
    return backend
