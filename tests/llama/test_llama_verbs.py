"""What is a Llama's own in captures and edits: rotated keys, gates, names; every verb is in tests/families."""

from __future__ import annotations

import re

import pytest
import torch

import llamas
import pellucid as pl
from pellucid.family.network import Run
from pellucid.family.part import under
from pellucid.llama import MLP, Attention, RMSNorm, Transformer, TransformerBlock

ROWS = llamas.ragged_ids(3, 9)


def test_generating_captures_and_edits() -> None:
    model = llamas.glass()
    edit = pl.Edit.scale("blocks.1.attn.ckpt_rot_k", 0.5, heads=[1])
    names = ["blocks.1.attn.ckpt_rot_k", "blocks.1.mlp.ckpt_gate", "blocks.2.attn.ckpt_pattern"]
    out = model.generate([ROWS[1]], max_new_tokens=5, names=names, edits=[edit])
    _, whole = model.run_with_ckpts(out.ids, names=names, edits=[edit])
    for name in names:
        assert out.ckpts[name].shape == whole[name].shape, name
        assert torch.allclose(out.ckpts[name], whole[name], atol=1e-5), name


# Captures and edits


PATCHED = (
    "attn.ckpt_q", "attn.ckpt_rot_q", "attn.ckpt_rot_k", "attn.ckpt_scores", "attn.ckpt_pattern", "mlp.ckpt_gate",
    "mlp.ckpt_up", "mlp.ckpt_post", "ln2.ckpt_scaled",
)  # fmt: skip


@pytest.mark.parametrize("name", PATCHED)
def test_every_value_can_be_put_in_the_place_of_another_runs(name: str) -> None:
    """What a run had, put into another at the last block, gives what follows there."""
    model, where = llamas.glass(attention="eager"), f"blocks.2.{name}"
    clean, other = llamas.some_ids(1, 7), llamas.some_ids(1, 7, seed=5)
    _, source = model.run_with_ckpts(clean)
    _, edited = model.run_with_ckpts(other, edits=[pl.Edit.patch(where, source)])
    assert torch.equal(edited[where], source[where])
    after = {"attn": "blocks.2.attn.ckpt_z", "mlp": "blocks.2.mlp.ckpt_mlp_out", "ln2": "blocks.2.ln2.ckpt_normalized"}
    _, plain = model.run_with_ckpts(other)
    reached = after[name.partition(".")[0]]
    assert not torch.equal(edited[reached], plain[reached])
    assert not torch.equal(edited["ln_final.ckpt_normalized"], plain["ln_final.ckpt_normalized"])
    if name in ("mlp.ckpt_post", "ln2.ckpt_scaled"):
        assert torch.equal(edited[reached], source[reached])


@torch.no_grad()
def test_an_edit_of_one_row_leaves_the_bits_of_the_others() -> None:
    model = llamas.glass()
    for name in ("attn.ckpt_pattern", "attn.ckpt_scores", "attn.ckpt_rot_q", "ln1.ckpt_scaled"):
        edited = model.run(ROWS, edits=[pl.Edit.scale(f"blocks.1.{name}", 0.5, rows=[0])])
        plain = model(ROWS)
        assert torch.equal(edited[1], plain[1]), name
        assert not torch.equal(edited[0][-3:], plain[0][-3:]), name


def test_a_nan_is_not_hidden() -> None:
    fused, explicit = llamas.glass(), llamas.glass(attention="eager")
    for model in (fused, explicit):
        with torch.no_grad():
            model.blocks[1].attn.W_K[1, 3, 4] = torch.nan
    with torch.no_grad():
        given = [model(ROWS).isnan() for model in (fused, explicit)]
    assert given[0].any()
    assert torch.equal(*given)
    fused = llamas.glass()
    edit = pl.Edit.replace("blocks.1.attn.ckpt_rot_q", torch.nan, heads=[0])
    assert fused.run(ROWS, edits=[edit]).isnan().any()


def test_other_names() -> None:
    model = llamas.glass()
    for alias, name in (
        ("model.layers.1.mlp", "blocks.1.mlp.ckpt_mlp_out"), ("layers.2.self_attn", "blocks.2.attn.ckpt_attn_out"),
        ("blocks.0.attn.hook_rot_q", "blocks.0.attn.ckpt_rot_q"), ("blocks.0.mlp.hook_pre", "blocks.0.mlp.ckpt_gate"),
        ("blocks.0.mlp.hook_pre_linear", "blocks.0.mlp.ckpt_up"), (("rot_k", 0), "blocks.0.attn.ckpt_rot_k"),
        ("model.norm", "ln_final.ckpt_normalized"), ("model.embed_tokens", "ckpt_embed"),
    ):  # fmt: skip
        assert [*model.run_with_ckpts(ROWS, names=[alias])[1]] == [name]
    for refused in ("model.layers.0.self_attn.q_proj", "blocks.0.ln1.hook_scale", "model.rotary_emb"):
        with pytest.raises(pl.UnknownNameError, match="not the same value"):
            model.run_with_ckpts(ROWS, names=[refused])
    for missing in ("ckpt_pos_embed", "blocks.0.mlp.ckpt_pre", "transformer.h.0.mlp"):
        with pytest.raises(pl.UnknownNameError):
            model.run_with_ckpts(ROWS, names=missing)


def test_attributes_of_other_libraries_name_what_is_there() -> None:
    """Each remedy is a place of this model: what it names by `model.` exists."""
    model = llamas.glass()
    for owner, name in (
        (model, "wpe"), (model, "embed_tokens"), (model, "layers"), (model, "norm"), (model, "transformer"),
        (model.blocks[1], "self_attn"), (model.blocks[1].attn, "q_proj"), (model.blocks[1].attn, "OV"),
        (model.blocks[1].attn, "QK"), (model.blocks[1].mlp, "gate_proj"), (model.blocks[1].mlp, "hook_pre"),
        (model.blocks[1].ln1, "variance_epsilon"), (model.blocks[0].ln1, "weight"),
    ):  # fmt: skip
        with pytest.raises(pl.UnknownAttributeError) as caught:
            getattr(owner, name)
        for place in re.findall(r"model\.[\w.\[\]]*\w\]?", caught.value.remedy):
            assert eval(place, {"model": model}) is not None, place
    with pytest.raises(AttributeError, match="no attribute 'c_attn'"):
        _ = model.blocks[0].attn.c_attn


# What is built on a model


def test_building_blocks() -> None:
    model = llamas.glass()
    config, x = model.config, torch.randn(2, 5, 24)
    weights = under("blocks.0", {name: parameter.detach() for name, parameter in model.named_parameters()})
    below = {place: under(place, weights) for place in ("ln1", "attn", "mlp")}
    with torch.no_grad():
        assert torch.equal(TransformerBlock(config, weights)(x), model.blocks[0](x))
        assert torch.equal(Attention(config, below["attn"])(x)[0], model.blocks[0].attn(x)[0])
        assert torch.equal(MLP(config, below["mlp"])(x), model.blocks[0].mlp(x))
        assert torch.equal(RMSNorm(config, below["ln1"])(x), model.blocks[0].ln1(x))
        ids = llamas.some_ids(2, 5)
        alone = Transformer(config, {n: p.detach() for n, p in model.named_parameters()})
        positions = torch.arange(5).expand(2, 5)
        assert torch.equal(alone.transform(Run(ids, positions)), model(ids))
    assert "rotary" in repr(alone)
