"""A sweep is a loop of whole runs, to 1e-10 in float64, whatever is shared between the runs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from loops import METRIC, everywhere, exact, patched, two
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import pellucid as pl
import support
from pellucid.patching import reruns

OVER = [
    ("resid_pre", ("layer", "pos")),
    ("resid_mid", ("pos", "layer")),
    ("attn.ckpt_z", ("layer", "head")),
    ("attn.ckpt_z", ("layer", "head", "pos")),
    ("attn.ckpt_q", ("head", "pos")),
    ("attn.ckpt_k", ("layer", "head")),
    ("attn.ckpt_v", ("layer", "pos")),
    ("attn.ckpt_scores", ("layer", "head")),
    ("attn.ckpt_pattern", ("layer", "pos")),
    ("mlp.ckpt_post", ("layer",)),
    ("mlp.ckpt_mlp_out", ("layer", "pos")),
    ("ln1.ckpt_scaled", ("layer", "pos")),
    ("ln2.ckpt_normalized", ("layer",)),
    ("ckpt_embed", ("pos",)),
    ("ckpt_pos_embed", ()),
    ("ln_final.ckpt_normalized", ("pos",)),
    ("resid_post", ()),
]


@pytest.mark.parametrize(
    ("name", "over", "metric"),
    support.few_of(
        [(*one, metric) for metric in (METRIC, everywhere) for one in OVER],
        *((*one, METRIC) for one in OVER),
        *((*one, everywhere) for one in (OVER[0], OVER[2], OVER[13])),
    ),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_sweep_is_the_loop(name: str, over: tuple[str, ...], metric: Any) -> None:
    model, (clean, corrupted) = exact(), two()
    swept = pl.patching.sweep(model, clean, corrupted, name, over=over, metric=metric, per_text=True)
    assert swept.dims == (*over, "batch")
    loop = patched(model, corrupted, clean, name, over, metric)
    np.testing.assert_allclose(swept.values, loop, rtol=0, atol=1e-10)
    assert np.ptp(loop) > 1e-3 or name in ("ckpt_pos_embed",), "the patches do nothing, so nothing is compared"


def test_neurons_one_by_one() -> None:
    model, (clean, corrupted) = exact(n_layer=2, n_embd=16, n_head=2), two(1, 4)
    swept = pl.patching.sweep(model, clean, corrupted, "mlp.ckpt_post", over=("layer", "neuron"), metric=METRIC)
    loop = patched(model, corrupted, clean, "mlp.ckpt_post", ("layer", "neuron"), METRIC)
    np.testing.assert_allclose(swept.values, loop.mean(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_several_lengths(side: str, attention: str) -> None:
    """Each column is patched in the texts that have a token there; the others count in the mean as they are."""
    model = exact(attention=attention)
    rows = [support.ragged_ids(3, 6, 5, seed=seed) for seed in (0, 50)]
    clean, corrupted = (model.tokenize(ids, padding_side=side) for ids in rows)
    swept = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC, per_text=True)
    loop = patched(model, corrupted, clean, "resid_pre", ("layer", "pos"), METRIC)
    real = np.broadcast_to(corrupted.mask.T.numpy(), loop.shape)
    np.testing.assert_allclose(swept.values[real], loop[real], rtol=0, atol=1e-10)
    assert np.isnan(swept.values[~real]).all()
    mean = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)
    np.testing.assert_allclose(mean.values, loop.mean(-1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("tokens", support.few_of([1, 7, 10_000], 7))
def test_however_many_runs_share_a_batch(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reruns, "TOKENS", tokens)
    model, (clean, corrupted) = exact(), two()
    swept = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", over=("layer", "head", "pos"), metric=METRIC)
    loop = patched(model, corrupted, clean, "attn.ckpt_z", ("layer", "head", "pos"), METRIC).mean(-1)
    np.testing.assert_allclose(swept.values, loop, rtol=0, atol=1e-10)


def test_rounding_in_float32_is_that_of_the_model() -> None:
    """A shared batch rounds otherwise than a single run; both are as far from float64 as float32 is."""
    model, (clean, corrupted) = support.glass(), two()
    swept = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC, per_text=True)
    loop = patched(model, corrupted, clean, "resid_pre", ("layer", "pos"), METRIC)
    true = patched(exact(), corrupted, clean, "resid_pre", ("layer", "pos"), METRIC)
    rounding = np.abs(loop - true).max()
    assert np.abs(swept.values - true).max() <= 2 * rounding


@pytest.mark.parametrize("numerics", ["fast", "bfloat16"])
def test_fast_numerics(numerics: str) -> None:
    fast, (clean, corrupted) = support.glass(numerics=numerics), two()
    swept = pl.patching.sweep(fast, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC, per_text=True)
    loop = patched(fast, corrupted, clean, "resid_pre", ("layer", "pos"), METRIC)
    true = patched(exact(), corrupted, clean, "resid_pre", ("layer", "pos"), METRIC)
    assert np.abs(swept.values - true).max() <= 2 * np.abs(loop - true).max()


def test_directions_are_told_apart() -> None:
    model, (clean, corrupted) = exact(), two()
    more: dict[str, Any] = {"over": ("layer", "pos"), "metric": METRIC, "per_text": True}
    noised = pl.patching.sweep(model, clean, corrupted, "resid_pre", direction="noise", **more)
    loop = patched(model, clean, corrupted, "resid_pre", ("layer", "pos"), METRIC)
    np.testing.assert_allclose(noised.values, loop, rtol=0, atol=1e-10)
    denoised = pl.patching.sweep(model, corrupted, clean, "resid_pre", **more)
    np.testing.assert_array_equal(noised.values, denoised.values)
    assert (noised.attrs["clean"], noised.attrs["corrupted"]) == (denoised.attrs["corrupted"], denoised.attrs["clean"])


def test_the_plain_runs_are_attributes() -> None:
    model, (clean, corrupted) = exact(), two()
    swept = pl.patching.sweep(model, clean, corrupted, "resid_post", over=("layer",), metric=METRIC)
    for side, ids in (("clean", clean), ("corrupted", corrupted)):
        plain = METRIC(model(ids).detach(), model.tokenize(ids))
        np.testing.assert_allclose(swept.attrs[f"{side}_by_text"], plain, rtol=0, atol=1e-10)
        np.testing.assert_allclose(swept.attrs[side], plain.mean(), rtol=0, atol=1e-10)
    assert float(pl.patching.normalized(swept)[-1]) == pytest.approx(1.0, abs=1e-10), "the last stream is the run"
    first = pl.patching.sweep(model, clean, clean, "resid_pre", over=("layer",), metric=METRIC)
    np.testing.assert_allclose(first.values, first.attrs["corrupted"], rtol=0, atol=1e-10)


def test_several_checkpoints_have_an_axis_of_their_own() -> None:
    model, (clean, corrupted) = exact(), two()
    names = ["resid_mid", "attn.ckpt_attn_out", "blocks.1.resid_pre"]
    swept = pl.patching.sweep(model, clean, corrupted, names, over=("layer", "pos"), metric=METRIC)
    assert swept.dims == ("checkpoint", "layer", "pos")
    assert swept.checkpoint.values.tolist() == names
    for name in names[:2]:
        alone = pl.patching.sweep(model, clean, corrupted, name, over=("layer", "pos"), metric=METRIC)
        np.testing.assert_allclose(swept.sel(checkpoint=name).values, alone.values, rtol=0, atol=1e-10)
    one = swept.sel(checkpoint="blocks.1.resid_pre")
    assert one.notnull().any("pos").values.tolist() == [False, True, False], "of one block, the others are missing"


def test_a_part_limits_every_patch() -> None:
    model, (clean, corrupted) = exact(), two()
    swept = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", over=("layer", "head"), metric=METRIC, pos=-1)
    loop = patched(model, corrupted, clean, "attn.ckpt_z", ("layer", "head"), METRIC, pos=-1)
    np.testing.assert_allclose(swept.values, loop.mean(-1), rtol=0, atol=1e-10)
    some = pl.patching.sweep(
        model, clean, corrupted, "attn.ckpt_z", over=("head", "pos"), metric=METRIC, heads=[0, 2, 3], pos=[4, 1],
        neurons=[1, 2, 5],
    )  # fmt: skip
    assert some["head"].values.tolist() == [0, 2, 3]
    assert some["pos"].values.tolist() == [4, 1]
    loop = patched(model, corrupted, clean, "attn.ckpt_z", ("head", "pos"), METRIC, neurons=[1, 2, 5]).mean(-1)
    np.testing.assert_allclose(some.values, loop[[0, 2, 3]][:, [4, 1]], rtol=0, atol=1e-10)


def test_a_metric_sees_one_run_at_a_time() -> None:
    """Whole logits of the original rows, in their order; those that it does not promise to read are NaN."""
    model, (clean, corrupted) = exact(), two()
    seen: list[tuple[torch.Size, int, int]] = []

    class Metric:
        positions = (-1, -3)

        def __call__(self, logits: Tensor, batch: pl.Batch) -> Tensor:
            assert torch.equal(batch.ids, corrupted) or torch.equal(batch.ids, clean)
            seen.append((logits.shape, int(logits[:, -1].isnan().sum()), int(logits[:, -2].isnan().sum())))
            return logits[:, -1, 3] - logits[:, -3, 4]

    metric = Metric()
    swept = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=metric, per_text=True)
    loop = patched(model, corrupted, clean, "resid_pre", ("layer", "pos"), metric)
    np.testing.assert_allclose(swept.values, loop, rtol=0, atol=1e-10)
    vocabulary = model.config.vocab_size
    assert {shape for shape, _, _ in seen} == {torch.Size([2, 6, vocabulary])}
    assert {last for _, last, _ in seen} == {0}
    assert {before for _, _, before in seen} == {0, 2 * vocabulary}


def test_hooks_see_every_run() -> None:
    """Whoever looks at the model's own modules sees the runs of a sweep, too."""
    model, (clean, corrupted) = exact(), two()
    seen: list[int] = []
    handle = model.blocks[2].register_forward_hook(lambda module, given, out: seen.append(len(out)))
    pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)
    handle.remove()
    assert sum(seen) >= 2 * 3 * 6, "each of the eighteen patches has two rows of its own"


