"""Two tensors: exact facts, at the edges too; and alignments as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pellucid as pl
import support
from pellucid.prove.aligning import align
from pellucid.prove.tensors import fingerprint
from pellucid.prove.units import units_of


def test_the_sentence_and_the_numbers() -> None:
    a = torch.ones(200)
    b = a.clone()
    b[0] += 0.5
    found = pl.compare(a, b)
    assert repr(found) == "99.50% of the values are correct."
    assert (found.bit_equal, found.max_abs, found.max_ulp, bool(found)) == (False, 0.5, 2**22, False)
    assert repr(pl.compare(a, a)) == "100.00% of the values are correct."


def test_bits_count() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert pl.compare(nan, nan.clone()).bit_equal
    assert not pl.compare(torch.tensor([0.0]), torch.tensor([-0.0])).bit_equal
    assert pl.compare(torch.tensor([0.0]), torch.tensor([-0.0])).max_ulp == 0
    assert pl.compare(torch.tensor(1.0), torch.tensor(1.0)).bit_equal
    assert pl.compare(torch.zeros(0), torch.zeros(0)).bit_equal
    assert pl.compare(torch.arange(3), torch.arange(3)).bit_equal
    with pytest.raises(pl.ShapeError):
        pl.compare(torch.zeros(2), torch.zeros(3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.integers(1, 5))
def test_ulps_count_representable_numbers(values: list[float], steps: int) -> None:
    a = torch.tensor(values)
    b = a.clone()
    for _ in range(steps):
        b = torch.nextafter(b, torch.tensor(torch.inf))
    if bool(b.isfinite().all()):
        assert pl.compare(a, b).max_ulp in (steps, steps - 1)  # both zeros count as one number


def test_dtypes_meet_in_the_coarser() -> None:
    a = torch.randn(50)
    found = pl.compare(a, a.bfloat16())
    assert (found.dtype, found.bit_equal) == ("bfloat16", True)


def test_whole_numbers_that_are_one_float64() -> None:
    a = torch.tensor([2**53, 5])
    found = pl.compare(a, a + torch.tensor([1, 0]))
    assert (found.bit_equal, found.max_abs, found.fraction) == (False, 1.0, 0.5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.permutations(range(3)))
def test_fingerprints_do_not_see_order_and_see_bits(seed: int, axes: list[int]) -> None:
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    assert fingerprint(x) == fingerprint(x.permute(axes))
    y: Tensor = x.clone()
    y.view(-1)[seed % 60] = torch.nextafter(y.view(-1)[seed % 60], torch.tensor(torch.inf))
    assert fingerprint(x) != fingerprint(y)


def test_alignment_as_a_file(tmp_path: Path, glass: pl.CkptedTransformer) -> None:
    hf = pl.to_hf(glass)
    found = align(units_of(glass), hf.state_dict(keep_vars=True), glass.schema)
    found.save(tmp_path / "alignment.json")
    again = pl.Alignment.load(tmp_path / "alignment.json")
    assert again == found
    assert again.check(glass, hf).bit_equal
    with torch.no_grad():
        hf.transformer.h[1].ln_2.bias[0] += 1e-6
    checked = again.check(glass, hf)
    assert [match.group.units for match in checked.matches if not match.comparison.bit_equal] == [("blocks.1.ln2.b",)]
    checked.save(tmp_path / "checked.json")
    assert pl.Alignment.load(tmp_path / "checked.json") == checked
    with pytest.raises(pl.WeightsError) as caught:
        again.check(glass, {name: t for name, t in hf.state_dict().items() if "wpe" not in name})
    assert caught.value.code == "alignment-units"
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(pl.WeightsError):
        pl.Alignment.load(tmp_path / "other.json")


def test_an_alignment_that_was_saved_before(tmp_path: Path, glass: pl.CkptedTransformer) -> None:
    """Such files do not say the axes of units nor relative changes, and call the rows of positions otherwise."""
    found = align(units_of(glass), pl.to_hf(glass).state_dict(keep_vars=True), glass.schema)
    content = json.loads(found.to_json())
    for row in content["matches"]:
        del row["group"]["inner"], row["group"]["heads"]
        del row["comparison"]["relative"], row["comparison"]["relative_to_b"]
    assert any("n_ctx" in row["transform"]["axes"] for row in content["matches"])
    (tmp_path / "before.json").write_text(json.dumps(content).replace('"n_ctx"', '"pos"'))
    assert pl.Alignment.load(tmp_path / "before.json") == found


def test_a_nan_and_a_sign_of_zero_are_values_too(glass: pl.CkptedTransformer) -> None:
    units = {name: tensor.clone() for name, tensor in units_of(glass).items()}
    units["blocks.0.mlp.b_in"][0] = torch.nan
    theirs = {name: tensor.clone() for name, tensor in units.items()}
    assert align(units, theirs, glass.schema).bit_equal
    units["blocks.1.mlp.b_in"][0], theirs["blocks.1.mlp.b_in"][0] = 0.0, -0.0
    assert not align(units, theirs, glass.schema).bit_equal


def test_a_default_device_without_numbers_changes_no_verdict() -> None:
    model = support.glass()
    ids = torch.tensor([[1, 2, 3]])
    torch.set_default_device("meta")
    try:
        report = pl.compare(model, model, inputs=ids)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert report.verdict == "identical"


def test_a_divergence_names_a_parameter_once() -> None:
    model, other = support.glass(), support.glass()
    with torch.no_grad():
        other.blocks[0].mlp.W_in[0, 0] += 0.5
    for pair in ((model, other), (model.state_dict(), other.state_dict())):
        assert str(pl.compare(*pair, inputs=torch.tensor([[1, 2]])).first_divergence).count("blocks.0.mlp.W_in") == 1
