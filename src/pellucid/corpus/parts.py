"""Making one part of a store: its batches run, its rows put where they belong, its chunks written, its entry made.

Several short texts may share a row: no text sees another, and each begins at position 0. A text gives what it gives
alone, to within rounding. In float32 on a processor the products and norms were equal to the bit, for they sum over a
row's own numbers; two operations were not. The fused kernel of attention sums over keys in blocks of columns, so it
rounds by the column in which a text begins. And what an activation function gives depends in the last bit on where a
number lies in memory: most are computed several at a time, those at the end of a piece one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.corpus.place import StorePlace, chunk_key
from pellucid.corpus.plan import CorpusPlan, TextSpan, batches, beneath, is_packed
from pellucid.corpus.sink import CapturingModel
from pellucid.network import Run
from pellucid.part import has_native_hooks, submodules
from pellucid.run.region import Region
from pellucid.run.taps import Recorder, warn_of_dropout
from pellucid.tap import Chain, StopAfter, Stopped

if TYPE_CHECKING:
    from pellucid.network import Network


def packed(batch: Sequence[TextSpan], ids: Sequence[Sequence[int]], device: torch.device) -> Run:
    """The rows that texts share; what is left of a row is a text of its own, which nobody looks at."""
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


LEDGER = "ledger"
"""The array of a store whose chunk of a part is its entry: the SHA-256 of each of its chunks. Written after them all,
it says that the part is there."""

DIGEST_BYTES = 32


@dataclass(frozen=True)
class HeldIds:
    """The ids of some rows, if those of all are asked for."""

    first: int  # the row of the first of them
    ids: NDArray[Any]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return self.ids[rows.start - self.first : rows.stop - self.first]


@dataclass(frozen=True)
class Corpus:
    """The tokens of a store and the plan for them."""

    plan: CorpusPlan  # how they are cut
    tokens: Any  # [N], the ids; any array that is sliced
    offsets: NDArray[Any]  # [T + 1], where texts begin, and where the last one ends

    def _texts(self, part: int) -> tuple[int, int]:
        """The first text of a part, and the one after its last."""
        rows = self.plan.rows_of(part)
        first = int(self.offsets.searchsorted(rows.start, side="right")) - 1
        return first, int(self.offsets.searchsorted(rows.stop, side="left"))

    def holding(self, part: int) -> Corpus:
        """The same, with the ids of one part in memory: a chunk of them on the disk is that of many batches."""
        first, last = self._texts(part)
        start, stop = int(self.offsets[first]), min(int(self.offsets[last]), self.plan.rows_of(part).stop)
        return replace(self, tokens=HeldIds(start, self.tokens[start:stop]))

    def batches(self, part: int) -> Iterator[list[TextSpan]]:
        """What is run for a part."""
        first, last = self._texts(part)
        return batches(self.plan, part, self.offsets[first : last + 1], first)

    def run(
        self, model: CapturingModel, batch: Sequence[TextSpan], names: Sequence[str]
    ) -> Iterator[tuple[TextSpan, Any]]:
        """What a batch gives for each of its texts: the captured values of its own rows, by name."""
        ids = [self.tokens[span.start : span.stop].tolist() for span in batch]
        if is_packed(batch):
            values: Any = captured(model, packed(batch, ids, cast("Network", model).device), names)
            if not all(bool(value.isfinite().all()) for value in values.values()):
                # A weight of zero times a NaN is one: what one text makes would be in all that share its row.
                alone = sorted(batch, key=lambda span: -len(span))
                for few in beneath(alone, self.plan.batch_tokens):
                    yield from self.run(model, few, names)
                return
        else:
            _, values = model.run_with_ckpts(ids, names=list(names), stop_at=names[-1])
        for span in batch:
            place = span.row, slice(span.column, span.column + len(span))
            yield span, {name: values[name][place] for name in names}

    def make(self, model: CapturingModel, part: int, advance: Any = None) -> dict[str, Tensor]:
        """The chunks of a part, [part_rows, …] in the dtype of the store; rows that no text fills are zero."""
        plan, rows = self.plan, self.plan.rows_of(part)
        dtype = getattr(torch, plan.dtype)
        chunks = {c.name: torch.zeros((plan.part_rows, *c.shape), dtype=dtype) for c in plan.columns}
        held = self.holding(part)
        for batch in held.batches(part):
            done = 0
            for span, values in held.run(model, batch, plan.names):
                first = max(span.start, rows.start)  # a text that begins in the part before
                for name, value in values.items():
                    chunks[name][first - rows.start : span.stop - rows.start] = value[first - span.start :]
                done += span.stop - first
            if advance is not None:
                advance(done)
        return chunks


def packed_plan(plan: CorpusPlan, lengths: Sequence[int]) -> CorpusPlan:
    """The plan with short texts in one row, and how many rows that saves."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    corpus = Corpus(replace(plan, packed_rows=0), None, offsets)
    rows = texts = 0
    for part in range(plan.parts):
        for batch in corpus.batches(part):
            texts += len(batch)
            rows += 1 + max(span.row for span in batch)
    return replace(plan, packed_rows=rows, saved_rows=texts - rows)


def raw(chunk: Tensor) -> memoryview:
    """The bytes of a chunk, as they lie in the store."""
    return chunk.reshape(-1).view(torch.uint8).numpy().data


def keep(place: StorePlace, plan: CorpusPlan, part: int, chunks: dict[str, Tensor]) -> None:
    """Write a part: its chunks, then its entry."""
    with ThreadPoolExecutor(1, thread_name_prefix="pellucid") as other:  # while the disk takes them
        digests = other.map(lambda name: hashlib.sha256(raw(chunks[name])).digest(), plan.names)
        for column in plan.columns:
            place.put(chunk_key(column.name, part, 1 + len(column.shape)), raw(chunks[column.name]))
        place.put(chunk_key(LEDGER, part, 3), b"".join(digests))


def entry(place: StorePlace, plan: CorpusPlan, part: int) -> dict[str, bytes] | None:
    """The SHA-256 of each chunk of a part, by name; None if the part is not there, or no longer whole."""
    found = place.get(chunk_key(LEDGER, part, 3))
    if found is None or len(found) != DIGEST_BYTES * len(plan.columns):
        return None
    for column in plan.columns:
        expected = plan.part_rows * column.width * plan.itemsize
        if place.size(chunk_key(column.name, part, 1 + len(column.shape))) != expected:
            return None
    parts = (found[i : i + DIGEST_BYTES] for i in range(0, len(found), DIGEST_BYTES))
    return dict(zip(plan.names, parts, strict=True))


class Keeper:
    """Writes parts while the next ones are made; at most one waits."""

    def __init__(self, place: StorePlace, plan: CorpusPlan) -> None:
        self._place, self._plan = place, plan
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pellucid")
        self._waiting: Future[None] | None = None

    def put(self, part: int, chunks: dict[str, Tensor]) -> None:
        """Write a part, once the one before is written."""
        self._wait()
        self._waiting = self._thread.submit(keep, self._place, self._plan, part, chunks)

    def _wait(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._thread.shutdown(wait=True)