def test_hooks_on_a_block_change_every_run_once() -> None:
    """A run begins at one block and goes on at another as one run: what hooks do to a block is done once."""
    model, (clean, corrupted) = exact(), two()
    before = model.blocks[1].register_forward_pre_hook(lambda module, given: (given[0] * 1.5, *given[1:]))
    after = model.blocks[1].register_forward_hook(lambda module, given, out: out + 0.25 * out.square())
    point = model.blocks[2].resid_pre.register_forward_hook(lambda module, given, out: out * 1.25)
    for name in ("resid_pre", "mlp.ckpt_mlp_out"):
        swept = pl.patching.sweep(model, clean, corrupted, name, over=("layer", "pos"), metric=METRIC, per_text=True)
        loop = patched(model, corrupted, clean, name, ("layer", "pos"), METRIC)
        np.testing.assert_allclose(swept.values, loop, rtol=0, atol=1e-10)
    for handle in (before, after, point):
        handle.remove()


def test_it_multiplies_less_than_a_third_of_what_the_loop_does() -> None:
    """Twelve blocks and sixteen positions, of which half the columns of half the blocks can differ on average."""
    model, (clean, corrupted) = exact(n_layer=12, n_positions=16), two(1, 16)
    values, batch = model.run_with_ckpts(clean, names="resid_pre")[1], model.tokenize(corrupted)
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        METRIC(model.run(batch, edits=pl.Edit.patch("blocks.3.resid_pre", values, pos=3)), batch)
    with FlopCounterMode(display=False) as all_of_them:
        pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)
    assert all_of_them.get_total_flops() < 12 * 16 * one.get_total_flops() / 3


