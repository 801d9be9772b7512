"""Text that arrives token by token, and never in the middle of a character."""

from __future__ import annotations

from pellucid.tokens import Tokenizer

_UNFINISHED = "\ufffd"


class TextStream:
    """Turns ids into text as they come.

    A token of byte-level BPE may end inside a character of several bytes; its text then comes with the token that
    finishes the character. All pieces together are the text of all ids.
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
        if text.endswith(_UNFINISHED) and len(self._waiting) < 4:  # no character has more bytes, so no more tokens
            return ""
        self._waiting.clear()
        return text

    def finish(self) -> str:
        """What is left when no more tokens come: the bytes of a character that was never finished."""
        left, self._waiting = self._waiting, []
        return self._tokenizer.decode(left) if left and self._tokenizer is not None else ""
