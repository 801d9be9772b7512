"""The mathematics: shapes of what is stored, layer norm, embeddings, the tree, and the modules on their own."""

from __future__ import annotations

import math

import torch
from torch import nn

import pellucid as pl
import support
from pellucid.family.part import fresh_weights
from pellucid.gpt2 import LayerNorm

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


def test_it_is_an_ordinary_module(glass: pl.CkptedTransformer) -> None:
    assert isinstance(glass, nn.Module)
    assert glass.get_input_embeddings() is glass.embed
    assert glass.get_output_embeddings() is glass.unembed
    assert torch.equal(glass.embed.weight, glass.embed.W_E)
    assert torch.equal(glass.unembed.weight, glass.embed.W_E)
    assert [name for name, _ in glass.embed.named_parameters()] == ["W_E"]
    assert [name for name, _ in glass.unembed.named_parameters()] == []
    assert not list(glass.named_buffers())
