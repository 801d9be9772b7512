"""Making batches: whatever a model takes, checked, padded and masked.

All of it happens on the processor, where looking at a number costs nothing; what is made then goes to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, cast

import tokenizers
import torch
from torch import Tensor

from pellucid.check import require_one_of
from pellucid.errors import InputError, ShapeError, shown
from pellucid.family.json_config import Config
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.numerics.products import is_batched
from pellucid.text import ids
from pellucid.text.batch import Batch, Inputs, mask_beside
from pellucid.text.borrowed import Tokenizes, complete, no_tokenizer
from pellucid.text.ids import Table
from pellucid.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Batcher:
    """Makes batches for one model."""

    config: Config  # its vocabulary and its context length
    tokenizer: Tokenizer | None  # for texts
    device: torch.device  # where the batches go
    # what says which id fills up shorter rows; the configuration says it if None
    generation: GenerationSettings | None = None
    other_tokenizer: str = ""  # the file of a tokenizer that is not read, with what it is, if the model came with one

    def __post_init__(self) -> None:
        given: object = self.tokenizer
        if isinstance(given, (Tokenizer, NoneType)):
            return
        if not isinstance(given, Tokenizes) or isinstance(given, (type, tokenizers.Tokenizer)):
            raise no_tokenizer(given, "a tokenizer")
        object.__setattr__(self, "tokenizer", complete(given))

    def __call__(self, inputs: Inputs, mask: Any = None, padding_side: str = "left") -> Batch:
        """Batch whatever `Inputs` allows.

        Args:
            inputs: One or several texts or rows of ids.
            mask: [B, P] of 0 and 1, only with a tensor of ids.
            padding_side: Where rows shorter than the longest get their pads, "left" or "right".

        Raises:
            InputError: If there is nothing to run, an id is outside the vocabulary, a text is too long, pads have no
                mask, or the input is of another kind.
        """
        if isinstance(inputs, Batch):
            if mask is not None:
                raise _mask_without_ids("a Batch, which has its own")
            if inputs.checked is not self.config and inputs.checked != self.config:
                _require_batch(inputs)
                kind = inputs.positions.dtype
                if not (kind.is_floating_point or kind.is_complex or kind == torch.bool):
                    inputs = replace(inputs, positions=inputs.positions.long())
                self._check(inputs.ids, inputs.positions)
            return inputs.to(self.device)
        require_one_of("tokenize: padding_side", padding_side, ("left", "right"), code="padding-side")
        if isinstance(inputs, Mapping):
            if isinstance(getattr(inputs, "batch", None), Batch):
                raise InputError(
                    "tokenize: captured values given, expected text, texts, ids or a Batch.",
                    code="input-kind",
                    remedy="Pass the texts that gave them, which are the captures' .batch.",
                )
            inputs, mask = ids.from_mapping(inputs, mask)
        inputs = ids.opened(inputs)
        if isinstance(inputs, Tensor) and not has_numbers(inputs):
            if self.device.type != "meta":
                ids.require_dense(inputs, "the tensor")
            return self._unchecked(inputs, mask)
        left = padding_side == "left"
        if ids.has_text(inputs):
            if mask is not None:
                raise _mask_without_ids("texts, which are padded and masked here")
            return self._assemble(*self._filled(self._rows(cast("Sequence[Any]", inputs)), left=left))
        read = ids.ids_of(inputs)
        if mask is not None:
            masks = _masks_of(mask, read)
            return self._assemble(*self._filled(read, masks, left=left))
        if isinstance(read, Tensor):
            self._refuse_unmasked_pads(read, inputs)
        return self._assemble(*self._filled(read, left=left))

    def _rows(self, inputs: str | Sequence[Any]) -> list[Tensor]:
        """The ids of texts, among which rows of ids may stand."""
        return [self._row(item, number) for number, item in enumerate([inputs] if isinstance(inputs, str) else inputs)]

    def _row(self, item: Any, number: int) -> Tensor:
        if isinstance(item, str):
            if self.tokenizer is None:
                raise self._no_tokenizer(number)
            item = self.tokenizer.encode(item)
        if isinstance(item, Sequence) and not item:
            raise ids.empty(f"row {number} is empty")
        found = ids.ids_of(item, f"row {number}")
        if len(found) != 1:
            raise ShapeError(
                f"tokenize: row {number} has {len(found)} rows of its own, expected one text.",
                code="ids-shape",
                remedy="Pass a matrix of ids, or a list of rows, each a flat list of ids.",
            )
        return found[0]

    @property
    def pad_id(self) -> int:
        """What fills up shorter rows: the tokenizer's pad id, as in transformers, else what ends them in `generate`."""
        own = getattr(self.tokenizer, "pad_token_id", None)
        return ids.pad_id(self._settings(), self.config.sizes["d_vocab"], own)

    def _settings(self) -> GenerationSettings:
        return self.generation or GenerationSettings.of_config(self.config)

    def _no_tokenizer(self, row: int) -> InputError:
        if not self.other_tokenizer:
            return InputError(
                f"tokenize: row {row} is text, but this model has no tokenizer.",
                code="no-tokenizer",
                remedy="Pass ids, or set model.tokenizer = pl.Tokenizer.from_file('tokenizer.json'); nanoGPT keeps its "
                "characters beside its data: pl.Tokenizer.from_characters('data/shakespeare_char/meta.pkl').",
            )
        return InputError(
            f"tokenize: row {row} is text, but {self.other_tokenizer}, which is not read.",
            code="no-tokenizer",
            remedy="Convert it: transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes "
            "tokenizer.json into the model's folder; then load the model again. Or pass ids.",
        )

    def _filled(self, rows: Table, masks: Table | None = None, *, left: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, P] of rows that may have unequal lengths."""
        if masks is None:
            masks = torch.ones_like(rows) if isinstance(rows, Tensor) else [torch.ones_like(row) for row in rows]
        if isinstance(rows, Tensor) and isinstance(masks, Tensor):
            return rows, masks.bool()
        return _pad(list(rows), self.pad_id, left=left), _pad(list(masks), 0, left=left).bool()

    def _assemble(self, tokens: Tensor, mask: Tensor) -> Batch:
        positions = positions_of(mask)
        self._check(tokens, positions)
        made = Batch(tokens, mask, positions, self.tokenizer, checked=self.config)
        return made.to(self.device)

    def _unchecked(self, ids: Tensor, mask: Any) -> Batch:
        """Ids [B, P] whose numbers cannot be looked at, and so not checked; a mask is taken to hide pads."""
        if mask is not None and is_recorded(ids):
            raise InputError(
                "tokenize: a mask was given while a CUDA graph is captured, when its values cannot be checked.",
                code="mask-while-captured",
                remedy="Make the batch before the capture: batch = model.tokenize(ids, mask=mask).",
            )
        ids = ids[None] if ids.dim() == 1 else ids
        if mask is None:
            seen = torch.ones_like(ids, dtype=torch.bool)
            positions = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        else:
            seen = torch.as_tensor(mask, device=ids.device).reshape(ids.shape).bool()
            positions = positions_of(seen)
        made = Batch(ids, seen, positions, self.tokenizer, checked=self.config).known(padded=mask is not None)
        return made if ids.device == self.device else made.to(self.device)

    def _check(self, ids: Tensor, positions: Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        sizes = self.config.sizes
        if low < 0 or high >= sizes["d_vocab"]:
            raise InputError(
                f"ids: {low if low < 0 else high} given, expected 0 to {sizes['d_vocab'] - 1} (vocab_size).",
                code="id-out-of-range",
                remedy="Use this model's own tokenizer; ids of another vocabulary mean other text.",
            )
        if positions.shape != ids.shape or positions.dtype != torch.long or int(positions.min()) < 0:
            raise ShapeError(
                f"positions: shape {list(positions.shape)} {positions.dtype}, expected the ids' {list(ids.shape)} "
                "torch.int64, counted from 0.",
                code="positions",
                remedy="Make batches with model.tokenize, which counts positions from each text's first token.",
            )
        longest = int(positions.max()) + 1
        if longest > sizes["n_ctx"]:
            raise InputError(
                f"ids: a text of {longest} tokens, expected at most {sizes['n_ctx']} (the context).",
                code="too-long",
                remedy="Shorten or split the text: this is the longest that the model is made for.",
            )

    def _refuse_unmasked_pads(self, rows: Tensor, given: Any) -> None:
        """Refuse ids [B, P] that hold pads, as far as the ids themselves or a batch of ours can tell."""
        if isinstance(given, Tensor) and (mask := mask_beside(given)) is not None:
            if bool(mask.all()):
                return
            raise _pads_without_mask("they are the ids of a batch that has pads", "Pass the batch itself", rows)
        settings, of_config = self._settings(), self.config.end_ids
        of_settings = settings.end_ids
        ends = [*of_config[:1], *of_settings[:1], getattr(self.tokenizer, "eos_token_id", None)]
        text = {self.config.bos_token_id, *of_config, *of_settings, *ends}
        declared = [self.config.pad_token_id, settings.pad_id, getattr(self.tokenizer, "pad_token_id", None)]
        if found := ids.first_row_with(rows, [pad for pad in declared if pad is not None and pad not in text]):
            row, pad = found
            raise _pads_without_mask(f"row {row} holds the pad id {pad}", "Pass mask= (1 at real tokens)", rows)
        for pad in dict.fromkeys(pad for pad in (*declared, *ends) if pad is not None):
            row = ids.padded_row(rows, pad)
            if row is not None:
                what = f"row {row} is filled up with the id {pad}, which also ends texts"
                raise _pads_without_mask(what, "Pass mask= (1 at real tokens)", rows)


def has_numbers(ids: Tensor) -> bool:
    """Whether the ids can be read now.

    They cannot on the meta device, under `torch.func.vmap`, which runs all samples at once, and while a CUDA graph is
    captured.
    """
    return not (ids.is_meta or is_batched(ids) or is_recorded(ids))


def is_recorded(ids: Tensor) -> bool:
    """Whether what runs on these ids is captured into a CUDA graph, whose inputs are filled in later."""
    return ids.is_cuda and torch.cuda.is_current_stream_capturing()


def positions_of(mask: Tensor) -> Tensor:
    """[B, P]: places counted from each text's first real token; 0 at pads."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)


