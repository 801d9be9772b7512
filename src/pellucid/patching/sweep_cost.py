"""What a sweep takes, known before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.aliases import Names
from pellucid.check import require_whole
from pellucid.errors import InputError
from pellucid.metrics import Metric
from pellucid.patching.cells import Cells
from pellucid.patching.reruns import BYTES, Rerun, Sharing
from pellucid.patching.roles import Roles
from pellucid.run.cache import KeyValueCache
from pellucid.run.cost import estimate
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.text.batch import Batch, Inputs


@dataclass(frozen=True)
class SweepCost:
    """What a sweep would take.

    Attributes:
        runs: Edited runs.
        batches: Batches that they share.
        kept: Bytes that are kept throughout: the source's values, and the base run's.
        batch: Bytes that the values of a batch take at most.
    """

    runs: int
    batches: int
    kept: int
    batch: int

    @property
    def nbytes(self) -> int:
        """Bytes beside the model, at most."""
        return self.kept + self.batch

    def __int__(self) -> int:
        return self.nbytes

    def __repr__(self) -> str:
        shared = "1 batch" if self.batches == 1 else f"{self.batches:,} batches"
        return f"{self.runs:,} runs in {shared}, at most {self.nbytes:,} bytes"


def estimate_sweep(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | None = None,
    max_bytes: int | None = None,
) -> SweepCost:
    """Count the runs, batches and bytes of a sweep; runs nothing. Arguments and errors are those of `sweep`.

    Example:
        >>> import pellucid as pl
        >>> pl.patching.estimate_sweep(
        ...     pl.load(), "Tom has a ball.", "Tom has a cat.", "resid_pre", over=("layer", "pos"),
        ...     metric=pl.metrics.logit(" He"))
        20 runs in 1 batch, at most 2,581,125 bytes
    """
    source, base = model.tokenize(clean), model.tokenize(corrupted)
    cells = Cells(model.schema, names, over, base, source, Region(pos, heads, neurons), align)
    room = require_room(model, base, source, cells.names, max_bytes)
    trials = [Rerun(cell.puts(dict.fromkeys(cell.names, torch.empty(0)))) for cell in cells]
    sharing = Sharing.of(model, base, metric, room)
    batches = list(sharing.batches(trials))
    most = max(sharing.bytes_of(len(together), min(trials[i].begin for i in together)) for together in batches)
    return SweepCost(len(trials), len(batches), _kept(model, base, source, cells.names), most)


def require_room(
    model: CkptedTransformer, base: Batch, source: Batch, names: Iterable[str], max_bytes: int | None
) -> int:
    """The bytes that a shared batch of a sweep may take."""
    limit = free_memory() if max_bytes is None else require_whole("max_bytes", max_bytes, at_least=1)
    if limit is None:
        return BYTES
    kept = _kept(model, base, source, names)
    single = Sharing.of(model, base, None).bytes_of(1)
    if kept + single > limit:
        raise InputError(
            f"the sweep keeps {kept:,} bytes and needs {single:,} for one run, and {limit:,} may be taken.",
            code="sweep-memory",
            remedy="Give fewer or shorter texts at once, or fewer checkpoints, such as those of one block.",
        )
    return min(BYTES, limit - kept)


def free_memory() -> int | None:
    """How many bytes the system says are available; None if it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _kept(model: CkptedTransformer, base: Batch, source: Batch, names: Iterable[str]) -> int:
    """Bytes of the source's values, of what enters each block of the base run, and of its keys and values."""
    last = f"blocks.{len(model.schema.blocks) - 1}.resid_post"
    stream = estimate(model, base, ["resid_pre", last]).nbytes
    rows, columns = base.shape
    cache = KeyValueCache.bytes_needed(model.config, rows, columns, model.dtype)
    return estimate(model, source, list(names)).nbytes + stream + cache
