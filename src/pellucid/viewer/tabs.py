"""The tabs that the server serves, what each ran last, and what the fields of a request say."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

from pellucid.check import as_whole
from pellucid.errors import InputError, shown
from pellucid.generate.sampler import Sampler
from pellucid.run.model import CkptedTransformer
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_files import require_fitting
from pellucid.viewer.one_text import OneText, run_text

Request = Mapping[str, Any]
Change = Mapping[str, Any]

_SAMPLING = frozenset({"temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty"})
_TEXT = frozenset({"text", "ids"})
_CHANGED = frozenset({"edits", "other", "target"})
_OF_AN_EDIT = frozenset({"name", "layer", "head", "neuron", "pos", "how", "other", "group"})

FIELDS: Mapping[str, frozenset[str]] = {
    "run": _TEXT | _CHANGED, "edit": _CHANGED | {"control"}, "cancel": frozenset(),
    "generate": _TEXT | _SAMPLING | {"seed", "max_new_tokens", "edits", "other"},
    "sample": _SAMPLING | {"seed", "plain"},
    "values": frozenset({"name", "pos", "heads", "plain"}), "lens": frozenset({"token", "layer", "pos", "plain"}),
    "attribution": frozenset({"token", "minus", "pos", "plain"}), "compare": frozenset({"other", "plain"}),
    "pca": frozenset({"name", "plain"}), "tsne": frozenset({"name", "perplexity", "seed", "plain"}),
}  # fmt: skip
"""What a request may say, for everything that can be asked."""


def misread(what: str, given: Any, expected: str) -> InputError:
    """The error for a field of a request that cannot be used."""
    return InputError(
        f"{what}: {shown(given)} was asked for, expected {expected}.",
        code="request-field",
        remedy=f"Send {expected}.",
    )


def refuse_unknown(what: str, asked: Request, known: Collection[str]) -> None:
    """Raise `InputError` if a request has a field that nobody would read: its sender expects something of it."""
    unknown = next((name for name in asked if name not in known), None)
    if unknown is not None:
        expected = f"some of the fields {', '.join(sorted(known))}" if known else "an empty object"
        raise misread(f"{what}: field", unknown, expected)


def edits_of(asked: Request) -> list[Change]:
    """The edits that were asked for."""
    value = asked.get("edits", [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise misread("edits", value, "a list of objects")
    for one in value:
        refuse_unknown("edits", one, _OF_AN_EDIT)
    return value


def text_of(model: CkptedTransformer, asked: Request) -> Any:
    """The text, or its ids."""
    if isinstance(asked.get("ids"), list):
        return [asked["ids"]]
    if isinstance(asked.get("text"), str):
        return as_written(model, asked["text"])
    raise misread("text", asked.get("text"), "a text, or ids")


def as_written(model: CkptedTransformer, text: str) -> Any:
    """A text as somebody wrote it: of a model without a tokenizer, ids such as `1 2 3`."""
    if model.tokenizer is None and re.fullmatch(r"[\s,]*\d[\d\s,]*", text):
        return [[int(one) for one in re.findall(r"\d+", text)]]
    return text


def token_of(model: CkptedTransformer, asked: Request, name: str) -> int | str:
    """A field that holds a token."""
    token = asked.get(name)
    if not isinstance(token, (int, str)):
        raise misread(name, token, "a token's id or its text")
    written = as_written(model, token) if isinstance(token, str) else token
    if not isinstance(written, list):
        return written
    if len(written[0]) != 1:
        raise misread(name, token, "one token's id")
    return written[0][0]


def entry_of(asked: Request, name: str, count: int) -> int:
    """A field that holds an index, as one from 0 on; it may count from the end, and left out it is the last."""
    index = as_whole(asked.get(name, -1))
    if index is None or not -count <= index < count:
        raise misread(name, asked.get(name), f"a whole number from {-count} to {count - 1}")
    return index % count


def sampler_of(asked: Request) -> Sampler:
    """How the next token is chosen."""
    return Sampler(**{name: asked[name] for name in _SAMPLING if asked.get(name) is not None})


def place_of(one: Change) -> str:
    """The full name of the checkpoint that is changed."""
    name, layer = str(one.get("name")), one.get("layer")
    return name if layer is None else f"blocks.{layer}.{name}"


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
