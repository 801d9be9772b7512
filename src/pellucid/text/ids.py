"""Reading token ids, and masks beside them, from whatever holds them: tensors, arrays, lists and mappings.

Pads betray themselves among ids that are given without the mask that would say so. The pad of most GPT-2s is the id
that ends a text, which is also a token of texts: it stands before a prompt, after a text, and between the texts of a
packed row. What tells the two apart is where it stands and how often.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pellucid.check import as_whole
from pellucid.errors import InputError, ShapeError, shown
from pellucid.generate.generation_settings import GenerationSettings

Table = Tensor | list[Tensor]
"""[B, P], or rows [P] of unequal lengths."""

_IGNORED_KEYS = frozenset({"special_tokens_mask", "offset_mapping", "overflow_to_sample_mapping", "length"})
"""What a tokenizer may return beside ids and mask that no model reads."""

_ANOTHER_COMPUTATION = {
    "token_type_ids": (
        "transformers adds the embeddings of token_type_ids to those of the ids, even if they are all 0, and "
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


@runtime_checkable
class _AsArray(Protocol):
    """A container of another library, such as a column of pandas', that gives its values as NumPy's array."""

    def __array__(self) -> Any: ...


def opened(inputs: Any) -> Any:
    """What a container of another library holds: numbers as an array, texts and other objects in a list."""
    if not isinstance(inputs, (str, Tensor)) and isinstance(inputs, _AsArray):  # which takes long to find out
        if np.ma.is_masked(inputs):
            raise InputError(
                "ids: an array of which some entries are masked, expected numbers alone.",
                code="ids-dtype",
                remedy="Pass ids.filled(0) as the ids and mask=~np.ma.getmaskarray(ids).",
            )
        inputs = np.asarray(inputs)
        return inputs if inputs.dtype.kind in "biufcSVmM" else inputs.tolist()
    return inputs


def has_text(inputs: object) -> bool:
    """True for a text, and for a sequence that holds one."""
    if isinstance(inputs, (Tensor, np.ndarray, bytes, bytearray, memoryview, range)):
        return False
    return isinstance(inputs, str) or (isinstance(inputs, Sequence) and any(isinstance(i, str) for i in inputs))


def is_flat(inputs: object) -> bool:
    """True for one text or one row of ids, without an axis or a list for a batch."""
    inputs = opened(inputs)
    if isinstance(inputs, Mapping):
        return is_flat(inputs.get("input_ids"))
    if isinstance(inputs, (Tensor, np.ndarray)):
        return inputs.ndim == 1
    return isinstance(inputs, str) or (isinstance(inputs, Sequence) and not any(map(_has_axis, inputs)))


def from_mapping(inputs: Mapping[str, Any], mask: Any) -> tuple[Any, Any]:
    """The ids and the mask of what a tokenizer returned; `mask`, where given, replaces its own."""
    for key, (reason, remedy) in _ANOTHER_COMPUTATION.items():
        if inputs.get(key) is not None:
            raise InputError(f"tokenize: a mapping with {key!r}: {reason}.", code="another-computation", remedy=remedy)
    given = {str(key) for key, value in inputs.items() if value is not None}
    if "input_ids" not in given or not given <= {"input_ids", "attention_mask", *_ANOTHER_COMPUTATION, *_IGNORED_KEYS}:
        raise InputError(
            f"tokenize: a mapping with {shown(sorted(given))}, expected 'input_ids' and optionally 'attention_mask'.",
            code="input-kind",
            remedy='Pass {"input_ids": ..., "attention_mask": ...} alone.',
        )
    if has_text(opened(inputs["input_ids"])):
        raise InputError(
            "ids: input_ids holds text, expected whole numbers.",
            code="ids-dtype",
            remedy="Pass texts by themselves, without a mapping.",
        )
    return inputs["input_ids"], inputs.get("attention_mask") if mask is None else mask


def ids_of(given: Any, where: str = "") -> Table:
    """Ids [B, P] on the processor, or rows of unequal lengths; one row alone is a batch of one."""
    found = table(given, where)
    for row in [found] if isinstance(found, Tensor) else found:
        if row.numel() and (row.is_floating_point() or row.is_complex() or row.dtype == torch.bool):
            raise ShapeError(
                f"ids: {row.dtype} given, expected whole numbers.",
                code="ids-dtype",
                remedy=f"Pass whole numbers, as `{_whole(given)}` makes them.",
            )
    if isinstance(found, list):
        for number, row in enumerate(found):
            if row.numel() == 0:
                raise empty(f"row {number} is empty")
        return [row.long() for row in found]
    if found.numel() == 0:
        raise empty("an empty batch" if found.dim() < 2 or not len(found) else f"ids of shape {list(found.shape)}")
    return found.long()


def table(given: Any, where: str = "") -> Table:
    """Numbers of any dtype as a table; never memory of the caller's."""
    given = opened(given)
    if isinstance(given, (Tensor, np.ndarray)):
        numbers = _numbers(given, where or "the tensor")
        numbers = numbers[None] if numbers.dim() == 1 else numbers
        if numbers.dim() != 2:
            raise _misshapen("ids", numbers, "[batch, pos] or [pos]")
        return numbers
    if not isinstance(given, Sequence) or isinstance(given, _TEXT):
        raise InputError(
            f"tokenize: {where + ': ' if where else ''}{type(given).__name__} given, expected text, texts, ids or a "
            "Batch.",
            code="input-kind",
            remedy=_instead_of(given),
        )
    if not any(map(_has_axis, given)):
        return _numbers(given, where or "the row")[None]
    rows = [_numbers(opened(row), f"row {number}") for number, row in enumerate(given)]
    for number, row in enumerate(rows):
        if row.dim() == 2 and len(row) == 1:
            rows[number] = row[0]  # what a tokenizer returned for one text
        elif row.dim() != 1:
            raise _misshapen(f"row {number}", row, "[pos]")
    if len({len(row) for row in rows}) > 1:
        return rows
    dtype = functools.reduce(torch.promote_types, [row.dtype for row in rows])
    return torch.stack([row.to(dtype) for row in rows])


