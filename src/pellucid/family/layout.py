"""`Layout`: how other people store the tensors of a model, one table read both ways.

A row says which of their tensors, under which transform, is which of ours. Read forwards the table imports, read
backwards it exports; each transform undoes itself to the bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pellucid.errors import WeightsError
from pellucid.schema import Schema

EMBED, HEAD = "embed.W_E", "unembed.W_U"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor of ours goes: its stored name, shape and dtype, and how many heads the model has."""

    name: str
    shape: Shape
    dtype: torch.dtype
    n_head: int


class Transform(Protocol):
    """Theirs to ours and back. `to_ours` copies only if memory must be rearranged."""

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        """The shapes of their tensors that make the one of ours."""
        ...

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        """Our tensor, of shape `place.shape`."""
        ...

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        """Their tensors, contiguous."""
        ...


@dataclass(frozen=True)
class Reshape:
    """The same numbers in the same order. [D, D] <-> [H, K, D] is one; equal shapes are the simplest."""

    merged: bool = False  # whether their tensor has our first two axes as one

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        shape = place.shape
        return ((shape[0] * shape[1], *shape[2:]),) if self.merged else (shape,)

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        return theirs[0].contiguous().view(place.shape)

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        return (ours.contiguous().view(self.shapes(place)[0]),)


@dataclass(frozen=True)
class Transpose:
    """`torch.nn.Linear` keeps [out, in] where `Conv1D` and we keep [in, out].

    The copy is worth it: the same product over another memory order may round differently, and an imported
    model must equal the converted one to the bit.
    """

    merged: bool = False

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        rows, columns = Reshape(self.merged).shapes(place)[0]
        return ((columns, rows),)

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        return theirs[0].t().contiguous().view(place.shape)

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        columns, rows = self.shapes(place)[0]
        return (ours.reshape(rows, columns).t().contiguous(),)


@dataclass(frozen=True)
class Head:
    """The output head: W_U [D, V] over memory in the order of [V, D], as the embedding's is."""

    transposed: bool  # whether their tensor is [V, D] (a Linear's weight), or [D, V] like ours

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        width, vocabulary = place.shape
        return ((vocabulary, width),) if self.transposed else ((width, vocabulary),)

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        rows = theirs[0] if self.transposed else theirs[0].t()
        return rows.contiguous().t()

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        return ((ours.t() if self.transposed else ours).contiguous(),)


@dataclass(frozen=True)
class Laid:
    """Ours over memory in another order of axes, as `Parameter.in_memory` says, so that products round as theirs do."""

    order: tuple[int, ...]  # our axes in the order of the memory
    merged: int | None = None  # the axis of theirs that is two of ours, one within the other; None if each is one
    alike: bool = False  # whether theirs has the axes of ours, and lies in memory as anything does

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        shape = place.shape if self.alike else self._memory(place)
        if self.merged is None:
            return (shape,)
        first, second = shape[self.merged : self.merged + 2]
        return ((*shape[: self.merged], first * second, *shape[self.merged + 2 :]),)

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        memory = theirs[0].permute(self.order) if self.alike else theirs[0]
        places = [self.order.index(axis) for axis in range(len(self.order))]
        return memory.contiguous().view(self._memory(place)).permute(places)

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        memory = ours if self.alike else ours.permute(self.order)
        return (memory.contiguous().view(self.shapes(place)[0]),)

    def _memory(self, place: Place) -> Shape:
        return tuple(place.shape[axis] for axis in self.order)


@dataclass(frozen=True)
class PerHead:
    """Queries, keys and values apart and per head <-> one fused tensor, queries first, heads side by side.

    Weights: 3 x [H, D, K] <-> [D, 3D]. Biases: 3 x [H, K] <-> [3D].
    """

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        d_head = place.shape[-1] // 3 // place.n_head
        return ((place.n_head, *place.shape[:-1], d_head),) * 3

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        return torch.cat([part.movedim(0, -2).flatten(-2) for part in theirs], dim=-1)

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        parts = ours.chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (place.n_head, -1)).movedim(-2, 0).contiguous() for part in parts)


@dataclass(frozen=True)
class Zeros:
    """A bias that a model without biases does not have: adding zero is not adding."""

    def shapes(self, place: Place) -> tuple[Shape, ...]:
        return ()

    def to_ours(self, theirs: Sequence[Tensor], place: Place) -> Tensor:
        return torch.zeros(place.shape, dtype=place.dtype)

    def from_ours(self, ours: Tensor, place: Place) -> tuple[Tensor, ...]:
        if ours.count_nonzero():
            raise WeightsError(
                f"{place.name}: not zero, and the layout asked for has no biases.",
                code="layout-has-no-bias",
                remedy="Export to a layout with biases, such as 'nanogpt' or 'hf'.",
            )
        return ()


SAME = Reshape()
MERGE_HEADS = Reshape(merged=True)
TRANSPOSE = Transpose()
TRANSPOSE_MERGE_HEADS = Transpose(merged=True)
HEAD_ROWS = Head(transposed=True)
HEAD_COLUMNS = Head(transposed=False)
PER_HEAD = PerHead()
ZEROS = Zeros()


@dataclass(frozen=True)
class Row:
    """Their names, our name (`{i}` stands for the block in both) and what takes the one to the other."""

    theirs: tuple[str, ...]
    ours: str
    transform: Transform = SAME

    def of_block(self, i: int) -> Row:
        """This row for one block."""
        number = str(i)
        return Row(
            tuple(name.replace("{i}", number) for name in self.theirs),
            self.ours.replace("{i}", number),
            self.transform,
        )


