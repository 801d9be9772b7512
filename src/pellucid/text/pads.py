"""Pads that betray themselves: ids that fill up shorter rows, given without the mask that would say so.

The pad of most GPT-2s is the id that ends a text, which is also a token of texts: it stands before a prompt, after a
text, and between the texts of a packed row. What tells the two apart is where it stands and how often.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pellucid.generation_settings import GenerationSettings


def pad_id(settings: GenerationSettings, vocabulary: int, first: int | None = None) -> int:
    """What stands where there is no text: the settings' pad id, else an end id, else 0, as in transformers.

    Args:
        settings: Those of the model.
        vocabulary: An id outside it is passed over.
        first: An id that is preferred: the tokenizer's, when it is prompts that are filled up.
    """
    candidates = (first, settings.pad_id, *settings.end_ids, 0)
    return next(i for i in candidates if i is not None and 0 <= i < vocabulary)


def padded_row(ids: Tensor, pad: int) -> int | None:
    """The first row of ids [B, P] that was filled up with an id that texts may hold too; None if none was.

    A run of it at the left or the right edge is padding if it is longer than every run inside the rows, unless it is
    a single id that every row has at that edge. So one end id before each prompt, one after each text, and those
    between packed texts are text; two or more at an edge, and one at the edge of some rows only, are pads.
    """
    is_pad = ids == pad
    if ids.size(1) < 2 or not bool(is_pad.any()):  # of one column, no row is longer than another
        return None
    left, right = _run(is_pad), _run(is_pad.flip(1))
    columns = torch.arange(ids.size(1), device=ids.device)
    at_edge = (columns < left[:, None]) | (columns >= ids.size(1) - right[:, None])
    inside = _longest(is_pad & ~at_edge)
    for run in (left, right):
        suspects = (run > inside) & ((run > 1) | (~(run > 0).all()))
        if bool(suspects.any()):
            return int(suspects.nonzero()[0])
    return None


def first_row_with(ids: Tensor, pads: Iterable[int]) -> tuple[int, int] | None:
    """(row, pad) of the first of these ids that occurs at all; None if none does."""
    for pad in pads:
        rows = (ids == pad).any(1)
        if bool(rows.any()):
            return int(rows.nonzero()[0]), pad
    return None


def _run(flags: Tensor) -> Tensor:
    """[B]: how many flags are set before the first that is not."""
    return flags.long().cumprod(1).sum(1)


def _longest(flags: Tensor) -> int:
    """The longest run of set flags in any row."""
    counts = flags.long().cumsum(1)
    before = torch.where(flags, 0, counts).cummax(1).values
    return int((counts - before).max())
