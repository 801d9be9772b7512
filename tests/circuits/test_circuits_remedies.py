"""Each wrong call about circuits is refused, and what its remedy says is done and works."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from whole_runs import METRIC, model, two

import pellucid as pl
import support
from following import Case, follow, params

Here = SimpleNamespace
circuits: Any = pl.circuits
Circuit: Any = pl.circuits.Circuit
CLEAN, CORRUPTED = two()
HEAD, EDGE = "blocks.0.attn[1]", ("blocks.0.attn[1]", "blocks.1.attn.q[0]")


def _report(here: Here, circuit: Any = None, **more: Any) -> Any:
    given: dict[str, Any] = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": METRIC, "value": "resample", **more}
    made = Circuit(nodes=[(0, 1)]) if circuit is None else circuit
    texts = given.pop("clean"), given.pop("corrupted")
    return circuits.evaluate(here.model, made, *texts, **{"subsets": 1, "random": 0, **given})


def _curve(here: Here, **more: Any) -> Any:
    given: dict[str, Any] = {"metric": METRIC, "value": "resample", **more}
    return circuits.curve(here.model, Circuit(nodes=[(0, 1)]), CLEAN, CORRUPTED, **given)


def _across(here: Here, **more: Any) -> Any:
    return circuits.across(here.model, Circuit(nodes=[(0, 1)]), CLEAN, CORRUPTED, metric=METRIC, **more)


def _attributed(here: Here, by: Any = "component") -> Any:
    return pl.attribution.direct(here.model.run_with_ckpts(CLEAN)[1], 3, by=by)


REMEDIES: dict[str, list[Case]] = {
    "circuit-kind": [
        Case(lambda h: Circuit(), "nodes=[(5, 3), 'blocks.5.mlp']", lambda h: Circuit(nodes=[(5, 3)])),
        Case(lambda h: Circuit(), "is nodes=[]", lambda h: Circuit(nodes=[])),
        Case(lambda h: Circuit(nodes=HEAD), "nodes=[", lambda h: Circuit(nodes=[HEAD])),
        Case(lambda h: Circuit(nodes=[(5, -3)]), "(5, 3) for a head", lambda h: Circuit(nodes=[(5, 3)])),
        Case(lambda h: Circuit(nodes=[5]), "'blocks.5.mlp'", lambda h: Circuit(nodes=["blocks.5.mlp"])),
        Case(lambda h: Circuit(nodes=["nonsense"]), "'blocks.5.mlp'", lambda h: Circuit(nodes=["blocks.5.mlp"])),
        Case(lambda h: Circuit(edges=[("a", "b")]), "edges=[('blocks", lambda h: Circuit(edges=[EDGE])),
        Case(lambda h: _report(h, [(0, 1)]), "Circuit(nodes=[(5, 3)", lambda h: _report(h, Circuit([(0, 1)]))),
        Case(lambda h: Circuit(edges=[HEAD]), "edges=[('blocks", lambda h: Circuit(edges=[EDGE])),
    ],
    "circuit-scores": [
        Case(
            lambda h: Circuit(nodes=h.streams), "'attn.ckpt_z' over ('layer', 'head')",
            lambda h: Circuit(nodes=h.heads),
        ),
        Case(
            lambda h: Circuit(nodes=h.heads.mean("layer")), "'mlp.ckpt_mlp_out' over ('layer',)",
            lambda h: Circuit(nodes=h.mlps),
        ),
        *(
            Case(
                lambda h, made=made: Circuit(nodes=made(_attributed(h))), "by='head').isel(pos=-1)",
                lambda h: Circuit(nodes=_attributed(h, by="head").isel(pos=-1)),
            ) for made in (lambda parts: parts, lambda parts: parts.isel(pos=-1))
        ),
        Case(
            lambda h: Circuit(edges=h.heads), "pl.attribution.edges returned",
            lambda h: Circuit(edges=pl.attribution.edges(h.model, CLEAN, CORRUPTED, metric=METRIC)),
        ),
    ],
    "circuit-above": [
        Case(
            lambda h: Circuit(nodes=h.heads).above("much"), "such as 0.1",
            lambda h: Circuit(nodes=h.heads).above(0.1),
        ),
        Case(
            lambda h: Circuit(nodes=h.heads).above(np.nan), "such as 0.1",
            lambda h: Circuit(nodes=h.heads).above(0.1),
        ),
    ],
    "circuit-part": [
        Case(
            lambda h: _report(h, Circuit(nodes=["blocks.0.attn[7]"])), "'blocks.0.attn[0]'",
            lambda h: _report(h, Circuit(nodes=["blocks.0.attn[0]"])),
        ),
        Case(
            lambda h: _report(h, Circuit(nodes=[(9, 0)])), "called 'blocks.5.attn[3]'",
            lambda h: _report(h, Circuit(nodes=["blocks.1.attn[0]"])),
        ),
        Case(
            lambda h: _report(h, Circuit(edges=[(HEAD, "blocks.1.attn[0]")])), "'blocks.9.attn.q[9]'",
            lambda h: _report(h, Circuit(edges=[(HEAD, "blocks.1.attn.q[0]")])),
        ),
    ],
    "circuit-order": [
        Case(
            lambda h: _report(h, Circuit(edges=[("blocks.1.mlp", "blocks.0.attn.q[1]")])),
            "from earlier parts to later ones",
            lambda h: _report(h, Circuit(edges=[("blocks.0.mlp", "blocks.1.attn.q[1]")])),
        ),
        Case(
            lambda h: _report(h, Circuit(edges=[(HEAD, "blocks.0.attn.q[0]")])), "to later ones",
            lambda h: _report(h, Circuit(edges=[EDGE])),
        ),
    ],
    "circuit-choices": [
        Case(lambda h: _report(h, value="noise"), "value='resample'", lambda h: _report(h, value="resample")),
        Case(
            lambda h: _report(h, granularity="node"), "granularity='nodes'",
            lambda h: _report(h, granularity="nodes"),
        ),
        Case(
            lambda h: _report(h, components=["attn"]), "components='embeddings'",
            lambda h: _report(h, components="embeddings"),
        ),
        Case(
            lambda h: _report(h, components=[]), "components='embeddings'",
            lambda h: _report(h, components="embeddings"),
        ),
        Case(lambda h: _report(h, direction="back"), "direction='noise'", lambda h: _report(h, direction="noise")),
        Case(
            lambda h: _report(h, value="zero", direction="denoise"), "direction='noise'",
            lambda h: _report(h, value="zero", direction="noise"),
        ),
        Case(
            lambda h: _report(h, components=5), "components='heads'",
            lambda h: _report(h, components="heads"),
        ),
        Case(lambda h: _across(h, values=[]), "values=['resample']", lambda h: _across(h, values=["resample"])),
    ],
    "circuit-shares": [
        Case(lambda h: _curve(h, shares=[0.5, 0.1]), "[0.01, 0.1, 1.0]", lambda h: _curve(h, shares=[0.01, 0.1, 1.0])),
        Case(lambda h: _curve(h, shares=[]), "[0.01, 0.1, 1.0]", lambda h: _curve(h, shares=[0.01, 0.1, 1.0])),
        Case(lambda h: _curve(h, shares=[2]), "[0.01, 0.1, 1.0]", lambda h: _curve(h, shares=[0.01, 0.1, 1.0])),
        Case(lambda h: _curve(h, shares=2), "[0.01, 0.1, 1.0]", lambda h: _curve(h, shares=1.0)),
    ],
    "texts-of-unequal-length": [
        Case(
            lambda h: _report(h, corrupted=support.some_ids(2, 7)), "texts of equal length",
            lambda h: _report(h, corrupted=support.some_ids(2, 5, seed=8)),
        )
    ],
    "nothing-to-normalize": [
        Case(lambda h: _report(h, corrupted=CLEAN), "texts in which the two runs differ", _report),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def here() -> Here:
    glass = model()
    swept: Any = lambda name, *over: pl.patching.sweep(glass, CLEAN, CORRUPTED, name, over=over, metric=METRIC)  # noqa: E731
    return Here(
        model=glass, heads=swept("attn.ckpt_z", "layer", "head"), mlps=swept("mlp.ckpt_mlp_out", "layer"),
        streams=swept("resid_pre", "layer", "pos"),
    )  # fmt: skip


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_the_remedy_says_works(code: str, case: Case, here: Here) -> None:
    follow(code, case, here)


def test_numbers_of_draws_are_whole(here: Here) -> None:
    for wrong in ({"subsets": 0}, {"subsets": 1.5}, {"random": -1}, {"seed": "a"}):
        with pytest.raises(pl.InputError):
            _report(here, **wrong)
    with pytest.raises(pl.InputError, match="top"):
        Circuit(nodes=here.heads).top(-1)
    assert len(Circuit(nodes=here.heads).top(np.int64(2))) == 2
    assert list(Circuit(nodes=np.array([[1, 0]])).nodes) == ["blocks.1.attn[0]"]


def test_one_choice_may_stand_alone(here: Here) -> None:
    one: dict[str, Any] = {"values": "resample", "granularities": "nodes", "components": "heads", "positions": -1,
                           "directions": "noise"}  # fmt: skip
    found = _across(here, **one)
    assert found.shape == (1, 1, 1, 1, 1, len(CLEAN))
    np.testing.assert_array_equal(found, _across(here, **{name: [choice] for name, choice in one.items()}))
    np.testing.assert_array_equal(found, _across(here, **{**one, "positions": torch.tensor(-1)}))


def test_what_is_missing_is_no_part() -> None:
    scores = xr.DataArray(
        [[1.0, np.nan]], dims=("layer", "head"), coords={"layer": [0], "head": [0, 1]},
        attrs={"checkpoint": "attn.ckpt_z"},
    )  # fmt: skip
    assert Circuit(nodes=scores).nodes == {"blocks.0.attn[0]": 1.0}
