"""Where a stream of texts got to, in a file: written whole or not at all, and refused where it does not fit."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pellucid.errors import InputError
from pellucid.measure.gathering import Statistic
from pellucid.measure.labelled import Array
from pellucid.weights import files

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
        often = all(isinstance(n, (int, float)) and n >= 0 for n in (self.every_texts, self.every_seconds))
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
            arrays |= {f"{number}.{key}": np.asarray(array, order="C") for key, array in statistic.state().items()}
        about = {"format": _FORMAT, "texts": progress.texts, "digest": progress.digest, **self.identity}
        path = Path(self.saving.path)
        write = partial(save_file, arrays, metadata={_ABOUT: json.dumps(about)})
        files.write_folder(path.parent, {path.name: write})
        self._texts, self._time = progress.texts, time.monotonic()

    def load(self, statistics: Sequence[Statistic]) -> Progress:
        """Give the statistics what the file holds, and say which texts that was; none where there is no file.

        Raises:
            InputError: A file of something else, or of another model, other batches or other statistics.
        """
        path = Path(self.saving.path)
        if not path.exists():
            return Progress()
        about, arrays = _read(path)
        expected = {"format": _FORMAT, **json.loads(json.dumps(self.identity))}
        for key, wanted in expected.items():
            if about.get(key) != wanted:
                raise InputError(
                    f"stream: {path} was written with {key} {about.get(key)!r}, expected {wanted!r}.",
                    code="stream-misfit",
                    remedy="Go on with the same model, batch_size and statistics, or give another file.",
                )
        for number, statistic in enumerate(statistics):
            prefix = f"{number}."
            statistic.load({key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)})
        self._texts = int(about["texts"])
        return Progress(self._texts, str(about["digest"]))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})[_ABOUT])
            return about, {key: cast(Array, file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
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
