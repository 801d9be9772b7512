"""What a run hands back: a mapping, its shapes and names, files, labelled arrays, gradients, and its size."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from noticed import must_be_noticed

NAMES = support.schema(support.SIZES["n_layer"]).names
IDS = support.some_ids(2, 7)
RAGGED = support.ragged_ids(3, 7, 5)

TEXT = "Lily had a red ball. One day, the red ball"


@pytest.fixture(scope="module")
def ckpts(glass: pl.CkptedTransformer) -> pl.ActivationCkpts:
    return glass.run_with_ckpts(RAGGED)[1]


def test_it_is_a_mapping_in_execution_order(ckpts: pl.ActivationCkpts) -> None:
    assert list(ckpts) == list(NAMES)
    assert len(ckpts) == 55
    assert list(ckpts.keys()) == list(NAMES)
    assert all(value is ckpts[name] for name, value in ckpts.items())
    assert "blocks.0.resid_pre" in ckpts
    assert "blocks.3.resid_pre" not in ckpts
    with pytest.raises(TypeError):
        ckpts["blocks.0.resid_pre"] = torch.zeros(1)  # type: ignore[index]


def test_nbytes_is_the_sum(ckpts: pl.ActivationCkpts) -> None:
    assert ckpts.nbytes == sum(value.numel() * 4 for value in ckpts.values())
    assert f"{ckpts.nbytes:,}" in repr(ckpts)
    assert "blocks.2.attn.ckpt_z" in repr(ckpts)


def test_it_carries_the_batch(glass: pl.CkptedTransformer) -> None:
    batch = glass.tokenize(RAGGED)
    _, ckpts = glass.run_with_ckpts(batch, names="ckpt_embed")
    assert torch.equal(ckpts.batch.ids, batch.ids)
    assert ckpts.n_layer == 3


def test_get(ckpts: pl.ActivationCkpts) -> None:
    assert ckpts.get("pattern", layer_name="attn", block=0) is ckpts["blocks.0.attn.ckpt_pattern"]
    assert ckpts.get("ckpt_pattern", layer_name="attn", block=1) is ckpts["blocks.1.attn.ckpt_pattern"]
    assert ckpts.get("normalized", layer_name="ln2", block=2) is ckpts["blocks.2.ln2.ckpt_normalized"]
    assert ckpts.get("normalized", layer_name="ln_final") is ckpts["ln_final.ckpt_normalized"]
    assert ckpts.get("post", layer_name="mlp", block=2) is ckpts["blocks.2.mlp.ckpt_post"]
    assert ckpts.get("resid_mid", block=1) is ckpts["blocks.1.resid_mid"]
    assert ckpts.get("blocks.1.resid_mid") is ckpts["blocks.1.resid_mid"]
    assert ckpts.get("ckpt_embed") is ckpts["ckpt_embed"]


@pytest.mark.parametrize(("call", "name"), [
    (lambda ckpts: ckpts.get("pattern", "attn", 0), "blocks.0.attn.ckpt_pattern"),
    (lambda ckpts: ckpts.get(act_name="pre", layer_name="mlp", block=1), "blocks.1.mlp.ckpt_pre"),
    (lambda ckpts: ckpts.get("attn_out", "attn", np.int64(1)), "blocks.1.attn.ckpt_attn_out"),
    (lambda ckpts: ckpts.get("scaled", "ln1", 2), "blocks.2.ln1.ckpt_scaled"),
    (lambda ckpts: ckpts.get("resid_pre", None, 0), "blocks.0.resid_pre"),
    (lambda ckpts: ckpts.get("resid_pre", "", 0), "blocks.0.resid_pre"),
    (lambda ckpts: ckpts.get("resid_post", block=-1), "blocks.2.resid_post"),
    (lambda ckpts: ckpts.get("embed"), "ckpt_embed"),
    (lambda ckpts: ckpts.get("pos_embed"), "ckpt_pos_embed"),
    (lambda ckpts: ckpts.get(("pattern", -3)), "blocks.0.attn.ckpt_pattern"),
])  # fmt: skip
def test_get_takes_the_calls_of_dotlmviz(
    ckpts: pl.ActivationCkpts, call: Callable[[pl.ActivationCkpts], torch.Tensor], name: str
) -> None:
    assert call(ckpts) is ckpts[name]


def test_get_gives_the_default_only_for_what_exists(glass: pl.CkptedTransformer) -> None:
    _, some = glass.run_with_ckpts(IDS, names="ckpt_embed")
    assert some.get("pattern", "attn", 0) is None
    assert some.get("blocks.0.attn.ckpt_pattern", default=3) == 3
    for wrong, code in [
        (lambda: some.get("blocks.0.attn.ckpt_patern", default=3), "unknown-checkpoint"),
        (lambda: some.get("pattern", "attn", 9, default=3), "unknown-checkpoint"),
        (lambda: some.get("pattern", "mlp", 0), "unknown-checkpoint"),
        (lambda: some.get("scale", "ln1", 0), "alias-refused"),
        (lambda: some.get("pattern", "attn"), "pattern-for-a-name"),
        (lambda: some.get("ckpt_embed", 3), "layer-name"),
    ]:
        with pytest.raises(pl.PellucidError) as caught:
            wrong()
        assert caught.value.code == code
    assert "blocks.0.patern" not in some


def test_stack(ckpts: pl.ActivationCkpts) -> None:
    stacked = ckpts.stack("attn.ckpt_pattern")
    assert stacked.shape == (3, 3, 4, 7, 7)
    for i in range(3):
        assert torch.equal(stacked[i], ckpts[f"blocks.{i}.attn.ckpt_pattern"])
    assert torch.equal(ckpts.stack("attn.hook_pattern"), stacked)
    for name in ("pattern", "attn.pattern", "hook_pattern", ("pattern",), ("pattern", None, "attn")):
        assert torch.equal(ckpts.stack(name), stacked)
    for name, code in [
        ("attn.patern", "unknown-checkpoint"), ("embed", "not-of-every-block"), (("pattern", 0), "not-of-every-block"),
        ("attn.*", "several-kinds"), ("hook_scale", "alias-refused"),
    ]:  # fmt: skip
        with pytest.raises(pl.PellucidError) as caught:
            ckpts.stack(name)
        assert caught.value.code == code


def test_a_pattern_through_the_blocks_is_stacked(ckpts: pl.ActivationCkpts) -> None:
    for pattern in ("blocks.*.attn.ckpt_pattern", "blocks.*.attn.hook_pattern"):
        assert torch.equal(ckpts.stack(pattern), ckpts.stack("attn.ckpt_pattern"))


@pytest.mark.parametrize(("name", "pattern"), [
    ("pattern", "**.ckpt_pattern"), ("ckpt_z", "**.ckpt_z"), ("resid_mid", "**.resid_mid"), ("hook_q", "**.ckpt_q"),
    ("mlp.ckpt_pre", "**.mlp.ckpt_pre"), ("pre", "**.mlp.ckpt_pre"),
])  # fmt: skip
def test_a_name_without_a_block_means_every_block(glass: pl.CkptedTransformer, name: str, pattern: str) -> None:
    _, every = glass.run_with_ckpts(IDS, names=pattern)
    assert len(every) == glass.config.n_layer
    assert list(glass.run_with_ckpts(IDS, names=name)[1]) == list(every)
    assert pl.estimate(glass, IDS, name).by_name.keys() == every.keys()
    edit = pl.Edit.scale(name, 0.5)
    assert glass.run_with_ckpts(IDS, edits=[edit])[1].fired[edit] == glass.config.n_layer
    with pytest.raises(pl.UnknownNameError) as caught:  # where one value is meant, it is not enough
        every[name]
    assert caught.value.code == "pattern-for-a-name"
    assert name not in every


@pytest.mark.parametrize("name", ["normalized", "ckpt_scaled"])
def test_the_end_of_several_names_suggests_their_pattern(glass: pl.CkptedTransformer, name: str) -> None:
    with pytest.raises(pl.UnknownNameError) as caught:
        glass.run_with_ckpts(IDS, names=name)
    assert f"'**.ckpt_{name.removeprefix('ckpt_')}'" in caught.value.remedy


def test_aliases_are_the_same_values(ckpts: pl.ActivationCkpts) -> None:
    assert ckpts["blocks.0.attn.hook_pattern"] is ckpts["blocks.0.attn.ckpt_pattern"]
    assert ckpts["pattern", 0] is ckpts["blocks.0.attn.ckpt_pattern"]
    assert ckpts["transformer.h.1.mlp"] is ckpts["blocks.1.mlp.ckpt_mlp_out"]
    assert "blocks.0.attn.hook_pattern" in ckpts
    assert ("pattern", 0) in ckpts


def test_names_that_are_not_there(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS, names="blocks.0.resid_pre")
    with pytest.raises(pl.UnknownNameError) as caught:
        ckpts["blocks.0.resid_post"]
    assert caught.value.code == "not-captured"
    with pytest.raises(KeyError) as caught:
        ckpts["blocks.0.resid"]
    assert caught.value.code == "unknown-checkpoint"
    with pytest.raises(pl.UnknownNameError) as caught:
        ckpts["blocks.0.ln1.hook_scale"]
    assert caught.value.code == "alias-refused"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pos", [None, -1, [0, 3], slice(2, 6)])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, dtype: torch.dtype, pos: Any) -> None:
    model = support.glass(dtype=dtype)
    _, ckpts = model.run_with_ckpts(RAGGED, pos=pos, heads=[0, 2])
    ckpts.save(tmp_path / "run.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "run.safetensors")
    assert list(again) == list(ckpts)
    for name, value in ckpts.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value), name
    for part in ("ids", "mask", "positions"):
        assert torch.equal(getattr(again.batch, part), getattr(ckpts.batch, part))
    assert again.batch.strings == ckpts.batch.strings
    assert again.batch.padded is True
    assert again.n_layer == 3
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]
    assert again.to_xarray().equals(ckpts.to_xarray())


def test_a_file_of_something_else_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(pl.InputError) as caught:
        pl.ActivationCkpts.load(tmp_path / "other.safetensors")
    assert caught.value.code == "not-ckpts"


def test_labelled_arrays(glass: pl.CkptedTransformer, ckpts: pl.ActivationCkpts) -> None:
    dataset = ckpts.to_xarray()
    axes = support.schema(3).axes
    mask = ckpts.batch.mask.numpy()
    for kind in ("attn.ckpt_pattern", "resid_pre", "mlp.ckpt_post", "attn.ckpt_z"):
        assert dataset[kind].dims == ("layer", *axes[f"blocks.0.{kind}"])
        assert dataset[kind].coords["layer"].values.tolist() == [0, 1, 2]
        for i in range(3):
            value, labelled = ckpts[f"blocks.{i}.{kind}"].numpy(), dataset[kind].sel(layer=i).values
            position = 2 if kind == "attn.ckpt_pattern" else 1
            keep = np.moveaxis(labelled, position, 1)[mask]
            expected = np.moveaxis(value, position, 1)[mask]
            if kind == "attn.ckpt_pattern":  # keys that are pads are NaN as well
                keys = np.repeat(mask, mask.sum(-1), axis=0)[:, None, :].repeat(4, axis=1)
                assert np.isnan(keep[~keys]).all()
                keep, expected = keep[keys], expected[keys]
            assert np.array_equal(keep, expected)
            assert np.isnan(np.moveaxis(labelled, position, 1)[~mask]).all(), "pads are not NaN"
    assert dataset["ckpt_embed"].dims == ("batch", "pos", "d_model")
    assert dataset["ln_final.ckpt_normalized"].dims == ("batch", "pos", "d_model")
    assert len(dataset.data_vars) == 17 + 4


def test_labels_are_the_tokens(ckpts: pl.ActivationCkpts) -> None:
    dataset = ckpts.to_xarray()
    rows = [[""] * (7 - len(row)) + [str(i) for i in row] for row in RAGGED]
    assert dataset.coords["token"].values.tolist() == rows
    assert dataset.coords["query_token"].values.tolist() == rows
    assert dataset.coords["key_token"].values.tolist() == rows
    assert dataset.coords["pos"].values.tolist() == list(range(7))


def test_labels_of_selected_columns(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(RAGGED, names=["blocks.0.resid_pre", "blocks.1.attn.ckpt_pattern"], pos=[-1, 2])
    dataset = ckpts.to_xarray()
    assert dataset.coords["pos"].values.tolist() == [6, 2]
    assert dataset.coords["query"].values.tolist() == [6, 2]
    assert dataset.coords["key"].values.tolist() == list(range(7))
    assert dataset.coords["layer"].values.tolist() == [0, 1]
    assert np.isnan(dataset["attn.ckpt_pattern"].sel(layer=0)).all(), "blocks that were not captured are NaN"
    assert not np.isnan(dataset["attn.ckpt_pattern"].sel(layer=1, batch=1)).any()
    assert dataset.coords["token"].values.tolist()[0] == [str(RAGGED[0][-1]), ""]
    assert np.isnan(dataset["resid_pre"].sel(layer=0, batch=0, pos=2)).all()


def test_labelled_arrays_without_pads_keep_everything(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS)
    dataset = ckpts.to_xarray()
    assert not any(bool(np.isnan(array).any()) for array in dataset.data_vars.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"names": "blocks.*.resid_post"},
        {"pos": [0, -1]},
        {"heads": 2},
        {"names": "**.ckpt_scores", "pos": 3, "heads": [0, 1]},
    ],
)
def test_the_estimate_is_the_size(dtype: torch.dtype, attention: str, options: dict[str, Any]) -> None:
    model = support.glass(dtype=dtype, attention=attention, reorder_and_upcast_attn=True)
    _, ckpts = model.run_with_ckpts(RAGGED, **options)
    estimate = pl.estimate(model, RAGGED, **options)
    assert estimate.nbytes == int(estimate) == ckpts.nbytes
    assert estimate.by_name == {name: value.numel() * value.element_size() for name, value in ckpts.items()}


def test_gradients_at_every_checkpoint(glass64: pl.CkptedTransformer) -> None:
    """Against the gradients of an independent computation."""
    target = torch.randn(2, 7, 211, dtype=torch.float64)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def change(value: torch.Tensor) -> torch.Tensor:
            value = value * 1.0
            value.retain_grad()
            kept[name] = value
            return value

        return change

    expected_logits, _ = support.by_hand(glass64, IDS, {name: keep(name) for name in NAMES})
    (expected_logits * target).sum().backward()
    logits, ckpts = glass64.run_with_ckpts(IDS, grads=True)
    (logits * target).sum().backward()
    glass64.zero_grad(set_to_none=True)
    assert support.close(logits, expected_logits)
    for name in NAMES:
        assert ckpts[name].grad is not None, name
        hidden = ckpts[name].detach() <= torch.finfo(torch.float64).min / 2
        assert support.close(ckpts[name].grad.masked_fill(hidden, 0), kept[name].grad.masked_fill(hidden, 0), 1e-10), (
            name
        )


@pytest.mark.parametrize(
    "name", ["blocks.1.resid_mid", "blocks.0.ln1.ckpt_scaled", "blocks.1.attn.ckpt_pattern", "blocks.2.mlp.ckpt_pre"]
)
def test_gradients_are_finite_differences(glass64: pl.CkptedTransformer, name: str) -> None:
    target = torch.randn(2, 7, 211, dtype=torch.float64)
    logits, ckpts = glass64.run_with_ckpts(IDS, names=name, grads=True)
    (logits * target).sum().backward()
    glass64.zero_grad(set_to_none=True)
    direction = torch.randn_like(ckpts[name])
    slope = float((ckpts[name].grad * direction).sum())
    step = 1e-6
    up, down = (
        float(
            (
                glass64.run_with_ckpts(IDS, names="ckpt_embed", edits=[pl.Edit.add(name, sign * step * direction)])[0]
                * target
            ).sum()
        )
        for sign in (1, -1)
    )
    assert slope == pytest.approx((up - down) / (2 * step), rel=1e-6)


def test_backward_from_a_checkpoint(glass64: pl.CkptedTransformer) -> None:
    for name in NAMES:
        _, ckpts = glass64.run_with_ckpts(IDS, names=[name, "ckpt_embed"], grads=True)
        ckpts[name].masked_fill(ckpts[name] < -1e300, 0).square().sum().backward()
        reached = glass64.embed.W_E.grad
        assert (reached is not None and bool(reached.any())) == (name != "ckpt_pos_embed"), name
        glass64.zero_grad(set_to_none=True)


def test_gradients_of_a_frozen_model_begin_at_what_is_captured() -> None:
    names = ["blocks.1.attn.ckpt_q", "blocks.1.attn.ckpt_v", "blocks.1.mlp.ckpt_pre", "blocks.2.resid_post"]
    found = []
    for frozen in (False, True):
        model = support.glass()
        for parameter in model.parameters():
            parameter.requires_grad = not frozen
        logits, ckpts = model.run_with_ckpts(IDS, names=names, grads=True)
        logits.square().sum().backward()
        found.append([logits.detach(), *(ckpts[name].grad for name in names)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_without_a_beginning_there_is_no_gradient() -> None:
    never = (Tensor, "requires_grad_", lambda self: self, test_gradients_of_a_frozen_model_begin_at_what_is_captured)
    must_be_noticed(never, by=[RuntimeError, TypeError])


def test_without_grads_nothing_is_recorded(glass64: pl.CkptedTransformer) -> None:
    logits, ckpts = glass64.run_with_ckpts(IDS)
    assert not logits.requires_grad
    assert not any(value.requires_grad for value in ckpts.values())


def test_gradients_of_the_fused_path_agree(glass64: pl.CkptedTransformer) -> None:
    """Names that need no explicit path leave the forward pass as it is, to the bit."""
    with torch.no_grad():
        plain = glass64(IDS)
    logits, _ = glass64.run_with_ckpts(IDS, names="blocks.*.resid_post", grads=True)
    assert torch.equal(logits, plain)


def test_gradients_of_a_part_are_refused(glass: pl.CkptedTransformer) -> None:
    for part in ({"pos": 1}, {"heads": 0}):
        with pytest.raises(pl.InputError) as caught:
            glass.run_with_ckpts(IDS, grads=True, **part)
        assert caught.value.code == "grads-of-a-part"


def test_a_run_without_grads_ignores_the_callers_mode(glass: pl.CkptedTransformer) -> None:
    with torch.no_grad():
        logits, ckpts = glass.run_with_ckpts(IDS, names="ckpt_embed", grads=True)
    assert logits.requires_grad
    assert ckpts["ckpt_embed"].requires_grad


def test_names_may_be_a_generator(tiny: pl.CkptedTransformer):
    _, ckpts = tiny.run_with_ckpts(support.ROW, names=(n for n in ["ckpt_embed"]), stop_at="blocks.0.resid_mid")
    assert list(ckpts) == ["ckpt_embed"]


def test_captures_with_gradients_can_be_saved_and_those_with_edits_pickled(tiny: pl.CkptedTransformer, tmp_path):
    _, ckpts = tiny.run_with_ckpts(support.ROW, grads=True)
    ckpts.save(tmp_path / "ckpts.safetensors")
    assert pl.ActivationCkpts.load(tmp_path / "ckpts.safetensors").keys() == ckpts.keys()
    _, edited = tiny.run_with_ckpts(support.ROW, edits=pl.Edit.zero("ckpt_embed"))
    assert torch.equal(pickle.loads(pickle.dumps(edited))["resid_post", 1], edited["resid_post", 1])


def test_bfloat16_is_labelled(tiny: pl.CkptedTransformer):
    _, ckpts = tiny.bfloat16().run_with_ckpts(support.ROW, names="blocks.*.resid_post")
    assert ckpts.to_xarray().resid_post.dims == ("layer", "batch", "pos", "d_model")


@pytest.mark.parametrize("heads", [
    slice(1, None), slice(-2, None), slice(0, -1), slice(0, 100), slice(-3, 2), [-1], range(2),
    torch.tensor([3]), np.int64(2), 0,
], ids=str)  # fmt: skip
def test_kept_heads_are_known_wherever_they_go(tiny: pl.CkptedTransformer, heads: object, tmp_path: Path):
    _, ckpts = tiny.run_with_ckpts(support.ROW, names="blocks.*.attn.ckpt_z", heads=heads)
    chosen = torch.arange(4)[heads] if isinstance(heads, slice) else torch.arange(4)[torch.as_tensor(heads)]
    expected = chosen.reshape(-1).tolist()
    ckpts.save(tmp_path / "some.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "some.safetensors")
    for each in (ckpts, again):
        assert each.part.heads == expected
        assert each.to_xarray().coords["head"].values.tolist() == expected
        assert pl.measure.norms(each, "attn.ckpt_z").coords["head"].values.tolist() == expected


@pytest.mark.parametrize("axis", ["pos", "query"])
def test_labelled_captures_know_positions(axis: str, bundled: pl.CkptedTransformer):
    name = {"pos": "blocks.*.resid_post", "query": "blocks.*.attn.ckpt_pattern"}[axis]
    for texts, wanted in (([TEXT], [4, 5, 6, 7]), ([TEXT, "Lily"], None)):
        _, ckpts = bundled.run_with_ckpts(texts, names=name, pos=slice(4, 8))
        array = next(iter(ckpts.to_xarray().values()))
        positions = array["position" if axis == "pos" else "query_position"]
        expected = ckpts.batch.positions.masked_fill(~ckpts.batch.mask, -1)[:, 4:8].tolist()
        assert positions.values.tolist() == expected
        assert wanted is None or expected == [wanted]
