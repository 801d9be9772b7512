"""Text to ids and back, by the tokenizers library."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tokenizers
import torch
from torch import Tensor

from pellucid import atomic
from pellucid.check import as_whole
from pellucid.dialects import named_arguments
from pellucid.errors import InputError, PellucidError, WeightsError, shown
from pellucid.weights.manifests import is_there, read_json, require_regular
from pellucid.weights.pickles import read_plain

UNFINISHED = "\ufffd"
"""How bytes are decoded that are no character, or not yet one."""


_ENDS = ("<|endoftext|>", "</s>", "<eos>")
_BEGINNINGS = ("<|endoftext|>", "<s>", "<bos>")
_AS_STORED = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers' that run a `tokenizer.json` as it is, whatever `tokenizer_config.json` says."""
_PADS = ("<pad>", "<|pad|>", "[PAD]", "<PAD>", "<|padding|>")

ELSEWHERE = {
    "padding": "Give the texts to the model, model.tokenize(texts), which pads and masks them.",
    "padding_side": "Give the texts to the model: model.tokenize(texts, padding_side='right').",
    "truncation": "Cut the ids: tokenizer.encode(text)[:length].",
    "max_length": "Cut the ids: tokenizer.encode(text)[:length].",
    "add_special_tokens": "Leave it out; nothing is added to a text.",
    "return_token_type_ids": "Leave it out; there are none.",
    "clean_up_tokenization_spaces": "Leave it out; nothing is cleaned up.",
}
"""What others pass to a tokenizer -> what to do here."""


