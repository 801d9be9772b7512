"""Every family with `numerics="exact"` equals transformers' to the bit; a tolerance only where it is done by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import samples
import support
from pellucid import neox
from pellucid.family import attend, blocks, rotary
from pellucid.neox import model as neox_attention
from pellucid.weights.layouts import from_ours
from samples import SAMPLES

ATTENTION = ("sdpa", "eager")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CASES = [(family, odd) for family, sample in SAMPLES.items() for odd in sample.odd]


def fields_of(family: str, odd: str) -> dict[str, Any]:
    """What a configuration changes, in one block: what all blocks have in common shows there."""
    fields = SAMPLES[family].odd[odd]
    return fields if odd == "as it is" or family == "gpt2" else {"num_hidden_layers": 1, **fields}


TEXTS: dict[str, tuple[Any, str]] = {
    "one token": ([[7]], "left"),
    "no pads": (samples.some_ids(3, 11).tolist(), "left"),
    "left": (samples.ragged_ids(3, 11, 7), "left"),
    "right": (samples.ragged_ids(3, 11, 7), "right"),
}


def exact(ours: pl.CkptedTransformer, hf: Any, batch: pl.Batch) -> None:
    """Logits, hidden states, cached keys, values and (eager) patterns equal transformers' to the bit."""
    state = torch.get_rng_state()
    with torch.no_grad():
        theirs = samples.reference_values(hf, batch, eager=hf.config._attn_implementation == "eager")
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


CAST = ("biases", "large epsilon", "yarn", "attention before the MLP", "an odd width turns")
"""What computes otherwise in bfloat16 than in float32."""


def configurations() -> Iterator[Any]:
    """Each; what changes no attention eagerly, and what casts nothing in bfloat16, is left to `make test-all`."""
    for (family, odd), attention, dtype in itertools.product(CASES, ATTENTION, DTYPES):
        if odd == "as it is" or dtype in DTYPES[:2]:
            attends = attention == "sdpa" or "head" in odd or "keys" in odd
            every_run = odd == "as it is" or (
                attends if dtype == torch.float32 else attention == "sdpa" and odd in CAST
            )
            marks = [] if every_run else [pytest.mark.long]
            yield pytest.param(family, odd, attention, dtype, marks=marks, id=f"{family}-{odd}-{attention}-{dtype}")


@pytest.mark.parametrize(("family", "odd", "attention", "dtype"), [*configurations()])
def test_every_configuration(family: str, odd: str, attention: str, dtype: torch.dtype) -> None:
    ours, hf = samples.pair(family, attention=attention, dtype=dtype, **fields_of(family, odd))
    # Eager attention in float64 gives NaN where rows begin with pads: their scores are -inf in its float32 softmax.
    upcasts = family != "gpt2" and (attention, dtype) == ("eager", torch.float64)
    all_texts(ours, hf, but=("left",) if upcasts else ())


@pytest.mark.parametrize("family", SAMPLES)
def test_a_row_of_pads_is_no_nan_in_float64(family: str) -> None:
    model = samples.glass(family, attention="eager", dtype=torch.float64)
    rows = samples.ragged_ids(3, 11)
    batch = model.tokenize(rows)
    with torch.no_grad():
        together, alone = model(batch), model([rows[0]])
    assert support.close(together[0][batch.mask[0]], alone[0], 1e-6)


LAID = [case for case in CASES if "layer" not in case[1]][::2]


@pytest.mark.parametrize(
    ("family", "odd", "attention"),
    support.few_of(
        ((*case, attention) for case in LAID for attention in ATTENTION),
        *((*case, "sdpa") for case in LAID),
        *((*case, "eager") for case in LAID if any(word in case[1] for word in ("head", "keys", "as it is"))),
    ),
)  # fmt: skip
def test_operands_lie_in_memory_alike(family: str, odd: str, attention: str) -> None:
    ours, hf = samples.pair(family, attention=attention, **fields_of(family, odd))
    for rows, _ in TEXTS.values():
        checks.laid_out_alike(ours, hf, rows)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", SAMPLES)
