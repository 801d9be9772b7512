"""Making batches: whatever a model takes, checked, padded and masked.

All of it happens on the processor, where looking at a number costs nothing; what is made then goes to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.batch import Batch, Inputs
from pellucid.config import TransformerConfig
from pellucid.errors import InputError, ShapeError
from pellucid.execution import is_batched
from pellucid.tokens import Tokenizer


@dataclass(frozen=True)
class Batcher:
    """Makes batches for one model: its tokenizer, its vocabulary, its context length, its device."""

    config: TransformerConfig
    tokenizer: Tokenizer | None
    device: torch.device

    def __call__(self, inputs: Inputs, mask: Any = None, padding_side: str = "left") -> Batch:
        """Batch whatever `Inputs` allows.

        Args:
            inputs: One or several texts or rows of ids.
            mask: [B, P] of 0 and 1, only with a tensor of ids.
            padding_side: Where rows shorter than the longest get their pads, "left" or "right".

        Raises:
            InputError: Nothing to run, ids outside the vocabulary, a text longer than the context, pads without
                a mask, or an input of another kind.
        """
        if isinstance(inputs, Batch):
            if mask is not None:
                raise _mask_without_ids("a Batch, which has its own")
            if inputs.checked is not self.config and inputs.checked != self.config:
                _require_batch(inputs)
                self._check(inputs.ids, inputs.positions)
            return inputs.to(self.device)
        if padding_side not in ("left", "right"):
            raise InputError(
                f"tokenize: padding_side={padding_side!r}, expected 'left' or 'right'.",
                code="padding-side",
                remedy="Give one of the two.",
            )
        if isinstance(inputs, Mapping):
            inputs, mask = _from_mapping(inputs, mask)
        if isinstance(inputs, np.ndarray):
            inputs = _integers(inputs, "the array")
        if isinstance(inputs, Tensor):
            if not has_numbers(inputs):
                return self._unchecked(inputs, mask)
            ids = _as_rectangle(inputs)
            if mask is None:
                self._refuse_unmasked_pads(ids)
            return self._assemble(ids, _as_mask(mask, ids))
        if mask is not None:
            raise _mask_without_ids("texts or lists, which are padded and masked here")
        return self._assemble(*_pad(self._rows(inputs), self._pad_id(), left=padding_side == "left"))

    def _rows(self, inputs: Inputs) -> list[Tensor]:
        if isinstance(inputs, str):
            inputs = [inputs]
        if not isinstance(inputs, Sequence):
            raise InputError(
                f"tokenize: {type(inputs).__name__} given, expected text, texts, ids or a Batch.",
                code="input-kind",
                remedy="Pass a string, a list of strings, a tensor of ids [B, P] or lists of ids.",
            )
        if inputs and all(isinstance(item, int) and not isinstance(item, bool) for item in inputs):
            inputs = [inputs]
        if not inputs:
            raise _empty("an empty batch")
        return [self._row(item, number) for number, item in enumerate(inputs)]

    def _row(self, item: Any, number: int) -> Tensor:
        if isinstance(item, str):
            if self.tokenizer is None:
                raise InputError(
                    f"tokenize: row {number} is text, but this model has no tokenizer.",
                    code="no-tokenizer",
                    remedy="Pass ids, or set model.tokenizer = pl.Tokenizer.from_file('tokenizer.json').",
                )
            item = self.tokenizer.encode(item)
        ids = _integers(item, f"row {number}")
        if ids.dim() != 1:
            raise ShapeError(
                f"tokenize: row {number} has shape {list(ids.shape)}, expected [pos].",
                code="ids-shape",
                remedy="Pass a list of rows, each a flat list of ids.",
            )
        if ids.numel() == 0:
            raise _empty(f"row {number} is empty")
        return ids

    def _assemble(self, ids: Tensor, mask: Tensor) -> Batch:
        positions = (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)
        self._check(ids, positions)
        made = Batch(ids, mask, positions, self.tokenizer, checked=self.config)
        return made.to(self.device)

    def _unchecked(self, ids: Tensor, mask: Any) -> Batch:
        """Ids [B, P] whose numbers cannot be looked at, and so not checked; a mask is taken to hide pads."""
        if mask is not None and is_recorded(ids):
            raise InputError(
                "tokenize: a mask was given while a CUDA graph is captured, but to look at it is to wait.",
                code="mask-while-captured",
                remedy="Make the batch before: batch = model.tokenize(ids, mask=mask).",
            )
        ids = ids[None] if ids.dim() == 1 else ids
        if mask is None:
            seen = torch.ones_like(ids, dtype=torch.bool)
            positions = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        else:
            seen = torch.as_tensor(mask, device=ids.device).reshape(ids.shape).bool()
            positions = (seen.long().cumsum(-1) - 1).masked_fill(~seen, 0)
        made = Batch(ids, seen, positions, self.tokenizer, checked=self.config).known(padded=mask is not None)
        return made if ids.device == self.device else made.to(self.device)

    def _check(self, ids: Tensor, positions: Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise InputError(
                f"ids: {low if low < 0 else high} given, expected 0 to {self.config.vocab_size - 1} (vocab_size).",
                code="id-out-of-range",
                remedy="Use this model's own tokenizer; ids of another vocabulary mean other text.",
            )
        if positions.shape != ids.shape or int(positions.min()) < 0:
            raise ShapeError(
                f"positions: shape {list(positions.shape)}, expected the ids' {list(ids.shape)}, counted from 0.",
                code="positions",
                remedy="Make batches with model.tokenize, which counts positions from each text's first token.",
            )
        longest = int(positions.max()) + 1
        if longest > self.config.n_positions:
            raise InputError(
                f"ids: a text of {longest} tokens, expected at most {self.config.n_positions} (n_positions).",
                code="too-long",
                remedy="Shorten or split the text: GPT-2 has no embedding for later positions.",
            )

    def _pad_id(self) -> int:
        candidates = (self.config.pad_token_id, *self.config.end_ids, 0)
        return next(i for i in candidates if i is not None and 0 <= i < self.config.vocab_size)

    def _refuse_unmasked_pads(self, ids: Tensor) -> None:
        pad = self.config.pad_token_id
        if pad is None or not bool((ids == pad).any()):
            return
        if pad in (*self.config.end_ids, self.config.bos_token_id) and not _looks_padded(ids == pad):
            return
        raise InputError(
            f"ids: the pad id {pad} occurs, but no mask was given, so that pads would be read as text.",
            code="pad-without-mask",
            remedy="Pass mask= (1 at real tokens), or lists of unequal length, which are padded and masked here.",
        )


def has_numbers(ids: Tensor) -> bool:
    """Whether the ids can be read now.

    They cannot on the meta device, under `torch.func.vmap`, which runs all samples at once, and while a CUDA graph is
    captured.
    """
    return not (ids.is_meta or is_batched(ids) or is_recorded(ids))


def is_recorded(ids: Tensor) -> bool:
    """Whether what runs on these ids is captured into a CUDA graph, whose inputs are filled in later."""
    return ids.is_cuda and torch.cuda.is_current_stream_capturing()


def _looks_padded(pads: Tensor) -> bool:
    """Whether an id that is pad and end of text is padding: twice at an edge, or at the edge of some rows only."""
    if pads.size(1) > 1 and bool((pads[:, :2].all(1) | pads[:, -2:].all(1)).any()):
        return True
    first, last = pads[:, 0], pads[:, -1]
    return bool(first.any() != first.all()) or bool(last.any() != last.all())


_IGNORED_KEYS = frozenset({"special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "length"})
"""What a tokenizer may return beside ids and mask that no model reads."""


def _from_mapping(inputs: Mapping[str, Any], mask: Any) -> tuple[Any, Any]:
    others = sorted(set(map(str, inputs)) - {"input_ids", "attention_mask"} - _IGNORED_KEYS)
    if "input_ids" not in inputs or others:
        raise InputError(
            f"tokenize: a mapping with {sorted(map(str, inputs))}, expected 'input_ids' and 'attention_mask'.",
            code="input-kind",
            remedy="Pass what a transformers tokenizer returns; positions follow from the mask here.",
        )
    ids, given = inputs["input_ids"], inputs.get("attention_mask") if mask is None else mask
    if isinstance(ids, (list, tuple)) and len({len(row) if isinstance(row, (list, tuple)) else -1 for row in ids}) > 1:
        if given is not None and not all(all(row) for row in given):
            raise _mask_without_ids("rows of unequal length, which are padded and masked here")
        return list(ids), None
    return _integers(ids, "input_ids"), given


def _mask_without_ids(what: str) -> InputError:
    return InputError(
        f"tokenize: a mask was given with {what}, expected it only with a tensor of ids.",
        code="mask-without-ids",
        remedy="Leave the mask out.",
    )


def _require_batch(batch: Batch) -> None:
    """Refuse a batch that was put together by hand and does not hold together."""
    if batch.ids.dtype != torch.long or batch.mask.dtype != torch.bool or batch.mask.shape != batch.ids.shape:
        raise ShapeError(
            f"Batch: ids {list(batch.ids.shape)} {batch.ids.dtype}, mask {list(batch.mask.shape)} {batch.mask.dtype}, "
            "expected equal shapes, torch.int64 and torch.bool.",
            code="mask-shape",
            remedy="Make batches with model.tokenize.",
        )


def _integers(given: Any, where: str) -> Tensor:
    try:
        ids = given if isinstance(given, Tensor) else torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ids: {where} cannot be read as numbers: {error}",
            code="ids-dtype",
            remedy="Pass whole numbers.",
        ) from error
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise ShapeError(
            f"ids: {where} holds {ids.dtype}, expected whole numbers.",
            code="ids-dtype",
            remedy="Pass token ids as integers, such as ids.long().",
        )
    return ids.long()


def _as_rectangle(given: Tensor) -> Tensor:
    ids = _integers(given, "the tensor").to("cpu", copy=True)  # a batch does not change when the caller's tensor does
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2:
        raise ShapeError(
            f"ids: shape {list(ids.shape)}, expected [batch, pos] or [pos].",
            code="ids-shape",
            remedy="Pass a matrix of ids.",
        )
    if ids.numel() == 0:
        raise _empty(f"ids of shape {list(ids.shape)}")
    return ids


def _as_mask(given: Any, ids: Tensor) -> Tensor:
    if given is None:
        return torch.ones_like(ids, dtype=torch.bool)
    try:
        mask = torch.as_tensor(given, device=ids.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"mask: cannot be read as numbers: {error}", code="mask-values", remedy="Give 1 at real tokens, else 0."
        ) from error
    mask = mask[None] if mask.dim() == 1 else mask
    if mask.shape != ids.shape:
        raise ShapeError(
            f"mask: shape {list(mask.shape)}, expected that of the ids, {list(ids.shape)}.",
            code="mask-shape",
            remedy="Give one 0 or 1 for each id.",
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(
            "mask: other values than 0 and 1.", code="mask-values", remedy="Give 1 at real tokens, else 0."
        )
    if not bool(mask.any(-1).all()):
        raise _empty("a row whose mask is all 0")
    return mask.bool().clone()


def _pad(rows: list[Tensor], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id, device="cpu")
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device="cpu")
    for number, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, at], mask[number, at] = row.to(ids.device), True
    return ids, mask


def _empty(what: str) -> InputError:
    return InputError(
        f"tokenize: {what}, expected at least one token.",
        code="empty-text",
        remedy="Give some text; to start from nothing, pass the beginning-of-text id yourself.",
    )
