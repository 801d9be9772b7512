"""Blocks of a trace about the next token: the prediction, what each block would say, who wrote it, and features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid import attribution, lens
from pellucid.attribution.reading import LOGITS, doubles, opened, reading
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.feature_effects import direct
from pellucid.viewer.container import LISTED, TOP, TraceBlock
from pellucid.viewer.one_text import OneText
from pellucid.viewer.value_blocks import floats

_AT_ONCE = 1 << 18
"""Logits that are widened together: in float64 they stay in a processor's cache, which makes the lens of GPT-2's
vocabulary five times as quick as 128 positions at once."""


@dataclass(frozen=True)
class Target:
    """The token whose logit is explained."""

    token: int  # its id
    pos: int  # the position at which it is predicted
    why: str  # why it is this one


def prediction(one: OneText) -> dict[str, TraceBlock]:
    """The last token's logits, and the likeliest next tokens at every position."""
    last = one.logits[-1].float().numpy()
    rows = [_listed(part, part.double().log_softmax(-1), TOP) for part in _split(one.logits)]
    ids, logprobs = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return {
        "prediction.logits": TraceBlock(last.astype("<f4")),
        "prediction.top.ids": TraceBlock(ids.astype("<u4")),
        "prediction.top.logprobs": TraceBlock(logprobs.astype("<f4")),
    }


def _split(logits: Tensor) -> Sequence[Tensor]:
    """Logits [P, V] of some positions at a time."""
    return logits.cpu().split(max(1, _AT_ONCE // logits.size(-1)))


def _listed(logits: Tensor, logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities of the likeliest tokens."""
    ids = logits.topk(min(count, logits.size(-1))).indices
    return ids, logprobs.gather(-1, ids)


def read_lens(one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What the embeddings and each block would say next, by the logit lens."""
    nexts = torch.tensor([*one.ids[1:], target.token], device="cpu")
    wanted = torch.stack([torch.full_like(nexts, target.token), nexts], -1)
    columns: dict[str, list[Tensor]] = {name: [] for name in _OF_A_LAYER}
    for logits in _every_layer(one):
        parts = _split(logits)
        found = [_said(*part) for part in zip(parts, _split(one.logits), wanted.split(len(parts[0])), strict=True)]
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
    """Logits [P, V] read from what enters the first block, and from what leaves each; the last are those of the run."""
    if one.ckpts.n_layer:
        yield lens.logit(one.ckpts, "blocks.0.resid_pre", model=one.model).logits(0)[0]
        after = lens.logit(one.ckpts, model=one.model)
        yield from (after.logits(layer)[0] for layer in range(one.ckpts.n_layer - 1))
    yield one.logits


def _said(logits: Tensor, output: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """What logits [p, V] of the lens say, beside those of the output; `wanted` [p, 2] are the target and the next."""
    read, said = logits.double().log_softmax(-1), output.double().log_softmax(-1)
    ids, logprobs = _listed(logits, read, LISTED)
    own, of = logits.gather(-1, wanted), read.gather(-1, wanted)
    return {
        "ids": ids, "logprobs": logprobs,
        "entropy": -torch.linalg.vecdot(read.exp(), read) / math.log(2),
        "kl": torch.linalg.vecdot(said.exp(), said - read),
        "rank": (logits > own[:, :1]).sum(-1), "target_logprob": of[:, 0],
        "next_rank": (logits > own[:, 1:]).sum(-1), "next_logprob": of[:, 1],
    }  # fmt: skip


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


NAME = "features"
"""What the page calls their values, also when it asks for them."""


def header(sae: SparseAutoencoder, one: OneText) -> dict[str, Any]:
    """What the header says of them: how many there are, and their values as it says of a checkpoint."""
    at = sae.place(one.ckpts.schema)
    return {
        "count": sae.n_features, "at": at,
        "kind": {
            "name": NAME, "block": 0, "short": NAME, "axes": ["batch", "pos", "feature"],
            "shape": [1, one.n_tokens, sae.n_features], "unit": "activation", "meaning": f"features of {at}",
            "equation": "", "computed": "",
        },
    }  # fmt: skip


def values(sae: SparseAutoencoder, one: OneText) -> Tensor:
    """[P, F]."""
    return torch.from_numpy(sae.features(one.ckpts).values[0])


def features(sae: SparseAutoencoder, one: OneText, *, narrow: bool) -> dict[str, TraceBlock]:
    """Their values, as those of a single layer of neurons."""
    block = floats(values(sae, one).float().numpy()[None], narrow)
    return {"features.post": TraceBlock(block.data, block.code, about={"of": NAME})}


def effects(sae: SparseAutoencoder, one: OneText, target: Target) -> dict[str, TraceBlock]:
    """What one unit of each adds to the target's logit."""
    units = direct(sae, one.ckpts, target.token, per_unit=True, features=range(sae.n_features), model=one.model)
    return {"features.effect": TraceBlock(np.asarray(units.values[:, 0, target.pos][None], "<f4"))}
