"""Which entries `pos`, `heads` and `neurons` choose."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pellucid as pl
from pellucid.gpt2.schema import of_sizes
from pellucid.llama.schema import of_sizes as of_llama
from pellucid.run.region import Region, put, take, warn_of_pads
from pellucid.schema import ATTENTION, HIDDEN, PER_HEAD, RESIDUAL

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


ROWS = (3, 5, 4)


def chosen(region: Region) -> dict[int, list[int]]:
    found = region.indices("here", ROWS, RESIDUAL, strict=True)
    return {axis: entries.tolist() for axis, entries in found.items()}


def test_rows_positions_and_neurons_are_axes_of_their_own() -> None:
    assert chosen(Region()) == {}
    assert chosen(Region(pos=-1, neurons=[0, -1], rows=slice(1, None))) == {0: [1, 2], 1: [4], 2: [0, 3]}


@pytest.mark.parametrize(
    "index", [2, np.int64(2), torch.tensor(2), [2], (2,), torch.tensor([2]), np.array([2]), range(2, 3), slice(2, 3)]
)
def test_an_index_is_one_in_whatever_it_comes(index: Any) -> None:
    assert chosen(Region(pos=index)) == {1: [2]}
    assert Region(pos=index).within(0, 5) == ([2], [0])


@pytest.mark.parametrize("index", [True, [True], torch.tensor([True]), np.array([False]), 1.5, [1.5], "1"], ids=repr)
def test_what_is_no_index(index: Any) -> None:
    with pytest.raises(pl.InputError) as caught:
        chosen(Region(pos=index))
    assert caught.value.code == "index-out-of-range"
    with pytest.raises(pl.InputError) as caught:
        Region(pos=index).within(0, 5)
    assert caught.value.code == "negative-position"


@pytest.mark.parametrize("index", [slice(0, 4, 0), slice("a", None), slice(0, 1.5)], ids=repr)
def test_slices_that_python_refuses(index: slice) -> None:
    for ask in (lambda: chosen(Region(pos=index)), lambda: Region(pos=index).within(0, 5)):
        with pytest.raises(pl.InputError, match="Give whole numbers; a step is not 0") as caught:
            ask()
        assert caught.value.code == "index-out-of-range"
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("what", ["pos", "heads", "neurons", "rows"])
def test_what_is_read_once_is_read_when_it_is_given(what: str) -> None:
    region = Region(**{what: iter([1, 0])})
    assert getattr(region, what) == [1, 0]
    assert not region.is_everything


def test_everything_is_chosen_where_nothing_is_said() -> None:
    assert Region().is_everything
    assert not Region(pos=slice(None)).is_everything


def test_heads_by_their_numbers() -> None:
    of_five = of_sizes({"layer": 1, "head": 5, "head_kv": 5})
    assert Region(heads=slice(-2, None), pos=1).with_heads_of(of_five, []) == Region(heads=[3, 4], pos=1)
    assert Region(pos=1).with_heads_of(of_five, []) == Region(pos=1)
    with pytest.raises(pl.InputError, match=r"heads=5, expected indices from 0 to 4\.") as caught:
        Region(heads=5).with_heads_of(of_five, [])
    assert caught.value.code == "index-out-of-range"


def test_heads_from_an_end_where_keys_have_fewer() -> None:
    schema = of_llama({"layer": 1, "head": 6, "head_kv": 2})
    queries, keys = "blocks.0.attn.ckpt_q", "blocks.0.attn.ckpt_k"
    assert Region(heads=-1).with_heads_of(schema, [keys]) == Region(heads=[1])
    with pytest.raises(pl.InputError, match=r"heads=-1 means other heads where there are 2 than where there are 6\."):
        Region(heads=-1).with_heads_of(schema, [queries, keys])


@pytest.mark.parametrize(
    ("pos", "warned"),
    [
        ([0, 3], r"pos=\[0, 3\] chooses column 0 of .* pad in text 1: .* columns 2 to 4\. .*'right'.*the first token"),
        ([2, 3], None),
        (slice(None), None),
    ],
    ids=repr,
)
def test_a_pad_among_the_columns_is_told_unless_all_are_meant(
    pos: Any, warned: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    warn_of_pads("here", pos, Region(pos=pos).columns(5), mask)
    said = [str(one.message) for one in recwarn]
    assert [re.search(warned, one) is not None for one in said] == [True] if warned else not said


@pytest.mark.parametrize(
    ("pos", "expected"),
    [
        (None, None), (2, ([], [])), (8, ([], [])), ([3, 7], ([0, 4], [0, 1])), ([0, 8, 4, 3], ([1, 0], [2, 3])),
        (slice(None), ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7])), (slice(2, 5), ([0, 1], [1, 2])),
        (slice(1, None, 2), ([0, 2, 4], [1, 2, 3])), (slice(0, 0), ([], [])), (slice(8, None), ([], [])),
        (slice(9, None), ([], [])), (slice(50, None), ([], [])), (slice(6, 50), ([3, 4], [0, 1])), (9, ([], [])),
        ([50, 7], ([4], [1])),
    ],
)  # fmt: skip
def test_positions_within_some_columns(pos: Any, expected: Any) -> None:
    assert Region(pos=pos).within(3, 5) == expected


@pytest.mark.parametrize("pos", [-1, [0, -1], slice(-1, None), slice(0, -1), slice(4, 0, -1)], ids=repr)
def test_positions_from_an_end_that_is_not_known(pos: Any) -> None:
    with pytest.raises(pl.InputError, match="count from 0") as caught:
        Region(pos=pos).within(0, 5)
    assert caught.value.code == "negative-position"


def test_nothing_is_taken_by_a_copy_and_put_by_one() -> None:
    value, part = torch.arange(6).reshape(1, 2, 3), torch.tensor(7)
    assert take(value, {}) is value
    out = put(value, {}, part)
    assert torch.equal(out, torch.full((1, 2, 3), 7))
    out[0, 0, 0] = 1
    assert part == 7
    with pytest.raises(pl.InputError) as caught:
        Region(neurons=0).indices("here", SHAPES[ATTENTION], ATTENTION, strict=True)
    assert "here: neurons= was given" in str(caught.value)
    assert "Leave neurons= out" in caught.value.remedy


def test_a_region_is_not_changed_once_it_was_given() -> None:
    region = Region(pos=1)
    for name in ("pos", "heads", "neurons", "rows", "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(region, name, 2)
    assert region == Region(pos=1)
    assert hash(region) == hash(Region(pos=1))
