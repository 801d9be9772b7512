"""Whatever the layout: a random invertible re-layout of a random model is aligned back, and its run is not accused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import pellucid as pl
import support
from pellucid.prove.aligning import align
from pellucid.prove.units import HEAD, PART, Group, GroupTransform, unit_axes, units_of

SIZES = {"vocab_size": 31, "n_positions": 11, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20}


@st.composite
def layouts(draw: Any) -> tuple[int, dict[str, tuple[Group, GroupTransform, tuple[int, ...]]]]:
    """A seed, and name -> (units, transform, shape): fused, split, permuted, nested at will."""
    h = SIZES["n_head"]
    groups: list[tuple[Group, tuple[int, ...] | None]] = []
    model = pl.CkptedTransformer(pl.TransformerConfig(**SIZES))
    units, axes = units_of(model), unit_axes(model.schema)
    left = list(units)
    for i in range(SIZES["n_layer"]):
        heads = tuple(draw(st.permutations(range(h))))
        order = None if heads == tuple(range(h)) else heads
        for kind in "Wb":
            names = [f"blocks.{i}.attn.{kind}_{letter}" for letter in "QKV"]
            left = [name for name in left if name not in names]
            how = draw(st.sampled_from(["fused", "split", "per head", "per head fused", "kv"]))
            if how == "fused":
                groups.append((Group(tuple(names), axes[names[0]]), order))
            elif how == "split":
                groups += [(Group((name,), axes[name]), order) for name in names]
            elif how == "kv":
                groups += [(Group(part, axes[part[0]]), order) for part in (tuple(names[:1]), tuple(names[1:]))]
            elif how == "per head":
                groups += [(Group((name,), axes[name], head), None) for name in names for head in range(h)]
            else:
                groups += [(Group(tuple(names), axes[names[0]], head), None) for head in range(h)]
    groups += [(Group((name,), axes[name]), None) for name in left]
    made = {}
    for number, (group, heads) in enumerate(draw(st.permutations(groups))):
        natural = group.natural(units)
        axes = tuple(draw(st.permutations(group.axes)))
        sizes = [natural.shape[group.axes.index(axis)] for axis in axes]
        cuts = sorted(draw(st.sets(st.integers(1, len(sizes) - 1)))) if len(sizes) > 1 else []
        shape = tuple(torch.Size(sizes[a:b]).numel() for a, b in itertools.pairwise([0, *cuts, len(sizes)]))
        depth = draw(st.integers(0, 2))
        name = ".".join([f"part{draw(st.integers(0, 3))}" for _ in range(depth)] + [f"t{number}"])
        made[name] = (group, GroupTransform(axes, heads if HEAD in group.axes else None), shape)
    return draw(st.integers(0, 1000)), made


@settings(
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
    max_examples=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(layouts())
def test_a_random_layout_is_aligned_back(layout: Any) -> None:
    seed, tensors = layout
    model = support.glass(seed=seed, **SIZES)
    units = units_of(model)
    theirs = {
        name: transform.apply(group.natural(units), group, shape).clone(memory_format=torch.contiguous_format)
        for name, (group, transform, shape) in tensors.items()
    }
    found = align(units, theirs, model.schema)
    assert found.bit_equal, (found.unexplained, found.missing)
    assert {match.name: match.group for match in found.matches} == {
        name: group for name, (group, _, _) in tensors.items()
    }
    other = units_of(support.glass(seed=seed + 1, **SIZES))
    converted = found.convert(other)
    for name, (group, transform, shape) in tensors.items():
        assert torch.equal(converted[name], transform.apply(group.natural(other), group, shape)), name
    spoiled = dict(theirs)
    name = sorted(theirs)[seed % len(theirs)]
    spoiled[name] = spoiled[name].clone()
    spoiled[name].view(-1)[0] = torch.nextafter(spoiled[name].view(-1)[0], torch.tensor(torch.inf))
    again = align(units, spoiled, model.schema)
    assert not again.bit_equal
    assert [match.name for match in again.matches if not match.comparison.bit_equal] == [name]
    assert not found.check(model, spoiled).bit_equal


@pytest.mark.parametrize("axis", [PART, HEAD])
def test_parts_and_heads_are_axes_like_others(axis: str) -> None:
    group = Group(tuple(f"blocks.0.attn.W_{letter}" for letter in "QKV"), ("head", "d_model", "d_head"))
    assert axis in group.axes
