"""The parameters of a GPT-2 as units with named axes, and how a tensor of another program is made from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.network import Network

PART, LAYER, HEAD = "part", "layer", "head"

_AXES: dict[str, tuple[str, ...]] = {
    "embed.W_E": ("d_vocab", "d_model"),
    "pos_embed.W_pos": ("pos", "d_model"),
    "ln.w": ("d_model",),
    "ln.b": ("d_model",),
    "attn.W_Q": (HEAD, "d_model", "d_head"),
    "attn.W_K": (HEAD, "d_model", "d_head"),
    "attn.W_V": (HEAD, "d_model", "d_head"),
    "attn.b_Q": (HEAD, "d_head"),
    "attn.b_K": (HEAD, "d_head"),
    "attn.b_V": (HEAD, "d_head"),
    "attn.W_O": (HEAD, "d_head", "d_model"),
    "attn.b_O": ("d_model",),
    "mlp.W_in": ("d_model", "d_mlp"),
    "mlp.b_in": ("d_mlp",),
    "mlp.W_out": ("d_mlp", "d_model"),
    "mlp.b_out": ("d_model",),
    "unembed.W_U": ("d_model", "d_vocab"),
}

_IN_BLOCK = (
    "ln1.w", "ln1.b", "attn.W_Q", "attn.W_K", "attn.W_V", "attn.b_Q", "attn.b_K", "attn.b_V", "attn.W_O", "attn.b_O",
    "ln2.w", "ln2.b", "mlp.W_in", "mlp.b_in", "mlp.W_out", "mlp.b_out",
)  # fmt: skip
_FUSED = (("Q", "K", "V"), ("K", "V"), ("Q", "K"), ("Q", "V"))


def axes_of(unit: str) -> tuple[str, ...]:
    """The natural axes of a unit, given by its contract name, such as "blocks.0.attn.W_Q"."""
    kind = unit.split(".", 2)[2] if unit.startswith("blocks.") else unit
    return _AXES["ln." + kind.rsplit(".", 1)[1] if kind.startswith("ln") else kind]


def partner(unit: str) -> str:
    """The unit that belongs in the same module: a matrix's bias, a bias's matrix, a gain's shift."""
    path, _, kind = unit.rpartition(".")
    swapped = {"w": "b", "b": "w"}.get(kind) or {"W": "b", "b": "W"}[kind[0]] + kind[1:]
    return f"{path}.{swapped}"


@dataclass(frozen=True)
class Group:
    """Units that another program may keep in one tensor.

    Attributes:
        units: Contract names; stacked along a first axis "part" where there are several kinds, and along
            "layer" before it where they span all blocks.
        head: One head of every unit, where the program keeps heads apart.
        layers: How many blocks are stacked; 0 where the group belongs to one.
    """

    units: tuple[str, ...]
    head: int | None = None
    layers: int = 0

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes of `natural`, in order."""
        inner = axes_of(self.units[0])
        if self.head is not None:
            inner = tuple(axis for axis in inner if axis != HEAD)
        parts = len(self.units) // (self.layers or 1)
        return (*((LAYER,) if self.layers else ()), *((PART,) if parts > 1 else ()), *inner)

    def natural(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The group as one tensor with the axes `axes`."""
        chosen = [tensors[unit] if self.head is None else tensors[unit][self.head] for unit in self.units]
        if len(chosen) == 1:
            return chosen[0]
        stacked = torch.stack(chosen)
        parts = len(chosen) // (self.layers or 1)
        return stacked.unflatten(0, (self.layers, parts)) if self.layers and parts > 1 else stacked

    def split(self, natural: Tensor) -> dict[str, Tensor]:
        """The inverse of `natural`: unit (and head) -> its part."""
        if len(self.units) == 1:
            return {self.units[0]: natural}
        parts = len(self.units) // (self.layers or 1)
        flat = natural.flatten(0, 1) if self.layers and parts > 1 else natural
        return dict(zip(self.units, flat, strict=True))


