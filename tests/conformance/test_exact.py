"""`numerics="exact"` means equal to transformers on the same machine, to the bit: no tolerance in this file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import product
from typing import Any

import checks
import pytest
import torch

import pellucid as pl
import support
from pellucid.numerics.nonlinear import EXACT as ACTIVATIONS

ATTENTION = ("sdpa", "eager")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LENGTHS = (1, 2, 11, 128, 1024)
BATCHES = support.few_of(product((1, 3), LENGTHS), *((1, n) for n in LENGTHS), *((3, n) for n in LENGTHS[:-1]))
"""Rows and lengths; several rows as long as the context are left to the long run."""

ODD: dict[str, dict[str, Any]] = {
    "one layer": {"n_layer": 1},
    "no layer": {"n_layer": 0},
    "one head": {"n_head": 1},
    "heads of width one": {"n_head": 48},
    "heads of odd width": {"n_embd": 45, "n_head": 5},
    "width one": {"n_embd": 1, "n_head": 1},
    "narrow mlp": {"n_inner": 7},
    "wide mlp": {"n_inner": 301, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False},
    "vocabulary of one": {"vocab_size": 1},
    "odd vocabulary and context": {"vocab_size": 1009, "n_positions": 37},
    "unscaled": {"scale_attn_weights": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "only scaled by layer": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "upcast and scaled by layer": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "large epsilon": {"layer_norm_epsilon": 0.37},
    "tiny epsilon": {"layer_norm_epsilon": 1e-12},
    "several end ids": {"eos_token_id": [3, 5], "bos_token_id": 1, "pad_token_id": 0},
    "no dropout": support.NO_DROPOUT,
    **{f"activation {name}": {"activation_function": name, "n_layer": 1} for name in ACTIVATIONS},
}
"""What the configuration changes -> fields. That of an activation is one block, since all of them have the same."""

ATTENDS = ("no dropout", *(odd for odd in ODD if any(word in odd for word in ("head", "scale", "upcast"))))
"""Configurations that change attention, and one that changes nothing that runs."""

COARSE = ("upcast", "large epsilon", "tiny epsilon", "heads of odd width", "no dropout")
"""Configurations that round otherwise in bfloat16, and one that changes nothing that runs."""


def crossed(*axes: Sequence[Any], quick: Callable[..., bool]) -> list[Any]:
    """Configurations x axes: each meets the first entries; the long run adds what `quick` does not ask for."""
    first = tuple(axis[0] for axis in axes)
    return [
        pytest.param(odd, *rest, marks=[] if tuple(rest) == first or quick(odd, *rest) else pytest.mark.long)
        for odd, *rest in product(ODD, *axes)
    ]


@cache
def built(attention: str, dtype: torch.dtype, **_: Any) -> tuple[pl.CkptedTransformer, Any]:
    return support.pair(attention=attention, dtype=dtype, **support.HF_LONG)


@lru_cache(maxsize=1)  # cases of one configuration follow one another
def odd_pair(attention: str, odd: str) -> tuple[pl.CkptedTransformer, Any]:
    return support.pair(attention=attention, **ODD[odd])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(("rows", "length"), BATCHES)
def test_every_length(attention: str, dtype: torch.dtype, rows: int, length: int) -> None:
    ours, hf = built(attention, dtype)
    checks.exact(ours, hf, support.some_ids(rows, length))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(("rows", "length"), BATCHES)
def test_last_position(attention: str, dtype: torch.dtype, rows: int, length: int) -> None:
    ours, hf = built(attention, dtype)
    checks.last_position(ours, hf, support.some_ids(rows, length))


@pytest.mark.parametrize(
    ("fields", "attention", "lengths"),
    crossed(
        ATTENTION, [(3, 11, 7), (11,), (11, 11, 11), (1, 1)],
        quick=lambda odd, attention, lengths: odd == "no dropout"
        or (odd in ATTENDS and attention == "eager" and lengths in ((3, 11, 7), (1, 1))),
    ),
    ids=str,
)  # fmt: skip
def test_operands_lie_in_memory_alike(fields: str, attention: str, lengths: tuple[int, ...]) -> None:
    ours, hf = odd_pair(attention, fields)
    checks.laid_out_alike(ours, hf, support.ragged_ids(*lengths, vocab_size=ours.config.vocab_size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(1, 2), (3, 11, 7), (128, 1, 60)])
def test_padded(attention: str, dtype: torch.dtype, side: str, lengths: tuple[int, ...]) -> None:
    ours, hf = built(attention, dtype)
    batch = ours.tokenize(support.ragged_ids(*lengths), padding_side=side)
    assert batch.padded
    checks.exact(ours, hf, batch.ids, batch)


@pytest.mark.parametrize("attention", ATTENTION)
def test_mask_of_ones_is_no_mask(attention: str) -> None:
    ours, hf = built(attention, torch.float32)
    ids = support.some_ids(2, 11)
    batch = ours.tokenize(ids, mask=torch.ones_like(ids))
    assert not batch.padded
    checks.exact(ours, hf, ids, batch)


@pytest.mark.parametrize(
    ("odd", "attention", "dtype"),
    crossed(
        ATTENTION, DTYPES,
        quick=lambda odd, attention, dtype: odd == "no dropout"
        or (odd in ATTENDS and (attention, dtype) == ("eager", torch.float32))
        or (odd in COARSE and (attention, dtype) == ("sdpa", torch.bfloat16))
        or (odd == "upcast" and (attention, dtype) == ("eager", torch.bfloat16)),
    ),
    ids=str,
)  # fmt: skip
def test_every_configuration(odd: str, attention: str, dtype: torch.dtype) -> None:
    ours, hf = support.pair(attention=attention, dtype=dtype, **ODD[odd])
    vocab_size = ours.config.vocab_size
    for rows, length in ((1, 1), (3, 11), (2, 37)):
        checks.exact(ours, hf, support.some_ids(rows, length, vocab_size))
    batch = ours.tokenize(support.ragged_ids(3, 11, vocab_size=vocab_size))
    checks.exact(ours, hf, batch.ids, batch)


def test_table_covers_every_activation() -> None:
    assert {fields.get("activation_function", "gelu_new") for fields in ODD.values()} == set(ACTIVATIONS)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_headless(attention: str, dtype: torch.dtype) -> None:
    hf = support.reference(attention=attention, dtype=dtype, headless=True)
    ours = pl.from_hf(hf)
    assert ours.unembed.tied
    checks.exact(ours, hf, support.some_ids(2, 11))
    batch = ours.tokenize(support.ragged_ids(3, 11, 7))
    checks.exact(ours, hf, batch.ids, batch)


@pytest.mark.filterwarnings("ignore:.*in training mode")  # seeded, dropout draws the same again
@pytest.mark.parametrize("odd", ["upcast", "scaled by layer", "heads of odd width", "no dropout", "untied"])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("padded", [False, True])
def test_training(attention: str, odd: str, padded: bool) -> None:
    """The same draws in the same order: with one seed, dropout drops the same entries."""
    ours, hf = support.pair(attention=attention, **ODD[odd])
    hf.train()
    ours.train()
    batch = ours.tokenize(support.ragged_ids(3, 11, 7)) if padded else None
    checks.exact(ours, hf, support.some_ids(2, 11) if batch is None else batch.ids, batch)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients(attention: str) -> None:
    """Equal forward passes by equal operations: the gradients are equal too."""
    ours, hf = support.pair(attention=attention)
    ids = support.some_ids(2, 11)
    hf(ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    assert torch.equal(ours.embed.W_E.grad, hf.transformer.wte.weight.grad)
    for i, block in enumerate(hf.transformer.h):
        grad = ours.grad(f"blocks.{i}.attn.W_QKV")
        assert torch.equal(grad, block.attn.c_attn.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.attn.W_O").flatten(0, 1), block.attn.c_proj.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.mlp.W_in"), block.mlp.c_fc.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.ln2.b"), block.ln_2.bias.grad)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("odd", ["upcast", "scaled by layer", "untied", "activation gelu"])
def test_autocast(attention: str, odd: str) -> None:
    ours, hf = support.pair(attention=attention, **ODD[odd])
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    checks.exact(ours, hf, support.some_ids(2, 37), context=autocast)
    batch = ours.tokenize(support.ragged_ids(3, 11, 7))
    checks.exact(ours, hf, batch.ids, batch, context=autocast)
    with torch.no_grad(), autocast():
        assert ours(batch).dtype == torch.bfloat16, "autocast is not on"


@pytest.mark.parametrize("n_layer", [1, pytest.param(12, marks=pytest.mark.long)])
def test_gpt2_small_at_true_size(n_layer: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    hf = support.spread(GPT2LMHeadModel(GPT2Config(n_layer=n_layer))).eval()
    ours = pl.from_hf(hf)
    assert n_layer != 12 or sum(p.numel() for p in ours.parameters()) == 124_439_808
    with torch.no_grad():
        ids = support.some_ids(1, 128, 50257)
        assert torch.equal(ours(ids), hf(ids).logits)
        ids = support.some_ids(1, 1024, 50257)
        if n_layer == 12:
            assert torch.equal(ours(ids), hf(ids).logits)
        else:  # a thousand rows of logits take longer than everything before them
            assert torch.equal(ours.next_token_logits(ids), hf(ids, logits_to_keep=1).logits[:, 0])


@pytest.mark.parametrize("kind", ["ckpt", "scores"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_every_checkpoint_by_hand(kind: str, padded: bool, attention: str) -> None:
    """Names that transformers does not give are checked against einsum over per-head matrices, in float64."""
    fields = {} if kind == "ckpt" else {"scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False}
    model = support.glass(dtype=torch.float64, attention=attention, **fields)
    checks.by_hand(model, support.ragged_ids(3, 11, 7) if padded else support.some_ids(2, 11))
