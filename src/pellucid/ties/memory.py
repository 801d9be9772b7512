"""Which names show the same memory, and which tensors are merely equal.

Memory is compared byte for byte, not storage for storage: tensors mapped from one file share a storage without
sharing a number, and two slices of one matrix may share a storage, a part of their numbers, or none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from pellucid.numerics.rounding import same_numbers

_SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Named:
    """A tensor under one of its names."""

    name: str
    tensor: Tensor  # the tensor itself, never a copy
    counted: bool = True  # whether it is a parameter, and not a buffer


@dataclass(frozen=True)
class TieGroup:
    """Names of one tensor, or of tensors that share memory or numbers.

    Attributes:
        names: In the order in which they were found.
        kind: "same parameter": one object. "same memory": several objects over exactly the same numbers.
            "overlapping": some of the numbers are shared. "equal": memory of their own, the same numbers.
            "declared": a weights file names it once, and reading it makes the other names.
        shape: The shape of the first name's tensor.
        dtype: The dtype of the first name's tensor.
        nbytes: Memory that all names together take.
        addresses: Where the first number of each name is, the evidence for the kind; 0 where nothing is.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    addresses: tuple[int, ...]

    def __repr__(self) -> str:
        where = " ".join(f"0x{address:x}" for address in dict.fromkeys(self.addresses))
        return f"{self.kind}: {' = '.join(self.names)} {list(self.shape)} at {where}"


@dataclass(frozen=True)
class _Place:
    """The bytes from a tensor's first number to its last; `dense` if the tensor shows all of them."""

    space: tuple[str, int]
    start: int
    end: int
    dense: bool


def _first_byte(tensor: Tensor) -> int:
    """The address of the first number; within the storage if that has no memory."""
    return int(tensor.storage_offset()) * tensor.element_size() if tensor.is_meta else tensor.data_ptr()


def _place(tensor: Tensor) -> _Place | None:
    """Where a tensor is; None for one that has no numbers or no strides."""
    if tensor.layout != torch.strided or tensor.numel() == 0:
        return None
    size = tensor.element_size()
    steps = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    space = ("meta", tensor.untyped_storage()._cdata) if tensor.is_meta else (str(tensor.device), 0)
    start, span = _first_byte(tensor), (steps + 1) * size
    return _Place(space, start, start + span, tensor.numel() * size == span)


def address(tensor: Tensor) -> int:
    """Where the first number is; 0 for tensors without memory."""
    return 0 if tensor.is_meta or tensor.layout != torch.strided else tensor.data_ptr()


