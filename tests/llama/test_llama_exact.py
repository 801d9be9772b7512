"""Llama with `numerics="exact"` equals transformers' to the bit: a tolerance only where names are checked by hand."""

from __future__ import annotations

from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import llamas
import pellucid as pl
import support
from pellucid import attend, norms, rotary

ATTENTION = ("sdpa", "eager")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

ODD: dict[str, dict[str, Any]] = {
    "grouped heads": {},
    "as many keys as queries": {"num_key_value_heads": 6},
    "one head of keys": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "heads of D / H": {"head_dim": None},
    "heads too wide for the kernel": {"head_dim": 258, "num_attention_heads": 4},
    "heads of width two": {"head_dim": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "biases of attention": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "no layer": {"num_hidden_layers": 0},
    "one layer, narrow": {"num_hidden_layers": 1, "intermediate_size": 1},
    "large epsilon": {"rms_norm_eps": 0.3},
    "another activation": {"hidden_act": "gelu_new"},
    "an id for pads": {"pad_token_id": 0, "eos_token_id": [1, 2]},
    "another base": {"rope_parameters": {"rope_type": "default", "rope_theta": 77.7}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 1.1, "rope_theta": 777.0}},
    "llama3": {"rope_parameters": llamas.LLAMA3},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0,
                                 "original_max_position_embeddings": 16}},
}  # fmt: skip
"""What the configuration changes -> fields."""

TEXTS: dict[str, tuple[Any, str]] = {
    "one token": ([[7]], "left"),
    "no pads": (llamas.some_ids(3, 11).tolist(), "left"),
    "left": (llamas.ragged_ids(3, 11, 7), "left"),
    "right": (llamas.ragged_ids(3, 11, 7), "right"),
}


def exact(ours: pl.CkptedTransformer, hf: Any, batch: pl.Batch) -> None:
    """Logits, hidden states, rotated keys, values and (eager) patterns equal transformers' to the bit."""
    state = torch.get_rng_state()
    with torch.no_grad():
        theirs = llamas.reference_values(hf, batch, eager=hf.config._attn_implementation == "eager")
        torch.set_rng_state(state)
        logits, ckpts = ours.run_with_ckpts(batch, names=[name for name in theirs if name != "logits"])
        torch.set_rng_state(state)
        plain = ours(batch)
    mask = batch.mask
    assert float(plain[mask].float().std()) > 0.1, "the logits hardly vary: nothing is being tested"
    lines = checks.differences({**ckpts, "logits": logits}, theirs, mask)
    lines += checks.differences({"plain logits": plain}, {"plain logits": theirs["logits"]}, mask)
    assert not lines, "\n".join(lines)


def all_texts(ours: pl.CkptedTransformer, hf: Any, *, but: tuple[str, ...] = ()) -> None:
    for name, (rows, side) in TEXTS.items():
        if name not in but:
            exact(ours, hf, ours.tokenize(rows, padding_side=side))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("odd", ODD)
def test_every_configuration(odd: str, attention: str, dtype: torch.dtype) -> None:
    ours, hf = llamas.pair(attention=attention, dtype=dtype, **ODD[odd])
    # Its eager attention in float64 gives NaN where rows begin with pads: their scores are -inf in its float32 softmax.
    all_texts(ours, hf, but=("left",) if (attention, dtype) == ("eager", torch.float64) else ())


def test_a_row_of_pads_is_no_nan_in_float64() -> None:
    model = llamas.glass(attention="eager", dtype=torch.float64)
    rows = llamas.ragged_ids(3, 11)
    batch = model.tokenize(rows)
    with torch.no_grad():
        together, alone = model(batch), model([rows[0]])
    assert support.close(together[0][batch.mask[0]], alone[0], 1e-6)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("odd", ["grouped heads", "heads too wide for the kernel", "as many keys as queries", "biases"])
def test_operands_lie_in_memory_alike(odd: str, attention: str) -> None:
    ours, hf = llamas.pair(attention=attention, **ODD[odd])
    for rows, _ in TEXTS.values():
        checks.laid_out_alike(ours, hf, rows)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_without_a_head(attention: str, dtype: torch.dtype) -> None:
    ours, hf = llamas.pair(attention=attention, dtype=dtype, headless=True)
    assert ours.unembed.tied
    all_texts(ours, hf)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("odd", ["grouped heads", "heads too wide for the kernel", "one head of keys"])
