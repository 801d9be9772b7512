"""Every verb on a model of every family: what GPT-2's own tests say of it in detail holds of the others in outline."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import checks
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pellucid as pl
import samples
import support
from pellucid.cli import app
from samples import SAMPLES

ROWS = samples.ragged_ids(3, 9)
CLEAN, CORRUPTED = samples.some_ids(2, 7).tolist(), samples.some_ids(2, 7, seed=5).tolist()
METRIC = pl.metrics.logit_difference(5, 7)
SAMPLER = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}

KINDS = [(family, {}) for family in SAMPLES] + [
    ("gpt_neox", {"use_parallel_residual": False}), ("llama", {"attention_bias": True, "mlp_bias": True}),
]  # fmt: skip
every_kind = pytest.mark.parametrize(("family", "fields"), support.few_of(KINDS, *KINDS[:4]), ids=str)
every_family = pytest.mark.parametrize("family", SAMPLES)
every_table = pytest.mark.parametrize(("family", "fields"), support.few_of(KINDS, *KINDS[:3]), ids=str)
"""Of each family one: blocks in sequence have the same names, files and widths as parallel ones."""


@functools.cache
def _made(family: str, fields: tuple[Any, ...], dtype: torch.dtype) -> pl.CkptedTransformer:
    return samples.glass(family, dtype=dtype, **dict(fields))


def glass(family: str, fields: dict[str, Any]) -> pl.CkptedTransformer:
    """The same model for every test, which must not change it."""
    return _made(family, tuple(fields.items()), torch.float32)


def model64(family: str, fields: dict[str, Any]) -> pl.CkptedTransformer:
    return _made(family, tuple(fields.items()), torch.float64)


def metric_of(logits: torch.Tensor) -> float:
    return float((logits[:, -1, 5] - logits[:, -1, 7]).mean().detach())


# Generation


GENERATING = [
    *KINDS[:4],
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    ("llama", {"dtype": torch.bfloat16, "num_key_value_heads": 1}),
    ("gpt_neox", {"dtype": torch.bfloat16}),
]


@pytest.mark.parametrize(
    ("family", "fields", "cached", "sampled"),
    support.few_of(
        ((*kind, *way) for kind in GENERATING for way in itertools.product((False, True), repeat=2)),
        *((*kind, True, False) for kind in GENERATING), *((*kind, False, True) for kind in KINDS[:3]),
        ("llama", {}, True, True), ("llama", {}, False, False),
    ),
    ids=str,
)  # fmt: skip
def test_generated_tokens_are_transformers(family: str, fields: dict[str, Any], cached: bool, sampled: bool) -> None:
    ours, hf = samples.pair(family, **fields)
    rows = samples.ragged_ids(4, 9, 2)
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


@every_family
def test_beams_and_streams(family: str) -> None:
    ours, hf = samples.pair(family)
    ids = torch.tensor([ROWS[1]])
    theirs = hf.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, num_beams=3, do_sample=False, pad_token_id=0
    )
    assert ours.generate(ids, max_new_tokens=8, num_beams=3).ids.tolist() == theirs.tolist()
    streamed = [token.id for token in ours.stream(ids, max_new_tokens=8)]
    assert streamed == ours.generate(ids, max_new_tokens=8).ids[0, ids.size(1) :].tolist()


@every_kind
def test_generating_captures_and_edits(family: str, fields: dict[str, Any]) -> None:
    model = glass(family, fields)
    edit = pl.Edit.scale("blocks.1.attn.ckpt_v", 0.5, heads=[1])
    names = ["blocks.1.attn.ckpt_k", "blocks.1.mlp.ckpt_post", "blocks.2.attn.ckpt_pattern", "blocks.2.resid_post"]
    out = model.generate([ROWS[1]], max_new_tokens=5, names=names, edits=[edit])
    _, whole = model.run_with_ckpts(out.ids, names=names, edits=[edit])
    for name in names:
        assert out.ckpts[name].shape == whole[name].shape, name
        assert support.close(out.ckpts[name], whole[name], 1e-5), name


@pytest.mark.parametrize("numerics", ["fast", "bfloat16"])
@every_table
def test_other_numerics(family: str, fields: dict[str, Any], numerics: str) -> None:
    hf = samples.reference(family, **fields)
    exact, other = pl.from_hf(hf), pl.from_hf(hf, numerics=numerics)
    with torch.no_grad():
        difference = float((exact(ROWS) - other(ROWS)).abs().max())
    assert difference < (1e-4 if numerics == "fast" else 1.0)
    assert (difference > 1e-4) is (numerics == "bfloat16")
    assert len(other.generate(ROWS, max_new_tokens=5).ids) == 2


# Captures and edits


@every_kind
def test_stops_and_starts(family: str, fields: dict[str, Any]) -> None:
    model = glass(family, fields)
    logits, whole = model.run_with_ckpts(ROWS)
    for last in ("blocks.1.attn.ckpt_k", "blocks.1.ln2.ckpt_normalized", "blocks.2.resid_post"):
        _, first = model.run_with_ckpts(ROWS, stop_at=last)
        assert [*first] == list(model.ckpt_names)[: len(first)]
        assert [*first][-1] == last
        assert all(torch.equal(value, whole[name]) for name, value in first.items())
    begun = model.run(ROWS, start_at=("blocks.1.resid_pre", whole["blocks.1.resid_pre"]))
    assert torch.equal(begun, logits)


@every_kind
def test_every_value_takes_part(family: str, fields: dict[str, Any]) -> None:
    """A value of another run, put in at any checkpoint, is there, changes what comes out and nothing before."""
    model = samples.glass(family, attention="eager", **fields)
    clean, other = samples.some_ids(1, 7), samples.some_ids(1, 7, seed=5)
    _, source = model.run_with_ckpts(clean)
    _, plain = model.run_with_ckpts(other)
    last = model.ckpt_names[-1]
    for number, name in enumerate(model.ckpt_names):
        _, edited = model.run_with_ckpts(other, edits=[pl.Edit.patch(name, source)])
        assert torch.equal(edited[name], source[name]), name
        if name not in ("ckpt_pos_embed", last):  # positions are the same in every text
            assert not torch.equal(edited[last], plain[last]), name
        for earlier in model.ckpt_names[:number]:
            assert torch.equal(edited[earlier], plain[earlier]), (name, earlier)


@every_kind
@torch.no_grad()
def test_an_edit_of_one_row_leaves_the_bits_of_the_others(family: str, fields: dict[str, Any]) -> None:
    model = glass(family, fields)
    plain = model(ROWS)
    for name in ("attn.ckpt_pattern", "attn.ckpt_scores", "attn.ckpt_q", "ln1.ckpt_scaled", "mlp.ckpt_post"):
        edited = model.run(ROWS, edits=[pl.Edit.scale(f"blocks.1.{name}", 0.5, rows=[0])])
        assert torch.equal(edited[1], plain[1]), name
        assert not torch.equal(edited[0][-3:], plain[0][-3:]), name


@every_kind
def test_snapshots_are_nobodys_else(family: str, fields: dict[str, Any]) -> None:
    checks.snapshots(glass(family, fields), ROWS)
    names = ["blocks.1.attn.ckpt_k", "blocks.0.mlp.ckpt_post", "blocks.1.ln1.ckpt_scaled"]
    checks.hooks_go_on(glass(family, fields), ROWS, names)


@every_family
def test_a_nan_is_not_hidden(family: str) -> None:
    fused, explicit = (samples.glass(family, attention=kind) for kind in ("auto", "eager"))
    with torch.no_grad():
        for model in (fused, explicit):
            model.blocks[1].attn.W_K[1, 3, 4] = torch.nan
        given = [model(ROWS).isnan() for model in (fused, explicit)]
    assert given[0].any()
    assert torch.equal(*given)
    edit = pl.Edit.replace("blocks.1.attn.ckpt_q", torch.nan, heads=[0])
    assert samples.glass(family).run(ROWS, edits=[edit]).isnan().any()


# Weights


@every_table
def test_folders(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """What transformers saves is opened, what is saved here transformers opens, and both files hold the same."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    for tied in (False, True):
        ours, hf = samples.pair(family, **fields, tie_word_embeddings=tied)
        mine, theirs = tmp_path / f"mine{tied}", tmp_path / f"theirs{tied}"
        ours.save_pretrained(mine)
        hf.save_pretrained(theirs)
        stored = [load_file(folder / "model.safetensors") for folder in (mine, theirs)]
        assert {n: t.tolist() for n, t in stored[0].items()} == {n: t.tolist() for n, t in stored[1].items()}
        again = AutoModelForCausalLM.from_pretrained(mine)
        assert type(again) is type(hf)
        ids = samples.some_ids(2, 9)
        with torch.no_grad():
            expected = hf(ids).logits
            for one in (pl.load(mine), pl.load(theirs), pl.load(hf.state_dict(), config=ours.config)):
                assert torch.equal(one(ids), expected)
                assert one.provenance["layout"] == "hf"
                assert one.unembed.tied is tied
            assert torch.equal(again(ids).logits, expected)
            assert torch.equal(pl.to_hf(ours)(ids).logits, expected)
        for given in (ours, hf, mine, theirs):
            audit = pl.audit_ties(given)
            assert audit.after_reload.survives, given
            assert not audit.problems
            assert audit.after_reload.tied_after is tied
        (pl.untie if tied else pl.tie)(ours)
        assert ours.unembed.tied is not tied


