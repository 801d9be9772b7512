"""One comparison of a reference with another program, from the alignment of parameters to the verdict."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pellucid.model import CkptedTransformer
from pellucid.parameters import LiveView
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment, Match
from pellucid.prove.buffers import known_buffers
from pellucid.prove.causes import Cause, Evidence, confirmed_cause, head_of_its_own
from pellucid.prove.copies import double_copy, own_parameters, parameter_dtypes, working_copy
from pellucid.prove.differences import BEYOND_ROUNDING, not_alike, relative_error, shown_part, size_of
from pellucid.prove.outputs import NoLogitsError
from pellucid.prove.points import LOGITS, ckpt_of, in_order, sites_of
from pellucid.prove.program import Conditions, Glass, Program, Runnable
from pellucid.prove.recipe import ingredients_of
from pellucid.prove.report import CheckpointRow, ComparisonReport, Divergence, describe_difference
from pellucid.prove.runs import Runs, rows_of, same_bits
from pellucid.prove.sensitivity import Sensitivity
from pellucid.prove.units import units_of
from pellucid.prove.verdict import is_rounding, notes_on, rows_of_parameters, verdict_of

DOUBLE = Conditions(double=True)

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of the work that is behind."""


def silently(what: str, share: float) -> None:
    """Progress that nobody looks at."""


