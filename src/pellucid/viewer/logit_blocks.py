"""Blocks of a trace about the next token: the prediction, what each block would say, and who wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pellucid import attribution, lens
from pellucid.attribution.reading import LOGITS, doubles, opened, reading
from pellucid.lens.readout import divergence
from pellucid.viewer.container import LISTED, TOP, TraceBlock
from pellucid.viewer.one_text import OneText

_AT_ONCE = 128
"""Positions whose logits are widened together: those of 1,024 in float64 take 400 MB for each block."""


@dataclass(frozen=True)
class Target:
    """The token whose logit is explained.

    Attributes:
        token: Its id.
        pos: The position at which it is predicted.
        why: Why it is this one.
    """

    token: int
    pos: int
    why: str


def prediction(one: OneText) -> dict[str, TraceBlock]:
    """The last token's logits, and the likeliest next tokens at every position."""
    last = one.logits[-1].float().numpy()
    rows = [wide.topk(min(TOP, wide.size(-1))) for wide in _wide(one.logits)]
    return {
        "prediction.logits": TraceBlock(last.astype("<f4")),
        "prediction.top.ids": TraceBlock(torch.cat([row.indices for row in rows]).numpy().astype("<u4")),
        "prediction.top.logprobs": TraceBlock(torch.cat([row.values for row in rows]).numpy().astype("<f4")),
    }


def _wide(logits: Tensor) -> Iterator[Tensor]:
    """Log-probabilities in float64 of some positions at a time."""
    return (part.cpu().double().log_softmax(-1) for part in logits.split(_AT_ONCE))


def read_lens(one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What the embeddings and each block would say next, by the logit lens."""
    nexts = torch.tensor([*one.ids[1:], target.token])
    own = torch.full_like(nexts, target.token)
    columns: dict[str, list[Tensor]] = {name: [] for name in _OF_A_LAYER}
    for logits in _every_layer(one):
        found = [
            _said(*parts)
            for parts in zip(_wide(logits), _wide(one.logits), own.split(_AT_ONCE), nexts.split(_AT_ONCE), strict=True)
        ]
        for name, column in columns.items():
            column.append(torch.cat([part[name] for part in found]))
    return {
        f"lens.{name}": TraceBlock(torch.stack(column).numpy().astype(_OF_A_LAYER[name]))
        for name, column in columns.items()
    }


_OF_A_LAYER = {
    "ids": "<u4", "logprobs": "<f4", "entropy": "<f4", "kl": "<f4", "rank": "<u4", "target_logprob": "<f4",
    "next_rank": "<u4", "next_logprob": "<f4",
}  # fmt: skip
"""What the lens says at each position of a layer, and as what it is stored."""


def _every_layer(one: OneText) -> Iterator[Tensor]:
    """Logits [P, V] read from what enters the first block, and from what leaves each."""
    if not one.ckpts.n_layer:
        yield one.logits
        return
    yield lens.logit(one.ckpts, "blocks.0.resid_pre", model=one.model).logits(0)[0]
    after = lens.logit(one.ckpts, model=one.model)
    yield from (after.logits(layer)[0] for layer in range(one.ckpts.n_layer))


def _said(read: Tensor, output: Tensor, target: Tensor, nexts: Tensor) -> dict[str, Tensor]:
    """What log-probabilities [p, V] of the lens say, beside those of the output."""
    listed = read.topk(min(LISTED, read.size(-1)))
    found = {
        "ids": listed.indices, "logprobs": listed.values,
        "entropy": -torch.xlogy(read.exp(), read.exp()).sum(-1) / np.log(2), "kl": divergence(output, read),
    }  # fmt: skip
    for of, rank, logprob in ((target, "rank", "target_logprob"), (nexts, "next_rank", "next_logprob")):
        own = read.gather(-1, of[:, None])
        found |= {rank: (read > own).sum(-1), logprob: own[:, 0]}
    return found


def components(one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What each head, MLP, embedding and bias adds to the target's logit; and the logit that the run gave."""
    parts = attribution.direct(one.ckpts, target.token, by="head", model=one.model)
    said = {"of": parts.component.values.tolist()}
    values = np.ascontiguousarray(parts.values[:, 0, target.pos], "<f8")
    logit = one.logits[target.pos, target.token].double().reshape(1).numpy()
    return {"attribution.components": TraceBlock(values, about=said), "attribution.logit": TraceBlock(logit)}


def sources(one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What each head adds to the target's logit by way of each token that it attends to."""
    parts = attribution.sources(one.ckpts, target.token, model=one.model).values[:, 0, target.pos]
    shape = (one.ckpts.n_layer, one.ckpts.schema.sizes["head"], one.n_tokens)
    return {"attribution.sources": TraceBlock(np.nan_to_num(parts).reshape(shape).astype("<f4"))}


def neuron_effects(one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What one unit of each neuron's value adds to the target's logit."""
    model, place = opened(one.ckpts, one.model, LOGITS, "view")
    weights = reading(model, one.ckpts, target.token, place, "view").weights[0, target.pos]
    found = [doubles(model.parameter(f"blocks.{i}.mlp.W_out")) @ weights for i in range(one.ckpts.n_layer)]
    return {"neurons.effect": TraceBlock(torch.stack(found).numpy().astype("<f4"))}