@every_kind
def test_state_dicts_of_ours(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model, ids = glass(family, fields), samples.some_ids(2, 9)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    fresh = pl.CkptedTransformer(model.config)
    strides = [{n: t.stride() for n, t in one.state_dict().items()} for one in (fresh, model)]
    assert strides[0] == strides[1]
    with torch.no_grad():
        for given in (model.state_dict(), tmp_path / "own.pt"):
            opened = pl.load(given, config=model.config)
            assert opened.provenance["layout"] == "pellucid"
            assert torch.equal(opened(ids), model(ids))
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(made(ids), model(ids))


@pytest.mark.parametrize(
    ("family", "dtype"),
    support.few_of(
        itertools.product(SAMPLES, ["bfloat16", "float16", "float64"]),
        *((family, "bfloat16") for family in SAMPLES), ("llama", "float16"), ("llama", "float64"),
    ),
)  # fmt: skip
def test_dtypes(family: str, dtype: str, tmp_path: Path) -> None:
    """Opened in a dtype, frequencies are whole; converted to it, they are rounded: as in transformers."""
    from transformers import AutoModelForCausalLM

    samples.reference(family).save_pretrained(tmp_path)
    as_torch, ids = getattr(torch, dtype), samples.some_ids(2, 9)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).to(as_torch)
    with torch.no_grad():
        for ours, hf in (
            (pl.load(tmp_path, dtype=dtype), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=as_torch)),
            (pl.load(tmp_path).to(as_torch), converted), (pl.from_hf(converted), converted),
        ):  # fmt: skip
            assert torch.equal(ours(ids), hf(ids).logits)
            assert torch.equal(pl.to_hf(ours)(ids).logits, hf(ids).logits)


