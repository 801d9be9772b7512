"""The modules of a GPT-2, each built from a configuration, alone and combined into other small models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
import support
from pellucid.gpt2 import MLP, Attention, Embedding, LayerNorm, PosEmbedding, Transformer, TransformerBlock
from pellucid.tap import Ckpt, name_checkpoints

CONFIG = pl.TransformerConfig(**support.SIZES)
PLACES = {
    Embedding: "embed", PosEmbedding: "pos_embed", LayerNorm: "ln_final", Attention: "blocks.0.attn",
    MLP: "blocks.0.mlp", TransformerBlock: "blocks.0", Transformer: "",
}  # fmt: skip


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
def test_a_block_from_a_configuration_has_what_the_schema_says(kind: Any) -> None:
    block, place = kind(CONFIG), PLACES[kind]
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == CONFIG.schema.stored_below(place)
    ckpts = [name for name, module in block.named_modules() if type(module).__name__ == "Ckpt"]
    assert set(ckpts) == set(CONFIG.schema.names_below(place))


@pytest.mark.parametrize("kind", PLACES, ids=lambda kind: kind.__name__)
def test_a_block_of_given_weights_is_that_of_the_model(kind: Any) -> None:
    model, place = support.glass(), PLACES[kind]
    there = model.get_submodule(place) if place else model
    block = kind(model.config, {name: p.detach() for name, p in there.named_parameters()}).eval()
    for (name, ours), theirs in zip(block.named_parameters(), there.parameters(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr(), name
    if kind in (LayerNorm, Attention, MLP, TransformerBlock):
        x = torch.randn(2, 5, model.config.n_embd)
        ours, theirs = block(x), there(x)
        ours, theirs = (ours[0], theirs[0]) if isinstance(ours, tuple) else (ours, theirs)
        assert torch.equal(ours, theirs)


def test_fresh_blocks_are_drawn_as_a_fresh_model_is() -> None:
    torch.manual_seed(3)
    block = TransformerBlock(CONFIG)
    assert bool((block.ln1.w == 1).all())
    assert not bool(block.attn.b_QKV.any())
    assert float(block.attn.W_QKV.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(block.mlp.W_out.detach().std()) == pytest.approx(0.02 / (2 * CONFIG.n_layer) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    "weights", [{}, {"W_E": torch.zeros(3, 3)}, {"W_E": torch.zeros(211, 48), "b": torch.zeros(1)}]
)
def test_weights_that_do_not_fit_are_errors(weights: dict[str, Tensor]) -> None:
    with pytest.raises(pl.WeightsError) as caught:
        Embedding(CONFIG, weights)
    assert caught.value.code == "weights-misfit"
    assert "config.schema.stored lists below 'embed'" in caught.value.remedy


@pytest.mark.remedy("config-wrong-type")
def test_a_tensor_for_the_configuration_is_an_error_and_its_remedy_works() -> None:
    W_E = torch.zeros(211, 48)
    for kind in (Embedding, Attention, MLP, LayerNorm, TransformerBlock):
        with pytest.raises(pl.ConfigError) as caught:
            kind(W_E)
        assert caught.value.code == "config-wrong-type"
    assert Embedding(CONFIG, weights={"W_E": W_E}).W_E.data_ptr() == W_E.data_ptr()


@pytest.mark.remedy("config-no-blocks")
def test_a_block_needs_a_model_that_has_blocks() -> None:
    empty = CONFIG.override(n_layer=0)
    for kind in (Attention, MLP, TransformerBlock):
        with pytest.raises(pl.ConfigError) as caught:
            kind(empty)
        assert caught.value.code == "config-no-blocks"
        kind(eval("config.override(n_layer=1)", {"config": empty}))
    assert "config.override(n_layer=1)" in caught.value.remedy


def test_every_checkpoint_has_a_name_of_its_own() -> None:
    """Alone, in a model of one's own, and after it was told where it is."""
    block = TransformerBlock(CONFIG, block=2)
    names = [module.name for module in block.modules() if isinstance(module, Ckpt)]
    assert names == [name for name in CONFIG.schema.names if name.startswith("blocks.2.")]
    assert Attention(CONFIG, block=1).ckpt_z.name == "blocks.1.attn.ckpt_z"
    two = nn.ModuleDict({"first": Attention(CONFIG), "second": Attention(CONFIG)})
    name_checkpoints(two)
    assert [two[key].ckpt_z.name for key in two] == ["first.ckpt_z", "second.ckpt_z"]


class AttentionOnly(nn.Module):
    """Embeddings, one layer of attention without MLP or norms, and a tied head."""

    def __init__(self, config: pl.TransformerConfig) -> None:
        super().__init__()
        self.embed, self.pos_embed, self.attn = Embedding(config), PosEmbedding(config), Attention(config)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos_embed(torch.arange(ids.size(1)).expand_as(ids))
        return F.linear(x + self.attn(x)[0], self.embed.W_E)


def test_an_attention_only_model_learns_to_copy() -> None:
    """Sequences that repeat themselves: what follows is what followed before, which attention alone can tell."""
    torch.manual_seed(0)
    config = pl.TransformerConfig(
        vocab_size=8, n_positions=16, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0, resid_pdrop=0
    )
    model = AttentionOnly(config).eval()  # without dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    ids = torch.arange(12).remainder(4)[None] + torch.tensor([[0], [4]])
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.8
    assert losses[-1] < 0.1


def test_checkpoints_of_a_block_alone_take_hooks_and_taps() -> None:
    attn, seen = Attention(CONFIG).eval(), []
    attn.ckpt_pattern.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(1, 4, CONFIG.n_embd)
    out, pattern = attn(x)
    assert pattern is not None
    assert torch.equal(seen[0], pattern)
    assert torch.allclose(pattern.sum(-1), torch.ones(1, CONFIG.n_head, 4))
    assert out.shape == x.shape

    class Doubles:
        def wants(self, name: str) -> bool:
            return name == "blocks.0.attn.ckpt_z"

        def __call__(self, name: str, value: Tensor) -> Tensor:
            return value * 2

    with torch.no_grad():
        attn.b_O.zero_()
        assert torch.allclose(attn(x, tap=Doubles())[0], 2 * attn(x)[0], atol=1e-6)


@pytest.mark.remedy("id-out-of-range")
def test_ids_for_positions_are_an_error_and_its_remedy_works() -> None:
    ids = torch.tensor([[3, CONFIG.n_positions]])
    for kind, wrong in ((PosEmbedding, ids), (Embedding, ids + CONFIG.vocab_size), (PosEmbedding, -ids)):
        with pytest.raises(pl.InputError, match=f"expected 0 to {len(next(kind(CONFIG).parameters())) - 1}") as caught:
            kind(CONFIG)(wrong)
        assert caught.value.code == "id-out-of-range"
    assert "torch.arange(ids.size(1)).expand_as(ids)" in caught.value.remedy
    assert PosEmbedding(CONFIG)(torch.arange(ids.size(1)).expand_as(ids)).shape == (1, 2, CONFIG.n_embd)
