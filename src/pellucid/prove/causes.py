"""Why two programs differ: known mistakes, each confirmed by making it in the reference.

A mistake is named only if the reference with that mistake in it computes what the other program computed, at the
point where they first differ. If none does, nothing is claimed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pellucid.family.common_attention import change_of
from pellucid.family.families import Family, Seen, Span, Suspect
from pellucid.family.layout import EMBED
from pellucid.family.network import Unembedding
from pellucid.family.suspicions import measured, suggested
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error, same_bits, size_of
from pellucid.prove.alignment import Alignment
from pellucid.prove.copies import working_copy
from pellucid.prove.points import LOGITS, block_of, with_checkpoints
from pellucid.prove.program import Conditions, Glass
from pellucid.prove.rewritten import Scratch, suspect_of
from pellucid.prove.runs import Runs
from pellucid.prove.units import kind_of, units_of
from pellucid.run.model import CkptedTransformer
from pellucid.schema import Schema

TRIED_ALONE = 4
"""Up to how many blocks a mistake is tried in each of them alone, if the program does not show which it is."""

ALL_AGREES = "with this in the reference, the logits agree too"


@dataclass(frozen=True)
class Evidence:
    """What two programs computed, in float64, and where they first differ."""

    suspects: Sequence[Suspect]  # the mistakes to try, the likely ones first
    runs: Runs  # what both computed
    point: str  # where they first differ
    agreed: tuple[str, ...]  # the points before that, which agree
    wrong_blocks: tuple[int, ...] = ()  # the blocks that show an error of their own

    @property
    def n_layer(self) -> int:
        """How many blocks the reference has."""
        return len(self.runs.schema.blocks)

    @property
    def observed(self) -> Mapping[str, Tensor]:
        """The other program's free values by point."""
        return self.runs.free

    @property
    def shown(self) -> list[str]:
        """Every point that the program shows, in order."""
        return self.runs.points()

    def expected_at(self, point: str) -> Tensor:
        """The reference's value at a point."""
        return self.runs.expected[self.runs.ckpt(point)]


@dataclass(frozen=True)
class Cause:
    """A confirmed mistake."""

    words: str  # what it is
    extent: str  # where it was confirmed, in words
    harmless: bool = False  # it is rounding, or no text can show it
    complete: bool = False  # it explains the logits too
    suspect: Suspect | None = None  # the mistake itself; None of what no family knows

    def values(self, runs: Runs) -> Mapping[str, Tensor]:
        """What a reference that makes it computes, by point and checkpoint."""
        assert self.suspect is not None
        return with_checkpoints(self.suspect.run(Span(runs.ids), False), runs.schema)


def confirmed_cause(evidence: Evidence) -> Cause | None:
    """The first known mistake that reproduces what was observed, and if there is one, all of it; else None.

    A mistake that does so but for a constant's last digits, or at the first point alone, is tried again in a reference
    with such a constant.
    """
    trials = Trials(evidence)
    partial: Cause | None = None
    nearly: list[Suspect] = []
    for suspect in itertools.chain(evidence.suspects, _alone(evidence.suspects, trials.span, evidence.n_layer)):
        cause, gap = trials.outcome(suspect)
        if cause is not None and cause.complete:
            return cause
        partial = partial or cause
        near = gap <= CONSTANT and gap < trials.without / 2  # one that changes next to nothing is nearer to nothing
        nearly += [suspect] if cause is None and near and not suspect.slight else []
    slight = [suspect for suspect in evidence.suspects if suspect.slight]
    if partial is not None:
        nearly = [] if partial.suspect is None or partial.harmless else [partial.suspect]
    for suspect, constant in itertools.product(nearly, slight):
        if suspect.beside is not None:
            cause, _ = trials.outcome(suspect.beside(constant))
            if cause is not None and cause.complete:
                return cause
            partial = partial or cause
    return partial


CONSTANT = 1e-6
"""Relative error that a constant's last digits in float32 may come to, on the way through a stage."""

COARSE = 1e-4
"""Relative error that float32 may make of a formula, at most, before a float64 run of it is worth its time."""

