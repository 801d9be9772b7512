"""What a comparison was of: two names, what both ran, the versions, and when."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pellucid._version import __version__
from pellucid.errors import printable
from pellucid.run.model import CkptedTransformer


@dataclass(frozen=True)
class RunInputs:
    """What both models ran.

    Attributes:
        ids: The rows of token ids.
        texts: The texts that they are of; empty where ids were given.
        drawn: Whether the ids were drawn, because neither side came with a tokenizer.
    """

    ids: tuple[tuple[int, ...], ...] = ()
    texts: tuple[str, ...] = ()
    drawn: bool = False

    def __str__(self) -> str:
        if not self.ids:
            return "nothing was run"
        count = sum(map(len, self.ids))
        tokens = f"{count:,} token{'s' * (count != 1)}"
        if self.drawn:
            return f"{tokens} drawn from the vocabulary with seed {SEED}, since neither side has a tokenizer"
        if not self.texts:
            shown = ", ".join(map(str, self.ids[0][:8])) + (", …" if len(self.ids[0]) > 8 else "")
            return f"ids {shown} ({tokens})" if len(self.ids) == 1 else f"{len(self.ids)} rows of ids ({tokens})"
        first = printable(self.texts[0] if len(self.texts[0]) <= 80 else f"{self.texts[0][:79]}…")
        return (
            f'"{first}" ({tokens})' if len(self.texts) == 1 else f'"{first}" and {len(self.texts) - 1} more ({tokens})'
        )


SEED = 0
"""The seed of the ids that are drawn."""


def versions() -> dict[str, str]:
    """The versions of what computes, by name."""
    found = {"pellucid": __version__, "python": platform.python_version()}
    for library in ("torch", "transformers"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # transformers is optional
            continue
    return found


def now() -> str:
    """The date and time, in UTC, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class About:
    """What a report is about.

    Attributes:
        a, b: What the two sides are called: the path or name that was given, else what they are.
        inputs: What both ran.
        versions: The versions of pellucid, Python, torch and transformers.
        date: When it was made, in UTC.
    """

    a: str = "A"
    b: str = "B"
    inputs: RunInputs = RunInputs()
    versions: Mapping[str, str] = field(default_factory=versions)
    date: str = field(default_factory=now)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Each fact with its name."""
        named = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [("A", self.a), ("B", self.b), ("inputs", str(self.inputs)), ("versions", named), ("date", self.date)]


def name_of(side: Any) -> str:
    """What to call a side of a comparison, in one line."""
    if isinstance(side, (str, Path)):
        return printable(str(side))
    if isinstance(side, CkptedTransformer):
        source = (side.provenance or {}).get("source")
        return type(side).__name__ if source is None else printable(f"{type(side).__name__} of {source}")
    if isinstance(side, nn.Module):
        path = getattr(getattr(side, "config", None), "_name_or_path", None)
        return printable(f"{type(side).__name__} of {path}" if path and isinstance(path, str) else type(side).__name__)
    count = sum(isinstance(value, Tensor) for value in side.values()) if isinstance(side, Mapping) else 0
    return f"state dict of {count} tensors" if count else type(side).__name__