@dataclass
class Comparison:
    """One comparison.

    Args:
        reference: Made of glass.
        other: Any module.
        ids: [B, P], what to run.
        swapped: Whether the reference is the caller's second side.
        tensors: What is aligned in the place of the other's state dict.
        progress: Told of each step.
    """

    reference: CkptedTransformer
    other: nn.Module
    ids: Tensor
    swapped: bool = False
    tensors: Mapping[str, Tensor] | None = None
    progress: Progress = silently
    notes: list[str] = field(default_factory=list)
    mixed: bool = False
    others: dict[str, Tensor] = field(default_factory=dict)
    seen: tuple[int, int] = (0, 0)
    blind: bool = False

    def report(self) -> ComparisonReport:
        """Align, run, judge."""
        self.progress("aligning parameters", 0.0)
        alignment = self._align()  # in the dtypes that they have
        first = first_changed(alignment, units_of(self.reference), self.others)
        self._to_common_ground()
        self.notes += notes_on(alignment)
        changed = [match for match in alignment.matches if not match.comparison.bit_equal]
        self.progress("running both", 0.3)
        try:
            single = self._runs(self.reference, alignment, Conditions())
        except NoLogitsError as error:
            self.notes.append(f"nothing could be judged: {error}")
            return self._finished(alignment, [], first, explained=False)
        except Exception as error:  # whatever a foreign forward raises
            self.notes.append(f"the other model did not run on ids {list(self.ids.shape)}: {_words(error)}")
            return self._finished(alignment, [], first, explained=False)
        return self._judge(alignment, single, changed, first)

    def _to_common_ground(self) -> None:
        """Both sides as copies in the coarsest dtype among their parameters, if there are several."""
        dtypes = parameter_dtypes(self.reference) | parameter_dtypes(self.other)
        self.mixed = len(dtypes) > 1
        ground = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps) if self.mixed else None
        if self.mixed:
            named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            coarse = str(ground).removeprefix("torch.")
            self.notes.append(f"the dtypes are {named}: both were rounded to {coarse} first, and can be no more than "
                              "equivalent")  # fmt: skip
        self.reference, self.other = working_copy(self.reference, ground), working_copy(self.other, ground)

    def _align(self) -> Alignment:
        config = self.reference.config
        others = self.tensors if self.tensors is not None else self.other.state_dict(keep_vars=True)
        buffers = (
            known_buffers(self.tensors, config)[0]
            if self.tensors is not None
            else set(others) - {name for name, _ in self.other.named_parameters(remove_duplicate=False)}
        )
        self.others = dict(others)
        return align(units_of(self.reference), others, config.n_layer, config.n_head, buffers)

    def _runs(self, reference: CkptedTransformer, alignment: Alignment, conditions: Conditions) -> Runs:
        head = reference.embed.W_E.detach()
        other = double_copy(self.other) if conditions.double else self.other
        expected = Glass(reference).run(self.ids, None, conditions)
        program: Runnable
        if isinstance(other, CkptedTransformer):
            program = Glass(other)
        else:
            program = Program(other, sites_of(alignment, other), head, reference.config.n_head)
        return Runs(program, expected, self.ids, reference.config.n_layer, conditions)

    def _judge(
        self, alignment: Alignment, single: Runs, changed: list[Match], first: Divergence | None
    ) -> ComparisonReport:
        """Tell rounding from error by float64, find the first difference, and report."""
        self.seen = single.free[LOGITS].size(1), single.expected[LOGITS].size(1)
        self.progress("running both in float64", 0.5)
        try:
            double = self._runs(self.reference, alignment, DOUBLE)
            point = double.first_wrong()
        except Exception as error:  # whatever a foreign forward raises in a dtype that it was not written for
            self.notes.append(f"rounding could not be told from error: in float64 {_words(error)}")
            return self._finished(alignment, rows_of(single, None), first, explained=False)
        rows = rows_of(single, double)
        self.progress("looking for the cause", 0.8)
        self.blind = not bool((single.expected[LOGITS].isfinite() | double.expected[LOGITS].isfinite()).any())
        self.notes += ["no logit of the reference is finite, so that equal ones show nothing"] if self.blind else []
        self.notes += [f"{p} holds something else than {ckpt_of(p, double.n_layer)}" for p in double.dropped]
        self.notes += [*_remarks(double.program), *_positions_note(single)]
        if first is not None:
            first = self._of_parameters(alignment, changed, double, first)
            return self._finished(alignment, rows, first, explained=False)
        odd = None if self.mixed else single.first_not_alike(double.dropped)
        if odd is not None and (point is None or is_before(odd, point, double.n_layer)):
            return self._finished(alignment, rows, not_finite_at(single, odd, wrong=point is not None), explained=False)
        if point is None and not double.undecided:
            return self._finished(alignment, rows, None, explained=is_rounding(rows))
        cause = self._cause(self.reference, alignment, double, point or double.undecided[0])
        if cause is not None and cause.harmless:
            self.notes.append(f"{cause.words}: {cause.extent}, so that this is rounding")
            return self._finished(alignment, rows, None, explained=True)
        if point is None:
            where = [f"{p} ({ckpt_of(p, double.n_layer)})" for p in double.undecided]
            self.notes.append(f"nothing here depends on {', '.join(where)}, which differs: try a longer text")
            return self._finished(alignment, rows, None, explained=False)
        if all(row.bit_equal for row in rows) and alignment.complete:
            self.notes.append(f"equal to the bit, but in float64 they differ: {divergence_at(double, point, cause)}")
            return self._finished(alignment, rows, None, explained=True)
        return self._finished(alignment, rows, divergence_at(double, point, cause), explained=False)

    def _cause(self, reference: CkptedTransformer, alignment: Alignment, double: Runs, point: str) -> Cause | None:
        again = double.program.run(self.ids, None, Conditions(double=True, seed=1))
        if not same_bits(again[LOGITS], double.free[LOGITS]):
            self.notes.append("the other model draws random numbers: two runs of it differ")
            calm = Conditions(double=True, dropout=False)
            if Runs(double.program, double.expected, self.ids, double.n_layer, calm).first_wrong() is None:
                return Cause("dropout is active although the model evaluates", "without it, the logits agree too")
            return None
        return confirmed_cause(self._evidence(reference, alignment, double, _carried_on(point)))

    def _evidence(self, reference: CkptedTransformer, alignment: Alignment, double: Runs, point: str) -> Evidence:
        points = double.points()
        before = points[: points.index(point)] if point in points else points
        agreed = tuple(p for p in before if not double.is_wrong(double.free, p))
        return Evidence(
            ingredients_of(reference), self.ids, double.expected, double.free, point, agreed, alignment, self.others
        )

    def _of_parameters(self, alignment: Alignment, changed: list[Match], double: Runs, first: Divergence) -> Divergence:
        """The first parameter that differs, and whether the programs are the same apart from the parameters."""
        evidence = self._evidence(self.reference, alignment, double, LOGITS)
        if (head := head_of_its_own(evidence, changed)) is not None:
            return replace(first, cause=f"{head.words}: {head.extent}")
        adopted = with_their_values(self.reference, changed, self.others)
        expected = Glass(adopted).run(self.ids, None, DOUBLE)
        runs = Runs(double.program, expected, self.ids, double.n_layer, DOUBLE)
        point = runs.first_wrong()
        if point is None:
            self.notes.append("with the other model's values in the reference, everything agrees")
        else:
            cause = self._cause(adopted, alignment, runs, point)
            self.notes.append(f"with the other model's values in the reference, they still differ at "
                              f"{divergence_at(runs, point, cause)}")  # fmt: skip
        return first

    def _finished(
        self, alignment: Alignment, rows: list[CheckpointRow], divergence: Divergence | None, *, explained: bool
    ) -> ComparisonReport:
        shown = {row.name for row in rows}
        exact = not self.mixed and self.seen[0] == self.seen[1]
        verdict = verdict_of(alignment, rows, divergence, may_be_identical=exact, rounding_explains=explained)
        return ComparisonReport(
            verdict=verdict if (rows and not self.blind) or divergence else "inconclusive",
            parameters=rows_of_parameters(alignment, swapped=self.swapped),
            checkpoints=tuple(rows),
            not_covered=tuple(name for name in self.reference.ckpt_names if name not in shown),
            first_divergence=divergence,
            alignment=alignment,
            notes=tuple(self.notes),
            logits_seen=self.seen,
            probe=Sensitivity(self.reference, self.other, self.ids, alignment if self.tensors is None else None),
        )


