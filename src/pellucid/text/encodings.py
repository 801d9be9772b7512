"""What a call of a tokenizer returns, and the errors for what is no text and no tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tokenizers
import torch
from torch import Tensor

from pellucid.errors import InputError, shown


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
    if is_path:
        remedy = (
            "pl.Tokenizer.from_folder reads a folder, pl.Tokenizer.from_file a tokenizer.json; pl.load(name).tokenizer "
            "is that of a model by its name."
        )
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
        f"tokenizer: {shown(given) if is_path else type(given).__name__} given, expected {expected}.",
        code="tokenizer-kind",
        remedy=remedy,
    )


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
    if form not in ("pt", "np"):
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
    return torch.tensor(rows, dtype=torch.long) if form == "pt" else np.array(rows, dtype=np.int64)


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
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InputError(
            f"tokenizer: {type(given).__name__} {shown(given):.80}, expected several of these: {what}.",
            code="text-kind",
            remedy=f"Pass a list, with an entry for each {what}.",
        )
    return given
