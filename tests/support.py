"""Builders that the tests share: models with weights in which every parameter matters, ids, padded batches.

Default initialisations hide bugs (zero biases, unit gains, scores near zero), so every model here is `spread`.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.gpt2.schema import of_sizes
from pellucid.schema import Schema

TRANSFORMERS = tuple(int(part) for part in metadata.version("transformers").split(".")[:2])
"""Major and minor version of the reference that is installed."""

CACHE_WORD = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
"""What it calls the keys and values that it keeps."""

SIZES: dict[str, Any] = {"vocab_size": 211, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 4}
"""Of the model that most tests run."""

ROW = torch.tensor([[1, 2, 3, 4, 5, 6]])
"""Six ids, one row."""

NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}

HF_LONG = {**SIZES, "n_positions": 1024, "n_layer": 2}
"""Of the model that conformance tests run at every length."""


def schema(n_layer: int) -> Schema:
    """What a GPT-2 of so many blocks is, its other sizes left open."""
    return of_sizes({"layer": n_layer})


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights under which no bug hides: random biases and gains, sharp attention, no near ties. In place.

    Takes ours and transformers' models; the draws are the same for the same names, shapes and kind of device.
    """
    device = "cuda" if next(model.parameters()).is_cuda else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    width = model.config.n_embd
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if last in ("W_E", "W_pos", "W_U") or name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
                mean, std = 0.0, 0.3
            elif last == "w" or ("ln_" in name and last == "weight"):
                mean, std = 1.0, 0.3
            elif last.startswith("b"):
                mean, std = 0.0, 0.2
            elif last == "W_QKV" or "c_attn" in name:
                mean, std = 0.0, 2 / width**0.5
            else:
                inputs = parameter.numel() // parameter.shape[-1]
                mean, std = 0.0, 1.5 / max(inputs, 1) ** 0.5
            drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device)
            drawn.normal_(mean, std, generator=generator)
            parameter.copy_(drawn)
    return model