def _whole(given: Any) -> str:
    """What makes whole numbers of it."""
    if isinstance(given, Tensor):
        return "ids.long()"
    if isinstance(given, _AsArray):
        return "ids.astype(int)"
    return "[[int(i) for i in row] for row in ids]" if any(map(_has_axis, given)) else "[int(i) for i in ids]"


def _instead_of(given: object) -> str:
    """What to pass instead of something that is neither text nor ids."""
    if isinstance(given, (bytes, bytearray, memoryview)):
        return "Pass bytes(given).decode() for its text, list(given) for its numbers as ids."
    if isinstance(given, PurePath):
        return "Pass Path(given).read_text() for the file's text."
    if isinstance(given, Iterable):
        return "Pass list(given), in the order in which the texts or ids are to stand."
    if as_whole(given) is not None:
        return "Pass [given] for a text of one token."
    return "Pass a string, a list of strings, a tensor of ids [B, P] or lists of ids."


def listed(ids: int | Iterable[int], where: str = "tokenizer") -> list[int]:
    """Ids as Python's numbers, none of which is negative or beyond any vocabulary; `where` they were given."""
    if isinstance(ids, Tensor):
        require_dense(ids, "what is decoded")
    several_rows = isinstance(ids, (Tensor, np.ndarray)) and ids.ndim > 1 and math.prod(ids.shape[:-1]) != 1
    given = ids.reshape(-1).tolist() if isinstance(ids, (Tensor, np.ndarray)) and not several_rows else ids
    one = as_whole(given)
    if isinstance(given, (str, bytes, Mapping, Set)) or not isinstance(given, Iterable) or one is not None:
        given = [given]
    read: list[Any] = list(given)
    if not set(map(type, read)) <= {int}:
        wrong = next((token for token in read if as_whole(token) is None), None)
        if None in (found := [as_whole(token) for token in read]):
            raise InputError(
                f"{where}: {shown(wrong)} among the ids, expected whole numbers.",
                code="ids-dtype",
                remedy="Pass an id, or ids in a list or a tensor"
                + ("; `batch_decode` takes several rows." if where == "tokenizer" else ", of one row."),
            )
        read = found
    wrong = next((token for token in read if not 0 <= token < 2**32), None)
    if wrong is not None:
        raise InputError(
            f"{where}: id {shown(wrong)}, expected one of a vocabulary, 0 or more.",
            code="id-out-of-range",
            remedy="Pass ids as the tokenizer that they come from gives them.",
        )
    return read


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
    if isinstance(given, Tensor):
        require_dense(given, where)
        return given.detach().to("cpu", copy=True)
    kinds = set(map(type, given)) if isinstance(given, Sequence) else set[type]()
    odd = sorted(kind.__name__ for kind in kinds if issubclass(kind, _TEXT) or not issubclass(kind, _NUMBERS))
    if isinstance(given, _TEXT):
        odd = [type(given).__name__]
    if odd or (len(kinds) > 1 and kinds & {bool, np.bool_}):
        raise _no_numbers(where, f"it holds {' and '.join(odd) or 'truth values beside numbers'}")
    try:
        if isinstance(given, np.ndarray):  # torch has neither other byte orders nor arithmetic for uint16
            kept = np.dtype(np.int64) if given.dtype.kind in "iu" else given.dtype.newbyteorder("=")
            return torch.from_numpy(given.astype(kept))
        if len(kinds) > 1 or np.ndarray in kinds:  # torch mixes no kinds, and asks for the length of an array
            given = [item.item() if isinstance(item, (np.generic, np.ndarray, Tensor)) else item for item in given]
        if isinstance(given, Sequence) and any(type(item) is int and item.bit_length() > 63 for item in given):
            raise OverflowError("64 bits cannot hold one of them")  # torch's words would name its own types
        return torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise _no_numbers(where, str(error)) from error