SLIGHT = 1e-3
"""Relative error that a constant's last digit in float32 never comes to."""

FEW = 2000
"""About how many tokens' logits are computed to refuse a mistake. An error in a part of them is one in all, and for a
vocabulary of 50,257 the head is a third of GPT-2's work."""


class Trials:
    """Refuses mistakes that cannot be it, at a fraction of the cost of trying them."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.span = _span(evidence)
        self.observed = evidence.observed[evidence.point]
        self.without = relative_error(self.observed, evidence.expected_at(evidence.point))
        self.size = size_of(self.observed)  # what reproduces the observed values is as large
        where = kind_of(evidence.runs.ckpt(evidence.point))
        self.early = where == "resid_pre" or where.startswith(("ln1.", "attn."))  # before the middle of its block

    def outcome(self, suspect: Suspect) -> tuple[Cause | None, float]:
        """The cause that a suspect is, if it is one, and how far what it computes is from what was observed."""
        evidence = self.evidence
        where = Span(evidence.runs.ids) if suspect.is_of_order else self.span
        if not self.may_reproduce(suspect, where):
            return None, math.inf
        made = self._made(suspect, where)
        gap = relative_error(self.observed, made[evidence.point]) if evidence.point in made else math.inf
        if gap >= BEYOND_ROUNDING or gap >= 0.01 * self.without:
            return None, gap
        cause = _extent(suspect, evidence)
        if cause.complete:
            return cause, gap
        made = _made(suspect, evidence, where) if self.early else made
        return cause if evidence.point in made and _agree(made, evidence, _until(evidence)) else None, gap

    def _made(self, suspect: Suspect, span: Span, *, coarsely: bool = False) -> Mapping[str, Tensor]:
        """What a model with a mistake computes as far as the first point that differs, which may be half a block."""
        if self.early:
            made = _made(suspect, self.evidence, replace(span, half=True), coarsely=coarsely)
            if self.evidence.point in made:
                return made
        return _made(suspect, self.evidence, span, coarsely=coarsely)

    def may_reproduce(self, mistake: Suspect, span: Span) -> bool:
        """Whether a mistake, computed in float32, is near enough to what was observed to be computed in float64."""
        if mistake.slight and self.without > SLIGHT:
            return False
        if mistake.quick or (mistake.harmless and mistake.begins >= self.evidence.n_layer):  # rounding of the logits
            return True
        few = span.last >= self.evidence.n_layer and self.evidence.point == LOGITS and not mistake.is_of_logits
        step = max(1, self.observed.size(-1) // FEW) if few else 1
        made = self._made(mistake, replace(span, step=step), coarsely=True).get(self.evidence.point)
        if made is None:
            return False
        made = made.double()
        error = relative_error(self.observed[..., ::step], made) * size_of(made) / self.size
        return not error > 0.3 * self.without + COARSE or not bool(made.isfinite().all())


def _alone(known: Sequence[Suspect], span: Span, n_layer: int) -> Iterator[Suspect]:
    """Each mistake in each block alone, where a span of few blocks does not tell them apart."""
    blocks = range(max(span.first, 0), min(span.last + 1, n_layer))
    if 1 < len(blocks) <= TRIED_ALONE:
        yield from (mistake.only_in((i,)) for mistake in known if mistake.only_in is not None for i in blocks)


def _span(evidence: Evidence) -> Span:
    """From the last residual stream that is known to agree, to the end of the block where they differ."""
    runs, n_layer = evidence.runs, evidence.n_layer
    known = {runs.ckpt(point) for point in evidence.agreed}
    where = runs.ckpt(evidence.point)
    last = block_of(where) if block_of(where) >= 0 else (0 if "embed" in where else n_layer)
    if last == n_layer and f"blocks.{n_layer - 1}.resid_post" in known:
        return Span(runs.ids, n_layer, n_layer, runs.expected[f"blocks.{n_layer - 1}.resid_post"])
    for block in range(min(last, n_layer - 1), -1, -1):
        entering = f"blocks.{block}.resid_pre"
        if entering in known or f"blocks.{block - 1}.resid_post" in known:
            return Span(runs.ids, block, last, runs.expected[entering])
    return Span(runs.ids, -1, last)


def _made(mistake: Suspect, evidence: Evidence, span: Span, *, coarsely: bool = False) -> Mapping[str, Tensor]:
    """What a model with a mistake computes; nothing if the mistake is impossible with these shapes."""
    last, begins = evidence.n_layer, mistake.begins
    if evidence.point == LOGITS and begins > span.first and span.residual is None:  # before that, nothing is changed
        before = f"blocks.{begins}.resid_pre" if begins < last else f"blocks.{last - 1}.resid_post"
        span = replace(span, first=begins, residual=evidence.runs.expected[before])
    try:
        return with_checkpoints(mistake.run(span, coarsely), evidence.runs.schema)
    except (RuntimeError, IndexError):
        return {}


def _agree(made: Mapping[str, Tensor], evidence: Evidence, points: Sequence[str]) -> bool:
    """Whether what a model with a mistake computes is what the program shows, at each of these points."""
    return all(relative_error(evidence.observed[p], made[p]) < BEYOND_ROUNDING for p in points if p in made)


def _until(evidence: Evidence) -> list[str]:
    """The points of the first checkpoint that differs, without those that may stand before the mistake.

    What enters one weight, but not another, is no mistake that is made before both.
    """
    ckpt, module = evidence.runs.ckpt, evidence.point.rpartition(".")[0]
    same = [p for p in evidence.shown if ckpt(p) == ckpt(evidence.point)]
    return [p for p in same if p not in evidence.agreed or (p[-1] == "<" and p.rpartition(".")[0] == module)]


def _explains(mistake: Suspect, evidence: Evidence) -> bool:
    """Whether a mistake accounts for everything: the logits and every point that the program shows."""
    made = _made(mistake, evidence, Span(evidence.runs.ids))
    before = {kind_of(p) for p in evidence.agreed if not _agree(made, evidence, (p,))}  # where the mistake is made
    return LOGITS in made and _agree(made, evidence, [*(p for p in evidence.shown if kind_of(p) not in before), LOGITS])


def _extent(mistake: Suspect, evidence: Evidence) -> Cause:
    """How far a mistake that reproduces the first difference explains all that is shown, logits included."""
    if _explains(mistake, evidence):
        return Cause(mistake.report, ALL_AGREES, mistake.harmless, complete=True, suspect=mistake)
    if evidence.wrong_blocks and mistake.only_in is not None:
        there = mistake.only_in(evidence.wrong_blocks)
        if _explains(there, evidence):
            return Cause(there.report, ALL_AGREES, mistake.harmless, complete=True, suspect=there)
    words = "with this in the reference, this point agrees; more differs later"
    return Cause(mistake.report, words, mistake.harmless, suspect=mistake)


def head_of_its_own(
    reference: CkptedTransformer, alignment: Alignment, others: Mapping[str, Tensor], double: Runs
) -> Cause | None:
    """Whether the only parameter that differs is a head that should be the embedding, and explains the logits."""
    ends = [match for match in alignment.matches if match.group.units == (EMBED,)]
    changed = [match for match in alignment.matches if not match.comparison.bit_equal]
    if len(ends) != 2 or len(changed) != 1 or changed[0] not in ends:
        return None
    match = changed[0]
    head = match.transform.undo(others[match.name].detach(), match.group, match.comparison.shape)
    untied = working_copy(reference)
    untied.unembed = Unembedding(untied.embed, head.to(reference.embed.W_E).t(), untied.products)
    expected, given = double.expected[LOGITS], Glass(untied).logits(double.ids, double=True)
    error = relative_error(double.free[LOGITS], given)
    if error >= BEYOND_ROUNDING or error >= 0.01 * relative_error(double.free[LOGITS], expected):
        return None
    words = f"head not tied: {match.name} is another tensor than the embedding"
    return Cause(words, "with this in the reference, the logits agree")


MOST = 3
"""How many harmless causes are put into the reference, one after another: a scale, GELU's constant, k's bias."""


@dataclass(frozen=True)
class CauseSearch:
    """Looks for the cause of a difference, past what is harmless."""

    family: Family  # the reference's
    alignment: Alignment  # which tensor is which
    others: Mapping[str, Tensor]  # the other program's tensors
    notes: list[str]  # what the reader should know; added to

    def behind(
        self, reference: CkptedTransformer, double: Runs, point: str | None
    ) -> tuple[Runs, str | None, Cause | None]:
        """Where two programs first differ, and why, once the reference has the other's constants; with a note on them.

        The runs that are returned are judged by such a reference. Without a point, and with nothing undecided, what is
        harmless explains everything.
        """
        found: list[Cause] = []
        cause = self._cause(reference, double, point or double.undecided[0])
        while cause is not None and cause.harmless:
            found.append(cause)
            unseen = point is None
            double = double.against(cause.values(double))
            point = double.first_wrong()
            if point is None and not double.undecided:
                reasons = "; ".join(self.family.unseen.values())
                why = f"and no text can show it: {reasons}" if unseen else "so that this is rounding"
                words = " and ".join(cause.words for cause in found)
                self.notes.append(f"{words}: {ALL_AGREES}, {why}")
                return double, None, None
            cause = self._cause(reference, double, point or double.undecided[0], found[-1])
            if len(found) > MOST:
                break
        self.notes.extend(f"{cause.words}, which is harmless by itself" for cause in found)
        return double, point, cause

    def _cause(
        self, reference: CkptedTransformer, double: Runs, point: str, beside: Cause | None = None
    ) -> Cause | None:
        """Why two programs differ at a point, in a reference that may have another cause in it already."""
        again = double.program.run(double.ids, None, Conditions(double=True, seed=1))
        if not same_bits(again[LOGITS], double.watched_logits):
            self.notes.append("the other model draws random numbers: two runs of it differ")
            calm = Conditions(double=True, dropout=False)
            if Runs(double.program, double.expected, double.ids, double.schema, calm).first_wrong() is None:
                return Cause("dropout is active although the model evaluates", "without it, the logits agree too")
            return None
        evidence = self._evidence(reference, double, _carried_on(point, double.schema))
        if evidence is not None and beside is not None and (known := beside.suspect) is not None:
            both = [suspect.beside(known) for suspect in evidence.suspects if suspect.beside is not None]
            evidence = replace(evidence, suspects=both)
        return None if evidence is None else confirmed_cause(evidence)

    def _evidence(self, reference: CkptedTransformer, double: Runs, point: str) -> Evidence | None:
        """What there is to find a cause by; None if no mistakes are known of the family."""
        family = self.family
        if family.suspects is None and family.mistakes is None:
            return None
        points = double.points()
        before = points[: points.index(point)] if point in points else points
        alone = {name: self.others[name].detach() for name in self.alignment.unexplained if name in self.others}
        moved = [match for match in self.alignment.matches if match.transform.heads and not match.group.heads]
        heads = {unit: match.transform.heads or () for match in moved for unit in match.group.units}
        seen = Seen(double.ids, double.ckpt(point), double.free[point], double.expected, alone, heads)
        if family.suspects is not None:
            suspects = list(family.suspects(reference.config, units_of(reference), seen))
        else:
            assert family.mistakes is not None
            changes = (*map(change_of, suggested(seen)), *family.mistakes(reference), *map(change_of, measured(seen)))
            scratch = Scratch(reference)
            suspects = [suspect_of(change, scratch) for change in changes]
        agreed = tuple(p for p in before if not double.is_wrong(double.free, p))
        wrong = {block_of(double.ckpt(p)) for p in points if double.is_wrong(double.forced, p)} - {-1}
        return Evidence(suspects, double, point, agreed, tuple(sorted(wrong)))


def _carried_on(point: str, schema: Schema) -> str:
    """Where a value that is computed beside the fast path comes to bear: at the next one that is not."""
    names = schema.names
    later = names[names.index(point) :] if point in names else ()
    return next((name for name in later if schema[name].computed == "always"), point)
