"""What the attention of all families shares: who sees whom, the fused kernel, and scores and pattern beside it.

Nobody looking inside, it runs through the fused `scaled_dot_product_attention`. Whoever looks at scores or
pattern gets them computed beside the fused call, which still makes the output; only a replaced value sends
this layer down the explicit path. Both paths do what transformers' sdpa and eager attention do, operation for
operation.

If several queries share a head of keys and values (Ainslie et al. 2023, arXiv:2305.13245), transformers has three
ways to the fused kernel, which round differently: the kernel's own, one in which the queries that share a head lie in
its place of positions, and repeated keys and values. Which of them is taken depends on the mask and on how many
queries there are, and is so here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.family.json_config import Config
from pellucid.family.network import Memory
from pellucid.family.part import MISREAD, Part, Weights, is_finite, require_vectors, state_of
from pellucid.names import attributes
from pellucid.numerics.nonlinear import may_write_into_results
from pellucid.numerics.products import EXACT, Execution, Products, is_transformed, products_of
from pellucid.tap import Tap, name_checkpoints

_WIDEST_GROUPED = 256
"""Head widths up to which transformers leaves shared heads to the kernel."""


@dataclass(eq=False)
class Visible:
    """Which keys each query may attend to: earlier ones of its text and itself; the same in every block of a run."""

    padding: Tensor | None = None  # [B, Pk], true at real positions; None if there are no pads
    texts: Tensor | None = None  # [B, Pk], the text of each column, if several share a row; None if a row is one text
    _seen: Tensor | None = field(default=None, init=False)
    _hidden: Tensor | None = field(default=None, init=False)
    _ceiling: Tensor | None = field(default=None, init=False)
    _added: Tensor | None = field(default=None, init=False)

    @property
    def is_causal(self) -> bool:
        """Whether a query may attend to all keys before it."""
        return self.padding is None and self.texts is None

    def among(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """[1 or B, 1, Pq, Pk], true where a query may attend."""
        if self._seen is None or self._seen.shape[2:] != (queries, keys) or self._seen.device != device:
            causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
            self._seen = causal[None, None] if self.padding is None else causal & self.padding[:, None, None, :]
            if self.texts is not None:
                self._seen = self._seen & (self.texts[:, None, -queries:, None] == self.texts[:, None, None, :])
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


class Attending(Part):
    """Causal self-attention, each of its values through its checkpoint; a family says how q, k and v are made.

    Attributes:
        n_head: Heads of queries.
        d_head: The width of a head.
        d_model: The width of the residual stream.
        shared: How many of them share one head of keys and values.
        scale: What scores are multiplied by.
        attn_pdrop: The rate of the pattern's dropout.
        out_pdrop: The rate of the dropout before `attn_out`.
        eager: Whether every layer is explicit.
        exact: Whether the reference's operations give the values.
        makes_scores: The parameters that queries and keys are made with.
        copies_cached: Whether exact operations also copy the keys and values that come out of a cache.
    """

    elsewhere = attributes.ATTENTION

    makes_scores: tuple[str, ...]
    copies_cached = False
    attn_pdrop = 0.0
    out_pdrop = 0.0

    def __init__(
        self,
        config: Config,
        weights: Weights | None = None,
        *,
        block: int = 0,
        execution: Execution = EXACT,
        products: Products | None = None,
    ) -> None:
        super().__init__()
        self._looked_at: tuple[tuple[int, int], ...] = ()
        self._finite = True
        self.take(config, "blocks.0.attn", weights)
        self._products = products or products_of(execution)
        self.n_head, self.d_head, self.d_model = (config.sizes[axis] for axis in ("head", "d_head", "d_model"))
        self.shared = self.n_head // config.sizes["head_kv"]
        self.scale = self.d_head**-0.5
        self.eager, self.exact = execution.attention == "eager", not execution.is_fast
        self.settle(config, block)
        name_checkpoints(self, f"blocks.{block}.attn")

    def settle(self, config: Any, block: int) -> None:
        """Keep what else the configuration says of this block's attention."""

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, P, D] -> q [B, P, H, K], and k and v with their own heads."""
        raise NotImplementedError

    def placed(self, q: Tensor, k: Tensor, turn: Any, tap: Tap | None) -> tuple[Tensor, Tensor, bool]:
        """Queries and keys as scores are made of them [B, P, H, K], and whether somebody replaced them on the way."""
        return q, k, False

    def joined(self, z: Tensor) -> Tensor:
        """z [B, P, H, K] -> the sum over heads of what each writes [B, P, D]."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        visible: Visible | None = None,
        tap: Tap | None = None,
        remember: Memory | None = None,
        turn: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, P, D] -> (attn_out [B, P, D], pattern [B, H, Pq, Pk] or None if nobody looked at it).

        `remember` takes the keys and values of these tokens and gives those of the whole text. `turn` is the rotation
        of each position, in families that rotate; without one they count from 0.
        """
        visible = visible or Visible()
        explicit = self.eager or self._holds_nan()
        try:
            _batch, _position, _width = x.shape  # of one text alone, heads and positions would be taken for each other
            own_q, own_k, v = self.projected(x)
        except MISREAD:
            weight = getattr(self, self.makes_scores[0])
            require_vectors(self, x, weight, self.d_model, ("B", "P"))
            raise
        q, k = self.ckpt_q(own_q, tap=tap), self.ckpt_k(own_k, tap=tap)
        v = self.ckpt_v(v, tap=tap).transpose(1, 2)
        were_replaced = q is not own_q or k is not own_k
        q, k, on_the_way = self.placed(q, k, turn, tap)
        if were_replaced or on_the_way:
            explicit = explicit or hold_nan(q, k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if remember is not None:
            k, v = remember(k, v)
        if self.exact and (remember is None or self.copies_cached):
            # As they come out of transformers' cache: matrix products and the fused kernel may round by the layout.
            k, v = k.contiguous(), v.contiguous()

        z, pattern = self.mixed(q, k, v, visible, tap, explicit=explicit)
        z = self.ckpt_z(z.transpose(1, 2), tap=tap)

        attn_out = self.joined(z)
        if self.training and self.out_pdrop:
            attn_out = F.dropout(attn_out, self.out_pdrop)
        return self.ckpt_attn_out(attn_out, tap=tap), pattern

    def mixed(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, tap: Tap | None, *, explicit: bool
    ) -> tuple[Tensor, Tensor | None]:
        """q [B, H, Pq, K], k and v [B, H, Pk, K] -> z [B, H, Pq, K] and the pattern, None if nobody looked at it.

        The fused kernel is not used if it is `explicit`.
        """
        pattern, rows = self._pattern(q, k, v, visible, tap)
        if pattern is None and explicit:
            pattern = self._normalized(self._scores(q, k, visible), v, in_place=True)
        if pattern is None or not (explicit or rows is not None):
            return self._fused(q, k, v, visible), pattern
        dropped = F.dropout(pattern, self.attn_pdrop) if self.training else pattern
        z = torch.matmul(dropped, repeated(v, self.shared))
        if not explicit and isinstance(rows, Tensor):
            z = torch.where(rows, z, self._fused(q, k, v, visible))
        return z, pattern

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
        weights = [getattr(self, name) for name in self.makes_scores]
        if _cannot_be_read(weights[0]) or (weights[0].is_cuda and self.training):
            return False
        state = state_of((self,))
        if state != self._looked_at:
            self._finite = all(map(is_finite, weights))
            self._looked_at = state
        return not self._finite

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, visible: Visible) -> Tensor:
        """q, k, v [B, H, P, K], k and v with their own heads -> z [B, H, P, K]."""
        queries, keys = q.size(2), k.size(2)
        if queries == 1 and not (self.exact or self.training) and _fused_takes_keys_in_turn(q):
            return torch.matmul(
                self._normalized(self._scores(q, k, visible), v, in_place=True), repeated(v, self.shared)
            )
        plain = visible.is_causal and queries in (1, keys)
        mask = None if plain else visible.added(queries, keys, q)
        causal = False
        if mask is None and queries > 1:  # a branch: compiled for any length, the comparison alone would be a symbol
            causal = True
        options: dict[str, Any] = {}
        packed = False
        if self.shared > 1:
            if mask is None and q.size(-1) <= _WIDEST_GROUPED:
                options = {"enable_gqa": True}
            elif queries == 1 and not torch.compiler.is_compiling():
                q, packed = q.reshape(q.size(0), k.size(1), self.shared, -1), True
            else:
                k, v = repeated(k, self.shared), repeated(v, self.shared)
        z = F.scaled_dot_product_attention(
            q, k, v,
            attn_mask=mask,
            dropout_p=self.attn_pdrop if self.training else 0.0,
            is_causal=causal,
            scale=self.scale,
            **options,
        )  # fmt: skip
        return z.reshape(z.size(0), -1, 1, z.size(-1)) if packed else z

    def _pattern(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Visible, tap: Tap | None
    ) -> tuple[Tensor | None, Tensor | Literal["all"] | None]:
        """Pass scores and pattern through their checkpoints if anybody looks there.

        Returns the pattern [B, H, Pq, Pk], None if nobody looked; and which rows of the batch must be made from it
        because a value of theirs was replaced: [B, 1, 1, 1], "all", or None.
        """
        scores_are_watched = self.ckpt_scores.is_watched(tap)
        if not (scores_are_watched or self.ckpt_pattern.is_watched(tap)):
            return None, None
        scores = self._scores(q, k, visible)
        replaced: list[Tensor | None] = []
        if (edited := self.ckpt_scores.replacement(scores, tap)) is not None:
            scores = _bounded(edited.value)
            replaced.append(edited.rows)
        pattern = self._normalized(scores, v, in_place=not scores_are_watched)
        if (edited := self.ckpt_pattern.replacement(pattern, tap)) is not None:
            pattern = edited.value
            replaced.append(edited.rows)
        rows = [found for found in replaced if found is not None]
        if not replaced or (len(rows) == len(replaced) and not self.training):
            return pattern, functools.reduce(torch.logical_or, rows) if rows else None
        return pattern, "all"  # in training, too: dropout would be drawn twice

    def _scores(self, q: Tensor, k: Tensor, visible: Visible) -> Tensor:
        """Scaled and masked scores [B, H, Pq, Pk]; masked entries hold the dtype's minimum."""
        return _hide(self._products_of(q, repeated(k, self.shared)), visible)

    def _products_of(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled products [B, H, Pq, Pk] of q and k, which have the same heads."""
        return torch.matmul(q, k.transpose(-1, -2)).mul_(self.scale)

    def _normalized(self, scores: Tensor, v: Tensor, *, in_place: bool) -> Tensor:
        """Scores -> the pattern, in the dtype of the values."""
        return softmax(scores, in_place=in_place).type(v.dtype)


def repeated(values: Tensor, times: int) -> Tensor:
    """[B, H, P, K] -> [B, H times, P, K], each head `times` times in a row."""
    if times == 1:
        return values
    return values[:, :, None].expand(-1, -1, times, -1, -1).reshape(values.size(0), -1, *values.shape[2:])


def hold_nan(q: Tensor, k: Tensor) -> bool:
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


def softmax(scores: Tensor, *, in_place: bool) -> Tensor:
    """Over the keys. In place it saves the mapping of fresh memory, which takes longer than the softmax itself."""
    if in_place and _may_be_out(scores):
        return torch.softmax(scores, dim=-1, out=scores)
    return F.softmax(scores, dim=-1)
