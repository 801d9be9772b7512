"""The files of a tokenizer, read as transformers reads them, and what a call of a tokenizer returns.

What its classes make of them stands in `tokenizer_classes`. Each then adds the tokens that `tokenizer_config.json`,
or the older `special_tokens_map.json` and `added_tokens.json`, name.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from pellucid.check import as_whole
from pellucid.errors import InputError, PellucidError, WeightsError, shown
from pellucid.text.tokenizer_classes import class_of, objects, rebuild, special_tokens, takes_only_vocabulary
from pellucid.weights.manifests import each_once, is_there, read_json, read_text, require_regular
from pellucid.weights.pickles import read_plain


class Encoding(dict[str, Any]):
    """What a call of the tokenizer returns: "input_ids" and "attention_mask", also as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"'Encoding' object has no attribute {name!r}, only {', '.join(self)}")
        return self[name]

    def to(self, device: torch.device | str) -> Encoding:
        """The same with its tensors on a device."""
        return Encoding({key: value.to(device) if isinstance(value, Tensor) else value for key, value in self.items()})


def as_tensors(rows: list[list[int]], form: str) -> Any:
    """[B, P], a tensor or an array."""
    if not isinstance(form, str) or form not in ("pt", "np"):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"tokenizer: return_tensors={shown(form)}, expected 'pt', 'np' or None.",
            code="return-tensors",
            remedy="Give 'pt' for a tensor, 'np' for an array, or nothing for lists.",
        )
    if len({len(row) for row in rows}) > 1:
        raise InputError(
            f"tokenizer: texts of {[len(row) for row in rows]} tokens do not form a rectangle.",
            code="not-a-rectangle",
            remedy="Give the texts to the model, model.tokenize(texts), which pads and masks them.",
        )
    return torch.tensor(rows, dtype=torch.long, device="cpu") if form == "pt" else np.array(rows, dtype=np.int64)


def no_text(given: object) -> InputError:
    said = "Pass a str; text read with errors='surrogateescape' has to be decoded first."
    if not isinstance(given, (str, bytes)) and isinstance(given, Iterable):
        said = "Pass one text, or several as a flat list: tokenizer(texts)."
    return InputError(
        f"tokenizer: {type(given).__name__} {shown(given):.80}, expected text that UTF-8 can hold.",
        code="text-kind",
        remedy=said,
    )


def several(given: Any, what: str) -> Iterable[Any]:
    """What was given if there are several in it; one alone has another verb, or is no text at all."""
    one = isinstance(given, (str, bytes, Mapping)) or getattr(given, "ndim", 1) == 0
    if one or not isinstance(given, Iterable):
        raise InputError(
            f"tokenizer: {type(given).__name__} {shown(given):.80}, expected several of these: {what}.",
            code="text-kind",
            remedy=f"Pass a list, with an entry for each {what}.",
        )
    return given


SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens by transformers' names, in the order in which it adds those that a vocabulary lacks."""

FLAGS = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
"""What transformers says of an added token."""

_KEPT = (
    *SPECIAL, "extra_special_tokens", "add_prefix_space", "split_special_tokens", "padding_side", "truncation_side",
    "model_max_length", "chat_template",
)  # fmt: skip
"""What of a `tokenizer_config.json` outlives saving; added tokens lie in the `tokenizer.json` that is saved."""
_VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
"""The names of GPT-2's own files in transformers, and in OpenAI's release."""
_OTHERS = {
    "vocab.txt": "the vocabulary of a WordPiece tokenizer, such as BERT's",
    **dict.fromkeys(("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"), "a SentencePiece model"),
    "vocab.json": "a vocabulary without its merges.txt",
}
_VERSION = "#version"  # how a line begins that stands before merges, and that the library passes over
_BEGINNINGS = (*map(chr, range(32, 127)), "ä", "▁", "Ġ", "\uffff")  # of texts, for patterns that look at it
MOST_IDS = 10_000_000
"""Forty times the largest vocabulary that was published."""


def read_folder(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]] | None:
    """The tokenizer in a folder and what its configuration says; None if there are no files of one."""
    path, text = folder / "tokenizer.json", ""
    vocabulary = next((pair for pair in _VOCABULARIES if all(is_there(folder / name) for name in pair)), None)
    settings, config, stored = _settings(folder), _object(folder / "config.json"), dict[str, Any]()
    with library(path):
        if is_there(path):
            require_regular(path)
            text = read_text(path)
            stored = json.loads(text, object_pairs_hook=each_once)
        kind = class_of(settings, config, stored)
    silent = kind is None and not (settings.get("tokenizer_class") or (config and text))
    settings = {**special_tokens("GPT2Tokenizer" if silent else kind), **settings, "tokenizer_class": kind}
    if text:
        with library(path):
            if takes_only_vocabulary(kind, stored):
                backend = _rebuilt(path, stored, settings)
            else:
                _require_sound(stored)
                backend = tokenizers.Tokenizer.from_str(text)
                _require_ids(path, backend.get_vocab().values())
            padding = backend.padding or {}
            pads = {"pad_token": padding.get("pad_token"), "padding_side": padding.get("direction")}
            settings = {**{name: value for name, value in pads.items() if value is not None}, **settings}
    elif vocabulary is not None:
        backend = from_vocabulary(folder / vocabulary[0], folder / vocabulary[1], settings)
    else:
        return None
    _add_tokens(folder, backend, settings)
    return backend, {name: settings[name] for name in _KEPT if settings.get(name, []) != []}