class Tokenizer:
    """GPT-2's byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), or another, run by the tokenizers library.

    Nothing is added to a text: no beginning-of-text id, no padding, no truncation. Calls of transformers' tokenizers
    that need none of that work too: `tokenizer(text, return_tensors="pt").input_ids`, `eos_token_id`, `batch_decode`.

    Example:
        >>> import pellucid as pl
        >>> tokenizer = pl.load().tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._characters: frozenset[str] | None = None  # of a tokenizer that knows no others
        self._backend.no_padding()
        self._backend.no_truncation()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read `tokenizer.json`, else `vocab.json` and `merges.txt`, else nanoGPT's `meta.pkl`; None without any.

        With `vocab.json` goes `added_tokens.json`, and with either the `add_prefix_space` of `tokenizer_config.json`,
        where there is one.
        """
        folder = Path(folder)
        if is_there(folder / "tokenizer.json"):
            found = cls.from_file(folder / "tokenizer.json")
            found._configure(folder / "tokenizer_config.json")
            return found
        if is_there(folder / "vocab.json") and is_there(folder / "merges.txt"):
            found = cls.from_vocabulary(folder / "vocab.json", folder / "merges.txt")
            found._add(folder / "added_tokens.json")
            found._configure(folder / "tokenizer_config.json")
            return found
        return cls.from_characters(folder / "meta.pkl") if is_there(folder / "meta.pkl") else None

    @classmethod
    def from_characters(cls, path: str | Path) -> Tokenizer | None:
        """Read the `meta.pkl` of nanoGPT's character-level data; None for one without characters.

        Raises:
            WeightsError: Another file, or one that would run code.
        """
        content = read_plain(Path(path))
        characters = content.get("stoi") if isinstance(content, dict) else None
        if characters is None:
            return None
        if not isinstance(characters, dict) or not _is_table(characters):
            raise _unreadable(path, ValueError("its stoi is no table of single characters and their ids"))
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(characters), unk_token=""))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        backend.decoder = tokenizers.decoders.Fuse()
        found = cls(backend)
        found._characters = frozenset(characters)
        return found

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`."""
        require_regular(path)
        with _library(path):
            backend = tokenizers.Tokenizer.from_file(str(path))
        _require_ids(path, backend.get_vocab().values())
        return cls(backend)

    @classmethod
    def from_vocabulary(cls, vocab: str | Path, merges: str | Path) -> Tokenizer:
        """Read GPT-2's `vocab.json` and `merges.txt`."""
        require_regular(vocab)
        require_regular(merges)
        with _library(vocab):
            ids, pairs = tokenizers.models.BPE.read_file(str(vocab), str(merges))
            _require_ids(vocab, ids.values())
            backend = tokenizers.Tokenizer(tokenizers.models.BPE(ids, pairs))
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

    def _configure(self, path: Path) -> None:
        """Take the `add_prefix_space` of a `tokenizer_config.json`, if it is there and says it: it changes the ids."""
        said = read_json(path, WeightsError, "tokenizer-unreadable") if is_there(path) else {}
        space, before = said.get("add_prefix_space"), self._backend.pre_tokenizer
        reads_it = said.get("tokenizer_class") not in _AS_STORED
        if isinstance(space, bool) and reads_it and isinstance(before, tokenizers.pre_tokenizers.ByteLevel):
            before.add_prefix_space = space
            self._backend.pre_tokenizer = before

    @overload
    def encode(self, text: str, *, return_tensors: None = None) -> list[int]: ...
    @overload
    def encode(self, text: str, *, return_tensors: Literal["pt"]) -> Tensor: ...
    @overload
    def encode(self, text: str, *, return_tensors: Literal["np"]) -> np.ndarray[Any, Any]: ...
    @named_arguments(ELSEWHERE)
    def encode(self, text: str, *, return_tensors: str | None = None) -> Any:
        """Ids of a text, with nothing added.

        Args:
            text: One text.
            return_tensors: None for a list; "pt" or "np" for a tensor or an array [1, P].
        """
        return _as_tensors([self._ids(text)], return_tensors) if return_tensors else self._ids(text)

    @named_arguments(ELSEWHERE)
    def __call__(self, text: str | Sequence[str], *, return_tensors: str | None = None) -> Encoding:
        """Ids and mask of one text or several, as a transformers tokenizer returns them.

        Args:
            text: One text or several.
            return_tensors: None for lists; "pt" or "np" for a tensor or an array [B, P] of texts of equal length.

        Example:
            >>> import pellucid as pl
            >>> tokenizer = pl.load().tokenizer
            >>> tokenizer("Once upon a time", return_tensors="pt").input_ids.shape
            torch.Size([1, 4])
        """
        rows = [self._ids(one) for one in ([text] if isinstance(text, str) else text)]
        masks = [[1] * len(row) for row in rows]
        if return_tensors is not None:
            return Encoding(
                input_ids=_as_tensors(rows, return_tensors), attention_mask=_as_tensors(masks, return_tensors)
            )
        one = isinstance(text, str)
        return Encoding(input_ids=rows[0] if one else rows, attention_mask=masks[0] if one else masks)

    def _ids(self, text: str) -> list[int]:
        unknown = set(str(text)) - self._characters if self._characters is not None else set[str]()
        if unknown:
            raise InputError(
                f"tokenizer: {', '.join(map(shown, sorted(unknown)[:8]))}: not among its {len(self)} characters.",
                code="text-not-encoded",
                remedy="Leave these characters out, or set model.tokenizer to a tokenizer that has them.",
            )
        try:
            with _library("tokenizer.json"):  # an unknown token that is not in the vocabulary shows here
                return self._backend.encode(text, add_special_tokens=False).ids
        except TypeError as error:  # another type, or half of a surrogate pair
            raise InputError(
                f"tokenizer: {type(text).__name__} {text!r:.40}, expected text that UTF-8 can hold.",
                code="text-kind",
                remedy="Pass a str; text read with errors='surrogateescape' has to be decoded first.",
            ) from error

    @named_arguments(ELSEWHERE)
    def decode(self, ids: int | Iterable[int], *, after: Iterable[int] = (), skip_special_tokens: bool = False) -> str:
        """The text of one id or several; bytes that are not UTF-8 come out as U+FFFD.

        Ids behind the vocabulary have no text: a model may have more rows than its tokenizer has tokens.

        Args:
            ids: What is decoded.
            after: Ids that stand before them and are not part of the text. GPT-2's tokens have a text of their own;
                those of other tokenizers may begin with a space that is dropped where a text begins.
            skip_special_tokens: Whether to leave out tokens such as "<|endoftext|>".

        Raises:
            InputError: A negative id, or one that no vocabulary has.
        """
        own, before = _listed(ids), _listed(after)
        if skip_special_tokens:
            special = {token for token, added in self._backend.get_added_tokens_decoder().items() if added.special}
            own = [token for token in own if token not in special]
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

    def batch_decode(self, rows: Iterable[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str | None] | None:
        """The vocabulary's own spelling of one id or several, such as "Ġtime"; None behind the vocabulary."""
        found = [self._backend.id_to_token(token) for token in _listed(ids)]
        return found[0] if as_whole(ids) is not None else found

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """The ids of tokens in the vocabulary's own spelling; None where there is no such token."""
        if isinstance(tokens, str):
            return self._backend.token_to_id(tokens)
        return [self._backend.token_to_id(token) for token in tokens]

    def get_vocab(self) -> dict[str, int]:
        """Every token in the vocabulary's own spelling -> its id."""
        return self._backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return len(self)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends texts, where the vocabulary has one under a usual name."""
        return self._first(_ENDS)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins texts, where the vocabulary has one under a usual name."""
        return self._first(_BEGINNINGS)

    @property
    def pad_token_id(self) -> int | None:
        """The id of a token for padding alone, where the vocabulary has one under a usual name; GPT-2's has none."""
        return self._first(_PADS)

    def _first(self, names: Iterable[str]) -> int | None:
        return next((found for name in names if (found := self._backend.token_to_id(name)) is not None), None)

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


class Encoding(dict[str, Any]):
    """What a call of the tokenizer returns: "input_ids" and "attention_mask", also as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"'Encoding' object has no attribute {name!r}, only {', '.join(self)}")
        return self[name]

    def to(self, device: torch.device | str) -> Encoding:
        """The same with its tensors on a device."""
        return Encoding({key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.items()})


def _as_tensors(rows: list[list[int]], form: str) -> Any:
    """[B, P], a tensor or an array."""
    if form not in ("pt", "np"):
        raise InputError(
            f"tokenizer: return_tensors={form!r}, expected 'pt', 'np' or None.",
            code="return-tensors",
            remedy="Give 'pt' for a tensor, 'np' for an array, or nothing for lists.",
        )
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"tokenizer: texts of {[len(row) for row in rows]} tokens do not form a rectangle.",
            code="not-a-rectangle",
            remedy="Give the texts to the model, model.tokenize(texts), which pads and masks them.",
        )
    return torch.tensor(rows, dtype=torch.long) if form == "pt" else np.array(rows, dtype=np.int64)


def _listed(ids: int | Iterable[int]) -> list[int]:
    given = ids.reshape(-1).tolist() if isinstance(ids, (Tensor, np.ndarray)) else ids
    one = as_whole(given)
    if one is not None:
        return [one]
    several: list[Any] = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if set(map(type, several)) <= {int}:
        return several
    read = [as_whole(token) for token in several]
    if None in read:
        raise InputError(
            f"tokenizer: {shown(several[read.index(None)])} among the ids, expected whole numbers.",
            code="ids-dtype",
            remedy="Pass an id, or ids in a list or a tensor; `batch_decode` takes several rows.",
        )
    return read  # pyright: ignore[reportReturnType] (None was refused)


def _is_table(characters: Mapping[Any, Any]) -> bool:
    """Whether every key is one character, and every value an id of its own."""
    ids = {i for i in map(as_whole, characters.values()) if i is not None and 0 <= i < 2**31}
    return len(ids) == len(characters) and all(isinstance(c, str) and len(c) == 1 for c in characters)


MOST_IDS = 10_000_000
"""Forty times the largest vocabulary that was published."""


def _require_ids(path: str | Path, ids: Iterable[int]) -> None:
    """Refuse ids without a bound: to write a vocabulary, the library makes a list of all that lie between two."""
    largest = max(ids, default=0)
    if largest >= MOST_IDS:
        raise _unreadable(path, ValueError(f"id {largest}, expected less than {MOST_IDS:,}"))


@contextmanager
def _library(path: str | Path) -> Generator[None]:
    """The tokenizers library raises bare `Exception` for what it cannot read, and its panics are not even that."""
    try:
        yield
    except (TypeError, PellucidError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: BaseException) -> WeightsError:
    return WeightsError(
        f"tokenizer: {str(path)!r} cannot be read: {error}",
        code="tokenizer-unreadable",
        remedy="Give a tokenizer.json of the tokenizers library, or GPT-2's vocab.json and merges.txt.",
    )
