"""Builders of small Llamas that the tests share: odd sizes, and weights in which every parameter matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pellucid as pl
import support

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 41, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 64,
}  # fmt: skip
"""Of the model that most tests run: three queries share a head, and heads are wider than D / H."""

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
"""Frequencies as Llama 3 has them, at a scale at which some pairs are slowed, some not, and some in between."""


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which no mistake hides: random gains and biases, sharp attention, logits apart. In place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                mean, std = (0.0, 0.2) if name.endswith("bias") else (1.0, 0.3)
            elif "embed_tokens" in name or "lm_head" in name:
                mean, std = 0.0, 0.5
            else:
                mean, std = 0.0, 1.8 / parameter.shape[1] ** 0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(mean, std, generator=generator))
    return model


def reference(
    *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, headless: bool = False, seed: int = 0, **fields: Any
) -> Any:
    """A small evaluating model of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(**{**SIZES, **fields}, attn_implementation=attention)
    return spread((LlamaModel if headless else LlamaForCausalLM)(config), seed).eval().to(dtype)


def pair(*, attention: str = "sdpa", **fields: Any) -> tuple[pl.CkptedTransformer, Any]:
    """Ours and transformers' with the same weights, both running attention the same way."""
    hf = reference(attention=attention, **fields)
    return pl.from_hf(hf, attention="eager" if attention == "eager" else "auto"), hf


def glass(*, dtype: torch.dtype = torch.float32, attention: str = "auto", **fields: Any) -> pl.CkptedTransformer:
    """A small evaluating model of ours."""
    return pl.from_hf(reference(dtype=dtype, **fields), attention=attention)


def some_ids(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random ids [rows, columns], without those that begin, end or fill up texts."""
    return torch.randint(3, SIZES["vocab_size"], (rows, columns), generator=torch.Generator().manual_seed(seed))


def ragged_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random rows of these lengths."""
    return [some_ids(1, length, seed + i)[0].tolist() for i, length in enumerate(lengths)]


def reference_values(hf: Any, batch: pl.Batch, *, eager: bool) -> dict[str, Tensor]:
    """What transformers computes, under our names; called as its users call it, with the cache on."""
    padded = {"attention_mask": batch.mask.long(), "position_ids": batch.positions} if batch.padded else {}
    out = hf(batch.ids, output_hidden_states=True, output_attentions=eager, **padded)
    values = {f"blocks.{i}.resid_pre": state for i, state in enumerate(out.hidden_states[:-1])}
    if out.hidden_states:
        values["ln_final.ckpt_normalized"] = out.hidden_states[-1]
    headless = not hasattr(out, "logits")
    values["logits"] = nn.functional.linear(out[0], hf.embed_tokens.weight) if headless else out.logits
    for i, layer in enumerate(out[support.CACHE_WORD].layers):
        values[f"blocks.{i}.attn.ckpt_rot_k"] = layer.keys.transpose(1, 2)
        values[f"blocks.{i}.attn.ckpt_v"] = layer.values.transpose(1, 2)
        if eager and not hf.training:  # while training, its attentions are those after dropout
            values[f"blocks.{i}.attn.ckpt_pattern"] = out.attentions[i]
    return values
