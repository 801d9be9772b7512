"""A trace holds the numbers of its run: each block is compared with the verb that says the same, for every family."""

from __future__ import annotations

import functools
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pellucid as pl
import samples
import support
from pellucid.viewer import Trace, trace, trace_of
from pellucid.viewer.container import ALWAYS
from pellucid.weights.hub import BUNDLED

IDS = [[5, 9, 5, 17, 9, 5, 30]]
KINDS = [("gpt2", {}), ("llama", {}), ("gpt_neox", {}), ("gpt_neox", {"use_parallel_residual": False})]
every_kind = pytest.mark.parametrize("kind", range(len(KINDS)), ids=lambda i: f"{KINDS[i][0]} {KINDS[i][1]}")


@functools.cache
def model_of(kind: int) -> pl.CkptedTransformer:
    family, fields = KINDS[kind]
    return samples.glass(family, **fields)


@functools.cache
def made(kind: int) -> tuple[Trace, pl.ActivationCkpts]:
    """A trace that has been bytes, and the captures of the same run."""
    model = model_of(kind)
    return Trace.from_bytes(trace(model, IDS).to_bytes()), model.run_with_ckpts(IDS)[1]


def lower(values: Any) -> np.ndarray[Any, Any]:
    rows, columns = np.tril_indices(values.shape[-1])
    return np.asarray(values)[..., rows, columns]


def near(given: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(given, float), np.asarray(expected, float), tolerance, tolerance)


@every_kind
def test_attention(kind: int) -> None:
    made_, ckpts = made(kind)
    pattern = ckpts.stack("attn.ckpt_pattern")[:, 0].numpy()
    stored = made_["attention.pattern"]
    assert stored.layout == "lower"
    assert np.abs(np.sqrt(stored.values) - np.sqrt(lower(pattern))).max() <= 0.5 / 255 + 1e-7
    scores = pl.heads.scores(model_of(kind), IDS)
    measures = made_["attention.measures"]
    for name, row in zip(measures.about["of"], measures.data, strict=True):
        near(row, pl.measure.entropy(ckpts) / math.log(2) if name == "entropy" else scores[name])
    assert len({row.tobytes() for row in measures.data}) == 5


