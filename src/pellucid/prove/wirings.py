"""Formulas that are wrong in known ways: ways to wire a block, to normalize, to project and to merge."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.prove.recipe import (
    Facts,
    Heads,
    Sublayers,
    Weights,
    attend,
    attend_with,
    feed_in,
    feed_out,
    layer_norm,
    project,
)

# How the halves of a block are put together.


def post_norm(block: Sublayers, x: Tensor) -> Tensor:
    x = block.norm("ln1", x + block.attention(x))
    return block.norm("ln2", x + block.mlp(x))


def _norm_of_output(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.norm("ln1", block.attention(x))
    return x + block.norm("ln2", block.mlp(x))


def _parallel(block: Sublayers, x: Tensor) -> Tensor:
    return x + block.attention(block.norm("ln1", x)) + block.mlp(block.norm("ln2", x))


def _no_first(block: Sublayers, x: Tensor) -> Tensor:
    x = block.attention(block.norm("ln1", x))
    return x + block.mlp(block.norm("ln2", x))


def _no_second(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln1", x))
    return block.mlp(block.norm("ln2", x))


def _neither(block: Sublayers, x: Tensor) -> Tensor:
    return block.mlp(block.norm("ln2", block.attention(block.norm("ln1", x))))


def _normalized_residual(block: Sublayers, x: Tensor) -> Tensor:
    normalized = block.norm("ln1", x)
    x = normalized + block.attention(normalized)
    normalized = block.norm("ln2", x)
    return normalized + block.mlp(normalized)


def _first_normalized_residual(block: Sublayers, x: Tensor) -> Tensor:
    normalized = block.norm("ln1", x)
    x = normalized + block.attention(normalized)
    return x + block.mlp(block.norm("ln2", x))


def _second_normalized_residual(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln1", x))
    normalized = block.norm("ln2", x)
    return normalized + block.mlp(normalized)


def _mlp_first(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.mlp(block.norm("ln2", x))
    return x + block.attention(block.norm("ln1", x))


def _swapped_norms(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln2", x))
    return x + block.mlp(block.norm("ln1", x))


def _first_norm_twice(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln1", x))
    return x + block.mlp(block.norm("ln1", x))


def _second_norm_twice(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln2", x))
    return x + block.mlp(block.norm("ln2", x))


def _unnormalized_attention(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(x)
    return x + block.mlp(block.norm("ln2", x))


def _unnormalized_mlp(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln1", x))
    return x + block.mlp(x)


def _attention_alone(block: Sublayers, x: Tensor) -> Tensor:
    return x + block.attention(block.norm("ln1", x))


def _mlp_alone(block: Sublayers, x: Tensor) -> Tensor:
    return x + block.mlp(block.norm("ln2", x))


def _doubled(block: Sublayers, x: Tensor) -> Tensor:
    x = x + x + block.attention(block.norm("ln1", x))
    return x + block.mlp(block.norm("ln2", x))


def _doubled_second(block: Sublayers, x: Tensor) -> Tensor:
    x = x + block.attention(block.norm("ln1", x))
    return x + x + block.mlp(block.norm("ln2", x))


def _residual_of_input(block: Sublayers, x: Tensor) -> Tensor:
    middle = x + block.attention(block.norm("ln1", x))
    return x + block.mlp(block.norm("ln2", middle))


WIRINGS: dict[str, Callable[[Sublayers, Tensor], Tensor]] = {
    "post-LayerNorm: LayerNorm after the residual connection": post_norm,
    "LayerNorm of what attention and the MLP give": _norm_of_output,
    "the MLP reads the block's input, in parallel with attention": _parallel,
    "the residual connection around attention is missing": _no_first,
    "the residual connection around the MLP is missing": _no_second,
    "both residual connections are missing": _neither,
    "the residual connections carry the normalized values": _normalized_residual,
    "the residual connection around attention carries the normalized values": _first_normalized_residual,
    "the residual connection around the MLP carries the normalized values": _second_normalized_residual,
    "the MLP comes before attention": _mlp_first,
    "ln1 and ln2 are swapped": _swapped_norms,
    "ln1 is used in the place of ln2": _first_norm_twice,
    "ln2 is used in the place of ln1": _second_norm_twice,
    "attention reads the stream without LayerNorm": _unnormalized_attention,
    "the MLP reads the stream without LayerNorm": _unnormalized_mlp,
    "the MLP's output is not added": _attention_alone,
    "attention's output is not added": _mlp_alone,
    "the residual stream is added twice at attention": _doubled,
    "the residual stream is added twice at the MLP": _doubled_second,
    "the MLP's output is added to the block's input": _residual_of_input,
}


# How values are normalized.


def _unbiased(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * w + b


def _unbiased_outside(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) * w + b


def _outside(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + eps) * w + b


def _by_variance(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + eps) * w + b


def _rms(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w + b


def _over_positions(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    return (x - mean) / (variance + eps).sqrt() * w + b


NORMS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "unbiased variance in LayerNorm": _unbiased,
    "unbiased variance in LayerNorm, and epsilon outside the square root": _unbiased_outside,
    "LayerNorm epsilon outside the square root": _outside,
    "LayerNorm divides by the variance": _by_variance,
    "LayerNorm without its gain and bias": lambda x, w, b, eps: layer_norm(x, w * 0 + 1, b * 0, eps),
    "LayerNorm without its bias": lambda x, w, b, eps: layer_norm(x, w, b * 0, eps),
    "LayerNorm without its gain": lambda x, w, b, eps: layer_norm(x, w * 0 + 1, b, eps),
    "LayerNorm's gain added to 1": lambda x, w, b, eps: layer_norm(x, w + 1, b, eps),
    "RMSNorm instead of LayerNorm": _rms,
    "RMSNorm without a bias instead of LayerNorm": lambda x, w, b, eps: _rms(x, w, b * 0, eps),
    "LayerNorm over positions": _over_positions,
    "no LayerNorm": lambda x, w, b, eps: x,
    "no LayerNorm, only its gain and bias": lambda x, w, b, eps: x * w + b,
    "LayerNorm applied twice": lambda x, w, b, eps: layer_norm(layer_norm(x, w, b, eps), w, b, eps),
}


# How q, k and v are made.


def transposed(x: Tensor, weights: Weights, letters: tuple[str, ...]) -> Heads:
    """Some of the square matrices W_Q, W_K, W_V [D, HK] used the other way round."""
    made: list[Tensor] = []
    for letter, right in zip("QKV", project(x, weights), strict=True):
        matrix = weights[f"attn.W_{letter}"]  # [H, D, K]
        turned = x @ matrix.transpose(0, 1).flatten(1).T
        wrong = turned.unflatten(-1, right.shape[2:]) + weights[f"attn.b_{letter}"]
        made.append(wrong if letter in letters else right)
    return made[0], made[1], made[2]


def without_bias(x: Tensor, weights: Weights, letters: tuple[str, ...]) -> Heads:
    """Some of q, k and v without their biases."""
    q, k, v = (
        part - weights[f"attn.b_{letter}"] if letter in letters else part
        for letter, part in zip("QKV", project(x, weights), strict=True)
    )
    return q, k, v


# How heads are split and merged.


def split_other_way(heads: Heads, facts: Facts) -> Tensor:
    """The columns of q, k and v read as (d_head, head)."""
    q, k, v = (part.flatten(2).unflatten(2, (part.size(3), part.size(2))).transpose(2, 3) for part in heads)
    return attend((q, k, v), facts)


def merged_other_way(z: Tensor) -> Tensor:
    """z [B, P, H, K] merged as (d_head, head)."""
    return z.transpose(2, 3).reshape(z.shape)


def merged_across_positions(z: Tensor) -> Tensor:
    """z [B, P, H, K] merged while heads still stand before positions."""
    return z.transpose(1, 2).reshape(z.shape)


def attend_across_positions(heads: Heads, facts: Facts) -> Tensor:
    """q, k and v [B, P, HK] viewed as [B, H, P, K] without a transposition."""
    b, p, h, k = heads[0].shape
    q, key, v = (part.reshape(b, h, p, k).transpose(1, 2) for part in heads)
    return attend((q, key, v), facts)


def reread(heads: Heads, stored: tuple[int, ...], read: tuple[int, ...]) -> Heads:
    """One tensor of q, k and v whose axes (part, head, d_head) stand in one order, read in another."""
    together = torch.stack(heads, 2)  # [B, P, 3, H, K]
    sizes = together.shape[2:]
    flat = together.permute(0, 1, *(2 + axis for axis in stored)).flatten(2)
    again = flat.unflatten(2, [sizes[axis] for axis in read])
    q, k, v = again.permute(0, 1, *(2 + read.index(axis) for axis in range(3))).unbind(2)
    return q, k, v


FEEDS: dict[str, tuple[Callable[[Tensor, Weights], Tensor], Callable[[Tensor, Weights], Tensor]]] = {
    "no bias on W_in": (lambda x, w: x @ w["mlp.W_in"], feed_out),
    "no bias on W_out": (feed_in, lambda x, w: x @ w["mlp.W_out"]),
    "no bias in the MLP": (lambda x, w: x @ w["mlp.W_in"], lambda x, w: x @ w["mlp.W_out"]),
    "W_in transposed": (lambda x, w: x @ w["mlp.W_in"].T + w["mlp.b_in"], feed_out),
    "W_out transposed": (feed_in, lambda x, w: x @ w["mlp.W_out"].T + w["mlp.b_out"]),
}


# How rows of a batch are mixed up, and which positions are read.


ROWS: dict[str, Callable[[Heads], Heads]] = {
    "keys and values of the batch row before": lambda h: (h[0], h[1].roll(1, 0), h[2].roll(1, 0)),
    "keys of the batch row before": lambda h: (h[0], h[1].roll(1, 0), h[2]),
    "values of the batch row before": lambda h: (h[0], h[1], h[2].roll(1, 0)),
    "keys and values of the batch row behind": lambda h: (h[0], h[1].roll(-1, 0), h[2].roll(-1, 0)),
    "keys of the batch row behind": lambda h: (h[0], h[1].roll(-1, 0), h[2]),
    "values of the batch row behind": lambda h: (h[0], h[1], h[2].roll(-1, 0)),
    "keys and values of the first batch row everywhere": lambda h: (
        h[0],
        h[1][:1].expand_as(h[1]),
        h[2][:1].expand_as(h[2]),
    ),
}
"""Attention that looks into another row of the batch."""


def across_rows(heads: Heads, scale: float, diagonal: int | None) -> Tensor:
    """Attention in which the rows of the batch are taken for positions, and positions for rows."""
    q, k, v = (part.transpose(0, 1) for part in heads)
    return attend_with((q, k, v), scale, diagonal).transpose(0, 1)


def _counted(ids: Tensor) -> Tensor:
    return torch.arange(ids.size(1))


POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "positions shifted by 1": lambda ids: _counted(ids) + 1,
    "positions shifted by 2": lambda ids: _counted(ids) + 2,
    "positions shifted by -1, the first from the end of the table": lambda ids: _counted(ids) - 1,
    "positions shifted by -1": lambda ids: (_counted(ids) - 1).clamp(min=0),
    "position 0 everywhere": lambda ids: torch.zeros(ids.size(1), dtype=torch.long),
    "positions counted from the end": lambda ids: _counted(ids).flip(0),
    "positions run on over the batch": lambda ids: torch.arange(ids.numel()).view(ids.shape),
    "positions shifted by the number of the batch row": lambda ids: _counted(ids) + torch.arange(len(ids))[:, None],
    "the number of the batch row for the position": lambda ids: torch.arange(len(ids))[:, None].expand(ids.shape),
    "token ids taken for positions": lambda ids: ids,
}
"""Rows [P] or [B, P] of the table of positions that are read for ids [B, P]."""
