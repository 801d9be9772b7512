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
_BYTEWISE = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer")
_LLAMA = "LlamaTokenizer"
_OF_MODELS = {"gpt2": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer"}
"""The class that a model's folder gets if it names none; a Llama's file is run as it is."""


def class_of(settings: Mapping[str, Any], config: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The class that a folder gets, by its `tokenizer_config.json`, `config.json` and `tokenizer.json`, if any says it.

    None if it gets one that runs its file as it is, as a file that works on bytes is run if it is called a Llama's.
    """
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = str(named).removesuffix("Fast") if named else _OF_MODELS.get(str(config.get("model_type")))
    return None if kind == _LLAMA and _is_bytewise(stored) else kind


def special_tokens(kind: str | None) -> dict[str, str]:
    """The special tokens of a class, by name, for a folder that does not say them."""
    if kind == _LLAMA:
        return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) if kind in _BYTEWISE else {}


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
        if kind == "GPTNeoXTokenizer":
            backend.normalizer = normalizers.NFC()
        return backend
    scheme = "never" if space is False else "always" if settings.get("legacy") else "first"
    backend.model = tokenizers.models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    stripped = [] if space is False else [decoders.Strip(" ", 1, 0)]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    backend.decoder = decoders.Sequence(steps)
    return backend