def first_changed(alignment: Alignment, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Divergence | None:
    """The first parameter that is not equal to the bit; of those that share its tensor, the ones that differ."""
    changed = next((match for match in alignment.matches if not match.comparison.bit_equal), None)
    if changed is None:
        return None
    undone = changed.transform.undo(others[changed.name].detach(), changed.group, changed.comparison.shape)
    differing = [
        unit
        for unit, part in changed.group.split(undone).items()
        if not same_bits(_of_head(units[unit], changed.group.head), part)
    ]
    head = "" if changed.group.head is None else f"[{changed.group.head}]"
    where = " + ".join(unit + head for unit in differing)
    return Divergence(where, "parameter", f"{changed.name} {describe_difference(changed.comparison)}")


def _of_head(unit: Tensor, head: int | None) -> Tensor:
    return unit if head is None else unit[head]


def divergence_at(runs: Runs, point: str, cause: Cause | None) -> Divergence:
    """What a report says of a point that differs."""
    name = ckpt_of(point, runs.n_layer)
    expected = runs.expected[name]
    given = runs.forced.get(point)
    if given is None or not runs.is_wrong(runs.forced, point):
        given = runs.free[point]
    expected = shown_part(expected, given)
    words = None if cause is None else f"{cause.words} ({cause.extent})"
    if given.shape != expected.shape:
        return Divergence(name, _what(name), f"shapes {list(expected.shape)} and {list(given.shape)}", words)
    error = relative_error(given, expected)
    detail = f"its own relative error in float64 is {error:.3g}, which is not rounding"
    gap = ~((given - expected).abs() <= BEYOND_ROUNDING * size_of(expected))
    return Divergence(name, _what(name), detail, words, *_places(name, gap))


def not_finite_at(runs: Runs, point: str, *, wrong: bool) -> Divergence:
    """What a report says of a point at which one side only is finite, in the program's own dtype.

    Args:
        runs: In that dtype.
        point: The first such point.
        wrong: Whether float64 shows an error, too, at a later point.
    """
    name = ckpt_of(point, runs.n_layer)
    given, expected = runs.free[point], shown_part(runs.expected[name], runs.free[point])
    odd = not_alike(given, expected)
    theirs, ours = _kind(given[odd]), _kind(expected.to(given.device)[odd])
    dtype = str(given.dtype).removeprefix("torch.")
    later = "" if wrong else "; in float64 both agree, so that the arithmetic leaves the range of its dtype"
    detail = f"{theirs} where the reference has {ours}, at {int(odd.sum())} of {odd.numel()} values in {dtype}{later}"
    return Divergence(name, _what(name), detail, None, *_places(name, odd))


def _kind(values: Tensor) -> str:
    kinds = {"NaN": values.isnan(), "infinity": values.isinf(), "finite numbers": values.isfinite()}
    return " and ".join(word for word, where in kinds.items() if bool(where.any()))


def is_before(first: str, second: str, n_layer: int) -> bool:
    """Whether a right program passes one point before another that is not of the same checkpoint."""
    order = in_order(iter((first, second)), n_layer)
    return order[0] == first and ckpt_of(first, n_layer) != ckpt_of(second, n_layer)


def _remarks(program: Runnable) -> tuple[str, ...]:
    return tuple(program.remarks) if isinstance(program, Program) else ()


def _positions_note(runs: Runs) -> list[str]:
    """What a program that leaves out positions leaves unseen."""
    given, expected = runs.free[LOGITS], runs.expected[LOGITS]
    shown, of = given.size(1), expected.size(1)
    if shown >= of:
        return []
    which = "one position, read as the last" if shown == 1 else f"{shown} positions, read as the first"
    return [f"the program gives the logits of {which}: of {of} positions it shows no more"]


def _places(name: str, gap: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions, and the heads where a checkpoint has some, at which two values differ.

    Args:
        name: The checkpoint.
        gap: [B, P, ...], where; of scores and patterns [B, H, Pq, Pk] the positions are those of queries.
    """
    if name.endswith(("_scores", "_pattern")):
        return _along(gap, 2), _along(gap, 1)
    return _along(gap, 1), _along(gap, 2) if name.endswith(("_q", "_k", "_v", "_z")) else ()


def _along(gap: Tensor, axis: int) -> tuple[int, ...]:
    """Where along an axis anything is set."""
    return tuple(gap.transpose(0, axis).flatten(1).any(-1).nonzero().flatten().tolist())


def _carried_on(point: str) -> str:
    """Where a value that is computed beside the fast path comes to bear."""
    if point.endswith("ckpt_scaled"):
        return point.replace("ckpt_scaled", "ckpt_normalized")
    return re.sub("ckpt_(scores|pattern)$", "ckpt_z", point)


def _what(name: str) -> Literal["checkpoint", "logits"]:
    return "logits" if name == LOGITS else "checkpoint"


def with_their_values(
    model: CkptedTransformer, matches: list[Match], others: Mapping[str, Tensor]
) -> CkptedTransformer:
    """A working copy of a model in which the units of these matches have the other program's values."""
    made = working_copy(model)
    own_parameters(made, [_stored_name(model, unit) for match in matches for unit in match.group.units])
    for match in matches:
        undone = match.transform.undo(others[match.name].detach(), match.group, match.comparison.shape)
        for unit, part in match.group.split(undone).items():
            with torch.no_grad():
                target = made.parameter(unit)
                (target if match.group.head is None else target[match.group.head]).copy_(part)
    return made


def _stored_name(model: CkptedTransformer, unit: str) -> str:
    """The name under which a unit is stored, which for a live view is that of a larger parameter."""
    path, attribute = unit.rsplit(".", 1)
    view = getattr(type(model.get_submodule(path)), attribute, None)
    return f"{path}.{view.stored}" if isinstance(view, LiveView) else unit


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
