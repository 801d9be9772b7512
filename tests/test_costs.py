"""What the key paths cost, counted instead of timed: a slow change fails on any machine.

Counted through torch's dispatcher: kernels (operations that compute, views left out), bytes of new memory, and squares,
attention matrices [..., P, P] of several heads that take memory. Budgets are per block, from the difference of two
depths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import checks
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pellucid as pl
import support
from pellucid.family import attend
from pellucid.generate import stepper as stepping
from pellucid.gpt2 import model as attention
from pellucid.numerics import nonlinear
from pellucid.run import taps
from pellucid.tap import Ckpt, StopAfter

B, P, D, V = 2, 20, support.SIZES["n_embd"], support.SIZES["vocab_size"]
IDS = support.some_ids(B, P)
STREAM = B * P * D * 4
"""Bytes of one value of the residual stream."""

KERNELS_A_BLOCK = 19
"""ln1, qkv, keys and values laid out, attention, output, sum; ln2, in, 8 of the exact GELU, out, sum."""

BYTES_A_BLOCK = 24 * STREAM
"""ln1 1, qkv 3, keys and values 2, z 1, output 1, sum 1, ln2 1, in 4, two of the GELU 8, out 1, sum 1."""

FAST_KERNELS_A_BLOCK = 14
"""ln1, qkv, attention, output, sum; ln2, in, 5 of the fast GELU, out, sum."""

FAST_BYTES_A_BLOCK = 18 * STREAM
"""ln1 1, qkv 3, z 1, output 1, sum 1, ln2 1, in 4, GELU 4, out 1, sum 1."""

LOOK = 5
"""Kernels of a pattern beside the fused call: queries laid out, the product, scale, mask, softmax."""


class Counter(TorchDispatchMode):
    """Counts what runs inside."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.kernels = self.nbytes = self.squares = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in _tensors(args) + _tensors((kwargs or {}).values())}
        new = [t for t in _tensors([out]) if t.untyped_storage().data_ptr() not in known and t.numel()]
        self.kernels += bool(new) or func._schema.is_mutable
        self.nbytes += sum(t.untyped_storage().nbytes() for t in new)
        square = (self.side, self.side)
        self.squares += sum(t.is_floating_point() and t.shape[-2:] == square and t.shape[:-2].numel() > 1 for t in new)
        return out


def _tensors(values: Any) -> list[Tensor]:
    flat = [item for value in values for item in (value if isinstance(value, (tuple, list)) else (value,))]
    return [item for item in flat if isinstance(item, Tensor)]


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    kernels: int
    nbytes: int
    squares: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.kernels - other.kernels, self.nbytes - other.nbytes, self.squares - other.squares)


def cost(run: Callable[[], Any], side: int = P) -> Cost:
    with torch.no_grad():
        run()  # what is set up once is not counted
        with Counter(side) as counted:
            run()
    return Cost(counted.kernels, counted.nbytes, counted.squares)


def model(n_layer: int = 3, **fields: Any) -> pl.CkptedTransformer:
    return support.glass(n_layer=n_layer, **fields)


def a_block(run: Callable[[pl.CkptedTransformer], Any], side: int = P, **fields: Any) -> Cost:
    """What one more block costs."""
    deep, shallow = model(3, **fields), model(2, **fields)
    return cost(lambda: run(deep), side) - cost(lambda: run(shallow), side)


def plain_forward() -> None:
    block = a_block(lambda glass: glass(IDS))
    assert block.kernels == KERNELS_A_BLOCK
    assert BYTES_A_BLOCK <= block.nbytes <= BYTES_A_BLOCK + STREAM  # the fused kernel keeps a number for each row
    assert block.squares == 0


def fast_forward() -> None:
    block = a_block(lambda glass: glass(IDS), numerics="fast")
    assert block.kernels == FAST_KERNELS_A_BLOCK
    assert FAST_BYTES_A_BLOCK <= block.nbytes <= FAST_BYTES_A_BLOCK + STREAM
    assert block.squares == 0


def fewer_than_transformers() -> None:
    glass, hf = support.pair()
    batch = glass.tokenize(IDS)
    ours, theirs = cost(lambda: glass(batch)), cost(lambda: hf(IDS, use_cache=False))
    assert ours.kernels < theirs.kernels
    assert ours.nbytes < 0.6 * theirs.nbytes


def masks_are_made_once() -> None:
    ragged = support.ragged_ids(P, 5)
    assert a_block(lambda glass: glass(ragged)).kernels == KERNELS_A_BLOCK
    looks = a_block(lambda glass: glass.run_with_ckpts(ragged, names="**.ckpt_pattern"))
    assert looks.kernels == KERNELS_A_BLOCK + LOOK


def residual_capture() -> None:
    block = a_block(lambda glass: glass.run_with_ckpts(IDS, names="blocks.*.resid_*"))
    assert block.kernels == KERNELS_A_BLOCK + 1  # resid_post is the next resid_pre: one of them is a copy
    assert block.nbytes <= BYTES_A_BLOCK + 2 * STREAM
    assert block.squares == 0


def everything_captured() -> None:
    block = a_block(lambda glass: glass.run_with_ckpts(IDS))
    assert block.squares == 2  # scores and pattern
    # Two scaled values; copies of q, k, v and of the residual that two names share.
    assert block.kernels == KERNELS_A_BLOCK + LOOK + 2 + 4
    assert block.nbytes <= BYTES_A_BLOCK + 9 * STREAM + 2 * B * 4 * P * P * 4


