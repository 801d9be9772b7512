"""The parts of a logit sum to the logit, and each is what its definition says."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import BYS, TOKEN, furthest, run, total

import pellucid as pl
import support
from following import Case, follow, params
from pellucid.family.blocks import LayerNorm
from pellucid.weights import own_file

DIRECT = pl.attribution.direct
WHOLE = 1e-10


def model64(**fields: Any) -> pl.CkptedTransformer:
    return support.glass(dtype=torch.float64, **fields)


# The sum


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("by", BYS)
def test_the_parts_sum_to_the_logit(by: Any, tied: bool) -> None:
    logits, ckpts = run(model64(tie_word_embeddings=tied))
    assert furthest(total(DIRECT(ckpts, TOKEN, by=by)), logits[..., TOKEN], ckpts) < WHOLE


@pytest.mark.parametrize("by", BYS)
def test_in_float32_within_the_rounding_that_float64_shows(by: Any) -> None:
    logits, ckpts = run(support.glass())
    rounding = furthest(logits, run(model64())[0], ckpts)
    assert furthest(total(DIRECT(ckpts, TOKEN, by=by)), logits[..., TOKEN], ckpts) < 4 * rounding


@pytest.mark.parametrize("by", support.few_of(BYS, "head"))
def test_the_bundled_model(by: Any) -> None:
    texts = ["Once upon a time", "The cat sat on the"]
    logits, ckpts = run(pl.load(dtype="float64"), texts)
    parts = DIRECT(ckpts, (" a", " the"), by=by)
    a, the = (pl.load().tokenizer.encode(word)[0] for word in (" a", " the"))
    assert furthest(total(parts), logits[..., a] - logits[..., the], ckpts) < WHOLE


def test_pads_are_nan_and_coordinates_say_which() -> None:
    _, ckpts = run(model64())
    parts = DIRECT(ckpts, TOKEN, by="head")
    assert parts.dims == ("component", "batch", "pos")
    assert np.array_equal(np.isnan(parts.values).all(0), ~ckpts.batch.mask.numpy())
    names = ["ckpt_embed", "ckpt_pos_embed"]
    for layer in range(3):
        place = f"blocks.{layer}"
        names += [*(f"{place}.attn[{h}]" for h in range(4)), f"{place}.attn.b_O", f"{place}.mlp"]
    assert parts.component.values.tolist() == [*names, "ln_final.b"]
    head = parts.sel(component="blocks.1.attn[3]")
    assert (int(head.layer), int(head["index"])) == (1, 3)
    assert (int(parts.sel(component="ln_final.b").layer), int(parts.sel(component="blocks.1.mlp")["index"])) == (-1, -1)
    assert parts.attrs["target"] == "17"
    assert parts.attrs["by"] == "head"


def test_blocks_are_what_their_halves_add() -> None:
    _, ckpts = run(model64())
    whole, halves = DIRECT(ckpts, TOKEN, by="block"), DIRECT(ckpts, TOKEN)
    assert whole.component.values.tolist() == [
        "ckpt_embed", "ckpt_pos_embed", "blocks.0", "blocks.1", "blocks.2", "ln_final.b",
    ]  # fmt: skip
    expected = halves.sel(component="blocks.1.attn") + halves.sel(component="blocks.1.mlp")
    assert abs(whole.sel(component="blocks.1") - expected).max() < WHOLE


# Each part


def by_definition(model: pl.CkptedTransformer, part: Any, ckpts: pl.ActivationCkpts, token: int) -> Any:
    """<g (c - mean c) / s, W_U[:, t]>, written without the library."""
    stream = ckpts["blocks.2.resid_post"]
    deviation = ((stream - stream.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + model.config.layer_norm_epsilon
    scaled = model.ln_final.w * (part - part.mean(-1, keepdim=True)) / deviation**0.5
    return (scaled @ model.unembed.W_U[:, token]).detach()


def test_a_head_is_its_definition_with_its_share_of_the_value_bias() -> None:
    model = model64()
    _, ckpts = run(model)
    attention = model.blocks[1].attn
    pattern, normed = ckpts["blocks.1.attn.ckpt_pattern"][:, 3], ckpts["blocks.1.ln1.ckpt_normalized"]
    mixed = pattern @ (normed @ attention.W_V[3] + attention.b_V[3])
    expected = by_definition(model, mixed @ attention.W_O[3], ckpts, TOKEN)
    found = DIRECT(ckpts, TOKEN, by="head").sel(component="blocks.1.attn[3]")
    assert furthest(torch.from_numpy(found.values), expected, ckpts) < WHOLE


def test_a_neuron_a_bias_and_an_embedding_are_their_definitions() -> None:
    model = model64()
    _, ckpts = run(model)
    parts = DIRECT(ckpts, TOKEN, by="neuron")
    mlp = model.blocks[2].mlp
    expected = {
        "blocks.2.mlp[70]": ckpts["blocks.2.mlp.ckpt_post"][..., 70:71] * mlp.W_out[70],
        "blocks.2.mlp.b_out": mlp.b_out.expand(*ckpts.batch.shape, -1),
        "ckpt_pos_embed": ckpts["ckpt_pos_embed"],
        "blocks.0.attn": ckpts["blocks.0.attn.ckpt_attn_out"],
    }
    for name, value in expected.items():
        found = torch.from_numpy(parts.sel(component=name).values)
        assert furthest(found, by_definition(model, value, ckpts, TOKEN), ckpts) < WHOLE, name
    bias = float((model.ln_final.b @ model.unembed.W_U[:, TOKEN]).detach())
    assert abs(parts.sel(component="ln_final.b") - bias).max() < WHOLE


# Targets


def test_pairs_directions_and_tokens_for_each_text() -> None:
    model = model64(tie_word_embeddings=False)
    logits, ckpts = run(model)
    difference = DIRECT(ckpts, (3, 5), by="head")
    assert abs(difference - (DIRECT(ckpts, 3, by="head") - DIRECT(ckpts, 5, by="head"))).max() < WHOLE
    head = model.unembed.W_U.detach()
    as_direction = DIRECT(ckpts, head[:, 3] - head[:, 5], by="head")
    assert np.array_equal(as_direction.values, difference.values, equal_nan=True)
    own = total(DIRECT(ckpts, ([3, 4, 5], 9)))
    expected = torch.stack([logits[row, :, token] for row, token in enumerate((3, 4, 5))]) - logits[..., 9]
    assert furthest(own, expected, ckpts) < WHOLE
    pairs = DIRECT(ckpts, [(3, 9), (4, 9), (5, 9)])
    assert np.array_equal(pairs.values, DIRECT(ckpts, ([3, 4, 5], 9)).values, equal_nan=True)
    with pytest.raises(pl.InputError, match="3 tokens in a tuple"):
        DIRECT(ckpts, [(3, 9), (4, 9, 8), (5, 9)])
    with pytest.raises(pl.InputError, match="2 tokens for 3 texts"):
        DIRECT(ckpts, [(3, 9), (4, 9)])


@pytest.mark.parametrize("number", [np.int64(TOKEN), torch.tensor(TOKEN)])
def test_numbers_of_numpy_and_torch_are_tokens(number: Any) -> None:
    _, ckpts = run(model64())
    assert np.array_equal(DIRECT(ckpts, number).values, DIRECT(ckpts, TOKEN).values, equal_nan=True)


# Earlier places


@pytest.mark.parametrize(
    "at",
    [
        "blocks.0.resid_pre", "blocks.1.resid_mid", "blocks.2.resid_post", "blocks.2.ln1.ckpt_normalized",
        "blocks.1.attn.ckpt_q", "blocks.1.attn.ckpt_k", "blocks.2.attn.ckpt_v", "blocks.1.mlp.ckpt_pre",
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", BYS)
def test_at_an_earlier_place(by: Any, at: str) -> None:
    _, ckpts = run(model64())
    value = ckpts[at]
    direction = torch.randn(value.shape[2:], dtype=torch.float64)
    parts = DIRECT(ckpts, direction, by=by, at=at)
    assert furthest(total(parts), (value * direction).flatten(2).sum(-1), ckpts) < WHOLE


def test_a_head_s_query_reads_the_heads_before_it_and_no_others() -> None:
    _, ckpts = run(model64())
    at = "blocks.1.attn.ckpt_q"
    direction = torch.zeros(4, 12, dtype=torch.float64)
    direction[2] = torch.randn(12, dtype=torch.float64)
    parts = DIRECT(ckpts, direction, by="head", at=at)
    heads = [name for name in parts.component.values if "attn[" in name]
    assert heads == [f"blocks.0.attn[{head}]" for head in range(4)]
    assert parts.component.values.tolist()[-2:] == ["blocks.1.ln1.b", "blocks.1.attn.b_Q"]
    at_each_position = direction * torch.randn(3, 7, 1, 1, dtype=torch.float64)
    found = total(DIRECT(ckpts, at_each_position, at=at))
    assert furthest(found, (ckpts[at] * at_each_position).flatten(2).sum(-1), ckpts) < WHOLE


# Parts of runs, and runs that are changed


def test_positions_that_were_kept() -> None:
    model = model64()
    whole = DIRECT(run(model)[1], TOKEN, by="head")
    last = DIRECT(run(model, pos=[-1])[1], TOKEN, by="head")
    assert abs(last.isel(pos=0) - whole.isel(pos=-1)).max() < WHOLE


@pytest.mark.parametrize("by", BYS)
@pytest.mark.parametrize(
    "edit",
    [
        pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2]),
        pl.Edit.scale("blocks.0.attn.ckpt_pattern", 0.5),
        pl.Edit.scale("blocks.1.resid_post", 2.0),
        pl.Edit.zero("blocks.1.attn.ckpt_attn_out"),
        pl.Edit.replace("blocks.2.mlp.ckpt_mlp_out", 0.3),
    ],
)
def test_an_edited_run_sums_with_what_the_edits_added(edit: pl.Edit, by: Any) -> None:
    logits, ckpts = run(model64(), edits=[edit])
    parts = DIRECT(ckpts, TOKEN, by=by)
    assert furthest(total(parts), logits[..., TOKEN], ckpts) < WHOLE
    assert parts.component.values[-1] == "edits"


def test_the_entry_of_the_edits_is_what_they_added() -> None:
    model, added = model64(), torch.randn(48, dtype=torch.float64)
    _, ckpts = run(model, edits=[pl.Edit.add("blocks.1.resid_mid", added)])
    expected = by_definition(model, added.expand(*ckpts.batch.shape, -1), ckpts, TOKEN)
    found = torch.from_numpy(DIRECT(ckpts, TOKEN, by="head").sel(component="edits").values)
    assert furthest(found, expected, ckpts) < WHOLE


def test_a_head_that_an_edit_stopped_adds_nothing() -> None:
    _, ckpts = run(model64(), edits=[pl.Edit.zero("blocks.1.attn.ckpt_z", heads=[2])])
    parts = DIRECT(ckpts, TOKEN, by="head")
    assert float(abs(parts.sel(component="blocks.1.attn[2]")).max()) == 0
    assert float(abs(parts.sel(component="edits")).max()) < WHOLE


def test_what_is_saved_or_pickled_needs_the_model_and_still_knows_the_edits(tmp_path: Path) -> None:
    model = model64()
    logits, ckpts = run(model, edits=[pl.Edit.scale("blocks.1.resid_post", 2.0)])
    ckpts.save(tmp_path / "run.safetensors")
    for again in (pl.ActivationCkpts.load(tmp_path / "run.safetensors"), pickle.loads(pickle.dumps(ckpts))):
        parts = DIRECT(again, TOKEN, by="head", model=model)
        assert parts.component.values[-1] == "edits"
        assert furthest(total(parts), logits[..., TOKEN], ckpts) < WHOLE
    assert furthest(total(DIRECT(ckpts, TOKEN)), logits[..., TOKEN], ckpts) < WHOLE  # saving took nothing from it


def test_a_file_that_does_not_say_what_was_edited_may_have_been(tmp_path: Path) -> None:
    model, path = model64(), tmp_path / "run.safetensors"
    logits, ckpts = run(model)
    ckpts.save(path)
    about, tensors = own_file.load(path, "pellucid.ckpts")
    assert about.pop("edited") == []
    own_file.save(path, "pellucid.ckpts", tensors, about)
    parts = DIRECT(pl.ActivationCkpts.load(path), TOKEN, model=model)
    assert parts.component.values[-1] == "edits"
    assert furthest(total(parts), logits[..., TOKEN], ckpts) < WHOLE


def test_tokens_as_texts_after_loading(tmp_path: Path) -> None:
    model = pl.load()
    _, ckpts = run(model, "Once upon a")
    ckpts.save(tmp_path / "run.safetensors")
    again = pl.ActivationCkpts.load(tmp_path / "run.safetensors")
    assert np.array_equal(DIRECT(again, " time", model=model).values, DIRECT(ckpts, " time").values)


# Source tokens


@pytest.mark.parametrize("at", ["ln_final.ckpt_normalized", "blocks.1.resid_mid", "blocks.2.attn.ckpt_q"])
def test_the_sources_of_a_head_sum_to_the_head(at: str) -> None:
    _, ckpts = run(model64())
    direction = torch.randn(ckpts[at].shape[2:], dtype=torch.float64)
    sources = pl.attribution.sources(ckpts, direction, at=at)
    assert sources.dims == ("component", "batch", "pos", "key")
    heads = DIRECT(ckpts, direction, by="head", at=at).sel(component=sources.component.values)
    assert abs(sources.sum("key", min_count=1) - heads).max() < WHOLE
    hidden = np.isnan(sources.values[0])
    seen = (
        np.tril(np.ones((7, 7), dtype=bool)) & ckpts.batch.mask.numpy()[:, None] & ckpts.batch.mask.numpy()[..., None]
    )
    assert np.array_equal(hidden, ~seen)


def test_a_source_is_its_definition() -> None:
    model = model64()
    _, ckpts = run(model, [[1, 2, 3, 4]])
    attention, layer = model.blocks[1].attn, "blocks.1.attn"
    written = ckpts[f"{layer}.ckpt_pattern"][0, 3, 2, 1] * ckpts[f"{layer}.ckpt_v"][0, 1, 3] @ attention.W_O[3]
    expected = by_definition(model, written.expand(1, 4, -1), ckpts, TOKEN)[0, 2]
    found = pl.attribution.sources(ckpts, TOKEN).sel(component=f"{layer}[3]")[0, 2, 1]
    assert abs(float(found) - float(expected)) < WHOLE


# Refusals


def hooked(model: pl.CkptedTransformer) -> pl.ActivationCkpts:
    handle = model.blocks[1].register_forward_hook(lambda module, inputs, output: output + 1.0 + output.detach() ** 2)
    try:
        return run(model)[1]
    finally:
        handle.remove()


def trained(model: pl.CkptedTransformer) -> pl.ActivationCkpts:
    model.train()
    try:
        with pytest.warns(pl.PellucidWarning, match="in training mode"):
            return run(model)[1]
    finally:
        model.eval()


def changed() -> pl.ActivationCkpts:
    model = support.glass()
    ckpts = run(model)[1]
    with torch.no_grad():
        model.unembed.W_U.mul_(2)
    return ckpts


def broken() -> pl.CkptedTransformer:
    model = support.glass()
    with torch.no_grad():
        model.blocks[1].attn.W_O[2, 0, 0] = torch.nan
    return model


def zeroed(name: str) -> list[pl.Edit]:
    return [pl.Edit.zero(name)]


Here = SimpleNamespace
REMEDIES: dict[str, list[Case]] = {
    "not-captured": [
        Case(
            lambda h, by=by: DIRECT(run(h.model, names="**.resid_post")[1], TOKEN, by=by),
            (names := str(["blocks.2.resid_post", "ckpt_embed", "ckpt_pos_embed", *kinds])),
            lambda h, by=by, names=names: DIRECT(run(h.model, names=eval(names))[1], TOKEN, by=by),
        )
        for by, kinds in {
            "component": ("blocks.*.attn.ckpt_attn_out", "blocks.*.mlp.ckpt_mlp_out"),
            "head": ("blocks.*.attn.ckpt_z", "blocks.*.mlp.ckpt_mlp_out"),
            "neuron": ("blocks.*.attn.ckpt_attn_out", "blocks.*.mlp.ckpt_post"),
        }.items()
    ],
    "not-ckpts": [Case(lambda h: DIRECT({}, TOKEN), "run_with_ckpts", lambda h: DIRECT(h.ckpts, TOKEN))],
    "attribution-by": [
        Case(lambda h: DIRECT(h.ckpts, 1, by="heads"), "'head'", lambda h: DIRECT(h.ckpts, 1, by="head"))
    ],
    "attribution-target": [
        Case(lambda h: DIRECT(h.ckpts, torch.tensor([1, 2])), "a tuple", lambda h: DIRECT(h.ckpts, (1, 2))),
        Case(lambda h: DIRECT(h.ckpts, (1, 2, 3)), "a list", lambda h: DIRECT(h.ckpts, [1, 2, 3])),
        Case(lambda h: DIRECT(h.ckpts, 1, at="blocks.1.resid_pre"), "Leave at= out", lambda h: DIRECT(h.ckpts, 1)),
        Case(
            lambda h: DIRECT(h.ckpts, torch.ones(12), at="blocks.1.attn.ckpt_q"),
            "of the shape of the value at one position",
            lambda h: DIRECT(h.ckpts, torch.ones(4, 12), at="blocks.1.attn.ckpt_q"),
        ),
    ],
    "not-linear-in-the-stream": [
        Case(
            lambda h: DIRECT(h.ckpts, torch.ones(48), at="blocks.1.attn.ckpt_attn_out"),
            "resid_post",
            lambda h: DIRECT(h.ckpts, torch.ones(48), at="blocks.1.resid_post"),
        ),
        Case(
            lambda h: DIRECT(h.ckpts, torch.ones(4, 12), at="blocks.1.attn.ckpt_z"),
            "attn.ckpt_q",
            lambda h: DIRECT(h.ckpts, torch.ones(4, 12), at="blocks.1.attn.ckpt_q"),
        ),
    ],
    "edited-behind-the-stream": [
        Case(
            lambda h, name=name: DIRECT(run(h.model, edits=zeroed(f"ln_final.{name}"))[1], 1),
            "resid_post",
            lambda h: DIRECT(run(h.model, edits=zeroed("blocks.2.resid_post"))[1], 1),
        )
        for name in ("ckpt_scaled", "ckpt_normalized")
    ]
    + [
        Case(
            lambda h: pl.attribution.sources(run(h.model, edits=zeroed("blocks.1.attn.ckpt_z"))[1], 1),
            "attn.ckpt_v",
            lambda h: pl.attribution.sources(run(h.model, edits=zeroed("blocks.1.attn.ckpt_v"))[1], 1),
        )
    ],
    "no-head-before": [
        Case(
            lambda h: pl.attribution.sources(h.ckpts, torch.ones(48), at="blocks.0.resid_pre"),
            "at='blocks.0.resid_post'",
            lambda h: pl.attribution.sources(h.ckpts, torch.ones(48), at="blocks.0.resid_post"),
        )
    ],
    "attribution-of-some-heads": [
        Case(
            lambda h: DIRECT(run(h.model, heads=[1])[1], 1, by="head"),
            "select heads of the result",
            lambda h: DIRECT(h.ckpts, 1, by="head").sel(component="blocks.0.attn[1]"),
        ),
        Case(
            lambda h: pl.attribution.sources(run(h.model, pos=[1])[1], 1),
            "select from the result",
            lambda h: pl.attribution.sources(h.ckpts, 1).isel(pos=1),
        ),
    ],
    "captures-without-model": [
        Case(
            lambda h: DIRECT(pickle.loads(pickle.dumps(h.ckpts)), 1),
            "model=model",
            lambda h: DIRECT(pickle.loads(pickle.dumps(h.ckpts)), 1, model=h.model),
        )
    ],
    "captures-of-a-changed-model": [
        Case(lambda h: DIRECT(changed(), 1), "Run the texts again", lambda h: DIRECT(run(h.model)[1], 1)),
    ],
    "captures-of-another-model": [
        Case(
            lambda h, other=other: DIRECT(h.ckpts, 1, model=other()),
            said,
            lambda h: DIRECT(h.ckpts, 1, model=h.model),
        )
        for other, said in (
            (lambda: support.glass(seed=1), "the model that made them"),
            (support.reference, "CkptedTransformer"),
        )
    ],
    "parts-do-not-sum": [
        Case(lambda h: DIRECT(hooked(h.model), 1), "without hooks", lambda h: DIRECT(run(h.model)[1], 1)),
        Case(lambda h: DIRECT(trained(h.model), 1), "model.eval()", lambda h: DIRECT(run(h.model.eval())[1], 1)),
    ],
    "attribution-not-finite": [
        Case(
            lambda h: DIRECT(run(broken())[1], 1, by="head"),
            "model.parameter(name).isfinite()",
            lambda h: [n for n in h.model.parameter_names if not h.model.parameter(n).isfinite().all()],
        )
    ],
}


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_remedies(code: str, case: Case) -> None:
    model = support.glass()
    follow(code, case, SimpleNamespace(model=model, ckpts=run(model)[1]))


def test_a_model_of_other_sizes_is_another() -> None:
    again = pickle.loads(pickle.dumps(run(support.glass())[1]))
    with pytest.raises(pl.InputError, match="other weights"):
        DIRECT(again, 1, model=support.glass(n_layer=2))


# Mutants


def without(model_name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """A parameter that is forgotten."""
    names = pl.CkptedTransformer.parameter_names.fget
    assert names is not None

    def fewer(model: pl.CkptedTransformer) -> tuple[str, ...]:
        return tuple(name for name in names(model) if not name.endswith(model_name))

    return lambda patch: patch.setattr(pl.CkptedTransformer, "parameter_names", property(fewer))


def norm_reads(change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    right = LayerNorm.reads
    return lambda patch: patch.setattr(LayerNorm, "reads", lambda self, d, x: change(right, self, d, x))


def without_value_bias(patch: pytest.MonkeyPatch) -> None:
    right = pl.ActivationCkpts.__getitem__

    def less(self: pl.ActivationCkpts, name: Any) -> Any:
        value = right(self, name)
        if not str(name).endswith("ckpt_z"):
            return value
        return value - self.made_by(None, "").get_submodule(name.removesuffix(".ckpt_z")).b_V.detach()

    patch.setattr(pl.ActivationCkpts, "__getitem__", less)


def every_sum() -> None:
    for by in BYS:
        test_the_parts_sum_to_the_logit(by, tied=False)


def uncentred(right: Any, self: Any, direction: Any, x: Any) -> Any:
    return self.w * direction / (x.var(-1, correction=0, keepdim=True) + self.eps) ** 0.5


MUTANTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = {
    "b_O is left out": (without("attn.b_O"), every_sum),
    "b_out is left out": (without("mlp.b_out"), every_sum),
    "the last norm's bias is left out": (without("ln_final.b"), every_sum),
    "the bias of queries' norm is left out": (
        without("ln1.b"), lambda: test_at_an_earlier_place("head", "blocks.1.attn.ckpt_q"),
    ),
    "a head's share of the value bias is left out": (without_value_bias, every_sum),
    "statistics of another text": (norm_reads(lambda right, self, d, x: right(self, d, x.roll(1, 0))), every_sum),
    "statistics of another position": (norm_reads(lambda right, self, d, x: right(self, d, x.roll(1, 1))), every_sum),
    "parts are not centred": (
        norm_reads(uncentred), test_a_head_is_its_definition_with_its_share_of_the_value_bias,
    ),
    "epsilon is left out": (
        norm_reads(lambda right, self, d, x: right(self, d, x) * (1 + self.eps / x.var(-1, keepdim=True)) ** 0.5),
        every_sum,
    ),
}  # fmt: skip


passes = functools.cache(lambda check: check())
"""Each check passes while nothing is broken: that is tried once."""


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_noticed(name: str) -> None:
    breaks, check = MUTANTS[name]
    passes(check)
    with pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises((AssertionError, pl.NumericsError)):
            check()
