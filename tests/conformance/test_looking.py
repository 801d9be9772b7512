"""Looking never changes the answer, and a checkpoint is a place that a value passes through, not a copy of it."""

from __future__ import annotations

import functools
from typing import Any

import checks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
import support

NAMES = support.schema(support.SIZES["n_layer"]).names
AROUND_A_BLOCK = [name for name in NAMES if not name.startswith(("blocks.0.", "blocks.2."))]
"""All names but those of the first and of the last block, which run as the one between them does."""

HEADS = support.SIZES["n_head"]
COLUMNS = 11
RAGGED = support.ragged_ids(3, COLUMNS, 7)
MODES = {"no_grad": torch.no_grad, "grad": torch.enable_grad, "inference": torch.inference_mode}

subsets = st.lists(st.sampled_from(NAMES), min_size=1, max_size=12, unique=True)
columns = (
    st.none()
    | st.integers(-COLUMNS, COLUMNS - 1)
    | st.lists(st.integers(-COLUMNS, COLUMNS - 1), min_size=1, max_size=5)
)
heads = st.none() | st.integers(-HEADS, HEADS - 1) | st.lists(st.integers(0, HEADS - 1), min_size=1, max_size=4)

few = settings(max_examples=12, deadline=None, derandomize=True)


MODELS: dict[str, dict[str, Any]] = {
    "auto": {},
    "eager": {"attention": "eager"},
    "fast": {"numerics": "fast"},
    "bfloat16": {"dtype": torch.bfloat16},
    "rounded products": {"numerics": "bfloat16"},
}


@functools.cache
def made(kind: str) -> pl.CkptedTransformer:
    return support.glass(**MODELS[kind])


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> pl.CkptedTransformer:
    """The same for every test, which leaves it as it was."""
    return made(request.param)


def in_turn(names: str, *others: Any) -> pytest.MarkDecorator:
    """The first model meets all of the others, each other model the first of them; the long run tries every pair."""
    kept = [*(("auto", *other) for other in others), *((kind, *others[0]) for kind in MODELS)]
    pairs = [(kind, *other) for kind in MODELS for other in others]
    return pytest.mark.parametrize(("model", *names.split()), support.few_of(pairs, *kept), indirect=["model"])


@pytest.mark.filterwarnings("ignore:.*in training mode")  # seeded, dropout draws the same again
@few
@given(names=subsets, pos=columns, heads=heads, training=st.booleans(), padded=st.booleans())
def test_any_look_at_anything(model: Any, names: list[str], pos: Any, heads: Any, training: bool, padded: bool) -> None:
    model.train(training)
    try:
        checks.looking(model, RAGGED if padded else [RAGGED[1]], names=names, pos=pos, heads=heads)
    finally:
        model.eval()


@pytest.mark.filterwarnings("ignore:.*in training mode")  # seeded, dropout draws the same again
@in_turn("training", (False,), (True,))
def test_looking_at_everything(model: pl.CkptedTransformer, training: bool) -> None:
    model.train(training)
    try:
        checks.looking(model, RAGGED)
        for name in AROUND_A_BLOCK:
            checks.looking(model, RAGGED, names=name)
    finally:
        model.eval()


@few
@given(pos=columns, heads=heads)
def test_a_selection_is_a_slice_of_the_whole(glass: Any, pos: Any, heads: Any) -> None:
    _, whole = glass.run_with_ckpts(RAGGED)
    _, part = glass.run_with_ckpts(RAGGED, pos=pos, heads=heads)
    for name, axes in support.schema(glass.config.n_layer).axes.items():
        expected = whole[name].numpy()
        for axis, kind in enumerate(axes):
            if kind in ("pos", "query") and pos is not None:
                expected = np.take(expected, np.atleast_1d(pos), axis=axis)
            if kind == "head" and heads is not None:
                expected = np.take(expected, np.atleast_1d(heads), axis=axis)
        assert np.array_equal(part[name].numpy(), expected), name


