"""The loop over a corpus, and the sink that takes the captured values of each batch.

A sink names the checkpoints that it reads, takes the captured values of each batch, and may keep on disk how far it
got. Gathering statistics is one sink; storing the values themselves is another. A file, written whole or not at all,
says how far a corpus was read, and holds what was made of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid.check import as_number, path_of, require_whole
from pellucid.errors import InputError, PellucidError
from pellucid.family.json_config import Config
from pellucid.html.listing import counted
from pellucid.names.aliases import selected
from pellucid.run.activations import ActivationCkpts
from pellucid.run.interrupts import bar, told
from pellucid.schema import Schema
from pellucid.weights import own_file
from pellucid.weights.manifests import is_there


class CapturingModel(Protocol):
    """A model as far as it is needed here; a `CkptedTransformer` is one."""

    @property
    def config(self) -> Config:
        """What the model is."""
        ...

    @property
    def schema(self) -> Schema:
        """Its checkpoints."""
        ...

    def run_with_ckpts(self, inputs: Any, *, names: Any = None, stop_at: Any = None) -> tuple[Any, ActivationCkpts]:
        """Return logits and captured values."""
        ...


@dataclass(frozen=True)
class Batched:
    """Texts that run together."""

    numbers: range  # which texts of the corpus, from 0
    texts: list[Any]  # they themselves


@dataclass
class Progress:
    """How far a corpus was read."""

    texts: int = 0  # how many texts were read
    digest: str = hashlib.sha256().hexdigest()  # SHA-256 over these texts, in order, which tells them from other texts

    def add(self, text: Any) -> None:
        """Count one more text."""
        self.digest = hashlib.sha256(bytes.fromhex(self.digest) + fingerprint(text, self.texts, "stream")).hexdigest()
        self.texts += 1


class Sink(ABC):
    """A receiver of the batches of a corpus.

    `feed` calls `resume` once, then `take` and `keep` for each batch, and `keep` once more at the end.
    """

    @property
    @abstractmethod
    def captures(self) -> Collection[str]:
        """The checkpoints that this sink reads, as names or patterns."""

    def resume(self) -> Progress:
        """Return how far the corpus was read before, and go on from there; not at all unless a sink says otherwise."""
        return Progress()

    @abstractmethod
    def take(self, ckpts: Any, texts: range) -> None:
        """Use the captured values of one batch, or what `run` gave; `texts` are the numbers of its rows."""

    @property
    def kept(self) -> str:
        """What an interruption leaves, as part of a sentence."""
        return "nothing of it is kept"

    def keep(self, done: Progress, *, last: bool) -> None:  # noqa: B027 (a sink need not keep anything)
        """Write down that the corpus was read so far, if it is time or this was the last batch; not by itself."""


def feed(
    model: CapturingModel,
    texts: Iterable[Any],
    sink: Sink,
    *,
    batch_size: int,
    progress: bool = False,
    by: str = "stream",
    run: Callable[[Iterator[Batched]], Generator[tuple[Batched, Any]]] | None = None,
) -> Progress:
    """Run texts in batches of their order, each once, and give every batch to a sink.

    Args:
        model: What to run, as far as the last checkpoint that the sink reads.
        texts: Texts, or rows of ids; any iterable. Texts that the sink has taken before are passed over.
        sink: The receiver of every batch.
        batch_size: How many texts run together, 1 or more.
        progress: Whether to draw a bar with rate and time left on stderr, if that is a terminal.
        by: The function that the user called, for messages.
        run: Gives what the sink takes of each batch, in their order; None captures the values in this process.

    Returns:
        How far the texts were read.

    Raises:
        InputError: If there is no text, one is empty or longer than the context, or the first texts are not those
            that the sink has taken before.
        UnknownNameError: If there is no such checkpoint.
    """
    texts = several_texts(texts, by)
    names = selected(list(sink.captures), model.schema)
    done = sink.resume()
    count = len(texts) if isinstance(texts, Sized) else None
    words = lambda: f"{by}: interrupted after {counted(done.texts, 'text')}; {sink.kept}"  # noqa: E731
    with told(words), bar("texts", count, wanted=progress) as advance:
        batches = _batches(texts_after(texts, done), batch_size, done.texts)
        advance(done.texts)
        here = ((batch, captured(model, batch, names, by)) for batch in batches)
        with closing(here if run is None else run(batches)) as found:
            for batch, values in found:
                sink.take(values, batch.numbers)
                for text in batch.texts:
                    done.add(text)
                sink.keep(done, last=False)
                advance(len(batch.texts))
    if not done.texts:
        raise InputError(
            f"{by}: no texts, expected at least one.",
            code="no-texts",
            remedy="Give one or more; a generator that was read before is empty, so make it again.",
        )
    sink.keep(done, last=True)
    return done


def _batches(texts: Iterator[Any], size: int, first: int) -> Iterator[Batched]:
    while batch := list(islice(texts, min(size, sys.maxsize))):  # the last one is perhaps shorter
        yield Batched(range(first, first + len(batch)), batch)
        first += len(batch)


def captured(model: CapturingModel, batch: Batched, names: Sequence[str], by: str) -> ActivationCkpts:
    """Run one batch as far as the last of some checkpoints; an error says which texts it is about."""
    try:
        return model.run_with_ckpts(batch.texts, names=list(names), stop_at=names[-1])[1]
    except PellucidError as error:
        first, last = batch.numbers[0], batch.numbers[-1]
        which = f"texts {first} to {last}" if last > first else f"text {first}"
        raise type(error)(f"{by}, {which}: {error.message}", code=error.code, remedy=error.remedy) from error


def several_texts(texts: Iterable[Any], by: str) -> Iterable[Any]:
    """Texts, unless a single one was given, or what would give names instead."""
    no_list = isinstance(texts, (str, bytes, Mapping)) or hasattr(texts, "columns")  # a table
    if no_list or getattr(texts, "ndim", 1) == 0 or not isinstance(texts, Iterable):
        raise InputError(
            f"{by}: texts={type(texts).__name__}, expected a list or another iterable of texts.",
            code="texts-kind",
            remedy="Put a single text into a list, give the column of a table; pl.corpus.read(path) reads files.",
        )
    return texts


def fingerprint(text: Any, number: int, by: str) -> bytes:
    """Return the SHA-256 of a text or of its ids."""
    if isinstance(text, str):
        return hashlib.sha256(b"text" + text.encode("utf-8", "surrogatepass")).digest()
    try:
        if as_number(text) is not None:  # of a row of ids that should be in a list
            raise TypeError
        return hashlib.sha256(b"ids" + torch.as_tensor(text, device="cpu").numpy().astype("<i8").tobytes()).digest()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{by}, text {number}: {type(text).__name__}, expected a text or a row of ids.",
            code="texts-kind",
            remedy="Give texts as str, or rows of token ids as lists of whole numbers; a single row goes into a list.",
        ) from error


def texts_after(texts: Iterable[Any], done: Progress) -> Iterator[Any]:
    """Return the texts that were not read yet."""
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


Arrays = Mapping[str, NDArray[Any]]

_ABOUT = "pellucid.stream"
_FORMAT = "pellucid.stream/2"
_EARLIER = "pellucid.stream/1"


@dataclass(frozen=True)
class Saving:
    """Where and how often a stream writes down how far it got.

    Attributes:
        path: The file, replaced whole each time.
        every_texts: After how many texts it writes at the latest.
        every_seconds: After how many seconds it writes at the latest.
    """

    path: str | Path
    every_texts: int = 10_000
    every_seconds: float = 60.0

    def __post_init__(self) -> None:
        numbers = [as_number(n) for n in (self.every_texts, self.every_seconds)]
        often = all(n is not None and n >= 0 for n in numbers)
        if not often or not isinstance(self.path, (str, Path)):
            raise InputError(
                f"stream: {self!r}, expected a path and numbers of 0 or more.",
                code="stream-misfit",
                remedy="Give Saving('stream.safetensors', every_texts=10_000, every_seconds=60).",
            )


class StateFile:
    """The file of one stream, which is resumed only if its `identity` (the model, the statistics) is the same."""

    def __init__(self, saving: Saving, identity: Mapping[str, Any]) -> None:
        self._saving = saving
        self._identity = {"format": _FORMAT, **json.loads(json.dumps(identity))}
        self._texts, self._time = 0, time.monotonic()

    @property
    def kept(self) -> str:
        """What the file holds, as part of a sentence."""
        where = f"{self._saving.path} keeps the first {self._texts}, and the same call goes on from there"
        return where if self._texts else f"nothing of it is in {self._saving.path} yet"

    def due(self, done: Progress) -> bool:
        """Return whether it is time to write."""
        late = time.monotonic() - self._time >= self._saving.every_seconds
        return late or done.texts - self._texts >= self._saving.every_texts

    def save(self, done: Progress, arrays: Arrays) -> None:
        """Write how far the texts were read, and what was made of them."""
        tensors = {name: torch.from_numpy(np.require(a, requirements=["C", "W"])) for name, a in arrays.items()}
        about = {**self._identity, "texts": done.texts, "digest": done.digest}
        own_file.save(self._saving.path, _ABOUT, tensors, about)
        self._texts, self._time = done.texts, time.monotonic()

    def load(self, read: Callable[[Arrays], None]) -> Progress:
        """How far the texts were read; `read` gets the file's arrays, and raises `ValueError` if they are wrong."""
        path = path_of(self._saving.path)
        if not is_there(path):
            return Progress()
        with _refusing(path):
            about, tensors = own_file.load(path, _ABOUT)
            if "format" not in about:
                raise ValueError("it has no description of a stream")
        for key, wanted in self._identity.items():
            if about.get(key) != wanted:
                earlier = " (of an earlier version, which kept other sums)" * (about.get(key) == _EARLIER)
                remedy = "Continue with the same model, batch_size and statistics, or give another file."
                raise InputError(
                    f"stream: {path} was written with {key} {about.get(key)!r}{earlier}, expected {wanted!r}.",
                    code="stream-misfit",
                    remedy="Give another file; the texts are then gathered again." if key == "format" else remedy,
                )
        with _refusing(path):
            read({name: tensor.numpy().copy() for name, tensor in tensors.items()})
            self._texts = require_whole("texts", about["texts"], at_most=sys.maxsize)
            return Progress(self._texts, bytes.fromhex(about["digest"]).hex())


@contextmanager
def _refusing(path: Path) -> Generator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, PellucidError) as error:
        raise InputError(
            f"stream: {str(path)!r} does not say how far a stream got ({error!r}).",
            code="not-a-stream",
            remedy="Give a file that a stream wrote, or a name that is free.",
        ) from error