def _pads_without_mask(what: str, remedy: str, rows: Tensor) -> InputError:
    return InputError(
        f"ids: {what}, but no mask was given, so pads would be read as text.",
        code="pad-without-mask",
        remedy=f"{remedy}, or lists of unequal length, which are padded and masked here. If all of it is text, pass "
        f"mask=torch.ones({rows.size(0)}, {rows.size(1)}).",
    )


def _mask_without_ids(what: str) -> InputError:
    return InputError(
        f"tokenize: a mask was given with {what}, expected it only with ids.",
        code="mask-without-ids",
        remedy="Leave the mask out.",
    )


def _require_batch(batch: Batch) -> None:
    """Refuse a batch that was put together by hand and does not hold together."""
    given, mask = batch.ids, batch.mask
    if given.dtype != torch.long or mask.dtype != torch.bool or mask.shape != given.shape or given.dim() != 2:
        raise ShapeError(
            f"Batch: ids {list(given.shape)} {given.dtype}, mask {list(mask.shape)} {mask.dtype}, "
            "expected equal shapes [batch, pos], torch.int64 and torch.bool.",
            code="mask-shape",
            remedy="Make batches with model.tokenize.",
        )
    if not given.numel() or not bool(mask.any(1).all()):
        raise ids.empty(f"a Batch of shape {list(given.shape)}, or a row of it whose mask is all false")


