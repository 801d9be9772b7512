"""Where a HookedTransformer's model and tokenizer come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pellucid.compat.hooked.settings import HookedTransformerConfig
from pellucid.errors import InputError, shown
from pellucid.open import from_hf, load
from pellucid.run.model import CkptedTransformer
from pellucid.text.tokenizer import Tokenizer

_WITHOUT_EFFECT = ("move_to_device", "n_devices", "checkpoint_index", "checkpoint_value", "trust_remote_code")
"""Keywords that change nothing here if they have their usual value."""


def fresh(cfg: HookedTransformerConfig, *, move_to_device: bool) -> CkptedTransformer:
    """A model with random weights, by the configuration's seed."""
    with torch.random.fork_rng(enabled=cfg.seed is not None):
        if cfg.seed is not None:
            torch.manual_seed(cfg.seed)
        made = CkptedTransformer(cfg.to_pellucid())
    made = made.to(cfg.dtype)
    return made.to(cfg.device) if cfg.device is not None and move_to_device else made


def opened(name: Any, hf_model: Any, device: Any, dtype: Any) -> CkptedTransformer:
    """The model that is meant: transformers', one of ours, or what `pellucid.load` opens."""
    if hf_model is not None:
        return from_hf(hf_model).to("cpu" if device is None else device)
    if isinstance(name, CkptedTransformer):
        return name
    return load(name, device="cpu" if device is None else device, dtype=dtype)


def as_ours(given: Any) -> Tokenizer | None:
    """A tokenizer of ours, or one of transformers' as ours.

    Raises:
        InputError: Another kind.
    """
    if given is None or isinstance(given, Tokenizer):
        return given
    backend = getattr(given, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer: {type(given).__name__} given, expected pl.Tokenizer or a fast tokenizer of transformers'.",
            code="hooked-tokenizer",
            remedy="Open it with pl.Tokenizer.from_folder(folder), or with transformers.AutoTokenizer.",
        )
    return Tokenizer(type(backend).from_str(backend.to_str()))


def refuse(others: Mapping[str, Any]) -> None:
    """Refuse keywords that would change numbers.

    Raises:
        InputError: There are any.
    """
    for name, value in others.items():
        if value not in (None, False) and not (name in _WITHOUT_EFFECT and value in (True, 1)):
            raise InputError(
                f"HookedTransformer.from_pretrained: {name}={shown(value)} is not supported.",
                code="hooked-unsupported",
                remedy=f"Leave {name}= out.",
            )
