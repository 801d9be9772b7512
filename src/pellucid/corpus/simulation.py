"""What a plan asks of many workers: a computation, in which nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from pellucid.check import as_number, require_one_of, require_whole
from pellucid.corpus.plan import ITEM_BYTES, CorpusPlan, lasting, part_rows_for
from pellucid.corpus.writing import BATCH_TOKENS, column_of
from pellucid.errors import InputError, shown
from pellucid.names.aliases import Names, selected
from pellucid.schema import Schema


class HasSchema(Protocol):
    """A model, or the configuration of one."""

    @property
    def schema(self) -> Schema:
        """Its checkpoints."""
        ...


@dataclass(frozen=True)
class Simulation:
    """How a plan goes on workers that are equally fast, each of which takes the next part when it has written one."""

    plan: CorpusPlan  # what is stored
    workers: int  # how many there are
    tokens_per_second: float  # how many tokens each of them runs and writes in a second

    @property
    def rounds(self) -> int:
        """Parts that the busiest worker makes."""
        return math.ceil(self.plan.parts / self.workers)

    @property
    def seconds(self) -> float:
        """The time until the last part is written."""
        return self.rounds * self.plan.part_rows / self.tokens_per_second

    @property
    def idle(self) -> float:
        """The share of all workers' time in which there is no part left for them."""
        return 1 - self.plan.parts / (self.rounds * self.workers)

    @property
    def bytes_per_worker(self) -> int:
        """What the busiest worker writes."""
        return self.rounds * self.plan.part_rows * self.plan.row_bytes

    @property
    def bytes_per_second(self) -> float:
        """What all workers write in a second as long as each has a part."""
        return min(self.workers, self.plan.parts) * self.tokens_per_second * self.plan.row_bytes

    @property
    def objects(self) -> int:
        """Files, or objects of an object store, of all parts: a chunk for each checkpoint, and an entry."""
        return self.plan.parts * (len(self.plan.columns) + 1)

    def __repr__(self) -> str:
        return (
            f"{self.plan.parts:,} parts for {self.workers:,} worker{'s' * (self.workers != 1)}: "
            f"at most {self.rounds:,} each, "
            f"{lasting(self.seconds)}, {self.idle:.1%} idle; {self.bytes_per_worker:,} bytes each, "
            f"{self.bytes_per_second / 1e9:,.2f} GB/s together, {self.objects:,} objects"
        )


def simulate(
    model: HasSchema, names: Names, tokens: int, workers: int, tokens_per_second: float, *, dtype: str = "float32"
) -> Simulation:
    """How long workers take to capture so many tokens, and what they write; nothing is run, and no text is read.

    Args:
        model: A model, or the configuration of one.
        names: What would be stored, as in `pl.corpus.capture`.
        tokens: How many, in texts of the context's length at most.
        workers: How many workers there are.
        tokens_per_second: How many tokens each of them runs and writes in a second.
        dtype: What values are stored as.

    Raises:
        InputError: If a number is out of range, or the checkpoint has no row for each token.
        UnknownNameError: If there is no such checkpoint.

    Example:
        >>> import pellucid as pl
        >>> pl.corpus.simulate(pl.load(), "blocks.3.resid_post", 1_000_000, workers=2, tokens_per_second=10_000)
        4 parts for 2 workers: at most 2 each, 50 s, 0.0% idle; 512,000,000 bytes each, 0.02 GB/s together, 8 objects
    """
    require_one_of("corpus: dtype", dtype, ITEM_BYTES, code="corpus-dtype")
    rows, count = (require_whole(what, n, at_least=1) for what, n in (("tokens", tokens), ("workers", workers)))
    speed = as_number(tokens_per_second)
    if speed is None or not 0 < speed < math.inf:
        raise InputError(
            f"corpus: tokens_per_second={shown(tokens_per_second)}, expected a number above 0.",
            code="corpus-speed",
            remedy="Give what was measured, such as plan.rows / plan.seconds of pl.corpus.estimate.",
        )
    columns = tuple(column_of(name, model.schema) for name in selected(names, model.schema))
    longest = min(rows, model.schema.sizes["n_ctx"])
    plan = CorpusPlan(columns, rows, math.ceil(rows / longest), longest, 1, BATCH_TOKENS, dtype)
    return Simulation(replace(plan, part_rows=part_rows_for(plan.row_bytes, rows, longest)), count, speed)