@every_kind
def test_scores_are_queries_times_keys_times_the_scale(kind: int) -> None:
    made_, ckpts = made(kind)
    q, k = made_["attention.q"].data, made_["attention.k"].data
    k = np.repeat(k, q.shape[2] // k.shape[2], 2)
    scale = np.asarray(made_.header["attention"]["scale"])[:, None, None, None]
    scores = np.einsum("lqhd,lkhd->lhqk", q, k) * scale
    near(lower(scores), lower(ckpts.stack("attn.ckpt_scores")[:, 0]), 2e-4)


@every_kind
def test_norms_of_values_are_those_of_what_heads_write(kind: int) -> None:
    made_, ckpts = made(kind)
    model = model_of(kind)
    for layer, norms in enumerate(made_["attention.value_norm"].data):
        W_O, v = model.parameter(f"blocks.{layer}.attn.W_O").detach(), ckpts[f"blocks.{layer}.attn.ckpt_v"][0]
        for head in range(len(W_O)):
            near(norms[head], (v[:, head * v.size(1) // len(W_O)] @ W_O[head]).norm(dim=-1))


@every_kind
def test_norms(kind: int) -> None:
    made_, ckpts = made(kind)
    block = made_["norms"]
    assert ("resid_mid" in block.about["of"]) == ("resid_mid" in {p.name for p in ckpts.schema.blocks[0]})
    for name, row in zip(block.about["of"], block.data, strict=True):
        place = {"attn_out": "attn.ckpt_attn_out", "mlp_out": "mlp.ckpt_mlp_out"}.get(name, name)
        near(row, pl.measure.norms(ckpts, place).values[:, 0])


@every_kind
def test_the_prediction_is_the_run_s_to_the_bit(kind: int) -> None:
    made_, _ = made(kind)
    with torch.no_grad():
        logits = model_of(kind)(IDS)[0]
    assert (made_["prediction.logits"].data == logits[-1].numpy()).all()
    top = logits.double().log_softmax(-1).topk(20)
    assert (made_["prediction.top.ids"].data == top.indices.numpy()).all()
    near(made_["prediction.top.logprobs"].data, top.values)
    assert made_.header["target"]["id"] == int(logits[-1].argmax())
    assert set(made_.header["vocabulary"]) >= {str(i) for i in top.indices.ravel().tolist()}


@every_kind
def test_the_lens_is_the_logit_lens(kind: int) -> None:
    made_, ckpts = made(kind)
    target = made_.header["target"]["id"]
    nexts = [*IDS[0][1:], target]
    first, after = pl.lens.logit(ckpts, "blocks.0.resid_pre"), pl.lens.logit(ckpts)
    for rows, lens in ((slice(0, 1), first), (slice(1, None), after)):
        listed = lens.top(10)
        assert (made_["lens.ids"].data[rows] == listed.values.reshape(-1, len(nexts), 10)).all()
        near(made_["lens.logprobs"].data[rows], listed.logprob.values.reshape(-1, len(nexts), 10))
        near(made_["lens.kl"].data[rows], lens.kl().values.reshape(-1, len(nexts)), 1e-4)
        near(made_["lens.rank"].data[rows], lens.rank(target).values.reshape(-1, len(nexts)))
        near(made_["lens.target_logprob"].data[rows], lens.logprobs(target).values.reshape(-1, len(nexts)))
        for pos, token in enumerate(nexts):
            near(made_["lens.next_rank"].data[rows, pos], lens.rank(token).values.reshape(-1, len(nexts))[:, pos])
            near(made_["lens.next_logprob"].data[rows, pos], lens.logprobs(token).values.reshape(-1, 7)[:, pos])
    logits = after.logits(0)[0].double()
    near(made_["lens.entropy"].data[1], torch.distributions.Categorical(logits=logits).entropy() / math.log(2))


@every_kind
def test_who_wrote_the_target_s_logit(kind: int) -> None:
    made_, ckpts = made(kind)
    target = made_.header["target"]
    parts = pl.attribution.direct(ckpts, target["id"], by="head").values[:, 0, target["pos"]]
    assert (made_["attribution.components"].data == parts).all()
    names = made_["attribution.components"].about["of"]
    with torch.no_grad():
        logit = float(model_of(kind)(IDS)[0, -1, target["id"]])
    assert float(made_["attribution.logit"].data[0]) == logit
    assert abs(parts.sum() - logit) < 1e-4
    sources = made_["attribution.sources"].data
    heads = [parts[names.index(f"blocks.{i}.attn[{h}]")] for i, h in np.ndindex(*sources.shape[:2])]
    near(sources.sum(-1).ravel(), heads, 1e-5)


@every_kind
def test_neurons_and_what_they_add(kind: int) -> None:
    made_, ckpts = made(kind)
    post = ckpts.stack("mlp.ckpt_post")[:, 0]
    assert (made_["neurons.post"].data == post.numpy().astype("f2")).all()
    before = made_["neurons.pre"].about["of"]
    assert before == ("mlp.ckpt_gate" if KINDS[kind][0] == "llama" else "mlp.ckpt_pre")
    assert (made_["neurons.pre"].data == ckpts.stack(before)[:, 0].numpy().astype("f2")).all()
    parts = pl.attribution.direct(ckpts, made_.header["target"]["id"], by="neuron").values[:, 0, -1]
    names = pl.attribution.direct(ckpts, 1, by="neuron").component.values.tolist()
    for layer, effects in enumerate(made_["neurons.effect"].data):
        first = names.index(f"blocks.{layer}.mlp[0]")
        near(effects * post[layer, -1].numpy(), parts[first : first + len(effects)], 1e-5)


@every_kind
def test_the_atlas_holds_every_checkpoint(kind: int) -> None:
    made_, ckpts = made(kind)
    assert [name.removeprefix("atlas.") for name in sorted(made_) if name.startswith("atlas.")] == sorted(ckpts)
    for name, value in ckpts.items():
        block, expected = made_[f"atlas.{name}"], value[0].numpy()
        if block.layout == "lower":
            expected = lower(expected)
        if name.endswith("ckpt_pattern"):
            near(np.sqrt(block.values), np.sqrt(expected), 0.51 / 255)
        else:
            assert (block.data == expected.astype("f2")).all(), name


@every_kind
def test_the_scatter_keeps_distances_along_its_directions(kind: int) -> None:
    made_, ckpts = made(kind)
    block = made_["embeddings.pca"]
    assert len(block.about["of"]) == len(block.data) == ckpts.n_layer + 2
    for name, points, shares in zip(block.about["of"], block.data, block.about["of_variance"], strict=True):
        vectors = ckpts[name][0].double()
        total = (vectors - vectors.mean(0)).square().sum()
        near((points.astype(float) ** 2).sum(0), np.asarray(shares) * float(total), 1e-5)
        assert shares == sorted(shares, reverse=True)
        values = torch.linalg.eigvalsh((vectors - vectors.mean(0)) @ (vectors - vectors.mean(0)).T).flip(0)[:3]
        near((points.astype(float) ** 2).sum(0), values, 1e-4)


@every_kind
def test_histograms_around_each_norm(kind: int) -> None:
    made_, ckpts = made(kind)
    edges, counts = made_["distributions.edges"].data, made_["distributions.counts"]
    norms = [name.removesuffix(".ckpt_normalized") for name in ckpts if name.endswith(".ckpt_normalized")]
    assert counts.about["of"] == norms
    parallel = "resid_mid" not in {p.name for p in ckpts.schema.blocks[0]}
    inputs = {"ln1": "resid_pre", "ln2": "resid_pre" if parallel else "resid_mid"}
    for row, norm in enumerate(norms):
        *block, kind_ = norm.split(".")
        before = f"blocks.{ckpts.n_layer - 1}.resid_post" if not block else ".".join([*block, inputs[kind_]])
        for side, name in enumerate((before, f"{norm}.ckpt_normalized")):
            values = ckpts[name].double().numpy().ravel()
            near([edges[side, row, 0], edges[side, row, -1]], np.quantile(values, [0.0025, 0.9975]))
            total, clipped = counts.about["total"][side][row], counts.about["clipped"][side][row]
            assert total == values.size
            assert clipped == total - counts.data[side, row].sum()
            assert 0 < clipped <= math.ceil(0.005 * total) + 1


def test_dimensions_that_lie_apart_are_named(glass: pl.CkptedTransformer) -> None:
    edit = pl.Edit.add("blocks.0.resid_pre", 300.0, neurons=[11])
    counts = trace(glass, IDS, edits=[edit])["distributions.counts"]
    found = counts.about["outliers"][0][counts.about["of"].index("blocks.0.ln1")]
    assert found[0]["dimension"] == 11
    assert abs(found[0]["mean_abs"] - 300) < 5
    _, ckpts = glass.run_with_ckpts(IDS, edits=[edit])
    measured = pl.measure.outliers(ckpts, "blocks.0.resid_pre").outlier.values.ravel()
    assert sorted(one["dimension"] for one in found) == np.flatnonzero(measured).tolist()


@every_kind
def test_the_header_says_what_the_schema_says(kind: int) -> None:
    made_, ckpts = made(kind)
    header = made_.header
    for said, point in zip(header["schema"]["points"], ckpts.schema.points, strict=True):
        assert (said["name"], said["meaning"], said["equation"], said["unit"], said["computed"]) == (
            point.name, point.meaning, point.equation, point.unit, point.computed,
        )  # fmt: skip
        assert said["shape"] == list(ckpts[point.name].shape)
        assert (
            ".".join(["blocks", str(said["block"]), said["short"]][2 if said["block"] is None else 0 :]) == point.name
        )
    assert [token["id"] for token in header["tokens"]] == IDS[0]
    assert header["model"]["sizes"] == dict(ckpts.schema.sizes)
    assert header["model"]["fingerprint"] == f"sha256:{ckpts.provenance['weights']}"


# Runs that were captured


def same(first: Trace, second: Trace, *, but: tuple[str, ...] = ()) -> None:
    assert set(first) == set(second)
    assert {k: v for k, v in first.header.items() if k != "run"} == {
        k: v for k, v in second.header.items() if k != "run"
    }
    for name in first:
        if name not in but:
            assert first[name].data.tobytes() == second[name].data.tobytes(), name


PARTS: list[dict[str, Any]] = [
    {"names": "attn.ckpt_q", "heads": [1]}, {"pos": [-1]}, {"names": "resid_post"}, {"names": "attn.ckpt_scores"}, {},
]  # fmt: skip


@pytest.mark.parametrize("part", support.few_of(PARTS, *PARTS[:2]), ids=str)
def test_what_was_not_captured_is_captured_anew(glass: pl.CkptedTransformer, part: dict[str, Any]) -> None:
    same(trace_of(glass.run_with_ckpts(IDS, **part)[1]), trace(glass, IDS))


def test_a_saved_run_needs_its_model(glass: pl.CkptedTransformer, tmp_path: Any) -> None:
    _, ckpts = glass.run_with_ckpts(IDS, names="resid_post")
    ckpts.save(tmp_path / "run.safetensors")
    read = pl.ActivationCkpts.load(tmp_path / "run.safetensors")
    with pytest.raises(pl.InputError) as refused:
        trace_of(read)
    assert refused.value.code == "captures-without-model"
    same(trace_of(read, model=glass), trace(glass, IDS))


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_of_several_texts_is_that_of_its_run(glass: pl.CkptedTransformer, side: str) -> None:
    batch = glass.tokenize([[3, 4, 5, 6, 7, 8, 9, 10, 11], IDS[0]], padding_side=side)
    logits, ckpts = glass.run_with_ckpts(batch)
    made_ = trace_of(ckpts, text=1)
    real = batch.mask[1]
    assert logits is not None
    assert (made_["prediction.logits"].data == logits[1, real][-1].numpy()).all()
    assert (made_["neurons.post"].data[1] == ckpts["blocks.1.mlp.ckpt_post"][1, real].numpy().astype("f2")).all()
    pattern = ckpts["blocks.1.attn.ckpt_pattern"][1][:, real][:, :, real].numpy()
    assert np.abs(np.sqrt(made_["attention.pattern"].values[1]) - np.sqrt(lower(pattern))).max() <= 0.51 / 255
    assert [token["id"] for token in made_.header["tokens"]] == IDS[0]
    assert made_.header["run"] == {"text": 1, "texts": 2}
    same(trace_of(glass.run_with_ckpts(batch, names="resid_mid")[1], text=1), made_)


def test_an_edited_run_shows_what_the_model_went_on_with(glass: pl.CkptedTransformer) -> None:
    edits = [
        pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2]),
        pl.Edit.replace("blocks.0.mlp.ckpt_post", 3.0, pos=slice(2, 4)),
    ]
    _, ckpts = glass.run_with_ckpts(IDS, edits=edits, names="resid_post")
    made_ = trace_of(ckpts)
    same(made_, trace(glass, IDS, edits=edits))
    assert not (made_["prediction.logits"].data == trace(glass, IDS)["prediction.logits"].data).all()
    assert float(np.abs(made_["atlas.blocks.1.attn.ckpt_z"].data[:, 2]).max()) == 0.0
    assert made_.header["edits"] == [
        {"name": "blocks.1.attn.ckpt_z", "heads": [2], "pos": None, "how": "zero",
         "python": "pl.Edit.zero('blocks.1.attn.ckpt_z', heads=[2])"},
        {"name": "blocks.0.mlp.ckpt_post", "heads": None, "pos": "slice(2, 4, None)", "how": "replace", "python": None},
    ]  # fmt: skip
    with torch.no_grad():
        logits = glass.run(IDS, edits=edits)
    assert (made_["prediction.logits"].data == logits[0, -1].numpy()).all()


def test_patterns_that_were_edited_beyond_one(glass: pl.CkptedTransformer) -> None:
    made_ = trace(glass, IDS, edits=[pl.Edit.scale("blocks.1.attn.ckpt_pattern", -3.0)])
    block = made_["attention.pattern"]
    assert block.code is not None
    assert block.code["kind"] == "linear"
    _, ckpts = glass.run_with_ckpts(IDS, edits=[pl.Edit.scale("blocks.1.attn.ckpt_pattern", -3.0)])
    step = (block.code["high"] - block.code["low"]) / 255
    assert np.abs(block.values - lower(ckpts.stack("pattern")[:, 0])).max() <= step / 2 + 1e-6


def test_a_run_that_cannot_be_repeated_is_refused(glass: pl.CkptedTransformer, tmp_path: Any) -> None:
    value = glass.run_with_ckpts(IDS, names="blocks.1.resid_pre")[1]["blocks.1.resid_pre"]
    elsewhere = glass.run_with_ckpts(IDS, start_at=("blocks.1.resid_pre", value * 2))[1]
    edited = glass.run_with_ckpts(IDS, edits=[pl.Edit.zero("blocks.1.resid_post")], names="blocks.0.resid_post")[1]
    edited.save(tmp_path / "edited.safetensors")
    for ckpts in (elsewhere, pl.ActivationCkpts.load(tmp_path / "edited.safetensors")):
        with pytest.raises(pl.InputError) as refused:
            trace_of(ckpts, model=glass)
        assert refused.value.code == "view-not-repeatable"


# What fits


def test_what_does_not_fit_is_left_out_and_said(glass: pl.CkptedTransformer) -> None:
    whole = trace(glass, IDS)
    assert whole.header["left_out"] == []
    small = trace(glass, IDS, limit=8_000)
    assert ALWAYS | {"attention.pattern"} <= set(small)
    gone = {entry["what"] for entry in small.header["left_out"]}
    assert gone >= {"atlas", "neurons"}
    assert all("pellucid serve" in entry["why"] and entry["bytes"] > 0 for entry in small.header["left_out"])
    assert not any(name.startswith(("neurons.p", "atlas.ckpt", "atlas.ln")) for name in small)
    assert sum(len(zlib.compress(block.data.tobytes())) for block in small.values()) <= 8_000
    Trace.from_bytes(small.to_bytes())


def test_the_atlas_is_coarser_before_it_is_left_out(glass: pl.CkptedTransformer) -> None:
    coarse = trace(glass, IDS, limit=55_000)
    assert coarse["neurons.post"].code is None
    assert coarse.header["left_out"] == []
    block = coarse["atlas.ckpt_embed"]
    assert block.code is not None
    step = (block.code["high"] - block.code["low"]) / 255
    exact = glass.run_with_ckpts(IDS, names="ckpt_embed")[1]["ckpt_embed"][0].numpy()
    assert np.abs(coarse["atlas.ckpt_embed"].values - exact).max() <= step / 2 + 1e-6


def test_a_long_text_is_pooled() -> None:
    model = support.glass(n_positions=300, n_layer=2)
    ids = support.some_ids(1, 291)
    made_ = trace(model, ids)
    pooled = made_["attention.pooled"]
    assert pooled.code is not None
    edges = pooled.code["edges"]
    assert (edges[0], edges[-1], len(edges)) == (0, 291, 65)
    assert "attention.pattern" not in made_
    pattern = model.run_with_ckpts(ids, names="blocks.1.attn.ckpt_pattern")[1]["pattern", 1][0].double()
    for row, column in ((0, 0), (20, 3), (63, 63), (5, 40)):
        queries, keys = slice(*edges[row : row + 2]), slice(*edges[column : column + 2])
        seen = torch.ones(291, 291).tril()[queries, keys].bool()
        cell = pattern[:, queries, keys][:, seen]
        expected = cell.mean(1) if seen.any() else torch.zeros(4)
        assert np.abs(np.sqrt(pooled.values[1, :, row, column]) - np.sqrt(expected.numpy())).max() <= 0.51 / 255
    assert {"attention.pattern", "attribution.sources", "atlas"} <= {e["what"] for e in made_.header["left_out"]}
    Trace.from_bytes(made_.to_bytes())


@pytest.mark.parametrize("kind", range(3))
def test_a_single_token_and_a_model_without_blocks(kind: int) -> None:
    family, _ = KINDS[kind]
    one = Trace.from_bytes(trace(model_of(kind), [[7]]).to_bytes())
    assert np.isnan(one["attention.measures"].data).all()
    assert one["attention.pattern"].values.tolist() == np.ones((3, one.header["model"]["sizes"]["head"], 1)).tolist()
    if family != "gpt2":
        none = Trace.from_bytes(trace(samples.glass(family, num_hidden_layers=0), IDS).to_bytes())
        assert none["lens.ids"].data.shape == (1, 7, 10)
        assert none["norms"].data.shape[1:] == (0, 7)


def test_a_model_in_half_precision() -> None:
    model = samples.glass("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        logits = model(IDS)[0, -1].float().numpy()
    assert (trace(model, IDS)["prediction.logits"].data == logits).all()


def test_the_target_is_a_token_or_its_text() -> None:
    model = pl.load()
    first, second = trace(model, "Once upon a time", target=" Lily"), trace(model, "Once upon a time")
    assert (first.header["target"]["text"], second.header["target"]["why"]) == (" Lily", "the most probable next token")
    assert first.header["target"]["pos"] == 3
    same(first, trace(model, "Once upon a time", target=first.header["target"]["id"]))
    assert first.header["calls"] == {
        "python": "import pellucid as pl\n\nmodel = pl.load()\npl.view(model, 'Once upon a time')",
        "shell": "pellucid view 'Once upon a time' --html page.html",
        "values": "import pellucid as pl\n\nmodel = pl.load()\n"
        "logits, ckpts = model.run_with_ckpts('Once upon a time')",
    }


def test_calls_make_the_run_again_or_are_none(bundled: pl.CkptedTransformer, tmp_path: Path) -> None:
    """A command takes "-5" for an option; what was given to a model beside its file is in no line."""
    for text in ("-5 degrees", "notes.txt"):
        calls = trace(bundled, text).header["calls"]
        assert calls["shell"].startswith("pellucid view --ids ")
        assert repr(text) in calls["python"]
    shutil.copyfile(BUNDLED / "model.safetensors", tmp_path / "model.safetensors")
    given = pl.load(tmp_path, config=BUNDLED / "config.json")
    assert set(trace(given, [[1, 2]]).header["calls"].values()) == {None}
    shutil.copyfile(BUNDLED / "config.json", tmp_path / "config.json")
    bare = pl.load(tmp_path)
    bare.tokenizer = bundled.tokenizer
    calls = trace(bare, "Once upon").header["calls"]
    assert calls["shell"].startswith("pellucid view --ids ")
    assert "run_with_ckpts([[" in calls["values"]


@pytest.mark.parametrize(
    ("text", "code"), [("", "empty-text"), ([[1], [2]], "view-one-text"), ([[1] * 65], None), ([[211]], None)]
)
def test_texts_that_are_none(glass: pl.CkptedTransformer, text: Any, code: str | None) -> None:
    with pytest.raises(pl.InputError) as refused:
        trace(glass if text else pl.load(), text)
    assert code in (None, refused.value.code)
