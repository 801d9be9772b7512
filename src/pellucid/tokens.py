"""Text to ids and back, by the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from pellucid import atomic
from pellucid.errors import InputError, WeightsError
from pellucid.weights.manifests import is_there, read_json, require_regular

UNFINISHED = "\ufffd"
"""How bytes are decoded that are no character, or not yet one."""


class Tokenizer:
    """GPT-2's byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), or another, run by the tokenizers library.

    Nothing is added to a text: no beginning-of-text id, no padding, no truncation.

    Example:
        >>> import pellucid as pl
        >>> tokenizer = pl.load().tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read `tokenizer.json`, else `vocab.json` and `merges.txt`; None where the folder has neither.

        With the latter two goes `added_tokens.json`, where there is one.
        """
        folder = Path(folder)
        if is_there(folder / "tokenizer.json"):
            return cls.from_file(folder / "tokenizer.json")
        if is_there(folder / "vocab.json") and is_there(folder / "merges.txt"):
            found = cls.from_vocabulary(folder / "vocab.json", folder / "merges.txt")
            found._add(folder / "added_tokens.json")
            return found
        return None

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`."""
        require_regular(path)
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every unreadable file
            raise _unreadable(path, error) from error

    @classmethod
    def from_vocabulary(cls, vocab: str | Path, merges: str | Path) -> Tokenizer:
        """Read GPT-2's `vocab.json` and `merges.txt`."""
        require_regular(vocab)
        require_regular(merges)
        try:
            ids, pairs = tokenizers.models.BPE.read_file(str(vocab), str(merges))
            backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs))
        except Exception as error:  # the library raises bare Exception for every unreadable file
            raise _unreadable(vocab, error) from error
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        if "<|endoftext|>" in ids:
            backend.add_special_tokens(["<|endoftext|>"])
        return cls(backend)

    def _add(self, path: Path) -> None:
        """Take in the tokens of an `added_tokens.json`, if it is there."""
        if not is_there(path):
            return
        added = read_json(path, WeightsError, "tokenizer-unreadable")
        try:
            self._backend.add_tokens(sorted(added, key=added.__getitem__))
            moved = {name for name, token in added.items() if self._backend.token_to_id(name) != token}
        except TypeError as error:  # ids that are no numbers
            raise _unreadable(path, error) from error
        if moved:
            raise _unreadable(path, ValueError(f"no place for {', '.join(sorted(moved))} behind the vocabulary"))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with nothing added."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # another type, or half of a surrogate pair
            raise InputError(
                f"tokenizer: {type(text).__name__} {text!r:.40}, expected text that UTF-8 can hold.",
                code="text-kind",
                remedy="Pass a str; text read with errors='surrogateescape' has to be decoded first.",
            ) from error

    def decode(self, ids: int | Iterable[int], *, after: Iterable[int] = ()) -> str:
        """The text of one id or several; bytes that are not UTF-8 come out as U+FFFD.

        Ids behind the vocabulary have no text: a model may have more rows than its tokenizer has tokens.

        Args:
            ids: What is decoded.
            after: Ids that stand before them and are not part of the text. GPT-2's tokens have a text of their own;
                those of other tokenizers may begin with a space that is dropped where a text begins.

        Raises:
            InputError: A negative id, or one that no vocabulary has.
        """
        own, before = _listed(ids), _listed(after)
        beginning = self._text(before) if before else ""
        whole = self._text([*before, *own])
        stands_apart = beginning.endswith(UNFINISHED) or not whole.startswith(beginning)
        return self._text(own) if stands_apart else whole.removeprefix(beginning)

    def _text(self, ids: list[int]) -> str:
        wrong = next((i for i in ids if not 0 <= i < 2**32), None)
        if wrong is not None:
            raise InputError(
                f"tokenizer: id {wrong}, expected 0 to {len(self) - 1}.",
                code="id-out-of-range",
                remedy="Decode with the tokenizer that the ids come from.",
            )
        return self._backend.decode(ids, skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id alone, as it is within a text, for labels."""
        return [self.decode([i], after=[i]) for i in ids]

    def token_id(self, piece: str) -> int:
        """The id of a text that is exactly one token.

        Raises:
            InputError: It is none or several.
        """
        ids = self.encode(piece)
        if len(ids) != 1:
            raise InputError(
                f"tokenizer: {piece!r} is {len(ids)} tokens, expected one.",
                code="not-one-token",
                remedy="Mind the leading space: ' word' and 'word' are different tokens.",
            )
        return ids[0]

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into a folder, which is made; whole or not at all.

        Raises:
            WeightsError: The folder cannot be written.
        """
        atomic.write_text(Path(folder) / "tokenizer.json", self.to_json())

    def to_json(self) -> str:
        """What `tokenizer.json` holds."""
        return self._backend.to_str(pretty=True)

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self._backend.get_vocab_size()


def _listed(ids: int | Iterable[int]) -> list[int]:
    return [int(i) for i in (torch.as_tensor(ids, device="cpu").reshape(-1) if isinstance(ids, (int, Tensor)) else ids)]


def _unreadable(path: str | Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"tokenizer: {str(path)!r} cannot be read: {error}",
        code="tokenizer-unreadable",
        remedy="Give a tokenizer.json of the tokenizers library, or GPT-2's vocab.json and merges.txt.",
    )
