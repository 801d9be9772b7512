"""One step of decoding by GPT-2's kernels: the next column of every row, its logits, and what is captured.

They read weights in blocks of outputs, one behind the other, in large pages. That is a copy, which takes the memory of
the matrices once more; it is made again when a parameter was written to.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pellucid.errors import NumericsError
from pellucid.family.network import Network
from pellucid.family.part import state_of, submodules
from pellucid.fast.compiled import library
from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.model import TransformerBlock
from pellucid.numerics import nonlinear
from pellucid.schema import Axis, Schema

if TYPE_CHECKING:
    from pellucid.run.cache import KeyValueCache


ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"), 0),
    **dict.fromkeys(("gelu", "gelu_python"), 1),
    "relu": 2,
    **dict.fromkeys(("silu", "swish"), 3),
    "quick_gelu": 4,
}  # fmt: skip
"""Activation functions that the kernels know, by their number there."""

DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 32
"""Outputs that lie side by side, as in decode.cpp; matrices and biases are padded to whole blocks."""

_POINTER = ctypes.c_void_p


class Shape(ctypes.Structure):
    """`Shape` in decode.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("n_layer", "n_head", "d_model", "d_head", "d_mlp", "d_vocab")),
        ("activation", ctypes.c_int32), ("is_bfloat16", ctypes.c_int32), ("eps", ctypes.c_float),
    ]  # fmt: skip


class BlockWeights(ctypes.Structure):
    """`BlockWeights` in decode.cpp."""

    _fields_ = [
        *((name, _POINTER) for name in ("ln1_w", "ln1_b", "b_qkv", "b_o", "ln2_w", "ln2_b", "b_in", "b_out")),
        *((name, _POINTER) for name in ("w_qkv", "w_o", "w_in", "w_out")),
        ("scale", ctypes.c_float),
    ]


class Weights(ctypes.Structure):
    """`Weights` in decode.cpp."""

    _fields_ = [("blocks", ctypes.POINTER(BlockWeights)), ("lnf_w", _POINTER), ("lnf_b", _POINTER), ("head", _POINTER)]


@dataclass(frozen=True)
class Prepared:
    """Weights that the kernels can read, and what they were made from."""

    shape: Shape  # sizes and constants
    weights: Weights  # pointers into `memory` and `vectors`
    state: tuple[tuple[int, int], ...]  # the state of the parameters when they were copied
    nbytes: int  # memory of the copy
    kept: list[Any] = field(repr=False)  # what the pointers point to


_PREPARED: WeakKeyDictionary[Network, Prepared] = WeakKeyDictionary()


def knows(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels compute this model."""
    return config.activation_function in ACTIVATIONS and dtype in DTYPES and device.type == "cpu"


def prepared(model: Network) -> Prepared:
    """The prepared weights of a model, made if there are none or if a parameter was written to since."""
    found = _PREPARED.get(model)
    if found is None or found.state != state_of(submodules(model)):
        _PREPARED.pop(model, None)  # its memory first
        _PREPARED[model] = found = _prepare(model)
    return found


def forget(model: Network) -> None:
    """Drop the prepared weights of a model."""
    _PREPARED.pop(model, None)


def bytes_needed(model: Network) -> int:
    """What the prepared copy of a model takes."""
    return sum(_room(tensor, _stored_as(model)) for tensor in matrices(model))


def _stored_as(model: Network) -> torch.dtype:
    return model.execution.rounds_to or model.embed.W_E.dtype


def matrices(model: Network) -> Iterator[Tensor]:
    """Each matrix as [in, out], in the order in which a step reads them."""
    for block in _blocks(model):
        attn, mlp = block.attn, block.mlp
        yield from (attn.W_QKV, attn.W_O.flatten(0, 1), mlp.W_in, mlp.W_out)
    yield model.unembed.weight.T


def _blocks(model: Network) -> Iterable[TransformerBlock]:
    return cast("Iterable[TransformerBlock]", model.blocks)


def padded(outputs: int) -> int:
    """Outputs in whole blocks."""
    return -(-outputs // BLOCK) * BLOCK


def _room(matrix: Tensor, dtype: torch.dtype) -> int:
    return matrix.size(0) * padded(matrix.size(1)) * dtype.itemsize


def _pack(matrix: Tensor, into: Tensor) -> None:
    """[in, out] -> [blocks, in, BLOCK], with zeros where there are no outputs."""
    inputs, outputs = matrix.shape
    whole = outputs // BLOCK
    blocks = into.view(-1, inputs, BLOCK)
    blocks[:whole] = matrix[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).transpose(0, 1)
    if whole < len(blocks):
        blocks[whole, :, : outputs - whole * BLOCK] = matrix[:, whole * BLOCK :]


@torch.no_grad()
def _prepare(model: Network) -> Prepared:
    config, dtype = model.config, _stored_as(model)
    state, nbytes = state_of(submodules(model)), bytes_needed(model)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # a small page holds few rows: finding pages would take as long as reading
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    kept: list[Any] = [memory, flat]
    places: list[int] = []
    at = 0
    for matrix in matrices(model):
        view = flat[at : at + _room(matrix, dtype)].view(dtype)
        _pack(matrix, view)
        places.append(view.data_ptr())
        at += _room(matrix, dtype)

    def vector(tensor: Tensor) -> int:
        flat = tensor.detach().float().flatten()
        kept.append(torch.nn.functional.pad(flat, (0, padded(len(flat)) - len(flat))).clone())
        return kept[-1].data_ptr()

    blocks = (BlockWeights * config.n_layer)()
    for i, block in enumerate(_blocks(model)):
        ln1, ln2, attn, mlp = block.ln1, block.ln2, block.attn, block.mlp
        vectors = (ln1.w, ln1.b, attn.b_QKV, attn.b_O, ln2.w, ln2.b, mlp.b_in, mlp.b_out)
        blocks[i] = BlockWeights(*map(vector, vectors), *places[4 * i : 4 * i + 4], attn.scale)
    kept.append(blocks)
    weights = Weights(blocks, vector(model.ln_final.w), vector(model.ln_final.b), places[-1])
    shape = Shape(
        config.n_layer, config.n_head, config.n_embd, config.d_head, config.d_mlp, config.vocab_size,
        ACTIVATIONS[config.activation_function], dtype == torch.bfloat16, config.layer_norm_epsilon,
    )  # fmt: skip
    return Prepared(shape, weights, state, nbytes, kept)


SOURCE = Path(__file__).with_name("decode.cpp")


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
        """Run the next column: see `StepDecoder.step`; everything is in float32."""
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
