"""Many runs that differ from one base run in a few values, made together at a fraction of their cost.

A run that differs from the base run first in block 4 and at column 9 equals it before that block and before that
column. So it starts there: with what entered the block in the base run, and with the base run's keys and values of the
columns before. Runs that start at the same block share batches, each in rows of its own, and the head is applied only
at the positions that the metric reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from pellucid.axes import NEURONS, POSITIONS, Axes, Axis
from pellucid.errors import EditError
from pellucid.metrics import Metric, column_of, measured, positions_of
from pellucid.network import Columns as Choice
from pellucid.network import Memory, Run
from pellucid.patching.roles import Columns
from pellucid.run.cache import KeyValueCache
from pellucid.run.model import CkptedTransformer
from pellucid.run.recorder import Recorder
from pellucid.run.region import Region
from pellucid.schema import Schema
from pellucid.tap import Chain, StopAfter, Stopped, Tap
from pellucid.text.batch import Batch

TOKENS = 256
"""Tokens of a shared batch from which on a larger one multiplies hardly faster, on two cores and at GPT-2 small's
width. A smaller batch begins later in the text, because the columns before the first that differs are left out."""

BYTES = 512 * 2**20
"""The memory that the values of a shared batch may take, unless the caller says otherwise."""


@dataclass(frozen=True)
class Put:
    """A part of one value that is replaced.

    Attributes:
        name: The checkpoint.
        source: What holds the new numbers: the whole value of another run of the same number of texts.
        columns: Which columns; None for all.
        heads: Which heads; None for all.
        neurons: Which entries of the last axis; None for all.
    """

    name: str
    source: Tensor
    columns: Columns | None = None
    heads: Sequence[int] | None = None
    neurons: Sequence[int] | None = None

    def write(self, value: Tensor, axes: Axes, begin: int) -> None:
        """Write the part into a value [B, ...] of a run whose first column is `begin`."""
        _write(value, self.source, [
            (next(i for i, a in enumerate(axes) if a in kinds), list(entries))
            for kinds, entries in (((Axis.HEAD,), self.heads), (NEURONS, self.neurons))
            if entries is not None
        ], self._at(axes, begin))  # fmt: skip

    def _at(self, axes: Axes, begin: int) -> tuple[int, Columns] | None:
        if self.columns is None:
            return None
        axis = next(i for i, a in enumerate(axes) if a in POSITIONS)
        return axis, Columns(self.columns.rows, self.columns.into - begin, self.columns.taken)


def _write(value: Tensor, source: Tensor, parts: list[tuple[int, list[int]]], at: tuple[int, Columns] | None) -> None:
    """Copy a part of `source` into `value`: entries along axes, each run of neighbours at once, at some columns."""
    if parts:
        (axis, entries), *rest = parts
        for first, length in _stretches(entries):
            _write(value.narrow(axis, first, length), source.narrow(axis, first, length), rest, at)
    elif at is None:
        value.copy_(source)
    else:
        axis, columns = at
        given = source.movedim(axis, 1)[columns.rows, columns.taken]
        value.movedim(axis, 1)[columns.rows, columns.into] = given


def _stretches(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First entry and length of each run of neighbours."""
    for _, run in groupby(enumerate(sorted(entries)), lambda pair: pair[1] - pair[0]):
        found = [entry for _, entry in run]
        yield found[0], len(found)


