"""Text that arrives token by token, and never in the middle of a character."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.tokens import UNFINISHED, Tokenizer

_MOST_BYTES = 4
"""Of a character in UTF-8, so that no more tokens can be waiting for its last one."""


class TextStream:
    """Turns ids into text as they come.

    A token of byte-level BPE may end inside a character of several bytes; its text then comes with the token that
    finishes the character, or that shows that nothing will. All pieces together are what the ids add to the text.

    Args:
        tokenizer: Turns ids into text; without one they are shown as numbers.
        after: Ids of what stands before.
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
