"""The first pass over a corpus: every text as ids, with what tells it from others, written down as it is read."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.corpus.place import chunk_key
from pellucid.corpus.sink import CapturingModel, fingerprint, several_texts
from pellucid.errors import InputError, PellucidError
from pellucid.text.ids import table

SAMPLE = 4096
"""Tokens of the first texts that are kept to measure how long a run takes."""

CHUNK_BYTES = 4 * 2**20
"""Bytes of a chunk of tokens, or of what is known of texts."""

TOKENS, OFFSETS, NUMBERS, DIGESTS = "tokens", "offsets", "numbers", "digests"
"""Arrays of a store beside the values: the ids, where texts begin and the last one ends, which of the given texts each
is, and the SHA-256 of each."""


Put = Callable[[str, bytes], None]


class Reader(CapturingModel, Protocol):
    """A model that makes ids of texts."""

    tokenizer: Any

    def tokenize(self, inputs: Any) -> Any:
        """A batch of texts."""
        ...


class Growing:
    """An array on disk that is written from its first number to its last, a chunk at a time; width 0 is one axis."""

    def __init__(self, put: Put, name: str, dtype: str, width: int = 0) -> None:
        self.name, self.dtype, self.width, self.length = name, np.dtype(dtype), width, 0
        self._write, self._filled, self._chunks = put, 0, 0
        self.chunk = CHUNK_BYTES // (self.dtype.itemsize * max(width, 1))
        self._held = np.empty((self.chunk, width) if width else self.chunk, self.dtype)
        self.written: dict[str, str] = {}  # the SHA-256 of each chunk, by its key

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what was written so far."""
        return (self.length, self.width) if self.width else (self.length,)

    def extend(self, numbers: Any) -> None:
        """Write more rows."""
        rows = np.asarray(numbers, self.dtype).reshape(-1, *self._held.shape[1:])
        self.length += len(rows)
        while len(rows):
            taken = rows[: self.chunk - self._filled]
            self._held[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == self.chunk:
                self._put(self._held)
                self._filled = 0

    def finish(self) -> None:
        """Write what is left; a single chunk is as long as the array, others are filled up."""
        if self._chunks == 0:
            self.chunk = max(self._filled, 1)
        if self._filled:
            self._held[self._filled :] = 0
            self._put(self._held[: self.chunk])

    def _put(self, rows: NDArray[Any]) -> None:
        key = chunk_key(self.name, self._chunks, len(self.shape))
        data = np.ascontiguousarray(rows).tobytes()
        self.written[key] = hashlib.sha256(data).hexdigest()
        self._write(key, data)
        self._chunks += 1


class Intake:
    """Reads texts once and writes their ids.

    Args:
        model: Whose ids.
        put: Writes what is read, by its key in the store.
        split: Whether texts longer than the context are cut into pieces of its length, each a text of its own; else
            they are refused.

    Attributes:
        longest: Tokens of the longest text.
        lengths: Tokens of every text.
        first: The ids of the first texts, of about `SAMPLE` tokens.
    """

    def __init__(self, model: Reader, put: Put, *, split: bool) -> None:
        self._model, self._split = model, split
        self.tokens, self.offsets = Growing(put, TOKENS, "<u4"), Growing(put, OFFSETS, "<u8")
        self.numbers, self.digests = Growing(put, NUMBERS, "<u8"), Growing(put, DIGESTS, "|u1", 32)
        self.longest = 0
        self.lengths = array("I")
        self.first: list[list[int]] = []

    @property
    def arrays(self) -> tuple[Growing, ...]:
        """All that is written."""
        return self.tokens, self.offsets, self.numbers, self.digests

    def read(self, texts: Iterable[Any]) -> str:
        """Write all texts, and return what tells them, in their order, from others."""
        all_of_it = hashlib.sha256()
        self.offsets.extend([0])
        for number, text in enumerate(several_texts(texts, "corpus")):
            digest = fingerprint(text, number, "corpus")
            all_of_it.update(digest)
            for ids in self._pieces(text, number):
                if self.tokens.length < SAMPLE:
                    self.first.append(ids)
                self.tokens.extend(ids)
                self.offsets.extend([self.tokens.length])
                self.numbers.extend([number])
                self.digests.extend(np.frombuffer(digest, np.uint8))
                self.longest = max(self.longest, len(ids))
                self.lengths.append(len(ids))
        if not self.tokens.length:
            raise InputError(
                "corpus: no texts, expected at least one.",
                code="no-texts",
                remedy="Give one or more; a generator that was read before is empty, so make it again.",
            )
        for written in self.arrays:
            written.finish()
        return all_of_it.hexdigest()

    def _pieces(self, text: Any, number: int) -> Iterator[list[int]]:
        try:
            yield self._ids(text)
        except PellucidError as error:
            if error.code != "too-long" or not self._split:
                raise _about(number, error) from error
            ids = self._model.tokenizer.encode(text) if isinstance(text, str) else table(text)[0].tolist()
            size = self._model.schema.sizes["n_ctx"]
            for start in range(0, len(ids), size):
                yield self._ids(ids[start : start + size])

    def _ids(self, text: Any) -> list[int]:
        (row,) = self._model.tokenize([text]).rows()
        return row.tolist()


def _about(number: int, error: PellucidError) -> PellucidError:
    """The same error, which says of which text it is."""
    remedy = error.remedy
    if error.code == "too-long":
        remedy = "Give long_texts='split' to cut it into pieces of the context's length, or leave the text out."
    if error.code == "empty-text":
        remedy = "Leave it out: it has no tokens, and so no rows."
    return type(error)(f"corpus, text {number}: {error.message}", code=error.code, remedy=remedy)


def digest_of(texts: Iterable[Any]) -> str:
    """What tells texts, in their order, from others, as `Intake.read` returns it; nothing is written."""
    all_of_it = hashlib.sha256()
    for number, text in enumerate(several_texts(texts, "corpus")):
        all_of_it.update(fingerprint(text, number, "corpus"))
    return all_of_it.hexdigest()
