"""The loop over a corpus, and the sink that takes the captured values of each batch.

A sink names the checkpoints that it reads, takes the captured values of each batch, and may keep on disk how far it
got. Gathering statistics is one sink; storing the values themselves is another.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from pellucid.aliases import selected
from pellucid.errors import InputError, PellucidError
from pellucid.interrupts import bar, told
from pellucid.json_config import Config
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Schema


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
        self.texts += 1
        self.digest = hashlib.sha256(bytes.fromhex(self.digest) + fingerprint(text)).hexdigest()


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
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(
            f"{by}: texts={type(texts).__name__}, expected a list or another iterable of texts.",
            code="texts-kind",
            remedy="Put a single text into a list.",
        )
    names = selected(list(sink.captures), model.schema)
    done = sink.resume()
    count = len(texts) if isinstance(texts, Sized) else None
    words = lambda: f"{by}: interrupted after {done.texts} texts; {sink.kept}"  # noqa: E731
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
    while batch := list(islice(texts, size)):  # the last one is perhaps shorter
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


def fingerprint(text: Any) -> bytes:
    """Return the SHA-256 of a text or of its ids."""
    if isinstance(text, str):
        return hashlib.sha256(b"text" + text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(b"ids" + torch.as_tensor(text).cpu().numpy().astype("<i8").tobytes()).digest()


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
