"""Recognises tensors that a program keeps beside its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.weights.layouts import buffers_among


def what_buffer(tensor: Tensor, known: bool) -> str:
    """What a tensor is that holds no parameter, in words; an empty string where it may be one.

    Args:
        tensor: Any.
        known: Whether the program says that it is a buffer.
    """
    if tensor.numel() <= 1 and (known or not tensor.is_floating_point()):
        return "a single value"
    if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] and tensor.numel() == tensor.shape[-1] ** 2:
        square = tensor.reshape(tensor.shape[-2:])
        causal = torch.ones(square.shape, dtype=torch.bool).tril()
        inside, outside = square[causal], square[~causal]
        if outside.numel() and _is_constant(inside) and _is_constant(outside) and inside[0] != outside[0]:
            return "a causal mask"
    if tensor.is_floating_point():
        return ""
    flat = tensor.reshape(-1)
    return "positions" if torch.equal(flat.long(), torch.arange(flat.numel())) else "whole numbers"


def known_buffers(tensors: Mapping[str, Tensor], config: TransformerConfig) -> tuple[set[str], set[str]]:
    """What the layout of a state dict has beside weights: names of what changes nothing, and of what may.

    A mask that is not causal, or a bias of the unembedding, is no matter of form.
    """
    names = buffers_among(tensors, config)
    trivial = {name for name in names if what_buffer(tensors[name], True) or not bool(tensors[name].any())}
    return trivial, names - trivial


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[0]).all())