def test_a_hook_on_the_model_changes_every_run() -> None:
    model, (clean, corrupted) = exact(), two()
    plain = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)
    double: Any = lambda module, given, out: 2 * out  # noqa: E731
    handle = model.register_forward_hook(double)
    doubled = pl.patching.sweep(model, clean, corrupted, "resid_pre", over=("layer", "pos"), metric=METRIC)
    handle.remove()
    np.testing.assert_allclose(doubled.values, 2 * plain.values, rtol=0, atol=1e-10)


def test_a_change_that_makes_the_metric_infinite_is_told() -> None:
    model, (clean, corrupted) = exact(), two()
    plain = [METRIC(model(ids).detach(), model.tokenize(ids)) for ids in (clean, corrupted)]

    def metric(logits: Tensor, batch: pl.Batch) -> Tensor:
        found = METRIC(logits, batch)
        known = any(torch.allclose(found, one, rtol=0, atol=1e-9) for one in plain)
        return found if known else torch.full_like(found, torch.inf)

    with pytest.warns(pl.PellucidWarning, match="not finite after some"):
        swept = pl.patching.sweep(model, clean, corrupted, "resid_mid", over=("layer", "pos"), metric=metric)
    assert np.isinf(swept.values).any()


def test_one_text_has_its_tokens_as_labels() -> None:
    clean, corrupted = "Tom has a ball. Tom likes the", "Tom has a cat. Tom likes the"
    metric = pl.metrics.logit_difference(" ball", " cat")
    swept = pl.patching.sweep(pl.load(), clean, corrupted, "resid_pre", over=("layer", "pos"), metric=metric)
    assert swept.token.values.tolist()[3] == " cat"
    assert swept.source_token.values.tolist()[3] == " ball"
    shares = pl.patching.normalized(swept)
    assert shares.sel(layer=0, pos=3) == pytest.approx(1.0, abs=1e-5), "the texts differ in this token alone"


