"""What changes of no meaning do: random directions, heads or neurons in the place of those that were chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.aliases import Names
from pellucid.axes import Axis
from pellucid.check import require_one_of, require_whole
from pellucid.errors import InputError, shown, warn
from pellucid.extras import need
from pellucid.interrupts import told
from pellucid.metrics import Metric
from pellucid.patching.ablation import Ablated, How
from pellucid.patching.cells import Cells, SweepCell
from pellucid.patching.reruns import Base, Rerun
from pellucid.patching.roles import Put, Roles
from pellucid.patching.sweeps import UNMEASURED, Direction, Texts, patches
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.text.batch import Inputs

if TYPE_CHECKING:
    import xarray

Drawn = Literal["directions", "heads", "neurons"]


def baseline(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    of: Drawn = "directions",
    draws: int = 64,
    seed: int = 0,
    per_text: bool = False,
    direction: Direction = "denoise",
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | None = None,
) -> xarray.DataArray:
    """Measure what changes of no meaning do, which are as large as the patches of a sweep.

    A cell of the sweep in which the two runs differ is drawn, and something random stands for it. What a patch does
    beyond these, its direction does, or that it is these heads and no others.

    Args:
        model, clean, corrupted, names, over, metric, direction, pos, heads, neurons, align: Those of the sweep.
        of: "directions": each vector of the base run gets a random direction added to it, of the length of the
            difference that the patch makes. "heads", "neurons": as many heads or neurons as the cell has are patched,
            drawn among those of every block.
        draws: How many changes to make.
        seed: Of the draws.
        per_text: Keep one number for each text, along "batch", instead of the mean over texts.

    Returns:
        [draw, batch] in the metric's unit, "batch" with `per_text`, with the attributes of `sweep`. Control-C ends it
        with a warning; what was not measured then is NaN.

    Raises:
        InputError: As `sweep`; directions of scores and patterns, which are no vectors; heads or neurons of which none
            are left to draw.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> drawn = pl.patching.baseline(
        ...     pl.load(), clean, corrupted, "resid_pre", over=("layer", "pos"), draws=8,
        ...     metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> drawn.sizes
        Frozen({'draw': 8})
    """
    pair = Texts.of(model, clean, corrupted, direction, align)
    cells = pair.cells(model.schema, names, over, Region(pos, heads, neurons))
    needed = _needed(cells, model, of, names)
    runs = pair.run(model, metric, needed, needed)
    about = {"checkpoint": ", ".join(cells.kinds), "direction": direction, **runs.about(f"random {of}")}
    return _Random(runs.base, cells, runs.source, of).measured(draws, seed, about, per_text=per_text)


def ablation_baseline(
    model: CkptedTransformer,
    inputs: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    how: How,
    metric: Metric,
    reference: Inputs | None = None,
    of: Drawn = "directions",
    draws: int = 64,
    seed: int = 0,
    per_text: bool = False,
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
) -> xarray.DataArray:
    """Measure what ablations of no meaning do, which are as large as those of `ablate`.

    Args:
        model, inputs, names, over, how, metric, reference, pos, heads, neurons: Those of `ablate`.
        of, draws, seed, per_text: As for `baseline`; "heads" ablates as many heads, drawn among those of every block.

    Returns:
        [draw, batch] in the metric's unit, "batch" with `per_text`. Attributes: `plain`, the metric of the run as it
        is.

    Raises:
        InputError: As `ablate` and `baseline`.

    Example:
        >>> import pellucid as pl
        >>> drawn = pl.patching.ablation_baseline(
        ...     pl.load(), "Once upon a", "blocks.0.attn.ckpt_z", over=(), how="zero", heads=[1, 2], of="heads",
        ...     draws=8, metric=pl.metrics.logprob(" time"))
        >>> drawn.sizes
        Frozen({'draw': 8})
    """
    batch = model.tokenize(inputs)
    cells = Cells(model.schema, names, over, batch, batch, Region(pos, heads, neurons))
    needed = _needed(cells, model, of, names)
    with told(UNMEASURED):
        made = Ablated.of(model, batch, reference, needed, how, metric, seed=seed, kept=needed)
    about = {"checkpoint": ", ".join(cells.kinds), **made.about(f"random {of} ablated")}
    return _Random(made.run, cells, made.instead, of).measured(draws, seed, about, per_text=per_text)


def _needed(cells: Cells, model: CkptedTransformer, of: str, names: Any) -> tuple[str, ...]:
    """The checkpoints that random changes are made at."""
    require_one_of("baseline: of", of, ("directions", "heads", "neurons"), code="baseline-of")
    schema = model.schema
    if of == "directions":
        if any(Axis.KEY in schema[name].axes for name in cells.names):
            raise InputError(
                f"baseline: {shown(names)} holds scores or patterns, which are no vectors of a space.",
                code="no-such-axis",
                remedy="Choose checkpoints whose last axis is d_model, d_head or d_mlp, or give of='heads'.",
            )
        return cells.names
    kinds = {name.split(".", 2)[-1] for name in cells.names}
    of_every_block = (name for name in schema.names if name.startswith("blocks.") and name.split(".", 2)[-1] in kinds)
    return tuple(dict.fromkeys((*cells.names, *of_every_block)))


@dataclass(frozen=True)
class _Random:
    """Random changes of a base run."""

    base: Base  # which keeps the values of the checkpoints that are changed
    cells: Cells
    source: Mapping[str, Tensor]  # what patches put there
    of: str

    def measured(self, draws: int, seed: int, about: Mapping[str, Any], *, per_text: bool) -> xarray.DataArray:
        """The metric after each of so many changes."""
        draws = require_whole("baseline: draws", draws, at_least=1)
        random = torch.Generator().manual_seed(seed)
        every = patches(self.cells, self.source)
        changing = [pair for pair in every if any(self._changes(put) for put in pair[1].puts)]
        if not changing:
            raise InputError(
                f"baseline: the two runs have the same {', '.join(self.cells.kinds)}, so that no patch changes "
                "anything.",
                code="nothing-to-normalize",
                remedy="Choose checkpoints or texts in which the two runs differ.",
            )
        chosen = [changing[number] for number in torch.randint(len(changing), (draws,), generator=random).tolist()]
        trials = [Rerun(tuple(self._drawn(cell, trial, random))) for cell, trial in chosen]
        found = np.full((draws, len(self.base.batch)), np.nan)
        try:
            for number, value in self.base.differing(trials):
                found[number] = value.numpy()
        except KeyboardInterrupt:
            done = int((~np.isnan(found[:, 0])).sum())
            warn(f"interrupted: {done} of {draws} runs were measured, the others are NaN")
        dims = ("draw", str(Axis.BATCH)) if per_text else ("draw",)
        array = need("xarray", "pellucid.patching").DataArray
        attrs = {**about, "of": self.of, "seed": seed}
        return array(found if per_text else found.mean(-1), dims=dims, name="baseline", attrs=attrs)

    def _drawn(self, cell: SweepCell, trial: Rerun, random: torch.Generator) -> Iterator[Put]:
        if self.of == "directions":
            yield from (self._in_a_random_direction(put, random) for put in trial.puts)
            return
        axis = self.of.removesuffix("s")
        chosen = cell.heads if axis == "head" else cell.neurons
        count = sum(self.cells.size(name, axis) if chosen is None else len(chosen) for name in cell.names)
        pool = [(name, i) for name in self.base.values for i in range(self.cells.size(name, axis))]
        if count >= len(pool):
            raise InputError(
                f"baseline: a patch takes {count} {self.of}, which are all {len(pool)} that there are.",
                code="baseline-of",
                remedy=f"Limit the patch by {self.of}=, or go over 'layer' or {axis!r}, so that others are left.",
            )
        drawn: dict[str, list[int]] = {}
        for number in torch.randperm(len(pool), generator=random)[:count].tolist():
            name, entry = pool[number]
            drawn.setdefault(name, []).append(entry)
        for name, some in drawn.items():
            part = (some, cell.neurons) if axis == "head" else (cell.heads, some)
            yield Put(name, self.source[name], cell.columns, *part)

    def _changes(self, put: Put) -> bool:
        """Whether a patch puts other numbers there than the base run has."""
        return not torch.equal(self._patched(put), self.base.values[put.name])

    def _patched(self, put: Put) -> Tensor:
        patched = self.base.values[put.name].clone()
        put.write(patched, self.base.model.schema[put.name].axes, 0)
        return patched

    def _in_a_random_direction(self, put: Put, random: torch.Generator) -> Put:
        """The patch of the same place whose difference from the base is as long and has another direction."""
        base = self.base.values[put.name]
        difference = (self._patched(put) - base).double()
        drawn = torch.randn(difference.shape, generator=random, dtype=torch.float64).to(difference.device)
        drawn[difference == 0] = 0.0  # the direction lies among the entries that the patch changes
        lengths = [torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (difference, drawn)]
        scaled = drawn * (lengths[0] / lengths[1].clamp(min=torch.finfo(torch.float64).tiny))
        columns = None if put.columns is None else put.columns.in_place
        return Put(put.name, (base.double() + scaled).to(base.dtype), columns)
