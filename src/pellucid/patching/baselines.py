"""What changes of no meaning do: random directions, heads or neurons in the place of those that were chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.check import require_one_of, require_seed, require_whole
from pellucid.errors import InputError, shown
from pellucid.extras import need
from pellucid.metrics import Metric
from pellucid.names.aliases import Names
from pellucid.patching.ablation import Ablated, How
from pellucid.patching.cells import Cells, size_of
from pellucid.patching.measured_runs import UNMEASURED, Direction, Texts, until_interrupted
from pellucid.patching.paths import PathEnd, PathEnds, Paths, held_names
from pellucid.patching.reruns import Base, Rerun
from pellucid.patching.roles import Put, Roles
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.schema import Axis, Schema
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
    align: Roles | bool | None = None,
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
        InputError: As `sweep`; also if scores and patterns, which are no vectors, are asked for, or no heads or neurons
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
    pool = _pool(model.schema, cells.names, of)
    runs = pair.run(model, metric, pool, pool)
    changes = [cell.puts(runs.source) for cell in cells]
    about = {"checkpoint": ", ".join(cells.kinds), "direction": direction, **runs.about, "title": f"random {of}"}
    return _Random(runs.base, runs.source, pool, of, changes).measured(draws, seed, about, per_text=per_text)


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
    pool = _pool(model.schema, cells.names, of)
    with told(UNMEASURED):
        made = Ablated.of(model, batch, reference, pool, how, metric, seed=seed, kept=pool)
    changes = [cell.puts(made.instead) for cell in cells]
    about = {"checkpoint": ", ".join(cells.kinds), **made.about(f"random {of} ablated")}
    return _Random(made.run, made.instead, pool, of, changes).measured(draws, seed, about, per_text=per_text)


def path_baseline(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    *,
    senders: PathEnd | tuple[int, int] | str | Sequence[Any],
    receivers: PathEnd | Literal["logits"] | str | Sequence[Any],
    metric: Metric,
    through: Literal["mlps", "none"] = "mlps",
    over: Sequence[str] = (),
    of: Drawn = "directions",
    draws: int = 64,
    seed: int = 0,
    per_text: bool = False,
    direction: Direction = "denoise",
    align: Roles | bool | None = None,
) -> xarray.DataArray:
    """Measure what senders of no meaning tell the receivers of a path.

    Args:
        model, clean, corrupted, senders, receivers, metric, through, over, direction, align: Those of `path`.
        of, draws, seed, per_text: As for `baseline`; "heads" lets as many heads speak, drawn among those of every block
            that come before a receiver.

    Returns:
        [draw, batch] as `baseline` gives it.

    Raises:
        InputError: As `path` and `baseline`.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> drawn = pl.patching.path_baseline(
        ...     pl.load(), clean, corrupted, senders=(0, 2), receivers="blocks.3.attn.v[0]", of="heads", draws=8,
        ...     metric=pl.metrics.logit_difference(" ball", " cat"))
        >>> drawn.sizes
        Frozen({'draw': 8})
    """
    pair = Texts.of(model, clean, corrupted, direction, align)
    ends, held = PathEnds.of(model.schema, pair, senders, receivers, over), held_names(model.schema, through)
    pool = [name for name in _pool(model.schema, ends.sent_names, of) if ends.leads(name)]
    if not (going := ends.going()):
        ends.require_order(ends.sent_names)
    runs = pair.run(model, metric, pool, (*held, *pool))
    changes = [tuple(put for cell in cells for put in cell.puts(runs.source)) for cells in going]
    about = {"through": through, "direction": direction, **runs.about, "title": f"random {of} {ends.title}"}
    drawn = _Random(runs.base, runs.source, pool, of, changes, Paths(ends, runs, held))
    return drawn.measured(draws, seed, about, per_text=per_text)


def _pool(schema: Schema, names: Sequence[str], of: str) -> Sequence[str]:
    """The checkpoints at which something random is put: these, or of all blocks those among whose parts is drawn."""
    require_one_of("of", of, ("directions", "heads", "neurons"), code="baseline-of")
    if of == "directions":
        if squares := [name for name in names if Axis.KEY in schema[name].axes]:
            raise InputError(
                f"of='directions': {squares[0]} holds scores or patterns, which are no vectors of a space.",
                code="no-such-axis",
                remedy="Choose checkpoints whose last axis is d_model, d_head or d_mlp, or give of='heads'.",
            )
        return names
    kinds = {name.split(".", 2)[-1] for name in names}
    of_every_block = (name for name in schema.names if name.startswith("blocks.") and name.split(".", 2)[-1] in kinds)
    return list(dict.fromkeys((*names, *of_every_block)))


@dataclass(frozen=True)
class _Random:
    """Random changes of a base run."""

    base: Base  # which keeps the values of the pool
    source: Mapping[str, Tensor]  # what patches put there
    pool: Sequence[str]  # the checkpoints that are changed, or among whose parts is drawn
    of: str
    changes: Sequence[Sequence[Put]]  # those that random ones stand for
    paths: Paths | None = None  # if the changes are what senders say

    def measured(self, draws: int, seed: int, about: Mapping[str, Any], *, per_text: bool) -> xarray.DataArray:
        """The metric after each of so many changes."""
        draws, seed = require_whole("draws", draws, at_least=1), require_seed("seed", seed)
        random = torch.Generator().manual_seed(seed)
        with told(UNMEASURED):
            changing = [puts for puts in self.changes if any(map(self._changes, puts))]
        if not changing:
            kinds = dict.fromkeys(put.name for puts in self.changes for put in puts)
            raise InputError(
                f"what would be put at {shown(list(kinds))} is what the run has there, so that nothing would change.",
                code="nothing-to-normalize",
                remedy="Choose checkpoints or texts in which the two runs differ.",
            )
        chosen = [
            changing[number]
            for number in torch.randint(len(changing), (draws,), generator=random, device="cpu").tolist()
        ]
        found = np.full((draws, len(self.base.batch)), np.nan)
        at_once = self._at_once(changing)

        def runs() -> Iterator[tuple[int, Tensor]]:
            for first in range(0, draws, at_once):
                drawn = [tuple(self._drawn(puts, random)) for puts in chosen[first : first + at_once]]
                yield from ((first + number, value) for number, value in self._runs(drawn))

        until_interrupted(runs(), draws, found.__setitem__)
        dims = ("draw", str(Axis.BATCH)) if per_text else ("draw",)
        array = need("xarray", "pellucid.patching").DataArray
        attrs = {**about, "of": self.of, "seed": seed}
        return array(found if per_text else found.mean(-1), dims=dims, name="baseline", attrs=attrs)

    def _at_once(self, changing: Sequence[Sequence[Put]]) -> int:
        """How many changes are made at a time: each random direction is a value of its own in memory."""
        each = max(sum(self.base.values[put.name].nbytes for put in puts) for puts in changing)
        return max(1, self.base.sharing.max_bytes // each)

    def _runs(self, drawn: Sequence[tuple[Put, ...]]) -> Iterator[tuple[int, Tensor]]:
        if self.paths is None:
            return self.base.differing([Rerun(puts) for puts in drawn])
        return self.paths.measured([self.paths.first(puts) for puts in drawn])

    def _drawn(self, puts: Sequence[Put], random: torch.Generator) -> Iterator[Put]:
        """What stands for a change: other directions, or as many parts of the pool."""
        if self.of == "directions":
            yield from (self._in_a_random_direction(put, random) for put in puts)
            return
        axis, schema = self.of.removesuffix("s"), self.base.model.schema
        pool = [(name, i) for name in self.pool for i in range(size_of(schema, name, axis))]
        parts = [(put.heads if axis == "head" else put.neurons) for put in puts]
        counts = [size_of(schema, put.name, axis) if some is None else len(some)
                  for put, some in zip(puts, parts, strict=True)]  # fmt: skip
        if sum(counts) >= len(pool):
            raise InputError(
                f"of={self.of!r}: a change takes {sum(counts)} {self.of}, which are all {len(pool)} that there are.",
                code="baseline-of",
                remedy=f"Take fewer {self.of} at once, or go over 'layer' or {axis!r}, so that others are left.",
            )
        order = iter(torch.randperm(len(pool), generator=random, device="cpu").tolist())
        for put, count in zip(puts, counts, strict=True):
            entries: dict[str, list[int]] = {}
            for number in islice(order, count):
                name, entry = pool[number]
                entries.setdefault(name, []).append(entry)
            for name, some in entries.items():
                yield replace(put, name=name, source=self.source[name], **{self.of: some})

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
        drawn = torch.randn(difference.shape, generator=random, dtype=torch.float64, device="cpu").to(difference.device)
        drawn[difference == 0] = 0.0  # the direction lies among the entries that the patch changes
        lengths = [torch.linalg.vector_norm(one, dim=-1, keepdim=True) for one in (difference, drawn)]
        scaled = drawn * (lengths[0] / lengths[1].clamp(min=torch.finfo(torch.float64).tiny))
        columns = None if put.columns is None else put.columns.in_place
        return replace(put, source=(base.double() + scaled).to(base.dtype), columns=columns)
