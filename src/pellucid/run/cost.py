"""What a model takes, and a capture or a generation before it is run: parameters counted, bytes known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.check import require_tree
from pellucid.errors import InputError, shown
from pellucid.family.network import Network
from pellucid.fast.decoder import kernels_for
from pellucid.generate.generation import stopping
from pellucid.generate.request import require_some
from pellucid.html.listing import counted
from pellucid.names.aliases import Names, selected
from pellucid.names.calls import named_arguments
from pellucid.run.cache import KeyValueCache
from pellucid.run.model import CkptedTransformer
from pellucid.run.region import Index, Region
from pellucid.schema import Axis
from pellucid.text.batch import Inputs


@dataclass(frozen=True)
class Estimate:
    """What a capture would take, before running it.

    Attributes:
        nbytes: Bytes of all captured values.
        by_name: Bytes of each.
    """

    nbytes: int
    by_name: dict[str, int]

    def __repr__(self) -> str:
        return f"{self.nbytes:,} bytes in {counted(len(self.by_name), 'checkpoint')}"

    def __int__(self) -> int:
        return self.nbytes


@named_arguments()
def estimate(
    model: CkptedTransformer,
    inputs: Inputs,
    names: Names = None,
    *,
    mask: Any = None,
    pos: Index = None,
    heads: Index = None,
) -> Estimate:
    """How many bytes `run_with_ckpts` with the same arguments would capture; runs nothing.

    Example:
        >>> import pellucid as pl
        >>> pl.estimate(pl.load(), "Once upon a time", "blocks.*.resid_post")
        16,384 bytes in 4 checkpoints
    """
    batch = model.tokenize(inputs, mask=mask)
    rows, columns = batch.shape
    schema, eager = model.schema, model.execution.attention == "eager"
    columns_of = {Axis.POS: columns, Axis.QUERY: columns, Axis.KEY: columns}
    of_inputs: dict[str, int] = {Axis.BATCH: rows, **columns_of}
    by_name: dict[str, int] = {}
    for name in selected(names, schema):
        point = schema[name]
        shape = [of_inputs.get(axis) or schema.length_of(axis, point) for axis in point.axes]
        for axis, chosen in Region(pos, heads).indices(name, shape, point.axes, strict=False).items():
            shape[axis] = len(chosen)
        dtype = model.dtype
        if eager and point.upcast:
            dtype = torch.promote_types(dtype, torch.float32)
        by_name[name] = torch.Size(shape).numel() * dtype.itemsize
    return Estimate(sum(by_name.values()), by_name)


@dataclass(frozen=True)
class GenerationMemory:
    """What a generation would take beside the model.

    Attributes:
        cache: Bytes of keys and values.
        prepared: Bytes of the copies of the weights that fast numerics make once for a model: those of the kernels,
            and those that the prompt is multiplied by: rounded ones with `numerics="bfloat16"`, and packed ones, if all
            are needed, with `numerics="packed"`.
    """

    cache: int
    prepared: int

    def __repr__(self) -> str:
        return f"{self.cache:,} bytes of keys and values, {self.prepared:,} bytes of prepared weights"


@named_arguments()
def estimate_generation(
    model: CkptedTransformer, inputs: Inputs, *, mask: Any = None, max_new_tokens: int = 50, rows_each: int = 1
) -> GenerationMemory:
    """How much memory `generate` would keep for these prompts; runs nothing.

    While the prompts are run, their activations come on top.

    Args:
        model: Whose `generate` is meant.
        inputs: The prompts.
        mask: As for `generate`.
        max_new_tokens: As for `generate`.
        rows_each: Sequences or beams of each prompt.

    Raises:
        InputError: If a number of tokens or rows is out of range.

    Example:
        >>> import pellucid as pl
        >>> pl.estimate_generation(pl.load(), "Once upon a time", max_new_tokens=60)
        524,352 bytes of keys and values, 0 bytes of prepared weights
    """
    most = stopping(model.schema, model.tokenizer, max_new_tokens, (), ()).max_new_tokens
    rows_each = require_some("rows_each", rows_each)
    rows, columns = model.tokenize(inputs, mask=mask).shape
    kernels = kernels_for(model, rows * rows_each) if model.execution.is_fast else None
    dtype = model.dtype if kernels is None else torch.float32
    columns = min(columns + most, model.schema.sizes["n_ctx"])
    cache = KeyValueCache.bytes_needed(model.config, rows * rows_each, columns, dtype)
    in_blocks = (parameter for parameter in model.blocks.parameters() if parameter.dim() > 1)
    prepared = model.products.bytes_needed([*in_blocks, model.unembed.weight])
    if kernels is not None:
        prepared += kernels.bytes_needed(model)
    return GenerationMemory(cache, prepared)


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a model's parameters hold.

    Attributes:
        unique: Each number in memory once, however many names it has.
        by_name: Each name's numbers, so that a tied tensor counts once for each of its names.
        bytes: Memory of the unique ones.
        components: Unique parameters under each component; a tied tensor belongs to the first that has it.
        tied: Numbers that a component holds under further names of a tensor, counted before.
    """

    unique: int
    by_name: int
    bytes: int
    components: dict[str, int]
    tied: dict[str, int]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {count:,}" for name, count in self.components.items())
        return f"{self.unique:,} parameters in {self.bytes:,} bytes ({self.by_name:,} by name): {parts}"


def storage_key(tensor: Tensor) -> tuple[int, int]:
    """What two tensors share exactly when they show the same memory from the same place on."""
    address = tensor.untyped_storage().data_ptr()
    return (address, int(tensor.storage_offset())) if address else (id(tensor), 0)  # meta tensors have no address


def _count(named: list[tuple[str, Tensor]], component: Callable[[str], str]) -> ParameterCount:
    """Count parameters given under all of their names."""
    seen: set[tuple[int, int]] = set()
    unique = size = 0
    components = {component(name): 0 for name, _ in named}
    tied = dict(components)
    for name, tensor in named:
        if storage_key(tensor) in seen:
            tied[component(name)] += tensor.numel()
        elif tensor.numel():
            seen.add(storage_key(tensor))
            unique += tensor.numel()
            size += tensor.numel() * tensor.element_size()
            components[component(name)] += tensor.numel()
    return ParameterCount(unique, sum(tensor.numel() for _, tensor in named), size, components, tied)


@named_arguments()
def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of any module, each number once and each name once, per component.

    Raises:
        InputError: If it is no module.

    Example:
        >>> import pellucid as pl
        >>> model = pl.CkptedTransformer(pl.TransformerConfig.from_pretrained("distilgpt2"))
        >>> counted = pl.count_parameters(model)
        >>> counted.unique, counted.by_name
        (81912576, 120509952)
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"count_parameters: given {shown(model)}, expected a model.",
            code="not-counted",
            remedy="Give a module, such as pl.load(path); pl.audit_ties counts what a state dict or a file holds.",
        )
    require_tree(model, "count_parameters")
    named: list[tuple[str, Tensor]] = list(model.named_parameters(remove_duplicate=False))
    if not isinstance(model, Network):
        return _count(named, lambda name: name.split(".", 1)[0])
    if model.unembed.tied:
        named.append(("unembed.W_U", model.embed.W_E))
    return _count(named, _component)


def _component(name: str) -> str:
    parts = name.split(".")
    part = parts[2] if parts[0] == "blocks" else parts[0]
    return "ln" if part.startswith("ln") else part
