"""Stored rows, run again: equal to the bit, or which are not."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pellucid.check import require_whole
from pellucid.corpus.identity import reopened, require_same
from pellucid.corpus.place import chunk_key
from pellucid.errors import InputError

if TYPE_CHECKING:
    from pellucid.corpus.store import Store


@dataclass(frozen=True)
class Verification:
    """What was found when stored rows were run again; true if nothing is wrong."""

    rows: int  # how many rows were run again
    batches: int  # in how many batches
    parts: int  # how many parts they lie in; the SHA-256 of each of their chunks was compared
    missing: int  # how many parts are not there
    unequal: list[tuple[str, int]] = field(default_factory=list)  # (checkpoint, row) of what is not equal to the bit
    # (checkpoint, part) of chunks that are not as they were written
    damaged: list[tuple[str, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.unequal and not self.damaged

    def __repr__(self) -> str:
        verdict = "equal to the bit" if self else f"{len(self.unequal):,} values of rows are not equal"
        said = f"{self.rows:,} rows of {self.parts:,} parts, run again in {self.batches:,} batches: {verdict}"
        if self.damaged:
            said += f"; {len(self.damaged):,} chunks are not as they were written, the first {self.damaged[0]}"
        elif self.unequal:
            said += f", the first {self.unequal[0]}"
        return said + (f"; {self.missing:,} parts are not there" if self.missing else "")


def recomputed(store: Store, rows: Any, model: Any, seed: Any) -> Verification:
    """Compare rows of a store with what a model gives now. See `Store.verify`."""
    count = require_whole("rows", rows, at_least=1)
    plan, there = store.plan, store.parts
    if not there:
        raise InputError(
            f"corpus: nothing is in {store.place} yet, so nothing can be compared.",
            code="corpus-unfinished",
            remedy="Call pl.corpus.capture again with the same arguments: it makes what is missing.",
        )
    model = reopened(store.provenance) if model is None else model
    require_same(store.provenance, model, str(store.place))
    held = np.concatenate([np.arange(r.start, r.stop) for r in map(plan.rows_of, there)])
    drawn = np.sort(np.random.default_rng(require_whole("seed", seed)).choice(held, min(count, len(held)), False))
    found = Verification(len(drawn), 0, 0, plan.parts - len(there))
    batches = 0
    parts = np.unique(drawn // plan.part_rows).tolist()
    for part in parts:
        found.damaged.extend((name, part) for name in _damaged(store, part, there[part]))
        chunks = {name: store.chunk(name, part) for name in plan.names}
        mine = drawn[drawn // plan.part_rows == part]
        first = plan.rows_of(part).start
        for batch in store.corpus.batches(part):
            if not any(((mine >= span.start) & (mine < span.stop)).any() for span in batch):
                continue
            batches += 1
            for span, values in store.corpus.run(model, batch, plan.names):
                wanted = mine[(mine >= max(span.start, first)) & (mine < span.stop)]
                for name, value in values.items() if len(wanted) else ():
                    stored = chunks[name][wanted - first]
                    equal = _same_bits(value[wanted - span.start].to(stored), stored)
                    found.unequal.extend((name, int(row)) for row in wanted[~equal.numpy()])
    return Verification(len(drawn), batches, len(parts), found.missing, sorted(found.unequal), found.damaged)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[rows], whether all bytes of a row are the same."""
    flat = (x.contiguous().view(len(x), -1).view(torch.uint8) for x in (a, b))
    left, right = flat
    return (left == right).all(1)


def _damaged(store: Store, part: int, digests: dict[str, bytes]) -> list[str]:
    """The checkpoints whose chunk of a part is not as it was written."""
    wrong: list[str] = []
    for column in store.plan.columns:
        data = store.place.get(chunk_key(column.name, part, 1 + len(column.shape))) or b""
        if hashlib.sha256(data).digest() != digests[column.name]:
            wrong.append(column.name)
    return wrong
