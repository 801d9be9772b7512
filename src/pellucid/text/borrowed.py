"""What a tokenizer has to have; of a caller's own, the calls that labels and streams need are made of that."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import tokenizers

from pellucid.check import as_whole
from pellucid.errors import InputError, shown
from pellucid.text.ids import listed


@runtime_checkable
class Tokenizes(Protocol):
    """What a model's texts need of a tokenizer."""

    def encode(self, text: str) -> Any:
        """The ids of a text."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids."""
        ...


def no_tokenizer(given: object, expected: str) -> InputError:
    """The error for something in the place of a tokenizer, with the way to the one that was meant."""
    is_path = isinstance(given, (str, os.PathLike))
    what = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
    if is_path:
        remedy = (
            "pl.Tokenizer.from_folder reads a folder, pl.Tokenizer.from_file a tokenizer.json; pl.load(name).tokenizer "
            "is that of a model by its name."
        )
    elif isinstance(given, type):
        remedy = "Give an object of the class, such as pl.Tokenizer.from_folder(folder), pl.load(name).tokenizer."
    elif isinstance(given, tokenizers.Tokenizer):
        remedy = "Make one of it: pl.Tokenizer(tokenizer)."
    elif isinstance(given, Tokenizes):
        remedy = (
            "It can be a model's as it is, model.tokenizer = tokenizer; transformers' can be read from its files: "
            "tokenizer.save_pretrained(folder), then pl.Tokenizer.from_folder(folder)."
        )
    else:
        remedy = "Give a pl.Tokenizer, or an object with the calls that docs/tokens.md lists."
    return InputError(
        f"tokenizer: {shown(given) if is_path else what} given, expected {expected}.",
        code="tokenizer-kind",
        remedy=remedy,
    )


UNFINISHED = "\ufffd"
"""How bytes are decoded that are no character, or not yet one."""


def text_behind(decode: Callable[[list[int]], str], own: list[int], before: list[int]) -> str:
    """The text of ids, where `before` are ids in front of them that are not part of it.

    Some tokens begin with a space that is dropped where a text begins.
    """
    if not before:
        return decode(own)
    beginning, whole = decode(before), decode([*before, *own])
    stands_apart = beginning.endswith(UNFINISHED) or not whole.startswith(beginning)
    return decode(own) if stands_apart else whole.removeprefix(beginning)


def one_token(tokenizer: Tokenizes, piece: str) -> int:
    """The id of a text that is exactly one token."""
    ids = tokenizer.encode(piece)
    if len(ids) != 1:
        raise InputError(
            f"tokenizer: {shown(piece)} is {len(ids)} tokens, expected one.",
            code="not-one-token",
            remedy="Give one token; with its leading space, ' word', it is another one than 'word'.",
        )
    return ids[0]


def complete(tokenizer: Any) -> Any:
    """A tokenizer with every call that a model uses; itself if it has them, or if it is none."""
    if not isinstance(tokenizer, Tokenizes) or isinstance(tokenizer, (type, tokenizers.Tokenizer, Borrowed)):
        return tokenizer
    has_calls = hasattr(tokenizer, "pieces") and hasattr(tokenizer, "__len__")
    return tokenizer if has_calls and "after" in _arguments(tokenizer.decode) else Borrowed(tokenizer)


class Borrowed:
    """A tokenizer that has `encode` and `decode`; everything else that it has is found, called and set here, too.

    Args:
        borrowed: The caller's.
    """

    def __init__(self, borrowed: Tokenizes) -> None:
        self.borrowed = borrowed

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as it gives them."""
        return listed(self.borrowed.encode(text))

    def decode(self, ids: Any, *, after: Iterable[int] = (), skip_special_tokens: bool = False) -> str:
        """The text of one id or several, where `after` are ids in front of them that are not part of it."""
        asked = skip_special_tokens and "skip_special_tokens" in _arguments(self.borrowed.decode)
        options: dict[str, Any] = {"skip_special_tokens": True} if asked else {}

        def decoded(some: list[int]) -> str:
            try:
                return self.borrowed.decode(some, **options)
            except UnicodeDecodeError:  # the bytes of a part of a character
                return UNFINISHED

        return text_behind(decoded, listed(ids), listed(after))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id alone, as it is within a text, for labels."""
        return [self.decode([i], after=[i]) for i in listed(ids)]

    def token_id(self, piece: str) -> int:
        """The id of a text that is exactly one token."""
        return one_token(self, piece)

    def __len__(self) -> int:
        if hasattr(self.borrowed, "__len__"):
            return len(self.borrowed)  # pyright: ignore[reportArgumentType]
        sizes = (as_whole(getattr(self.borrowed, name, None)) for name in ("n_vocab", "vocab_size"))
        size = next(filter(None, sizes), None)
        if size is None:
            raise InputError(
                f"tokenizer: {type(self.borrowed).__name__} has no __len__, n_vocab or vocab_size.",
                code="tokenizer-kind",
                remedy="Give it the calls that docs/tokens.md lists.",
            )
        return size

    def __bool__(self) -> bool:
        return True

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.borrowed(*args, **options)  # pyright: ignore[reportCallIssue]

    def __contains__(self, token: object) -> bool:
        return token in self.borrowed  # pyright: ignore[reportOperatorIssue]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "borrowed":
            super().__setattr__(name, value)
        else:
            setattr(self.borrowed, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "borrowed" or name.startswith("__"):  # a copy that is being made asks for itself
            raise AttributeError(name)
        if name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            return getattr(self.borrowed, name, None)
        return getattr(self.borrowed, name)


def _arguments(call: Any) -> set[str]:
    try:
        return set(inspect.signature(call).parameters)
    except (TypeError, ValueError):  # what is not Python has no signature
        return set()
