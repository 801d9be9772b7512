"""Autoencoders compute what the formulas say, and leave a run as it is until a feature is edited."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from autoencoders import F, by_formula, make
from torch import Tensor

import pellucid as pl
import samples
import support
from noticed import must_be_noticed
from pellucid.sae import autoencoder as module
from pellucid.sae.autoencoder import SparseAutoencoder

WIDTH = support.SIZES["n_embd"]
AT = "blocks.1.resid_pre"
KINDS: dict[str, dict[str, Any]] = {
    "relu": {},
    "input as it is": {"subtract_b_dec": False},
    "centred": {"centred": True},
    "layer norm": {"normalization": "layer_norm"},
    "constant norm": {"normalization": "constant_norm_rescale"},
    "centred, constant norm": {"normalization": "constant_norm_rescale", "centred": True},
    "topk": {"activation": "topk"},
    "topk of OpenAI's": {"activation": "topk", "normalization": "layer_norm"},
    "topk, rescaled": {"activation": "topk", "rescaled": True},
    "jumprelu": {"activation": "jumprelu"},
    "gated": {"activation": "gated"},
}
RAGGED = samples.ragged_ids(7, 4, 6)
PLACES = {
    "blocks.1.resid_pre": "d_model",
    "blocks.1.hook_mlp_out": "d_model",
    "blocks.0.attn.hook_z": "z",
    "blocks.1.mlp.ckpt_post": "d_mlp",
    "blocks.-1.hook_resid_post": "d_model",
}


def values(seed: int = 1) -> Tensor:
    return 2 * torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7


def width_of(model: pl.CkptedTransformer, at: str) -> int:
    sizes = model.schema.sizes
    return sizes["head"] * sizes["d_head"] if PLACES[at] == "z" else sizes[PLACES[at]]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, the sign of zeros too."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def check_formula(kind: str) -> None:
    sae = make(AT, WIDTH, **KINDS[kind], dtype=torch.float64)
    x = values()
    found, expected = sae.split(x), by_formula(sae, x)
    assert 0 < int((found.features != 0).sum()) < found.features.numel()
    torch.testing.assert_close(found.features, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reconstruction, expected[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.reconstruction + found.error, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_reconstructions_are_those_of_the_formulas(kind: str) -> None:
    check_formula(kind)


def test_without_normalization_features_alone_can_be_decoded() -> None:
    sae = make(AT, WIDTH, dtype=torch.float64)
    x = values()
    assert torch.equal(sae.decode(sae.encode(x)), sae.decode(sae.encode(x), x))
    assert torch.equal(sae(x), sae.split(x).reconstruction)


def test_a_centred_autoencoder_sees_what_a_model_with_centred_weights_has() -> None:
    """As of gpt2-small-res-jb, which were trained on a HookedTransformer with its default processing."""
    model = support.glass(dtype=torch.float64)
    centred = pl.fold(model, fold_ln=False, center_unembed=False, fold_value_biases=False).model
    here, there = (m.run_with_ckpts(RAGGED, names=AT)[1] for m in (model, centred))
    assert not torch.allclose(here[AT], there[AT])
    plain, own = make(AT, WIDTH, dtype=torch.float64), make(AT, WIDTH, dtype=torch.float64, centred=True)
    torch.testing.assert_close(own.encode(here[AT]), plain.encode(there[AT]), rtol=0, atol=1e-12)
    means = here[AT].mean(-1, keepdim=True)
    torch.testing.assert_close(
        own.split(here[AT]).reconstruction, plain.split(there[AT]).reconstruction + means, rtol=0, atol=1e-12
    )


# In a run


EACH = support.few_of(
    itertools.product(samples.SAMPLES, PLACES),
    "gpt2",
    *((family, "blocks.1.hook_mlp_out") for family in samples.SAMPLES),
)
"""Every place of one family, and one of each."""


@pytest.mark.parametrize(("family", "at"), EACH)
def test_a_run_with_an_unchanged_feature_is_the_plain_run_to_the_bit(family: str, at: str) -> None:
    model = samples.shared(family)
    plain, ckpts = model.run_with_ckpts(RAGGED, names=at)
    assert plain is not None
    sae = make(at, width_of(model, at), "topk", normalization="layer_norm")
    found = torch.from_numpy(sae.features(ckpts).values)
    edits = [
        sae.add([0, 3], 0.0),
        sae.scale(slice(None), 1.0),
        sae.edit(range(F), torch.clone),
        sae.set(range(F), found.nan_to_num()),
    ]
    for edit in edits:
        logits, edited = model.run_with_ckpts(RAGGED, names=at, edits=edit)
        assert logits is not None
        assert edited.fired[edit] == 1
        kept = ckpts.batch.mask  # what is set at pads is not what they had
        assert same_bits(logits[kept], plain[kept])
        assert same_bits(edited[at][kept], ckpts[at][kept])
    assert (
        model.generate(RAGGED[0], max_new_tokens=4, edits=edits[1]).ids.tolist()
        == model.generate(RAGGED[0], max_new_tokens=4).ids.tolist()
    )


def check_edits(family: str, at: str, sae: SparseAutoencoder) -> None:
    """Edited runs are those of the formula x + decode(f') - decode(f)."""
    model = samples.shared(family, torch.float64)
    _, ckpts = model.run_with_ckpts(RAGGED, names=at)
    x = ckpts[at]
    flat = x.flatten(2)
    features, before = by_formula(sae, flat)
    active = (features[1, -1] > 0).nonzero().flatten().tolist()[:2]
    changes = {
        "zero": (sae.zero(active, pos=-1, rows=1), lambda f: 0 * f),
        "set": (sae.set(active, 3.5, pos=-1, rows=1), lambda f: 0 * f + 3.5),
        "add": (sae.add(active, torch.tensor([2.0, -1.0]), pos=-1, rows=1), lambda f: f + torch.tensor([2.0, -1.0])),
        "scale": (sae.scale(active, -2.0, pos=-1, rows=1), lambda f: -2 * f),
        "edit": (sae.edit(active, torch.exp, pos=-1, rows=1), torch.exp),
    }
    for edit, change in changes.values():
        new = features.clone()
        new[1, -1, active] = change(new[1, -1, active])
        lengths = sae.W_dec.detach().double().norm(dim=-1) if sae.config.rescaled else 1.0
        scale = flat.std(-1, keepdim=True) if sae.config.normalization == "layer_norm" else 1.0
        moved = flat + ((new - features) / lengths @ sae.W_dec.detach().double()) * scale
        expected = model.run(RAGGED, edits=pl.Edit.replace(at, moved.reshape(x.shape)))
        assert float((expected - model(RAGGED)).detach().abs().max()) > 1e-3
        torch.testing.assert_close(model.run(RAGGED, edits=edit), expected, rtol=0, atol=1e-10)
    replaced = model.run(RAGGED, edits=sae.reconstruct())
    torch.testing.assert_close(
        replaced, model.run(RAGGED, edits=pl.Edit.replace(at, before.reshape(x.shape))), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(("family", "at"), EACH)
def test_edits_add_what_the_features_are_changed_by(family: str, at: str) -> None:
    width = width_of(samples.shared(family), at)
    check_edits(family, at, make(at, width, dtype=torch.float64, normalization="layer_norm"))


def test_edits_of_a_rescaled_topk() -> None:
    check_edits("gpt2", AT, make(AT, WIDTH, "topk", torch.float64, rescaled=True))


def test_edits_take_values_for_each_row_and_position() -> None:
    model = support.glass(dtype=torch.float64)
    ids = support.some_ids(2, 5)
    _, ckpts = model.run_with_ckpts(ids, names=AT)
    sae = make(AT, WIDTH, dtype=torch.float64)
    other = torch.from_numpy(sae.features(model.run_with_ckpts(support.some_ids(2, 5, seed=7), names=AT)[1]).values)
    _, edited = model.run_with_ckpts(ids, names=AT, edits=sae.set(range(F), other))
    expected = sae.split(ckpts[AT]).error + sae.decode(other)
    torch.testing.assert_close(edited[AT], expected, rtol=0, atol=1e-11)
    for edit in (sae.set([1, 2], other[:1, 3:4, [1, 2]], pos=3, rows=[1]), sae.set([1], 2.0, pos=slice(3, None))):
        moved = model.run_with_ckpts(ids, names=AT, edits=edit)[1][AT] - ckpts[AT]
        assert bool((moved[:, :3] == 0).all())
        assert bool((moved[1, 3] != 0).any())


def test_one_head() -> None:
    model = support.glass(dtype=torch.float64)
    at, ids = "blocks.1.attn.hook_z", support.some_ids(2, 5)
    _, ckpts = model.run_with_ckpts(ids, names=at)
    sae = make(at, 12, dtype=torch.float64, head=2)
    expected = by_formula(sae, ckpts[at][:, :, 2])[0]
    torch.testing.assert_close(torch.from_numpy(sae.features(ckpts).values), expected, rtol=0, atol=1e-12)
    _, edited = model.run_with_ckpts(ids, names=at, edits=sae.reconstruct())
    assert torch.equal(edited[at][:, :, [0, 1, 3]], ckpts[at][:, :, [0, 1, 3]])
    torch.testing.assert_close(edited[at][:, :, 2], by_formula(sae, ckpts[at][:, :, 2])[1], rtol=0, atol=1e-12)


def test_generated_text_is_that_of_whole_runs() -> None:
    model, sae = support.glass(), make(AT, WIDTH)
    edit, ids = sae.add([1, 4], 3.0), [3, 1, 4, 1, 5]
    grown = list(ids)
    for _ in range(4):
        grown.append(int(model.run([grown], edits=edit)[0, -1].argmax()))
    written = model.generate([ids], max_new_tokens=4, edits=edit).ids[0].tolist()
    assert written == grown
    assert written != model.generate([ids], max_new_tokens=4).ids[0].tolist()
    at_five = sae.add([1, 4], 30.0, pos=[6])
    assert (
        model.generate([ids], max_new_tokens=4, edits=at_five).ids[0].tolist()[:7]
        == model.generate([ids], max_new_tokens=4).ids[0].tolist()[:7]
    )


def test_features_are_labelled_and_pads_are_missing() -> None:
    model, sae = support.glass(), make(AT, WIDTH)
    _, ckpts = model.run_with_ckpts(RAGGED, names=AT, pos=[-2, -1])
    found = sae.features(ckpts)
    assert found.dims == ("batch", "pos", "feature")
    assert found.sizes == {"batch": 3, "pos": 2, "feature": F}
    assert found.attrs["checkpoint"] == AT
    torch.testing.assert_close(
        torch.from_numpy(found.values).double(), by_formula(sae, ckpts[AT])[0], rtol=0, atol=1e-5
    )
    whole = sae.features(model.run_with_ckpts(RAGGED, names=AT)[1])
    assert np.isnan(whole.values[1, :3]).all()
    assert not np.isnan(whole.values[1, 3:]).any()


def test_the_largest_features_of_a_run() -> None:
    model, sae = support.glass(), make(AT, WIDTH, "topk")
    _, ckpts = model.run_with_ckpts(RAGGED, names=AT)
    table, whole = sae.top(ckpts, 6), sae.features(ckpts)
    largest = whole.max(("batch", "pos"))
    assert table.feature.values.tolist() == largest.values.argsort()[::-1][:6].tolist()
    np.testing.assert_array_equal(table.activation.values, np.sort(largest.values)[::-1][:6].astype(np.float64))
    for feature in table.feature.values:
        row = table.sel(feature=feature)
        assert float(whole.sel(feature=feature)[int(row["batch"]), int(row["pos"])]) == float(row.activation)
        token = str(whole.token[int(row["batch"]), int(row["pos"])].item())
        assert row.token.item() == token
        assert int(row["count"]) == int((whole.sel(feature=feature) > 0).sum())
    silent = SparseAutoencoder(sae.config, {n: p.detach() - 100 * (n == "b_enc") for n, p in sae.named_parameters()})
    assert silent.top(ckpts, 3).sizes["feature"] == 0


def test_it_says_what_it_is() -> None:
    sae = make(
        "blocks.1.attn.hook_z",
        12,
        "topk",
        head=2,
        normalization="layer_norm",
        rescaled=True,
        about={"model_name": "gpt2-small"},
    )
    lines = repr(sae).splitlines()
    assert lines[0] == "SparseAutoencoder at blocks.1.attn.hook_z[2]: 40 features of 12 dimensions"
    assert "  activation topk, k=5" in lines
    assert "  inputs normalized by layer_norm" in lines
    assert "  trained on 'gpt2-small'" in lines
    assert any(line.endswith("long") and " to " in line for line in lines)
    assert "  decoder directions 1 long" in repr(make(AT, WIDTH).fold_decoder_norm())
    assert repr(make(AT, WIDTH).zero([2, -1], pos=-1)) == f"sae.zero([2, 39]) at {AT!r}, pos=-1"


# Folding and training


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if KINDS[kind].get("activation") != "topk" or "rescaled" in KINDS[kind]]
)
def test_folded_decoder_norms_leave_the_reconstruction(kind: str) -> None:
    sae = make(AT, WIDTH, **KINDS[kind])
    folded, x = sae.fold_decoder_norm(), values()
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    assert sae.prove_fold(folded, x) < 1e-10
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(F))
    factor = 1.0 if sae.config.rescaled else sae.W_dec.detach().double().norm(dim=-1)
    torch.testing.assert_close(folded.double_copy().encode(x), by_formula(sae, x)[0] * factor, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters()), "the original is not touched"
    with torch.no_grad():
        folded.W_enc[0, 0] += 1e-3
    with pytest.raises(pl.NumericsError, match="W_enc"):
        sae.prove_fold(folded, x)


