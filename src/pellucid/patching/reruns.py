"""Many runs that differ from one base run in a few values, made together at a fraction of their cost.

A run that differs from the base run first in block 4 and at column 9 equals it before that block and before that
column. So it starts there: with what entered the block in the base run, and with the base run's keys and values of the
columns before. Runs that begin at about the same column share a batch, each in rows of its own, which join it at the
block where their run starts. The head is applied only at the positions that the metric reads.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, pairwise

import torch
from torch import Tensor

from pellucid.errors import EditError
from pellucid.family.network import Columns as Choice
from pellucid.family.network import Memory, Run
from pellucid.metrics import Metric, column_of, measured, positions_of
from pellucid.patching.roles import Put
from pellucid.run.cache import KeyValueCache
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Region
from pellucid.run.taps import Recorder
from pellucid.schema import Axes, Axis, Schema
from pellucid.tap import Chain, StopAfter, Stopped, Tap
from pellucid.text.batch import Batch

TOKENS = 384
"""Tokens of a shared batch from which on a larger one multiplies hardly faster, on two cores and at GPT-2 small's
width. A smaller batch begins later in the text, because the columns before the first that differs are left out."""

BYTES = 512 * 2**20
"""The memory that the values of a shared batch may take, unless the caller says otherwise."""


@dataclass(frozen=True)
class Rerun:
    """One run: the base run with some parts of it replaced."""

    puts: tuple[Put, ...]  # the parts; of two in one value, the later one counts
    whole: bool = False  # whether to run every column, also those that cannot differ

    def start(self, schema: Schema) -> int:
        """The first block that differs; -1 if the embeddings do, the number of blocks if only what follows does."""
        return min(block_of(put.name, schema) for put in self.puts)

    @property
    def begin(self) -> int:
        """The first column that differs."""
        return 0 if self.whole else min(0 if put.columns is None else put.columns.first for put in self.puts)


def block_of(name: str, schema: Schema) -> int:
    """The block of a checkpoint; -1 before the blocks, the number of blocks after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return -1 if name in {point.name for point in schema.before} else len(schema.blocks)


