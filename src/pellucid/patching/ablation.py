"""Ablation: one part after another is taken out of a run, and something else is put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pellucid.check import require_one_of, require_seed
from pellucid.errors import InputError
from pellucid.metrics import Metric
from pellucid.names.aliases import Names
from pellucid.patching.cells import Cells, SweepCell
from pellucid.patching.measured_runs import UNMEASURED, Measured, described, patches, require_room, results
from pellucid.patching.reruns import Base, Rerun
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.run.taps import warn_of_dropout
from pellucid.schema import POSITIONS, Axis
from pellucid.text.batch import Batch, Inputs

if TYPE_CHECKING:
    import xarray

How = Literal["zero", "mean", "mean_by_pos", "resample"]


def ablate(
    model: CkptedTransformer,
    inputs: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    how: How,
    metric: Metric,
    reference: Inputs | None = None,
    seed: int = 0,
    per_text: bool = False,
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    max_bytes: int | None = None,
    progress: bool = False,
) -> xarray.DataArray:
    """Take one part after another out of a run, and measure what is left.

    Args:
        model: What runs.
        inputs: Whose runs are ablated.
        names: A checkpoint, or a list of them; see `sweep`.
        over: What to go over; see `sweep`.
        how: What is put there: "zero"; "mean", over the texts and tokens of the reference; "mean_by_pos", for each
            token the mean over the reference's texts at its position, counted from the first token; "resample", for
            each token the value at its position in a text of the reference that is drawn at random.
        metric: What to read off each run.
        reference: The texts that are averaged or drawn from; the inputs themselves if None.
        seed: Of the draws.
        per_text, pos, heads, neurons, max_bytes, progress: See `sweep`.

    Returns:
        [checkpoint, *over, batch] as `sweep` gives it. Attributes: `plain`, the metric of the run as it is, and
        `ablated`, that of the run in which everything that was gone over is ablated at once.

    Raises:
        InputError: If a checkpoint has no such axes, a mean or a draw is asked of scores or patterns, or no text of the
            reference is as long as an input.
        NumericsError: If the metric is not finite on the plain run.

    Example:
        >>> import pellucid as pl
        >>> model, metric = pl.load(), pl.metrics.logprob(" time")
        >>> ablated = pl.patching.ablate(
        ...     model, "Once upon a", "attn.ckpt_z", over=("layer", "head"), how="mean",
        ...     reference=["The cat sat on the mat", "A dog ran to the park"], metric=metric)
        >>> ablated.sizes, float(ablated.max()) <= 0
        (Frozen({'layer': 4, 'head': 4}), True)
    """
    batch, part = model.tokenize(inputs), Region(pos, heads, neurons)
    cells = Cells(model.schema, names, over, batch, batch, part)
    with told(UNMEASURED):
        made = Ablated.of(model, batch, reference, cells.names, how, metric, seed=seed, max_bytes=max_bytes)
    at_once = Cells(model.schema, names, (), batch, batch, part)
    everything = Rerun(tuple(put for cell in at_once for put in cell.puts(made.instead)))
    gone, found = _together(made.run, cells, patches(cells, made.instead), everything, progress=progress)
    title = f"{', '.join(cells.kinds)} ablated by {_INSTEAD[how]}"
    about = {"checkpoint": ", ".join(cells.kinds), **made.about(title), "ablated": float(gone.mean()),
             "ablated_by_text": gone.tolist()}  # fmt: skip
    return found.labelled("ablate", about, per_text=per_text)


def _together(
    base: Base, cells: Cells, todo: Sequence[tuple[SweepCell, Rerun]], everything: Rerun, *, progress: bool
) -> tuple[Tensor, Measured]:
    """The metric [B] of the run in which everything is ablated at once, and the runs of every cell.

    It is among them if all of them share a batch. Otherwise it comes first, so what was measured until Control-C can be
    normalized.
    """
    gone = [torch.full_like(base.plain, torch.nan)]

    def run(trials: Sequence[Rerun]) -> Iterator[tuple[int, Tensor]]:
        for number, value in base.differing([*trials, everything]):
            if number < len(trials):
                yield number, value
            else:
                gone.append(value)

    batches = list(base.sharing.batches([*(trial for _, trial in todo), everything]))
    if len(batches) > 1:
        with told(UNMEASURED):
            gone.extend(value for _, value in base.differing([everything]))
    found = results(base, cells, todo, run if len(batches) == 1 else None, progress=progress)
    return gone[-1], found


_INSTEAD: Mapping[How, str] = {
    "zero": "zeros", "mean": "the mean", "mean_by_pos": "the mean at each position", "resample": "other texts",
}  # fmt: skip


@dataclass(frozen=True)
class Ablated:
    """The plain run, and what ablations put in the place of its values."""

    run: Base
    instead: Mapping[str, Tensor]  # by checkpoint
    how: How

    @classmethod
    def of(
        cls, model: CkptedTransformer, batch: Batch, reference: Inputs | None, names: Sequence[str], how: How,
        metric: Metric, *, seed: int, max_bytes: int | None = None, kept: Sequence[str] = (),
    ) -> Ablated:  # fmt: skip
        """Run the inputs, of which some values are kept, and the reference, if it is not the inputs and is read."""
        remedy = "Give how='mean' with reference= texts, for example."
        require_one_of("how", how, _INSTEAD, code="ablate-how", remedy=remedy)
        seed = require_seed("ablate: seed", seed)
        known = batch if reference is None or how == "zero" else model.tokenize(reference)
        room = require_room(model, batch, known, names, metric, max_bytes)
        if known is batch:  # no run of a reference says so
            warn_of_dropout(model, "ablation")
        run = Base(model, batch, metric, names if known is batch else kept, of="the plain run", max_bytes=room)
        values = run.values if known is batch else model.run_with_ckpts(known, names=list(names))[1]
        put, axes = Ablation(how, known, batch, seed), model.schema.axes
        return cls(run, {name: put.value(name, value, axes[name]) for name, value in values.items()}, how)

    def about(self, title: str) -> dict[str, Any]:
        """What an array of ablations says, for figures and `normalized`."""
        return {"how": self.how, "plain": float(self.run.plain.mean()), "plain_by_text": self.run.plain.tolist(),
                **described(self.run.model, self.run.metric, self.run.plain, title)}  # fmt: skip


@dataclass
class Ablation:
    """What is put in the place of a value."""

    how: How
    reference: Batch  # where the values come from
    batch: Batch  # where they go
    seed: int  # of the draws

    def __post_init__(self) -> None:
        self._positions = [batch.mask.cpu().cumsum(1) - 1 for batch in (self.reference, self.batch)]
        self._drawn = self._draw() if self.how == "resample" else None

    def value(self, name: str, value: Tensor, axes: Sequence[Axis]) -> Tensor:
        """What stands for a value of the reference [R, ...] in the runs of the batch [B, ...]."""
        shape = [*self.batch.shape[:1], *value.shape[1:]]
        at = next(i for i, axis in enumerate(axes) if axis in POSITIONS)
        shape[at] = self.batch.shape[1]
        if Axis.KEY in axes:
            shape[axes.index(Axis.KEY)] = self.batch.shape[1]
        if self.how == "zero":
            return value.new_zeros(1).expand(shape)
        if Axis.KEY in axes:
            raise InputError(
                f"{name} by its {self.how}, but the keys of other texts are other tokens.",
                code="edit-mean-of-pattern",
                remedy="Ablate attn.ckpt_z instead, or the pattern with how='zero'.",
            )
        if self._drawn is not None:
            rows, columns = self._drawn
            return value[rows.to(value.device), columns.to(value.device)]
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        mask = self.reference.mask.to(value.device)
        if self.how == "mean_by_pos":
            return self._by_position(wide[mask]).to(value.dtype)
        return wide[mask].mean(0).to(value.dtype).expand(shape)

    def _by_position(self, tokens: Tensor) -> Tensor:
        """[B, P, ...]: the mean over the texts of the reference at each position, from values [N, ...] of tokens."""
        (theirs, own), mask = self._positions, self.reference.mask.cpu()
        self._require_long(int(own.max()), int(theirs.max()))
        at = theirs[mask].to(tokens.device)
        sums = tokens.new_zeros(int(theirs.max()) + 1, *tokens.shape[1:]).index_add(0, at, tokens)
        counts = at.bincount().reshape(-1, *[1] * (tokens.dim() - 1))
        return (sums / counts)[own.clamp(min=0).to(tokens.device)]

    def _require_long(self, position: int, last: int) -> None:
        """Refuse a reference without a text that is as long as an input."""
        if position > last:
            text = int((self._positions[1] == position).any(1).nonzero()[0])
            raise InputError(
                f"text {text} has a token {position}, and no text of the reference has.",
                code="reference-too-short",
                remedy="Give reference texts that are as long as the inputs.",
            )

    def _draw(self) -> tuple[Tensor, Tensor]:
        """For every column of the batch a text of the reference, drawn, and the column of the same position there."""
        random = torch.Generator().manual_seed(self.seed)
        lengths = self.reference.mask.sum(1).cpu()
        columns_of = [mask.nonzero().flatten() for mask in self.reference.mask.cpu()]
        rows, columns = (
            torch.zeros(self.batch.shape, dtype=torch.long, device="cpu"),
            torch.zeros(self.batch.shape, dtype=torch.long, device="cpu"),
        )
        for text, mask in enumerate(self.batch.mask.cpu()):
            for position, column in enumerate(mask.nonzero().flatten().tolist()):
                self._require_long(position, int(lengths.max()) - 1)
                long = (lengths > position).nonzero().flatten()
                row = int(long[torch.randint(len(long), (), generator=random, device="cpu")])
                rows[text, column], columns[text, column] = row, int(columns_of[row][position])
        return rows, columns
