"""Text that arrives token by token, and never in the middle of a character."""

from __future__ import annotations

from pellucid.tokens import Tokenizer

_UNFINISHED = "\ufffd"
_MOST_BYTES = 4
"""Of a character in UTF-8, so that no more tokens can be waiting for its last one."""


class TextStream:
    """Turns ids into text as they come.

    A token of byte-level BPE may end inside a character of several bytes; its text then comes with the token that
    finishes the character, or that shows that nothing will. All pieces together are the text of all ids.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token finishes, perhaps none."""
        if self._tokenizer is None:
            return f"{token} "
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting)
        if text.endswith(_UNFINISHED):
            return self._finished(text)
        self._waiting.clear()
        return text

    def _finished(self, text: str) -> str:
        """The text of the first tokens where more wait than a character has bytes, split between two characters."""
        assert self._tokenizer is not None
        for count in range(1, len(self._waiting) - _MOST_BYTES + 2):
            first = self._tokenizer.decode(self._waiting[:count])
            if first + self._tokenizer.decode(self._waiting[count:]) == text:
                del self._waiting[:count]
                return first
        return ""

    def finish(self) -> str:
        """What is left when no more tokens come: the bytes of a character that was never finished."""
        left, self._waiting = self._waiting, []
        return self._tokenizer.decode(left) if left and self._tokenizer is not None else ""
