"""What the fields of a request say; a field that cannot be used is an error that says what to send."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pellucid.check import as_whole
from pellucid.errors import InputError, shown
from pellucid.generate.sampler import Sampler

Request = Mapping[str, Any]
Change = Mapping[str, Any]

_SAMPLING = frozenset({"temperature", "top_k", "top_p", "repetition_penalty", "frequency_penalty"})
_TEXT = frozenset({"text", "ids"})
_CHANGED = frozenset({"edits", "other", "target"})
_OF_AN_EDIT = frozenset({"name", "layer", "head", "neuron", "pos", "how", "other", "group"})

FIELDS: Mapping[str, frozenset[str]] = {
    "run": _TEXT | _CHANGED, "edit": _CHANGED | {"control"}, "cancel": frozenset(),
    "generate": _TEXT | _SAMPLING | {"seed", "max_new_tokens"}, "sample": _SAMPLING | {"seed", "plain"},
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


def text_of(asked: Request) -> Any:
    """The text, or its ids."""
    if isinstance(asked.get("ids"), list):
        return [asked["ids"]]
    if isinstance(asked.get("text"), str):
        return asked["text"]
    raise misread("text", asked.get("text"), "a text, or ids")


def token_of(asked: Request, name: str) -> int | str:
    """A field that holds a token."""
    token = asked.get(name)
    if not isinstance(token, (int, str)):
        raise misread(name, token, "a token's id or its text")
    return token


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