def _inserts(step: dict[str, Any]) -> bool:
    """Whether a step of a normalizer replaces no characters before a text, by what texts begin with."""
    pattern = step["pattern"].get("Regex") if isinstance(step.get("pattern"), dict) else None
    if not step.get("content") or not isinstance(pattern, str):
        return False
    replace = tokenizers.normalizers.Replace(tokenizers.Regex(pattern), "\ue000").normalize_str
    return any(replace(first).startswith(f"\ue000{first}") for first in _BEGINNINGS)


def _require_sound(stored: Any) -> None:
    """Refuse a `tokenizer.json` at which the tokenizers library panics, as it prints a trace before it raises."""
    found = cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
    cuts, steps = (list(objects(found.get(name))) for name in ("pre_tokenizer", "normalizer"))
    texts = [one.get(key) for one in steps for key in ("String", "prepend")]
    empty = "" in texts or 0 in [one.get("length") for one in cuts]
    if empty or (any(one.get("type") == "ByteLevel" for one in cuts) and any(map(_inserts, steps))):
        raise ValueError("a step that cuts or replaces pieces of no characters")
    prefix = found.get("model", {}).get("continuing_subword_prefix") or ""
    for merge in found["model"].get("merges", ()) if prefix else ():
        second = merge.partition(" ")[2] if isinstance(merge, str) else merge[-1]
        if merge[:8] != _VERSION and not second.startswith(prefix):
            raise ValueError(f"the merge {shown(merge)}, whose second piece does not begin with {shown(prefix)}")


def from_file(path: str | Path) -> tokenizers.Tokenizer:
    """A `tokenizer.json` as it is."""
    require_regular(path)
    with library(path):
        text = read_text(path)
        _require_sound(json.loads(text))
        backend = tokenizers.Tokenizer.from_str(text)
    _require_ids(path, backend.get_vocab().values())
    return backend


def from_vocabulary(
    vocab: str | Path, merges: str | Path, settings: Mapping[str, Any] | None = None
) -> tokenizers.Tokenizer:
    """The tokenizer of a `vocab.json` and a `merges.txt`, GPT-2's unless a folder's settings name another class."""
    require_regular(vocab)
    require_regular(merges)
    with library(merges):
        lines = [line.removesuffix("\r") for line in read_text(merges).split("\n")]
        pairs = [_pair(line) for line in lines[: None if lines[-1] else -1] if line[:8] != _VERSION]
    with library(vocab):
        ids = json.loads(read_text(vocab), object_pairs_hook=each_once)
        if not isinstance(ids, dict):
            raise ValueError(f"a JSON {type(ids).__name__}, expected an object of pieces and their ids")
        _require_ids(vocab, ids.values())
        return rebuild(tokenizers.Tokenizer(tokenizers.models.BPE()), ids, pairs, settings or {})


def _pair(line: str) -> tuple[str, str]:
    first, space, second = line.partition(" ")
    if not (first and space and second) or " " in second:
        raise ValueError(f"the merge {shown(line)}, expected two pieces with a space between them")
    return first, second


def from_characters(path: Path) -> tuple[tokenizers.Tokenizer, frozenset[str]] | None:
    """The tokenizer of nanoGPT's `meta.pkl`, and its characters; None if the file has none."""
    content = read_plain(path)
    characters = content.get("stoi") if isinstance(content, dict) else None
    if characters is None:
        return None
    if not isinstance(characters, dict) or not _is_table(characters):
        raise unreadable(path, ValueError("its stoi is no table of single characters and their ids"))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(characters), unk_token=""))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return backend, frozenset(characters)


