"""What every statistic that is gathered run by run has in common: it takes runs, merges, and keeps its state."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np

from pellucid import aliases
from pellucid.axes import Axis
from pellucid.ckpt import BLOCK
from pellucid.errors import InputError
from pellucid.measure.captured import capture_pattern
from pellucid.measure.groups import TEXTS_AND_POSITIONS, Groups, axes_in, flattened
from pellucid.measure.labelled import Array, Measured, coordinates, read
from pellucid.measure.norms import measured_norms
from pellucid.measure.state import read_about, state_array
from pellucid.run.activations import ActivationCkpts

Of = Literal["value", "norm", "log_norm"]
"""What is gathered of a checkpoint: its values, the norms of its vectors, or their natural logarithms."""


class Statistic(ABC):
    """Something gathered over texts.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: The checkpoint's values themselves, the norms of its vectors, or their logarithms.
    """

    def __init__(self, name: aliases.Name, of: Of = "value") -> None:
        if of not in get_args(Of):
            raise InputError(
                f"{type(self).__name__}: of={of!r}, expected one of {', '.join(map(repr, get_args(Of)))}.",
                code="unknown-of",
                remedy="Give one of these.",
            )
        self.kind, self.block = aliases.kind_and_block(name)
        self.of: Of = of
        self.about: dict[str, Any] = {}

    @property
    def captures(self) -> str:
        """The checkpoints to capture, as a pattern of names."""
        return capture_pattern(self.kind if self.block is None else f"blocks.{self.block}.{self.kind}")

    @property
    def axes(self) -> tuple[str, ...]:
        """Of what is gathered, without the layer's."""
        axes = aliases.AROUND[self.kind] if self.block is None else BLOCK[self.kind]
        return tuple(map(str, axes if self.of == "value" else axes[:-1]))

    @property
    def spec(self) -> dict[str, Any]:
        """What it gathers, in words that JSON can hold; partial results with the same merge."""
        return {"statistic": type(self).__name__, "captures": self.captures, "of": self.of, **self._options()}

    @abstractmethod
    def _options(self) -> dict[str, Any]: ...

    @abstractmethod
    def fresh(self) -> Self:
        """The same, with nothing gathered."""

    def update(self, ckpts: ActivationCkpts) -> None:
        """Gather one run.

        Raises:
            UnknownNameError: It did not capture the checkpoint.
            InputError: Values that are not finite, or a run of other blocks than before.
        """
        if self.of == "value":
            measured = read(ckpts, self.captures)
        else:
            measured = measured_norms(ckpts, self.captures, log=self.of == "log_norm")
        attrs = {key: value for key, value in measured.attrs.items() if key != "text"}
        labels = coordinates(measured.source, tuple(d for d in measured.dims if d not in TEXTS_AND_POSITIONS))
        self._meet({"dims": list(measured.dims), "coords": labels, "attrs": attrs})
        self._add(measured)

    @abstractmethod
    def _add(self, measured: Measured) -> None: ...

    def merge(self, other: Self) -> None:
        """Add what another of the same kind has gathered.

        Raises:
            InputError: It gathers something else, or from another model.
        """
        if not isinstance(other, Statistic) or self.spec != other.spec:
            given = other.spec if isinstance(other, Statistic) else type(other).__name__
            raise InputError(
                f"merge: {given}, expected {self.spec}.",
                code="merge-misfit",
                remedy="Merge statistics that were made with the same arguments.",
            )
        if other.about:
            self._meet(other.about)
            self._absorb(other)

    @abstractmethod
    def _absorb(self, other: Self) -> None: ...

    def _meet(self, about: dict[str, Any]) -> None:
        if self.about and self.about != about:
            raise InputError(
                f"{type(self).__name__} of {self.captures}: a run of {about}, expected {self.about}.",
                code="merge-misfit",
                remedy="Gather runs of one model that captured the same blocks and heads.",
            )
        self.about = about

    @abstractmethod
    def result(self) -> Any:
        """What was gathered, labelled."""

    def state(self) -> dict[str, Array]:
        """Everything gathered, as arrays; empty before the first run."""
        if not self.about:
            return {}
        return {"about": np.frombuffer(json.dumps(self.about).encode(), dtype=np.uint8), **self._state()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: Arrays that `state` cannot have given.
        """
        if state:
            self.about = read_about(state_array(state, "about", "u", (None,)))
            self._load(state)

    def _sizes(self, kept: tuple[str, ...]) -> tuple[int | None, ...]:
        """Along the axes that results have; None where nothing says."""
        labels = self.about["coords"]
        return tuple(len(labels[dim]) if isinstance(labels.get(dim), list) else None for dim in kept)

    @abstractmethod
    def _state(self) -> dict[str, Array]: ...

    @abstractmethod
    def _load(self, state: Mapping[str, Array]) -> None: ...

    def require_some(self) -> None:
        """Refuse a result of nothing."""
        if not self.about:
            raise InputError(
                f"{type(self).__name__} of {self.captures}: no text was gathered, expected at least one.",
                code="no-texts",
                remedy="Give it texts first.",
            )

    def summed(self, over: Collection[str] | None) -> tuple[str, ...]:
        """The axes that are summed over: texts and positions, which differ from run to run, and what is named.

        Raises:
            InputError: An axis that is not there, or a text or position axis left out.
        """
        running = tuple(axis for axis in TEXTS_AND_POSITIONS if axis in self.axes)
        if over is None:
            return running
        chosen = axes_in(over, (str(Axis.LAYER), *self.axes), type(self).__name__)
        left_out = [axis for axis in running if axis not in chosen]
        if left_out:
            raise InputError(
                f"{type(self).__name__}: over={list(chosen)!r} leaves out {left_out[0]!r}, which differs between runs.",
                code="no-such-axis",
                remedy=f"Name at least {', '.join(running)}, or measure in memory.",
            )
        return chosen

    def group(self, measured: Measured, chosen: tuple[str, ...]) -> Array:
        """[kept axes..., n]."""
        kept = self.kept(measured.dims, chosen)
        order = [measured.dims.index(dim) for dim in (*kept, *(d for d in chosen if d in measured.dims))]
        return flattened(measured.data.transpose(order), len(kept))

    def groups(self, chosen: tuple[str, ...]) -> Groups:
        """The labels of what is gathered."""
        kept = self.kept(self.about["dims"], chosen)
        coords = {name: label for name, label in self.about["coords"].items() if name in kept or np.ndim(label) == 0}
        return Groups(np.empty(0), kept, coords, {**self.about["attrs"], "over": ", ".join(chosen)})

    @staticmethod
    def kept(dims: Collection[str], chosen: tuple[str, ...]) -> tuple[str, ...]:
        """The axes that results have."""
        return tuple(dim for dim in dims if dim not in chosen)
