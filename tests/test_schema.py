"""The schema says what the model is, and the model is what the schema says."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pellucid as pl
import support

UNTIED = {"tie_word_embeddings": False}


@pytest.mark.parametrize("fields", [{}, UNTIED, {"n_layer": 0}, {"n_inner": 20}], ids=str)
def test_parameters_are_the_models(fields: dict[str, int]) -> None:
    model = support.glass(**fields)
    listed = model.schema.parameters
    assert {p.name for p in listed} == set(model.parameter_names)
    for parameter in listed:
        assert tuple(model.parameter(parameter.name).shape) == model.schema.shape_of(parameter), parameter.name
        stored = model.get_parameter(parameter.stored_in)
        assert model.parameter(parameter.name).untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == dict(model.schema.stored)


def test_points_are_what_a_run_captures(glass: pl.CkptedTransformer) -> None:
    ids = support.some_ids(2, 7)
    _, ckpts = glass.run_with_ckpts(ids)
    schema = glass.schema
    assert list(ckpts) == [point.name for point in schema] == list(schema.names) == list(glass.ckpt_names)
    sizes = {**schema.sizes, "batch": 2, "pos": 7, "query": 7, "key": 7}
    for name, value in ckpts.items():
        assert list(value.shape) == [sizes[axis] for axis in schema[name].axes]
        lowest = torch.finfo(value.dtype).min
        assert bool((value == lowest).any()) == schema[name].masked, name


def test_points_name_the_parameters_that_make_them(glass: pl.CkptedTransformer) -> None:
    """Each parameter makes one point, and that point's value depends on it."""
    schema = glass.schema
    every = [
        name for block in [schema.before, schema.block, schema.after] for point in block for name in point.parameters
    ]
    known = {p.name.split(".", 2)[2] if p.name.startswith("blocks.") else p.name for p in schema.parameters}
    fused = {"attn.W_QKV", "attn.b_QKV", "unembed.W_U"}
    assert sorted(every) == sorted(known - fused)
    _, ckpts = glass.run_with_ckpts(support.some_ids(1, 5), names="blocks.1.**", grads=True)
    for point in schema.block:
        for parameter in point.parameters:
            glass.zero_grad()
            ckpts[f"blocks.1.{point.name}"].sum().backward(retain_graph=True)
            grad = glass.grad(f"blocks.1.{parameter}")
            assert grad is not None, (point.name, parameter)
            assert bool(grad.any()), (point.name, parameter)


def test_what_is_computed_when_watched_costs_nothing_unwatched(glass: pl.CkptedTransformer) -> None:
    """A tap that wants to know of every value, and says so only of those on the fast path, sees no others."""
    seen: list[str] = []

    class Fast:
        def wants(self, name: str) -> bool:
            return glass.schema[name].computed == "always"

        def __call__(self, name: str, value: torch.Tensor) -> torch.Tensor:
            seen.append(name)
            return value

    glass(support.some_ids(1, 4), tap=Fast())
    assert seen == [point.name for point in glass.schema if point.computed == "always"]
    beside = {point.name.rpartition(".")[2] for point in glass.schema if point.computed == "when watched"}
    assert beside == {"ckpt_scaled", "ckpt_scores", "ckpt_pattern"}


def test_scores_are_wider_only_where_eager_attention_upcasts() -> None:
    ids = support.some_ids(1, 4)
    for attention in ("auto", "eager"):
        model = support.glass(reorder_and_upcast_attn=True, attention=attention).to(torch.bfloat16)
        _, ckpts = model.run_with_ckpts(ids)
        for name, value in ckpts.items():
            upcast = attention == "eager" and model.schema[name].upcast
            assert (value.dtype == torch.float32) == upcast, name
        assert pl.estimate(model, ids).nbytes == ckpts.nbytes


def test_it_prints_every_point_once_and_blocks_that_are_alike_together() -> None:
    shown = repr(support.glass().schema)
    assert shown.count("attn.ckpt_z ") == 1
    assert "blocks.0 to blocks.2" in shown
    assert "[B, P, H, K]" in shown
    assert "\nblocks.0\n" in repr(support.glass(n_layer=1).schema)


def test_an_unknown_name_is_an_error_with_a_hint(glass: pl.CkptedTransformer) -> None:
    with pytest.raises(pl.UnknownNameError, match=r"blocks\.0\.attn\.ckpt_pattern"):
        glass.schema["blocks.0.attn.ckpt_patern"]


def test_copies_are_equal(glass: pl.CkptedTransformer) -> None:
    for again in (copy.deepcopy(glass.schema), pickle.loads(pickle.dumps(glass.schema))):
        assert again.points == glass.schema.points
        assert again.parameters == glass.schema.parameters
        assert again.sizes == glass.schema.sizes