@every_family
def test_the_sizes_that_the_weights_show_are_the_remedy(family: str) -> None:
    ours, hf = samples.pair(family)
    field = ours.config.blocks_field
    wrong = ours.config.replace(**{field: 2})
    with pytest.raises(pl.WeightsError, match="do not fit") as caught:
        pl.load(hf.state_dict(), config=wrong)
    said = eval(caught.value.remedy.split("config=", 1)[1].split("}", 1)[0] + "}")
    assert said == {field: 3}
    with torch.no_grad():
        ids = samples.some_ids(2, 9)
        assert torch.equal(pl.load(hf.state_dict(), config={**wrong.to_dict(), **said})(ids), hf(ids).logits)


@every_family
def test_weights_of_another_family_are_refused(family: str) -> None:
    config = samples.shared(family).config
    for other in set(SAMPLES) - {family}:
        with pytest.raises(pl.WeightsError, match="another architecture") as caught:
            pl.load(samples.reference(other).state_dict(), config=config)
        assert caught.value.code == "weights-foreign"


# Comparison


@every_table
def test_comparisons(family: str, fields: dict[str, Any]) -> None:
    ours, hf = samples.pair(family, **fields)
    ids = samples.some_ids(2, 7)
    report = pl.compare(ours, hf, ids)
    assert report.verdict == "identical", report
    assert not [note for note in report.notes if "something else" in note]
    changed = copy.deepcopy(ours)
    with torch.no_grad():
        changed.blocks[1].mlp.W_out[3, 4] += 0.5
    report = pl.compare(changed, hf, ids)
    assert report.verdict == "different"
    assert report.first_divergence.where == "blocks.1.mlp.W_out"


# What is built on captures


