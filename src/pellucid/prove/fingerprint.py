"""What a tensor's values are, whatever order they stand in.

The fingerprint of a tensor is a pair of power sums of its bits, modulo 2^64. It does not change when values are
transposed, reshaped or permuted, and that of several tensors together is the sum of theirs: a fused q|k|v is
found without knowing how it was fused. Equal fingerprints are only a hint; equality is then checked on every value.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 18  # stays in the cache

Fingerprint = tuple[int, int]


def fingerprint(tensor: Tensor) -> Fingerprint:
    """The order-free fingerprint of a tensor's bits."""
    flat = tensor.detach().reshape(-1)
    first = second = 0
    for chunk in flat.view(_INTEGERS[flat.element_size()]).split(_CHUNK):
        bits = chunk.long()
        first += int(bits.sum())
        second += int(bits.mul_(bits).sum())
    return _wrap(first), _wrap(second)


def total(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """The fingerprint of several tensors together."""
    pairs = list(fingerprints)
    return _wrap(sum(first for first, _ in pairs)), _wrap(sum(second for _, second in pairs))


def _wrap(value: int) -> int:
    return value % (1 << 64)