@dataclass(frozen=True)
class Buffer:
    """A tensor of theirs that is no weight; in its shape `n` is the context, `v` the vocabulary, `rot/2` the pairs of
    a head that are turned.
    """

    name: str
    shape: tuple[int | str, ...]  # its shape
    why: str = ""  # why it is dropped whatever it holds; "" if only what it has to hold may be dropped


@dataclass(frozen=True)
class Layout:
    """One way to store the models of a family."""

    name: str  # for messages, provenance and `from_ours`
    rows: tuple[Row, ...]  # every weight but the output head
    head: Row  # the output head
    buffers: tuple[Buffer, ...] = ()  # what is recognised, by exact name and shape, and dropped
    head_name: str = ""  # what messages call the head; its own name if ""
    has_biases: bool = False  # True if the biases of its rows are always there
    # refuses tensors of theirs that no longer are the plain model's
    refuse_theirs: Callable[[Mapping[str, Tensor], Schema], None] | None = None
    refuse_ours: Callable[[Mapping[str, Tensor]], None] | None = None  # the same, of ours that were made of them

    @property
    def prefix(self) -> str:
        """What stands before the names of a model without its head, such as "transformer."; perhaps ""."""
        first, *others = (row.theirs[0] for row in self.rows if row.theirs)
        start = first[: first.index(".") + 1] if "." in first else ""
        return start if all(name.startswith(start) for name in others) else ""

    def within(self, schema: Schema) -> tuple[Row, ...]:
        """The rows whose parameter a model has."""
        first = {row.ours: row.of_block(0).ours for row in self.rows}
        return tuple(row for row in self.rows if first[row.ours] in schema.stored)

    def rows_of(self, schema: Schema) -> Iterator[Row]:
        """The same for every block."""
        for row in self.within(schema):
            if "{i}" in row.ours:
                yield from (row.of_block(i) for i in range(len(schema.blocks)))
            else:
                yield row

    def dropped(self, schema: Schema) -> dict[str, str]:
        """The buffers that are dropped whatever they hold -> why."""
        return {
            buffer.name.replace("{i}", str(i)): buffer.why
            for buffer in self.buffers
            for i in range(len(schema.blocks) if "{i}" in buffer.name else 1)
            if buffer.why
        }

    def buffers_of(self, schema: Schema) -> dict[str, Shape]:
        """The shapes of the buffers that may be there, by name."""
        turned = schema.sizes.get("d_rot", schema.sizes["d_head"])
        sizes = {"n": schema.sizes["n_ctx"], "v": schema.sizes["d_vocab"], "rot/2": turned // 2}
        return {
            buffer.name.replace("{i}", str(i)): tuple(sizes.get(str(axis), axis) for axis in buffer.shape)  # type: ignore[misc]
            for buffer in self.buffers
            for i in range(len(schema.blocks) if "{i}" in buffer.name else 1)
        }


def own_layout(schema: Schema) -> Layout:
    """Our own names, for whoever saved a model's state dict; `schema` is that of a family's model with one block."""
    rows = [
        Row((name,), name, Laid(tuple(map(p.axes.index, p.in_memory)), alike=True) if p.in_memory else SAME)
        for p in schema.parameters
        if p.is_stored and p.name != HEAD
        for name in [p.name.replace("blocks.0.", "blocks.{i}.")]
    ]
    return Layout("pellucid", tuple(rows), Row((HEAD,), HEAD, HEAD_COLUMNS))


def matrix(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor from whose two sizes those of a model are read.

    Raises:
        KeyError: If it is not there, has another number of axes, or is empty.
    """
    tensor = tensors[name]
    if tensor.dim() != 2 or not tensor.numel():
        raise KeyError(f"{name} has shape {list(tensor.shape)}, expected a matrix")
    return tensor


def embedded(theirs: Mapping[str, Tensor], names: Mapping[str, str]) -> Tensor:
    """The token embedding among tensors of a layout, or the head if that is all there is [V, D].

    Raises:
        KeyError: If neither is there, or it is no matrix.
    """
    return matrix(theirs, names[EMBED] if names[EMBED] in theirs else names[HEAD])


def blocks_in(names: Collection[str]) -> int:
    """How many blocks tensors of these names have: one more than the largest number in them, 0 without any.

    Raises:
        KeyError: If there are fewer names than that, so blocks are missing; a name may state any number.
    """
    numbers = (int(number) for name in names for number in re.findall(r"\.(\d{1,18})(?:\.|$)", name))
    count = max(numbers, default=-1) + 1
    if count > len(names):
        raise KeyError(f"{len(names)} tensors of {count} blocks")
    return count


def shown_sizes(theirs: Mapping[str, Tensor], layout: Layout, hidden: str, biases: Mapping[str, str]) -> dict[str, Any]:
    """The sizes that tensors show, by the fields that transformers' configurations of today have.

    `hidden` is a block's matrix with the MLP's width; `biases` are fields -> a bias that is there if they are true.
    """
    names = {row.ours: row.theirs[0].replace("{i}", "0") for row in (*layout.rows, layout.head)}
    embedding, n_layer = embedded(theirs, names), blocks_in(theirs)
    shown = {"vocab_size": embedding.shape[0], "hidden_size": embedding.shape[1], "num_hidden_layers": n_layer}
    if n_layer:
        shown["intermediate_size"] = theirs[names[f"blocks.{{i}}.{hidden}"]].numel() // embedding.shape[1]
        shown |= {field: names[f"blocks.{{i}}.{bias}"] in theirs for field, bias in biases.items()}
    return shown
