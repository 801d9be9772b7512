"""One step of decoding by the kernels: the next column of every row, its logits, and what is captured on the way."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable
from typing import cast

import torch
from torch import Tensor

from pellucid import nonlinear
from pellucid.axes import ATTENTION, HIDDEN, PER_HEAD, Axes
from pellucid.cache import KeyValueCache
from pellucid.ckpt import BLOCK
from pellucid.fast.compiled import library
from pellucid.fast.graphed import GraphDecoder, can_record
from pellucid.fast.prepared import Prepared, Shape, Weights, knows, padded, prepared
from pellucid.parameters import has_native_hooks, runs_as_written, submodules
from pellucid.transformer import Transformer, TransformerBlock

MOST_ROWS = 32
"""Rows up to which reading the weights is what takes time; beyond, matrix products of torch are quicker."""

_POINTER = ctypes.c_void_p
_FIELDS = {name: name.replace("attn.ckpt_", "").replace("mlp.ckpt_", "").replace(".ckpt", "") for name in BLOCK}


class BlockLook(ctypes.Structure):
    """`BlockLook` in decode.cpp: a pointer for each checkpoint of a block, in their order."""

    _fields_ = [(field, _POINTER) for field in _FIELDS.values()]


class Look(ctypes.Structure):
    """`Look` in decode.cpp."""

    _fields_ = [("blocks", ctypes.POINTER(BlockLook)), ("lnf_scaled", _POINTER), ("lnf_normalized", _POINTER)]


class Cache(ctypes.Structure):
    """`Cache` in decode.cpp."""

    _fields_ = [("content", _POINTER), ("mask", _POINTER), ("rows", ctypes.c_int32), ("capacity", ctypes.c_int32),
                ("length", ctypes.c_int32)]  # fmt: skip


def decoder(model: Transformer, rows: int, *, looks: bool = False) -> Decoder | GraphDecoder | None:
    """What runs the steps of a model; None where the model has to run itself.

    It has to where it trains, has native hooks, or was changed since it was built; on the CPU where it has other
    activation functions or dtypes than the kernels know, or more rows than `MOST_ROWS`; on an accelerator where values
    are looked at or under autocast.

    Args:
        model: What is run.
        rows: Texts in the batch.
        looks: Whether values are captured on the way.

    Raises:
        NumericsError: The kernels cannot be compiled.
    """
    weight, modules = model.embed.W_E, submodules(model)
    if model.training or has_native_hooks(modules) or not runs_as_written(modules):
        return None
    if can_record(weight.device):  # autocast keeps rounded weights of its own, and drops them when it likes
        return None if looks or torch.is_autocast_enabled(weight.device.type) else GraphDecoder(model)
    return Decoder(model, prepared(model)) if kernels_take(model, rows) else None


def kernels_take(model: Transformer, rows: int) -> bool:
    """Whether the kernels know what this model is made of, and are quicker at so many rows."""
    weight = model.embed.W_E
    return rows <= MOST_ROWS and knows(model.config, weight.dtype, weight.device) and _is_as_configured(model)


def _is_as_configured(model: Transformer) -> bool:
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

    Args:
        model: Whose embeddings are looked up.
        weights: Its other weights.

    Attributes:
        dtype: Of the keys and values that it reads.
    """

    dtype = torch.float32

    def __init__(self, model: Transformer, weights: Prepared) -> None:
        self._model = model
        self._weights = weights
        self._run = library().pellucid_step
        self._run.restype = None
        self._run.argtypes = [ctypes.POINTER(Shape), ctypes.POINTER(Weights), ctypes.POINTER(Look),
                              ctypes.POINTER(Cache), _POINTER, _POINTER, ctypes.c_int32]  # fmt: skip

    def step(
        self, ids: Tensor, positions: Tensor, cache: KeyValueCache, names: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the next column, which the cache has room for and then holds.

        Args:
            ids: [B].
            positions: [B].
            cache: In float32; its mask says that the column holds tokens.
            names: Checkpoints to give.

        Returns:
            Logits [B, V] in float32, and the captured values with one position each.
        """
        rows, columns = len(ids), cache.length + 1
        config = self._model.config
        embed, pos_embed = self._model.embed(ids).float(), self._model.pos_embed(positions).float()
        residual = embed + pos_embed
        logits = torch.empty(rows, padded(config.vocab_size), device="cpu")
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

    def _look(self, names: Collection[str], rows: int, columns: int, values: dict[str, Tensor]) -> Look:
        """Room for the captured values, by name in `values`, and the pointers to it."""
        config = self._model.config

        def room(name: str, axes: Axes) -> int | None:
            if name not in names:
                return None
            shape = {
                PER_HEAD: (rows, 1, config.n_head, config.d_head), HIDDEN: (rows, 1, config.d_mlp),
                ATTENTION: (rows, config.n_head, 1, columns),
            }.get(axes, (rows, 1, config.n_embd))  # fmt: skip
            values[name] = torch.empty(shape, device="cpu")
            return values[name].data_ptr()

        blocks = (BlockLook * config.n_layer)()
        for i in range(config.n_layer):
            blocks[i] = BlockLook(*(room(f"blocks.{i}.{name}", axes) for name, axes in BLOCK.items()))
        residual = BLOCK["resid_pre"]
        return Look(blocks, room("ln_final.ckpt_scaled", residual), room("ln_final.ckpt_normalized", residual))
