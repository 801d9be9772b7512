"""Reading token ids, and masks beside them, from whatever holds them: tensors, arrays, lists and mappings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import InputError, ShapeError

Table = Tensor | list[Tensor]
"""[B, P], or rows [P] of unequal lengths."""

_IGNORED_KEYS = frozenset({"special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "length"})
"""What a tokenizer may return beside ids and mask that no model reads."""

_ANOTHER_COMPUTATION = {
    "token_type_ids": (
        "transformers adds the embeddings of token_type_ids to those of the ids, also where they are all 0, and "
        "pellucid does not",
        "Leave token_type_ids out: call the tokenizer with return_token_type_ids=False, or pass input_ids and "
        "attention_mask alone.",
    ),
    "labels": (
        "a model takes no labels here",
        "Leave labels out; model.loss(inputs) takes each next token as the label, and leaves pads out.",
    ),
    "position_ids": (
        "positions follow from the mask, counted from each text's first token",
        "Leave position_ids out, and pass input_ids and attention_mask alone.",
    ),
}
"""Keys that another library's model computes something from: why they are refused, and what to do."""


def has_text(inputs: object) -> bool:
    """True for a text, and for a sequence that holds one."""
    return isinstance(inputs, str) or (isinstance(inputs, (list, tuple)) and any(isinstance(i, str) for i in inputs))


def is_flat(inputs: object) -> bool:
    """True for one text or one row of ids, without an axis or a list for a batch."""
    if isinstance(inputs, Mapping):
        return is_flat(inputs.get("input_ids"))
    if isinstance(inputs, (Tensor, np.ndarray)):
        return inputs.ndim == 1
    return isinstance(inputs, str) or (isinstance(inputs, Sequence) and not any(map(_has_axis, inputs)))


def from_mapping(inputs: Mapping[str, Any], mask: Any) -> tuple[Any, Any]:
    """The ids and the mask of what a tokenizer returned; `mask`, where given, replaces its own.

    Raises:
        InputError: It holds no ids, or something that another library's model would compute with.
    """
    for key, (reason, remedy) in _ANOTHER_COMPUTATION.items():
        if inputs.get(key) is not None:
            raise InputError(f"tokenize: a mapping with {key!r}: {reason}.", code="another-computation", remedy=remedy)
    given = {str(key) for key, value in inputs.items() if value is not None}
    if "input_ids" not in given or not given <= {"input_ids", "attention_mask", *_ANOTHER_COMPUTATION, *_IGNORED_KEYS}:
        raise InputError(
            f"tokenize: a mapping with {sorted(given)}, expected 'input_ids' and optionally 'attention_mask'.",
            code="input-kind",
            remedy='Pass {"input_ids": ..., "attention_mask": ...} alone.',
        )
    if has_text(inputs["input_ids"]):
        raise InputError(
            "ids: input_ids holds text, expected whole numbers.",
            code="ids-dtype",
            remedy="Pass texts by themselves, without a mapping.",
        )
    return inputs["input_ids"], inputs.get("attention_mask") if mask is None else mask


def ids_of(given: Any) -> Table:
    """Ids [B, P] on the processor, or rows of unequal lengths; one row alone is a batch of one.

    Args:
        given: A tensor, an array, whole numbers in a list, or rows of these.

    Raises:
        InputError: Something else, or nothing.
    """
    found = table(given)
    for row in [found] if isinstance(found, Tensor) else found:
        if row.numel() and (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool):
            raise ShapeError(
                f"ids: {row.dtype} given, expected whole numbers.",
                code="ids-dtype",
                remedy="Pass token ids as integers, such as ids.long().",
            )
    if isinstance(found, list):
        for number, row in enumerate(found):
            if row.numel() == 0:
                raise empty(f"row {number} is empty")
        return [row.long() for row in found]
    if found.numel() == 0:
        raise empty("an empty batch" if found.dim() < 2 or not len(found) else f"ids of shape {list(found.shape)}")
    return found.long()


def table(given: Any) -> Table:
    """Numbers of any dtype as a table; never memory of the caller's."""
    if isinstance(given, np.ndarray) and given.dtype == object:
        given = given.tolist()
    if isinstance(given, (Tensor, np.ndarray)):
        numbers = _numbers(given, "the tensor")
        numbers = numbers[None] if numbers.dim() == 1 else numbers
        if numbers.dim() != 2:
            raise _misshapen("ids", numbers, "[batch, pos] or [pos]")
        return numbers
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(
            f"tokenize: {type(given).__name__} given, expected text, texts, ids or a Batch.",
            code="input-kind",
            remedy="Pass a string, a list of strings, a tensor of ids [B, P] or lists of ids.",
        )
    if isinstance(given, (bytes, bytearray)) or not any(map(_has_axis, given)):
        return _numbers(given, "the row")[None]
    rows = [_numbers(row, f"row {number}") for number, row in enumerate(given)]
    for number, row in enumerate(rows):
        if row.dim() != 1:
            raise _misshapen(f"row {number}", row, "[pos]")
    if len({len(row) for row in rows}) > 1:
        return rows
    dtype = functools.reduce(torch.promote_types, [row.dtype for row in rows])
    return torch.stack([row.to(dtype) for row in rows])


def empty(what: str) -> InputError:
    """The error for a text or a batch without a token."""
    return InputError(
        f"tokenize: {what}, expected at least one token.",
        code="empty-text",
        remedy="Give some text; to start from nothing, pass the beginning-of-text id yourself.",
    )


def _has_axis(item: object) -> bool:
    return isinstance(item, Sequence) or getattr(item, "ndim", 0) > 0


def _numbers(given: Any, where: str) -> Tensor:
    """A copy of numbers on the processor."""
    try:
        if isinstance(given, np.ndarray):  # torch has neither other byte orders nor arithmetic for uint16
            kept = np.dtype(np.int64) if given.dtype.kind in "iu" else given.dtype.newbyteorder("=")
            return torch.from_numpy(given.astype(kept))
        if isinstance(given, Tensor):
            return given.detach().to("cpu", copy=True)
        kinds = set(map(type, given)) if isinstance(given, Sequence) else set[type]()
        if len(kinds) > 1 and kinds & {bool, np.bool_}:
            raise TypeError("truth values among numbers")
        if np.ndarray in kinds:  # arrays without axes, whose length torch would ask for
            given = [item.item() if isinstance(item, np.ndarray) else item for item in given]
        if isinstance(given, Sequence) and any(type(item) is int and item.bit_length() > 63 for item in given):
            raise OverflowError("64 bits cannot hold one of them")  # torch's words would name its own types
        return torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"ids: {where} cannot be read as numbers: {error}",
            code="ids-dtype",
            remedy="Pass the ids of this model's own tokenizer, which are whole numbers.",
        ) from error


def _misshapen(what: str, numbers: Tensor, expected: str) -> ShapeError:
    return ShapeError(
        f"tokenize: {what} has shape {list(numbers.shape)}, expected {expected}.",
        code="ids-shape",
        remedy="Pass a matrix of ids, or a list of rows, each a flat list of ids.",
    )
