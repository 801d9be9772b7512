"""One comparison of a reference with another program, from the alignment of parameters to the verdict."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pellucid.check import attribute
from pellucid.family.families import Span, family_of
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error, windows
from pellucid.prove.about import Reach, distance_of
from pellucid.prove.alignment import Alignment
from pellucid.prove.calling import COLUMNS, NoLogitsError, reads_columns
from pellucid.prove.causes import Cause, CauseSearch, head_of_its_own
from pellucid.prove.copies import quietly, with_their_values, without_units, working_copy
from pellucid.prove.divergences import Sides, divergence_at, first_changed, not_finite_at, positions_note, with_changes
from pellucid.prove.influence import Matching, Sensitivity, is_next_to_nothing, without_idle
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS, sites_of
from pellucid.prove.probes import Probes, Probing, error_words, named_ids, probe_words
from pellucid.prove.program import DOUBLE, Glass, Program, WatchedModel
from pellucid.prove.report import CheckpointRow, ComparisonReport, Divergence, relative_changes
from pellucid.prove.runs import Runs, rows_of
from pellucid.prove.trial import AsGiven, DidNotRunError, Trial, common_ground, rounded_alike
from pellucid.prove.units import N_CTX, kind_of, unit_axes
from pellucid.prove.verdict import is_rounding, notes_on, rows_of_parameters, verdict_of
from pellucid.run.model import CkptedTransformer

Progress = Callable[[str, float], None]
"""Called with what is being done, and the share of the work that is behind."""


def silently(what: str, share: float) -> None:
    """Progress that nobody looks at."""


NEARLY = 1e-6
"""Relative error of the logits up to which parameters that are rounded to float32 may be all that differs."""

NARROW = 1e-5
"""Relative error that arithmetic in float32 may come to in a model."""


@dataclass
class Comparison:
    """One comparison."""

    reference: CkptedTransformer  # made of glass
    other: nn.Module  # any module
    ids: Tensor  # [B, P], what to run
    swapped: bool = False  # whether the reference is the caller's second side
    tensors: Mapping[str, Tensor] | None = None  # what is aligned in the place of the other's state dict
    progress: Progress = silently  # told of each step
    notes: list[str] = field(default_factory=list)
    mixed: bool = False
    given: AsGiven | None = None
    seen: tuple[int, int] = (0, 0)
    blind: bool = False
    exact: bool = True
    odd: bool = False
    lengths: tuple[int, ...] = ()  # how many ids of each row are the caller's; all if it is empty
    logits: tuple[Tensor, Tensor] | None = None
    turned: bool = False  # whether the other program is given ids [P, B]
    reach: Reach | None = None

    def __post_init__(self) -> None:
        self.schema, self.family = self.reference.schema, family_of(self.reference.config)
        self.matching = Matching(self.reference, self.other, self.tensors)
        self.probes = self._probes()

    def report(self) -> ComparisonReport:
        """Align, run, judge."""
        self.progress("aligning parameters", 0.0)
        self.alignment, units, others = self.matching.alignment(), self.matching.units, self.matching.others
        changed = first_changed(self.alignment, units, others, self.family.unseen)
        first, added = with_changes(changed, Sides(units, others, self.alignment, self.swapped))
        self.notes += [*self.matching.notes, *added.notes]
        self.progress("running both", 0.3)
        program, other = self._program(), self.other
        watched = Glass(working_copy(other, program.loan.dtype)) if isinstance(other, CkptedTransformer) else program
        try:
            trial = self._trial(watched, program)
        except Exception as error:  # whatever a foreign forward raises
            self.notes += [*notes_on(self.alignment, self.family.unseen, added.told), self._failure(program, error)]
            return self._finished([], first, explained=False)
        self.alignment = self._without_idle(trial.program)
        self.notes += notes_on(self.alignment, self.family.unseen, added.told)
        self.logits = trial.own
        return self._judge(trial, first)

    def _trial(self, watched: WatchedModel, program: Program) -> Trial:
        """A trial of both on the caller's ids, which a program may read column by column."""
        precise, made, far = self._precise(program), None, self.ids.size(1) > 1
        if watched is not program:  # a model of ours, which reads rows
            return Trial(self.reference, watched, program, self.ids, precise, self.given)
        with contextlib.suppress(Exception):  # it is raised below, unless columns help
            made = Trial(self.reference, program, program, self.ids, precise, self.given)
            if far and made.is_near:
                return made
        over = replace(program, remarks={COLUMNS: None}, call=None, turned=True)
        columns, placed = reads_columns(over.plain, len(program.head))
        with contextlib.suppress(Exception):  # whatever a foreign forward raises
            given = self.given and self.given.turned()
            again = Trial(self.reference, over, over, self.ids, precise, given) if columns else None
            self.turned = again is not None and (placed or (far and again.is_near))
            if again is not None and self.turned:
                return again
        return made or Trial(self.reference, program, program, self.ids, precise, self.given)

    def _program(self) -> Program:
        """The other program, and the reference, in the dtypes in which they are compared."""
        ground, other, reference = common_ground(self.reference, self.other), self.other, self.reference
        computed = {name: self.matching.others[name] for name in self.matching.computed}
        sites, head = sites_of(self.alignment, other, self.schema), reference.embed.W_E.detach()
        unseen = [unit for unit in self.alignment.missing if kind_of(unit) in self.family.unseen]
        self.reference = without_units(working_copy(reference, ground.dtype), unseen)
        program = Program(Loan(other, ground.dtype, computed=computed), sites, self.reference.embed.W_E.detach())
        self.mixed = bool(ground.note)
        if self.mixed:
            self.notes.append(ground.note)
            self.given = AsGiven(reference, Program(Loan(other), (), head))
            if ground.dtype is None:
                self.reference = rounded_alike(self.reference, program, self.alignment, self.matching.others)
        return program

    def _failure(self, program: Program, error: Exception) -> str:
        """Why nothing was judged, in words."""
        if isinstance(error, NoLogitsError):
            return f"nothing could be judged: {error}"
        if isinstance(error, DidNotRunError):
            return str(error)
        return f"the other model did not run on ids {list(self.ids.shape)}: {program.failure(self.ids, error)}"

    def _precise(self, program: Program) -> CkptedTransformer:
        """The reference for float64: a constant that the other program keeps in float32 is no error of it."""
        if self.family.adopt is None:
            return self.reference
        made, children = working_copy(self.reference), list(self.other.modules())
        held = [value for child in children for value in vars(child).values()]
        held += [one for group in held if isinstance(group, (list, tuple)) for one in group]
        held += [one for group in held if isinstance(group, dict) for one in group.values()]
        kept = [t for t in held if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)]
        with quietly(made, double=True):
            program.loan = program.loan.with_constants(self.family.adopt(made, kept))
        return made

    def _without_idle(self, program: Program) -> Alignment:
        units, others = self.matching.units, self.matching.others
        alone = [*map(units.get, self.alignment.missing), *map(others.get, self.alignment.unexplained)]
        self.exact = not any(tensor is not None and is_next_to_nothing(tensor) for tensor in alone)
        batches = [self.ids, self.probes.mixed()]
        return without_idle(self.alignment, program, self.matching, batches, self.family.unseen)

    def _probes(self) -> Probes:
        """Ids of our own that show more than the caller's, within the positions that both sides have."""
        axes, sizes = unit_axes(self.schema), self.schema.sizes
        tables = [len(unit) for name, unit in self.matching.units.items() if axes[name][0] == N_CTX]
        weights = sum(parameter.numel() for parameter in self.reference.parameters())
        named, lengths = (named_ids(self.other, sizes["d_vocab"], in_code=only) for only in (False, True))
        in_blocks = sum(parameter.numel() for parameter in self.reference.blocks.parameters())
        halves = self.reference.device.type == "cpu" and self.reference.dtype.itemsize == 2
        pads = {attribute(attribute(side, "config"), "pad_token_id") for side in (self.reference, self.other)}
        return Probes(self.ids, sizes, min([sizes[N_CTX], *tables]), weights, in_blocks, named, halves, pads, lengths)

    def _rows(self) -> list[list[int]]:
        """The caller's ids, without what fills short rows up."""
        lengths = self.lengths or [self.ids.size(1)] * self.ids.size(0)
        return [row[:length] for row, length in zip(self.ids.tolist(), lengths, strict=True)]

    def _judge(self, trial: Trial, first: Divergence | None) -> ComparisonReport:
        """Tell rounding from error by float64, find the first difference, and report."""
        self.seen = trial.single.free[LOGITS].size(1), trial.single.expected[LOGITS].size(1)
        self.progress("running both in float64", 0.5)
        try:
            trial.finish().note_gradients()
        except Exception as error:  # whatever a foreign forward raises in a dtype that it was not written for
            self.notes.append(f"rounding could not be told from error: in float64 {error_words(error)}")
            return self._finished(rows_of(trial.single, None), first, explained=False)
        self.progress("looking for the cause", 0.8)
        self._note(trial)
        if first is not None:
            rows = rows_of(trial.single, trial.double)
            return self._finished(rows, self._of_parameters(trial, first), explained=False)
        further = self._probed(trial) if trial.point is None else []
        for probe in further:
            trial.double.learn(probe.double.dropped)
        rows = rows_of(trial.single, trial.double)
        divergence, explained = self._verdict_on(trial, rows)
        if divergence is None and trial.point is not None:  # what differs is harmless, and other ids may show more
            further = self._probed(trial)
        if divergence is None and (words := trial.unsteady()) is not None:
            divergence = Divergence(LOGITS, "logits", words)
        for probe in further if divergence is None else []:
            self._note(probe)
            self.exact = False  # its logits round in another way
            divergence, also = self._verdict_on(probe, ())
            explained = explained and also
            if divergence is not None:
                rows = rows_of(probe.single, probe.double)
                divergence = replace(divergence, detail=f"{divergence.detail}; shown on {probe_words(probe.ids)}, not "
                                                        "on the inputs given")  # fmt: skip
                break
        return self._finished(rows, divergence, explained=explained)

    def _note(self, trial: Trial) -> None:
        double = trial.double
        expected = trial.single.expected[LOGITS], double.expected[LOGITS]
        self.blind = not any(bool(logits.isfinite().any()) for logits in expected)
        found = [
            *trial.program.remarks,
            *trial.notes,
            *(f"{point} holds something else than {double.ckpt(point)}" for point in double.dropped),
            *(positions_note(trial.single) if trial.ids is self.ids else ()),
            *(["no logit of the reference is finite, so that equal ones show nothing"] if self.blind else []),
        ]
        self.notes += [note for note in found if note not in self.notes]

    def _verdict_on(self, trial: Trial, rows: Sequence[CheckpointRow]) -> tuple[Divergence | None, bool]:
        """Where two programs first differ on a trial's ids; and if nowhere, whether rounding explains everything."""
        double, point = trial.double, trial.point
        odd = trial.not_finite()
        if odd is not None:
            single = trial.single
            values = trial.own if odd == LOGITS else (single.expected[single.ckpt(odd)], single.free[odd])
            return not_finite_at(single, odd, values, wrong=point is not None), False
        if point is None and not double.undecided:
            if (words := double.amplification()) and words not in self.notes:
                self.notes.append(words)
            if words := trial.odd_in_its_dtype():
                self.notes += [words] if not self.odd else []
                self.odd = True
                return None, False
            return None, trial.settled and not double.blurred and (is_rounding(rows) or double.amplified)
        if trial.program.threaded and double.error(double.free, point or LOGITS) <= NARROW:
            self.notes.append("the other model computes in threads of its own, in which what it asks of float32 stays "
                              "float32 in a float64 run: rounding could not be told from error")  # fmt: skip
            return None, False
        given = double.free[LOGITS]
        strange = given.size(-1) != self.schema.sizes["d_model"] and not windows(double.expected[LOGITS], given)
        if point == LOGITS and strange:
            return divergence_at(double, point, None), False  # of another shape, which only a missing head gives
        double, point, cause = self._search().behind(trial.precise, double, point)
        cause = self._on_other_ids(trial, cause)
        if point is None:
            if not double.undecided:
                return None, trial.settled
            where = [f"{p} ({double.ckpt(p)})" for p in double.undecided]
            self.notes.append(f"nothing here depends on {', '.join(where)}, which differs: try a longer text")
            return None, False
        double_run = trial.own[1].dtype == torch.float64  # by the caller, too
        if rows and all(row.bit_equal for row in rows) and self.alignment.complete and not double_run:
            self.notes.append(f"equal to the bit, but in float64 they differ: {divergence_at(double, point, cause)}")
            return None, True
        return divergence_at(double, point, cause), False

    def _on_other_ids(self, trial: Trial, cause: Cause | None) -> Cause | None:
        """A cause that a probe does not contradict; if it does, the one that the probe shows, or what is left of it.

        On few ids two mistakes may compute the same: a window as long as the text, and a first token that is hidden.
        """
        ids = self.probes.mixed()
        ids = ids[:, :-1] if ids.size(1) == self.ids.size(1) else ids  # a mask of the ids given takes no others
        if cause is None or not cause.complete or cause.suspect is None or trial.ids.shape == ids.shape:
            return cause
        further, begins, bound = None, False, False
        with contextlib.suppress(Exception):  # whatever a foreign forward raises when it is watched
            given = trial.program.plain(ids, double=True)
            try:
                error = relative_error(given, cause.suspect.run(Span(ids), False)[LOGITS])
            except (RuntimeError, IndexError):  # the mistake was made for the ids given, such as a token that is hidden
                error, bound = math.inf, True
            if error <= BEYOND_ROUNDING or error <= trial.double.limit():
                return cause
            further = trial.on(ids).finish()
            search = CauseSearch(self.family, self.alignment, self.matching.others, [])
            other = search.behind(further.precise, further.double, further.point or LOGITS)[2]
            if other is not None and other.complete:
                return other
            begins = not bound and further.double.against(cause.values(further.double)).first_wrong() != further.point
        if further is None or (bound and further.point is None):
            return cause
        if further.point is not None and not begins:
            return None
        what = "nothing" if further.point is None else "more"
        words = f"with this in the reference, these logits agree; on {probe_words(ids)} {what} differs"
        return replace(cause, extent=words, complete=False)

    def _probed(self, trial: Trial) -> list[Trial]:
        self.progress("running both on probes", 0.9)
        probing = Probing(trial, self.probes)
        made = probing.trials()
        self.reach = probing.reach
        self.notes += probing.notes
        return made

    def _search(self) -> CauseSearch:
        return CauseSearch(self.family, self.alignment, self.matching.others, self.notes)

    def _of_parameters(self, trial: Trial, first: Divergence) -> Divergence:
        """The first parameter that differs, and whether the programs are the same apart from the parameters."""
        double = trial.double
        changed = [match for match in self.alignment.matches if not match.comparison.bit_equal]
        if (head := head_of_its_own(trial.precise, self.alignment, self.matching.others, double)) is not None:
            return replace(first, cause=f"{head.words}: {head.extent}")
        if changed and not double.is_wrong(double.free, LOGITS):
            self.notes.append("other parameters, the same logits: in float64 they agree but for rounding")
            return first
        gap = double.error(double.free, LOGITS)
        if gap <= NEARLY:
            self.notes.append(f"other parameters, nearly the same logits: in float64 they differ by {gap:.1g} of the "
                              "largest, which rounding parameters to float32 may come to")  # fmt: skip
        adopted = with_their_values(trial.precise, changed, self.matching.others)
        ids, glass = double.ids, Glass(adopted)
        runs = Runs(double.program, glass.run(ids, None, DOUBLE), ids, double.schema, DOUBLE, reference=glass)
        point = runs.first_wrong()
        if point is None:
            self.notes.append("with the other model's values in the reference, everything agrees")
        else:
            runs, point, cause = self._search().behind(adopted, runs, point)
            if point is not None:
                self.notes.append(f"with the other model's values in the reference, they still differ at "
                                  f"{divergence_at(runs, point, cause)}")  # fmt: skip
        return first

    def _finished(
        self, rows: list[CheckpointRow], divergence: Divergence | None, *, explained: bool
    ) -> ComparisonReport:
        parameters = rows_of_parameters(self.alignment, swapped=self.swapped)
        exact = self.exact and not self.mixed and self.seen[0] == self.seen[1]
        own = self.alignment if self.tensors is None else None
        verdict = verdict_of(self.alignment, rows, divergence, may_be_identical=exact, rounding_explains=explained)
        return ComparisonReport(
            verdict=verdict if (rows and not self.blind) or divergence else "inconclusive",
            parameters=parameters,
            checkpoints=tuple(rows),
            ckpts=self.schema.names,
            first_divergence=divergence,
            alignment=self.alignment,
            notes=tuple(dict.fromkeys(self.notes)),
            logits_seen=self.seen,
            reach=self.reach or self.probes.reach(),
            distance=distance_of(self.logits, self._rows(), relative_changes(parameters), swapped=self.swapped),
            reference="B" if self.swapped else "A",
            probe=Sensitivity(self.reference, self.other, self.ids, own, self.turned),
        )
