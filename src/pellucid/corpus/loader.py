"""Mini-batches of stored rows: each row once, shuffled, without holding the whole in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pellucid.check import require_whole
from pellucid.corpus.place import chunk_key, unfinished
from pellucid.weights.load import DEVICE_ERRORS, no_device

if TYPE_CHECKING:
    from pellucid.corpus.store import Store

TOKENS, ROWS = "tokens", "rows"

READERS = 2
"""Chunks that are read at the same time: one waits for the disk while another is copied; four are no quicker."""


class MiniBatch(dict[str, Tensor]):
    """Rows of a store: checkpoint -> tensor [b, …].

    Attributes:
        tokens: [b], the token of each row.
        rows: [b], its number in the store.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__(values)
        self.tokens, self.rows = self.pop(TOKENS), self.pop(ROWS)


class ActivationStream(Iterator[Any]):
    """Mini-batches of one checkpoint without an end, as trainers of sparse autoencoders read them.

    SAELens' trainers call `next` on their `data_provider`; dictionary_learning's `trainSAE` iterates over its `data`
    and writes `data.config` beside what it trained. Every mini-batch has `batch_size` rows: what is left of a pass is
    left out. Each pass has an order of its own, seeded by `seed` and its number.
    """

    def __init__(self, loader: Loader, name: str | None, device: Any) -> None:
        try:
            torch.empty(0, device=device)
        except DEVICE_ERRORS as problem:
            raise no_device("corpus", device, problem) from problem
        self._loader, self._name, self._device = loader, name, device
        self._batches, self._passes = iter(loader), 0
        # what is read, as JSON has it
        self.config = {
            "store": str(loader.store.place), "name": name, "batch_size": loader.batch_size, "seed": loader.seed,
            "window": loader.window, "rows": loader.store.plan.rows,
        }  # fmt: skip

    def __next__(self) -> Any:
        batch = next(self._batches, None)
        if batch is None or len(batch.rows) < self._loader.batch_size:
            self._passes += 1
            self._batches = iter(replace(self._loader, seed=self._loader.seed + self._passes))
            batch = next(self._batches)
        if self._name is None:
            return {name: value.to(self._device) for name, value in batch.items()}
        return batch[self._name].to(self._device)


@dataclass(frozen=True)
class Loader:
    """Yields a `MiniBatch`, `{name: tensor [b, …]}`, with each row of a store once in every pass."""

    store: Store  # whose rows
    batch_size: int  # rows of each mini-batch but the last
    shuffle: bool  # whether in a random order
    seed: int  # which; every pass over the same loader is the same, and another seed is another order
    window: int | None  # rows that are mixed with each other, whole parts of the store; None for an order of all rows

    @classmethod
    def of(cls, store: Store, batch_size: Any, *, shuffle: bool, seed: Any, window: Any) -> Loader:
        """A loader of these arguments, checked."""
        size = require_whole("batch_size", batch_size, at_least=1)
        held = None
        if window is not None:
            parts = max(1, require_whole("window", window, at_least=1) // store.plan.part_rows)
            held = min(parts * store.plan.part_rows, store.plan.rows)
        if not store.is_complete:
            raise unfinished(f"{store.place} is not finished")
        return cls(store, size, shuffle, require_whole("seed", seed), held)

    def __len__(self) -> int:
        """How many mini-batches a pass has."""
        return math.ceil(self.store.plan.rows / self.batch_size)

    def __iter__(self) -> Iterator[MiniBatch]:
        generator = np.random.default_rng(self.seed)
        scattered = self.shuffle and self.window is None
        return map(MiniBatch, self._regrouped(self._scattered(generator) if scattered else self._windows(generator)))

    def _scattered(self, generator: np.random.Generator) -> Iterator[dict[str, Tensor]]:
        """Rows of a permutation of all, read one by one."""
        plan, place = self.store.plan, self.store.place
        dtype, tokens = getattr(torch, plan.dtype), self.store.corpus.tokens[:]
        order = generator.permutation(plan.rows)
        for start in range(0, plan.rows, self.batch_size):
            rows = order[start : start + self.batch_size]
            parts, places = np.divmod(rows, plan.part_rows)
            batch = {}
            for column in plan.columns:
                keys = [chunk_key(column.name, part, 1 + len(column.shape)) for part in parts.tolist()]
                found = place.rows(keys, places.tolist(), column.width, plan.part_rows, dtype)
                batch[column.name] = found.view(-1, *column.shape)
            yield {**batch, TOKENS: torch.from_numpy(tokens[rows].astype(np.int64)), ROWS: torch.from_numpy(rows)}

    def _windows(self, generator: np.random.Generator) -> Iterator[dict[str, Tensor]]:
        """The rows of some parts at a time; while they are used, the next are read."""
        plan = self.store.plan
        together = 1 if self.window is None else -(-self.window // plan.part_rows)
        parts = generator.permutation(plan.parts) if self.shuffle else np.arange(plan.parts)
        groups = [parts[i : i + together].tolist() for i in range(0, len(parts), together)]
        with ThreadPoolExecutor(READERS, thread_name_prefix="pellucid") as readers:
            waiting = self._begun(groups[0], readers)
            for following in [*groups[1:], None]:
                held, reads = waiting
                for read in reads:
                    read.result()
                if following is not None:
                    waiting = self._begun(following, readers)
                count = len(held[TOKENS])
                order = torch.from_numpy(generator.permutation(count)) if self.shuffle else None
                for start in range(0, count, self.batch_size):
                    part = slice(start, start + self.batch_size)
                    yield {name: value[part if order is None else order[part]] for name, value in held.items()}

    def _begun(self, parts: list[int], readers: ThreadPoolExecutor) -> tuple[dict[str, Tensor], list[Future[None]]]:
        """The rows of some parts, which are whole when every read is done."""
        plan = self.store.plan
        rows = [plan.rows_of(part) for part in parts]
        count, dtype = sum(map(len, rows)), getattr(torch, plan.dtype)
        tokens = np.concatenate([self.store.corpus.tokens[r.start : r.stop] for r in rows]).astype(np.int64)
        numbers = np.concatenate([np.arange(r.start, r.stop) for r in rows])
        held = {TOKENS: torch.from_numpy(tokens), ROWS: torch.from_numpy(numbers)}
        reads: list[Future[None]] = []
        for column in plan.columns:
            held[column.name] = torch.empty((count, *column.shape), dtype=dtype, device="cpu")
            pieces = held[column.name].split([len(r) for r in rows])
            reads += [readers.submit(self.store.read, column.name, *each) for each in zip(parts, pieces, strict=True)]
        return held, reads

    def _regrouped(self, pieces: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The same rows in mini-batches of `batch_size`, across the borders of windows."""
        left: dict[str, Tensor] | None = None
        for new in pieces:
            piece = new if left is None else {name: torch.cat([left[name], value]) for name, value in new.items()}
            left = None
            count = len(piece[TOKENS])
            whole = count - count % self.batch_size
            for start in range(0, whole, self.batch_size):
                yield {name: value[start : start + self.batch_size] for name, value in piece.items()}
            if whole < count:
                left = {name: value[whole:] for name, value in piece.items()}
        if left is not None:
            yield left
