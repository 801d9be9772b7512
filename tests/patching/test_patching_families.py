"""Sweeps, ablations, paths and gradients of models of other families than GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from loops import METRIC, everywhere, patched

import pellucid as pl
import samples
import support

MODELS: dict[str, Callable[[], pl.CkptedTransformer]] = {
    "llama": lambda: samples.glass("llama", dtype=torch.float64),
    "gpt_neox": lambda: samples.glass("gpt_neox", dtype=torch.float64),
}

COMMON = [
    ("resid_pre", ("layer", "pos")),
    ("resid_post", ("layer",)),
    ("attn.ckpt_z", ("layer", "head", "pos")),
    ("attn.ckpt_q", ("layer", "head")),
    ("attn.ckpt_k", ("layer", "head", "pos")),
    ("attn.ckpt_v", ("head",)),
    ("attn.ckpt_rot_q", ("layer", "pos")),
    ("attn.ckpt_rot_k", ("layer", "head")),
    ("attn.ckpt_pattern", ("layer", "head")),
    ("mlp.ckpt_post", ("layer", "pos")),
    ("mlp.ckpt_mlp_out", ("layer", "pos")),
    ("ln2.ckpt_normalized", ("layer", "pos")),
    ("ckpt_embed", ("pos",)),
    ("ln_final.ckpt_scaled", ("pos",)),
]


def texts(model: pl.CkptedTransformer) -> tuple[Any, Any]:
    vocabulary = model.schema.sizes["d_vocab"]
    rows = [support.ragged_ids(6, 4, vocab_size=vocabulary, seed=seed) for seed in (0, 50)]
    return model.tokenize(rows[0]), model.tokenize(rows[1])


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> pl.CkptedTransformer:
    return MODELS[request.param]()


EVERYWHERE = [COMMON[0], COMMON[2], COMMON[9]]
"""Sweeps that are measured at every position, too."""

SWEPT = ("attn.ckpt_z", "attn.ckpt_v", "attn.ckpt_rot_k", "attn.ckpt_pattern", "mlp.ckpt_post", "ln_final.ckpt_scaled")
"""A value of each kind, in every run."""


@pytest.mark.parametrize(
    ("name", "over", "metric"),
    support.few_of(
        [(*one, METRIC) for one in COMMON] + [(*one, everywhere) for one in EVERYWHERE],
        *((*one, METRIC) for one in COMMON if one[0] in SWEPT),
        (*COMMON[0], everywhere),
    ),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_sweep_is_the_loop(model: pl.CkptedTransformer, name: str, over: tuple[str, ...], metric: Any) -> None:
    if name not in model.schema.kinds:
        pytest.skip("not a value of this family")
    clean, corrupted = texts(model)
    swept = pl.patching.sweep(model, clean, corrupted, name, over=over, metric=metric, per_text=True)
    loop = patched(model, corrupted, clean, name, over, metric)
    measured = ~np.isnan(swept.values)
    assert measured.mean() > 0.8
    np.testing.assert_allclose(swept.values[measured], loop[measured], rtol=0, atol=1e-10)


def test_heads_are_ablated(model: pl.CkptedTransformer) -> None:
    clean, _ = texts(model)
    for name in ("attn.ckpt_z", "attn.ckpt_v"):
        ablated = pl.patching.ablate(model, clean, name, over=("layer", "head"), how="zero", metric=METRIC)
        for layer, head in np.ndindex(*ablated.shape):
            edit = pl.Edit.zero(f"blocks.{layer}.{name}", heads=head)
            expected = METRIC(model.run(clean, edits=edit).detach(), clean).mean()
            assert float(ablated[layer, head]) == pytest.approx(float(expected), abs=1e-10)


def test_a_key_is_told_by_heads_of_earlier_blocks(model: pl.CkptedTransformer) -> None:
    """Path patching by its definition; the receiver is the key of the last head that there is."""
    clean, corrupted = texts(model)
    last = len(model.schema.blocks) - 1
    (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
    heads, keys = own["blocks.0.attn.ckpt_z"].size(2), own["blocks.0.attn.ckpt_k"].size(2)
    found = pl.patching.path(
        model, clean, corrupted, senders=("attn.ckpt_z", {}), over=("layer", "head"), metric=METRIC, per_text=True,
        receivers=("attn.ckpt_k", {"layer": last, "head": keys - 1}),
    )  # fmt: skip
    for layer in range(last):
        for head in range(heads):
            held = [
                pl.Edit.replace(f"blocks.{i}.attn.ckpt_z", own[f"blocks.{i}.attn.ckpt_z"][:, :, h : h + 1], heads=h)
                for i in range(layer, last + 1) for h in range(heads) if (i, h) != (layer, head)
            ]  # fmt: skip
            held.append(pl.Edit.patch(f"blocks.{layer}.attn.ckpt_z", theirs, heads=head))
            _, first = model.run_with_ckpts(corrupted, edits=held)
            put = pl.Edit.patch(f"blocks.{last}.attn.ckpt_k", first, heads=keys - 1)
            expected = METRIC(model.run(corrupted, edits=put).detach(), corrupted)
            np.testing.assert_allclose(found.values[layer, head], expected.numpy(), rtol=0, atol=1e-10)
    assert np.isnan(found.values[last]).all()


def test_a_shared_head_that_speaks_frees_its_group(model: pl.CkptedTransformer) -> None:
    """A patched value of one key-value head changes the z of every head that reads it."""
    clean, corrupted = texts(model)
    found = pl.patching.path(model, clean, corrupted, senders=("attn.ckpt_v", {"layer": 0, "head": 0}),
                             receivers="logits", metric=METRIC, per_text=True)  # fmt: skip
    (_, theirs), (_, own) = model.run_with_ckpts(clean), model.run_with_ckpts(corrupted)
    edit = pl.Edit.patch("blocks.0.attn.ckpt_v", theirs, heads=0)
    _, changed = model.run_with_ckpts(corrupted, edits=edit)
    held = [pl.Edit.replace(f"blocks.{i}.attn.ckpt_z", own[f"blocks.{i}.attn.ckpt_z"])
            for i in range(1, len(model.schema.blocks))]  # fmt: skip
    held.append(pl.Edit.replace("blocks.0.attn.ckpt_z", changed["blocks.0.attn.ckpt_z"]))
    expected = METRIC(model.run(corrupted, edits=held).detach(), corrupted)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=0, atol=1e-10)


def test_edges_sum_to_gradients(model: pl.CkptedTransformer) -> None:
    """Within the rounding of float32, in which a Llama's norms compute whatever the model's dtype is."""
    clean, corrupted = texts(model)
    sums = pl.attribution.edges(model, clean, corrupted, metric=METRIC).sum("receiver")
    heads = pl.attribution.gradient(model, clean, corrupted, "attn.ckpt_z", over=("layer", "head"), metric=METRIC)
    mlps = pl.attribution.gradient(model, clean, corrupted, "mlp.ckpt_mlp_out", over=("layer",), metric=METRIC)
    for layer, head in np.ndindex(*heads.shape):
        found = float(sums.sel(sender=f"blocks.{layer}.attn[{head}]"))
        assert found == pytest.approx(float(heads[layer, head]), rel=1e-6, abs=1e-7)
    for layer in range(len(mlps)):
        assert float(sums.sel(sender=f"blocks.{layer}.mlp")) == pytest.approx(float(mlps[layer]), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("parallel", [True, False])
def test_no_path_leads_from_a_head_to_the_mlp_beside_it(parallel: bool) -> None:
    model = samples.glass("gpt_neox", dtype=torch.float64, use_parallel_residual=parallel)
    clean, corrupted = texts(model)
    before = model.schema.comes_before
    assert before("blocks.1.attn.ckpt_z", "blocks.1.mlp.ckpt_pre") != parallel
    assert before("blocks.1.attn.ckpt_z", "blocks.1.resid_post")
    assert before("blocks.1.ln2.ckpt_normalized", "blocks.1.mlp.ckpt_pre")
    assert not before("blocks.1.mlp.ckpt_pre", "blocks.1.attn.ckpt_z")

    def path(layer: int) -> Any:
        return pl.patching.path(
            model, clean, corrupted, senders=("attn.ckpt_z", {"layer": 1, "head": 0}),
            receivers=("mlp.ckpt_pre", {"layer": layer}), metric=METRIC,
        )  # fmt: skip

    assert float(path(2)) != path(2).attrs["unchanged"]
    if parallel:
        with pytest.raises(pl.InputError) as error:
            path(1)
        assert error.value.code == "path-order"
    else:
        assert float(path(1)) != path(1).attrs["unchanged"]