@dataclass(frozen=True)
class Rerun:
    """One run: the base run with some parts of it replaced.

    Attributes:
        puts: The parts; of two in one value, the later one counts.
        whole: Whether to run every column, also those that cannot differ.
    """

    puts: tuple[Put, ...]
    whole: bool = False

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
    """The tap that replaces parts of values, each in the rows of its own trial.

    Args:
        trials: The trials of a batch, one after another.
        axes: The axes of every checkpoint.
        texts: How many rows each trial has.
        begin: The first column that runs.
    """

    trials: Sequence[Rerun]
    axes: Mapping[str, Axes]
    texts: int
    begin: int
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
            raise EditError(
                f"never fired: {', '.join(sorted(self._left))}.",
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
    """Which trials run together.

    Args:
        schema: The model's schema.
        texts: Texts of the base run.
        columns: Columns of its batch.
        read: How many columns the metric reads; None for all.
        itemsize: Bytes of a number.
        max_bytes: The memory that the values of a shared batch may take.
    """

    schema: Schema
    texts: int
    columns: int
    read: int | None
    itemsize: int
    max_bytes: int = BYTES

    def batches(self, trials: Sequence[Rerun]) -> Iterator[list[int]]:
        """The numbers of the trials that run together: of one start, those that begin late in the text first."""
        order = [(trial.start(self.schema), -trial.begin, number) for number, trial in enumerate(trials)]
        for start, group in groupby(sorted(order), lambda entry: entry[0]):
            together: list[int] = []
            for _, minus_begin, number in group:
                count = len(together) + 1
                tokens = count * self.texts * (self.columns + minus_begin)
                if together and (tokens > TOKENS or self.bytes_of(count, -minus_begin, start) > self.max_bytes):
                    yield together
                    together = []
                together.append(number)
            yield together

    def bytes_of(self, trials: int, begin: int = 0, start: int = 0) -> int:
        """Bytes that a batch of so many trials takes while one block of it is run, and its head."""
        of_batch = {Axis.BATCH: 1, Axis.POS: 1, Axis.QUERY: 1, Axis.KEY: self.columns}
        block = self.schema.blocks[min(max(start, 0), len(self.schema.blocks) - 1)]
        each = sum(
            math.prod(of_batch.get(axis) or self.schema.length_of(axis, point) for axis in point.axes)
            for point in block
        )
        read = self.columns - begin if self.read is None else self.read
        numbers = (self.columns - begin) * each + read * self.schema.sizes["d_vocab"]
        return trials * self.texts * numbers * self.itemsize


class Base:
    """A run that was made, from which other runs differ.

    Args:
        model: What runs.
        batch: Its texts.
        metric: What is read off the logits.
        names: Checkpoints to keep, beside what enters each block.
        max_bytes: The memory that the values of a shared batch may take.

    Attributes:
        values: The kept checkpoints.
        plain: [B], the metric of the base run.
    """

    def __init__(
        self, model: CkptedTransformer, batch: Batch, metric: Metric, names: Iterable[str] = (),
        *, of: str = "the base run", max_bytes: int = BYTES,
    ) -> None:  # fmt: skip
        self.model, self.batch, self.metric = model, batch, metric
        schema, positions = model.schema, positions_of(metric)
        self.residual = [f"blocks.{i}.resid_pre" for i in range(len(schema.blocks))]
        self.last = f"blocks.{len(schema.blocks) - 1}.resid_post"
        recorder = Recorder(frozenset([*self.residual, self.last, *names]), schema, Region(), grads=False)
        rows, columns = batch.shape
        self.cache = KeyValueCache(model.config, rows, columns, dtype=model.dtype, device=model.device)
        with torch.no_grad():
            logits = model(batch, tap=recorder, cache=self.cache)
        recorder.check_fired()
        self.values = recorder.values
        self.plain = measured(metric, logits, batch, of=of)
        self.read: Tensor | None = None
        """[B, C], the columns that the metric reads; None for all."""
        if positions is not None:
            self.read = torch.stack([column_of(batch, pos) for pos in positions], 1)
        self.logits = logits if self.read is None else logits[torch.arange(rows)[:, None], self.read]
        read = None if positions is None else len(positions)
        self.sharing = Sharing(schema, rows, columns, read, model.dtype.itemsize, max_bytes)

    def differing(self, trials: Sequence[Rerun]) -> Iterator[tuple[int, Tensor]]:
        """Run every trial.

        Args:
            trials: In any order; they are run in the order that shares most.

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
            The number of a trial and the captured values [B, ...], as they are done.
        """
        for numbers in self.sharing.batches(trials):
            recorder = Recorder(frozenset(names), self.model.schema, Region(), grads=False)
            with suppress(Stopped):
                self._run([trials[number] for number in numbers], recorder, StopAfter(names[-1]))
            recorder.check_fired()
            for place, number in enumerate(numbers):
                rows = slice(place * len(self.batch), (place + 1) * len(self.batch))
                yield number, {name: value[rows] for name, value in recorder.values.items()}

    def _run(self, trials: Sequence[Rerun], *taps: Tap) -> tuple[Tensor, int]:
        """The logits of the trials of one batch, [trials x B, columns, V], and the first column that ran."""
        schema, begin, copies = self.model.schema, min(trial.begin for trial in trials), len(trials)
        start = min(trial.start(schema) for trial in trials)
        batch = self.batch

        def rest(values: Tensor) -> Tensor:
            return values[:, begin:].repeat(copies, *[1] * (values.dim() - 1))

        entering = [*self.residual, self.last][max(start, 0)]
        run = Run(
            rest(batch.ids),
            rest(batch.positions),
            batch.mask.repeat(copies, 1) if batch.padded else None,
            Prefix(self.cache, copies, begin) if begin else None,
            None if self.read is None else self._reader(copies, begin),
            None if start < 0 else (start, rest(self.values[entering])),
        )
        writer = Writer(trials, schema.axes, len(batch), begin)
        with torch.no_grad():
            logits = self.model(run, tap=Chain([writer, *taps]) if taps else writer)
        writer.check_fired()
        return logits, begin

    def _reader(self, copies: int, begin: int) -> Choice:
        """Chooses the columns that the metric reads, the first where it reads one before `begin`."""
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
        whole[torch.arange(len(whole))[:, None], self.read] = known
        return whole
