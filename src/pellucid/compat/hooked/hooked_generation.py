"""Running a model with the hooks that are set, continuing texts so, and what is computed from logits."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.compat.hooked.hook_tap import SWITCHES, HookTap
from pellucid.compat.hooked.hooked_root import HookedRootModule
from pellucid.compat.hooked.stacked_weights import Head, StackedWeights
from pellucid.errors import InputError
from pellucid.run.cache import KeyValueCache
from pellucid.tap import Tap


def lm_cross_entropy_loss(
    logits: Tensor, tokens: Tensor, attention_mask: Tensor | None = None, per_token: bool = False
) -> Tensor:
    """Negative log-likelihood of the next tokens in nats.

    Args:
        logits: [B, P, V].
        tokens: [B, P].
        attention_mask: [B, P], 1 at real tokens; pads count as zero.
        per_token: Whether to return [B, P-1] instead of the mean.
    """
    logprobs = logits[..., :-1, :].log_softmax(-1).gather(-1, tokens[..., 1:, None])[..., 0]
    count: Tensor | int = logprobs.numel()
    if attention_mask is not None:
        real = attention_mask[:, :-1].bool() & attention_mask[:, 1:].bool()
        logprobs, count = logprobs * real, real.sum()
    return -logprobs if per_token else -logprobs.sum() / count


def lm_accuracy(logits: Tensor, tokens: Tensor, per_token: bool = False) -> Tensor:
    """Share of the next tokens that are the likeliest, or whether each is, [B, P-1]."""
    right = logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return right if per_token else right.sum() / right.numel()


def sample_logits(
    final_logits: Tensor,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float = 1.0,
    freq_penalty: float = 0.0,
    tokens: Tensor | None = None,
) -> Tensor:
    """Draw ids [B] from logits [B, V], by torch's global generator; the likeliest at temperature 0.

    Args:
        final_logits: [B, V].
        top_k: Keep the likeliest so many.
        top_p: Keep the likeliest that make up this probability, the one that reaches it included; not beside top_k.
        temperature: What logits are divided by.
        freq_penalty: What each earlier occurrence of a token takes off its logit.
        tokens: [B, P], the earlier ones.

    Raises:
        InputError: If a value is outside its range.
    """
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(
            f"sample_logits: temperature={temperature}, top_k={top_k}, top_p={top_p}.",
            code="sampling-range",
            remedy="Give temperature 0 or more, top_k 1 or more, and top_p above 0 and at most 1.",
        )
    if temperature == 0:
        return final_logits.argmax(-1)
    logits = final_logits / temperature
    if freq_penalty > 0 and tokens is not None:
        logits = logits - freq_penalty * torch.stack([row.bincount(minlength=logits.shape[-1]) for row in tokens])
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)
        before[..., 0] = 0.0  # the likeliest is always kept
        dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(dropped, -torch.inf)
    return torch.distributions.Categorical(logits=logits.float()).sample()


class HookedGeneration(HookedRootModule, StackedWeights):
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
        ids = torch.as_tensor(input, device=self.model.device)
        return ids[None] if ids.dim() == 1 else ids

    def _ends(self, given: int | list[int] | None) -> list[int]:
        if given is not None:
            return [given] if isinstance(given, int) else list(given)
        tokenizer = self.model.tokenizer
        own = None if tokenizer is None else tokenizer.eos_token_id
        return [own] if own is not None else list(self.model.config.end_ids)
