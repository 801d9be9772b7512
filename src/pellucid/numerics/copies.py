"""Copies of stored matrices in another form: each is made when it is first wanted, and again after a write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary


@dataclass(frozen=True)
class Copy:
    """A copy and what it was made from: while that is held, no other matrix can take its place in memory."""

    source: Tensor
    version: int
    made: Tensor

    def is_of(self, matrix: Tensor) -> bool:
        """Whether the copy holds the numbers that are in this matrix now."""
        return (
            self.source.data_ptr() == matrix.data_ptr()
            and self.version == matrix._version
            and self.source.stride() == matrix.stride()
        )


class Copies:
    """One copy of each matrix."""

    def __init__(self) -> None:
        self._of: Any = WeakIdKeyDictionary()  # parameter -> Copy

    def of(self, stored: Tensor, matrix: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The copy that `make` makes of a stored parameter, seen as the view `matrix` of it."""
        kept = self._of.get(stored)
        if kept is None or not kept.is_of(matrix):
            with torch.inference_mode(False), torch.no_grad():  # a backward pass may read it later
                source = matrix.detach()
                kept = self._of[stored] = Copy(source, source._version, make(source))
        return kept.made

    def all(self) -> list[Copy]:
        """Those that are there."""
        return list(self._of.values())

    def forget(self) -> None:
        """Drop them."""
        self._of.clear()


def can_keep(stored: Tensor) -> bool:
    """Whether torch counts writes into it, and it is no stand-in of the compiler's or of torch.func's."""
    return not torch.compiler.is_compiling() and isinstance(stored, nn.Parameter) and not stored.is_inference()
