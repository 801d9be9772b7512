"""Where a store lies, a folder or a prefix of an object store: objects are put whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pellucid.errors import InputError

Result = TypeVar("Result")

METADATA = "zarr.json"
"""What Zarr reads of the whole; a store has it last of all when it is begun, so with it the store is there."""


class StorePlace(Protocol):
    """Where the objects of a store lie, by keys with slashes. What fails is an error that names the place."""

    def group(self) -> Any:
        """Open what lies here as a Zarr group."""
        ...

    def asked(self, ask: Callable[[], Result]) -> Result:
        """Return what a function reads here, asked again where that may help."""
        ...

    def put(self, key: str, data: memoryview | bytes) -> None:
        """Write one object, whole or not at all, durably."""
        ...

    def get(self, key: str) -> bytes | None:
        """Return one object, or None if it is not there."""
        ...

    def size(self, key: str) -> int | None:
        """Return how many bytes an object has, or None if it is not there."""
        ...

    def remove(self, key: str) -> None:
        """Remove one object, if it is there."""
        ...

    def chunk(self, key: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return the numbers of an object [count], mapped from the disk if it lies on one."""
        ...

    def rows(self, keys: Sequence[str], places: Sequence[int], width: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return some rows [k, width] of objects of `count` rows: row `places[i]` of the object `keys[i]`."""
        ...

    def free(self) -> int | None:
        """Return how many bytes can still be written, or None if that is not known."""
        ...

    def is_empty(self) -> bool:
        """Return whether nothing is there, or only what a killed call had begun."""
        ...

    def clean(self, folders: list[str]) -> None:
        """Remove what killed writers left in these folders."""
        ...

    def building(self) -> AbstractContextManager[StorePlace]:
        """Begin a store: nothing of it stays if that fails."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Keep other writers of this store out, or raise an error if one is at work."""
        ...


def busy(place: StorePlace) -> InputError:
    """The error for a place that somebody else writes to."""
    return InputError(
        f"corpus: another process writes to {place}.",
        code="corpus-busy",
        remedy="Wait for it, or stop it and call this again: it goes on with what is there.",
    )


def chunk_key(name: str, part: int, axes: int) -> str:
    """Where a part of an array of so many axes lies; every other axis is whole in a chunk."""
    return f"{name}/c.{part}{'.0' * (axes - 1)}"
