"""What verbs that change runs share: the two plain runs, the memory that changed ones may take, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.check import require_one_of, require_whole
from pellucid.errors import InputError, warn
from pellucid.extras import need
from pellucid.metrics import Metric, measured, units_of
from pellucid.names.aliases import Names
from pellucid.patching.cells import Cells, SweepCell
from pellucid.patching.reruns import BYTES, Base, Rerun, Sharing
from pellucid.patching.roles import Roles, of_unequal_length, roles_of
from pellucid.run.cache import KeyValueCache
from pellucid.run.cost import estimate
from pellucid.run.interrupts import bar, told
from pellucid.run.model import CkptedTransformer
from pellucid.run.origin import source_of
from pellucid.run.region import Region
from pellucid.schema import Axis, Schema
from pellucid.text.batch import Batch, Inputs

if TYPE_CHECKING:
    import xarray

Direction = Literal["denoise", "noise"]
UNMEASURED = "interrupted during the plain runs: nothing was measured"


@dataclass(frozen=True)
class Texts:
    """Clean and corrupted texts, and which of them are changed."""

    base: Batch  # the texts whose runs are changed
    source: Batch  # the texts whose values are put in
    into: str  # what the base is: "clean" or "corrupted"
    roles: Roles | None  # which positions of the base take which of the source; None for the same

    @classmethod
    def of(
        cls, model: CkptedTransformer, clean: Inputs, corrupted: Inputs, direction: Direction,
        align: Roles | bool | None,
    ) -> Texts:  # fmt: skip
        """Read what was given."""
        remedy = "Give direction='denoise' to put clean values into corrupted runs, 'noise' for the reverse."
        require_one_of("direction", direction, ("denoise", "noise"), code="sweep-direction", remedy=remedy)
        batches = model.tokenize(clean), model.tokenize(corrupted)
        roles = roles_of(align, model, *batches)
        if direction == "denoise":
            return cls(batches[1], batches[0], "corrupted", roles)
        return cls(batches[0], batches[1], "clean", None if roles is None else roles.turned())

    def require_equal_lengths(self, where: str, remedy: str) -> None:
        """Refuse texts whose positions do not belong together one by one."""
        if self.base.shape != self.source.shape or not torch.equal(self.base.mask, self.source.mask):
            raise of_unequal_length(where, self.base, self.source, remedy)

    @property
    def taken(self) -> str:
        """What the source is: "clean" or "corrupted"."""
        return "clean" if self.into == "corrupted" else "corrupted"

    def cells(self, schema: Schema, names: Names, over: Sequence[str], part: Region) -> Cells:
        """What a sweep of these texts goes over."""
        return Cells(schema, names, over, self.base, self.source, part, self.roles)

    def run(
        self, model: CkptedTransformer, metric: Metric, names: Iterable[str], kept: Iterable[str] = (),
        *, max_bytes: int | None = None, begin: int = 0,
    ) -> PlainRuns:  # fmt: skip
        """Make the two plain runs."""
        names, kept = tuple(names), tuple(kept)
        every = dict.fromkeys((*names, *kept))
        room = require_room(model, self.base, self.source, every, metric, max_bytes, begin)
        with told(UNMEASURED):
            base = Base(model, self.base, metric, kept, of=f"the {self.into} run", max_bytes=room)
            logits, source = model.run_with_ckpts(self.source, names=names)
        assert logits is not None, "the run was not stopped"
        theirs = measured(metric, logits, self.source, of=f"the {self.taken} run")
        return PlainRuns(base, source, self.about(model, metric, base.plain, theirs))

    def about(self, model: CkptedTransformer, metric: Metric, base: Tensor, source: Tensor) -> dict[str, Any]:
        """What an array of runs between the two says, but for its title, given the metric [B] of both."""
        read = {self.into: base, self.taken: source}
        of_both: dict[str, Any] = {side: float(read[side].mean()) for side in ("clean", "corrupted")}
        of_both |= {f"{side}_by_text": read[side].tolist() for side in ("clean", "corrupted")}
        return {**described(model, metric, base, ""), **of_both}


@dataclass(frozen=True)
class PlainRuns:
    """The two runs that patches stand between."""

    base: Base  # the one that is changed
    source: Mapping[str, Tensor]  # values of the other one
    about: Mapping[str, Any]  # what an array of runs between them says, for figures and `normalized`, but for its title


def require_room(
    model: CkptedTransformer, base: Batch, source: Batch, names: Iterable[str], metric: Metric, max_bytes: int | None,
    begin: int = 0,
) -> int:  # fmt: skip
    """The bytes that a shared batch of a sweep may take, whose runs differ from the column `begin` on."""
    limit = free_memory() if max_bytes is None else require_whole("max_bytes", max_bytes, at_least=1)
    if limit is None:
        return BYTES
    sharing = Sharing.of(model, base, metric)
    kept, single = kept_bytes(model, base, source, names) + sharing.whole_logits, sharing.bytes_of(1, begin)
    if kept + single > limit:
        raise InputError(
            f"{kept:,} bytes are kept and one run needs {single:,}, but {limit:,} may be taken.",
            code="sweep-memory",
            remedy="Give fewer or shorter texts at once, or fewer checkpoints, such as those of one block"
            + (", or a larger max_bytes=." if max_bytes is not None else "."),
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


def kept_bytes(model: CkptedTransformer, base: Batch, source: Batch, names: Iterable[str]) -> int:
    """Bytes of the source's values, of what enters each block of the base run, and of its keys and values."""
    last = f"blocks.{len(model.schema.blocks) - 1}.resid_post"
    stream = estimate(model, base, ["resid_pre", last]).nbytes
    rows, columns = base.shape
    cache = KeyValueCache.bytes_needed(model.config, rows, columns, model.dtype)
    return estimate(model, source, list(names)).nbytes + stream + cache


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    cells: Cells  # what was gone over
    values: NDArray[Any]  # [*cells.shape, B]; NaN where nothing was measured
    counted: NDArray[Any]  # [*cells.shape, B], true where a text was changed and measured
    unchanged: NDArray[Any]  # [B], what is measured of a text that has not the position, so that nothing changes

    def labelled(self, name: str, about: Mapping[str, Any], *, per_text: bool) -> xarray.DataArray:
        """As a labelled array, over texts or for each."""
        dims, coords, values = self.cells.dims, self.cells.coords, np.where(self.counted, self.values, np.nan)
        if per_text:
            dims, coords = (*dims, str(Axis.BATCH)), {**coords, str(Axis.BATCH): range(values.shape[-1])}
        else:
            every = np.where(self.counted, self.values, self.unchanged).mean(-1)
            values = np.where(self.counted.any(-1), every, np.nan)
        array = need("xarray", "pellucid.patching").DataArray
        return array(values, dims=dims, coords=coords, name=name, attrs=dict(about))