def test_a_dead_direction_stays_when_norms_are_folded() -> None:
    sae = make(AT, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        sae.W_dec[3] = 0
    assert sae.prove_fold(sae.fold_decoder_norm(), values()) < 1e-10


def test_it_can_be_trained() -> None:
    sae, x = make(AT, WIDTH, "topk"), values().float()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = sae.split(x).error.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {name for name, _ in sae.named_parameters()} == {"W_enc", "b_enc", "W_dec", "b_dec"}


# Mutants


def _without_b_dec(self: SparseAutoencoder, features: Tensor, x: Tensor | None = None) -> Tensor:
    return REAL_DECODE(self, features, x) - self.b_dec


def _biased(self: SparseAutoencoder, x: Tensor) -> Any:
    frame = REAL_FRAME(self, x)
    if frame.scale is None:
        return frame
    ratio = ((self.d_in - 1) / self.d_in) ** 0.5
    return frame._replace(value=frame.value / ratio, scale=frame.scale * ratio)


def _uncentred(self: SparseAutoencoder, x: Tensor) -> Any:
    frame = REAL_FRAME(self, x)
    return frame if frame.mean is None else frame._replace(value=frame.value + frame.mean, mean=None)


def _own_reconstruction(self: SparseAutoencoder, x: Tensor, difference: Tensor, features: Tensor) -> Tensor:
    found = self.encode(x)
    found[..., features] += difference
    return self.decode(found, x) - x


def _all_k(self: SparseAutoencoder, x: Tensor) -> Tensor:
    return (self.frame(x).value - self.b_dec @ torch.eye(self.d_in, dtype=self.b_dec.dtype)) @ self.W_enc + self.b_enc


REAL_DECODE, REAL_FRAME = SparseAutoencoder.decode, SparseAutoencoder.frame
MUTANTS = {
    "no b_dec": ((SparseAutoencoder, "decode", _without_b_dec, check_formula), "relu"),
    "biased standard deviation": ((SparseAutoencoder, "frame", _biased, check_formula), "layer norm"),
    "forgotten centring": ((SparseAutoencoder, "frame", _uncentred, check_formula), "centred"),
    "no activation": ((SparseAutoencoder, "encode", _all_k, check_formula), "topk"),
    "another epsilon": ((module, "_EPS", 1e-3, check_formula), "layer norm"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_formula_is_noticed(name: str) -> None:
    mutant, given = MUTANTS[name]
    must_be_noticed(mutant, given)


def test_a_splice_without_the_error_is_noticed() -> None:
    sae = make(AT, WIDTH, dtype=torch.float64)
    must_be_noticed((SparseAutoencoder, "moved", _own_reconstruction, check_edits), "gpt2", AT, sae)
