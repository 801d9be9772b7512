"""When a generated text ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pellucid.check import as_python, as_whole
from pellucid.errors import InputError, shown
from pellucid.schema import Schema
from pellucid.text.tokenizer import Tokenizer

Stop = str | int | Iterable[str | int] | None
"""Strings and ids that end a text."""

Reason = Literal["end", "stop", "length"]
"""An end id, a stop string or id, or as many tokens as were asked for."""


@dataclass(frozen=True)
class Stopping:
    """What ends a text."""

    max_new_tokens: int  # at most so many tokens are generated
    end_ids: tuple[int, ...]  # ids that end a text
    stop_ids: tuple[int, ...] = ()  # ids that end it because the caller wants it
    strings: tuple[str, ...] = ()  # texts that end it, wherever in the new text they come
    tokenizer: Tokenizer | None = None  # for the strings

    @property
    def ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        return (*self.end_ids, *self.stop_ids)

    def reason(self, new: Sequence[int]) -> Reason | None:
        """Why a text ends whose new tokens are these; None if it goes on."""
        if new and new[-1] in self.end_ids:
            return "end"
        if (new and new[-1] in self.stop_ids) or (self.strings and self._holds_a_string(new)):
            return "stop"
        return "length" if len(new) >= self.max_new_tokens else None

    def _holds_a_string(self, new: Sequence[int]) -> bool:
        """Whether the newest token finishes a stop string, which may have begun some tokens earlier."""
        assert self.tokenizer is not None, "checked when it was made"
        longest = max(len(text.encode("utf-8", "surrogatepass")) for text in self.strings)
        recent = new[-longest - 4 :]  # a token has a byte at least; four more finish a character
        text = self.tokenizer.decode(recent, after=recent[:1])
        return any(string in text for string in self.strings)


def stopping(
    schema: Schema,
    tokenizer: Tokenizer | None,
    max_new_tokens: int,
    stop: Stop,
    end_ids: int | Iterable[int],
) -> Stopping:
    """Check what ends a text."""
    most = as_whole(max_new_tokens)
    if most is None or most < 0:
        raise InputError(
            f"generate: max_new_tokens={shown(max_new_tokens)}, expected a whole number, 0 or more.",
            code="max-new-tokens",
            remedy="Give the number of tokens to generate; 0 gives the prompt back.",
        )
    given = _several(stop)
    strings = tuple(item for item in given if isinstance(item, str))
    ids = tuple(item for item in given if not isinstance(item, str))
    if "" in strings:
        raise InputError(
            "generate: an empty stop string, which every text holds.", code="empty-stop", remedy="Leave it out."
        )
    if strings and tokenizer is None:
        raise InputError(
            f"generate: the stop string {strings[0]!r}, but this model has no tokenizer.",
            code="no-tokenizer",
            remedy="Give stop ids, or set model.tokenizer.",
        )
    ends = tuple(_several(end_ids))
    for what, some in (("stop", ids), ("end_ids", ends)):
        _require_ids(what, some, schema.sizes["d_vocab"])
    return Stopping(most, ends, ids, strings, tokenizer)


def _several(given: object) -> list[Any]:
    """One or several, as a list."""
    if given is None:
        return []
    given = as_python(given)
    is_one = isinstance(given, (str, bytes)) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0
    return [given] if is_one else list(cast("Iterable[Any]", given))


def _require_ids(what: str, ids: Iterable[object], vocabulary: int) -> None:
    for token in ids:
        if (whole := as_whole(token)) is None or not 0 <= whole < vocabulary:
            raise InputError(
                f"generate: {what} holds {shown(token)}, expected ids from 0 to {vocabulary - 1}.",
                code="id-out-of-range",
                remedy="Give ids of this model's vocabulary; end_ids=() generates without an end.",
            )
