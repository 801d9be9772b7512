"""Which entries `pos`, `heads` and `neurons` choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
from pellucid.axes import ATTENTION, HIDDEN, PER_HEAD, RESIDUAL
from pellucid.run.region import Region, put, take

SHAPES = {RESIDUAL: (2, 5, 6), PER_HEAD: (2, 5, 3, 4), ATTENTION: (2, 3, 5, 5), HIDDEN: (2, 5, 7)}
AXES_OF = {"pos": {RESIDUAL: 1, PER_HEAD: 1, ATTENTION: 2, HIDDEN: 1}, "heads": {PER_HEAD: 2, ATTENTION: 1},
           "neurons": {RESIDUAL: 2, PER_HEAD: 3, HIDDEN: 2}}  # fmt: skip


def entries(size: int) -> st.SearchStrategy[Any]:
    one = st.integers(-size, size - 1)
    return (
        st.none()
        | one
        | st.lists(one, min_size=1, max_size=size)
        | st.just(slice(None, None, 2))
        | st.just(slice(-2, None))
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(axes=st.sampled_from(list(SHAPES)), pos=entries(5), heads=entries(3), neurons=entries(4))
def test_take_is_numpy_indexing_with_every_axis_kept(axes: Any, pos: Any, heads: Any, neurons: Any) -> None:
    value = torch.arange(torch.Size(SHAPES[axes]).numel()).reshape(SHAPES[axes])
    indices = Region(pos, heads, neurons).indices("here", value.shape, axes, strict=False)
    expected = value.numpy()
    for what, index in (("pos", pos), ("heads", heads), ("neurons", neurons)):
        axis = AXES_OF[what].get(axes)
        if index is None or axis is None:
            continue
        chosen = np.arange(expected.shape[axis])[index] if not isinstance(index, int) else np.array([index])
        expected = np.take(expected, chosen, axis=axis)
    assert np.array_equal(take(value, indices).numpy(), expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(axes=st.sampled_from(list(SHAPES)), pos=entries(5), heads=entries(3), neurons=entries(4))
def test_put_changes_the_chosen_entries_only(axes: Any, pos: Any, heads: Any, neurons: Any) -> None:
    value = torch.arange(torch.Size(SHAPES[axes]).numel()).reshape(SHAPES[axes])
    indices = Region(pos, heads, neurons).indices("here", value.shape, axes, strict=False)
    part = take(value, indices)
    out = put(value, indices, -part - 1)
    chosen = torch.isin(value, part)  # values are unique, so that they say where they came from
    assert torch.equal(out, torch.where(chosen, -value - 1, value))
    assert out.data_ptr() != value.data_ptr()
    assert torch.equal(value.flatten(), torch.arange(value.numel())), "put wrote into its argument"


@pytest.mark.parametrize(
    ("region", "axes"),
    [
        (Region(pos=5), RESIDUAL),
        (Region(pos=-6), RESIDUAL),
        (Region(pos=[0, 9]), ATTENTION),
        (Region(heads=3), PER_HEAD),
        (Region(heads=[]), ATTENTION),
        (Region(neurons=6), RESIDUAL),
        (Region(pos=slice(3, 3)), HIDDEN),
    ],
)
def test_entries_that_do_not_exist(region: Region, axes: Any) -> None:
    with pytest.raises(pl.InputError) as caught:
        region.indices("here", SHAPES[axes], axes, strict=False)
    assert caught.value.code == "index-out-of-range"
    assert "here" in str(caught.value)


@pytest.mark.parametrize(
    ("region", "axes"), [(Region(heads=0), RESIDUAL), (Region(neurons=0), ATTENTION), (Region(heads=1), HIDDEN)]
)
def test_an_axis_that_is_not_there(region: Region, axes: Any) -> None:
    with pytest.raises(pl.InputError) as caught:
        region.indices("here", SHAPES[axes], axes, strict=True)
    assert caught.value.code == "no-such-axis"
    assert region.indices("here", SHAPES[axes], axes, strict=False) == {}