def everything_but_squares() -> None:
    def run(glass: pl.CkptedTransformer) -> None:
        glass.run_with_ckpts(IDS, names=[name for name in glass.ckpt_names if not name.endswith(("scores", "pattern"))])

    assert a_block(run).squares == 0


def one_pattern() -> None:
    glass = model()

    def run() -> None:
        glass.run_with_ckpts(IDS, names="blocks.1.attn.ckpt_pattern")

    look = cost(run)
    assert look.squares == 1  # the softmax overwrites the scores, which nobody sees
    assert (look - cost(lambda: glass(IDS))).kernels == LOOK + 5  # and the mask, which plain runs do without
    with torch.no_grad():
        minima = checks.ops(run).count("minimum")
    assert minima == 1  # hides scores in a tenth of the time that filling them in takes


def last_logits() -> None:
    glass = model()
    saved = cost(lambda: glass(IDS)) - cost(lambda: glass.next_token_logits(IDS))
    assert saved.nbytes > 0.95 * B * (P - 1) * V * 4


def stopping_early() -> None:
    glass, shallow = model(), model(1)
    stopped = cost(lambda: glass.run_with_ckpts(IDS, names="blocks.0.resid_post", stop_at="blocks.0.resid_post"))
    assert stopped.kernels == cost(lambda: shallow(IDS)).kernels - 2  # without the last LayerNorm and the head


def cached_step() -> None:
    glass = model()

    def step_after(columns: int) -> Cost:
        cache = pl.KeyValueCache(glass.config, B, 60)
        with torch.no_grad():
            glass(support.some_ids(B, columns), cache=cache)
        return cost(lambda: (glass(IDS[:, :1], cache=cache), cache.rewind(columns)), side=columns + 1)

    short, long = step_after(P), step_after(2 * P)
    assert short.kernels == long.kernels
    assert short.squares == long.squares == 0
    assert (long - short).nbytes <= 4 * B * P * 8  # positions are counted anew, keys and values are not copied
    assert long.nbytes < 0.1 * cost(lambda: glass(IDS)).nbytes


def fast_decoding() -> None:
    def step(n_layer: int) -> Cost:
        glass = model(n_layer, numerics="fast")
        short, long = (
            cost(lambda n=n: glass.generate(IDS, max_new_tokens=n, end_ids=()), side=-1)  # a prefill and n - 1 steps
            for n in (4, 14)
        )  # fmt: skip
        return long - short

    assert step(1).kernels == step(3).kernels  # torch does nothing for a block


CHECKS = (
    plain_forward, fast_forward, fewer_than_transformers, masks_are_made_once, residual_capture, everything_captured,
    everything_but_squares, one_pattern, last_logits, stopping_early, cached_step, fast_decoding,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_costs(check: Callable[[], None]) -> None:
    check()


def forgetful(self: attend.Visible, queries: int, keys: int, device: torch.device) -> Tensor:
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return causal[None, None] if self.padding is None else causal & self.padding[:, None, None, :]


def copying(write: Any) -> Any:
    def written(self: Any, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in write(self, block, k, v))

    return written


SLOWER: dict[str, tuple[Any, str, Any, tuple[Callable[[], None], ...]]] = {
    "eight tensors for a GELU": (
        nonlinear, "_gelu_new_in_place", lambda x: x * torch.tanh(x + 0.5 * torch.pow(x, 3.0) * 2.0) * 0.5,
        (plain_forward, residual_capture),
    ),
    "everything is computed for nobody": (
        Ckpt, "is_watched", lambda self, tap: True, (plain_forward, everything_but_squares, one_pattern),
    ),
    "a mask for every block": (attend.Visible, "among", forgetful, (masks_are_made_once,)),
    "a ceiling for every block": (
        attend.Visible, "ceiling", lambda self, queries, keys, like: torch.zeros_like(like), (masks_are_made_once,),
    ),
    "scores that are filled in": (
        attend, "_hide",
        lambda scores, visible: scores.masked_fill_(visible.hidden(P, P, scores.device), -1e30), (one_pattern,),
    ),
    "everything captured is copied": (
        taps.Recorder, "_may_hand_out", lambda self, value: False, (residual_capture, everything_captured),
    ),
    "all logits for the last": (
        pl.CkptedTransformer, "next_token_logits", lambda self, ids: self(ids)[:, -1], (last_logits,),
    ),
    "a stop that goes on": (StopAfter, "wants", lambda self, name: False, (stopping_early,)),
    "keys and values copied at every step": (
        pl.KeyValueCache, "_write", copying(pl.KeyValueCache._write), (cached_step,),
    ),
    "no kernels": (stepping, "decoder", lambda model, rows, names: None, (fast_decoding,)),
    "a pattern beside its scores": (
        attend, "softmax", lambda scores, *, in_place: scores.softmax(-1), (one_pattern,),
    ),
    "the exact GELU in fast numerics": (nonlinear, "FAST", nonlinear.EXACT, (fast_forward,)),
    "contiguous queries": (
        attention.Attention, "_fused",
        lambda self, q, k, v, visible: attend.F.scaled_dot_product_attention(
            q.contiguous(), k.contiguous(), v.contiguous(), is_causal=True
        ),
        (plain_forward, fast_forward),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOWER)
def test_a_slower_way_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, slower, checks = SLOWER[name]
    monkeypatch.setattr(owner, attribute, slower)
    for check in checks:
        with pytest.raises(AssertionError):
            check()


def test_explicit_attention_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "glass", lambda build=support.glass, **fields: build(**fields, attention="eager"))
    for check in (plain_forward, everything_but_squares):
        with pytest.raises(AssertionError):
            check()
