"""The tabs that the server serves: what each ran last."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from pellucid.errors import InputError
from pellucid.run.model import CkptedTransformer
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_files import require_fitting
from pellucid.viewer.fields import Request
from pellucid.viewer.one_text import OneText, run_text

MOST_SESSIONS = 8
"""Tabs whose runs are kept, each with all its values."""

MOST_KEPT = 6 << 30
"""Bytes of values that all tabs but the last may keep; a run of 1,024 tokens in GPT-2 small takes 1.3 GiB."""

_REMEMBERED = 1000
"""Names of tabs that made room, the last ones."""


@dataclass
class Session:
    """One tab."""

    run: OneText | None = None  # its last run
    plain: OneText | None = None  # the same text without edits, if they were asked for with `edit`
    cancelled: Event = field(default_factory=Event)  # set to end its generation
    forgotten: bool = False  # whether it made room for others before

    @property
    def nbytes(self) -> int:
        """What its values take in memory."""
        return sum(one.ckpts.nbytes for one in (self.run, self.plain) if one is not None)


class Tabs:
    """The model, and what each tab ran last."""

    def __init__(self, model: CkptedTransformer, text: Any, sae: SparseAutoencoder | None = None) -> None:
        if sae is not None:
            require_fitting(sae, model)
        self.model, self.sae, self.lock = model, sae, Lock()
        self.first = run_text(model, text)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()

    def session(self, name: str) -> Session:
        """The session of a tab; those that were not used for longest make room."""
        found = self._sessions.setdefault(name, Session(forgotten=name in self._forgotten))
        self._sessions.move_to_end(name)
        while len(self._sessions) > MOST_SESSIONS or (len(self._sessions) > 1 and self._nbytes > MOST_KEPT):
            self._forgotten[self._sessions.popitem(last=False)[0]] = None
        while len(self._forgotten) > _REMEMBERED:
            self._forgotten.popitem(last=False)
        return found

    def cancel(self) -> None:
        """End every tab's generation after the token that is being made."""
        for one in list(self._sessions.values()):
            one.cancelled.set()

    @property
    def _nbytes(self) -> int:
        return sum(one.nbytes for one in self._sessions.values())

    def run_of(self, session: Session, asked: Request) -> OneText:
        """What a tab looks at: its last run, or with `"plain": true` the one before the edits."""
        if session.forgotten and session.run is None:
            raise InputError(
                f"serve: this tab's run is not kept any more; those of the last {MOST_SESSIONS} tabs are, as far as "
                f"they take {MOST_KEPT >> 30} GiB.",
                code="tab-forgotten",
                remedy="Run the text again.",
            )
        return (session.plain if asked.get("plain") else None) or session.run or self.first