def test_a_slice_selects_like_a_slice(glass: pl.CkptedTransformer) -> None:
    _, whole = glass.run_with_ckpts(RAGGED, names="blocks.1.**")
    _, part = glass.run_with_ckpts(RAGGED, names="blocks.1.**", pos=slice(-4, None, 2), heads=slice(1, 3))
    assert torch.equal(part["blocks.1.attn.ckpt_pattern"], whole["blocks.1.attn.ckpt_pattern"][:, 1:3, -4::2])
    assert torch.equal(part["blocks.1.attn.ckpt_z"], whole["blocks.1.attn.ckpt_z"][:, -4::2, 1:3])
    assert torch.equal(part["blocks.1.resid_mid"], whole["blocks.1.resid_mid"][:, -4::2])


@in_turn("mode returns", *((mode, "nothing") for mode in MODES), ("grad", "the same tensor"))
def test_native_hooks_that_look(model: pl.CkptedTransformer, mode: str, returns: str) -> None:
    with MODES[mode]():
        plain = model(RAGGED)
        for name in AROUND_A_BLOCK:
            seen: list[torch.Tensor] = []

            def hook(module: Any, args: Any, out: Any, seen: list[torch.Tensor] = seen) -> Any:
                seen.append(out.detach().clone())
                return out if returns == "the same tensor" else None

            handle = model.get_submodule(name).register_forward_hook(hook)
            looked = model(RAGGED)
            handle.remove()
            assert torch.equal(looked, plain), name
            assert len(seen) == 1, f"{name} fired {len(seen)} times"
            assert torch.equal(seen[0], model.run_with_ckpts(RAGGED, names=name)[1][name]), name


def test_native_hooks_and_forward_pre_hooks_see_every_name_in_order(glass: pl.CkptedTransformer) -> None:
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        seen: list[str] = []
        modules = [glass.get_submodule(name) for name in NAMES]
        handles = [getattr(m, register)(lambda module, *_, seen=seen: seen.append(module.name)) for m in modules]
        glass(RAGGED)
        for handle in handles:
            handle.remove()
        assert tuple(seen) == NAMES


@in_turn("mode", *((mode,) for mode in MODES))
def test_what_a_hook_returns_is_what_the_model_goes_on_with(model: pl.CkptedTransformer, mode: str) -> None:
    with MODES[mode]():
        checks.hooks_go_on(model, RAGGED, AROUND_A_BLOCK)


@in_turn("mode", ("no_grad",), ("inference",))
def test_what_a_hook_writes_in_place_is_what_the_model_goes_on_with(model: pl.CkptedTransformer, mode: str) -> None:
    with MODES[mode]():
        plain = model(RAGGED)
        for name in AROUND_A_BLOCK:
            handle = model.get_submodule(name).register_forward_hook(lambda m, a, out: _write(out))
            written = model(RAGGED)
            handle.remove()
            assert not torch.equal(written, plain), f"what a hook at {name} writes is dropped"
            assert torch.equal(model(RAGGED), plain)


def _write(out: torch.Tensor) -> None:
    out.copy_(out.flip(-1) * 0.5)


def test_an_edit_and_a_hook_that_do_the_same_give_the_same(glass64: pl.CkptedTransformer) -> None:
    for name in NAMES:
        edited, _ = glass64.run_with_ckpts(RAGGED, names="ckpt_embed", edits=[pl.Edit.scale(name, 0.5)])
        handle = glass64.get_submodule(name).register_forward_hook(lambda module, args, out: out * 0.5)
        with torch.no_grad():
            hooked = glass64(RAGGED)
        handle.remove()
        assert torch.equal(edited, hooked), name


def test_captures_are_snapshots(model: pl.CkptedTransformer) -> None:
    checks.snapshots(model, RAGGED)


def test_captures_survive_later_writes(model: pl.CkptedTransformer) -> None:
    checks.snapshots_of_the_past(model, RAGGED)


