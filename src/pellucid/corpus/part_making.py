"""Making one part of a store: its batches run, its rows put where they belong, its chunks written, its entry made.

Several short texts may share a row: no text sees another, and each begins at position 0. A text gives what it gives
alone, to within rounding. In float32 on a processor the products and norms were equal to the bit, for they sum over a
row's own numbers; two operations were not. The fused kernel of attention sums over keys in blocks of columns, so it
rounds by the column in which a text begins. And what an activation function gives depends in the last bit on where a
number lies in memory: most are computed several at a time, those at the end of a piece one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.corpus.place import BegunChunk, StorePlace, chunk_key
from pellucid.corpus.plan import CorpusPlan, TextSpan, batches, beneath, is_packed
from pellucid.corpus.sink import CapturingModel
from pellucid.errors import InputError
from pellucid.family.network import Run
from pellucid.family.part import has_native_hooks, submodules
from pellucid.run.region import Region
from pellucid.run.taps import Recorder, warn_of_dropout
from pellucid.tap import Chain, StopAfter, Stopped

if TYPE_CHECKING:
    from pellucid.family.network import Network


def packed(batch: Sequence[TextSpan], ids: Sequence[Sequence[int]], device: torch.device) -> Run:
    """The rows that texts share; what is left of a row is a text of its own, which nobody looks at."""
    shape = max(span.row for span in batch) + 1, max(span.column + len(span) for span in batch)
    tokens, positions = (
        torch.zeros(shape, dtype=torch.long, device="cpu"),
        torch.zeros(shape, dtype=torch.long, device="cpu"),
    )
    texts = torch.full(shape, -1, device="cpu")
    for span, row in zip(batch, ids, strict=True):
        place = span.row, slice(span.column, span.column + len(span))
        tokens[place], positions[place], texts[place] = (
            torch.tensor(row, device="cpu"),
            torch.arange(len(span), device="cpu"),
            span.text,
        )
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

Pieces = Sequence[tuple[int, Tensor]]
"""Rows of a checkpoint: pieces [n, …], each with the number of its first row within the part."""

Write = Callable[[dict[str, Pieces]], None]
"""Takes rows of every checkpoint."""


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

    def make(self, model: CapturingModel, part: int, write: Write, advance: Any = None) -> None:
        """Run a part and give away its rows, those of a batch at a time."""
        begins, held = self.plan.rows_of(part).start, self.holding(part)
        for batch in held.batches(part):
            found = list(held.run(model, batch, self.plan.names))
            # a text that begins in the part before is run from its beginning
            firsts = [max(span.start, begins) for span, _ in found]
            write({
                name: [(first - begins, values[name][first - span.start :])
                       for first, (span, values) in zip(firsts, found, strict=True)]
                for name in self.plan.names
            })  # fmt: skip
            if advance is not None:
                advance(sum(span.stop - first for first, (span, _) in zip(firsts, found, strict=True)))


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


AT_ONCE = 8
"""Chunks that are finished at the same time, which a disk's journal takes together."""

SETTLED = 32 * 2**20
"""Bytes after which the disk is asked to take what is there, so that little is left to wait for at the end of a part.
It does so by itself, beside the next run; a thread that wrote the same bytes would take a processor from that."""


class PartWriter:
    """The chunks of a part while they are filled."""

    def __init__(self, place: StorePlace, plan: CorpusPlan, part: int, threads: ThreadPoolExecutor) -> None:
        self._place, self._plan, self._part, self._threads = place, plan, part, threads
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="pellucid")  # the run waits for them
        self._chunks: dict[str, BegunChunk] = {}
        self._settling: Future[None] | None = None
        self._unsettled = 0
        try:
            for column in plan.columns:
                key, size = chunk_key(column.name, part, 1 + len(column.shape)), plan.part_rows * column.width
                self._chunks[column.name] = place.begin(key, size * plan.itemsize)
        except BaseException:
            self.drop()
            raise

    def write(self, rows: dict[str, Pieces]) -> None:
        """Write rows; those never written are zero."""
        data = {name: self._bytes(name, pieces) for name, pieces in rows.items()}
        for _ in self._writers.map(lambda name: self._chunks[name].write(data[name]), data):
            pass
        self._unsettled += sum(len(piece) for pieces in data.values() for _, piece in pieces)
        if self._unsettled >= SETTLED and (self._settling is None or self._settling.done()):
            if self._settling is not None:
                self._settling.result()  # an error of a disk is told once: no later flush would say that rows were lost
            self._unsettled, self._settling = 0, self._threads.submit(self._settle)

    def _bytes(self, name: str, pieces: Pieces) -> list[tuple[int, memoryview]]:
        """Rows as they lie in a chunk, each piece with its first byte there."""
        dtype = getattr(torch, self._plan.dtype)
        stored = [(first, _stored(name, rows.detach(), dtype).reshape(len(rows), -1)) for first, rows in pieces]
        return [
            (first * rows.shape[1] * dtype.itemsize, rows.reshape(-1).view(torch.uint8).numpy().data)
            for first, rows in stored
        ]

    def _settle(self) -> None:
        for chunk in self._chunks.values():
            chunk.settle()

    def finish(self) -> None:
        """Let the chunks be seen, then the entry."""
        try:
            if self._settling is not None:
                self._settling.result()
            chunks = self._chunks.values()
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pellucid") as others:
                settled = others.map(lambda chunk: chunk.settle(), chunks)  # the disk takes the rest meanwhile
                digests = [*others.map(lambda chunk: chunk.digest(), chunks)]
                for _ in (*settled, *others.map(lambda chunk: chunk.finish(), chunks)):
                    pass
            self._place.put(chunk_key(LEDGER, self._part, 3), b"".join(digests))
        finally:
            self.drop()

    def drop(self) -> None:
        """Remove what was not finished."""
        self._writers.shutdown()
        if self._settling is not None:
            wait([self._settling])
        for chunk in self._chunks.values():
            chunk.drop()


def _stored(name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in memory in the stored dtype, made where they are if that is no wider, so that fewer bytes are moved."""
    kept = rows.to(dtype) if dtype.itemsize <= rows.dtype.itemsize else rows
    if dtype == torch.float16 and bool((lost := kept.isinf()).any()):  # of the dtypes, the one that ends at 65,504
        beyond = rows[lost & rows.isfinite()]
        if len(beyond):
            raise InputError(
                f"corpus: {name} holds {beyond[0].item():.6g}, which float16 cannot.",
                code="corpus-dtype",
                remedy="Store it as 'bfloat16' or 'float32', at another path.",
            )
    return kept.cpu().to(dtype)


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
    """Makes parts, each of which is finished while the next one is run."""

    def __init__(self, place: StorePlace, corpus: Corpus) -> None:
        self._place, self._corpus = place, corpus
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pellucid")
        self._waiting: Future[None] | None = None

    def make(self, model: CapturingModel, part: int, advance: Any = None) -> None:
        """Run a part; it is whole when the next one was run, or at the end."""
        writer = PartWriter(self._place, self._corpus.plan, part, self._threads)
        try:
            self._corpus.make(model, part, writer.write, advance)
            self._wait()
        except BaseException:
            writer.drop()
            raise
        self._waiting = self._threads.submit(writer.finish)

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
            self._threads.shutdown(wait=True)
