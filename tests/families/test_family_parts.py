"""Modules of every family that are called alone: what does not fit them is an error that says what does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pellucid as pl
import samples
from pellucid import gpt2, llama, neox
from samples import SAMPLES

MODULES = {"gpt2": gpt2, "llama": llama, "gpt_neox": neox}

WRONG: dict[str, Callable[[Tensor], Any]] = {
    "half of the width": lambda x: x[..., : x.size(-1) // 2],  # torch can reshape it into vectors of the whole width
    "a single number": lambda x: x[..., :1],  # which would be repeated
    "one more": lambda x: torch.cat([x, x[..., :1]], -1),
    "whole numbers": Tensor.long,
    "float64": Tensor.double,
    "a list": Tensor.tolist,
    "an array": Tensor.numpy,
    "nothing": lambda x: None,
}

OF_TEXTS: dict[str, Callable[[Tensor], Any]] = {
    "one text": lambda x: x[0], "one vector": lambda x: x[0, 0], "another axis": lambda x: x[None]
}  # fmt: skip
"""What norms and MLPs take, for they know no positions."""


def parts(model: pl.CkptedTransformer) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "ln1": block.ln1, "attn": block.attn, "mlp": block.mlp, "block": block, "ln_final": model.ln_final,
        "unembed": model.unembed,
    }  # fmt: skip


def refused(part: Any, given: Any) -> pl.ShapeError:
    with pytest.raises(pl.ShapeError) as caught:
        part(given)
    return caught.value


@torch.no_grad()
@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("family", SAMPLES)
def test_values_that_do_not_fit(family: str, numerics: str) -> None:
    hf = samples.reference(family)
    model = pl.from_hf(hf, numerics=numerics)
    x = model.embed(samples.some_ids(2, 4))
    for name, part in parts(model).items():
        part(x)
        ways = WRONG | (OF_TEXTS if name in ("attn", "block") else {})
        for way, make in ways.items():
            if way == "float64" and family == "llama" and name.startswith("ln"):
                continue  # this norm is taken in float32, whatever it is given
            error = refused(part, make(x))
            assert error.code == "module-input", (name, way)
            assert f"{x.size(-1)}]" in error.message
        if name not in ("attn", "block"):
            assert all(part(make(x)).shape[:-1] == make(x).shape[:-1] for make in OF_TEXTS.values())


@torch.no_grad()
@pytest.mark.remedy("module-input", "ids-dtype")
@pytest.mark.parametrize("family", SAMPLES)
def test_remedies_of_modules(family: str) -> None:
    model, ids = samples.glass(family), samples.some_ids(2, 4)
    x, block = model.embed(ids), model.blocks[1]
    right = block(x)
    for wrong, way in (
        (x.tolist(), "torch.as_tensor(x)"), (x.double(), "x.to(torch.float32)"), (ids, "model.embed(ids)"),
        (x[..., :-1], "model.embed(ids)"), (x[0], "x[None]"),
    ):  # fmt: skip
        error = refused(block, wrong)
        assert error.message.startswith("blocks.1."), error
        assert way in error.remedy
        given = eval(way, {"torch": torch, "x": wrong, "model": model, "ids": ids})
        assert torch.equal(block(given), right[: len(given)])
    for wrong in (ids.float(), ids.bool(), ids.tolist(), "a text", None):
        assert (error := refused(model.embed, wrong)).code == "ids-dtype"
    assert torch.equal(model.embed(torch.as_tensor(ids.tolist()).long()), x)
    assert "torch.as_tensor(ids).long()" in error.remedy
    assert all(torch.equal(model.embed(ids.to(kind)), x) for kind in (torch.uint8, torch.int16, torch.int32))


@torch.no_grad()
@pytest.mark.parametrize("family", SAMPLES)
def test_a_network_is_called_with_ids(family: str) -> None:
    model, ids = samples.glass(family), samples.some_ids(2, 4)
    network = MODULES[family].Transformer(model.config, model.state_dict()).eval()
    assert torch.equal(network(ids), model(ids))
    later = torch.arange(3, 7).expand_as(ids)
    shifted = float((network(ids, later) - model(ids)).abs().max())
    assert (shifted > 0.1) if family == "gpt2" else (shifted < 1e-3)  # rotary positions are relative
    for wrong in (ids[0], ids[None], ids.tolist(), "a text"):
        error = refused(network, wrong)
        assert error.code == "module-input"
    assert network(eval("torch.tensor([[1, 2, 3]])")).shape == (1, 3, samples.VOCABULARY)
    assert "torch.tensor([[1, 2, 3]])" in error.remedy
    for places in (later[0], later[:1]):
        assert torch.equal(network(ids, places), network(ids, later))
    for positions in (later[:, :2], later[:, :1], later[None], later.tolist()):
        with pytest.raises(pl.ShapeError, match=r"expected positions \[2, 4\]") as caught:
            network(ids, positions)
    assert "torch.arange(ids.size(1)).expand_as(ids)" in caught.value.remedy
    assert torch.equal(network(ids, torch.arange(ids.size(1)).expand_as(ids)), network(ids))
