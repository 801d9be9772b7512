"""Batches: texts of unequal length as one rectangle, in which ids, mask and positions travel together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pellucid.errors import InputError, visible
from pellucid.family.json_config import Config
from pellucid.html.listing import Listed, Listing, counted
from pellucid.names.calls import named_arguments
from pellucid.numerics.products import recordable
from pellucid.schema import POSITIONS, Axis, coordinate
from pellucid.text.borrowed import no_tokenizer
from pellucid.text.tokenizer import Tokenizer

_MASKS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Ids that are in use -> their mask, so that ids which are passed on without it are known again."""

Inputs = Any
"""What a model takes: a string, strings, ids (a tensor, an array or ragged lists), a mapping with `input_ids`, or a
`Batch`. A column of pandas' counts as a list."""


@named_arguments()
@dataclass(frozen=True, eq=False, repr=False)
class Batch(Listed):
    """Texts of unequal length as one rectangle.

    Attributes:
        ids: [B, P] token ids; pads hold the config's pad id, else an end id, else 0.
        mask: [B, P], true at real positions.
        positions: [B, P], counted from each text's first real token; 0 at pads.
        tokenizer: What gives the tokens' texts; ids are shown as digits if there is none.
        labels: The tokens' texts, if they are known already.
        checked: The configuration that the batch was made for, which need not be checked again.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    tokenizer: Tokenizer | None = None
    labels: list[list[str]] | None = None
    checked: Config | None = None
    _padded: tuple[bool, int] | None = field(default=None, init=False)  # and the writes before

    def __post_init__(self) -> None:
        for name in ("ids", "mask", "positions"):
            given: object = getattr(self, name)
            if not isinstance(given, Tensor):
                raise InputError(
                    f"Batch: {name} is {type(given).__name__}, expected a tensor.",
                    code="input-kind",
                    remedy="Make batches with model.tokenize, which takes texts and ids of any kind.",
                )
        if self.tokenizer is not None and not hasattr(self.tokenizer, "pieces"):
            raise no_tokenizer(self.tokenizer, "a pl.Tokenizer")
        _MASKS[self.ids] = self.mask

    @property
    def padded(self) -> bool:
        """Whether any row has pads; looked up once, and again if the mask was written to."""
        if self._padded is None or self._padded[1] != self._writes():
            return self.known(padded=not bool(self.mask.all())).padded
        return self._padded[0]

    @property
    def strings(self) -> list[list[str]]:
        """Per row, the text of each real token."""
        if self.labels is not None:
            return self.labels
        return [pieces_of(self.tokenizer, row.tolist()) for row in self.rows()]

    def _listing(self) -> Listing:
        try:
            rows = [(counted(len(tokens), "token"), _joined(tokens)) for tokens in self.strings[:MOST_SHOWN]]
        except Exception:  # of ids that cannot be read, such as those on the meta device; nothing is raised here
            rows = []
        title = f"Batch of {counted(len(self), 'text')} in {counted(self.shape[1], 'column')}"
        return Listing(title, ("length", "tokens"), rows)

    def __len__(self) -> int:
        return self.ids.size(0)

    @property
    def shape(self) -> torch.Size:
        """(B, P)."""
        return self.ids.shape

    def rows(self) -> Iterator[Tensor]:
        """Each text's own ids, pads left out."""
        return (ids[mask] for ids, mask in zip(self.ids, self.mask, strict=True))

    def last_columns(self, values: Tensor) -> Tensor:
        """[B, P, D] -> [B, 1, D], at each text's last token."""
        if not self.padded or bool(self.mask[:, -1].all()):
            return values[:, -1:]
        columns = torch.arange(self.mask.size(1), device=self.mask.device)
        last = (self.mask * columns).argmax(1)
        return values[torch.arange(len(last), device=last.device), last][:, None]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; itself if it is there and a backward pass, if one may follow, can keep it."""
        mine = (self.ids, self.mask, self.positions)
        ids, mask, positions = (recordable(tensor.to(device)) for tensor in mine)
        if ids is self.ids and mask is self.mask and positions is self.positions:
            return self
        moved = Batch(ids, mask, positions, self.tokenizer, self.labels, self.checked)
        return moved.known(padded=self.padded)

    def known(self, *, padded: bool) -> Batch:
        """This batch, told whether any row has pads: to ask an accelerator is to wait for it."""
        object.__setattr__(self, "_padded", (padded, self._writes()))
        return self

    def _writes(self) -> int:
        """How often the mask was written to; torch does not count that under `torch.inference_mode`."""
        return 0 if self.mask.is_inference() else self.mask._version


MOST_SHOWN = 64
"""How many texts, and how many tokens of each, are shown."""


def _joined(tokens: list[str]) -> str:
    more = len(tokens) - MOST_SHOWN
    return "|".join(map(visible, tokens[:MOST_SHOWN])) + (f"| and {more} more" if more > 0 else "")


def mask_beside(ids: Tensor) -> Tensor | None:
    """The mask of the batch that these very ids belong to; None if they are of none."""
    return _MASKS.get(ids)


def without_pads(ids: Tensor) -> Tensor:
    """These ids, remembered as text throughout, even if an end id looks like a pad."""
    _MASKS[ids] = torch.ones_like(ids, dtype=torch.bool)
    return ids


def nan_at_pads(value: Tensor, axes: tuple[Axis, ...], batch: Batch, columns: Tensor) -> Tensor:
    """A value of these columns in float32 or float64 on the processor, NaN where a token of the batch is a pad."""
    value = value.detach().cpu()
    value = value if value.dtype == torch.float64 else value.float()  # numpy has no bfloat16
    if not batch.padded:
        return value
    mask = batch.mask.cpu()
    for axis, kind in enumerate(axes):
        if kind in (*POSITIONS, Axis.KEY):
            kept = mask if kind == Axis.KEY else mask[:, columns]
            shape = [kept.size(0) if i == 0 else kept.size(1) if i == axis else 1 for i in range(len(axes))]
            value = value.masked_fill(~kept.view(shape), torch.nan)
    return value


def token_labels(batch: Batch, dims: Collection[str], columns: Tensor) -> dict[str, Any]:
    """Coordinates of those axes among `dims` that go over tokens, as xarray takes them; a pad is "" at position -1."""
    labels: dict[str, Any] = {}
    mask = batch.mask.cpu()
    tokens = np.full(mask.shape, "", dtype=object)  # numpy's own strings lose a token's last NUL
    for row, real, strings in zip(tokens, mask.numpy(), batch.strings, strict=True):
        row[real] = strings
    positions = batch.positions.cpu().masked_fill(~mask, -1).numpy()
    for axis in (*POSITIONS, Axis.KEY):
        if axis in dims:
            kept = list(range(mask.size(1))) if axis == Axis.KEY else columns.tolist()
            labels[str(axis)] = kept
            labels[coordinate(axis, "token")] = ([str(Axis.BATCH), str(axis)], tokens[:, kept])
            labels[coordinate(axis, "position")] = ([str(Axis.BATCH), str(axis)], positions[:, kept])
    return labels


def pieces_of(tokenizer: Tokenizer | None, ids: Sequence[int]) -> list[str]:
    """The piece of each id, or its digits where there is no tokenizer."""
    return [str(i) for i in ids] if tokenizer is None else tokenizer.pieces(ids)
