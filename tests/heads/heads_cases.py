"""Models and definitions that the tests of heads share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import llamas
import pellucid as pl
import samples
import support

FAMILIES: dict[str, Any] = {
    "gpt2": support.glass,
    "llama": lambda **more: llamas.glass(attention_bias=True, **more),
    "gpt_neox": lambda **more: samples.glass("gpt_neox", num_attention_heads=4, **more),
}
"""Builders: all heads by themselves, three queries to a head of keys and values, and heads of which a part turns."""


def model64(family: str) -> pl.CkptedTransformer:
    return FAMILIES[family](dtype=torch.float64)


def weights(model: pl.CkptedTransformer, layer: int, head: int) -> dict[str, Tensor]:
    """The matrices of one head, by letter."""
    attention = model.blocks[layer].attn
    found: dict[str, Tensor] = {}
    for letter in "QKVO":
        every = getattr(attention, f"W_{letter}").detach()
        found[letter] = every[head * len(every) // attention.n_head]
    return found


def biases(model: pl.CkptedTransformer, layer: int, head: int) -> Tensor:
    """The values' bias of one head."""
    every = model.blocks[layer].attn.b_V.detach()
    return every[head * len(every) // model.blocks[layer].attn.n_head]


def by_loops(model: pl.CkptedTransformer, rows: list[list[int]]) -> dict[str, np.ndarray]:
    """Each attention score, [layer, head], by loops over the patterns of each text alone."""
    layers, heads = len(model.blocks), model.blocks[0].attn.n_head
    total = {name: np.zeros((layers, heads)) for name in ("previous", "first", "duplicate", "induction")}
    count = dict.fromkeys(total, 0)
    for row in rows:
        pattern = model.run_with_ckpts([row], names="**.ckpt_pattern")[1].stack("attn.ckpt_pattern").double().numpy()
        for q in range(1, len(row)):
            same = [k for k in range(q) if row[k] == row[q]]
            keys = {"previous": [q - 1], "first": [0], "duplicate": same, "induction": [k + 1 for k in same]}
            for name, chosen in keys.items():
                count[name] += bool(chosen)
                total[name] += sum((pattern[:, 0, :, q, k] for k in chosen), np.zeros((layers, heads)))
    return {name: numbers / count[name] if count[name] else numbers * np.nan for name, numbers in total.items()}


def copies(model: pl.CkptedTransformer, rows: list[list[int]], at: list[tuple[int, int]], sign: int = 1) -> np.ndarray:
    """The share of these (text, token) that are among the five likeliest of what each head makes of them."""
    layers, heads = len(model.blocks), model.blocks[0].attn.n_head
    found = np.zeros((layers, heads))
    for text, place in at:
        _, ckpts = model.run_with_ckpts([rows[text]], names="blocks.0.resid_post")
        stream = ckpts["blocks.0.resid_post"][:, place : place + 1]
        for layer in range(layers):
            for head in range(heads):
                own = weights(model, layer, head)
                value = model.blocks[layer].ln1(stream) @ own["V"] + biases(model, layer, head)
                logits = model.unembed(model.ln_final(sign * value @ own["O"]))[0, 0]
                found[layer, head] += rows[text][place] in logits.topk(5).indices.tolist()
    return found / len(at)