@dataclass
class Writer:
    """The tap that replaces parts of values, each in the rows of its own trial."""

    trials: Sequence[Rerun]  # the trials of a batch, one after another
    axes: Mapping[str, Axes]  # the axes of every checkpoint
    texts: int  # how many rows each trial has
    begin: int  # the first column that runs
    _at: dict[str, list[tuple[int, Put]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, trial in enumerate(self.trials):
            for put in trial.puts:
                self._at.setdefault(put.name, []).append((number * self.texts, put))
        self._left = set(self._at)
        self.wants = self._at.__contains__

    def __call__(self, name: str, value: Tensor) -> Tensor:
        value = value.clone()  # the model's own tensors are never written into
        for row, put in self._at[name]:
            put.write(value[row : row + self.texts], self.axes[name], self.begin)
        self._left.discard(name)
        return value

    def check_fired(self) -> None:
        """Raise for a checkpoint that no value came by."""
        if self._left:
            raise never_fired(self._left)


def never_fired(names: Iterable[str]) -> EditError:
    """The error of checkpoints that no value came by."""
    return EditError(
        f"never fired: {', '.join(sorted(names))}.",
        code="edit-never-fired",
        remedy="Remove the hook or the replaced module that keeps the value from passing through its "
        "checkpoint, or choose another checkpoint.",
    )


@dataclass(frozen=True)
class Prefix:
    """The base run's keys and values of the columns before `length`, for several copies of its texts.

    Nothing is kept of what runs: each run goes its own way.
    """

    kept: KeyValueCache
    copies: int
    length: int

    def writer(self, block: int) -> Memory:
        """What one block calls with its new keys and values."""
        keys, values = (part[:, :, : self.length].repeat(self.copies, 1, 1, 1) for part in self.kept.content[block])
        return lambda k, v: (torch.cat([keys, k], 2), torch.cat([values, v], 2))


@dataclass(frozen=True)
class Sharing:
    """Which trials run together: those of as many columns of as many texts, of which the metric reads some or all."""

    schema: Schema
    texts: int
    columns: int
    read: int | None
    itemsize: int
    max_bytes: int = BYTES
    """The memory that the values of a shared batch may take."""

    @classmethod
    def of(cls, model: CkptedTransformer, batch: Batch, metric: Metric, max_bytes: int = BYTES) -> Sharing:
        """Share the runs of a batch."""
        positions = positions_of(metric)
        read = None if positions is None else len(positions)
        rows, columns = batch.shape
        return cls(model.schema, rows, columns, read, model.dtype.itemsize, max_bytes)

    def batches(self, trials: Sequence[Rerun]) -> Iterator[list[int]]:
        """The numbers of the trials that run together, in the order of their starts.

        Those that begin late in the text come first, and those that begin at the same column stay together if they
        fit into a batch: a few that begin earlier would lengthen all the others. Those that embed share no batch with
        others.
        """
        starts = [trial.start(self.schema) for trial in trials]
        alike = Counter((start < 0, trial.begin) for start, trial in zip(starts, trials, strict=True))
        order = sorted(
            (starts[number] < 0, -trial.begin, starts[number], number) for number, trial in enumerate(trials)
        )
        for embeds, group in groupby(order, lambda entry: entry[0]):
            together: list[int] = []
            last = 0
            for _, minus_begin, _, number in group:
                tokens_each = self.texts * (self.columns + minus_begin)
                count = joining = len(together) + 1
                if minus_begin != last and alike[embeds, -minus_begin] * tokens_each <= TOKENS:
                    joining = len(together) + alike[embeds, -minus_begin]
                too_large = joining * tokens_each > TOKENS or self.bytes_of(count, -minus_begin) > self.max_bytes
                if together and too_large:
                    yield sorted(together, key=starts.__getitem__)
                    together = []
                together.append(number)
                last = minus_begin
            yield sorted(together, key=starts.__getitem__)

    @cached_property
    def _numbers(self) -> int:
        """How many numbers the values of the largest block are for each position; asked for every trial."""
        of_batch = {Axis.BATCH: 1, Axis.POS: 1, Axis.QUERY: 1, Axis.KEY: self.columns}
        return max(
            sum(
                math.prod(of_batch.get(axis) or self.schema.length_of(axis, point) for axis in point.axes)
                for point in block
            )
            for block in self.schema.blocks
        )

    @property
    def whole_logits(self) -> int:
        """Bytes of the logits [B, P, V] that the metric is given, and of the base run's where all of them are read."""
        copies = 2 if self.read is None else 1
        return copies * self.texts * self.columns * self.schema.sizes["d_vocab"] * self.itemsize

    def bytes_of(self, trials: int, begin: int = 0) -> int:
        """Bytes that a batch of so many trials takes while its largest block is run, and its head."""
        read = self.columns - begin if self.read is None else self.read
        numbers = (self.columns - begin) * self._numbers + read * self.schema.sizes["d_vocab"]
        return trials * self.texts * numbers * self.itemsize


class Base:
    """A run that was made, from which other runs differ.

    Attributes:
        values: The kept checkpoints.
        entering: What each block is given, and what leaves the last one, [B, P, D].
        plain: [B], the metric of the base run.
    """

    def __init__(
        self, model: CkptedTransformer, batch: Batch, metric: Metric, names: Iterable[str] = (),
        *, of: str = "the base run", max_bytes: int = BYTES,
    ) -> None:  # fmt: skip
        self.model, self.batch, self.metric = model, batch, metric
        schema, positions = model.schema, positions_of(metric)
        rows, columns = batch.shape
        self.cache = KeyValueCache(model.config, rows, columns, dtype=model.dtype, device=model.device)
        recorder = Recorder(frozenset(names), schema, Region(), grads=False)
        logits = self._run_once(recorder)
        recorder.check_fired()
        self.values = recorder.values
        self.plain = measured(metric, logits, batch, of=of)
        self.read: Tensor | None = None
        """[B, C], the columns that the metric reads; None for all."""
        if positions is not None:
            self.read = torch.stack([column_of(batch, pos) for pos in positions], 1)
        self.logits = logits if self.read is None else logits[torch.arange(rows, device="cpu")[:, None], self.read]
        self.sharing = Sharing.of(model, batch, metric, max_bytes)

    def _run_once(self, tap: Tap) -> Tensor:
        """The logits of the base run, which is made block by block: `entering` holds what its blocks are given."""
        padding = self.batch.mask if self.batch.padded else None
        whole, blocks = Run(self.batch.ids, self.batch.positions, padding, self.cache), len(self.model.schema.blocks)
        self.cache.open(self.batch.mask)
        with torch.no_grad():
            self.entering = [self.model.transform(replace(whole, end=0), tap)]
            for i in range(blocks):
                run = replace(whole, start=(i, self.entering[i].clone()), end=i + 1)
                self.entering.append(self.model.transform(run, tap))
            logits = self.model(replace(whole, start=(blocks, self.entering[-1].clone())), tap=tap)
        self.cache.close(self.batch.shape[1])
        return logits

    def differing(self, trials: Sequence[Rerun]) -> Iterator[tuple[int, Tensor]]:
        """Run every trial.

        Yields:
            The number of a trial and its metric [B], as they are done.
        """
        for numbers in self.sharing.batches(trials):
            together = [trials[number] for number in numbers]
            logits, begin = self._run(together)
            for number, given in zip(numbers, logits.split(len(self.batch)), strict=True):
                yield number, measured(self.metric, self._whole(given, begin), self.batch)

    def captured(self, trials: Sequence[Rerun], names: Sequence[str]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Run every trial as far as the last of some checkpoints.

        Args:
            trials: In any order; each runs every column.
            names: What to capture, after what every trial replaces, in execution order.

        Yields:
            The number of a trial and the captured values [B, ...], as they are done; without those before its start.
        """
        schema, texts = self.model.schema, len(self.batch)
        for numbers in self.sharing.batches(trials):
            together = [trials[number] for number in numbers]
            first = together[0].start(schema)
            reached = frozenset(name for name in names if block_of(name, schema) >= first)
            recorder = Recorder(reached, schema, Region(), grads=False)
            with suppress(Stopped):
                self._run(together, recorder, StopAfter(names[-1]))
            recorder.check_fired()
            for place, number in enumerate(numbers):
                rows = slice(place * texts, (place + 1) * texts)
                yield number, {n: value[rows] for n, value in recorder.values.items() if len(value) >= rows.stop}

    def _run(self, trials: Sequence[Rerun], *taps: Tap) -> tuple[Tensor, int]:
        """Run the trials of one batch, which are in the order of their starts.

        Returns:
            The logits [trials x B, columns, V], and the first column that ran.
        """
        schema, begin = self.model.schema, min(trial.begin for trial in trials)
        writer = Writer(trials, schema.axes, len(self.batch), begin)
        tap = Chain([writer, *taps]) if taps else writer
        starts = [trial.start(schema) for trial in trials]
        values = self.entering[0][:0, begin:]
        with torch.no_grad():
            for start, end in pairwise([*sorted(set(starts)), None]):
                assert start is not None
                values = torch.cat([values, *[self.entering[max(start, 0)][:, begin:]] * starts.count(start)])
                run = self._stage(bisect_right(starts, start), begin, None if start < 0 else (start, values), end)
                # a stage that ends before a block is a part of a run: hooks on the model see the one that gives logits
                values = self.model(run, tap=tap) if end is None else self.model.transform(run, tap)
        writer.check_fired()
        return values, begin

    def _stage(self, copies: int, begin: int, start: tuple[int, Tensor] | None, end: int | None) -> Run:
        """The run of so many copies of the texts from their column `begin` on, from one block to another."""

        def rest(values: Tensor) -> Tensor:
            return values[:, begin:].repeat(copies, 1)

        return Run(
            rest(self.batch.ids),
            rest(self.batch.positions),
            self.batch.mask.repeat(copies, 1) if self.batch.padded else None,
            Prefix(self.cache, copies, begin) if begin else None,
            None if self.read is None else self._reader(copies, begin),
            start,
            end,
        )

    def _reader(self, copies: int, begin: int) -> Choice:
        """Chooses the columns that the metric reads, the first if it reads one before `begin`."""
        assert self.read is not None
        columns = (self.read - begin).clamp(min=0).repeat(copies, 1)
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return lambda values: values[rows, columns]

    def _whole(self, given: Tensor, begin: int) -> Tensor:
        """Logits [B, P, V] from those of the columns that were computed."""
        if self.read is None:
            return torch.cat([self.logits[:, :begin], given], 1)
        whole = given.new_full((*self.batch.shape, given.size(-1)), torch.nan)
        known = torch.where((self.read < begin)[..., None], self.logits, given)
        whole[torch.arange(len(whole), device="cpu")[:, None], self.read] = known
        return whole
