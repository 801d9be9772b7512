"""Keys and values of tokens that were run already, so that the tokens after them can be run alone.

Memory for `capacity` columns is laid out once; a run writes its columns behind those that are there. Pads stay in the
cache as columns that nobody attends to.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pellucid.check import as_whole, require_whole
from pellucid.errors import InputError, ShapeError, shown
from pellucid.family.config import require_schema
from pellucid.family.json_config import Config
from pellucid.names.calls import named_arguments
from pellucid.text.batch import Batch
from pellucid.weights import own_file

_KIND, _CONTENT, _MASK = "pellucid.cache", "keys_and_values", "mask"


@named_arguments()
class KeyValueCache:
    """Keys and values [L, 2, B, G, capacity, K], G their heads, of the first `length` columns of a text.

    A model given one writes into it: `model(ids, cache=cache)` runs `ids` as the continuation of what is in the cache.
    It holds numbers alone: a gradient reaches the tokens of the run, and none that were cached before.

    Args:
        config: The configuration of the model that will use it.
        rows: Texts in the batch.
        capacity: Columns that fit; the model's context if None.
        dtype: The model's dtype.
        device: The model's device.

    Attributes:
        content: The keys [:, 0] and values [:, 1] of each block.
        mask: [B, capacity], true at columns that hold a token, false at pads.
        length: Columns that are filled.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> cache = pl.KeyValueCache(model.config)
        >>> with torch.no_grad():
        ...     _ = model("Once upon a", cache=cache)
        ...     logits = model(" time", cache=cache)
        >>> cache.length, logits.shape
        (4, torch.Size([1, 1, 4096]))
    """

    def __init__(
        self,
        config: Config,
        rows: int = 1,
        capacity: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = require_schema(config).sizes
        _require_dtype(dtype)
        columns = sizes["n_ctx"] if capacity is None else capacity
        texts, room = as_whole(rows), as_whole(columns)
        if texts is None or room is None or texts < 1 or room < 1:
            raise InputError(
                f"KeyValueCache: {shown(rows)} rows of {shown(columns)} columns, expected at least one of each.",
                code="cache-empty",
                remedy="Give the number of texts and of tokens that it has to hold.",
            )
        shape = (sizes["layer"], 2, texts, sizes["head_kv"], room, sizes["d_head"])
        remedy = _MADE_FOR
        try:
            torch.empty(0, dtype=dtype, device=device)
            remedy = _FEWER  # there is such a device
            with torch.inference_mode(False):  # or it could not be written to outside
                self.content = torch.empty(shape, dtype=dtype, device=device)
                self.mask = torch.zeros(texts, room, dtype=torch.bool, device=device)
        except torch.OutOfMemoryError:  # of an accelerator: it says how much is taken and free
            raise
        except (RuntimeError, TypeError, AssertionError) as problem:  # torch has a class for each kind of device
            why = str(problem).partition("\n")[0]
            said = f"KeyValueCache: {texts} rows of {room} columns cannot be had on {device}: {why:.200}"
            raise _misfit(said, remedy) from problem
        self.length = 0

    @staticmethod
    def bytes_needed(config: Config, rows: int, capacity: int, dtype: torch.dtype = torch.float32) -> int:
        """What a cache of these sizes would take, before it is made: 2 L B G K bytes a column, times the dtype's.

        Example:
            >>> import pellucid as pl
            >>> config = pl.TransformerConfig.from_pretrained("gpt2-small")
            >>> pl.KeyValueCache.bytes_needed(config, rows=1, capacity=1024)
            75498496
        """
        sizes = require_schema(config).sizes
        _require_dtype(dtype)
        keys_and_values = 2 * sizes["layer"] * sizes["head_kv"] * sizes["d_head"] * dtype.itemsize
        texts, columns = require_whole("bytes_needed: rows", rows), require_whole("bytes_needed: capacity", capacity)
        return texts * columns * (keys_and_values + torch.bool.itemsize)

    @property
    def rows(self) -> int:
        """Texts in the batch."""
        return self.content.size(2)

    @property
    def capacity(self) -> int:
        """Columns that fit."""
        return self.content.size(4)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.content, self.mask))

    def padding_up_to(self, columns: int) -> Tensor | None:
        """[B, columns], true at tokens; None if there are no pads."""
        kept = self.mask[:, :columns]
        return None if not kept.is_meta and bool(kept.all()) else kept

    @property
    def counts(self) -> Tensor:
        """[B]: tokens of each text, which is the position of the next one."""
        return self.mask[:, : self.length].sum(1)

    def __repr__(self) -> str:
        return f"KeyValueCache of {self.rows} x {self.length} of {self.capacity} columns, {self.nbytes:,} bytes"

    def open(self, mask: Tensor) -> None:
        """Make room for the next columns, of which `mask` [B, P] says which hold tokens."""
        rows, columns = mask.shape
        if rows != self.rows:
            raise _wrong_rows(rows, self.rows)
        if self.length + columns > self.capacity:
            raise InputError(
                f"cache: {self.length} + {columns} columns, expected at most {self.capacity} (capacity).",
                code="cache-full",
                remedy="Make the cache larger, or rewind it.",
            )
        self.mask[:, self.length : self.length + columns] = mask

    def writer(self, block: int) -> partial[tuple[Tensor, Tensor]]:
        """What one block calls with its new keys and values."""
        return partial(self._write, block)

    def _write(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [B, H, P, K] of the new columns -> those of all columns, [B, H, length + P, K], in the model's dtype."""
        keys, values = (self._joined(part, new) for part, new in zip(self.content[block], (k, v), strict=True))
        return keys, values

    def _joined(self, kept: Tensor, new: Tensor) -> Tensor:
        """Write new columns into what is kept of a block: all columns, of which only the new ones carry a gradient."""
        end = self.length + new.size(2)
        kept[:, :, self.length : end] = new.detach()
        if torch.is_grad_enabled() and new.requires_grad:
            return torch.cat([kept[:, :, : self.length].to(new.dtype), new], 2)
        return kept[:, :, :end].to(new.dtype)

    def close(self, columns: int) -> None:
        """Count the new columns, which every block has written."""
        self.length += columns

    def rewind(self, length: int) -> None:
        """Forget the columns from `length` on."""
        kept = as_whole(length)
        if kept is None or not 0 <= kept <= self.length:
            raise InputError(
                f"cache: rewind to {shown(length)}, expected 0 to {self.length}.",
                code="cache-rewind",
                remedy="Rewind to a length that the cache had before.",
            )
        self.length = kept

    def fork(self, rows: int = 1, capacity: int | None = None) -> KeyValueCache:
        """A copy that goes its own way, each text `rows` times in a row.

        Args:
            rows: Copies of each text, next to each other.
            capacity: The copy's capacity; the same if None.

        Raises:
            InputError: If it would not hold what is there.
        """
        columns = self.capacity if capacity is None else capacity
        copies, room = as_whole(rows), as_whole(columns)
        if copies is None or room is None or copies < 1 or room < max(self.length, 1):
            raise InputError(
                f"cache: fork into {shown(rows)} rows of {shown(columns)} columns, "
                f"expected at least one of {self.length}.",
                code="cache-fork",
                remedy="Give room for what the cache holds.",
            )
        made = object.__new__(KeyValueCache)
        layers, two, texts, heads, _, width = self.content.shape
        with torch.inference_mode(False):
            made.content = self.content.new_empty(layers, two, texts * copies, heads, room, width)
            made.mask = self.mask.new_zeros(texts * copies, room)
        made.length = self.length
        filled = self.content[..., : self.length, :].repeat_interleave(copies, 2)
        made.content[..., : self.length, :] = filled
        made.mask[:, : self.length] = self.mask[:, : self.length].repeat_interleave(copies, 0)
        return made

    def reorder(self, rows: Tensor) -> None:
        """Reorder the texts in place: new text i is old text `rows[i]`; `rows` [B] may repeat.

        Raises:
            InputError: If it is no tensor with the number of a text for each.
        """
        fits = isinstance(rows, Tensor) and rows.shape == (self.rows,)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not fits or (not rows.is_cuda and not bool(((rows >= 0) & (rows < self.rows)).all())):
            raise InputError(
                f"cache: reorder by {shown(rows)}, expected a tensor of {self.rows} numbers from 0 to {self.rows - 1}.",
                code="index-out-of-range",
                remedy=f"Give a text for each of the {self.rows}, such as torch.arange({self.rows}).",
            )
        if torch.equal(rows, torch.arange(self.rows, device=rows.device)):
            return
        for block in self.content:  # one after another, so that little more memory is needed
            block[..., : self.length, :] = block[..., : self.length, :].index_select(1, rows)
        with torch.inference_mode(False):
            self.mask = self.mask.index_select(0, rows)

    def trim(self) -> None:
        """Give back the memory of the columns that are not filled."""
        with torch.inference_mode(False):
            self.content = self.content[..., : max(self.length, 1), :].clone()
            self.mask = self.mask[:, : max(self.length, 1)].clone()

    def save(self, path: str | Path) -> None:
        """Write what is filled into one safetensors file, whole or not at all."""
        tensors = {
            _CONTENT: self.content[..., : self.length, :].cpu().contiguous(),
            _MASK: self.mask[:, : self.length].cpu().contiguous(),
        }
        own_file.save(path, _KIND, tensors, {"format": "pellucid.cache/1"})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> KeyValueCache:
        """Read a file that `save` wrote; `fork(capacity=…)` makes room for more.

        Raises:
            NotFoundError: If there is no such file.
            WeightsError: If it cannot be opened.
            InputError: If the file holds something else, or is damaged.
        """
        try:
            with torch.inference_mode(False):
                _, tensors = own_file.load(path, _KIND)
                content, mask = tensors[_CONTENT].to(device), tensors[_MASK].to(device)
            if not _are_a_cache(content, mask):
                raise ValueError("its keys, values and mask do not fit together")
        except (KeyError, ValueError) as problem:
            raise InputError(
                f"{str(path)!r} holds no keys and values ({problem!r}).",
                code="not-a-cache",
                remedy="Give a file that KeyValueCache.save wrote.",
            ) from problem
        made = object.__new__(cls)
        made.content, made.mask, made.length = content, mask, mask.size(1)
        return made


