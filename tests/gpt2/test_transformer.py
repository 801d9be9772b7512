"""The mathematics: shapes of what is stored, layer norm, embeddings, the tree, and the modules on their own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pellucid as pl
import support
from pellucid.gpt2 import LayerNorm
from pellucid.numerics import nonlinear
from pellucid.part import fresh_weights

TREE = """\
CkptedTransformer(
  (embed): Embedding()
  (pos_embed): PosEmbedding()
  (blocks): ModuleList(
    (0-11): 12 x TransformerBlock(
      (resid_pre): Ckpt()
      (ln1): LayerNorm(
        (ckpt_scaled): Ckpt()
        (ckpt_normalized): Ckpt()
      )
      (attn): Attention(
        (ckpt_q): Ckpt()
        (ckpt_k): Ckpt()
        (ckpt_v): Ckpt()
        (ckpt_scores): Ckpt()
        (ckpt_pattern): Ckpt()
        (ckpt_z): Ckpt()
        (ckpt_attn_out): Ckpt()
      )
      (resid_mid): Ckpt()
      (ln2): LayerNorm(
        (ckpt_scaled): Ckpt()
        (ckpt_normalized): Ckpt()
      )
      (mlp): MLP(
        (ckpt_pre): Ckpt()
        (ckpt_post): Ckpt()
        (ckpt_mlp_out): Ckpt()
      )
      (resid_post): Ckpt()
    )
  )
  (ln_final): LayerNorm(
    (ckpt_scaled): Ckpt()
    (ckpt_normalized): Ckpt()
  )
  (unembed): Unembedding()
  (ckpt_embed): Ckpt()
  (ckpt_pos_embed): Ckpt()
)"""


def test_the_printed_tree() -> None:
    config = pl.TransformerConfig.from_pretrained("gpt2-small", vocab_size=3, n_embd=12, n_positions=2)
    assert str(pl.CkptedTransformer(config)) == TREE


def test_stored_shapes_are_the_parameters(glass: pl.CkptedTransformer) -> None:
    assert {name: tuple(p.shape) for name, p in glass.named_parameters()} == glass.schema.stored
    untied = support.glass(tie_word_embeddings=False)
    assert {name: tuple(p.shape) for name, p in untied.named_parameters()} == untied.schema.stored
    assert set(untied.schema.stored) - set(glass.schema.stored) == {"unembed.W_U"}
    assert {name: tuple(t.shape) for name, t in fresh_weights(untied.schema, 0.02).items()} == untied.schema.stored


def test_weights_are_used_as_they_are() -> None:
    config = pl.TransformerConfig(**support.SIZES)
    weights = fresh_weights(config.schema, config.initializer_range)
    model = pl.CkptedTransformer(config, weights)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr(), name


def test_an_untied_head_has_rows_that_are_contiguous() -> None:
    model = support.glass(tie_word_embeddings=False)
    assert model.unembed.W_U.shape == (48, 211)
    assert model.unembed.weight.shape == (211, 48)
    assert model.unembed.weight.is_contiguous()
    assert model.unembed.weight.data_ptr() == model.unembed.W_U.data_ptr()


def test_layer_norm() -> None:
    x, w, b = (
        torch.randn(2, 3, 8, dtype=torch.float64),
        torch.randn(8, dtype=torch.float64),
        torch.randn(8, dtype=torch.float64),
    )
    config = pl.TransformerConfig(**{**support.SIZES, "n_embd": 8, "n_head": 2}, layer_norm_epsilon=0.3)
    norm = LayerNorm(config, {"w": w, "b": b})
    expected = torch.empty_like(x)
    for i in range(2):
        for j in range(3):
            row = x[i, j].tolist()
            mean = math.fsum(row) / 8
            variance = math.fsum((v - mean) ** 2 for v in row) / 8
            expected[i, j] = torch.tensor([(v - mean) / math.sqrt(variance + 0.3) for v in row], dtype=torch.float64)
    assert torch.allclose(norm(x), expected * w + b, rtol=0, atol=1e-13)
    assert torch.allclose(norm._scaled(x), expected, rtol=0, atol=1e-13)


def test_embeddings_are_rows(glass: pl.CkptedTransformer) -> None:
    ids = support.some_ids(2, 5)
    _, ckpts = glass.run_with_ckpts(ids)
    assert torch.equal(ckpts["ckpt_embed"], glass.embed.W_E[ids])
    assert torch.equal(ckpts["ckpt_pos_embed"], glass.pos_embed.W_pos[:5].expand(2, -1, -1))
    assert torch.equal(ckpts["blocks.0.resid_pre"], ckpts["ckpt_embed"] + ckpts["ckpt_pos_embed"])


def test_the_stream_is_a_sum(glass64: pl.CkptedTransformer) -> None:
    _, c = glass64.run_with_ckpts(support.some_ids(2, 5))
    total = c["ckpt_embed"] + c["ckpt_pos_embed"]
    for i in range(3):
        total = total + c[f"blocks.{i}.attn.ckpt_attn_out"] + c[f"blocks.{i}.mlp.ckpt_mlp_out"]
        assert support.close(total, c[f"blocks.{i}.resid_post"])


def test_modules_work_on_their_own(glass: pl.CkptedTransformer) -> None:
    ids, positions = support.some_ids(2, 5), torch.arange(5).expand(2, -1)
    with torch.no_grad():
        x = glass.embed(ids) + glass.pos_embed(positions)
        for block in glass.blocks:
            attn_out, _ = block.attn(block.ln1(x))
            mid = attn_out + x
            again = mid + block.mlp(block.ln2(mid))
            x = block(x)
            assert torch.equal(again, x)
        assert torch.equal(glass.unembed(glass.ln_final(x)), glass(ids))


@pytest.mark.parametrize("name", nonlinear.EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("with_grad", [True, False])
def test_activations_equal_transformers_to_the_bit(name: str, dtype: torch.dtype, with_grad: bool) -> None:
    from transformers.activations import ACT2FN

    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e4, -1e4])]).to(dtype)
    before = x.clone()
    with torch.set_grad_enabled(with_grad):
        ours, theirs = nonlinear.EXACT[name](x), ACT2FN[name](before.clone())
    assert torch.equal(x, before)
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_nothing_is_written_into_a_dtype_that_autocast_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    x, written = torch.randn(3, 5), []
    plain = nonlinear._gelu_new_in_place
    monkeypatch.setattr(nonlinear, "_gelu_new_in_place", lambda x: (written.append(1), plain(x))[1])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            nonlinear.gelu_new(x)
        assert not written
        nonlinear.gelu_new(x)
    assert written


@pytest.mark.parametrize("name", nonlinear.FAST)
@pytest.mark.parametrize("with_grad", [True, False])
def test_fast_activations_are_the_same_functions(name: str, with_grad: bool) -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    before = x.clone()
    with torch.set_grad_enabled(with_grad):
        exact, fast = nonlinear.EXACT[name](x), nonlinear.FAST[name](x)
    assert torch.equal(x, before)
    # gelu_fast rounds sqrt(2 / pi) to ten digits.
    assert torch.allclose(exact, fast, rtol=0, atol=1e-9 if name == "gelu_fast" else 1e-14)


def test_the_two_gelus_are_two_functions() -> None:
    x = torch.linspace(-3, 3, 101)
    assert float((nonlinear.EXACT["gelu_new"](x) - F.gelu(x)).abs().max()) > 1e-4


def test_fast_stays_close_to_exact() -> None:
    ids = support.some_ids(2, 11)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        with torch.no_grad():
            assert support.close(
                support.glass(numerics="fast", dtype=dtype)(ids), support.glass(dtype=dtype)(ids), tolerance
            )


def test_it_is_an_ordinary_module(glass: pl.CkptedTransformer) -> None:
    assert isinstance(glass, nn.Module)
    assert glass.get_input_embeddings() is glass.embed
    assert glass.get_output_embeddings() is glass.unembed
    assert torch.equal(glass.embed.weight, glass.embed.W_E)
    assert torch.equal(glass.unembed.weight, glass.embed.W_E)
    assert [name for name, _ in glass.embed.named_parameters()] == ["W_E"]
    assert [name for name, _ in glass.unembed.named_parameters()] == []
    assert not list(glass.named_buffers())
