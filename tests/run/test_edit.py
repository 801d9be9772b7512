"""Every kind of edit, everywhere it can be made, against an independent computation in float64."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import checks
import pytest
import torch
from torch import Tensor

import pellucid as pl
import support
from noticed import must_be_noticed
from pellucid import tap as ckpt
from pellucid.family import attend
from pellucid.run import changes
from pellucid.schema import Axis

NAMES = support.schema(support.SIZES["n_layer"]).names
AXES = support.schema(support.SIZES["n_layer"]).axes
IDS = support.some_ids(2, 11)
RAGGED = support.ragged_ids(3, 11, 7)
OF_BLOCK = [name for name in NAMES if name.startswith("blocks.1.")] + [n for n in NAMES if "blocks" not in n]


def part_of(name: str, pos: Any = None, heads: Any = None, neurons: Any = None, rows: Any = None) -> tuple[Any, ...]:
    """What `pos`, `heads`, `neurons` and `rows` (slices) choose, as an index of the value."""
    places: dict[str, Any] = {Axis.POS: pos, Axis.QUERY: pos, Axis.HEAD: heads, Axis.BATCH: rows}
    places.update(dict.fromkeys((Axis.D_MODEL, Axis.D_MLP, Axis.D_HEAD), neurons))
    return tuple(places.get(axis) or slice(None) for axis in AXES[name])


def with_part(index: tuple[Any, ...], change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    def changed(value: Tensor) -> Tensor:
        out = value.clone()
        out[index] = change(value[index].clone())
        return out

    return changed


Change = Callable[[Tensor, Tensor], Any]

KINDS: dict[str, tuple[Callable[..., pl.Edit], Change]] = {
    "zero": (lambda name, value, **at: pl.Edit.zero(name, **at), lambda part, value: torch.zeros_like(part)),
    "replace": (
        lambda name, value, **at: pl.Edit.replace(name, 0.25, **at),
        lambda part, value: torch.full_like(part, 0.25),
    ),
    "replace by tensor": (pl.Edit.replace, lambda part, value: value),
    "add": (pl.Edit.add, lambda part, value: part + value),
    "scale": (lambda name, value, **at: pl.Edit.scale(name, 1.5, **at), lambda part, value: part * 1.5),
    "apply": (
        lambda name, value, **at: pl.Edit.apply(name, lambda x: x.flip(-1), **at),
        lambda part, value: part.flip(-1),
    ),
}

SCORES = "blocks.1.attn.ckpt_scores"
SIZES = {"batch": 2, "pos": 11, "query": 11, "key": 11, "head": 4, "d_model": 48, "d_head": 12, "d_mlp": 192}


def check_kind(model: pl.CkptedTransformer, kind: str, name: str, index: tuple[Any, ...], **at: Any) -> None:
    """An edit limited by `at` equals the independent computation in which `index` is changed alike.

    The value that is added or put there is random: layer norms and softmaxes do not see constants.
    """
    make, change = KINDS[kind]
    shape = torch.empty([SIZES[axis] for axis in AXES[name]])[index].shape
    value = torch.randn(shape, dtype=torch.float64).abs()
    checks.edits_fit(model, IDS, name, [make(name, value, **at)], with_part(index, lambda part: change(part, value)))


def at_scores(kind: str, name: str) -> bool:
    """Masked scores hold the minimum: 1.5 times it is minus infinity, and test_scores looks at scaling them."""
    return name.endswith("ckpt_scores") and kind == "scale"


PAIRS = [(kind, name) for kind in KINDS for name in OF_BLOCK if not at_scores(kind, name)]
SHAPES = ("resid_mid", "attn.ckpt_scores", "attn.ckpt_pattern", "attn.ckpt_z", "mlp.ckpt_post")
FEW = [(kind, name) for kind, name in PAIRS if name == "ckpt_embed" or name.removeprefix("blocks.1.") in SHAPES]
"""What every run tries of them: each kind of edit at a value of each shape."""


@pytest.mark.parametrize(("kind", "name"), support.few_of(PAIRS, "replace by tensor", *FEW))
def test_every_kind_at_every_checkpoint(glass64: pl.CkptedTransformer, kind: str, name: str) -> None:
    check_kind(glass64, kind, name, part_of(name))


@pytest.mark.parametrize(("kind", "name"), support.few_of(PAIRS, *FEW))
def test_every_kind_at_positions(glass64: pl.CkptedTransformer, kind: str, name: str) -> None:
    check_kind(glass64, kind, name, part_of(name, pos=slice(2, 7)), pos=slice(2, 7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["attn.ckpt_q", "attn.ckpt_k", "attn.ckpt_v", "attn.ckpt_pattern", "attn.ckpt_z"])
def test_every_kind_at_heads(glass64: pl.CkptedTransformer, kind: str, name: str) -> None:
    name = f"blocks.1.{name}"
    check_kind(
        glass64, kind, name, part_of(name, pos=slice(3, 9, 2), heads=slice(1, 4, 2)), pos=[3, 5, 7], heads=[1, -1]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["resid_pre", "ln1.ckpt_scaled", "attn.ckpt_z", "mlp.ckpt_pre", "mlp.ckpt_post", "resid_mid"]
)
def test_every_kind_at_neurons(glass64: pl.CkptedTransformer, kind: str, name: str) -> None:
    name = f"blocks.1.{name}"
    check_kind(
        glass64, kind, name, part_of(name, pos=slice(4, 5), neurons=slice(0, 10, 3)), pos=4, neurons=[0, 3, 6, 9]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resid_pre", "attn.ckpt_pattern", "attn.ckpt_z", "mlp.ckpt_post"])
def test_every_kind_at_rows(glass64: pl.CkptedTransformer, kind: str, name: str) -> None:
    name = f"blocks.1.{name}"
    check_kind(glass64, kind, name, part_of(name, pos=slice(4, 6), rows=slice(1, 2)), pos=[4, 5], rows=-1)


EDITS_OF_ROWS = {
    "zero": lambda rows, source: pl.Edit.zero("blocks.0.attn.ckpt_z", heads=1, rows=rows),
    "scale": lambda rows, source: pl.Edit.scale("blocks.1.resid_pre", 0.5, pos=-2, rows=rows),
    "mean": lambda rows, source: pl.Edit.mean_ablate("blocks.1.mlp.ckpt_post", source, rows=rows),
    "patch": lambda rows, source: pl.Edit.patch("blocks.2.resid_mid", source, pos=3, rows=rows),
    "apply": lambda rows, source: pl.Edit.apply("blocks.0.attn.ckpt_pattern", lambda p: p.flip(-3), rows=rows),
    "scores": lambda rows, source: pl.Edit.scale("blocks.1.attn.ckpt_scores", 0.5, rows=rows),
    "scaled": lambda rows, source: pl.Edit.add("blocks.2.ln2.ckpt_scaled", 0.5, rows=rows),
}


def test_many_edits_share_a_batch(glass: pl.CkptedTransformer) -> None:
    """Each row of the shared batch is, to the bit, that row of a batch in which every row has its edit."""
    batch = IDS[:1].repeat(len(EDITS_OF_ROWS), 1)
    _, source = glass.run_with_ckpts(support.some_ids(1, 11, seed=5))
    edits = [make([row], source) for row, make in enumerate(EDITS_OF_ROWS.values())]
    shared, ckpts = glass.run_with_ckpts(batch, edits=edits)
    assert shared is not None
    for row, make in enumerate(EDITS_OF_ROWS.values()):
        alone, its = glass.run_with_ckpts(batch, edits=make(None, source) if row != 3 else make(range(7), source))
        assert alone is not None
        assert torch.equal(shared[row], alone[row])
        assert all(torch.equal(ckpts[name][row], its[name][row]) for name in ckpts)
    assert len({tuple(row.flatten().tolist()) for row in shared}) == len(EDITS_OF_ROWS)
    assert [ckpts.fired[edit] for edit in edits] == [1] * 7


@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_rows_are_edited_while_texts_are_generated(numerics: str) -> None:
    glass, name = support.glass(numerics=numerics), "blocks.1.resid_post"
    prompts = support.some_ids(3, 5)
    plain = glass.generate(prompts, max_new_tokens=5, names=name)
    edited = glass.generate(prompts, max_new_tokens=5, names=name, edits=pl.Edit.replace(name, 0.25, rows=1))
    assert plain.ckpts is not None
    assert edited.ckpts is not None
    assert bool((edited.ckpts[name][1] == 0.25).all())
    assert torch.equal(torch.as_tensor(edited.ids)[[0, 2]], torch.as_tensor(plain.ids)[[0, 2]])
    assert torch.allclose(edited.ckpts[name][[0, 2]], plain.ckpts[name][[0, 2]], atol=1e-4)


def test_the_source_of_a_patch_of_rows(glass: pl.CkptedTransformer) -> None:
    name, batch = "blocks.1.resid_post", support.some_ids(4, 6)
    _, four = glass.run_with_ckpts(support.some_ids(4, 6, seed=1))
    _, two = glass.run_with_ckpts(four.batch.ids[[2, 0]])
    _, one = glass.run_with_ckpts(four.batch.ids[[2]])
    for source, places in ((four, [2, 0]), (two, [0, 1]), (one, [0, 0])):
        _, ckpts = glass.run_with_ckpts(batch, names=name, edits=pl.Edit.patch(name, source, rows=[2, 0]))
        assert torch.equal(ckpts[name][[2, 0]], source[name][places])
        assert torch.equal(ckpts[name][[1, 3]], glass.run_with_ckpts(batch, names=name)[1][name][[1, 3]])
    _, three = glass.run_with_ckpts(four.batch.ids[:3])
    with pytest.raises(pl.EditError, match="3 texts for 2 chosen rows of 4") as caught:
        glass.run_with_ckpts(batch, edits=pl.Edit.patch(name, three, rows=[2, 0]))
    assert caught.value.code == "edit-misfit"
    with pytest.raises(pl.InputError, match="rows=9, expected indices from 0 to 3"):
        glass.run_with_ckpts(batch, edits=pl.Edit.zero(name, rows=9))


def test_rows_of_a_padded_batch_are_patched_where_both_have_tokens(glass: pl.CkptedTransformer) -> None:
    texts, name = support.ragged_ids(3, 6), "blocks.0.resid_post"
    _, source = glass.run_with_ckpts(support.ragged_ids(3, 6, seed=4))
    glass.run_with_ckpts(texts, edits=pl.Edit.patch(name, source, pos=-1, rows=0))
    _, turned = glass.run_with_ckpts(support.ragged_ids(6, 3, seed=4))
    glass.run_with_ckpts(texts, edits=pl.Edit.patch(name, turned, pos=3, rows=0))
    with pytest.raises(pl.EditError, match="a token at the chosen column 0 where the source has a pad"):
        glass.run_with_ckpts(texts, edits=pl.Edit.patch(name, turned, pos=0, rows=1))


def test_scores(glass64: pl.CkptedTransformer) -> None:
    """Scaled by less than one, masked scores stay far below all others."""
    name = "blocks.1.attn.ckpt_scores"
    checks.edits_fit(glass64, IDS, name, [pl.Edit.scale(name, 0.5)], lambda scores: scores * 0.5)
    knock_out = torch.finfo(torch.float64).min

    def change(scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, 2, 4:, 1] = knock_out
        return scores

    checks.edits_fit(glass64, IDS, name, [pl.Edit.apply(name, change)], change)


def test_a_pattern_of_ones_own(glass64: pl.CkptedTransformer) -> None:
    name = "blocks.2.attn.ckpt_pattern"
    uniform = torch.ones(11, 11, dtype=torch.float64).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    checks.edits_fit(
        glass64,
        IDS,
        name,
        [pl.Edit.replace(name, uniform, heads=0)],
        with_part((slice(None), slice(0, 1)), uniform.expand_as),
    )


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.ckpt_pattern", "blocks.1.attn.ckpt_z", "blocks.0.ln1.ckpt_scaled", "ln_final.ckpt_scaled"]
)
def test_edits_under_padding(glass64: pl.CkptedTransformer, name: str) -> None:
    batch = glass64.tokenize(RAGGED)
    with torch.no_grad():
        expected, _ = support.by_hand(glass64, batch.ids, {name: lambda value: value * 0.5}, batch.mask)
    logits, _ = glass64.run_with_ckpts(batch, edits=[pl.Edit.scale(name, 0.5)])
    assert support.close(logits[batch.mask], expected[batch.mask])


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_edits_of_what_is_computed_beside_in_both_modes(attention: str) -> None:
    model = support.glass(dtype=torch.float64, attention=attention, scale_attn_by_inverse_layer_idx=True)
    for name in ("blocks.2.attn.ckpt_scores", "blocks.2.attn.ckpt_pattern", "blocks.2.ln2.ckpt_scaled"):
        checks.edits_fit(model, IDS, name, [pl.Edit.scale(name, 0.3)], lambda value: value * 0.3)


def test_values_broadcast_to_the_part(glass64: pl.CkptedTransformer) -> None:
    direction = torch.randn(48, dtype=torch.float64)
    name = "blocks.1.resid_mid"
    checks.edits_fit(glass64, IDS, name, [pl.Edit.add(name, direction)], lambda value: value + direction)
    one = torch.randn(2, 1, 48, dtype=torch.float64)
    checks.edits_fit(
        glass64,
        IDS,
        name,
        [pl.Edit.replace(name, one, pos=[2, 4])],
        with_part((slice(None), slice(2, 5, 2)), lambda part: one),
    )


def test_edits_apply_in_the_order_given(glass64: pl.CkptedTransformer) -> None:
    name = "blocks.1.resid_mid"
    add, scale = pl.Edit.add(name, 1.0), pl.Edit.scale(name, 3.0)
    checks.edits_fit(glass64, IDS, name, [add, scale], lambda value: (value + 1) * 3)
    checks.edits_fit(glass64, IDS, name, [scale, add], lambda value: value * 3 + 1)


def test_captures_see_what_the_model_goes_on_with(glass: pl.CkptedTransformer) -> None:
    for name in NAMES:
        _, plain = glass.run_with_ckpts(IDS, names=name)
        _, edited = glass.run_with_ckpts(IDS, names=name, edits=[pl.Edit.scale(name, 0.5)])
        assert torch.equal(edited[name], plain[name] * 0.5), name


def test_nothing_before_an_edit_changes(glass: pl.CkptedTransformer) -> None:
    _, plain = glass.run_with_ckpts(IDS)
    for name in NAMES:
        _, edited = glass.run_with_ckpts(IDS, edits=[pl.Edit.scale(name, 0.5)])
        for earlier in NAMES[: NAMES.index(name)]:
            assert torch.equal(edited[earlier], plain[earlier]), f"an edit at {name} changed {earlier}"


def test_fired_counts_checkpoints(glass: pl.CkptedTransformer) -> None:
    everywhere, once = pl.Edit.scale("blocks.*.resid_mid", 0.5), pl.Edit.zero("blocks.2.attn.ckpt_z", heads=0)
    _, ckpts = glass.run_with_ckpts(IDS, edits=[everywhere, once])
    assert ckpts.fired == {everywhere: 3, once: 1}
    _, ckpts = glass.run_with_ckpts(IDS, edits=[everywhere], stop_at="blocks.1.resid_post")
    assert ckpts.fired == {everywhere: 2}
    _, ckpts = glass.run_with_ckpts(IDS)
    assert ckpts.fired == {}


def test_an_edit_that_never_fires_is_an_error(glass: pl.CkptedTransformer) -> None:
    late = pl.Edit.zero("blocks.2.resid_pre")
    with pytest.raises(pl.EditError) as caught:
        glass.run_with_ckpts(IDS, edits=[late], stop_at="blocks.1.resid_post")
    assert caught.value.code == "edit-never-fired"
    assert repr(late) in str(caught.value)


def test_an_edit_at_the_place_where_the_run_stops_fires(glass: pl.CkptedTransformer) -> None:
    _, ckpts = glass.run_with_ckpts(IDS, edits=[pl.Edit.zero("blocks.0.resid_post")], stop_at="blocks.0.resid_post")
    assert not ckpts["blocks.0.resid_post"].any()


@pytest.mark.parametrize(
    "edit",
    [
        pl.Edit.replace("blocks.0.resid_pre", torch.ones(47)),
        pl.Edit.add("blocks.0.attn.ckpt_z", torch.ones(2, 11, 5, 12)),
        pl.Edit.replace("blocks.0.attn.ckpt_z", torch.ones(2, 11, 4, 12), heads=[1, 2]),
        pl.Edit.replace("blocks.0.attn.ckpt_pattern", torch.ones(3, 4, 11, 11)),
        pl.Edit.apply("blocks.0.resid_pre", lambda part: part[:, :-1]),
        pl.Edit.apply("blocks.0.resid_pre", lambda part: part.double()),
        pl.Edit.apply("blocks.0.resid_pre", lambda part: None),
        pl.Edit.scale("blocks.0.resid_pre", torch.ones(3, 2, 11, 48)),
    ],
    ids=repr,
)
def test_what_does_not_fit_is_an_error(glass: pl.CkptedTransformer, edit: pl.Edit) -> None:
    plain = glass(IDS)
    with pytest.raises(pl.EditError) as caught:
        glass.run_with_ckpts(IDS, edits=[edit])
    assert caught.value.code == "edit-misfit"
    assert "blocks.0" in str(caught.value)
    assert torch.equal(glass(IDS), plain)


def test_an_edit_never_writes_into_what_arrives(glass: pl.CkptedTransformer) -> None:
    for make, _ in KINDS.values():
        checks.edits_are_pure(glass, IDS, lambda name, make=make: make(name, 0.75, pos=3), OF_BLOCK)


def test_a_function_that_writes_into_its_part_is_harmless(glass: pl.CkptedTransformer) -> None:
    checks.edits_are_pure(glass, IDS, lambda name: pl.Edit.apply(name, lambda part: part.mul_(0.5)), OF_BLOCK)


def mean_at(value: Tensor, mask: Tensor) -> Tensor:
    """Mean over batch and real positions, one entry at a time."""
    rows = [value[b, p] for b in range(mask.size(0)) for p in range(mask.size(1)) if mask[b, p]]
    return sum(rows[1:], rows[0]) / len(rows)


@pytest.mark.parametrize("name", ["blocks.1.resid_pre", "blocks.1.attn.ckpt_z", "blocks.0.mlp.ckpt_post", "ckpt_embed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_mean_ablation_leaves_pads_out(glass64: pl.CkptedTransformer, name: str, side: str) -> None:
    batch = glass64.tokenize(RAGGED, padding_side=side)

    def change(value: Tensor) -> Tensor:
        return mean_at(value, batch.mask).expand_as(value)

    with torch.no_grad():
        expected, _ = support.by_hand(glass64, batch.ids, {name: change}, batch.mask)
    logits, _ = glass64.run_with_ckpts(batch, edits=[pl.Edit.mean_ablate(name)])
    assert support.close(logits[batch.mask], expected[batch.mask])


def test_mean_ablation_of_a_part(glass64: pl.CkptedTransformer) -> None:
    name = "blocks.1.attn.ckpt_z"
    batch = glass64.tokenize(RAGGED)

    def change(value: Tensor) -> Tensor:
        out = value.clone()
        out[1:, [4, 10], 2] = mean_at(value, batch.mask)[2]
        return out

    with torch.no_grad():
        expected, _ = support.by_hand(glass64, batch.ids, {name: change}, batch.mask)
    logits, _ = glass64.run_with_ckpts(batch, edits=[pl.Edit.mean_ablate(name, pos=[4, 10], heads=2, rows=[1, 2])])
    assert support.close(logits[batch.mask], expected[batch.mask])


def test_mean_ablation_of_one_position_by_this_run_is_that_by_the_same_run(glass: pl.CkptedTransformer) -> None:
    name = "blocks.1.attn.ckpt_z"
    plain, reference = glass.run_with_ckpts(IDS[:1], names=name)
    one, other = (
        glass.run_with_ckpts(IDS[:1], edits=[pl.Edit.mean_ablate(name, *source, pos=-1)])[0]
        for source in ((), (reference,))
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, plain)


@pytest.mark.parametrize("edit", [pl.Edit.scale(SCORES, 1.5), pl.Edit.add(SCORES, -20.0)], ids=repr)
def test_scores_of_pads_may_be_edited(edit: pl.Edit) -> None:
    """What is hidden holds the least number; less than that must not become NaN, which would spread."""
    model = support.glass()
    batch = model.tokenize(RAGGED)
    logits, _ = model.run_with_ckpts(batch, edits=[edit])
    for row, ids in enumerate(RAGGED):
        alone, _ = model.run_with_ckpts([ids], edits=[edit])
        assert (logits[row][batch.mask[row]] - alone[0]).abs().max() < 1e-4
    half = support.glass(dtype=torch.float16)
    assert torch.isfinite(half.run_with_ckpts(batch, edits=[edit])[0][batch.mask]).all()


def test_scores_of_pads_may_be_hooked() -> None:
    model = support.glass()
    batch = model.tokenize(RAGGED)
    with model.get_submodule(SCORES).register_forward_hook(lambda module, given, scores: scores * 1.5):
        hooked = model(batch)
    edited, _ = model.run_with_ckpts(batch, edits=[pl.Edit.scale(SCORES, 1.5)])
    assert torch.equal(hooked[batch.mask], edited[batch.mask])


def test_a_patch_puts_no_pad_at_a_token(glass: pl.CkptedTransformer) -> None:
    name = "blocks.1.resid_pre"
    left, right = (glass.tokenize([[1, 2, 3, 4], [5, 6]], padding_side=side) for side in ("left", "right"))
    _, source = glass.run_with_ckpts(right, names=name)
    for pos in (None, [2, 3], -1):
        with pytest.raises(pl.EditError, match=r"text 1 has a token at the chosen column [023]") as caught:
            glass.run_with_ckpts(left, edits=[pl.Edit.patch(name, source, pos=pos)])
        assert caught.value.code == "edit-misfit"
    _, whole = glass.run_with_ckpts([[7, 8, 9, 10]], names=name)
    _, ckpts = glass.run_with_ckpts(left, names=name, edits=[pl.Edit.patch(name, whole, pos=-1)])
    assert torch.equal(ckpts[name][:, -1], whole[name][:, -1].expand(2, -1))


def test_mean_ablation_by_another_run(glass64: pl.CkptedTransformer) -> None:
    name = "blocks.1.mlp.ckpt_post"
    other = glass64.tokenize(support.ragged_ids(5, 2, seed=9), padding_side="right")
    _, reference = glass64.run_with_ckpts(other, names=name)

    def change(value: Tensor) -> Tensor:
        out = value.clone()
        out[:, 3:6, 5:8] = mean_at(reference[name], other.mask)[5:8]
        return out

    edit = pl.Edit.mean_ablate(name, reference, pos=slice(3, 6), neurons=slice(5, 8))
    checks.edits_fit(glass64, IDS, name, [edit], change)


def test_patch_from_another_run(glass64: pl.CkptedTransformer) -> None:
    other = support.some_ids(2, 11, seed=5)
    for name in ("blocks.1.resid_mid", "blocks.1.attn.ckpt_pattern", "blocks.0.ln2.ckpt_scaled", "ckpt_embed"):
        _, source = glass64.run_with_ckpts(other, names=name)
        edit = pl.Edit.patch(name, source, pos=slice(2, 6))
        checks.edits_fit(
            glass64,
            IDS,
            name,
            [edit],
            with_part(part_of(name, pos=slice(2, 6)), lambda _, s=source, n=name: s[n][part_of(n, pos=slice(2, 6))]),
        )


def test_patching_the_whole_stream_gives_the_other_run(glass: pl.CkptedTransformer) -> None:
    other = support.some_ids(2, 11, seed=5)
    expected, source = glass.run_with_ckpts(other)
    for name in ("blocks.0.resid_pre", "blocks.1.resid_mid", "blocks.2.resid_post", "ln_final.ckpt_normalized"):
        logits, _ = glass.run_with_ckpts(IDS, names="ckpt_embed", edits=[pl.Edit.patch(name, source)])
        assert torch.equal(logits, expected), name


def test_patching_a_run_with_itself_changes_nothing(glass: pl.CkptedTransformer) -> None:
    plain, source = glass.run_with_ckpts(IDS)
    for name in NAMES:
        logits, _ = glass.run_with_ckpts(IDS, names="ckpt_embed", edits=[pl.Edit.patch(name, source)])
        # An edit of what is computed beside sends its layer down the explicit path: equal up to rounding.
        if name.endswith(("ckpt_scores", "ckpt_pattern", "ckpt_scaled")):
            assert support.close(logits, plain, 1e-5), name
        else:
            assert torch.equal(logits, plain), name


def test_edits_do_not_touch_the_parameters(glass: pl.CkptedTransformer) -> None:
    before = {name: p.detach().clone() for name, p in glass.named_parameters()}
    versions = {name: p._version for name, p in glass.named_parameters()}
    glass.run_with_ckpts(IDS, edits=[pl.Edit.zero("**.ckpt_z"), pl.Edit.add("ckpt_embed", 1.0)])
    assert all(torch.equal(p, before[name]) and p._version == versions[name] for name, p in glass.named_parameters())


def test_edits_by_other_libraries_names(glass: pl.CkptedTransformer) -> None:
    expected, _ = glass.run_with_ckpts(IDS, edits=[pl.Edit.zero("blocks.1.attn.ckpt_z", heads=1)])
    for alias in ("blocks.1.attn.hook_z", ("z", 1)):
        assert torch.equal(glass.run_with_ckpts(IDS, edits=[pl.Edit.zero(alias, heads=1)])[0], expected)


def test_an_edit_twice_in_one_run(glass64: pl.CkptedTransformer) -> None:
    name = "blocks.1.resid_mid"
    edit = pl.Edit.scale(name, 2.0)
    checks.edits_fit(glass64, IDS, name, [edit, edit], lambda value: value * 4)


def test_repr_says_what_and_where() -> None:
    assert (
        repr(pl.Edit.zero("blocks.1.attn.ckpt_z", pos=2, heads=[3]))
        == "Edit.zero('blocks.1.attn.ckpt_z', pos=2, heads=[3])"
    )


def test_two_threads_with_two_taps_on_one_model(glass: pl.CkptedTransformer) -> None:
    alone = [glass.run_with_ckpts(IDS, edits=[pl.Edit.scale("blocks.*.resid_mid", f)])[0] for f in (0.5, 1.0, 2.0)]
    wrong: list[str] = []
    barrier = threading.Barrier(3)

    def work(which: int, factor: float) -> None:
        barrier.wait()
        for _ in range(10):
            logits, ckpts = glass.run_with_ckpts(
                IDS, names=f"blocks.{which}.**", edits=[pl.Edit.scale("blocks.*.resid_mid", factor)]
            )
            if not torch.equal(logits, alone[which]) or any(f"blocks.{which}." not in name for name in ckpts):
                wrong.append(f"thread {which}")

    threads = [threading.Thread(target=work, args=(i, f)) for i, f in enumerate((0.5, 1.0, 2.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "name", ["ckpt_embed", "blocks.1.attn.ckpt_pattern", "blocks.2.ln2.ckpt_scaled", "ln_final.ckpt_normalized"]
)
def test_an_exception_leaves_the_model_as_it_was(glass: pl.CkptedTransformer, name: str) -> None:
    def fail(part: Tensor) -> Tensor:
        raise RuntimeError("mine")

    plain = glass(IDS)
    with pytest.raises(RuntimeError, match="mine"):
        glass.run_with_ckpts(IDS, edits=[pl.Edit.apply(name, fail)])
    with pytest.raises(RuntimeError, match="mine"):
        glass(IDS, support.Watcher({name: fail}))
    assert torch.equal(glass(IDS), plain)
    assert torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in glass.modules())
    assert torch.equal(glass.run_with_ckpts(IDS)[0], plain)


def test_a_tap_is_a_plain_argument(glass: pl.CkptedTransformer) -> None:
    """A tap written by a reader: seen in order, and what it returns is used."""
    watcher = support.Watcher({"blocks.1.resid_mid": lambda value: value * 0.5})
    assert isinstance(watcher.wants, Callable)
    with torch.no_grad():
        logits = glass(IDS, watcher)
    edited, _ = glass.run_with_ckpts(IDS, edits=[pl.Edit.scale("blocks.1.resid_mid", 0.5)])
    assert torch.equal(logits, edited)
    assert watcher.seen == list(NAMES)


def test_a_tap_is_asked_only_for_what_it_wants(glass: pl.CkptedTransformer) -> None:
    wanted = {"blocks.1.resid_mid", "blocks.0.attn.ckpt_pattern"}
    watcher = support.Watcher(only=wanted)
    glass(IDS, watcher)
    assert set(watcher.seen) == wanted


MUTANTS: dict[str, tuple[Any, str, Any, Callable[[], None]]] = {
    "scores fall below the least": (
        attend, "_bounded", lambda scores: scores,
        lambda: test_scores_of_pads_may_be_edited(pl.Edit.scale(SCORES, 1.5))),
    "hooked scores fall below the least": (
        attend, "_bounded", lambda scores: scores, test_scores_of_pads_may_be_hooked),
    "pads are patched in": (
        changes, "_require_tokens", lambda source, site, rows, region: None,
        lambda: test_a_patch_puts_no_pad_at_a_token(support.glass())),
    "an edit of one row makes the others explicit": (
        ckpt, "_changed_rows", lambda before, after: None,
        lambda: test_many_edits_share_a_batch(support.glass())),
    "means are of what is chosen": (
        changes, "_mean", lambda value, mask: value,
        lambda: test_mean_ablation_of_one_position_by_this_run_is_that_by_the_same_run(support.glass())),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    must_be_noticed(MUTANTS[name], by=[pl.EditError])


LONG, SHORT = support.ragged_ids(9, 5)


@pytest.mark.parametrize("name", ["resid_pre", "attn.ckpt_z", "attn.ckpt_k", "mlp.ckpt_post", "ln1.ckpt_scaled"])
def test_a_position_comes_from_a_text_of_another_length(glass64: pl.CkptedTransformer, name: str) -> None:
    name = f"blocks.1.{name}"
    for text, other in ((LONG, SHORT), (SHORT, LONG)):
        _, source = glass64.run_with_ckpts([other], names=name)
        for pos in (-1, [-1, -2], 2, [0, 3], slice(-3, None)):
            patch = pl.Edit.patch(name, source, pos=pos)
            chosen = [pos] if isinstance(pos, int) else pos
            value = source[name][:, chosen]
            expected, _ = glass64.run_with_ckpts([text], edits=pl.Edit.replace(name, value, pos=pos))
            patched, ckpts = glass64.run_with_ckpts([text], edits=patch)
            assert torch.equal(patched, expected)
            assert torch.equal(ckpts[name][:, chosen], value)


def test_the_remedies_of_a_patch_of_another_length_work(glass64: pl.CkptedTransformer) -> None:
    _, source = glass64.run_with_ckpts([LONG])
    name = "blocks.1.resid_pre"
    with pytest.raises(pl.EditError) as caught:
        glass64.run_with_ckpts([SHORT], edits=pl.Edit.patch(name, source))
    assert caught.value.code == "patch-of-another-length"
    assert "pos=-1" in caught.value.remedy
    glass64.run_with_ckpts([SHORT], edits=pl.Edit.patch(name, source, pos=-1))
    with pytest.raises(pl.EditError) as caught:
        glass64.run_with_ckpts([SHORT], edits=pl.Edit.patch("blocks.1.attn.ckpt_pattern", source, pos=-1))
    assert "attn.ckpt_z" in caught.value.remedy
    glass64.run_with_ckpts([SHORT], edits=pl.Edit.patch("blocks.1.attn.ckpt_z", source, pos=-1))
    _, part = glass64.run_with_ckpts([LONG], pos=-1)
    with pytest.raises(pl.EditError) as caught:
        glass64.run_with_ckpts([LONG], edits=pl.Edit.patch(name, part))
    assert caught.value.code == "patch-of-a-part"


def test_a_position_that_the_other_text_does_not_have_is_refused(glass64: pl.CkptedTransformer) -> None:
    _, source = glass64.run_with_ckpts([SHORT])
    for pos in (7, -8, slice(2, None)):
        with pytest.raises(pl.PellucidError):
            glass64.run_with_ckpts([LONG], edits=pl.Edit.patch("blocks.1.resid_pre", source, pos=pos))
    batch = glass64.tokenize([[1], [2, 3]])
    _, padded = glass64.run_with_ckpts(batch)
    with pytest.raises(pl.EditError):
        glass64.run_with_ckpts([SHORT, SHORT], edits=pl.Edit.patch("blocks.1.resid_pre", padded, pos=-2))
    glass64.run_with_ckpts([SHORT, SHORT], edits=pl.Edit.patch("blocks.1.resid_pre", padded, pos=-1))


def doubled(part: Tensor) -> Tensor:
    return 2 * part


@pytest.mark.parametrize("kind", ["zero", "replace", "add", "scale", "mean_ablate", "mean of a run", "patch", "apply"])
def test_an_edit_that_was_pickled_does_the_same(kind: str, glass: pl.CkptedTransformer) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    _, other = glass.run_with_ckpts(ids.flip(1))
    edit = {
        "zero": pl.Edit.zero("z", heads=[1]), "replace": pl.Edit.replace("resid_mid", 0.5, pos=-1),
        "add": pl.Edit.add("resid_mid", torch.ones(glass.config.n_embd)), "scale": pl.Edit.scale("z", 0.5, heads=[0]),
        "mean_ablate": pl.Edit.mean_ablate("z"), "mean of a run": pl.Edit.mean_ablate("z", other, heads=[1]),
        "patch": pl.Edit.patch("resid_mid", other, pos=[-1]), "apply": pl.Edit.apply("resid_mid", doubled),
    }[kind]  # fmt: skip
    again = pickle.loads(pickle.dumps(edit))
    expected = glass.run_with_ckpts(ids, edits=[edit])[0]
    assert torch.equal(glass.run_with_ckpts(ids, edits=[again])[0], expected)
    assert not torch.equal(glass(ids), expected)
    assert repr(again) == repr(edit)


@pytest.mark.parametrize("make", [pl.Edit.patch, pl.Edit.mean_ablate])
def test_a_source_is_a_run_of_the_very_model(make: Any, tmp_path: Any) -> None:
    """Of another one with the same shapes, or of this one before it was changed, it is refused, saved or not."""
    model, name = support.glass(), "blocks.1.resid_mid"
    others = {"captures-of-another-model": support.glass(seed=1), "captures-of-a-changed-model": support.glass()}
    for code, other in others.items():
        _, source = other.run_with_ckpts(IDS, names=name)
        with torch.no_grad():
            other.blocks[0].mlp.b_out.add_(1.0)
        given = [(model if "another" in code else other, source)]
        source.save(tmp_path / "source")
        given += [(model, pl.ActivationCkpts.load(tmp_path / "source"))] if "another" in code else []
        for runs, its in given:
            for call in (runs.run, runs.run_with_ckpts, runs.generate):
                with pytest.raises(pl.InputError) as caught:
                    call(IDS, edits=[make(name, its)])
                assert caught.value.code == code
    plain = model(IDS)
    _, own = model.run_with_ckpts(IDS, names=name)
    own.save(tmp_path / "own")
    edits = [pl.Edit.patch(name, source) for source in (own, pl.ActivationCkpts.load(tmp_path / "own"))]
    assert all(torch.equal(model.run(IDS, edits=edit), plain) for edit in edits)
    assert torch.equal(copy.deepcopy(model).run(IDS, edits=edits[0]), plain)