@every_table
def test_measures_and_figures(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = glass(family, fields)
    _, ckpts = model.run_with_ckpts(samples.ragged_ids(30, 40))
    norms = pl.measure.norms(ckpts, "attn.ckpt_attn_out", log=True)
    assert norms.dims == ("layer", "batch", "pos")
    fit = pl.measure.autoregression(norms, lags=2, skip=1)
    assert [*fit.params.columns] == ["const", "lag1", "lag2"]
    scores = pl.measure.induction(model, length=10, texts=3)
    assert dict(scores.sizes) == {"layer": 3, "head": model.schema.sizes["head"]}
    data = ckpts.to_xarray()
    assert set(data) == {re.sub(r"^blocks\.\d+\.", "", name) for name in model.ckpt_names}
    for drawn in (
        pl.plot.norms(norms, skip=1), pl.plot.autoregression(fit), pl.plot.head_scores(scores),
        pl.plot.attention(data["attn.ckpt_pattern"].isel(batch=1, layer=0, head=2)),
    ):  # fmt: skip
        assert drawn is not None
    ckpts.save(tmp_path / "c.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "c.safetensors")
    assert list(again) == list(ckpts)
    assert all(torch.equal(again[name], value) for name, value in ckpts.items())
    assert again.schema.family == family
    assert pl.estimate(model, samples.ragged_ids(30, 40)).nbytes == ckpts.nbytes


@every_table
def test_streamed_statistics(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """They are those of all values at once, also when they go on from a file."""
    model, rows = glass(family, fields), samples.ragged_ids(3, 9, 5, 7)
    wanted = [pl.measure.Moments("resid_post", of="norm"), pl.measure.Covariance("attn.ckpt_k")]
    moments, covariance = pl.measure.stream(model, rows, wanted, batch_size=2)
    _, ckpts = model.run_with_ckpts(rows)
    norms = ckpts.stack("resid_post").double().norm(dim=-1)[:, ckpts.batch.mask]
    np.testing.assert_allclose(moments["mean"], norms.mean(1), rtol=1e-5)
    keys = ckpts.stack("attn.ckpt_k").double()[:, ckpts.batch.mask]
    assert covariance.shape == (3, *keys.shape[2:], keys.shape[-1])
    np.testing.assert_allclose(covariance[1, 0], keys[1, :, 0].T.cov(correction=0), rtol=1e-4, atol=1e-6)
    file = tmp_path / "state"
    pl.measure.stream(model, rows[:2], wanted, batch_size=2, checkpoint=file)
    again = pl.measure.stream(model, rows, wanted, batch_size=2, checkpoint=file)
    assert again[1].equals(covariance)


SWEPT = [("resid_pre", ("layer", "pos")), ("attn.ckpt_z", ("layer", "head")), ("attn.ckpt_k", ("layer", "head")),
         ("mlp.ckpt_post", ("layer",)), ("ln2.ckpt_normalized", ("layer", "pos"))]  # fmt: skip


@every_kind
def test_sweeps_and_ablations(family: str, fields: dict[str, Any]) -> None:
    """A cell of each is the run with that edit."""
    model = model64(family, fields)
    _, source = model.run_with_ckpts(CLEAN)
    for name, over in SWEPT:
        swept = pl.patching.sweep(model, CLEAN, CORRUPTED, name, over=over, metric=METRIC)
        places = {"pos": 3, "head": 1} if "pos" in over else {"head": 1}
        where = {axis: place for axis, place in {"layer": 2, **places}.items() if axis in over}
        part = {"pos": [3]} if "pos" in over else {"heads": [1]} if "head" in over else {}
        logits = model.run(CORRUPTED, edits=[pl.Edit.patch(f"blocks.2.{name}", source, **part)])
        assert float(swept.isel(where)) == pytest.approx(metric_of(logits), abs=1e-10), name
    ablated = pl.patching.ablate(model, CLEAN, "attn.ckpt_z", over=("layer", "head"), how="zero", metric=METRIC)
    logits = model.run(CLEAN, edits=[pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2])])
    assert float(ablated[1, 2]) == pytest.approx(metric_of(logits), abs=1e-10)


@every_kind
def test_paths_and_edges(family: str, fields: dict[str, Any]) -> None:
    """The direct effect of the last MLP is that of its output on the last norm; of what comes later there is none."""
    model = model64(family, fields)
    path = pl.patching.path(
        model, CLEAN, CORRUPTED, senders=("mlp.ckpt_mlp_out", {"layer": 2}), receivers="logits", metric=METRIC
    )
    _, source = model.run_with_ckpts(CLEAN)
    _, base = model.run_with_ckpts(CORRUPTED)
    moved = source["blocks.2.mlp.ckpt_mlp_out"] - base["blocks.2.mlp.ckpt_mlp_out"]
    stream = pl.Edit.replace("blocks.2.resid_post", base["blocks.2.resid_post"] + moved)
    expected = metric_of(model.run(CORRUPTED, edits=[stream]))
    assert float(path) == pytest.approx(expected, abs=1e-10)
    scores = pl.attribution.edges(model, CLEAN, CORRUPTED, metric=METRIC)
    heads = model.schema.sizes["head"]
    assert scores.sizes["sender"] == 1 + 3 * (heads + 1)
    same_block = np.isnan(scores.sel(sender="blocks.1.attn[0]", receiver="blocks.1.mlp").item())
    assert same_block == ("blocks.1.resid_mid" not in model.schema)
    assert np.isfinite(scores.sel(sender="blocks.0.mlp", receiver="blocks.1.attn.q[0]").item())


@every_kind
def test_gradients_are_torchs(family: str, fields: dict[str, Any]) -> None:
    """The estimate of each head is the gradient in the base run times what the source moves it by."""
    model, name = model64(family, fields), "attn.ckpt_z"
    estimate = pl.attribution.gradient(model, CLEAN, CORRUPTED, name, over=("layer", "head"), metric=METRIC)
    _, source = model.run_with_ckpts(CLEAN)
    logits, base = model.run_with_ckpts(CORRUPTED, grads=True)
    (logits[:, -1, 5] - logits[:, -1, 7]).mean().backward()
    for layer in range(3):
        value = base[f"blocks.{layer}.{name}"]
        expected = (value.grad * (source[f"blocks.{layer}.{name}"] - value).detach()).sum((0, 1, 3))
        np.testing.assert_allclose(estimate.values[layer], expected.numpy(), atol=1e-10)
    model.zero_grad()


@pytest.mark.parametrize("by", ["component", "head", "neuron", "block"])
@every_kind
def test_parts_of_a_logit_add_up(family: str, fields: dict[str, Any], by: Any) -> None:
    model = model64(family, fields)
    logits, ckpts = model.run_with_ckpts(ROWS)
    parts = pl.attribution.direct(ckpts, 7, by=by)
    mask = ckpts.batch.mask
    total, given = torch.tensor(parts.sum("component").values)[mask], logits.detach()[mask][:, 7]
    assert torch.allclose(total, given, atol=1e-5 if family == "llama" else 1e-10)  # RMSNorm is taken in float32
    inner = pl.attribution.direct(
        ckpts, torch.ones(model.schema.sizes["d_model"]).double(), by=by, at="blocks.1.ln2.ckpt_normalized"
    )
    expected = ckpts["blocks.1.ln2.ckpt_normalized"].sum(-1)[mask]
    found = torch.tensor(inner.sum("component").values)[mask]
    assert torch.allclose(found, expected, atol=1e-5 if family == "llama" else 1e-10)
    written = {name.split("[")[0] for name in inner.coords["component"].values.tolist()}
    own = {"component": "blocks.1.attn", "head": "blocks.1.attn", "neuron": "blocks.1.attn", "block": "blocks.1"}[by]
    assert (own in written) == ("blocks.1.resid_mid" in model.schema), "the MLP reads what attention of its block added"
    assert "blocks.1.mlp" not in written


@every_kind
def test_lenses_and_sources(family: str, fields: dict[str, Any]) -> None:
    model = glass(family, fields)
    logits, ckpts = model.run_with_ckpts(ROWS)
    assert torch.equal(pl.lens.logit(ckpts).logits(2), logits)
    wide = model64(family, fields).run_with_ckpts(ROWS)[1]
    heads = pl.attribution.direct(wide, 7, by="head")
    sources = pl.attribution.sources(wide, 7)
    for head in ("blocks.1.attn[0]", "blocks.2.attn[2]"):
        found = sources.sel(component=head).sum("key").values[-1]
        np.testing.assert_allclose(found, heads.sel(component=head).values[-1], atol=1e-10)


@every_family
def test_the_command_line(family: str, tmp_path: Path) -> None:
    folder, kept = str(tmp_path / "model"), str(tmp_path / "c.safetensors")
    samples.glass(family).save_pretrained(folder)
    ids = ["--ids", "5 6 7 8"]
    for arguments in (
        ["run", *ids, "-m", folder, "--names", "blocks.*.attn.ckpt_k", "--save", kept],
        ["generate", *ids, "-m", folder, "--max-new-tokens", "4"],
        ["norms", "--ids", " ".join(map(str, range(3, 30))), "-m", folder, "--lags", "1"],
        ["ties", folder],
        ["compare", folder, f"hf:{folder}", *ids],
    ):
        result = CliRunner().invoke(app, [*arguments, "--json"], prog_name="pellucid", catch_exceptions=False)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        assert json.loads(result.stdout)
    assert len(pl.ActivationCkpts.load(kept)) == 3


CLEAN_TEXT, CORRUPTED_TEXT = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
TOKENS = ("--token", " ball", "--against", " cat")


@every_table
def test_verbs_of_texts(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """What the command line says is what the library says of the folder."""
    model, folder = samples.glass(family, vocab_size=4096, **fields), str(tmp_path)
    model.tokenizer = pl.load().tokenizer
    model.save_pretrained(folder)

    def said(*arguments: str) -> Any:
        given = [*arguments, "-m", folder, "--json"]
        result = CliRunner().invoke(app, given, prog_name="pellucid", catch_exceptions=False)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        return json.loads(result.stdout)

    metric = pl.metrics.logit_difference(" ball", " cat")
    for name, over in (("attn.ckpt_k", "layer,head"), ("resid_pre", "layer,pos")):
        swept = pl.patching.sweep(
            model, CLEAN_TEXT, CORRUPTED_TEXT, name, over=tuple(over.split(",")), metric=metric
        )  # fmt: skip
        found = said("patch", CLEAN_TEXT, CORRUPTED_TEXT, *TOKENS, "--names", name, "--over", over)
        np.testing.assert_array_equal(found["values"], swept.values)
    _, ckpts = model.run_with_ckpts(CLEAN_TEXT)
    parts = pl.attribution.direct(ckpts, (" ball", " cat"), by="head")[:, 0, -1]
    attributed = said("attribute", CLEAN_TEXT, *TOKENS, "--by", "head")["parts"]
    assert {part["component"]: part["value"] for part in attributed} == parts.to_series().to_dict()
    ranks = pl.lens.logit(ckpts).rank(" ball")[:, 0, -1]
    assert [layer["rank"] for layer in said("lens", CLEAN_TEXT, "--token", " ball")["layers"]] == ranks.values.tolist()
    again = "the cat and the cat"
    scores = pl.heads.scores(model, again)
    for found in said("heads", again)["heads"]:
        head = scores.isel(layer=found["layer"], head=found["head"])
        assert {name: found[name] for name in scores} == {name: float(head[name]) for name in scores}


@every_kind
def test_circuits_by_whole_runs(family: str, fields: dict[str, Any]) -> None:
    """What is outside a circuit of heads and MLPs has the value of the other run."""
    model = model64(family, fields)
    inside = {"blocks.0.attn[1]", "blocks.1.mlp", "blocks.2.attn[0]", "blocks.2.mlp"}
    found = pl.circuits.evaluate(
        model, pl.circuits.Circuit(nodes=sorted(inside)), CLEAN, CORRUPTED, metric=METRIC, value="resample", subsets=1,
        random=0,
    )  # fmt: skip
    _, other = model.run_with_ckpts(CORRUPTED)
    edits = []
    for block in range(3):
        for head in range(model.schema.sizes["head"]):
            if f"blocks.{block}.attn[{head}]" not in inside:
                edits.append(pl.Edit.patch(f"blocks.{block}.attn.ckpt_z", other, heads=[head]))
        if f"blocks.{block}.mlp" not in inside:
            edits.append(pl.Edit.patch(f"blocks.{block}.mlp.ckpt_mlp_out", other))
    whole, nothing, left = (
        metric_of(model.run(ids, edits=made)) for ids, made in ((CLEAN, []), (CORRUPTED, []), (CLEAN, edits))
    )
    tolerance = 1e-5 if family == "llama" else 1e-10  # RMSNorm is taken in float32
    assert found.left == pytest.approx(left, abs=tolerance)
    assert found.faithfulness == pytest.approx((left - nothing) / (whole - nothing), abs=10 * tolerance)
    assert abs(left - whole) > 1e-3
