"""Trials on ids of our own, once nothing differs on the caller's: whole runs, rows of few tokens, and first blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from pellucid.numerics.rounding import relative_error
from pellucid.prove.about import Reach
from pellucid.prove.causes import COARSE
from pellucid.prove.ground import step_of
from pellucid.prove.points import LOGITS
from pellucid.prove.probes import AT_ONCE, Beginning, Probes
from pellucid.prove.program import Glass
from pellucid.prove.trial import MARGIN, Trial


@dataclass
class Probing:
    """Runs of two programs beside a trial of them."""

    trial: Trial
    probes: Probes
    reach: Reach = field(default_factory=Reach)  # what of the model's inputs was compared; known after `trials`
    notes: list[str] = field(default_factory=list)  # what could not be run

    def trials(self) -> list[Trial]:
        """Trials on the probes, without those whose logits are equal to the bit."""
        tried = [self._on(ids) for ids in self.probes.batches()]
        runs_others = len(self.probes.ran) > 1
        tried += [self._on(ids) for ids in self._short()] if runs_others else []
        self.reach = self.probes.reach()
        if self.reach.partial and runs_others:
            odd = self._entrance()
            odd = self._deep() if odd is None else odd
            tried += [] if odd is None else [self._on(odd)]
        return [made for made in tried if made is not None]

    def _short(self) -> Iterator[Tensor]:
        """Short rows of which the program's logits may be off by more than rounding; a trial says whether they are."""
        observed = relative_error(self.trial.single.free[LOGITS], self.trial.single.expected[LOGITS])
        limit = min(COARSE, MARGIN * max(step_of(self.trial.plain.dtype), observed))
        for rows, lengths in self.probes.short():
            # What a row begins with has these logits, too: no query sees later keys.
            expected = Glass(self.trial.reference).run(rows)[LOGITS]
            for length in lengths:
                ids = rows[:, :length] if length == rows.size(1) else rows[: length + 1, :length]  # never square
                with contextlib.suppress(Exception):  # whatever a foreign forward raises: traced ones take one length
                    if relative_error(self.trial.program.plain(ids), expected[: len(ids), :length]) > limit:
                        yield ids

    def _entrance(self) -> Tensor | None:
        """A text at whose end what enters the first block differs, of every id and position; None if there is none."""
        length = min(self.probes.positions, AT_ONCE)
        what = "ids and positions" if length == self.probes.positions else "ids"
        ids = self.probes.every(-(-self.probes.vocabulary // length), length)
        return self._beginning(ids, 0, f"for all {what} what enters the first block")

    def _deep(self) -> Tensor | None:
        """A text longer than those that ran, at whose end what leaves one of the first blocks differs; None if none."""
        blocks, length = self.probes.deep()
        if not blocks:
            return None
        of = len(self.trial.reference.schema.blocks)
        words = f"at {length:,} positions what leaves the first {blocks} of {of} blocks"
        return self._beginning(self.probes.every(1, length), blocks, words)

    def _beginning(self, ids: Tensor, end: int, words: str) -> Tensor | None:
        """The first of these texts at whose end what would enter a block differs, and its reach in words."""
        shown, names = self.trial.double.points(), (f"blocks.{end}.resid_pre", f"blocks.{end - 1}.resid_post")
        places = [p for site in self.trial.program.sites for p in site.points if self.trial.double.ckpt(p) in names]
        point = next((p for p in places if p in shown or self.trial.double.certain), None)
        if point is None:
            return None
        rounds = bool(end) and (self.probes.in_halves or not self.trial.bit_equal)
        try:
            odd = Beginning(self.trial.reference, self.trial.program, point, end, rounds).first_wrong(ids)
        except Exception as error:  # whatever a foreign forward raises
            self.notes.append(f"{words} could not be compared: {error_words(error)}")
            return None
        before = self.reach.beyond
        self.reach = self.probes.reach(f"{before}; {words}" if before else words)
        return odd

    def _on(self, ids: Tensor) -> Trial | None:
        """A trial like another on other ids; None if it shows nothing, since its logits are equal to the bit."""
        try:
            made = self.trial.on(ids)
            finished = None if made.bit_equal else made.finish()
        except Exception as error:  # whatever a foreign forward raises
            self.notes.append(f"{probe_words(ids)} could not be run, so that the verdict does not cover it: "
                              f"{error_words(error)}")  # fmt: skip
            return None
        self.probes.ran.append(ids)
        return finished if finished is None or self.trial.point is not None else finished.shortened()


def probe_words(ids: Tensor) -> str:
    """What a batch is called."""
    return f"a probe of {ids.size(0)} x {ids.size(1)} ids"


def error_words(error: Exception) -> str:
    """What a program raised, in a line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