def described(model: CkptedTransformer, metric: Metric, plain: Tensor, title: str) -> dict[str, Any]:
    """What an array of changed runs says for figures: what it shows, and the metric with its value without a change."""
    return {"title": title, "model": source_of(model), "metric": repr(metric), "units": units_of(metric),
            "unchanged": float(plain.mean())}  # fmt: skip


def results(
    base: Base,
    cells: Cells,
    todo: Sequence[tuple[SweepCell, Rerun]],
    run: Callable[[Sequence[Rerun]], Iterator[tuple[int, Tensor]]] | None = None,
    *,
    progress: bool = False,
) -> Measured:
    """Run the trial of every cell, until the last or until Control-C.

    Args:
        base: The run that is changed.
        cells: All cells, whose result is made.
        todo: Those that are measured, and the trial of each.
        run: Gives the number and the metric [B] of each trial, as they are done; those of the base run if None.
        progress: Whether to draw a bar.
    """
    shape = (*cells.shape, len(base.batch))
    values, counted = np.full(shape, np.nan), np.zeros(shape, dtype=bool)

    def keep(number: int, found: NDArray[Any]) -> None:
        cell = todo[number][0]
        rows = slice(None) if cell.columns is None else cell.columns.rows.numpy()
        values[cell.at], counted[(*cell.at, rows)] = found, True

    until_interrupted((run or base.differing)([trial for _, trial in todo]), len(todo), keep, progress=progress)
    if not np.isfinite(values[counted]).all():
        warn("the metric is not finite after some of the changes")
    return Measured(cells, values, counted, base.plain.numpy())


def patches(cells: Cells, source: Mapping[str, Tensor]) -> list[tuple[SweepCell, Rerun]]:
    """Every cell with the trial that puts its part of the source's values there."""
    return [(cell, Rerun(cell.puts(source))) for cell in cells]


def until_interrupted(
    runs: Iterable[tuple[int, Tensor]], count: int, keep: Callable[[int, Any], None], *, progress: bool = False
) -> None:
    """Keep the number and the metric [B] of each of so many runs, until the last or until Control-C."""
    done = 0
    try:
        with bar("runs", count, wanted=progress) as advance:
            for number, found in runs:
                keep(number, found.numpy())
                done += 1
                advance(1)
    except KeyboardInterrupt:
        warn(f"interrupted: {done} of {count} runs were measured, the others are NaN")