@pytest.mark.parametrize("rows", [[[5, 6, 7, 8]], llamas.ragged_ids(3, 11, 7)], ids=["no pads", "pads"])
def test_with_a_cache(rows: list[list[int]], odd: str, attention: str, dtype: torch.dtype) -> None:
    """The prompt, then single tokens, then several at once, each as transformers runs it with its own cache."""
    ours, hf = llamas.pair(attention=attention, dtype=dtype, **ODD[odd])
    batch = ours.tokenize(rows)
    cache = pl.KeyValueCache(ours.config, len(rows), dtype=dtype)
    mask, positions, theirs = batch.mask, batch.positions, None
    steps = [batch.ids, *llamas.some_ids(3, len(rows), seed=9)[..., None], llamas.some_ids(len(rows), 4, seed=8)]
    with torch.no_grad():
        for number, ids in enumerate(steps):
            if number:
                mask = torch.cat([mask, torch.ones_like(ids, dtype=torch.bool)], 1)
                positions = positions[:, -1:] + 1 + torch.arange(ids.size(1))
            padded = {"attention_mask": mask.long(), "position_ids": positions} if batch.padded else {}
            out = hf(ids, **padded, **{support.CACHE_WORD: theirs})
            theirs = out[support.CACHE_WORD]
            given = batch if not number else ours.tokenize(ids, mask=torch.ones_like(ids))
            logits = ours(given, cache=cache)
            kept = given.mask
            assert torch.equal(logits[kept], out.logits[kept]), f"step {number} of {ids.size(1)} tokens"
    assert cache.content.shape[3] == ours.config.sizes["head_kv"]


