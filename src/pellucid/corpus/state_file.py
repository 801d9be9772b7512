"""The file that says how far a corpus was read, and holds what was made of it: written whole or not at all."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pellucid import own_file
from pellucid.check import as_number, path_of, require_whole
from pellucid.corpus.sink import Progress
from pellucid.errors import InputError, PellucidError
from pellucid.weights.manifests import is_there

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
