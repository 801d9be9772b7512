"""What runs the steps of a generation: a family's kernels, a recorded step on an accelerator, or the model itself.

A step is recorded once and replayed, so nothing waits for Python to launch it. A recorded step reads and writes the
memory that it was recorded with. So every step attends to all columns that the cache has room for, those to come hidden
by the mask, and writes at a column whose number lies in memory, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from pellucid.family.families import Kernels, StepDecoder, family_of
from pellucid.family.network import Network, Run
from pellucid.family.part import has_native_hooks, runs_as_written, state_of, submodules
from pellucid.run.cache import KeyValueCache
from pellucid.tap import Ckpt

PATIENCE = 4
"""Steps that are run before one is recorded: recording takes as long as some of them."""

_ONE_AT_A_TIME = threading.Lock()


class WholeCache:
    """A cache of which a step gets all columns, and into which it writes at the column that `column` holds.

    What lies in the unfilled columns of the cache given, whose memory it is, is overwritten with zeros.
    """

    def __init__(self, cache: KeyValueCache) -> None:
        self.column = torch.zeros(1, dtype=torch.long, device=cache.content.device)
        self.mask = torch.zeros_like(cache.mask)
        self._content = cache.content
        self._content[..., cache.length :, :] = 0  # hidden columns count nothing, unless they hold NaN

    def at(self, cache: KeyValueCache) -> None:
        """Write next behind what the cache holds."""
        self.column.fill_(cache.length)
        self.mask.copy_(cache.mask)
        self.mask[:, cache.length + 1 :] = False

    def writer(self, block: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What one block calls with its new keys and values [B, H, 1, K]."""
        return partial(self._write, block)

    def _write(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._content[block]
        keys.index_copy_(2, self.column, k.to(keys.dtype))
        values.index_copy_(2, self.column, v.to(values.dtype))
        return keys.to(k.dtype), values.to(v.dtype)


class GraphDecoder:
    """Runs one column after another by the operations of torch."""

    def __init__(self, model: Network) -> None:
        self.dtype = model.embed.W_E.dtype  # the dtype of the keys and values that it reads
        self._model = model
        self._owners = [module for module in submodules(model) if not isinstance(module, Ckpt)]
        self._standing: _Standing | None = None

    def step(
        self, ids: Tensor, positions: Tensor, cache: KeyValueCache, names: Collection[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the next column: see `StepDecoder.step`; no values are given, so no names may be."""
        assert not names, "a recorded step shows no values"
        kept = self._model.products.kept()
        rounds = torch.is_autocast_enabled(ids.device.type)
        state = (rounds, cache.content.data_ptr(), *map(id, kept), *state_of(self._owners))
        if self._standing is None or self._standing.state != state:
            self._standing = _Standing(self._model, cache, state, kept)
        logits = self._standing.step(ids, positions, cache, may_record=not rounds)
        cache.close(1)
        return logits, {}


class _Standing:
    """A step over memory that stays where it is, recorded when it has been run some times.

    Args:
        model: What is run.
        cache: What it writes into.
        state: Where the memory is that it reads, and what else a recorded step would not notice.
        reads: What has to stay as long as it is replayed, though the model may drop it.
    """

    def __init__(
        self, model: Network, cache: KeyValueCache, state: tuple[object, ...], reads: Sequence[object]
    ) -> None:
        self.state, self._reads = state, reads
        self._whole, self._taken = WholeCache(cache), 0
        self._ids, self._positions = (torch.zeros_like(cache.mask[:, :1], dtype=torch.long) for _ in range(2))
        run = Run(self._ids, self._positions, self._whole.mask, self._whole)
        self._run = lambda: model.transform(run)[:, 0]

    def step(self, ids: Tensor, positions: Tensor, cache: KeyValueCache, *, may_record: bool = True) -> Tensor:
        """Logits [B, V]; see `GraphDecoder.step`. Autocast drops what it rounded when it likes: it is not recorded."""
        self._ids.copy_(ids[:, None])
        self._positions.copy_(positions[:, None])
        self._whole.at(cache)
        if self._taken == PATIENCE and may_record and can_record(self._ids.device):
            self._run = recorded(self._run, self._ids.device)
        self._taken += 1
        return self._run().clone()  # the next step writes over it


def can_record(device: torch.device) -> bool:
    """Whether what runs there can be recorded."""
    return device.type == "cuda"


def recorded(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Does what `run` does, over the same memory, by replaying its launches; gives the same tensor each time.

    One at a time, as torch captures no two graphs at once. `run` waits for nothing, and has been called before, so that
    what a first call sets up is there.
    """
    graph = torch.cuda.CUDAGraph()
    capture = torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local")
    with _ONE_AT_A_TIME, torch.cuda.device(device), capture:
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


MOST_ROWS = 32
"""Rows up to which reading the weights is what takes time; beyond, matrix products of torch are quicker."""


def decoder(model: Network, rows: int, names: Collection[str] = ()) -> StepDecoder | None:
    """What runs the steps of a model; None if the model has to run itself.

    It has to if it trains, has native hooks, or was changed since it was built; on the CPU if it has other
    activation functions or dtypes than the kernels know, or more rows than `MOST_ROWS`; on an accelerator if values
    are looked at or under autocast, or checkpoints are asked for that the kernels do not show.
    """
    weight, modules = model.embed.W_E, submodules(model)
    if model.training or has_native_hooks(modules) or not runs_as_written(modules):
        return None
    if can_record(weight.device):  # autocast keeps rounded weights of its own, and drops them when it likes
        return None if names or torch.is_autocast_enabled(weight.device.type) else GraphDecoder(model)
    kernels = kernels_for(model, rows)
    return None if kernels is None else kernels.decoder(model, names)


def kernels_for(model: Network, rows: int) -> Kernels | None:
    """Its family's kernels, if they know what this model is made of and are quicker at so many rows."""
    kernels = family_of(model.config).kernels
    return kernels if kernels is not None and rows <= MOST_ROWS and kernels.take(model) else None


def forget(model: Network) -> None:
    """Drop what was prepared from the weights of a model."""
    kernels = family_of(model.config).kernels
    if kernels is not None:
        kernels.forget(model)