def not_read(folder: Path) -> str | None:
    """The file in a folder that holds a tokenizer of a kind that is not read, with what it is; None for none."""
    return next((f"{folder / name} is {what}" for name, what in _OTHERS.items() if is_there(folder / name)), None)


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`, with `special_tokens_map.json` if transformers reads that too."""
    settings = _object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _object(folder / "special_tokens_map.json")
    older = settings.pop("additional_special_tokens", None)
    extra = settings.get("extra_special_tokens") or older or []
    with library(folder / "tokenizer_config.json"):
        settings["extra_special_tokens"] = list(extra.values() if isinstance(extra, dict) else extra)
        for name in SPECIAL:
            if settings.get(name) is not None and not _is_special(name, settings[name]):
                raise ValueError(f"{name} is {shown(settings[name])}, expected a token")
    return settings


def _object(path: Path) -> dict[str, Any]:
    return read_json(path, WeightsError, "tokenizer-unreadable") if is_there(path) else {}


def _rebuilt(path: Path, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """What such a class makes of it. The vocabulary goes to the library as it is: as JSON it takes twice the time."""
    vocabulary, merges, added = stored["model"]["vocab"], stored["model"]["merges"], stored.get("added_tokens") or []
    _require_ids(path, vocabulary.values())
    pairs = [_pair(merge) if isinstance(merge, str) else tuple(merge) for merge in merges if merge[:8] != _VERSION]
    around = dict.fromkeys(("normalizer", "pre_tokenizer", "decoder"))
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    backend = tokenizers.Tokenizer.from_str(json.dumps({**stored, **around, "added_tokens": [], "model": empty}))
    rebuild(backend, vocabulary, pairs, settings)
    if "added_tokens_decoder" not in settings:
        backend.add_tokens([_token(token, ()) for token in sorted(added, key=lambda token: token["id"])])
    return backend


def _add_tokens(folder: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """Take in the tokens that are named beside a vocabulary, in the order in which transformers does."""
    path = folder / "tokenizer_config.json"
    with library(path):
        named = {name: _content(value) for name, value in settings.items() if _is_special(name, value)}
        special = {*named.values(), *map(_content, settings["extra_special_tokens"])}
        if "added_tokens_decoder" in settings:
            added = {int(token): fields for token, fields in settings["added_tokens_decoder"].items()}
        else:
            path = folder / "added_tokens.json"
            added = {token: name for name, token in _object(path).items()}
        tokens = [_token(added[token], special) for token in sorted(added)]
        backend.add_tokens(tokens)
        moved = [shown(str(token)) for token, token_id in zip(tokens, sorted(added), strict=True)
                 if backend.token_to_id(token.content) != token_id]  # fmt: skip
        if moved:
            raise ValueError(f"no place for {', '.join(moved[:8])} behind the vocabulary")
        rest = sorted(named, key=lambda name: SPECIAL.index(name) if name in SPECIAL else len(SPECIAL))
        for value in (*(settings[name] for name in rest), *settings["extra_special_tokens"]):
            known = {token.content for token in backend.get_added_tokens_decoder().values()}
            if _content(value) not in known:  # one that is known would lose its properties
                backend.add_tokens([_token(value, special)])
        backend.encode_special_tokens = settings.get("split_special_tokens") is True
        settings |= named


def _is_special(name: str, value: object) -> bool:
    return name.endswith("_token") and isinstance(value, (str, dict))


def _content(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _token(value: Any, special: Iterable[str]) -> AddedToken:
    """A token as a file has it, its text alone or with its properties."""
    content = _content(value)
    if not isinstance(value, dict):
        return AddedToken(content, special=content in special, normalized=content not in special)
    flags = {name: bool(value[name]) for name in FLAGS[1:] if name in value}
    return AddedToken(content, **{**flags, "special": content in special or flags.get("special", False)})


def _is_table(characters: Mapping[Any, Any]) -> bool:
    """Whether every key is one character, and every value an id of its own."""
    ids = {i for i in map(as_whole, characters.values()) if i is not None and 0 <= i < 2**31}
    return len(ids) == len(characters) and all(isinstance(c, str) and len(c) == 1 for c in characters)


def _require_ids(path: str | Path, ids: Iterable[object]) -> None:
    """Refuse what is no id, and one without a bound: to write a vocabulary, the library lists all between two."""
    for token in ids:
        if type(token) is not int or not 0 <= token < MOST_IDS:
            raise unreadable(path, ValueError(f"id {shown(token)}, expected a whole number below {MOST_IDS:,}"))


@contextmanager
def library(path: str | Path) -> Generator[None]:
    """The tokenizers library raises bare `Exception` for what it cannot read, and its panics are not even that."""
    try:
        yield
    except (PellucidError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: BaseException) -> WeightsError:
    """The error for a file of a tokenizer that cannot be read."""
    misplaced = isinstance(error, (AttributeError, LookupError, TypeError))  # of code that looked for something else
    said = f"something stands in it where such a file has something else ({error})" if misplaced else error
    return WeightsError(
        f"tokenizer: {str(path)!r} cannot be read: {said}.",
        code="tokenizer-unreadable",
        remedy="Give a tokenizer.json of the tokenizers library, or GPT-2's vocab.json and merges.txt.",
    )
