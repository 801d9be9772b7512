"""Stages between logits and a choice: each takes logits [B, V] to logits [B, V] and can be called alone.

What a stage takes out becomes -inf. Each computes what transformers' processor of the same purpose does, operation for
operation. `pellucid.generate.sampler.Sampler` puts them in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Stage = Callable[[Tensor], Tensor]
"""Logits [B, V] -> logits [B, V]."""


def repetition(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide the positive logits of tokens that occurred by `penalty`, and multiply the negative ones by it.

    Args:
        logits: [B, V].
        counts: [B, V], how often each token occurred in the text so far.
        penalty: Above 1 to discourage repetition (Keskar et al. 2019, arXiv:1909.05858).
    """
    return torch.where(counts > 0, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def frequency(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` for every time that a token occurred in the text so far; `counts` [B, V]."""
    return logits - penalty * counts


def presence(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract `penalty` from every token that occurred in the text so far; `counts` [B, V]."""
    return logits - penalty * (counts > 0)


def no_repeat_ngrams(logits: Tensor, ids: Tensor, mask: Tensor, size: int) -> Tensor:
    """Take out tokens that would complete a sequence of `size` tokens that the text has already.

    Args:
        logits: [B, V].
        ids: [B, n], the text so far.
        mask: [B, n], true at real tokens; sequences with a pad do not count.
        size: Such as 2: no pair of tokens comes twice (Paulus et al. 2017, arXiv:1705.04304).
    """
    if ids.size(1) < size:
        return logits
    windows, real = ids.unfold(1, size, 1), mask.unfold(1, size, 1).all(-1)
    completed = (windows[..., :-1] == ids[:, None, ids.size(1) + 1 - size :]).all(-1) & real
    return logits.masked_fill(counts_of(windows[..., -1], completed, logits.size(-1)) > 0, -math.inf)


def suppress(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Take out these tokens."""
    out = logits.clone()
    out[..., list(tokens)] = -math.inf
    return out


def force(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Leave only these tokens, equally likely."""
    out = torch.full_like(logits, -math.inf)
    out[..., list(tokens)] = 0.0
    return out


def temperature(logits: Tensor, value: float) -> Tensor:
    """Divide by `value`, above 0: below 1 sharpens, above 1 flattens (Ackley et al. 1985)."""
    return logits / value


def top_k(logits: Tensor, k: int, keep: int = 1) -> Tensor:
    """Keep the `k` highest logits and what equals the lowest of them (Fan et al. 2018, arXiv:1805.04833)."""
    lowest = torch.topk(logits, min(max(k, keep), logits.size(-1)))[0][..., -1, None]
    return logits.masked_fill(logits < lowest, -math.inf)


def top_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the nucleus: the likeliest tokens up to and with the one that brings their sum to `p`.

    Holtzman et al. 2019, arXiv:1904.09751. At least `keep` tokens stay.
    """
    ascending, order = torch.sort(logits, descending=False)
    out = ascending.softmax(-1).cumsum(-1) <= 1 - p
    out[..., -keep:] = False
    return logits.masked_fill(out.scatter(-1, order, out), -math.inf)


def min_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep tokens that are at least `p` times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    likelihood = logits.softmax(-1)
    out = likelihood < p * likelihood.amax(-1, keepdim=True)
    out = out.scatter(-1, likelihood.topk(min(keep, out.size(-1)), -1).indices, False)
    return logits.masked_fill(out, -math.inf)


def typical_p(logits: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, up to and with the one that brings their sum to `p`.

    Meister et al. 2022, arXiv:2202.00666. At least `keep` tokens stay.
    """
    logprobs = logits.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    distances, order = torch.sort((-logprobs - entropy).abs(), descending=False)
    cumulative = logits.gather(-1, order).softmax(-1).cumsum(-1)
    last = (cumulative < p).sum(-1, keepdim=True).clamp(max=logits.size(-1) - 1)
    out = distances > distances.gather(-1, last)
    out[..., :keep] = False
    return logits.masked_fill(out.scatter(-1, order, out), -math.inf)


def counts_of(ids: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """[B, V]: how often each token occurs in `ids` [B, n] where `mask` [B, n] is true."""
    return torch.zeros(len(ids), vocabulary, dtype=torch.long, device=ids.device).scatter_add_(1, ids, mask.long())