def test_a_copy_attends_as_the_model_does(family: str, attention: str) -> None:
    """Both ways, unless the caller says how; without, the logits would be a rounding apart."""
    hf, ids = samples.reference(family, attention=attention), samples.some_ids(2, 11)
    ours = pl.from_hf(hf)
    back = pl.to_hf(ours)
    with torch.no_grad():
        logits = ours(ids)
        assert torch.equal(logits, hf(ids).logits)
        assert torch.equal(logits, back(ids).logits)
        explicit = pl.from_hf(hf, attention="eager")
        assert torch.equal(explicit(ids), logits) == (attention == "eager")
    assert (ours.execution.attention, explicit.execution.attention) == (
        "eager" if attention == "eager" else "auto", "eager",
    )  # fmt: skip
    assert [m.config._attn_implementation for m in (hf, back)] == [attention] * 2


@pytest.mark.parametrize(
    ("family", "dtype", "attention"),
    support.few_of(
        itertools.product(SAMPLES, DTYPES[:2], ATTENTION),
        *((family, torch.float32, "sdpa") for family in SAMPLES), ("llama", torch.bfloat16, "eager"),
    ),
    ids=str,
)  # fmt: skip
def test_without_a_head(family: str, attention: str, dtype: torch.dtype) -> None:
    ours, hf = samples.pair(family, attention=attention, dtype=dtype, headless=True)
    assert ours.unembed.tied
    all_texts(ours, hf)


CACHED = [
    *((family, "as it is") for family in SAMPLES),
    ("llama", "heads too wide for the kernel"), ("llama", "one head of keys"), ("llama", "as many keys as queries"),
    ("gpt_neox", "attention before the MLP"), ("gpt_neox", "nothing turns"),
]  # fmt: skip


def cached() -> Iterator[Any]:
    """Every case with pads in float32; what is as it is in bfloat16, without pads and eagerly, too."""
    texts = {"no pads": [[5, 6, 7, 8]], "pads": samples.ragged_ids(3, 11, 7)}
    for (family, odd), attention, dtype, (pads, rows) in itertools.product(
        CACHED, ATTENTION, DTYPES[:2], texts.items()
    ):
        others = (dtype != torch.float32) + (pads == "no pads") + (attention == "eager" and odd != "one head of keys")
        marks = [] if others <= (odd == "as it is") else [pytest.mark.long]
        yield pytest.param(
            rows, family, odd, attention, dtype, marks=marks, id=f"{family}-{odd}-{attention}-{dtype}-{pads}"
        )


@pytest.mark.parametrize(("rows", "family", "odd", "attention", "dtype"), [*cached()])
def test_with_a_cache(rows: list[list[int]], family: str, odd: str, attention: str, dtype: torch.dtype) -> None:
    """The prompt, then single tokens, then several at once, each as transformers runs it with its own cache."""
    ours, hf = samples.pair(family, attention=attention, dtype=dtype, **SAMPLES[family].odd[odd])
    batch = ours.tokenize(rows)
    cache = pl.KeyValueCache(ours.config, len(rows), dtype=dtype)
    mask, positions, theirs = batch.mask, batch.positions, None
    steps = [batch.ids, *samples.some_ids(3, len(rows), seed=9)[..., None], samples.some_ids(len(rows), 4, seed=8)]
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
@pytest.mark.parametrize("family", SAMPLES)
def test_training(family: str, attention: str) -> None:
    """The same draws in the same order: with one seed, dropout drops the same entries."""
    for fields in (SAMPLES[family].dropout, {**SAMPLES[family].dropout, **([*SAMPLES[family].odd.values()][1])}):
        ours, hf = samples.pair(family, attention=attention, **fields)
        hf.train()
        ours.train()
        all_texts(ours, hf)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(
    ("family", "odd"),
    [*((family, "as it is") for family in SAMPLES), ("llama", "biases"), ("gpt_neox", "no biases of attention")],
)
def test_gradients(family: str, odd: str, attention: str) -> None:
    """Equal forward passes by equal operations: the gradients are equal, too."""
    ours, hf = samples.pair(family, attention=attention, **SAMPLES[family].odd[odd])
    ids = samples.some_ids(2, 11)
    hf(ids).logits.square().mean().backward()
    ours(ids).square().mean().backward()
    grads = from_ours({name: parameter.grad for name, parameter in ours.named_parameters()}, ours.config)
    theirs = {name: parameter.grad for name, parameter in hf.named_parameters()}
    assert set(grads) == set(theirs)
    for name, grad in theirs.items():
        assert torch.equal(grads[name], grad), name


