"""One step of decoding by GPT-2's kernels: the next column of every row, its logits, and what is captured."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pellucid.axes import Axis
from pellucid.errors import NumericsError
from pellucid.fast.compiled import library
from pellucid.gpt2.model import TransformerBlock
from pellucid.gpt2.packed import BlockWeights, Prepared, Shape, Weights, knows, padded, prepared
from pellucid.network import Network
from pellucid.numerics import nonlinear
from pellucid.schema import Schema

if TYPE_CHECKING:
    from pellucid.run.cache import KeyValueCache

SOURCE = Path(__file__).with_name("decode.cpp")

_POINTER = ctypes.c_void_p


class Cache(ctypes.Structure):
    """`Cache` in decode.cpp."""

    _fields_ = [("content", _POINTER), ("mask", _POINTER), ("rows", ctypes.c_int32), ("capacity", ctypes.c_int32),
                ("length", ctypes.c_int32)]  # fmt: skip


@dataclass(frozen=True)
class KernelTable:
    """The checkpoints that the kernels can show, as the compiled library names them."""

    in_blocks: tuple[str, ...]  # those of a block, in the order of its pointers
    after: tuple[str, ...]  # those after the blocks, in the order of theirs

    def has(self, names: Iterable[str]) -> bool:
        """True if each of these names can be shown; what lies before the blocks is looked up outside the kernels."""
        kinds = {name.split(".", 2)[2] if name.startswith("blocks.") else name for name in names}
        return kinds <= {*self.in_blocks, *self.after, *_EMBEDDINGS}


_EMBEDDINGS = ("ckpt_embed", "ckpt_pos_embed")


@functools.cache
def shown(schema: Schema) -> KernelTable:
    """What the compiled library shows of a family's checkpoints."""
    compiled = library(SOURCE)
    compiled.pellucid_shown.restype = ctypes.c_char_p
    compiled.pellucid_sizes.restype = ctypes.POINTER(ctypes.c_int32 * 4)
    here = [ctypes.sizeof(structure) for structure in (Shape, BlockWeights, Weights, Cache)]
    if (there := list(compiled.pellucid_sizes().contents)) != here:
        raise _misfit(f"its structures have {there} bytes, expected {here}")
    tables = [
        dict(line.split(" ", 1) for line in table.splitlines())
        for table in compiled.pellucid_shown().decode().split("\n\n")
    ]
    for table, known in zip(tables, (schema.in_blocks, schema.around), strict=True):
        for name, axes in table.items():
            expected = " ".join(known[name].axes) if name in known else "no such checkpoint"
            if axes != expected:
                raise _misfit(f"{name} has the axes ({axes}), expected ({expected})")
    return KernelTable(*map(tuple, tables))


def _misfit(what: str) -> NumericsError:
    return NumericsError(
        f"fast numerics: the compiled step does not fit the schema: {what}.",
        code="kernel-tables",
        remedy="Bring the tables of gpt2/decode.cpp in line with gpt2/schema.py, or use numerics='exact'.",
    )


def decoder(model: Network, names: Collection[str]) -> Decoder | None:
    """What runs the steps of a model by the kernels; None if they do not show one of these checkpoints."""
    table = shown(model.schema)
    return Decoder(model, prepared(model), table) if table.has(names) else None


def take(model: Network) -> bool:
    """Whether the kernels know what this model is made of."""
    weight = model.embed.W_E
    return knows(model.config, weight.dtype, weight.device) and _is_as_configured(model)


def _is_as_configured(model: Network) -> bool:
    """Whether the constants that the kernels take from the configuration are those of the modules."""
    config = model.config
    blocks = cast("Iterable[TransformerBlock]", model.blocks)
    norms = [model.ln_final, *(norm for block in blocks for norm in (block.ln1, block.ln2))]
    return all(norm.eps == config.layer_norm_epsilon for norm in norms) and all(
        block.mlp.act is nonlinear.FAST[config.activation_function] and block.attn.n_head == config.n_head
        for block in blocks
    )


class Decoder:
    """Runs one column after another.

    Attributes:
        dtype: The dtype of the keys and values that it reads.
    """

    dtype = torch.float32

    def __init__(self, model: Network, weights: Prepared, table: KernelTable) -> None:
        self._model = model
        self._shown = table
        self._weights = weights
        self._run = library(SOURCE).pellucid_step
        self._run.restype = None
        self._run.argtypes = [ctypes.POINTER(Shape), ctypes.POINTER(Weights), _POINTER,
                              ctypes.POINTER(Cache), _POINTER, _POINTER, ctypes.c_int32]  # fmt: skip

    def step(
        self, ids: Tensor, positions: Tensor, cache: KeyValueCache, names: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the next column: see `pellucid.family.StepDecoder.step`; everything is in float32."""
        rows, columns = len(ids), cache.length + 1
        config = self._model.config
        embed, pos_embed = self._model.embed(ids).float(), self._model.pos_embed(positions).float()
        residual = embed + pos_embed
        logits = torch.empty(rows, padded(config.vocab_size), dtype=torch.float32, device="cpu")
        values = {"ckpt_embed": embed[:, None], "ckpt_pos_embed": pos_embed[:, None]}
        values = {name: value for name, value in values.items() if name in names}
        look = self._look(names, rows, columns, values) if names else None
        content = Cache(cache.content.data_ptr(), cache.mask.data_ptr(), rows, cache.capacity, cache.length)
        self._run(
            self._weights.shape, self._weights.weights, look, content, residual.data_ptr(), logits.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        cache.close(1)
        return logits[:, : config.vocab_size], values

    def _look(self, names: Collection[str], rows: int, columns: int, values: dict[str, Tensor]) -> Any:
        """Room for the captured values, by name in `values`, and the pointers to it, as `Look` in decode.cpp."""
        schema = self._model.config.schema
        sizes = {**schema.sizes, Axis.BATCH: rows, Axis.POS: 1, Axis.QUERY: 1, Axis.KEY: columns}

        def room(name: str) -> int | None:
            if name not in names:
                return None
            shape = [sizes[axis] for axis in schema.axes[name]]
            values[name] = torch.empty(shape, dtype=torch.float32, device="cpu")
            return values[name].data_ptr()

        inside = [room(f"blocks.{i}.{name}") for i in range(len(schema.blocks)) for name in self._shown.in_blocks]
        blocks = (_POINTER * len(inside))(*inside)
        look = (_POINTER * (1 + len(self._shown.after)))(ctypes.addressof(blocks), *map(room, self._shown.after))
        look.blocks = blocks  # pyright: ignore[reportAttributeAccessIssue]  (kept alive as long as the pointers)
        return look