def few_of(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Values of a parameter, of which `make test-all` alone tries those that are not kept; several go in tuples."""
    import pytest  # benchmarks read this file, too, in an environment without it

    apart = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*one, marks=[] if one in kept or one[0] in kept else pytest.mark.long) for one in apart]


def glass(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "auto",
    numerics: str = "exact",
    **fields: Any,
) -> pl.CkptedTransformer:
    """A small evaluating model of ours; `fields` replace those of `SIZES`."""
    model = pl.CkptedTransformer(pl.TransformerConfig(**{**SIZES, **fields}), attention=attention, numerics=numerics)
    spread(model, seed)
    return model.eval().to(dtype)


def reference(
    *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa", headless: bool = False, **fields: Any
) -> Any:
    """A small evaluating model of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    config = GPT2Config(**{**SIZES, **fields}, attn_implementation=attention)
    hf = (GPT2Model if headless else GPT2LMHeadModel)(config)
    spread(hf, seed)
    return hf.eval().to(dtype)


def pair(*, attention: str = "sdpa", **fields: Any) -> tuple[pl.CkptedTransformer, Any]:
    """Ours and transformers' with the same weights, both running attention the same way."""
    hf = reference(attention=attention, **fields)
    return pl.from_hf(hf), hf


def some_ids(rows: int, columns: int, vocab_size: int = SIZES["vocab_size"], seed: int = 0) -> Tensor:
    """Random ids [rows, columns]."""
    return torch.randint(vocab_size, (rows, columns), generator=torch.Generator().manual_seed(seed))


def ragged_ids(*lengths: int, vocab_size: int = SIZES["vocab_size"], seed: int = 0) -> list[list[int]]:
    """Random rows of these lengths."""
    return [some_ids(1, length, vocab_size, seed + i)[0].tolist() for i, length in enumerate(lengths)]


class Watcher:
    """A tap written without the library: keeps every value that passes, and may replace some.

    Args:
        changes: Checkpoint name -> function from the value to what the model goes on with.
    """

    def __init__(self, changes: dict[str, Any] | None = None, *, only: set[str] | None = None) -> None:
        self.changes = changes or {}
        self.only = only
        self.seen: list[str] = []
        self.values: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return self.only is None or name in self.only or name in self.changes

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.seen.append(name)
        self.values[name] = value.detach().clone()
        return self.changes[name](value) if name in self.changes else value


def by_hand(
    model: pl.CkptedTransformer,
    ids: Tensor,
    changes: dict[str, Any] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """GPT-2 once more, with einsum over the per-head matrices: logits and every checkpoint.

    Shares nothing with the library but the parameters; `changes` maps a checkpoint's name to a function that
    gives what to go on with. Activation: gelu_new. For comparisons in float64.
    """
    config = model.config
    values: dict[str, Tensor] = {}

    def at(name: str, value: Tensor) -> Tensor:
        values[name] = (changes or {}).get(name, lambda same: same)(value)
        return values[name]

    def norm(prefix: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = at(
            f"{prefix}.ckpt_scaled", centred / ((centred**2).mean(-1, keepdim=True) + config.layer_norm_epsilon) ** 0.5
        )
        return at(f"{prefix}.ckpt_normalized", scaled * model.parameter(f"{prefix}.w") + model.parameter(f"{prefix}.b"))

    columns = ids.size(1)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    allowed = torch.arange(columns)[None, :, None] >= torch.arange(columns)[None, None, :]
    allowed = (allowed & mask[:, None, :])[:, None]  # [B, 1, Pq, Pk]
    x = at("ckpt_embed", model.embed.W_E[ids]) + at("ckpt_pos_embed", model.pos_embed.W_pos[positions])
    for i in range(config.n_layer):
        block, p = f"blocks.{i}", lambda name, i=i: model.parameter(f"blocks.{i}.{name}")
        x = at(f"{block}.resid_pre", x)
        normed = norm(f"{block}.ln1", x)
        q, k, v = (
            at(
                f"{block}.attn.ckpt_{c.lower()}",
                torch.einsum("bpd,hdk->bphk", normed, p(f"attn.W_{c}")) + p(f"attn.b_{c}"),
            )
            for c in "QKV"
        )
        scores = torch.einsum("bqhk,bphk->bhqp", q, k)
        if config.scale_attn_weights:
            scores = scores / config.d_head**0.5
        if config.scale_attn_by_inverse_layer_idx:
            scores = scores / (i + 1)
        scores = at(f"{block}.attn.ckpt_scores", torch.where(allowed, scores, torch.finfo(scores.dtype).min))
        pattern = at(f"{block}.attn.ckpt_pattern", scores.softmax(-1))
        z = at(f"{block}.attn.ckpt_z", torch.einsum("bhqp,bphk->bqhk", pattern, v))
        attn_out = at(f"{block}.attn.ckpt_attn_out", torch.einsum("bqhk,hkd->bqd", z, p("attn.W_O")) + p("attn.b_O"))
        x = at(f"{block}.resid_mid", x + attn_out)
        pre = at(f"{block}.mlp.ckpt_pre", norm(f"{block}.ln2", x) @ p("mlp.W_in") + p("mlp.b_in"))
        inner = (2 / torch.pi) ** 0.5 * (pre + 0.044715 * pre**3)
        post = at(f"{block}.mlp.ckpt_post", pre * (1 + inner.tanh()) / 2)
        x = at(f"{block}.resid_post", x + at(f"{block}.mlp.ckpt_mlp_out", post @ p("mlp.W_out") + p("mlp.b_out")))
    return norm("ln_final", x) @ model.unembed.W_U, values


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors of one shape differ by no more than `tolerance` times the spread of the second.

    Entries of float64's minimum (masked scores) must be equal.
    """
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    if not b.numel():
        return True
    masked = b <= torch.finfo(b.dtype).min / 2
    if not torch.equal(masked, a <= torch.finfo(b.dtype).min / 2):
        return False
    a, b = (torch.where(masked | b.isnan(), 0.0, t).detach() for t in (a, b))
    unit = max(1.0, float(b.std(correction=0)))
    return float((a - b).abs().max()) <= tolerance * unit