def _masks_of(given: Any, rows: Table) -> Table:
    """The mask, 0 and 1 in the shape of the ids."""
    axes = getattr(given, "ndim", 0)
    try:
        masks = ids.table(given) if axes <= 2 else []
    except InputError as error:
        raise _no_mask(f"{shown(given)}, expected a tensor, an array or lists of 0 and 1") from error
    if [len(row) for row in masks] != [len(row) for row in rows]:
        scores = " Of a mask of scores, the last query's keys are mask[:, 0, -1]." if axes == 4 else ""
        raise ShapeError(
            f"mask: {f'shape {list(given.shape)}' if axes > 2 else _sizes(masks)}, expected those of the ids, "
            f"{_sizes(rows)}.",
            code="mask-shape",
            remedy=f"Give one 0 or 1 for each id.{scores}",
        )
    for row in [masks] if isinstance(masks, Tensor) else masks:
        if not bool(((row == 0) | (row == 1)).all()):
            raise _no_mask("other values than 0 and 1", added=bool((row <= 0).all()))
        if not bool(row.bool().any(-1).all()):
            raise ids.empty("a row whose mask is all 0")
    return masks


def _no_mask(what: str, *, added: bool = False) -> InputError:
    scores = " Of a mask that is added to scores, that is mask == 0." if added else ""
    return InputError(f"mask: {what}.", code="mask-values", remedy=f"Give 1 at real tokens, else 0.{scores}")


def _sizes(rows: Table) -> str:
    return f"shape {list(rows.shape)}" if isinstance(rows, Tensor) else f"rows of {[len(row) for row in rows]}"


def _pad(rows: list[Tensor], fill: int, *, left: bool) -> Tensor:
    """[B, P]: rows of unequal lengths, filled up."""
    longest = max(len(row) for row in rows)
    padded = torch.full((len(rows), longest), fill, device="cpu")
    for number, row in enumerate(rows):
        at = slice(longest - len(row), longest) if left else slice(0, len(row))
        padded[number, at] = row
    return padded
