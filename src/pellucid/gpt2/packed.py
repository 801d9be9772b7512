"""A model's weights as the kernels read them: each matrix in blocks of outputs, one behind the other, in large pages.

It is a copy, which takes the memory of the matrices once more. It is made again when a parameter was written to.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pellucid.gpt2.config import TransformerConfig
from pellucid.gpt2.model import TransformerBlock
from pellucid.network import Network
from pellucid.part import state_of, submodules

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
