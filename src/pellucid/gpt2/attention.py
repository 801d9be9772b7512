"""Causal multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, in GPT-2's form).

Nobody looking inside, it runs through the fused `scaled_dot_product_attention`. Whoever looks at scores or
pattern gets them computed beside the fused call, which still makes the output; only a replaced value sends
this layer down the explicit path. Both paths do what transformers' sdpa and eager attention do, operation for
operation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import dialects
from pellucid.ckpt import name_checkpoints
from pellucid.gpt2.config import TransformerConfig
from pellucid.network import Memory
from pellucid.numerics.execution import EXACT, Execution, is_transformed
from pellucid.numerics.nonlinear import may_write_into_results
from pellucid.numerics.products import Products, products_of
from pellucid.parameters import LiveView, is_finite, state_of
from pellucid.part import Part, Weights
from pellucid.tap import Tap


@dataclass(eq=False)
class Visible:
    """Which keys each query may attend to: earlier ones and itself, pads left out; the same in every block of a run.

    Args:
        padding: [B, Pk], true at real positions; None if there are no pads.
    """

    padding: Tensor | None = None
    _seen: Tensor | None = field(default=None, init=False)
    _hidden: Tensor | None = field(default=None, init=False)
    _ceiling: Tensor | None = field(default=None, init=False)
    _added: Tensor | None = field(default=None, init=False)

    def among(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """[1 or B, 1, Pq, Pk], true where a query may attend."""
        if self._seen is None or self._seen.shape[2:] != (queries, keys) or self._seen.device != device:
            causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            self._seen = causal[None, None] if self.padding is None else causal & self.padding[:, None, None, :]
            self._hidden = self._ceiling = self._added = None
        return self._seen

    def hidden(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """[1 or B, 1, Pq, Pk], true where a query may not attend."""
        seen = self.among(queries, keys, device)
        if self._hidden is None:
            self._hidden = ~seen
        return self._hidden

    def ceiling(self, queries: int, keys: int, like: Tensor) -> Tensor:
        """[1 or B, 1, Pq, Pk], inf where a query may attend, else the least number of the dtype."""
        hidden = self.hidden(queries, keys, like.device)
        if self._ceiling is None or self._ceiling.dtype != like.dtype:
            self._ceiling = torch.full_like(hidden, torch.inf, dtype=like.dtype)
            self._ceiling.masked_fill_(hidden, torch.finfo(like.dtype).min)
        return self._ceiling

    def added(self, queries: int, keys: int, like: Tensor) -> Tensor:
        """[1 or B, 1, Pq, Pk], 0 where a query may attend, else -inf: what the fused kernel makes of `among`."""
        seen = self.among(queries, keys, like.device)
        if self._added is None or self._added.dtype != like.dtype:
            self._added = torch.where(seen, 0.0, -torch.inf).to(like.dtype)
        return self._added


def _head_matrices(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        d_model, h = stored.size(0), attention.n_head
        return stored.unflatten(1, (3, h, d_model // h))[:, part].transpose(0, 1)

    return LiveView("W_QKV", view, f"W_{'QKV'[part]} [H, D, K], a live view of the stored W_QKV [D, 3D].")


def _head_biases(part: int) -> LiveView:
    def view(attention: Attention, stored: Tensor) -> Tensor:
        return stored.unflatten(0, (3, attention.n_head, -1))[part]

    return LiveView("b_QKV", view, f"b_{'QKV'[part]} [H, K], a live view of the stored b_QKV [3D].")


class Attention(Part):
    """q, k, v, scores, pattern, z and what is added to the residual stream, each through its checkpoint.

    Args:
        config: What the model is.
        weights: `W_QKV` [D, 3D] with columns q|k|v, each head after head; `b_QKV` [3D]; `W_O` [H, K, D]; `b_O` [D].
            Fresh ones if None.
        block: Number of the block, by which some configurations scale the scores.
        execution: How it is run.
        products: Shared by the modules of a model; its own if None.
    """

    elsewhere = dialects.ATTENTION

    W_Q, W_K, W_V = _head_matrices(0), _head_matrices(1), _head_matrices(2)
    b_Q, b_K, b_V = _head_biases(0), _head_biases(1), _head_biases(2)

    def __init__(
        self,
        config: TransformerConfig,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self.take(config, "blocks.0.attn", weights)
        self._products = products or products_of(execution)
        self.n_head = config.n_head
        self.scale = config.attention_scale(block)
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop
        self.eager, self.exact = execution.attention == "eager", not execution.is_fast
        self.upcast = self.eager and config.reorder_and_upcast_attn  # transformers' sdpa path ignores the field
        self._looked_at: tuple[tuple[int, int], ...] = ()
        self._finite = True
        name_checkpoints(self, f"blocks.{block}.attn")

    def forward(
        self, x: Tensor, visible: Visible | None = None, tap: Tap | None = None, remember: Memory | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, D] -> (attn_out [B, P, D], pattern [B, H, Pq, Pk] or None if nobody looked at it).

        `remember` takes the keys and values of these tokens and gives those of the whole text.
        """
        visible = visible or Visible()
        explicit = self.eager or self._holds_nan()
        qkv = self._products.affine(x, self.W_QKV, self.b_QKV)
        own_q, own_k, v = qkv.view(*x.shape[:-1], 3, self.n_head, -1).unbind(-3)
        q, k = self.ckpt_q(own_q, tap=tap), self.ckpt_k(own_k, tap=tap)
        if q is not own_q or k is not own_k:
            explicit = explicit or _hold_nan(q, k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        v = self.ckpt_v(v, tap=tap).transpose(1, 2)
        if remember is not None:
            k, v = remember(k, v)
        elif self.exact:  # as they come out of transformers' cache: matrix products round by layout on some processors
            k, v = k.contiguous(), v.contiguous()

        pattern, rows = self._pattern(q, k, v, visible, tap)
        if pattern is None and explicit:
            pattern = _softmax(self._scores(q, k, visible), in_place=True).type(v.dtype)
        if pattern is not None and (explicit or rows is not None):
            z = torch.matmul(F.dropout(pattern, self.attn_pdrop) if self.training else pattern, v)
            if not explicit and isinstance(rows, Tensor):
                z = torch.where(rows, z, self._fused(q, k, v, visible))
        else:
            z = self._fused(q, k, v, visible)
        z = self.ckpt_z(z.transpose(1, 2), tap=tap)

        attn_out = self._products.affine(z.flatten(2).contiguous(), self.W_O, self.b_O)
        if self.training:
            attn_out = F.dropout(attn_out, self.resid_pdrop)
        return self.ckpt_attn_out(attn_out, tap=tap), pattern

    def look_again(self) -> None:
        """Look at the weights once more before the next run, for a write that torch does not count."""
        self._looked_at = ()

    def _holds_nan(self) -> bool:
        """Whether the weights of queries and keys hold a NaN or an infinity, so the fused kernel cannot be used.

        If all scores of a query are NaN, torch's fused kernel on a processor (2.13) returns zeros, and the NaN is gone.
        A NaN in the residual stream stays visible, because the stream goes around attention; one in the values does,
        because they are summed. So only scores can hide one, and from a finite stream only these weights make such
        scores. They are looked at when they were written to: one pass over them, and nothing in any other run. An
        accelerator that trains would have to be waited for at every step, so there they are not.
        """
        weight = self.W_QKV
        if _cannot_be_read(weight) or (weight.is_cuda and self.training):
            return False
        state = state_of((self,))
        if state != self._looked_at:
            self._finite = is_finite(weight) and is_finite(self.b_QKV)
            self._looked_at = state
        return not self._finite

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
        """q, k, v [B, H, P, K] -> z [B, H, P, K]."""
        queries, keys = q.size(2), k.size(2)
        if queries == 1 and not (self.exact or self.training) and _fused_takes_keys_in_turn(q):
            return torch.matmul(_softmax(self._scores(q, k, visible), in_place=True), v)
        plain = visible.padding is None and queries in (1, keys)
        mask = None if plain else visible.added(queries, keys, q)
        causal = False
        if mask is None and queries > 1:  # a branch: compiled for any length, the comparison alone would be a symbol
            causal = True
        return F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=mask,
            dropout_p=self.attn_pdrop if self.training else 0.0,
            is_causal=causal,
            scale=self.scale,
        )  # fmt: skip

    def _pattern(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, tap: Tap | None
    ) -> tuple[Tensor | None, Tensor | Literal["all"] | None]:
        """Pass scores and pattern through their checkpoints if anybody looks there.

        Returns:
            The pattern [B, H, Pq, Pk], None if nobody looked; and which rows of the batch must be made from it because
            a value of theirs was replaced: [B, 1, 1, 1], "all", or None.
        """
        scores_are_watched = self.ckpt_scores.is_watched(tap)
        if not (scores_are_watched or self.ckpt_pattern.is_watched(tap)):
            return None, None
        scores = self._scores(q, k, visible)
        replaced: list[Tensor | None] = []
        if (edited := self.ckpt_scores.replacement(scores, tap)) is not None:
            scores = _bounded(edited.value)
            replaced.append(edited.rows)
        pattern = _softmax(scores, in_place=not scores_are_watched).type(v.dtype)
        if (edited := self.ckpt_pattern.replacement(pattern, tap)) is not None:
            pattern = edited.value
            replaced.append(edited.rows)
        rows = [found for found in replaced if found is not None]
        if not replaced or (len(rows) == len(replaced) and not self.training):
            return pattern, functools.reduce(torch.logical_or, rows) if rows else None
        return pattern, "all"  # in training, too: dropout would be drawn twice

    def _scores(self, q: Tensor, k: Tensor, visible: Visible) -> Tensor:
        """Scaled and masked scores [B, H, Pq, Pk]; masked entries hold the dtype's minimum."""
        scores = self._upcast_scores(q, k) if self.upcast else torch.matmul(q, k.transpose(-1, -2)).mul_(self.scale)
        return _hide(scores, visible)

    def _upcast_scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores in float32 or better with the scale inside the product, as `reorder_and_upcast_attn` asks for."""
        b, h, queries, d_head = q.shape
        keys = k.size(2)
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            rows = q.reshape(b * h, queries, d_head).to(dtype)
            columns = k.transpose(-1, -2).reshape(b * h, d_head, keys).to(dtype)
            empty = torch.empty(b * h, queries, keys, dtype=dtype, device=q.device)
            return torch.baddbmm(empty, rows, columns, beta=0, alpha=self.scale).view(b, h, queries, keys)


def _hold_nan(q: Tensor, k: Tensor) -> bool:
    """Whether queries or keys that somebody put here would make scores that the fused kernel hides."""
    return not _cannot_be_read(q) and not (is_finite(q) and is_finite(k))


def _cannot_be_read(tensor: Tensor) -> bool:
    captured = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return tensor.is_meta or captured or is_transformed()


def _fused_takes_keys_in_turn(q: Tensor) -> bool:
    """Whether torch's fused kernel leaves the keys of one query to one part of the device, one after another.

    In float32 on an H200 it takes 23 microseconds for 160 keys and 116 for 1,024, the explicit operations 9 and 13.
    """
    return q.is_cuda and q.dtype == torch.float32


def _hide(scores: Tensor, visible: Visible) -> Tensor:
    """Write the least number of the dtype wherever a query may not attend.

    A minimum takes a tenth of the time of `masked_fill_` on a processor. It leaves a NaN where it is, as adding a mask
    does in transformers.
    """
    queries, keys = scores.shape[-2:]
    if _may_be_out(scores):
        return torch.minimum(scores, visible.ceiling(queries, keys, scores), out=scores)
    return scores.masked_fill_(visible.hidden(queries, keys, scores.device), torch.finfo(scores.dtype).min)


def _bounded(scores: Tensor) -> Tensor:
    """Somebody's scores, the least number instead of less: in a row of pads softmax would have nothing left."""
    return scores.clamp(min=torch.finfo(scores.dtype).min)


def _may_be_out(scores: Tensor) -> bool:
    """Whether this is a tensor on the processor that an operation may get as its `out`."""
    return scores.device.type == "cpu" and may_write_into_results(scores) and not is_transformed()


def _softmax(scores: Tensor, *, in_place: bool) -> Tensor:
    """Over the keys. In place it saves the mapping of fresh memory, which takes longer than the softmax itself."""
    if in_place and _may_be_out(scores):
        return torch.softmax(scores, dim=-1, out=scores)
    return F.softmax(scores, dim=-1)
