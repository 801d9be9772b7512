"""The course's configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Never


@dataclass(frozen=True)
class GPTConfig:
    """The course's configuration, which a learner's `GPT2` is constructed with."""

    activation_function: str = "gelu"
    num_layers: int = 12
    num_heads: int = 12
    vocab_size: int = 50257
    hidden_size: int = 768
    max_position_embeddings: int = 1024
    dropout: float = 0.1
    layer_norm_epsilon: float = 1e-05

    def __getattr__(self, name: str) -> Never:  # called for what is no field
        here = _ELSEWHERE.get(name)
        known = ", ".join(one.name for one in fields(self))
        meant = f"{name} is called {here} here; " if here else ""
        raise AttributeError(f"GPTConfig has no {name!r}: {meant}its fields are {known}", name=name, obj=self)


_ELSEWHERE = {
    "n_embd": "hidden_size", "d_model": "hidden_size", "n_head": "num_heads", "n_heads": "num_heads",
    "num_attention_heads": "num_heads", "n_layer": "num_layers", "n_layers": "num_layers",
    "num_hidden_layers": "num_layers", "n_positions": "max_position_embeddings", "n_ctx": "max_position_embeddings",
    "block_size": "max_position_embeddings", "max_seq_len": "max_position_embeddings", "d_vocab": "vocab_size",
    "resid_pdrop": "dropout", "attn_pdrop": "dropout", "embd_pdrop": "dropout", "layer_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function", "activation": "activation_function",
}  # fmt: skip
"""Field of other libraries' configurations -> the course's."""