_TEXT = (str, bytes, bytearray, memoryview)
_NUMBERS = (int, float, complex, np.generic, np.ndarray, Tensor, Sequence)
"""What a row of numbers may consist of; torch itself refuses some of it in words that a reader understands."""


def _no_numbers(where: str, why: str) -> InputError:
    return InputError(
        f"ids: {where} cannot be read as numbers: {why}.",
        code="ids-dtype",
        remedy="Pass the ids of this model's own tokenizer, which are whole numbers, or texts alone: a string or a "
        "flat list of strings.",
    )


def require_dense(numbers: Tensor, where: str) -> None:
    """Refuse a tensor whose numbers do not lie in memory one beside the other."""
    if numbers.is_meta:
        kind, remedy = "on the meta device, which holds no numbers", "Make the ids on the model's device."
    elif numbers.is_nested:
        kind, remedy = "nested", "Pass its rows: list(ids.unbind())."
    elif numbers.is_quantized:
        kind, remedy = "quantized", "Pass ids.int_repr()."
    elif numbers.layout != torch.strided:
        kind, remedy = f"{str(numbers.layout).removeprefix('torch.')}", "Pass ids.to_dense()."
    else:
        return
    raise ShapeError(f"ids: {where} is {kind}, expected a dense tensor.", code="ids-not-dense", remedy=remedy)


def _misshapen(what: str, numbers: Tensor, expected: str) -> ShapeError:
    return ShapeError(
        f"tokenize: {what} has shape {list(numbers.shape)}, expected {expected}.",
        code="ids-shape",
        remedy="Pass a matrix of ids, or a list of rows, each a flat list of ids.",
    )


def pad_id(settings: GenerationSettings, vocabulary: int, first: int | None = None) -> int:
    """What stands where there is no text: the settings' pad id, else an end id, else 0, as in transformers.

    `first` is preferred: the tokenizer's, when it is prompts that are filled up. An id outside the vocabulary is passed
    over.
    """
    candidates = (first, settings.pad_id, *settings.end_ids, 0)
    return next(i for i in candidates if i is not None and 0 <= i < vocabulary)


def padded_row(ids: Tensor, pad: int) -> int | None:
    """The first row of ids [B, P] that was filled up with an id that texts may hold too; None if none was.

    A run of it at the left or the right edge is padding if it is longer than every run inside the rows, unless it is
    a single id that every row has at that edge. So one end id before each prompt, one after each text, and those
    between packed texts are text; two or more at an edge, and one at the edge of some rows only, are pads.
    """
    is_pad = ids == pad
    if ids.size(1) < 2 or not bool(is_pad.any()):  # of one column, no row is longer than another
        return None
    left, right = _run(is_pad), _run(is_pad.flip(1))
    columns = torch.arange(ids.size(1), device=ids.device)
    at_edge = (columns < left[:, None]) | (columns >= ids.size(1) - right[:, None])
    inside = _longest(is_pad & ~at_edge)
    for run in (left, right):
        suspects = (run > inside) & ((run > 1) | (~(run > 0).all()))
        if bool(suspects.any()):
            return int(suspects.nonzero()[0])
    return None


def first_row_with(ids: Tensor, pads: Iterable[int]) -> tuple[int, int] | None:
    """(row, pad) of the first of these ids that occurs at all; None if none does."""
    for pad in pads:
        rows = (ids == pad).any(1)
        if bool(rows.any()):
            return int(rows.nonzero()[0]), pad
    return None


def _run(flags: Tensor) -> Tensor:
    """[B]: how many flags are set before the first that is not."""
    return flags.long().cumprod(1).sum(1)


def _longest(flags: Tensor) -> int:
    """The longest run of set flags in any row."""
    counts = flags.long().cumsum(1)
    before = torch.where(flags, 0, counts).cummax(1).values
    return int((counts - before).max())