def test_selected_captures_are_snapshots_too(glass: pl.CkptedTransformer) -> None:
    everything = list(range(COLUMNS))
    _, ckpts = glass.run_with_ckpts(RAGGED, pos=everything, heads=range(HEADS))
    addresses = [value.untyped_storage().data_ptr() for value in ckpts.values()]
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize("length", [1, 2, 7, 11, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_pattern_whose_scores_nobody_sees_is_the_same_pattern(dtype: torch.dtype, length: int) -> None:
    checks.pattern_alone(support.glass(dtype=dtype), support.some_ids(2, length))


def test_captures_carry_no_gradient(glass: pl.CkptedTransformer) -> None:
    with torch.enable_grad():
        _, ckpts = glass.run_with_ckpts(RAGGED)
    assert not any(value.requires_grad for value in ckpts.values())


@pytest.mark.parametrize("layers", [0, 1, 3, 12])
def test_there_are_17_a_block_and_4_more(layers: int) -> None:
    model = support.glass(n_layer=layers)
    _, ckpts = model.run_with_ckpts([[1, 2]])
    assert len(ckpts) == 17 * layers + 4
    assert tuple(ckpts) == model.ckpt_names == support.schema(layers).names


def test_names_agree_between_modules_table_taps_and_captures(glass: pl.CkptedTransformer) -> None:
    of_modules = {name: module.name for name, module in glass.named_modules() if type(module).__name__ == "Ckpt"}
    assert all(path == own for path, own in of_modules.items())
    watcher = support.Watcher()
    glass(RAGGED, watcher)
    _, ckpts = glass.run_with_ckpts(RAGGED)
    assert set(of_modules) == set(NAMES)
    assert watcher.seen == list(NAMES) == list(ckpts), "execution order, each name once"
    assert all(torch.equal(value, watcher.values[name]) for name, value in ckpts.items())


def test_shapes_are_those_of_the_table(glass: pl.CkptedTransformer) -> None:
    sizes = {
        "batch": 3,
        "pos": COLUMNS,
        "query": COLUMNS,
        "key": COLUMNS,
        "head": 4,
        "d_model": 48,
        "d_head": 12,
        "d_mlp": 192,
    }
    _, ckpts = glass.run_with_ckpts(RAGGED)
    for name, axes in support.schema(3).axes.items():
        assert list(ckpts[name].shape) == [sizes[axis] for axis in axes], name


def test_masked_scores_hold_the_minimum_and_patterns_sum_to_one(model: pl.CkptedTransformer) -> None:
    batch = model.tokenize(RAGGED)
    _, ckpts = model.run_with_ckpts(batch)
    visible = torch.ones(COLUMNS, COLUMNS, dtype=torch.bool).tril() & batch.mask[:, None, None, :]
    for i in range(3):
        scores, pattern = ckpts[f"blocks.{i}.attn.ckpt_scores"], ckpts[f"blocks.{i}.attn.ckpt_pattern"]
        hidden = (~visible).expand_as(scores)
        assert torch.equal(scores == torch.finfo(scores.dtype).min, hidden)
        real = batch.mask[:, None, :, None].expand_as(pattern)
        assert not pattern[hidden & real].any()
        assert torch.allclose(
            pattern.float().sum(-1), torch.ones(()), atol=1e-2 if pattern.dtype == torch.bfloat16 else 1e-6
        )


@pytest.mark.parametrize(
    "fields", [{}, {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True, "n_head": 1}]
)
def test_the_explicit_path_is_the_fused_one_up_to_rounding(fields: dict[str, Any]) -> None:
    fused = support.glass(dtype=torch.float64, **fields)
    explicit = support.glass(dtype=torch.float64, attention="eager", **fields)
    batch = fused.tokenize(RAGGED)
    with torch.no_grad():
        (a, in_fused), (b, in_explicit) = fused.run_with_ckpts(batch), explicit.run_with_ckpts(batch)
    assert support.close(a[batch.mask], b[batch.mask])
    for name in NAMES:
        one, other = (
            c[name].transpose(1, 2) if name.endswith(("scores", "pattern")) else c[name]
            for c in (in_fused, in_explicit)
        )
        assert support.close(one[batch.mask], other[batch.mask]), name


def test_what_is_computed_beside_is_what_the_fused_path_computes(glass64: pl.CkptedTransformer) -> None:
    """Patterns and scaled values take no part in the run; they are nevertheless the ones of this very run."""
    batch = glass64.tokenize(RAGGED)
    _, ckpts = glass64.run_with_ckpts(batch)
    for i in range(3):
        pattern, v = ckpts[f"blocks.{i}.attn.ckpt_pattern"], ckpts[f"blocks.{i}.attn.ckpt_v"]
        z = torch.einsum("bhqp,bphk->bqhk", pattern, v)
        assert support.close(z[batch.mask], ckpts[f"blocks.{i}.attn.ckpt_z"][batch.mask])
        for norm in ("ln1", "ln2"):
            w, b = (glass64.parameter(f"blocks.{i}.{norm}.{part}") for part in "wb")
            again = ckpts[f"blocks.{i}.{norm}.ckpt_scaled"] * w + b
            assert support.close(again, ckpts[f"blocks.{i}.{norm}.ckpt_normalized"])


def test_attention_stays_fused_unless_watched(glass: pl.CkptedTransformer) -> None:
    checks.stays_fused(glass, RAGGED)
    checks.stays_fused(glass, [RAGGED[1]])


def test_scaled_values_are_computed_only_for_those_who_look(glass: pl.CkptedTransformer) -> None:
    with torch.no_grad():
        plain = checks.ops(lambda: glass(RAGGED)).count("native_layer_norm")
        look = checks.ops(lambda: glass.run_with_ckpts(RAGGED, names="blocks.0.ln2.ckpt_scaled"))
    assert look.count("native_layer_norm") == plain + 1


def test_stop_at_runs_nothing_later(glass: pl.CkptedTransformer) -> None:
    checks.stops(glass, RAGGED)


def test_patterns_of_names(glass: pl.CkptedTransformer) -> None:
    checks.globs(glass)


def test_dropout_is_on_only_while_training() -> None:
    checks.training_draws(support.glass(), RAGGED)


def test_the_hook_of_a_notebook_works_as_it_is(glass: pl.CkptedTransformer) -> None:
    """Forward hooks on the attention modules, whose output is a tuple, as people write them for transformers."""
    adjustments: dict[str, np.ndarray] = {}

    def implant_hook(layer_number: int) -> Any:
        def hook(module: Any, input: Any, output: Any) -> None:  # noqa: A002
            adjustments[f"L{layer_number}_attn"] = output[0].detach().numpy()

        return hook

    handles = [block.attn.register_forward_hook(implant_hook(i)) for i, block in enumerate(glass.blocks)]
    ids = support.some_ids(1, COLUMNS)
    with torch.no_grad():
        logits = glass(ids)
    for handle in handles:
        handle.remove()
    plain, ckpts = glass.run_with_ckpts(ids)
    assert torch.equal(logits, plain)
    assert sorted(adjustments) == ["L0_attn", "L1_attn", "L2_attn"]
    for i in range(3):
        assert np.array_equal(adjustments[f"L{i}_attn"], ckpts[f"blocks.{i}.attn.ckpt_attn_out"].numpy())
    norms = np.log(np.linalg.norm(adjustments["L0_attn"][0], axis=-1))
    assert norms.shape == (COLUMNS,)
    assert np.isfinite(norms).all()


def test_the_attention_module_gives_the_pattern_to_those_who_look(glass: pl.CkptedTransformer) -> None:
    x = torch.randn(2, 5, 48)
    attn = glass.blocks[0].attn
    attn_out, pattern = attn(x)
    assert attn_out.shape == x.shape
    assert pattern is None
    handle = attn.ckpt_pattern.register_forward_hook(lambda *_: None)
    again, pattern = attn(x)
    handle.remove()
    assert torch.equal(again, attn_out)
    assert pattern is not None
    assert pattern.shape == (2, 4, 5, 5)
