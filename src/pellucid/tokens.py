"""Text to ids and back, by the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
from torch import Tensor

from pellucid.errors import InputError, NotFoundError, WeightsError


class Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), run by the tokenizers library.

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
        """Read `tokenizer.json`, else `vocab.json` and `merges.txt`; None where the folder has neither."""
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            return cls.from_file(folder / "tokenizer.json")
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls.from_vocabulary(folder / "vocab.json", folder / "merges.txt")
        return None

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`."""
        if not Path(path).is_file():
            raise NotFoundError(
                f"tokenizer: no file {str(path)!r}.", code="not-found", remedy="Give the path of a tokenizer.json."
            )
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception for every unreadable file
            raise _unreadable(path, error) from error

    @classmethod
    def from_vocabulary(cls, vocab: str | Path, merges: str | Path) -> Tokenizer:
        """Read GPT-2's `vocab.json` and `merges.txt`."""
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

    def decode(self, ids: int | Iterable[int]) -> str:
        """The text of one id or several; bytes that are not UTF-8 come out as U+FFFD.

        Raises:
            InputError: A negative id.
        """
        wanted = [int(i) for i in (torch.as_tensor(ids).reshape(-1) if isinstance(ids, (int, Tensor)) else ids)]
        if wanted and min(wanted) < 0:
            raise InputError(
                f"tokenizer: id {min(wanted)}, expected 0 to {len(self) - 1}.",
                code="id-out-of-range",
                remedy="Decode with the tokenizer that the ids come from.",
            )
        return self._backend.decode(wanted, skip_special_tokens=False)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id decoded alone, for labels."""
        return [self.decode([i]) for i in ids]

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
        """Write `tokenizer.json` into a folder."""
        self._backend.save(str(Path(folder) / "tokenizer.json"))

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self._backend.get_vocab_size()


def _unreadable(path: str | Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"tokenizer: {str(path)!r} cannot be read: {error}",
        code="tokenizer-unreadable",
        remedy="Give a tokenizer.json of the tokenizers library, or GPT-2's vocab.json and merges.txt.",
    )