@contextmanager
def continued(batch: Batch, cache: KeyValueCache, config: Config) -> Generator[tuple[Tensor, Tensor | None]]:
    """Make room for a batch that goes on where the texts of a cache end, and count its columns after the body.

    Yields its positions [B, P], 0 at pads; [B, length + P], true at tokens of both, None if there are no pads.
    """
    if not isinstance(cache, KeyValueCache):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _misfit(f"cache: {type(cache).__name__} given, expected a KeyValueCache")
    if len(batch) != cache.rows:
        raise _wrong_rows(len(batch), cache.rows)
    sizes = config.sizes
    layers, _, _, heads, _, width = cache.content.shape
    made_for = (layers, heads, width, cache.content.device)
    expected = (sizes["layer"], sizes["head_kv"], sizes["d_head"], batch.ids.device)
    if made_for != expected:
        what = "({} layers, {} heads of {}, on {})"
        raise _misfit(f"cache: one for {what.format(*made_for)}, expected {what.format(*expected)}")
    positions = (batch.positions + cache.counts[:, None]).masked_fill(~batch.mask, 0)
    columns = cache.length + batch.ids.size(1)  # no text is longer, so mostly the device need not be asked
    longest = columns if columns <= sizes["n_ctx"] else int(positions.max()) + 1
    if longest > sizes["n_ctx"]:
        raise InputError(
            f"cache: a text of {longest} tokens with what is cached, expected at most {sizes['n_ctx']}.",
            code="too-long",
            remedy="Rewind the cache, or give fewer tokens: this is the longest text that the model is made for.",
        )
    cache.open(batch.mask)
    yield positions, cache.padding_up_to(columns)
    cache.close(batch.ids.size(1))


def _are_a_cache(content: Tensor, mask: Tensor) -> bool:
    """Whether these can be keys and values [L, 2, B, H, C, K] and the columns [B, C] that hold a token."""
    fits = content.dim() == 6 and content.size(1) == 2 and mask.shape == (content.size(2), content.size(4))
    return fits and content.is_floating_point() and mask.dtype == torch.bool


def _require_dtype(dtype: object) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise _misfit(f"KeyValueCache: {shown(dtype)}, expected a torch.dtype of floating point")


_MADE_FOR = "Make it with KeyValueCache(model.config, rows, dtype=model.dtype, device=model.device)."
_FEWER = "Ask for fewer rows or columns; KeyValueCache.bytes_needed(model.config, rows, capacity) says what they take."


def _misfit(what: str, remedy: str = _MADE_FOR) -> InputError:
    return InputError(f"{what}.", code="cache-misfit", remedy=remedy)


def _wrong_rows(given: int, expected: int) -> ShapeError:
    return ShapeError(
        f"cache: {given} rows given, expected {expected}.",
        code="cache-rows",
        remedy="Run the batch that the cache was made for, or fork it: cache.fork(rows).",
    )
