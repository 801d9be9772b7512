"""Both programs on one batch of ids: watched, and once more as the caller runs it, with nobody looking.

Looking can change what a program computes: torch's fused encoder layers and attention, compiled modules and patched
forwards run other code if hooks, modes or gradients are. So the logits that are judged are those of a run without
any instrument; if they are not the watched run's to the bit, float64 says whether the two are one function.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pellucid.numerics.rounding import BEYOND_ROUNDING, not_alike, relative_error, same_bits, size_of
from pellucid.prove.copies import is_scripted, working_copy
from pellucid.prove.divergences import is_before
from pellucid.prove.ground import AsGiven, coarsest_in, step_of
from pellucid.prove.lending import Loan
from pellucid.prove.points import LOGITS
from pellucid.prove.program import DOUBLE, Conditions, Glass, Program, Unwatched, WatchedModel
from pellucid.prove.runs import Runs
from pellucid.run.model import CkptedTransformer

MARGIN = 16.0
"""How much more than the reference's rounding a program's may come to: it may add in other orders, and more often."""


AROUND = 8
"""Positions that are kept, at least, around the first at which an error shows."""

AGAIN = 3
"""How often a program runs on the same ids again, to see whether it keeps something from one call to the next."""


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
        unwatched = Unwatched(self.program)
        try:
            precise = unwatched.run(self.ids, None, DOUBLE)[LOGITS]
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
            self.watched = unwatched
            self.single, self.double = self._runs(Conditions()), self._runs(DOUBLE)
            self.notes.append("without instruments the program computes something else than in the run that looks on "
                              "(such as torch's fused layers do, or a forward that asks for hooks): it is judged by "
                              "the logits of the former, and its checkpoints are left out")  # fmt: skip

    def note_gradients(self) -> None:
        """Say so if the program computes something else with gradients enabled; nothing is judged by that."""
        with contextlib.suppress(Exception):  # a program that only runs without gradients is run so by its caller
            if not same_bits(self.program.plain(self.ids, gradients=True), self.plain):
                double = Unwatched(self.program, gradients=True).run(self.ids, None, DOUBLE)[LOGITS]
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
        gap = relative_error(given, self.double.expected[LOGITS])
        dtype = max((given.dtype, self.plain.dtype), key=step_of)
        if gap <= MARGIN * max(
            step_of(dtype), relative_error(self.single.expected[LOGITS], self.double.expected[LOGITS])
        ):
            return ""
        dtype = max((dtype, coarsest_in(self.program, self.ids)), key=step_of)
        rounded = Glass(working_copy(self.reference, dtype)).run(self.ids)[LOGITS]
        limit = MARGIN * relative_error(rounded, self.double.expected[LOGITS])
        if gap <= limit:
            return ""
        return (f"as it is run, the program's logits are off by {gap:.2g} of the largest, where rounding may come to "
                f"{limit:.1g}, although in float64 they agree: its arithmetic depends on the dtype")  # fmt: skip

    def not_finite(self) -> str | None:
        """The first point at which one side only is finite, unless an error shows before it.

        Of programs that were converted, what counts is what they give in their own dtypes.
        """
        if self.given is not None:
            return LOGITS if self.point is None and bool(not_alike(self.own[1], self.own[0]).any()) else None
        odd = self.single.first_not_alike(self.double.dropped)
        earlier = odd is not None and (self.point is None or is_before(odd, self.point, self.double.schema))
        return odd if earlier else None


def mode_note(name: str, module: nn.Module, ids: Tensor, head: Tensor) -> list[str]:
    """What to say of a side's module, all or part of which is in training mode, if that changes its logits."""
    children = list(module.modules())
    if any(map(is_scripted, children)) or not any(child.training for child in children):
        return []
    program = Program(Loan(module), (), head)
    try:
        plain = program.plain(ids)
        first, second = (program.plain(ids, evaluating=False, number=number) for number in (0, 1))
    except Exception:  # whatever a foreign forward raises: then the comparison says it
        return []
    if same_bits(first, plain) and same_bits(second, plain):
        return []
    judged = f"it is judged as it evaluates: call {name}.eval() before it is used so"
    if same_bits(first, second):
        gap = relative_error(first, plain)
        return [f"{name} was given in training mode, in which its logits are off by {gap:.2g} of the largest; {judged}"]
    return [f"{name} was given in training mode, in which its logits are random from run to run{_dropout(children)}; "
            f"{judged}"]  # fmt: skip


def _dropout(children: list[nn.Module]) -> str:
    """The dropout that acts, in words; nothing if no module of torch's says so."""
    rates = [child.p for child in children if isinstance(child, _DropoutNd) and child.training and child.p]
    if not rates:
        return ""
    named = ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
    return f" (dropout of {named} in {len(rates)} module{'s' * (len(rates) > 1)})"
