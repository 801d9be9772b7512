"""Where a stream of texts got to, in a file: written whole or not at all, and refused where it does not fit."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid import own_file
from pellucid.check import as_number, require_whole
from pellucid.errors import InputError, PellucidError
from pellucid.measure.gathering import Statistic
from pellucid.measure.labelled import Array
from pellucid.weights.manifests import is_there

_ABOUT = "pellucid.stream"
_FORMAT = "pellucid.stream/1"


@dataclass(frozen=True)
class Saving:
    """Where and how often a stream writes down where it got to.

    Attributes:
        path: The file, replaced whole each time.
        every_texts: At the latest after so many texts.
        every_seconds: At the latest after so many seconds.
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


@dataclass
class Progress:
    """Which texts were gathered.

    Attributes:
        texts: How many.
        digest: SHA-256 over them, in order, so that other texts are noticed on resuming.
    """

    texts: int = 0
    digest: str = hashlib.sha256().hexdigest()

    def add(self, text: Any) -> None:
        """Count one more."""
        self.texts += 1
        self.digest = hashlib.sha256(bytes.fromhex(self.digest) + fingerprint(text)).hexdigest()


@dataclass
class Keeper:
    """Writes and reads the file of one stream.

    Attributes:
        saving: Where and how often.
        identity: What must be the same on resuming: model, batches, statistics.
    """

    saving: Saving
    identity: Mapping[str, Any]
    _texts: int = 0
    _time: float = field(default_factory=time.monotonic)

    def due(self, progress: Progress) -> bool:
        """Whether it is time to write."""
        late = time.monotonic() - self._time >= self.saving.every_seconds
        return late or progress.texts - self._texts >= self.saving.every_texts

    def save(self, progress: Progress, statistics: Sequence[Statistic]) -> None:
        """Write where the stream is.

        Raises:
            WeightsError: The folder cannot be written.
        """
        arrays: dict[str, Array] = {}
        for number, statistic in enumerate(statistics):
            state = statistic.state()
            arrays |= {f"{number}.{key}": np.require(state[key], requirements=["C", "W"]) for key in state}
        about = {"format": _FORMAT, "texts": progress.texts, "digest": progress.digest, **self.identity}
        own_file.save(
            self.saving.path, _ABOUT, {name: torch.from_numpy(array) for name, array in arrays.items()}, about
        )
        self._texts, self._time = progress.texts, time.monotonic()

    def load(self, statistics: Sequence[Statistic]) -> Progress:
        """Give the statistics what the file holds, and say which texts that was; none where there is no file.

        Raises:
            InputError: A file of something else, or of another model, other batches or other statistics.
        """
        path = Path(self.saving.path)
        if not is_there(path):
            return Progress()
        with _refusing(path):
            about, tensors = own_file.load(path, _ABOUT)
            if "format" not in about:
                raise ValueError("it has no description of a stream")
        expected = {"format": _FORMAT, **json.loads(json.dumps(self.identity))}
        for key, wanted in expected.items():
            if about.get(key) != wanted:
                raise InputError(
                    f"stream: {path} was written with {key} {about.get(key)!r}, expected {wanted!r}.",
                    code="stream-misfit",
                    remedy="Continue with the same model, batch_size and statistics, or give another file.",
                )
        with _refusing(path):
            for number, statistic in enumerate(statistics):
                prefix = f"{number}."
                kept = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
                statistic.load({key: tensor.numpy().copy() for key, tensor in kept.items()})
            self._texts = require_whole("texts", about["texts"], at_most=sys.maxsize)
            return Progress(self._texts, bytes.fromhex(about["digest"]).hex())


@contextmanager
def _refusing(path: Path) -> Generator[None]:
    try:
        yield
    except (KeyError, ValueError, TypeError, PellucidError) as error:
        raise InputError(
            f"stream: {str(path)!r} does not say where a stream got to ({error!r}).",
            code="not-a-stream",
            remedy="Give a file that a stream wrote, or a name that is free.",
        ) from error


def fingerprint(text: Any) -> bytes:
    """SHA-256 of a text or of its ids."""
    if isinstance(text, str):
        return hashlib.sha256(b"text" + text.encode("utf-8", "surrogatepass")).digest()
    return hashlib.sha256(b"ids" + torch.as_tensor(text).cpu().numpy().astype("<i8").tobytes()).digest()