def test_the_estimate_is_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": ("layer", "pos"), "metric": METRIC}
    cost = pl.patching.estimate_sweep(model, clean, corrupted, "resid_pre", **about)
    batches: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, given: batches.append(1))
    pl.patching.sweep(model, clean, corrupted, "resid_pre", **about)
    handle.remove()
    assert (cost.runs, cost.batches) == (18, len(batches) - 2), "without the two plain runs"
    assert cost.nbytes == cost.kept + cost.batch
    whole = 2 * 6 * 211 * 8  # logits, as the metric is given them
    assert cost.kept > 18 * 48 * 8 + whole
    every = pl.patching.estimate_sweep(model, clean, corrupted, "resid_pre", over=("layer",), metric=everywhere)
    assert every.kept == cost.kept + whole, "those of the base run are kept, too"
    longer = support.some_ids(2, 9, seed=8)
    roles = pl.patching.align(model, longer, corrupted, {"end": -1})
    given: Any = (model, longer, corrupted, "resid_pre")
    back: Any = (model, corrupted, longer, "resid_pre")
    into_longer = pl.patching.estimate_sweep(*given, align=roles, direction="noise", **about)
    assert into_longer == pl.patching.estimate_sweep(*back, align=roles.turned(), **about)
    assert into_longer.nbytes > pl.patching.estimate_sweep(*given, align=roles, **about).nbytes


@pytest.mark.parametrize("metric", [METRIC, everywhere])
@pytest.mark.parametrize("pos", [None, -2])
def test_what_is_estimated_is_enough_and_a_byte_less_is_not(pos: int | None, metric: Any) -> None:
    """Of one run, which no smaller batch makes smaller: what the metric reads counts, from the column that differs."""
    given, about = (exact(), *two(), "blocks.0.resid_pre"), {"over": (), "metric": metric, "pos": pos}
    cost = int(pl.patching.estimate_sweep(*given, **about))
    pl.patching.sweep(*given, **about, max_bytes=cost)
    with pytest.raises(pl.PellucidError, match="bytes are kept"):
        pl.patching.sweep(*given, **about, max_bytes=cost - 1)


def test_less_memory_makes_smaller_batches() -> None:
    model, (clean, corrupted) = exact(), two()
    about: dict[str, Any] = {"over": ("layer", "pos"), "metric": METRIC}
    roomy = pl.patching.estimate_sweep(model, clean, corrupted, "resid_pre", **about)
    room = roomy.kept + roomy.batch // 3
    tight = pl.patching.estimate_sweep(model, clean, corrupted, "resid_pre", max_bytes=room, **about)
    assert tight.batches > roomy.batches
    assert tight.nbytes <= room
    swept = pl.patching.sweep(model, clean, corrupted, "resid_pre", max_bytes=room, **about)
    whole = pl.patching.sweep(model, clean, corrupted, "resid_pre", **about)
    np.testing.assert_allclose(swept.values, whole.values, rtol=0, atol=1e-10)


def test_nothing_of_the_model_changes() -> None:
    model, (clean, corrupted) = exact(), two()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.patching.sweep(model, clean, corrupted, ["resid_pre", "attn.ckpt_z"], over=("layer", "pos"), metric=METRIC)
    assert torch.equal(model(clean), logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "minus_one", [-1, np.int64(-1), np.array(-1), torch.tensor(-1), [-1], np.array([-1])], ids=repr
)
def test_numbers_of_other_libraries_say_where(minus_one: Any) -> None:
    """Also where the texts have unequal lengths, and heads that can be read once alone."""
    model = exact()
    clean, corrupted = support.ragged_ids(7, seed=1), support.ragged_ids(5, seed=9)
    about: dict[str, Any] = {"over": ("layer", "head"), "metric": METRIC}
    plain = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", pos=-1, heads=[1, 3], **about)
    found = pl.patching.sweep(model, clean, corrupted, "attn.ckpt_z", pos=minus_one, heads=(i for i in (1, 3)), **about)
    np.testing.assert_array_equal(found.values, plain.values)