@torch.no_grad()
def by_hand(model: pl.CkptedTransformer, batch: pl.Batch) -> dict[str, Tensor]:
    """A model with rotary positions once more in float64, with einsum over the named parameters: every checkpoint.

    Shares nothing with the library but the parameters.
    """
    config, p = model.config, lambda name: model.parameter(name).double()
    is_llama = model.schema.family == "llama"
    sizes, turns = model.schema.sizes, model.schema.sizes.get("d_rot", model.schema.sizes["d_head"])
    values: dict[str, Tensor] = {}

    def norm(place: str, x: Tensor) -> Tensor:
        if is_llama:
            scaled, shift = x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt(), 0.0
        else:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
            shift = p(f"{place}.b")
        values[f"{place}.ckpt_scaled"] = scaled
        values[f"{place}.ckpt_normalized"] = made = scaled * p(f"{place}.w") + shift
        return made

    def mlp(at: str, read: Tensor) -> Tensor:
        pre = read @ p(f"{at}.W_in") + p(f"{at}.b_in")
        if is_llama:
            gate = read @ p(f"{at}.W_gate") + p(f"{at}.b_gate")
            values.update({f"{at}.ckpt_gate": gate, f"{at}.ckpt_up": pre})
            post = gate / (1 + (-gate).exp()) * pre
        else:
            values[f"{at}.ckpt_pre"] = pre
            post = pre * 0.5 * (1 + (pre / 2**0.5).erf())
        values[f"{at}.ckpt_post"] = post
        values[f"{at}.ckpt_mlp_out"] = out = post @ p(f"{at}.W_out") + p(f"{at}.b_out")
        return out

    half = turns // 2
    speeds = config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = batch.positions[:, :, None, None] * speeds

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.complex(x[..., :half], x[..., half:turns]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag, x[..., turns:]], -1)

    columns = batch.ids.size(1)
    seen = torch.ones(columns, columns, dtype=torch.bool).tril() & batch.mask[:, None, None, :]
    values["ckpt_embed"] = x = p("embed.W_E")[batch.ids]
    for i in range(sizes["layer"]):
        at = f"blocks.{i}"
        values[f"{at}.resid_pre"] = x
        read = norm(f"{at}.ln1", x)
        for c in "QKV":
            made = torch.einsum("bpd,hdk->bphk", read, p(f"{at}.attn.W_{c}")) + p(f"{at}.attn.b_{c}")
            values[f"{at}.attn.ckpt_{c.lower()}"] = made
        q, k = (rotate(values[f"{at}.attn.ckpt_{c}"]) for c in "qk")
        values |= {f"{at}.attn.ckpt_rot_q": q, f"{at}.attn.ckpt_rot_k": k}
        shared = sizes["head"] // sizes["head_kv"]
        k, v = (t.repeat_interleave(shared, 2) for t in (k, values[f"{at}.attn.ckpt_v"]))
        scores = torch.einsum("bqhk,bphk->bhqp", q, k) / sizes["d_head"] ** 0.5
        values[f"{at}.attn.ckpt_scores"] = scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
        values[f"{at}.attn.ckpt_pattern"] = pattern = scores.softmax(-1)
        values[f"{at}.attn.ckpt_z"] = z = torch.einsum("bhqp,bphk->bqhk", pattern, v)
        out = torch.einsum("bqhk,hkd->bqd", z, p(f"{at}.attn.W_O")) + p(f"{at}.attn.b_O")
        values[f"{at}.attn.ckpt_attn_out"] = out
        if f"{at}.resid_mid" in model.schema:
            values[f"{at}.resid_mid"] = x = x + out
            x = x + mlp(f"{at}.mlp", norm(f"{at}.ln2", x))
        else:
            x = x + out + mlp(f"{at}.mlp", norm(f"{at}.ln2", x))
        values[f"{at}.resid_post"] = x
    values["logits"] = norm("ln_final", x) @ p("unembed.W_U")
    return values


