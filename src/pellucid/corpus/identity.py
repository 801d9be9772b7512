"""What made a store, and whether a model on this machine would make it again to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from pellucid.corpus.ray_workers import machine_of
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError, PellucidError
from pellucid.open import load
from pellucid.run.origin import execution_of, weights_fingerprint
from pellucid.weights.hub import BUNDLED, BUNDLED_NAME

MACHINE = ("torch", "threads", "processor", "device")
"""Facts of where a store was made, on which the last bits of products depend."""

ARGUMENTS = ("names", "dtype", "batch_tokens", "long_texts", "packing")
"""Facts that arguments of `capture` say."""

_WHAT = {
    "weights": "the model's weights differ", "tokenizer": "the tokenizer differs",
    "model_dtype": "the model's dtype differs", "numerics": "the numerics differ", "attention": "the attention differs",
    "texts": "the texts differ", "names": "the checkpoints differ", "dtype": "the dtype of what is stored differs",
    "batch_tokens": "batch_tokens differs", "long_texts": "long_texts differs", "packing": "packing differs",
    "torch": "torch's version differs", "threads": "the number of threads differs",
    "processor": "the processor's features differ",
    "device": "the device differs",
}  # fmt: skip

_REMEDIES = {
    "model": "Give the model that it was made with, opened in the same way, or another path.",
    **{fact: f"Give {fact}={{stored!r}}, which it was made with, or another path." for fact in ARGUMENTS},
    **dict.fromkeys(MACHINE, "Run it where it was made, or write a new store to another path."),
    "threads": "Call torch.set_num_threads({stored}) first.",
    "texts": "Give the texts as they were, or another path: what is stored is of texts that have changed since.",
}


def facts_of(model: CapturingModel) -> dict[str, Any]:
    """What a store says of the model that made it and of the machine."""
    source = str(getattr(model, "provenance", {}).get("source", ""))
    return {
        "model": BUNDLED_NAME if source == str(BUNDLED) else source,
        "weights": weights_fingerprint(model),
        "tokenizer": _tokenizer_digest(getattr(model, "tokenizer", None)),
        "model_dtype": str(getattr(model, "dtype", torch.float32)).removeprefix("torch."),
        **execution_of(model),
        **machine_of(model),
    }  # fmt: skip


def _tokenizer_digest(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    make: Any = getattr(tokenizer, "to_json", None)
    return hashlib.sha256(str(make()).encode()).hexdigest() if callable(make) else type(tokenizer).__name__


def require_equal(stored: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise an error if a store was made of something else, or where products round otherwise."""
    for fact, value in now.items():
        if fact == "model" or stored.get(fact) == value:
            continue
        was = stored.get(fact)
        raise InputError(
            f"corpus: {_WHAT[fact]} from what {where!r} was made with: {_short(was)} there, {_short(value)} here.",
            code="corpus-misfit",
            remedy=_REMEDIES.get(fact, _REMEDIES["model"]).format(stored=was),
        )


def _short(value: Any) -> str:
    said = str(value)
    return repr(said) if len(said) <= 60 else f"{said[:12]}…"


def require_same(stored: Mapping[str, Any], model: Any, where: str) -> None:
    """Raise an error unless a model would make a store's values again to the bit. See `require_equal`."""
    now = {fact: value for fact, value in facts_of(model).items() if fact != "tokenizer"}  # the tokens are stored
    require_equal(stored, now, where)


def reopened(stored: Mapping[str, Any]) -> Any:
    """The model that a store was made with, opened from where it came."""
    if not stored["model"]:
        raise InputError(
            "corpus: the model was not opened from a file, so it cannot be opened again.",
            code="corpus-model",
            remedy="Give the model that made the store: store.verify(model=model).",
        )
    try:
        return load(
            stored["model"], dtype=stored["model_dtype"], attention=stored["attention"], numerics=stored["numerics"]
        )
    except (PellucidError, KeyError) as error:
        raise InputError(
            f"corpus: the model cannot be opened as {stored.get('model')!r}, where it came from: {error}",
            code="corpus-model",
            remedy="Give the model that made the store: store.verify(model=model).",
        ) from error