def same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors show the same numbers of the same memory in the same order."""
    place = _place(a)
    return a is b or (place is not None and place == _place(b) and a.shape == b.shape and a.stride() == b.stride())


Marks = np.ndarray[Any, np.dtype[np.bool_]]


def _marks_of(tensor: Tensor, marks: Marks, start: int) -> Marks:
    """The part of `marks`, one for each byte from `start` on, that stands for the bytes a tensor shows."""
    size = tensor.element_size()
    strides = (*(stride * size for stride in tensor.stride()), 1)
    return as_strided(marks[_first_byte(tensor) - start :], (*tensor.shape, size), strides)


def _overlap(a: Tensor, b: Tensor) -> bool:
    pa, pb = _place(a), _place(b)
    if pa is None or pb is None or pa.space != pb.space or pa.start >= pb.end or pb.start >= pa.end:
        return False
    if (pa.dense and pb.dense) or same_place(a, b):
        return True
    alone = coverage([Named("", a)]) + coverage([Named("", b)])
    return coverage([Named("", a), Named("", b)]) < alone


def clusters(named: Sequence[Named]) -> list[list[Named]]:
    """Every name in exactly one cluster; names are together if a chain of shared bytes connects them."""
    placed = [(_place(one.tensor), i) for i, one in enumerate(named)]
    order = sorted((p.space, p.start, p.end, i) for p, i in placed if p is not None)
    runs: list[list[int]] = [[i] for p, i in placed if p is None]
    reach: tuple[tuple[str, int], int] | None = None
    for space, start, end, i in order:
        if reach is not None and reach[0] == space and start < reach[1]:
            runs[-1].append(i)
            reach = (space, max(reach[1], end))
        else:
            runs.append([i])
            reach = (space, end)
    found = [part for run in runs for part in _connected([named[i] for i in sorted(run)])]
    position = {id(one): i for i, one in enumerate(named)}
    return sorted(found, key=lambda cluster: position[id(cluster[0])])


def _connected(run: list[Named]) -> list[list[Named]]:
    """Split names whose spans touch into those whose bytes do."""
    places = [_place(one.tensor) for one in run]
    if len(run) < 2 or all(place is not None and place.dense for place in places):
        return [run]
    parts: list[list[Named]] = []
    for one in run:
        touching = [part for part in parts if any(_overlap(one.tensor, other.tensor) for other in part)]
        parts = [part for part in parts if part not in touching] + [[*itertools.chain(*touching), one]]
    return parts


def coverage(cluster: Sequence[Named]) -> int:
    """How many different bytes the names of a cluster show."""
    placed = [(place, one.tensor) for one in cluster if (place := _place(one.tensor)) is not None]
    if not placed:
        return 0
    start, end = min(place.start for place, _ in placed), max(place.end for place, _ in placed)
    if any(place.dense and (place.start, place.end) == (start, end) for place, _ in placed):
        return end - start
    marks = np.zeros(end - start, dtype=np.bool_)
    for _, tensor in placed:
        _marks_of(tensor, marks, start)[...] = True
    return int(marks.sum())


def count(cluster: Sequence[Named]) -> int:
    """How many different numbers the names of a cluster show."""
    return coverage(cluster) // max(one.tensor.element_size() for one in cluster)


def shared_groups(found: Iterable[Sequence[Named]]) -> list[TieGroup]:
    """The clusters of several names, as groups."""
    return [group(cluster, _kind(cluster)) for cluster in found if len(cluster) > 1]


def _kind(cluster: Sequence[Named]) -> str:
    first = cluster[0].tensor
    if all(one.tensor is first for one in cluster):
        return "same parameter" if isinstance(first, torch.nn.Parameter) else "same memory"
    places = {_place(one.tensor) for one in cluster}
    same = len(places) == 1 and all(one.tensor.numel() == first.numel() for one in cluster)
    return "same memory" if same else "overlapping"


def group(cluster: Sequence[Named], kind: str) -> TieGroup:
    """Describe names that belong together."""
    first = cluster[0].tensor
    return TieGroup(
        tuple(one.name for one in cluster),
        kind,
        tuple(first.shape),
        str(first.dtype).removeprefix("torch."),
        sum(coverage(part) for part in clusters(cluster)),
        tuple(address(one.tensor) for one in cluster),
    )


def equal_groups(found: Iterable[Sequence[Named]]) -> list[TieGroup]:
    """Tensors with memory of their own and the same numbers; those of a single number repeated are no news."""
    together = [others for others in alike([cluster[0] for cluster in found], same_numbers) if len(others) > 1]
    return [group(others, "equal") for others in together if not _is_constant(others[0].tensor)]


def alike(named: Iterable[Named], equal: Callable[[Tensor, Tensor], bool]) -> list[list[Named]]:
    """Every name in exactly one list, together with those whose tensors are equal to its own.

    Tensors without numbers to compare (on the meta device, sparse, quantized, of fewer than two numbers) are equal to
    no other.
    """
    # Whole tensors are compared only if a few of their numbers agree: a model has hundreds of one shape.
    by_sample: dict[object, list[list[Named]]] = {}
    for one in named:
        tensor = one.tensor.detach()
        comparable = tensor.layout == torch.strided and tensor.numel() > 1
        comparable = comparable and not (tensor.is_meta or tensor.is_quantized)
        same = by_sample.setdefault(_sample(tensor) if comparable else object(), [])
        for others in same:
            if equal(others[0].tensor, tensor):
                others.append(one)
                break
        else:
            same.append([one])
    return [others for same in by_sample.values() for others in same]


def _sample(tensor: Tensor) -> tuple[object, ...]:
    flat = tensor.reshape(-1)
    few = flat[torch.arange(min(_SAMPLES, flat.numel()), device="cpu") * (flat.numel() // _SAMPLES or 1)]
    if few.is_floating_point() or few.is_complex():
        few = (few if few.is_complex() else few.double()) + 0  # torch adds no float8; 0 turns -0.0 into 0.0
    return (tuple(tensor.shape), tensor.dtype, tensor.device, str(few.tolist()))


def _is_constant(tensor: Tensor) -> bool:
    flat = tensor.detach().reshape(-1)
    return same_numbers(flat, flat[:1].expand_as(flat))  # of float8, which torch compares with nothing, too
