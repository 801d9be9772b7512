"""Several short texts in one row: no text sees another, and each begins at position 0.

A text gives what it gives alone, to within rounding. In float32 on a processor the products and norms were equal to the
bit, for they sum over a row's own numbers; two operations were not. The fused kernel of attention sums over keys in
blocks of columns, so it rounds by the column in which a text begins. And what an activation function gives depends in
the last bit on where a number lies in memory: most are computed several at a time, those at the end of a piece one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from pellucid.corpus.plan import TextSpan
from pellucid.network import Run
from pellucid.part import has_native_hooks, submodules
from pellucid.run.region import Region
from pellucid.run.taps import Recorder, warn_of_dropout
from pellucid.tap import Chain, StopAfter, Stopped


def packed(batch: Sequence[TextSpan], ids: Sequence[Sequence[int]], device: torch.device) -> Run:
    """The rows that texts share; what is left of a row is a text of its own, which nobody looks at.

    Args:
        batch: The texts, each with its place.
        ids: Their tokens.
        device: Where they run.
    """
    shape = max(span.row for span in batch) + 1, max(span.column + len(span) for span in batch)
    tokens, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    texts = torch.full(shape, -1)
    for span, row in zip(batch, ids, strict=True):
        place = span.row, slice(span.column, span.column + len(span))
        tokens[place], positions[place], texts[place] = torch.tensor(row), torch.arange(len(span)), span.text
    return Run(tokens.to(device), positions.to(device), texts=texts.to(device))


def captured(model: Any, run: Run, names: Sequence[str]) -> dict[str, Tensor]:
    """Run what is packed as far as the last of some checkpoints, and return their values."""
    warn_of_dropout(model, "capture")
    recorder = Recorder(
        frozenset(names), model.schema, Region(), grads=False, copies=has_native_hooks(submodules(model))
    )
    with torch.no_grad(), suppress(Stopped):
        model(run, tap=Chain([recorder, StopAfter(names[-1])]))
    recorder.check_fired()
    return recorder.values
