"""Text to ids and back, by the tokenizers library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import tokenizers
from torch import Tensor

from pellucid import atomic
from pellucid.check import as_whole, path_of
from pellucid.errors import InputError, NotFoundError, WeightsError, shown, some, warn
from pellucid.names.attributes import TOKENIZER, TOKENIZER_CLASS, unknown_attribute
from pellucid.names.calls import named_arguments
from pellucid.text import tokenizer_files
from pellucid.text.borrowed import no_tokenizer, one_token, text_behind
from pellucid.text.ids import listed
from pellucid.text.tokenizer_classes import END_OF_TEXT
from pellucid.text.tokenizer_files import Encoding, as_tensors, no_text, several
from pellucid.weights.manifests import is_there, json_text

_ENDS = ("<|endoftext|>", "</s>", "<eos>")
_BEGINNINGS = ("<|endoftext|>", "<s>", "<bos>")
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


class _Named(type):
    """The class of `Tokenizer`, which says what to use where other libraries have another class method."""

    def __getattr__(cls, name: str) -> Any:
        raise unknown_attribute("type object 'Tokenizer'", name, TOKENIZER_CLASS)


@named_arguments()
class Tokenizer(metaclass=_Named):
    """GPT-2's byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), or another, run by the tokenizers library.

    Nothing is added to a text: no beginning-of-text id, no padding, no truncation. Calls of transformers' tokenizers
    that need none of that work too: `tokenizer(text, return_tensors="pt").input_ids`, `eos_token_id`, `batch_decode`.

    Args:
        backend: A tokenizer of the tokenizers library; its padding and truncation are switched off.
        settings: What `tokenizer_config.json` says.

    Raises:
        InputError: If it is another backend.

    Example:
        >>> import pellucid as pl
        >>> tokenizer = pl.load().tokenizer
        >>> tokenizer.decode(tokenizer.encode("Once upon a time"))
        'Once upon a time'
    """

    def __init__(self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None) -> None:
        if not isinstance(backend, tokenizers.Tokenizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise no_tokenizer(backend, "tokenizers.Tokenizer")
        self._backend = backend
        self._settings = settings  # what a folder says, in the words of tokenizer_config.json; None of no folder
        self._characters: frozenset[str] | None = None  # of a tokenizer that knows no others
        self._backend.no_padding()
        self._backend.no_truncation()

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer | None:
        """Read `tokenizer.json`, else `vocab.json` and `merges.txt`, else nanoGPT's `meta.pkl`; None without any.

        What a folder says of added and special tokens, and of the space before a text, counts as it does in
        transformers: `tokenizer_config.json`, or else `special_tokens_map.json` and `added_tokens.json`.

        Raises:
            NotFoundError: If there is no such folder.
            WeightsError: If the file cannot be read.
        """
        folder = path_of(folder)
        if not folder.is_dir():
            raise NotFoundError(
                f"{folder}: no such folder, expected one that holds a tokenizer's files.",
                code="path-not-found",
                remedy="Give a folder, or a tokenizer.json to pl.Tokenizer.from_file; pl.load(name).tokenizer is that "
                "of a model by its name.",
            )
        found = tokenizer_files.read_folder(folder)
        if found is not None:
            return cls(*found)
        path = folder / "meta.pkl"
        return cls.from_characters(path) if is_there(path) else None

    @classmethod
    def from_characters(cls, path: str | Path) -> Tokenizer | None:
        """Read the `meta.pkl` of nanoGPT's character-level data; None for one without characters.

        Raises:
            WeightsError: If it is another file, or one that would run code.
        """
        read = tokenizer_files.from_characters(path_of(path))
        if read is None:
            return None
        found = cls(read[0])
        found._characters = read[1]
        return found

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json` as it is, without what other files of its folder say.

        Raises:
            NotFoundError: If there is no such file.
            WeightsError: If it is no such file.
        """
        path = path_of(path)
        if path.is_dir():
            raise WeightsError(
                f"{path}: a folder, expected a tokenizer.json.",
                code="path-not-regular",
                remedy="Give it to pl.Tokenizer.from_folder, or the file that is in it.",
            )
        if not is_there(path):
            raise NotFoundError(
                f"{path}: no such file, expected a tokenizer.json.",
                code="path-not-found",
                remedy="Check the spelling of the path; pl.load(name).tokenizer is that of a model by its name.",
            )
        return cls(tokenizer_files.from_file(path))

    @classmethod
    def from_vocabulary(cls, vocab: str | Path, merges: str | Path) -> Tokenizer:
        """Read GPT-2's `vocab.json` and `merges.txt`."""
        found = cls(tokenizer_files.from_vocabulary(path_of(vocab), path_of(merges)))
        if found._backend.token_to_id(END_OF_TEXT) is not None:
            found._backend.add_special_tokens([END_OF_TEXT])
        return found

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
        return self._ids(text) if return_tensors is None else as_tensors([self._ids(text)], return_tensors)

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
        rows = [self._ids(one) for one in ([text] if isinstance(text, str) else several(text, "text"))]
        masks = [[1] * len(row) for row in rows]
        if return_tensors is not None:
            return Encoding(
                input_ids=as_tensors(rows, return_tensors), attention_mask=as_tensors(masks, return_tensors)
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
        with tokenizer_files.library("tokenizer.json"):  # an unknown token that is not in the vocabulary shows here
            try:
                return self._backend.encode(text, add_special_tokens=False).ids
            except TypeError as error:  # another type, or half of a surrogate pair
                raise no_text(text) from error

    @named_arguments(ELSEWHERE)
    def decode(self, ids: int | Iterable[int], *, after: Iterable[int] = (), skip_special_tokens: bool = False) -> str:
        """The text of one id or several; bytes that are not UTF-8 come out as U+FFFD.

        Ids behind the vocabulary have no text, and a warning says so: a model may have more rows than its tokenizer has
        tokens.

        Args:
            ids: What is decoded.
            after: Ids that stand before them and are not part of the text. GPT-2's tokens have a text of their own;
                those of other tokenizers may begin with a space that is dropped where a text begins.
            skip_special_tokens: Whether to leave out tokens such as "<|endoftext|>".

        Raises:
            InputError: If an id is negative, or one that no vocabulary has.
        """
        own, before = listed(ids), listed(after)
        without = [token for token in own if self._backend.id_to_token(token) is None]
        if without:
            warn(f"tokenizer: id {some([*map(str, without)], 1)} without a text: none of its {len(self)} tokens.")
        return self._after(own, before, skip_special_tokens=skip_special_tokens)

    def _after(self, own: list[int], before: list[int], *, skip_special_tokens: bool = False) -> str:
        if skip_special_tokens:
            special = {token for token, added in self._backend.get_added_tokens_decoder().items() if added.special}
            own = [token for token in own if token not in special]
        return text_behind(lambda ids: self._backend.decode(ids, skip_special_tokens=False), own, before)

    def batch_decode(self, rows: Iterable[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in several(rows, "row of ids")]

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str | None] | None:
        """The vocabulary's own spelling of one id or several, such as "Ġtime"; None behind the vocabulary."""
        found = [self._backend.id_to_token(token) for token in listed(ids)]
        return found[0] if as_whole(ids) is not None else found

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> int | list[int | None] | None:
        """The ids of tokens in the vocabulary's own spelling; None if there is no such token."""
        if isinstance(tokens, str):
            return self._number(tokens)
        return [self._number(token) for token in several(tokens, "token")]

    def _number(self, token: str) -> int | None:
        try:
            return self._backend.token_to_id(token)
        except (TypeError, UnicodeError) as error:
            raise no_text(token) from error

    def get_vocab(self) -> dict[str, int]:
        """Every token in the vocabulary's own spelling -> its id."""
        return self._backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return len(self)

    @property
    def eos_token_id(self) -> int | None:
        """The id of the token that ends texts: the one that the folder names, else one with a usual name."""
        return self._special("eos_token", _ENDS)

    @property
    def bos_token_id(self) -> int | None:
        """The id of the token that begins texts: the one that the folder names, else one with a usual name."""
        return self._special("bos_token", _BEGINNINGS)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the token for padding, named by the folder or by a usual name; GPT-2's has none."""
        return self._special("pad_token", _PADS)

    def _special(self, name: str, usual: Iterable[str]) -> int | None:
        names = [self._settings[name]] if self._settings and name in self._settings else usual
        return next((found for name in names if name and (found := self._backend.token_to_id(name)) is not None), None)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Each id alone, as it is within a text, for labels."""
        return [self._after([i], [i]) for i in listed(ids)]

    def token_id(self, piece: str) -> int:
        """The id of a text that is exactly one token.

        Raises:
            InputError: If it is none or several.
        """
        return one_token(self, piece)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into a folder, which is made; both or none.

        transformers reads them as a tokenizer with the same ids and special tokens.

        Raises:
            WeightsError: If the folder cannot be written.
        """
        atomic.write_folder(path_of(folder), [(n, atomic.text_writer(text)) for n, text in self.files().items()])

    def files(self) -> dict[str, str]:
        """What `save` writes: the text of each file."""
        before = self._backend.pre_tokenizer
        space = isinstance(before, tokenizers.pre_tokenizers.ByteLevel) and before.add_prefix_space
        settings = {
            **(self._usual() if self._settings is None else self._settings),
            "tokenizer_class": "PreTrainedTokenizerFast",  # which runs tokenizer.json as it is
            "add_prefix_space": space,
            "clean_up_tokenization_spaces": False,
            # With these, transformers passes over what another tokenizer left of such tokens in the folder.
            "added_tokens_decoder": {
                number: {flag: getattr(token, flag) for flag in tokenizer_files.FLAGS}
                for number, token in sorted(self._backend.get_added_tokens_decoder().items())
            },
        }
        return {"tokenizer.json": self.to_json(), "tokenizer_config.json": json_text(settings)}

    def _usual(self) -> dict[str, str]:
        """Special tokens under transformers' names: those with a usual name that texts may hold as one token."""
        added = self._backend.get_added_tokens_decoder()
        found = {"bos_token": self.bos_token_id, "eos_token": self.eos_token_id, "pad_token": self.pad_token_id}
        return {name: added[token].content for name, token in found.items() if token in added}

    def to_json(self) -> str:
        """What `tokenizer.json` holds."""
        return self._backend.to_str(pretty=True)

    def __getattr__(self, name: str) -> Any:
        raise unknown_attribute("'Tokenizer' object", name, TOKENIZER)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in TOKENIZER:  # it would be read by nobody
            raise unknown_attribute("'Tokenizer' object", name, TOKENIZER)
        super().__setattr__(name, value)

    def __len__(self) -> int:
        """Size of the vocabulary, special tokens included."""
        return self._backend.get_vocab_size()
