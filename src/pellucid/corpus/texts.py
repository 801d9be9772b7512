"""The texts of a corpus in order: how far they were read, and the batches that they form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from pellucid.errors import InputError


@dataclass
class Progress:
    """How far a corpus was read.

    Attributes:
        texts: How many texts were read.
        digest: SHA-256 over these texts, in order, which tells them from other texts.
    """

    texts: int = 0
    digest: str = hashlib.sha256().hexdigest()

    def add(self, text: Any) -> None:
        """Count one more text."""
        self.texts += 1
        self.digest = hashlib.sha256(bytes.fromhex(self.digest) + fingerprint(text)).hexdigest()


def fingerprint(text: Any) -> bytes:
    """Return the SHA-256 of a text or of its ids."""
    if isinstance(text, str):
        return hashlib.sha256(b"text" + text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(b"ids" + torch.as_tensor(text).cpu().numpy().astype("<i8").tobytes()).digest()


def texts_after(texts: Iterable[Any], done: Progress) -> Iterator[Any]:
    """Return the texts that were not read yet.

    Raises:
        InputError: If the first texts are not those that were read.
    """
    left = iter(texts)
    seen = Progress()
    for text in islice(left, done.texts):
        seen.add(text)
    if seen != done:
        raise InputError(
            f"stream: the first {done.texts} texts are not those that the file was made of ({seen.texts} given).",
            code="stream-misfit",
            remedy="Give the same texts in the same order, or another file.",
        )
    return left


def batches_of(texts: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Cut texts into lists of `size`, the last one perhaps shorter."""
    while batch := list(islice(texts, size)):
        yield batch
