"""Both programs on one batch of ids: watched, and once more as the caller runs it, with nobody looking.

Looking can change what a program computes: torch's fused encoder layers and attention, compiled modules and patched
forwards run other code if hooks, modes or gradients are. So the logits that are judged are those of a run without
any instrument; if they are not the watched run's to the bit, float64 says whether the two are one function.

Programs of two dtypes are compared on common ground, else nothing would be equal. But each also runs once as it is,
with nothing converted: one that cannot is no model, and one whose own arithmetic leaves the range of its dtype gives no
logits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pellucid.numerics.dispatch import DispatchMode
from pellucid.numerics.rounding import BEYOND_ROUNDING, not_alike, relative_error, same_bits, size_of
from pellucid.prove.alignment import Alignment
from pellucid.prove.calling import NoLogitsError
from pellucid.prove.causes import COARSE
from pellucid.prove.copies import is_scripted, parameter_dtypes, with_their_values, working_copy
from pellucid.prove.divergences import is_before
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS
from pellucid.prove.program import DOUBLE, PLAIN, Conditions, Glass, Program, Values, WatchedModel
from pellucid.prove.runs import Runs
from pellucid.run.model import CkptedTransformer

MARGIN = 16.0
"""How much more than the reference's rounding a program's may come to: it may add in other orders, and more often."""


AROUND = 8
"""Positions that are kept, at least, around the first at which an error shows."""

AGAIN = 3
"""How often a program runs on the same ids again, to see whether it keeps something from one call to the next."""


@dataclass(frozen=True)
class Unwatched:
    """A program of which nothing but its logits is looked at, in runs without any instrument."""

    program: Program

    def run(self, ids: Tensor, forced: Values | None = None, conditions: Conditions = PLAIN) -> dict[str, Tensor]:
        return {LOGITS: self.program.plain(ids, double=conditions.double)}


@dataclass
class Trial:
    """Both programs on one batch of ids.

    Args:
        reference: A working copy.
        watched: The other program, as something that shows its values.
        program: The other program, as the caller runs it.
        ids: [B, P].
        precise: The reference with the constants of the other program, for float64.
        given: Both as their callers run them, if they are converted to be compared.

    Attributes:
        single: The runs in the programs' own dtype.
        double: The runs in float64; there after `finish`.
        point: Where an error shows in float64 first, if one does; there after `finish`.
        settled: Whether float64 could say what the run without instruments computes.
        notes: What the reader should know.
        own: The logits of the reference and of the other program in their own dtypes.
    """

    reference: CkptedTransformer
    watched: WatchedModel
    program: Program
    ids: Tensor
    precise: CkptedTransformer
    given: AsGiven | None = None
    settled: bool = True
    notes: list[str] = field(default_factory=list)
    point: str | None = None

    def __post_init__(self) -> None:
        own = None if self.given is None else self.given.logits(self.ids)
        self.plain = self.program.plain(self.ids)  # first: it finds out how the program wants to be called
        if any(map(is_scripted, self.program.loan.module.modules())):
            self.watched = Unwatched(self.program)  # TorchScript takes no hooks
            self.notes.append("TorchScript shows no values on the way: it is judged by its logits")
        self.single = self._runs(Conditions())
        self.own = own or (self.single.expected[LOGITS], self.plain)

    def _runs(self, conditions: Conditions) -> Runs:
        glass = Glass(self.precise if conditions.double else self.reference)
        expected = glass.run(self.ids, None, conditions)
        return Runs(self.watched, expected, self.ids, self.reference.schema, conditions, reference=glass)

    @property
    def is_near(self) -> bool:
        """Whether the program's logits are those of the reference, as nearly as float32 comes to them."""
        return relative_error(self.plain, self.single.expected[LOGITS]) < COARSE

    @property
    def bit_equal(self) -> bool:
        """Whether the logits are equal to the bit, whether somebody looks or not."""
        return same_bits(self.plain, self.single.free[LOGITS]) and same_bits(self.plain, self.single.expected[LOGITS])

    def finish(self) -> Trial:
        """Run in float64, and find the first error there."""
        self.double = self._runs(DOUBLE)
        if not same_bits(self.plain, self.single.free[LOGITS]):
            self._judge_unwatched()
        self.point = self.double.first_wrong()
        return self

    def shortened(self) -> Trial:
        """A trial on part of the ids that shows an error, too, since causes are looked for in many runs; else this."""
        if self.point is None:
            return self
        given, expected = self.double.free[self.point], self.double.expected[self.double.ckpt(self.point)]
        if given.shape != expected.shape:
            return self
        gap = ~((given - expected).abs() <= BEYOND_ROUNDING * size_of(expected))
        row, place = gap.flatten(2).any(-1).nonzero()[0].tolist()
        part = self.ids[max(row - 1, 0) : max(row - 1, 0) + 2, : 2 * place + AROUND]
        if 2 * part.numel() > self.ids.numel():
            return self
        made = self.on(part).finish()
        return self if made.point is None else made

    def on(self, ids: Tensor) -> Trial:
        """The same on other ids, not finished."""
        return Trial(self.reference, self.watched, self.program, ids, self.precise, self.given)

    def _judge_unwatched(self) -> None:
        """Put the logits of the run without instruments in the place of those that were watched."""
        try:
            precise = self.program.plain(self.ids, double=True)
        except Exception as error:  # whatever a foreign forward raises in a dtype that it was not written for
            self.settled = False
            self.notes.append("without instruments the program's logits are others than in the run that looks on, and "
                              f"in float64 it does not run so: {type(error).__name__}: {error}")  # fmt: skip
        else:
            if relative_error(precise, self.double.free[LOGITS]) <= max(BEYOND_ROUNDING, self.double.limit()):
                self.single.judge(self.plain)
                self.double.judge(precise)
                self.notes.append("without instruments the program rounds in another way than in the run that looks "
                                  "on: its logits are judged by the former")  # fmt: skip
                return
            self.watched = Unwatched(self.program)
            self.single, self.double = self._runs(Conditions()), self._runs(DOUBLE)
            self.notes.append("without instruments the program computes something else than in the run that looks on "
                              "(such as torch's fused layers do, or a forward that asks for hooks): it is judged by "
                              "the logits of the former, and its checkpoints are left out")  # fmt: skip

    def note_gradients(self) -> None:
        """Say so if the program computes something else with gradients enabled; nothing is judged by that."""
        with contextlib.suppress(Exception):  # a program that only runs without gradients is run so by its caller
            if not same_bits(self.program.plain(self.ids, gradients=True), self.plain):
                double = self.program.plain(self.ids, double=True, gradients=True)
                gap = relative_error(double, self.double.free[LOGITS])
                if gap > max(BEYOND_ROUNDING, self.double.limit()):
                    self.notes.append(f"with gradients enabled the program computes something else, by {gap:.3g}: the "
                                      "verdict is on what it computes without them")  # fmt: skip

    def unsteady(self) -> str | None:
        """What runs after others give, in words, if that is something else than the first; None if it is not.

        A program that keeps something from one call to the next is right once: a cache that nobody emptied, tables as
        long as the first text, an answer that is given again for ids of the same shape. So it also runs on the same
        ids a few times in a row, each of which counts.
        """
        if self.program.writes_into_ids:
            return "the program writes into the ids that it is given: its caller's are others after a run"
        others = (self.ids + 1) % self.reference.schema.sizes["d_vocab"]
        for before in ((), (others[:1, : -(-self.ids.size(1) // 2)], others)):
            try:
                gap = self._gap_after(*before)
            except Exception as error:  # whatever a foreign forward raises
                if all(map(self._takes, before)):  # one that is traced takes no other shape, and not all take all ids
                    return f"run once more, after other runs, the program raises {type(error).__name__}: {error}"
            else:
                if gap > BEYOND_ROUNDING:
                    return (f"run once more, after other runs, the program gives other logits on the same ids, by "
                            f"{gap:.3g}: it keeps something from one call to the next")  # fmt: skip
        return None

    def _gap_after(self, *before: Tensor) -> float:
        """How far the logits of some more runs, after runs on these, are from those of the first."""
        batches = [*before, *[self.ids] * AGAIN]
        if all(same_bits(logits, self.plain) for logits in self.program.in_a_row(batches)[-AGAIN:]):
            return 0.0
        right = self.program.plain(self.ids, double=True)
        return max(relative_error(logits, right) for logits in self.program.in_a_row(batches, double=True)[-AGAIN:])

    def _takes(self, ids: Tensor) -> bool:
        try:
            self.program.plain(ids)
        except Exception:  # whatever a foreign forward raises
            return False
        return True

    def odd_in_its_dtype(self) -> str:
        """What to say if the logits that the caller sees are off by more than rounding, although float64 agrees.

        What rounding comes to is what it makes of the reference, in the coarsest dtype that the program computes with.
        """
        given = self.own[1]
        gap = self._rounding(given)
        dtype = max((given.dtype, self.plain.dtype), key=step_of)
        if gap <= MARGIN * step_of(dtype) or gap <= MARGIN * self._rounding(self.single.expected[LOGITS]):
            return ""
        dtype = max((dtype, coarsest_in(self.program, self.ids)), key=step_of)
        limit = MARGIN * self._rounding(Glass(working_copy(self.reference, dtype)).logits(self.ids))
        if gap <= limit:
            return ""
        return (f"as it is run, the program's logits are off by {gap:.2g} of the largest, where rounding may come to "
                f"{limit:.1g}, although in float64 they agree: its arithmetic depends on the dtype")  # fmt: skip

    def _rounding(self, logits: Tensor) -> float:
        """How far logits are from those of the reference in float64, relative."""
        return relative_error(logits, self.double.expected[LOGITS])

    def not_finite(self) -> str | None:
        """The first point at which one side only is finite, unless an error shows before it.

        Of programs that were converted, what counts is what they give in their own dtypes.
        """
        if self.given is not None:
            return LOGITS if self.point is None and bool(not_alike(self.own[1], self.own[0]).any()) else None
        odd = self.single.first_not_alike(self.double.dropped)
        earlier = odd is not None and (self.point is None or is_before(odd, self.point, self.double.schema))
        return odd if earlier else None


@dataclass(frozen=True)
class Ground:
    """What two programs are converted to."""

    dtype: torch.dtype | None = None  # both run in this one; None if each keeps its own
    note: str = ""  # what the reader should know of it; "" if there is but one dtype


def common_ground(reference: nn.Module, other: nn.Module) -> Ground:
    """The coarsest dtype of two programs, unless one of them has several: such a program runs in no other way."""
    ours, theirs = parameter_dtypes(reference), parameter_dtypes(other)
    if len(ours | theirs) < 2:
        return Ground()
    named = ", ".join(sorted(map(_word, ours | theirs)))
    if max(len(ours), len(theirs)) > 1:
        words = "parameters were rounded to the coarser of each two first, and the models"
        return Ground(None, f"the dtypes are {named}: {words} can be no more than equivalent")
    dtype = max(ours | theirs, key=step_of)
    words = f"both were rounded to {_word(dtype)} first, and can be no more than equivalent"
    return Ground(dtype, f"the dtypes are {named}: {words}")


def rounded_alike(
    reference: CkptedTransformer, program: Program, alignment: Alignment, others: Mapping[str, Tensor]
) -> CkptedTransformer:
    """Give each parameter of two programs the values that the coarser of its two dtypes has; the dtypes stay.

    Returns a copy of the reference; the program's loan is changed.
    """
    units = {name: reference.parameter(name).dtype for name in reference.parameter_names}
    same = [match for match in alignment.matches if match.comparison.bit_equal]
    finer = [match for match in same if step_of(others[match.name].dtype) > step_of(units[match.group.units[0]])]
    coarser = [match for match in same if step_of(others[match.name].dtype) < step_of(units[match.group.units[0]])]
    changed = {
        id(tensor): nn.Parameter(tensor.detach().to(units[match.group.units[0]]).to(tensor), requires_grad=False)
        for match in coarser
        if isinstance(tensor := others[match.name], nn.Parameter)
    }
    program.loan = program.loan.replacing(changed)
    return with_their_values(reference, finer, others)


def step_of(dtype: torch.dtype) -> float:
    """The relative step between the numbers of a dtype."""
    return torch.finfo(dtype).eps


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class DidNotRunError(Exception):
    """A program raises as its caller runs it; the message says where, and what."""


@dataclass(frozen=True)
class AsGiven:
    """Two programs with nothing converted."""

    reference: CkptedTransformer  # the caller's
    program: Program  # the caller's other one

    def turned(self) -> AsGiven:
        """The same, with a program that is given ids [P, B]; what its outputs are like is noticed anew."""
        return replace(self, program=replace(self.program, remarks={}, call=None, turned=True))

    def logits(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the reference and the other program give, each in its own dtype; an error if one gives no logits."""
        ours = Program(Loan(self.reference), (), self.program.head)
        return _logits(ours, "the reference", ids), _logits(self.program, "the other model", ids)


def _logits(program: Program, name: str, ids: Tensor) -> Tensor:
    try:
        return program.plain(ids)
    except NoLogitsError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        dtypes = " and ".join(sorted(map(_word, parameter_dtypes(program.loan.module))))
        raise DidNotRunError(f"{name} does not run as it is, in {dtypes}: {program.failure(ids, error)}") from error


def coarsest_in(program: Program, ids: Tensor) -> torch.dtype:
    """The coarsest dtype among what a program computes: `torch.autocast` chooses others than its parameters have.

    So does torch for products of float32 if it is allowed to.
    """
    seen = _Dtypes()
    with seen:
        logits = program.plain(ids)
    fast = torch.get_float32_matmul_precision() != "highest"
    return max([*seen.found, logits.dtype, *([torch.bfloat16] if fast else [])], key=step_of)


class _Dtypes(DispatchMode):
    """Keeps the floating dtypes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [t.dtype for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]
        self.found |= {dtype for dtype in made if dtype.itemsize > 1}  # in eight bits torch stores, and hardly computes
        return out
