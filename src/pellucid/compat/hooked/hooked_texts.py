"""Texts to ids and back, with a beginning-of-text token unless told otherwise; and what continues texts with hooks."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.check import is_several, require_one_of, require_whole
from pellucid.compat.hooked.hook_tap import SWITCHES, HookTap
from pellucid.compat.hooked.hooked_root import HookedRootModule
from pellucid.compat.hooked.settings import HookedTransformerConfig
from pellucid.compat.hooked.stacked_weights import Head
from pellucid.compat.hooked.utils import sample_logits
from pellucid.errors import InputError, shown
from pellucid.run.cache import KeyValueCache
from pellucid.run.model import CkptedTransformer
from pellucid.tap import Tap
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
        ids = torch.tensor(filled, dtype=torch.long, device="cpu").reshape(len(rows), longest)
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

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """Columns of `W_U`: [..., D] of ids [...], [D] of a token's text or of one id, however many axes it has."""
        by, W_U = "tokens_to_residual_directions", self.model.unembed.W_U
        given = self.to_single_token(tokens) if isinstance(tokens, str) else tokens
        ids = _ids(given, by, any_shape=True).to(W_U.device)
        if bool(((ids < 0) | (ids >= W_U.size(1))).any()):
            raise _no_ids(tokens, by, f"ids from 0 to {W_U.size(1) - 1}")
        return W_U.t()[ids.reshape(()) if ids.numel() == 1 else ids]

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
        require_one_of("get_token_position: mode", mode, ("first", "last"), code="token-not-there")
        if not places:
            raise InputError(
                f"get_token_position: token {shown(single_token)} does not occur.",
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


class HookedGeneration(HookedRootModule, Tokens):
    """The runs of a model with hooks."""

    def is_computed(self, name: str) -> bool:
        switch = SWITCHES.get(name.rpartition(".")[2])
        return switch is None or getattr(self.cfg, switch)

    def require_computed(self, name: str) -> None:
        if not self.is_computed(name):
            switch = SWITCHES[name.rpartition(".")[2]]
            raise InputError(
                f"hook: {name!r} is computed only if cfg.{switch} is true.",
                code="hook-not-computed",
                remedy=f"Call model.set_{switch}(True) first.",
            )

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether `attn.hook_result` is computed."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether `hook_q_input`, `hook_k_input` and `hook_v_input` are computed."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether `hook_mlp_in` is computed."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether `hook_attn_in` is computed; keys need as many heads as queries."""
        if use_attn_in and self.cfg.n_key_value_heads is not None:
            raise InputError(
                "set_use_attn_in: keys have fewer heads than queries, so no input has one copy for each.",
                code="hooked-unsupported",
                remedy="Call set_use_split_qkv_input(True), and hook hook_q_input, hook_k_input and hook_v_input.",
            )
        self.cfg.use_attn_in = use_attn_in

    def generate(
        self,
        input: Any = "",
        max_new_tokens: int = 10,
        stop_at_eos: bool = True,
        eos_token_id: int | list[int] | None = None,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float = 1.0,
        freq_penalty: float = 0.0,
        use_past_kv_cache: bool = True,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        return_type: str | None = "input",
        verbose: bool = True,
    ) -> Any:
        """Continue a text, texts or ids [B, P]. Draws come from torch's global generator.

        Args:
            input: What to continue.
            max_new_tokens: How many tokens at most.
            stop_at_eos: Whether a text ends at an end-of-text token; the rest of its row is that token.
            eos_token_id: The ids that end a text; the tokenizer's or the configuration's if None.
            do_sample: Draw, or take the likeliest token.
            top_k: Draw from the likeliest so many alone.
            top_p: Draw from the likeliest that make up this probability.
            temperature: What logits are divided by.
            freq_penalty: What each earlier occurrence of a token takes off its logit.
            use_past_kv_cache: Whether to keep keys and values, which changes the last bits.
            prepend_bos: Whether texts begin with a beginning-of-text token.
            padding_side: Where shorter texts are filled up; "left" if None, where generation goes on.
            return_type: "str", "tokens", or "input" for the kind that was given.
            verbose: Ignored; there is no progress bar.

        Returns:
            The text or texts with what was added, or ids [B, P + new].
        """
        max_new_tokens = require_whole("generate: max_new_tokens", max_new_tokens)
        side = "left" if padding_side is None else padding_side
        ids = self._ids(input, prepend_bos, side)
        ends = self._ends(eos_token_id) if stop_at_eos else []
        draw = partial(sample_logits, top_k=top_k, top_p=top_p, temperature=temperature, freq_penalty=freq_penalty)
        mask = self.mask_of(ids, side, prepend_bos).to(torch.bool)
        found, done = ids, torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        cache = None
        if use_past_kv_cache:
            capacity = ids.shape[1] + max_new_tokens
            cache = KeyValueCache(
                self.model.config, len(ids), capacity, dtype=self.model.dtype, device=self.model.device
            )
        with torch.no_grad():
            for _ in range(max_new_tokens):
                new = found[:, -1:] if cache is not None and cache.length else found
                batch = self.model.tokenize(new, mask=mask[:, -new.shape[1] :])
                last = self._logits(batch, self.hooks_tap(), cache=cache, last_only=True)[:, 0]
                next_ids = draw(last, tokens=found) if do_sample else last.argmax(-1)
                if ends:
                    next_ids = torch.where(done, ends[0], next_ids)
                    done |= torch.isin(next_ids, torch.tensor(ends, device=next_ids.device))
                found = torch.cat([found, next_ids[:, None]], 1)
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                if bool(done.all()) and ends:
                    break
        if return_type == "tokens" or (return_type == "input" and isinstance(input, Tensor)):
            return found
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in found.tolist()]
        return texts[0] if len(texts) == 1 else texts

    def hooks_tap(self) -> HookTap | None:
        hooked = {name: point for name, point in self.hook_dict.items() if point.has_hooks() and self.is_computed(name)}
        return HookTap(self.model, hooked) if hooked else None

    def _logits(self, batch: Any, tap: Tap | None, **options: Any) -> Tensor:
        logits = cast(Head, self.unembed).with_bias(self.model(batch, tap=tap, **options))
        return self.hook_dict["unembed.hook_out"](logits)

    def _ids(self, input: Any, prepend_bos: bool | None, padding_side: str | None) -> Tensor:
        is_text = isinstance(input, str) or (isinstance(input, list) and any(isinstance(one, str) for one in input))
        if is_text:
            return self.to_tokens(input, prepend_bos, padding_side)
        ids = _ids(input, "HookedTransformer").to(self.model.device)
        return ids if ids.dim() == 2 else ids.reshape(1, -1)

    def _ends(self, given: int | list[int] | None) -> list[int]:
        if given is not None:
            several = given if is_several(given) else [given]
            return [require_whole("generate: eos_token_id", one) for one in several]
        tokenizer = self.model.tokenizer
        own = None if tokenizer is None else tokenizer.eos_token_id
        return [own] if own is not None else list(self.model.config.end_ids)


def _ids(tokens: Any, by: str, *, any_shape: bool = False) -> Tensor:
    try:
        ids = tokens if isinstance(tokens, Tensor) else torch.as_tensor(np.asarray(tokens), device="cpu")
        if (any_shape or ids.dim() <= 2) and not ids.is_floating_point() and ids.dtype != torch.bool:
            return ids
    except (TypeError, ValueError, RuntimeError):
        pass
    raise _no_ids(tokens, by, "ids" if any_shape else "ids [P] or [B, P]")


def _no_ids(tokens: Any, by: str, expected: str) -> InputError:
    remedy = "Pass a tensor, an array or a list of whole numbers."
    return InputError(f"{by}: {shown(tokens)} given, expected {expected}.", code="ids-kind", remedy=remedy)


def _one_row(ids: Tensor, by: str) -> Tensor:
    if ids.dim() == 2 and len(ids) != 1:
        raise InputError(
            f"{by}: {len(ids)} rows of ids, expected one.", code="several-rows", remedy="Call it for each row."
        )
    return ids.reshape(-1)
