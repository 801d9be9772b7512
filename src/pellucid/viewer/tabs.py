"""The tabs that the server serves: what each ran last."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from pellucid.run.model import CkptedTransformer
from pellucid.viewer.fields import Request
from pellucid.viewer.one_text import OneText, run_text

MOST_SESSIONS = 8
"""Tabs whose runs are kept, each with all its values."""


@dataclass
class Session:
    """One tab."""

    run: OneText | None = None  # its last run
    plain: OneText | None = None  # the same text without edits, if they were asked for with `edit`
    cancelled: Event = field(default_factory=Event)  # set to end its generation


class Tabs:
    """The model, and what each tab ran last.

    Args:
        model: What runs, one request at a time.
        text: What a tab that has run nothing looks at.
    """

    def __init__(self, model: CkptedTransformer, text: Any) -> None:
        self.model, self.lock = model, Lock()
        self.first = run_text(model, text)
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def session(self, name: str) -> Session:
        """The session of a tab; the one that was not used for longest makes room."""
        found = self._sessions.setdefault(name, Session())
        self._sessions.move_to_end(name)
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return found

    def run_of(self, session: Session, asked: Request) -> OneText:
        """What a tab looks at: its last run, or with `"plain": true` the one before the edits."""
        return (session.plain if asked.get("plain") else None) or session.run or self.first
