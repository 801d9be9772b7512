"""Texts to ids and back, as HookedTransformer does it: with a beginning-of-text token, unless told otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.check import require_one_of
from pellucid.compat.hooked.settings import HookedTransformerConfig
from pellucid.errors import InputError, shown
from pellucid.run.model import CkptedTransformer
from pellucid.text.tokenizer import Tokenizer


class Tokens(nn.Module):
    """The calls of a model that turn texts into ids and back."""

    model: CkptedTransformer
    cfg: HookedTransformerConfig

    default_padding_side = "right"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; an error if it has none."""
        if self.model.tokenizer is None:
            raise InputError(
                "HookedTransformer: the model has no tokenizer, which a text needs.",
                code="no-tokenizer",
                remedy="Pass ids, or give from_pretrained a tokenizer=pl.Tokenizer.from_file('tokenizer.json').",
            )
        return self.model.tokenizer

    @property
    def bos_id(self) -> int | None:
        """The id that is put before texts; None if there is none."""
        tokenizer = self.model.tokenizer
        own = None if tokenizer is None else tokenizer.bos_token_id
        return self.model.config.bos_token_id if own is None else own

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter rows: the tokenizer's for padding, else for the end of a text."""
        tokenizer = self.tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, *self.model.config.end_ids, 0)
        return next(id for id in candidates if id is not None)

    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Tensor:
        """Ids [B, P] of one text or several.

        Args:
            input: The text or texts.
            prepend_bos: Whether to put a beginning-of-text id before each; `cfg.default_prepend_bos` if None.
            padding_side: "right" or "left", where shorter texts are filled up; "right" if None.
            move_to_device: Whether the ids go to the model's device.
            truncate: Whether a text that is longer than the context is cut.

        Raises:
            InputError: If there is no text, or the tokenizer does not have the beginning.
        """
        texts = [input] if isinstance(input, str) else list(input)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"to_tokens: {shown(input)} given, expected a text or several.",
                code="text-kind",
                remedy="Pass a str or a list of them; ids need no to_tokens.",
            )
        rows = [[*self._beginning(prepend_bos), *self.tokenizer.encode(text)] for text in texts]
        rows = [row[: self.cfg.n_ctx] if truncate else row for row in rows]
        longest = max(map(len, rows))
        left = self._side(padding_side) == "left"
        pads = [[self.pad_id] * (longest - len(row)) for row in rows]
        filled = [[*pad, *row] if left else [*row, *pad] for pad, row in zip(pads, rows, strict=True)]
        ids = torch.tensor(filled, dtype=torch.long).reshape(len(rows), longest)
        return ids.to(self.model.device) if move_to_device else ids

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of ids [P], or the texts of ids [B, P]."""
        ids = _ids(tokens, "to_string")
        if ids.dim() == 2:
            return [self.tokenizer.decode(row) for row in ids.tolist()]
        return self.tokenizer.decode(ids.reshape(-1).tolist())

    def to_str_tokens(
        self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
    ) -> list[str] | list[list[str]]:
        """The text of each token, of a text or of ids [P] or [1, P]; a list for each text of a list of texts."""
        if isinstance(input, list) and any(isinstance(one, str) for one in input):
            return [self._pieces(one, prepend_bos) for one in input]
        return self._pieces(input, prepend_bos)

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token."""
        return self.tokenizer.token_id(string)

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one id."""
        return self.tokenizer.pieces([int_token])[0]

    def get_token_position(
        self,
        single_token: str | int,
        input: Any,
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """The first or last position of a token in a text or in ids [P] or [1, P]."""
        ids = self.to_tokens(input, prepend_bos) if isinstance(input, str) else _ids(input, "get_token_position")
        token = self.to_single_token(single_token) if isinstance(single_token, str) else int(single_token)
        places = (_one_row(ids, "get_token_position") == token).nonzero().flatten().tolist()
        if not places or mode not in ("first", "last"):
            raise InputError(
                f"get_token_position: token {shown(single_token)} does not occur, or mode={shown(mode)} is neither "
                "'first' nor 'last'.",
                code="token-not-there",
                remedy="A token within a text begins with its space, such as ' cat'; to_str_tokens shows the tokens.",
            )
        return places[0 if mode == "first" else -1]

    def mask_of(self, ids: Tensor, padding_side: str | None, prepend_bos: bool | None = None) -> Tensor:
        """[B, P], true at real tokens: pads on the left are hidden, those on the right come after the text anyway.

        A beginning-of-text id that looks like a pad is a token.
        """
        mask = torch.ones_like(ids, dtype=torch.bool)
        if self.model.tokenizer is None or self._side(padding_side) != "left":
            return mask
        leading = (ids == self.pad_id).long().cumprod(1).bool()
        if self._beginning(prepend_bos) == [self.pad_id]:
            last = leading.sum(1) - 1  # of the leading ids, the one that begins the text
            rows = (last >= 0).nonzero().flatten()
            leading[rows, last[rows]] = False
        return ~leading

    def _beginning(self, prepend_bos: bool | None) -> list[int]:
        wanted = self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos
        if not wanted:
            return []
        if self.bos_id is None:
            raise InputError(
                "to_tokens: the tokenizer has no token that begins a text.",
                code="no-beginning",
                remedy="Pass prepend_bos=False, or set model.cfg.default_prepend_bos = False.",
            )
        return [self.bos_id]

    def _side(self, padding_side: str | None) -> str:
        side = self.default_padding_side if padding_side is None else padding_side
        remedy = "Give padding_side='left' or padding_side='right'."
        require_one_of("padding_side", side, ("left", "right"), code="padding-side", remedy=remedy)
        return side

    def _pieces(self, text: Any, prepend_bos: bool | None) -> list[str]:
        ids = (
            self.to_tokens(text, prepend_bos, truncate=False) if isinstance(text, str) else _ids(text, "to_str_tokens")
        )
        return self.tokenizer.pieces(_one_row(ids, "to_str_tokens").tolist())


def _ids(tokens: Any, by: str) -> Tensor:
    try:
        ids = torch.as_tensor(np.asarray(tokens) if isinstance(tokens, (list, tuple)) else tokens)
        if ids.dim() <= 2 and not ids.is_floating_point():
            return ids
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(
        f"{by}: {shown(tokens)} given, expected ids [P] or [B, P].",
        code="ids-kind",
        remedy="Pass a tensor, an array or a list of whole numbers.",
    )


def _one_row(ids: Tensor, by: str) -> Tensor:
    if ids.dim() == 2 and len(ids) != 1:
        raise InputError(
            f"{by}: {len(ids)} rows of ids, expected one.", code="several-rows", remedy="Call it for each row."
        )
    return ids.reshape(-1)
