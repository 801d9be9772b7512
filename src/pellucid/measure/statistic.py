"""The common part of all statistics that are gathered run by run: they take runs, merge, and keep their state.

Counts and sketches merge exactly, in any order. Means, sums of powers and factors of products merge by updates that do
not cancel (Chan, Golub & LeVeque 1983; Pébay 2008): there the order shows in the last digits only.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np

from pellucid.check import as_whole, require_one_of
from pellucid.errors import InputError
from pellucid.family import families
from pellucid.measure.groups import TEXTS_AND_POSITIONS, Groups, axes_in, grouped
from pellucid.measure.labelled import Array, capture_pattern, norms, values
from pellucid.names import aliases
from pellucid.run.activations import ActivationCkpts
from pellucid.schema import Axis

if TYPE_CHECKING:
    import xarray

Of = Literal["value", "norm", "log_norm"]
"""A statistic gathers a checkpoint's values, the norms of its vectors, or their natural logarithms."""

Layout = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""Name of an array -> its kind and its sizes, None for any size.

Kinds are "i" for counts, none of them negative, "z" for whole numbers, "f" for float64 and "u" for bytes.
"""


class Statistic(ABC):
    """Something gathered over texts: numbers of one run that merge with those of others.

    Args:
        name: A template over the blocks, a checkpoint around them, or one block's.
        of: Whether to gather the checkpoint's values themselves, the norms of its vectors, or their logarithms.
        over: The axes to sum over, texts and positions among them; None for these alone.

    Attributes:
        captures: The checkpoints to capture, as a pattern of names.
        axes: The axes of what is gathered, without the layer's.
        about: The axes, labels and provenance of what was gathered; empty before the first run.
    """

    _part: ClassVar[Callable[..., Any]]
    """The dataclass of the numbers gathered: arrays, and a method `merge`, which changes neither side."""

    def __init__(self, name: aliases.Name, of: Of = "value", over: Collection[str] | None = None) -> None:
        remedy = "Give of='value', of='norm' or of='log_norm'."
        require_one_of(f"{type(self).__name__}: of", of, get_args(Of), code="unknown-of", remedy=remedy)
        axes = families.axes_of(families.kind_and_block(name)[0])
        self.captures = capture_pattern(name)
        self.of: Of = of
        self.axes = tuple(map(str, axes if of == "value" else axes[:-1]))
        self.over = self._summed(over)
        self.about: dict[str, Any] = {}
        self._held: Any = None
        self._shape: tuple[int, ...] = ()

    @property
    def spec(self) -> dict[str, Any]:
        """What this statistic gathers, in words that JSON can hold; partial results with the same merge."""
        said = {"statistic": type(self).__name__, "captures": self.captures, "of": self.of, "over": list(self.over)}
        return {**said, **self._options()}

    def _options(self) -> dict[str, Any]:
        """Return the statistic's own arguments."""
        return {}

    def fresh(self) -> Self:
        """Return the same statistic with nothing gathered."""
        made = copy.copy(self)
        made.about, made._held = {}, None
        return made

    def update(self, ckpts: ActivationCkpts) -> None:
        """Gather one run."""
        if self.of == "value":
            array = values(ckpts, self.captures)
        else:
            array = norms(ckpts, self.captures, log=self.of == "log_norm")
        groups = grouped(array, None, [dim for dim in self.over if dim in array.dims], type(self).__name__)
        coords = {name: label.values.tolist() for name, label in groups.coords.items()}
        attrs = {key: value for key, value in groups.attrs.items() if key != "text"}
        about = {"dims": list(groups.dims), "coords": coords, "attrs": attrs}
        self._add(self._gather(groups.data, array), groups.data.shape[:-1], about)

    @abstractmethod
    def _gather(self, data: Array, array: xarray.DataArray) -> Any:
        """Return the numbers of one run: `data` is `array` with the axes that are summed over in one."""

    def merge(self, other: Self) -> None:
        """Add what another of the same kind has gathered."""
        if not isinstance(other, Statistic) or self.spec != other.spec:
            given = other.spec if isinstance(other, Statistic) else type(other).__name__
            raise InputError(
                f"merge: {given}, expected {self.spec}.",
                code="merge-misfit",
                remedy="Merge statistics that were made with the same arguments.",
            )
        if other._held is not None:
            self._add(other._held, other._shape, other.about)

    def _add(self, part: Any, shape: tuple[int, ...], about: dict[str, Any]) -> None:
        if self.about and self.about != about:
            raise InputError(
                f"{type(self).__name__} of {self.captures}: a run of {about}, expected {self.about}.",
                code="merge-misfit",
                remedy="Gather runs of one model that captured the same blocks and heads.",
            )
        self.about, self._shape = about, shape
        self._held = part if self._held is None else self._held.merge(part)

    @abstractmethod
    def result(self) -> Any:
        """Return what was gathered, labelled."""

    def gathered(self) -> Any:
        """Return the numbers gathered so far; raise `InputError` if there are none."""
        if self._held is None:
            raise InputError(
                f"{type(self).__name__} of {self.captures}: no text was gathered, expected at least one.",
                code="no-texts",
                remedy="Give it texts first.",
            )
        return self._held

    def groups(self) -> Groups:
        """Return the labels of what is gathered."""
        return Groups(np.empty(0), tuple(self.about["dims"]), self.about["coords"], self.about["attrs"])

    def state(self) -> dict[str, Array]:
        """Return everything gathered as arrays; empty before the first run."""
        if self._held is None:
            return {}
        numbers = {name: np.asarray(value) for name, value in vars(self._held).items()}
        labels = {"about": np.frombuffer(json.dumps(self.about).encode(), dtype=np.uint8)}
        return {**labels, "shape": np.asarray(self._shape, dtype=np.int64), **numbers}

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what `state` gave."""
        if not state:
            return
        about = _read_about(_array(state, "about", "u", (None,)))
        shape = tuple(_array(state, "shape", "i", (len(about["dims"]),)).tolist())
        for dim, size in zip(about["dims"], shape, strict=True):
            labels = about["coords"].get(dim)
            if isinstance(labels, list) and len(labels) != size:
                raise ValueError(f"shape is {list(shape)}, which does not fit the labels")
        self.about, self._shape = about, shape
        arrays = {key: _array(state, key, *wanted) for key, wanted in self._layout().items()}
        self._held = self._part(**{key: array if array.ndim else int(array) for key, array in arrays.items()})

    @abstractmethod
    def _layout(self) -> Layout:
        """Return what the arrays of a `_part` must be; `_shape` is known."""

    def _summed(self, over: Collection[str] | None) -> tuple[str, ...]:
        """Return the axes summed over; texts and positions, which differ from run to run, have to be among them."""
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


def _array(state: Mapping[str, Array], key: str, kind: str, shape: tuple[int | None, ...]) -> Array:
    """Return one array that a file holds of a statistic; raise `ValueError` unless it is as `Layout` says."""
    array = state.get(key)
    if array is None or array.dtype != {"u": np.uint8, "f": np.float64}.get(kind, np.int64) or array.ndim != len(shape):
        raise ValueError(f"{key} is not what a statistic keeps")
    if any(wanted not in (None, size) for wanted, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{key} is {list(array.shape)}, which does not fit the others")
    if kind == "i" and array.size and int(array.min()) < 0:
        raise ValueError(f"{key} holds negative counts")
    return array


def _read_about(content: Array) -> dict[str, Any]:
    """Return axes, labels and provenance of the runs in a file; raise `ValueError` if it says something else."""
    try:
        about = json.loads(content.tobytes())
    except RecursionError as problem:
        raise ValueError("its labels are nested too deeply") from problem
    if not isinstance(about, dict) or set(about) != {"dims", "coords", "attrs"}:
        raise ValueError("its labels are not dims, coords and attrs")
    dims, coords, attrs = about["dims"], about["coords"], about["attrs"]
    sound = isinstance(dims, list) and isinstance(coords, dict) and isinstance(attrs, dict)
    if not sound or not all(isinstance(text, str) for text in (*dims, *attrs.values())):
        raise ValueError("its labels are not texts")
    numbers = [number for label in coords.values() for number in (label if isinstance(label, list) else [label])]
    if any(as_whole(number) is None for number in numbers):
        raise ValueError("its labels are not numbers of blocks and heads")
    return about
