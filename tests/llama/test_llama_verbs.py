"""Llama by every verb: generation token for token, edits, measures, figures, the command line, copies."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import checks
import pytest
import torch
from typer.testing import CliRunner

import llamas
import pellucid as pl
from pellucid.cli import app
from pellucid.llama import MLP, Attention, RMSNorm, Transformer, TransformerBlock
from pellucid.network import Run
from pellucid.part import under

ROWS = llamas.ragged_ids(3, 9)
SAMPLER = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}


# Generation


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("case", ["one row", "several rows", "tied, as many keys as queries", "bfloat16, one key"])
def test_generated_tokens_are_transformers(case: str, cached: bool, sampled: bool) -> None:
    fields: dict[str, Any] = {}
    if case.startswith("tied"):
        fields = {"tie_word_embeddings": True, "num_key_value_heads": 6}
    if case.startswith("bfloat16"):
        fields = {"dtype": torch.bfloat16, "num_key_value_heads": 1}
    ours, hf = llamas.pair(**fields)
    rows = [ROWS[1]] if case == "one row" else llamas.ragged_ids(4, 9, 2)
    batch = ours.tokenize(rows)
    torch.manual_seed(7)
    theirs = hf.generate(
        batch.ids, attention_mask=batch.mask.long(), max_new_tokens=12, use_cache=cached, pad_token_id=0,
        do_sample=sampled, **(SAMPLER if sampled else {}),
    )  # fmt: skip
    out = ours.generate(
        rows, max_new_tokens=12, sampler=pl.Sampler(**SAMPLER) if sampled else None, seed=7, use_cache=cached
    )
    for row, text, full in zip(rows, out.ids, theirs.tolist(), strict=True):
        expected = full[batch.ids.size(1) - len(row) :]
        assert text.tolist() == expected[: len(text)]
        assert set(expected[len(text) :]) <= {0}, "it ended before transformers' did"


def test_beams_and_streams() -> None:
    ours, hf = llamas.pair()
    ids = torch.tensor([ROWS[1]])
    theirs = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=3, do_sample=False)
    assert ours.generate(ids, max_new_tokens=8, num_beams=3).ids.tolist() == theirs.tolist()
    streamed = [token.id for token in ours.stream(ids, max_new_tokens=8)]
    assert streamed == ours.generate(ids, max_new_tokens=8).ids[0, ids.size(1) :].tolist()


def test_generating_captures_and_edits() -> None:
    model = llamas.glass()
    edit = pl.Edit.scale("blocks.1.attn.ckpt_rot_k", 0.5, heads=[1])
    names = ["blocks.1.attn.ckpt_rot_k", "blocks.1.mlp.ckpt_gate", "blocks.2.attn.ckpt_pattern"]
    out = model.generate([ROWS[1]], max_new_tokens=5, names=names, edits=[edit])
    _, whole = model.run_with_ckpts(out.ids, names=names, edits=[edit])
    for name in names:
        assert out.ckpts[name].shape == whole[name].shape, name
        assert torch.allclose(out.ckpts[name], whole[name], atol=1e-5), name


@pytest.mark.parametrize("numerics", ["fast", "bfloat16"])
def test_other_numerics(numerics: str) -> None:
    hf = llamas.reference(attention_bias=True, mlp_bias=True)
    exact, other = pl.from_hf(hf), pl.from_hf(hf, numerics=numerics)
    with torch.no_grad():
        difference = float((exact(ROWS) - other(ROWS)).abs().max())
    assert difference < (1e-4 if numerics == "fast" else 1.0)
    assert (difference > 1e-4) is (numerics == "bfloat16")
    generated = other.generate(ROWS, max_new_tokens=5)
    assert len(generated.ids) == 2


# Captures and edits


def test_stops_and_starts() -> None:
    model = llamas.glass()
    logits, whole = model.run_with_ckpts(ROWS)
    _, first = model.run_with_ckpts(ROWS, stop_at="blocks.1.attn.ckpt_rot_q")
    assert [*first] == list(model.ckpt_names)[: len(first)]
    assert [*first][-1] == "blocks.1.attn.ckpt_rot_q"
    assert all(torch.equal(value, whole[name]) for name, value in first.items())
    begun = model.run(ROWS, start_at=("blocks.1.resid_pre", whole["blocks.1.resid_pre"]))
    assert torch.equal(begun, logits)


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


def test_snapshots_are_nobodys_else() -> None:
    checks.snapshots(llamas.glass(), ROWS)
    names = ["blocks.1.attn.ckpt_rot_k", "blocks.0.mlp.ckpt_up", "blocks.1.ln1.ckpt_scaled"]
    checks.hooks_go_on(llamas.glass(), ROWS, names)


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


def test_ties(tmp_path: Path) -> None:
    for tied in (False, True):
        ours, hf = llamas.pair(tie_word_embeddings=tied)
        hf.save_pretrained(tmp_path / str(tied))
        for given in (ours, hf, tmp_path / str(tied)):
            audit = pl.audit_ties(given)
            assert audit.after_reload.survives, given
            assert not audit.problems
    again = pl.audit_ties(tmp_path / "True").after_reload
    assert again.tied_after
    model = llamas.glass()
    pl.tie(model)
    assert model.unembed.tied
    assert model.config.tie_word_embeddings
    pl.untie(model)
    assert torch.equal(model.unembed.W_U.t(), model.embed.W_E)


def test_measures_and_figures() -> None:
    model = llamas.glass()
    _, ckpts = model.run_with_ckpts(llamas.ragged_ids(30, 40))
    norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
    assert norms.dims == ("layer", "batch", "pos")
    fit = pl.measure.autoregression(norms, lags=2, skip=1)
    assert [*fit.params.columns] == ["const", "lag1", "lag2"]
    scores = pl.measure.induction(model, length=10, texts=3)
    assert dict(scores.sizes) == {"layer": 3, "head": 6}
    data = ckpts.to_xarray()
    for drawn in (
        pl.plot.norms(norms, skip=1), pl.plot.autoregression(fit), pl.plot.head_scores(scores),
        pl.plot.attention(data["attn.ckpt_pattern"].isel(batch=1, layer=0, head=2)),
    ):  # fmt: skip
        assert drawn is not None


def test_copies_compute_the_same() -> None:
    model = llamas.glass(attention_bias=True)
    _, ckpts = model.run_with_ckpts(ROWS)
    with torch.no_grad():
        expected = model(ROWS)
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(made(ROWS), expected)
    again = pickle.loads(pickle.dumps(ckpts))
    assert all(torch.equal(again[name], value) for name, value in ckpts.items())


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


def test_the_command_line(tmp_path: Path) -> None:
    folder, kept = str(tmp_path / "model"), str(tmp_path / "c.safetensors")
    llamas.glass().save_pretrained(folder)
    ids = ["--ids", "5 6 7 8"]
    for arguments in (
        ["run", *ids, "-m", folder, "--names", "blocks.*.attn.ckpt_rot_k", "--save", kept],
        ["generate", *ids, "-m", folder, "--max-new-tokens", "4"],
        ["norms", "--ids", " ".join(map(str, range(3, 30))), "-m", folder, "--lags", "1"],
        ["ties", folder],
    ):
        result = CliRunner().invoke(app, [*arguments, "--json"], prog_name="pellucid", catch_exceptions=False)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        assert json.loads(result.stdout)
    assert len(pl.ActivationCkpts.load(kept)) == 3
