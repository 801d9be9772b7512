"""What a generation gives: ids, text, log-probabilities, when each text ends, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, cast

import torch
from torch import Tensor

from pellucid.check import as_python, as_whole
from pellucid.errors import InputError, shown
from pellucid.html.listing import Listed, Listing, counted
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Schema
from pellucid.text.batch import without_pads
from pellucid.text.borrowed import UNFINISHED
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
            f"generate: the stop string {shown(strings[0])}, but this model has no tokenizer.",
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


_IN_A_ROW = "Give several ids that end a text one by one, as [2, 3], and several in a row as their text."
_OWN_IDS = "Give ids of this model's vocabulary; end_ids=() generates without an end."


def _require_ids(what: str, ids: Iterable[object], vocabulary: int) -> None:
    for token in ids:
        if (whole := as_whole(token)) is None or not 0 <= whole < vocabulary:
            raise InputError(
                f"generate: {what} holds {shown(token)}, expected ids from 0 to {vocabulary - 1}.",
                code="id-out-of-range",
                remedy=_IN_A_ROW if isinstance(token, tuple) else _OWN_IDS,
            )


Ragged = Tensor | list[Tensor]
"""One tensor if all rows have one length, else a list of rows."""


@dataclass(frozen=True)
class Token:
    """A token of a stream.

    Attributes:
        text: What it adds to the text: whole characters, so that it may be empty. `print(token, end="")` prints it.
        id: Its id.
        logprob: Its log-probability in nats, in the model's own distribution.
        row: Which text it belongs to.
        stopped: Why the text ends with it: "end", "stop" or "length"; None if it goes on.
        stages: The distribution that it was chosen from after each stage, as `Sampler.explain` gives it, if that was
            asked for.
    """

    text: str
    id: int
    logprob: float
    row: int = 0
    stopped: Reason | None = None
    stages: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.text


_MOST_BYTES = 4
"""A character has at most so many bytes in UTF-8, so no more tokens can wait for its last one."""


class TextStream:
    """Turns ids into text as they come.

    A token of byte-level BPE may end inside a character of several bytes; its text then comes with the token that
    finishes the character, or that shows that nothing will. All pieces together are what the ids add to the text.
    """

    def __init__(self, tokenizer: Tokenizer | None, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = list(after[-1:])
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token finishes, perhaps none."""
        if self._tokenizer is None:
            return f"{token} "
        self._waiting.append(token)
        text = self._text(self._tokenizer, self._waiting)
        if text.endswith(UNFINISHED):
            return self._finished(self._tokenizer, text)
        self._show(len(self._waiting))
        return text

    def finish(self) -> str:
        """What is left when no more tokens come: the bytes of a character that was never finished."""
        left, self._waiting = self._waiting, []
        return self._text(self._tokenizer, left) if left and self._tokenizer is not None else ""

    def _finished(self, tokenizer: Tokenizer, text: str) -> str:
        """The text of the first tokens where more wait than a character has bytes, split between two characters."""
        for count in range(1, len(self._waiting) - _MOST_BYTES + 2):
            first, rest = self._waiting[:count], self._waiting[count:]
            shown = self._text(tokenizer, first)
            if shown + tokenizer.decode(rest, after=first) == text:
                self._show(count)
                return shown
        return ""

    def _text(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        return tokenizer.decode(ids, after=self._shown)

    def _show(self, count: int) -> None:
        self._shown, self._waiting = self._waiting[:count], self._waiting[count:]


@dataclass(frozen=True)
class GeneratedRow:
    """One generated text: ids of the prompt and of what follows, and the latter's log-probabilities."""

    prompt: Tensor
    new: Tensor
    logprobs: Tensor
    stopped: Reason
    score: float | None = None


@dataclass(frozen=True, repr=False)
class Generation(Listed):
    """Generated texts, one or several for each prompt.

    Attributes:
        rows: Each text.
        tokenizer: For `text`.
        single: Whether one text was asked for, by one prompt that was not in a list.
        ckpts: What was captured, over the whole texts; None if nothing was asked for.
        follows: The version of transformers that was followed, such as "transformers 5.24", if the ids depend on it
            (sampled beams); None if all versions give the same.

    Example:
        >>> import pellucid as pl
        >>> out = pl.load().generate("Once upon a time", max_new_tokens=4)
        >>> out.ids.shape, out.stopped
        (torch.Size([1, 8]), ['length'])
    """

    rows: tuple[GeneratedRow, ...]
    tokenizer: Tokenizer | None = field(compare=False)
    single: bool = False
    ckpts: ActivationCkpts | None = field(default=None, compare=False)
    follows: str | None = None

    @property
    def ids(self) -> Ragged:
        """Prompt and continuation without pads: [B, P], or a list of rows if they have different lengths."""
        together = _together([torch.cat([row.prompt, row.new]) for row in self.rows])
        return without_pads(together) if isinstance(together, Tensor) else together

    @property
    def new_ids(self) -> Ragged:
        """The continuations: [B, N], or a list of rows if they have different lengths."""
        return _together([row.new for row in self.rows])

    @property
    def logprobs(self) -> Ragged:
        """Log-probabilities in nats of the new tokens, the model's own, before any sampler; shaped as `new_ids`."""
        return _together([row.logprobs for row in self.rows])

    @property
    def stopped(self) -> list[Reason]:
        """Why each text ended: "end" (an end id), "stop" (a stop string or id) or "length"."""
        return [row.stopped for row in self.rows]

    @property
    def scores(self) -> list[float] | None:
        """Beam search: the sum of each text's log-probabilities over its new tokens to the length penalty."""
        found = [row.score for row in self.rows if row.score is not None]
        return found or None

    @property
    def texts(self) -> list[str]:
        """Prompt and continuation of each row."""
        return [_decoded(self.tokenizer, torch.cat([row.prompt, row.new]).tolist()) for row in self.rows]

    @property
    def text(self) -> str | list[str]:
        """`texts`, or the text itself if one was asked for."""
        return self.texts[0] if self.single else self.texts

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n\n".join(self.texts)

    def _listing(self) -> Listing:
        rows = [(repr(text), f"({row.stopped})") for text, row in zip(self.texts, self.rows, strict=True)]
        return Listing(f"Generation of {counted(len(self), 'text')}", ("text", "stopped"), rows)

    def _repr_html_(self) -> str:
        said = "New tokens are underlined, and darker if they were likelier to the model; the pointer shows how likely."
        texts = "".join(f"<p style='white-space: pre-wrap'>{_shaded(row, self.tokenizer)}</p>" for row in self.rows)
        return f"<div>Generation of {counted(len(self), 'text')}. {said}{texts}</div>"


def _shaded(row: GeneratedRow, tokenizer: Tokenizer | None) -> str:
    """A generated text as HTML, its new tokens shaded by their probabilities."""
    pieces = TextStream(tokenizer, row.prompt.tolist())
    found = escape(_decoded(tokenizer, row.prompt.tolist())) + " " * (tokenizer is None)
    for token, logprob in zip(row.new.tolist(), row.logprobs.tolist(), strict=True):
        p = math.exp(logprob)
        style = f"background: rgba(0, 114, 178, {p / 2:.2f}); border-bottom: 1px solid rgb(0, 114, 178)"
        found += f"<span title='{p:.1%}' style='{style}'>{escape(pieces.push(token))}</span>"
    return f"{found}{escape(pieces.finish())} <span style='opacity: 0.6'>({row.stopped})</span>"


def _decoded(tokenizer: Tokenizer | None, ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)


def _together(rows: list[Tensor]) -> Ragged:
    return torch.stack(rows) if len({len(row) for row in rows}) == 1 else rows