@pytest.mark.filterwarnings("ignore:.*in training mode")  # seeded, dropout draws the same again
@pytest.mark.parametrize("attention", ATTENTION)
def test_training(attention: str) -> None:
    """The same draws in the same order: with one seed, dropout drops the same entries."""
    ours, hf = llamas.pair(attention=attention, attention_dropout=0.3)
    hf.train()
    ours.train()
    all_texts(ours, hf)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients(attention: str) -> None:
    """Equal forward passes by equal operations: the gradients are equal, too."""
    ours, hf = llamas.pair(attention=attention, attention_bias=True)
    ids = llamas.some_ids(2, 11)
    hf(ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    assert torch.equal(ours.embed.W_E.grad, hf.model.embed_tokens.weight.grad)
    for i, block in enumerate(hf.model.layers):
        for letter in "QKV":
            theirs = getattr(block.self_attn, f"{letter.lower()}_proj")
            grad = ours.grad(f"blocks.{i}.attn.W_{letter}")
            assert torch.equal(grad.transpose(1, 2).flatten(0, 1), theirs.weight.grad), letter
            assert torch.equal(ours.grad(f"blocks.{i}.attn.b_{letter}").flatten(), theirs.bias.grad), letter
        assert torch.equal(ours.grad(f"blocks.{i}.attn.W_O").flatten(0, 1).t(), block.self_attn.o_proj.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.mlp.W_gate").t(), block.mlp.gate_proj.weight.grad)
        assert torch.equal(ours.grad(f"blocks.{i}.ln2.w"), block.post_attention_layernorm.weight.grad)


@torch.no_grad()
def by_hand(model: pl.CkptedTransformer, batch: pl.Batch) -> dict[str, Tensor]:
    """Llama once more in float64, with einsum over the named parameters: every checkpoint and the logits.

    Shares nothing with the library but the parameters.
    """
    config, p = model.config, lambda name: model.parameter(name).double()
    shared = config.num_attention_heads // config.num_key_value_heads
    values: dict[str, Tensor] = {}

    def norm(place: str, x: Tensor) -> Tensor:
        values[f"{place}.ckpt_scaled"] = scaled = x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()
        values[f"{place}.ckpt_normalized"] = made = scaled * p(f"{place}.w")
        return made

    half = config.d_head // 2
    speeds = config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = batch.positions[:, :, None, None] * speeds

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    columns = batch.ids.size(1)
    seen = torch.ones(columns, columns, dtype=torch.bool).tril() & batch.mask[:, None, None, :]
    values["ckpt_embed"] = x = p("embed.W_E")[batch.ids]
    for i in range(config.num_hidden_layers):
        at = f"blocks.{i}"
        values[f"{at}.resid_pre"] = x
        read = norm(f"{at}.ln1", x)
        for c in "QKV":
            made = torch.einsum("bpd,hdk->bphk", read, p(f"{at}.attn.W_{c}")) + p(f"{at}.attn.b_{c}")
            values[f"{at}.attn.ckpt_{c.lower()}"] = made
        q, k = (rotate(values[f"{at}.attn.ckpt_{c}"]) for c in "qk")
        values |= {f"{at}.attn.ckpt_rot_q": q, f"{at}.attn.ckpt_rot_k": k}
        k, v = (t.repeat_interleave(shared, 2) for t in (k, values[f"{at}.attn.ckpt_v"]))
        scores = torch.einsum("bqhk,bphk->bhqp", q, k) / config.d_head**0.5
        values[f"{at}.attn.ckpt_scores"] = scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
        values[f"{at}.attn.ckpt_pattern"] = pattern = scores.softmax(-1)
        values[f"{at}.attn.ckpt_z"] = z = torch.einsum("bhqp,bphk->bqhk", pattern, v)
        out = torch.einsum("bqhk,hkd->bqd", z, p(f"{at}.attn.W_O")) + p(f"{at}.attn.b_O")
        values |= {f"{at}.attn.ckpt_attn_out": out, f"{at}.resid_mid": x + out}
        x = x + out
        read = norm(f"{at}.ln2", x)
        gate, up = (read @ p(f"{at}.mlp.W_{n}") + p(f"{at}.mlp.b_{n}") for n in ("gate", "in"))
        post = gate / (1 + (-gate).exp()) * up
        out = post @ p(f"{at}.mlp.W_out") + p(f"{at}.mlp.b_out")
        values |= {f"{at}.mlp.ckpt_gate": gate, f"{at}.mlp.ckpt_up": up, f"{at}.mlp.ckpt_post": post}
        values |= {f"{at}.mlp.ckpt_mlp_out": out, f"{at}.resid_post": x + out}
        x = x + out
    values["logits"] = norm("ln_final", x) @ p("unembed.W_U")
    return values


@pytest.mark.parametrize("rows", [llamas.some_ids(2, 11).tolist(), llamas.ragged_ids(3, 11, 7)], ids=["plain", "pads"])
@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_every_checkpoint_by_hand(attention: str, rows: list[list[int]]) -> None:
    """What each name means, in the contract's words; float32 against float64, so within rounding."""
    model = llamas.glass(attention=attention, attention_bias=True, mlp_bias=True)
    batch = model.tokenize(rows)
    expected = by_hand(model, batch)
    with torch.no_grad():
        logits, ckpts = model.run_with_ckpts(batch)
    found = {**ckpts, "logits": logits}
    assert [*ckpts] == list(model.ckpt_names)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        a, b = (t.transpose(1, 2) if name.endswith(("scores", "pattern")) else t for t in (found[name].double(), value))
        hidden = b[batch.mask] <= torch.finfo(torch.float32).min
        assert torch.equal(hidden, a[batch.mask] <= torch.finfo(torch.float32).min), name
        difference = (a - b)[batch.mask][~hidden].abs().max()
        assert float(difference) < 1e-4 * max(1.0, float(b[batch.mask][~hidden].abs().max())), name


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("rows", [llamas.some_ids(2, 9).tolist(), llamas.ragged_ids(3, 9)], ids=["plain", "pads"])
def test_looking_changes_nothing(attention: str, rows: list[list[int]]) -> None:
    model = llamas.glass(attention=attention)
    checks.looking(model, rows)
    for name in ("**.ckpt_pattern", "**.ckpt_scores", "**.ckpt_rot_*", "**.ckpt_scaled"):
        checks.looking(model, rows, names=name)


MUTANTS: dict[str, tuple[Any, str, Any, str]] = {
    "repeated heads in the kernel's place": (attend, "_WIDEST_GROUPED", 0, "sdpa"),
    "heads in turn": (attend, "repeated", lambda v, n: v.repeat(1, n, 1, 1), "eager"),
    "the gain before the cast": (
        norms.RMSNorm, "forward",
        lambda self, x, tap=None: self.ckpt_normalized(
            (self.w.float() * (w := x.float()) * torch.rsqrt(w.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype),
            tap=tap,
        ), "sdpa",
    ),
    "neighbours as pairs": (
        rotary, "turned",
        lambda v, turn: v * turn[0].unsqueeze(1)
        + torch.stack((-v[..., 1::2], v[..., ::2]), -1).flatten(-2) * turn[1].unsqueeze(1), "sdpa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mistakes_are_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, value, attention = MUTANTS[mutant]
    ours, hf = llamas.pair(attention=attention, dtype=torch.bfloat16)
    monkeypatch.setattr(where, name, value)
    noticed = checks.laid_out_alike if mutant.startswith("repeated") else exact
    rows = ours.tokenize(TEXTS["no pads"][0])
    with pytest.raises(AssertionError):
        noticed(ours, hf, rows)