BY_HAND = [
    ("llama", "biases"), ("gpt_neox", "as it is"), ("gpt_neox", "attention before the MLP"),
    ("gpt_neox", "nothing turns"),
]  # fmt: skip


ROWS = {"plain": samples.some_ids(2, 11).tolist(), "pads": samples.ragged_ids(3, 11, 7)}
ALIKE = (("auto", "pads"), ("eager", "plain"))
"""Each attention and each kind of rows once: the long run tries every pair."""


@pytest.mark.parametrize(
    ("family", "odd", "attention", "rows"),
    support.few_of(
        ((*case, *each) for case in BY_HAND for each in itertools.product(("auto", "eager"), ROWS)),
        *((*case, *each) for case in BY_HAND for each in ALIKE),
    ),
)
def test_every_checkpoint_by_hand(family: str, odd: str, attention: str, rows: str) -> None:
    """What each name means, in the contract's words; float32 against float64, so within rounding."""
    model = samples.glass(family, attention=attention, **SAMPLES[family].odd[odd])
    batch = model.tokenize(ROWS[rows])
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


@pytest.mark.parametrize(
    ("family", "attention", "rows"),
    support.few_of(
        itertools.product(SAMPLES, ("auto", "eager"), ROWS),
        *((family, *each) for family in SAMPLES for each in ALIKE),
    ),
)
def test_looking_changes_nothing(family: str, attention: str, rows: str) -> None:
    model = samples.glass(family, attention=attention)
    checks.looking(model, ROWS[rows])
    for kind in ("ckpt_pattern", "ckpt_scores", "ckpt_rot_q", "ckpt_scaled"):
        if any(name.endswith(kind) for name in model.ckpt_names):
            checks.looking(model, ROWS[rows], names=f"**.{kind}")


def neighbours(v: Tensor, turn: Any) -> Tensor:
    """Neighbours turned as pairs, in the place of halves."""
    cos, sin = (part.unsqueeze(1) for part in turn)
    return v * cos + torch.stack((-v[..., 1::2], v[..., ::2]), -1).flatten(-2) * sin


def stream_first(self: Any, x: Tensor, tap: Any = None, **given: Any) -> Tensor:
    """The forward of a parallel block that adds to the stream what attention gives, then what the MLP gives."""
    attn_out, _ = self.attn(self.ln1(x, tap=tap), tap=tap, **given)
    mlp_out = self.mlp(self.ln2(x, tap=tap), tap=tap)
    return self.resid_post(self.resid_pre(x, tap=tap) + attn_out + mlp_out, tap=tap)


MUTANTS: dict[str, tuple[str, Any, str, Any, str]] = {
    "repeated heads in the kernel's place": ("llama", attend, "_WIDEST_GROUPED", 0, "sdpa"),
    "heads in turn": ("llama", attend, "repeated", lambda v, n: v.repeat(1, n, 1, 1), "eager"),
    "the gain before the cast": (
        "llama", blocks.RMSNorm, "forward",
        lambda self, x, tap=None: self.ckpt_normalized(
            (self.w.float() * (w := x.float()) * torch.rsqrt(w.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype),
            tap=tap,
        ), "sdpa",
    ),
    **{
        f"neighbours as pairs, {family}": (family, where, "turned", neighbours, "sdpa")
        for family, where in (("llama", rotary), ("gpt_neox", neox_attention))
    },
    "nothing turns": ("gpt_neox", neox.Attention, "turned", lambda self, values, turn: values, "sdpa"),
    "the stream first": ("gpt_neox", neox.TransformerBlock, "forward", stream_first, "sdpa"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mistakes_are_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, where, name, value, attention = MUTANTS[mutant]
    ours, hf = samples.pair(family, attention=attention, dtype=torch.bfloat16)
    monkeypatch.setattr(where, name, value)
    noticed = checks.laid_out_alike if mutant.startswith("repeated") else exact
    rows = ours.tokenize(TEXTS["no pads"][0])
    with pytest.raises(AssertionError):
        noticed(ours, hf, rows)
