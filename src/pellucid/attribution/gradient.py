"""What gradients say that patching would do: one or a few backward passes in the place of many runs.

The effect of putting b in the place of a value a is estimated by the gradient of the metric at a, times b - a. All
values of a run get their estimates from one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pellucid.attribution.rules import HELD, Relevance
from pellucid.check import require_one_of, require_seed, require_whole
from pellucid.errors import InputError, NumericsError
from pellucid.metrics import Metric, measured
from pellucid.names.aliases import Names
from pellucid.numerics.dispatch import recorded
from pellucid.patching.cells import Cells, SweepCell
from pellucid.patching.measured_runs import Direction, Measured, Texts, patches, require_room, results
from pellucid.patching.reruns import Base, Rerun
from pellucid.patching.roles import Put, Roles
from pellucid.run.activations import ActivationCkpts
from pellucid.run.edit import Edit
from pellucid.run.interrupts import told
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.run.taps import warn_of_dropout
from pellucid.schema import NEURONS, POSITIONS, Axis
from pellucid.text.batch import Batch, Inputs

if TYPE_CHECKING:
    import xarray

Rules = Literal["plain", "atp", "relp"]
QUERY, KEY = "attn.ckpt_q", "attn.ckpt_k"


@told("gradient: interrupted, nothing was measured")
@recorded()
def gradient(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    names: Names,
    *,
    over: Sequence[str],
    metric: Metric,
    steps: int = 1,
    along: Literal["node", "inputs"] = "node",
    rules: Rules = "plain",
    direction: Direction = "denoise",
    per_text: bool = False,
    pos: Index = None,
    heads: Index = None,
    neurons: Index = None,
    align: Roles | bool | None = None,
    check: int = 0,
    seed: int = 0,
) -> xarray.DataArray:
    """Gradients a sweep by gradients: attribution patching, with more steps integrated gradients.

    With one step it is (source - base) . dm/dvalue in the base run (Nanda 2023; Syed et al. 2023, arXiv:2310.10348).
    With more, the gradient is averaged over points between the two runs, their left ends k / steps with k from 0
    (Sundararajan et al. 2017, arXiv:1703.01365): along "node" the value itself is moved, a pass for each block and
    step; along "inputs" the input embeddings are, a pass for each step (EAP-IG; Hanna et al. 2024, arXiv:2403.17806).

    Args:
        model: What runs.
        clean, corrupted, names, over, metric, direction, per_text, pos, heads, neurons, align: Those of
            `pellucid.patching.sweep`. The metric must be differentiable.
        steps: Points at which the gradient is taken.
        along: What is moved between them, "node" or "inputs".
        rules: "plain"; "atp" lets queries and keys go through the softmax, which saturates, instead of through its
            gradient: (A(q') - A) . dm/dA (Kramár et al. 2024, arXiv:2403.00745, equation 7); "relp" goes back through
            norms, activation functions and attention by the rules of `pellucid.attribution.rules`, which hold constant
            what is not linear (Jafari et al. 2025, arXiv:2508.21258).
        check: How many cells to patch in fact, drawn at random, so that the estimate can state its error.
        seed: Of that draw.

    Returns:
        An estimate of the sweep minus the metric of the base run: the same axes, the same sign. Attributes: `clean` and
        `corrupted`, the metric of the two plain runs; with `check`, `check_true` and `check_estimate`, the effects of
        the cells that were patched, `check_correlation` between them (Pearson), and `check_error`, the root of the mean
        square of their difference.

    Raises:
        InputError: As for `sweep`; also for "atp" with several steps, or for "relp" of queries, keys, scores, patterns
            or scaled values, which it holds constant.
        NumericsError: If no gradient goes through the metric.

    Example:
        >>> import pellucid as pl
        >>> clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
        >>> metric = pl.metrics.logit_difference(" ball", " cat")
        >>> estimate = pl.attribution.gradient(
        ...     pl.load(), clean, corrupted, "attn.ckpt_z", over=("layer", "head"), metric=metric, check=16)
        >>> estimate.sizes, estimate.attrs["check_correlation"] > 0.9
        (Frozen({'layer': 4, 'head': 4}), True)
    """
    steps = require_whole("gradient: steps", steps, at_least=1)
    check, seed = require_whole("gradient: check", check), require_seed("gradient: seed", seed)
    pair = Texts.of(model, clean, corrupted, direction, align)
    cells = pair.cells(model.schema, names, over, Region(pos, heads, neurons))
    _require_choices(along, rules, steps, cells.names)
    estimate = Gradients(model, metric, pair, cells, rules, along)
    found = estimate.array(estimate.through_softmax() if rules == "atp" else estimate.products(steps, along))
    title = f"{', '.join(cells.kinds)}, {pair.taken} into {pair.into}, by gradients"
    about = {"checkpoint": ", ".join(cells.kinds), "direction": direction, "steps": steps, "along": along,
             "rules": rules, **estimate.about, "title": title, "unchanged": 0.0}  # fmt: skip
    if check:
        about |= _checked(estimate.base, cells, estimate.source, found, check, seed)
    unchanged = np.zeros(found.shape[-1])
    return Measured(cells, found, ~np.isnan(found), unchanged).labelled("gradient", about, per_text=per_text)


class Gradients:
    """The estimates of every cell, from one run of the source and one of the base with its gradient.

    Attributes:
        source: The source's values.
        values: The base run's.
        gradients: dm/dvalue of each of them in the base run.
        about: What an array of these estimates says, but for its title.
        scored: Of queries and keys that go through the softmax: the queries, keys and pattern of their block.
    """

    def __init__(
        self, model: CkptedTransformer, metric: Metric, pair: Texts, cells: Cells, rules: Rules = "plain",
        along: str = "node",
    ) -> None:  # fmt: skip
        self.model, self.metric, self.batch, self.cells, self.rules = model, metric, pair.base, cells, rules
        self.axes, self._base_is = model.schema.axes, f"the {pair.into} run"
        self._differences: dict[str, Tensor] = {}
        names = tuple(dict.fromkeys((*cells.names, *(("ckpt_embed",) if along == "inputs" else ()))))
        asked = [name for name in cells.names if rules == "atp" and name.endswith((QUERY, KEY))]
        self.scored = {name: tuple(f"{name.rpartition('.')[0]}.ckpt_{one}" for one in ("q", "k", "pattern"))
                       for name in asked}  # fmt: skip
        watched = list(dict.fromkeys((*names, *(one for three in self.scored.values() for one in three))))
        self._room = require_room(model, pair.base, pair.source, watched, metric, None)
        warn_of_dropout(model, "gradient")
        of_source = self._run_source(pair, watched, names)
        logits, values = self._run(watched, ())
        of_base = measured(metric, logits, pair.base, of=self._base_is)
        self.about = pair.about(model, metric, of_base, of_source)
        self.gradients = self._back(logits, values)
        self.values = {name: value.detach() for name, value in values.items()}

    @cached_property
    def base(self) -> Base:
        """The base run again, from which others differ."""
        return Base(self.model, self.batch, self.metric, of=self._base_is, max_bytes=self._room)

    def array(self, found: Mapping[tuple[int, ...], Tensor]) -> np.ndarray[Any, Any]:
        """[*cells.shape, B] of the estimates [B] of each cell; NaN where there is none, or a text has no token."""
        out = np.full((*self.cells.shape, len(self.batch)), np.nan)
        for cell in self.cells:
            rows = slice(None) if cell.columns is None else cell.columns.rows
            out[cell.at][rows] = found[cell.at].double().cpu().numpy()[rows]
        return out

    def products(self, steps: int, along: str) -> dict[tuple[int, ...], Tensor]:
        """Gradient times difference, summed over what each cell would patch."""
        together = {} if all(len(c.names) > 1 for c in self.cells) else self._gradients(self.cells.names, steps, along)
        return {
            cell.at: self._product(cell, together if len(cell.names) == 1 else self._cut(cell, steps, along))
            for cell in self.cells
        }

    def _product(self, cell: SweepCell, gradients: Mapping[str, Tensor]) -> Tensor:
        each = [_summed(gradients[name] * self._difference(name), self.axes[name], cell) for name in cell.names]
        return torch.stack(each).sum(0)

    def through_softmax(self) -> dict[tuple[int, ...], Tensor]:
        """The same, but queries and keys by the change of the pattern that they make."""
        plain = self.products(1, "node")
        for name, (query, key, pattern) in self.scored.items():
            cells = [cell for cell in self.cells if name in cell.names]
            # The pattern is made of the base's own queries and keys, put there: those of another run would differ by
            # rounding, and a patch of equal values would seem to change it.
            own = tuple(Put(one, self.values[one]) for one in (query, key))
            trials = [Rerun((*own, Put(name, self.source[name], c.columns, c.heads, c.neurons)), whole=True)
                      for c in cells]  # fmt: skip
            for number, values in self.base.captured(trials, [pattern]):
                change = ((values[pattern] - self.values[pattern]) * self.gradients[pattern]).flatten(1).sum(1)
                cell = cells[number]
                plain[cell.at] = change if len(cell.names) == 1 else plain[cell.at] + change
        return plain

    def _difference(self, name: str) -> Tensor:
        """Source - base where the sweep patches, else 0."""
        if name not in self._differences:
            patched = self.values[name].clone()
            Put(name, self.source[name], self.cells.everywhere).write(patched, self.axes[name], 0)
            self._differences[name] = patched - self.values[name]
        return self._differences[name]

    def _gradients(self, names: Sequence[str], steps: int, along: str) -> dict[str, Tensor]:
        """dm/dvalue of each of these checkpoints by itself, averaged over the steps."""
        if along == "inputs":
            return self._averaged(names, steps, lambda share: self._moved("ckpt_embed", share))
        if steps == 1:
            return self._at(names, ())
        each = (self._averaged([name], steps, lambda share, name=name: self._moved(name, share)) for name in names)
        return {name: gradient for found in each for name, gradient in found.items()}

    def _cut(self, cell: SweepCell, steps: int, along: str) -> dict[str, Tensor]:
        """dm/dvalue of the parts of a cell of several checkpoints, which are put there together.

        What one of them does to another does not count: the other is replaced, too.
        """

        def edits(share: float) -> list[Edit]:
            inputs = self._moved("ckpt_embed", share) if along == "inputs" else []
            return [*inputs, *(self._constant(name, cell, 0.0 if inputs else share) for name in cell.names)]

        return self._averaged(cell.names, steps, edits)

    def _constant(self, name: str, cell: SweepCell, share: float) -> Edit:
        """An edit that moves a part of a value and lets no gradient through it."""
        part = torch.zeros_like(self.values[name])
        Put(name, torch.ones_like(part), cell.columns, cell.heads, cell.neurons).write(part, self.axes[name], 0)
        moved = share * self._difference(name)
        return Edit.apply(name, lambda value: torch.where(part.bool(), value.detach() + moved, value))

    def _moved(self, name: str, share: float) -> list[Edit]:
        """Edits that move a value a share of the way to the source's."""
        return [Edit.add(name, share * self._difference(name))] if share else []

    def _averaged(self, names: Sequence[str], steps: int, edits: Callable[[float], list[Edit]]) -> dict[str, Tensor]:
        """The gradients in runs with the edits of each share k / steps, averaged."""
        found = [self._at(names, edits(k / steps)) for k in range(steps)]
        return {name: torch.stack([each[name] for each in found]).mean(0) for name in names}

    def _at(self, names: Sequence[str], edits: Sequence[Edit]) -> dict[str, Tensor]:
        """dm/dvalue of some checkpoints in one run; without edits it is the base run, which was made."""
        return self._back(*self._run(names, edits)) if edits else {name: self.gradients[name] for name in names}

    def _run_source(self, pair: Texts, watched: Sequence[str], kept: Sequence[str]) -> Tensor:
        """Keep the source's values, and return its metric [B]; its graph goes when this returns.

        Layers that are watched run explicitly on the path of the gradient alone. So the source takes it, too: where
        the texts are alike, source - base is 0, not rounding.
        """
        logits, ckpts = gradient_run(self.model, pair.source, watched)
        self.source = {name: ckpts[name].detach() for name in kept}
        return measured(self.metric, logits, pair.source, of=f"the {pair.taken} run")

    def _run(self, names: Sequence[str], edits: Sequence[Edit]) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits of a run and the values of some checkpoints, on the path of the gradient."""
        relevance = Relevance(self.model) if self.rules == "relp" else None
        ruled = [] if relevance is None else relevance.edits(names)
        logits, ckpts = gradient_run(self.model, self.batch, names, [*edits, *ruled])
        kept: Mapping[str, Tensor] = ckpts if relevance is None else relevance.seen
        return logits, {name: kept[name] for name in names}

    def _back(self, logits: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """dm/dvalue of the values of a run; 0 for one that the metric does not depend on."""
        metric = differentiable(self.metric, logits, self.batch).sum()
        found = torch.autograd.grad(metric, list(values.values()), materialize_grads=True)
        return dict(zip(values, found, strict=True))


def gradient_run(
    model: CkptedTransformer, batch: Batch, names: Sequence[str], edits: Sequence[Edit] = ()
) -> tuple[Tensor, ActivationCkpts]:
    """The logits of a run and what was asked for, on the path of the gradient."""
    logits, ckpts = model.run_with_ckpts(batch, names=list(names), edits=edits, grads=True)
    assert logits is not None, "the run was not stopped"
    return logits, ckpts


def differentiable(metric: Metric, logits: Tensor, batch: Batch) -> Tensor:
    """The metric [B] of a run, on the path of its gradient."""
    given = metric(logits, batch)
    if not given.requires_grad:
        raise NumericsError(
            "metric: its result has no gradient.",
            code="metric-without-gradient",
            remedy="Return a tensor that is computed from the logits, without .detach(), argmax or numpy.",
        )
    return given


def _summed(value: Tensor, axes: Sequence[Axis], cell: SweepCell) -> Tensor:
    """[B]: the sum of the part of a value [B, ...] that a cell patches."""
    for kinds, entries in (((Axis.HEAD,), cell.heads), (NEURONS, cell.neurons)):
        if entries is not None:
            axis = next(i for i, a in enumerate(axes) if a in kinds)
            value = value.index_select(axis, torch.tensor(entries, device=value.device))
    if cell.columns is None:
        return value.flatten(1).sum(1)
    axis = next(i for i, a in enumerate(axes) if a in POSITIONS)
    taken = value.movedim(axis, 1)[cell.columns.rows, cell.columns.into].flatten(1).sum(1)
    return value.new_zeros(len(value)).index_add(0, cell.columns.rows.to(value.device), taken)


def _require_choices(along: str, rules: str, steps: int, names: Sequence[str]) -> None:
    remedy = "Give along='node' to move each value by itself, 'inputs' to move the input embeddings."
    require_one_of("gradient: along", along, ("node", "inputs"), code="gradient-along", remedy=remedy)
    remedy = (
        "Give rules='plain', 'atp' to take queries and keys through the softmax, or 'relp' to hold constant what is "
        "not linear."
    )
    require_one_of("gradient: rules", rules, ("plain", "atp", "relp"), code="gradient-rules", remedy=remedy)
    if rules == "atp" and steps > 1:
        raise InputError(
            f"gradient: rules='atp' with steps={steps}, which is defined for one.",
            code="gradient-rules",
            remedy="Leave steps out, or give rules='plain'.",
        )
    held = [name for name in names if name.endswith(HELD)]
    if rules == "relp" and held:
        raise InputError(
            f"gradient: rules='relp' holds patterns and the divisors of norms constant, so {held[0]!r} has no share.",
            code="gradient-rules",
            remedy="Give rules='plain', or rules='atp' for queries and keys.",
        )


def _checked(
    base: Base, cells: Cells, source: Mapping[str, Tensor], found: np.ndarray[Any, Any], count: int, seed: int
) -> dict[str, Any]:
    """How the estimates stand to the effects of patches that are made in fact."""
    every = patches(cells, source)
    drawn = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed), device="cpu")[:count].tolist()
    todo = [every[number] for number in drawn]
    true = results(base, cells, todo)
    plain = base.plain.numpy()
    pairs = []
    for cell, _ in todo:
        rows = true.counted[cell.at]
        pairs.append(((true.values[cell.at] - plain)[rows].mean(), found[cell.at][rows].mean()))
    return agreement(*zip(*pairs, strict=True))


def agreement(effects: Sequence[float], estimates: Sequence[float]) -> dict[str, Any]:
    """True effects and their estimates, the correlation between them, and the root of the mean square difference."""
    true, found = np.array(effects), np.array(estimates)
    spread = len(true) > 1 and true.std() > 0 and found.std() > 0
    return {
        "check_true": true.tolist(),
        "check_estimate": found.tolist(),
        "check_correlation": float(np.corrcoef(true, found)[0, 1]) if spread else float("nan"),
        "check_error": float(np.sqrt(((true - found) ** 2).mean())),
    }
