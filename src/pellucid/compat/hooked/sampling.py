"""What HookedTransformer computes from logits: the loss, the accuracy, the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.errors import InputError


def lm_cross_entropy_loss(
    logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
) -> Tensor:
    """Negative log-likelihood of the next tokens in nats.

    Args:
        logits: [B, P, V].
        tokens: [B, P].
        attention_mask: [B, P], 1 at real tokens; pads count as zero.
        per_token: Whether to return [B, P-1] instead of the mean.
    """
    logprobs = logits[..., :-1, :].log_softmax(-1).gather(-1, tokens[..., 1:, None])[..., 0]
    count: Tensor | int = logprobs.numel()
    if attention_mask is not None:
        real = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
        logprobs, count = logprobs * real, real.sum()
    return -logprobs if per_token else -logprobs.sum() / count


def lm_accuracy(logits: Tensor, tokens: Tensor, per_token: bool = False) -> Tensor:
    """Share of the next tokens that are the likeliest, or whether each is, [B, P-1]."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return right if per_token else right.sum() / right.numel()


def sample_logits(
    final_logits: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    tokens: Tensor | None = None,
) -> Tensor:
    """Draw ids [B] from logits [B, V], by torch's global generator; the likeliest at temperature 0.

    Args:
        final_logits: [B, V].
        top_k: Keep the likeliest so many.
        top_p: Keep the likeliest that make up this probability, the one that reaches it included; not beside top_k.
        temperature: What logits are divided by.
        freq_penalty: What each earlier occurrence of a token takes off its logit.
        tokens: [B, P], the earlier ones.

    Raises:
        InputError: A value outside its range.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(
            f"sample_logits: temperature={temperature}, top_k={top_k}, top_p={top_p}.",
            code="sampling-range",
            remedy="Give temperature 0 or more, top_k 1 or more, and top_p above 0 and at most 1.",
        )
    if temperature == 0:
        return final_logits.argmax(-1)
    logits = final_logits / temperature
    if freq_penalty > 0 and tokens is not None:
        logits = logits - freq_penalty * torch.stack([row.bincount(minlength=logits.shape[-1]) for row in tokens])
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0  # the likeliest is always kept
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.distributions.Categorical(logits=logits.float()).sample()