def units_of(model: Network) -> dict[str, Tensor]:
    """Contract name -> live view, for every parameter of a model; a tied head is not a unit of its own."""
    tensors = {"embed.W_E": model.embed.W_E, "pos_embed.W_pos": model.pos_embed.W_pos}
    for i, block in enumerate(model.blocks):
        for name in _IN_BLOCK:
            path, attribute = name.split(".")
            tensors[f"blocks.{i}.{name}"] = getattr(block.get_submodule(path), attribute)
    tensors |= {"ln_final.w": model.ln_final.w, "ln_final.b": model.ln_final.b}
    if not model.unembed.tied:
        tensors["unembed.W_U"] = model.unembed.W_U
    return {name: tensor.detach() for name, tensor in tensors.items()}


def groups_of(units: Mapping[str, Tensor], n_layer: int, n_head: int) -> Iterator[Group]:
    """Every group of units that programs are known to keep in one tensor, the plainest first."""
    yield from (Group((unit,)) for unit in units)
    for i in range(n_layer):
        for kind, letters in itertools.product("Wb", _FUSED):
            fused = tuple(f"blocks.{i}.attn.{kind}_{letter}" for letter in letters)
            yield Group(fused)
    for i in range(n_layer):
        for head in range(n_head) if n_head > 1 else ():  # the only head is the unit
            for name in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "W_O"):
                yield Group((f"blocks.{i}.attn.{name}",), head)
            for kind in "Wb":
                yield Group(tuple(f"blocks.{i}.attn.{kind}_{letter}" for letter in "QKV"), head)
    if n_layer > 1:
        for name in _IN_BLOCK:
            yield Group(tuple(f"blocks.{i}.{name}" for i in range(n_layer)), layers=n_layer)
        for kind in "Wb":
            fused = tuple(f"blocks.{i}.attn.{kind}_{letter}" for i in range(n_layer) for letter in "QKV")
            yield Group(fused, layers=n_layer)


@dataclass(frozen=True)
class GroupTransform:
    """How a tensor is made from a group: parts and heads in another order, axes permuted, then reshaped.

    Attributes:
        axes: The group's axes in the order in which the tensor has them.
        heads: Which of the group's heads comes at each place; None if they are in order.
    """

    axes: tuple[str, ...]
    heads: tuple[int, ...] | None = None

    def apply(self, natural: Tensor, group: Group, shape: Sequence[int]) -> Tensor:
        """Group's natural tensor -> the other program's tensor."""
        if self.heads is not None:
            natural = natural.index_select(group.axes.index(HEAD), torch.tensor(self.heads, device=natural.device))
        return natural.permute([group.axes.index(axis) for axis in self.axes]).reshape(tuple(shape))

    def undo(self, tensor: Tensor, group: Group, natural_shape: Sequence[int]) -> Tensor:
        """The other program's tensor -> the group's natural tensor; a view where there is one."""
        order = [group.axes.index(axis) for axis in self.axes]
        inverse = [order.index(i) for i in range(len(order))]
        natural = tensor.reshape([natural_shape[i] for i in order]).permute(inverse)
        if self.heads is None:
            return natural
        places = [self.heads.index(head) for head in range(len(self.heads))]
        return natural.index_select(group.axes.index(HEAD), torch.tensor(places, device=natural.device))

    def describe(self, group: Group) -> str:
        """In words, for a report."""
        words: list[str] = []
        if len(group.units) > 1:
            words.append(f"{len(group.units)} units in one tensor")
        if group.head is not None:
            words.append(f"head {group.head} alone")
        inner = [axis for axis in self.axes if axis not in (PART, LAYER, HEAD)]
        if inner != [axis for axis in group.axes if axis not in (PART, LAYER, HEAD)]:
            words.append("transposed")
        if self.heads is not None:
            words.append("heads permuted")
        if self.axes != group.axes and "transposed" not in words:
            words.append("axes in another order")
        return ", ".join(words) or "as it is"


def orders(group: Group, shape: Sequence[int], natural_shape: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Axis orders under which the group can be reshaped to `shape` along whole axes, the natural one first."""
    if math.prod(shape) != math.prod(natural_shape):
        return
    for order in itertools.permutations(range(len(natural_shape))):
        sizes = [natural_shape[i] for i in order]
        if _merges(sizes, [size for size in shape if size != 1] or [1]):
            yield tuple(group.axes[i] for i in order)


def _merges(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether every axis of `shape` is the product of consecutive ones of `sizes`, or the tensor is flat."""
    rest = list(sizes)
    for whole in shape:
        product = 1
        while product < whole and rest:
            product *= rest.pop(0)
        if product != whole:
            return False
    return all(size == 1 for size in rest)
