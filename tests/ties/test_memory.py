"""Which names share memory, which are merely equal, and how many numbers there are."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.ties.memory import Named, clusters, coverage, equal_groups, same_place, shared_groups

MEMORY = torch.arange(24.0)

VIEWS: dict[str, Tensor] = {
    "all": MEMORY, "first half": MEMORY[:12], "second half": MEMORY[12:], "even": MEMORY[::2], "odd": MEMORY[1::2],
    "matrix": MEMORY.view(4, 6), "transposed": MEMORY.view(4, 6).t(), "left": MEMORY.view(4, 6)[:, :3],
    "right": MEMORY.view(4, 6)[:, 3:], "one": MEMORY[5:6], "none": MEMORY[:0], "repeated": MEMORY[3:4].expand(5),
    "other": torch.arange(24.0), "bytes": MEMORY.view(torch.uint8)[2:3], "row": MEMORY.view(4, 6)[1],
}  # fmt: skip


def addresses(tensor: Tensor) -> set[int]:
    """Every byte that a tensor shows, one by one."""
    size = tensor.element_size()
    starts = [tensor.data_ptr()] if tensor.numel() else []
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        starts = [start + i * stride * size for start in starts for i in range(length)]
    return {start + byte for start in starts for byte in range(size)}


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(sorted(VIEWS)), min_size=1, max_size=6, unique=True))
def test_clusters_are_what_shared_bytes_connect(names: list[str]) -> None:
    expected: list[set[str]] = []
    for name in names:
        touching = [part for part in expected if any(addresses(VIEWS[name]) & addresses(VIEWS[o]) for o in part)]
        expected = [part for part in expected if part not in touching] + [{name}.union(*touching)]
    found = clusters([Named(name, VIEWS[name]) for name in names])
    assert sorted(sorted(one.name for one in cluster) for cluster in found) == sorted(map(sorted, expected))
    for cluster in found:
        assert coverage(cluster) == len(set().union(*(addresses(one.tensor) for one in cluster)))


def test_kinds() -> None:
    parameter = nn.Parameter(torch.randn(3, 4))
    named = [
        Named("a", parameter), Named("b", parameter), Named("c", nn.Parameter(torch.randn(4))),
        Named("d", MEMORY), Named("e", MEMORY.view(24)), Named("f", torch.zeros(2)), Named("g", torch.zeros(3)[:2]),
    ]  # fmt: skip
    groups = {group.names: group for group in shared_groups(clusters(named))}
    assert {names: group.kind for names, group in groups.items()} == {
        ("a", "b"): "same parameter",
        ("d", "e"): "same memory",
    }
    assert groups["a", "b"].addresses == (parameter.data_ptr(),) * 2
    assert groups["a", "b"].nbytes == 48
    for a, b, nbytes in (
        (MEMORY[:12], MEMORY[6:], 96), (MEMORY[:12], MEMORY[6:18], 72), (MEMORY[:7:6], MEMORY[:7:3], 12),
    ):  # fmt: skip
        (overlapping,) = shared_groups(clusters([Named("a", a), Named("b", b)]))
        assert (overlapping.kind, overlapping.nbytes) == ("overlapping", nbytes)


def test_equal_is_not_shared() -> None:
    a = torch.randn(5, 3)
    named = [
        Named("a", a), Named("b", a.clone()), Named("c", a.clone().view(3, 5)), Named("d", a.double()),
        Named("e", a + 0.5), Named("zeros", torch.zeros(5, 3)), Named("more zeros", torch.zeros(5, 3)),
        Named("a again", a),
    ]  # fmt: skip
    (group,) = equal_groups(clusters(named))
    assert group.names == ("a", "b")
    assert group.kind == "equal"
    assert group.nbytes == 2 * 60


def test_equal_tensors_are_compared_whole() -> None:
    """Fingerprints are samples; what agrees in all of them may still differ."""
    a = torch.randn(1000, 7)
    b = a.clone()
    b.view(-1)[1] += 1
    assert equal_groups(clusters([Named("a", a), Named("b", b)])) == []


def test_a_nan_is_equal_to_the_same_nan() -> None:
    a = torch.tensor([1.0, torch.nan])
    assert len(equal_groups(clusters([Named("a", a), Named("b", a.clone())]))) == 1


def test_meta_tensors_share_by_storage() -> None:
    a = torch.empty(3, 4, device="meta")
    named = [Named("a", a), Named("b", a.detach()), Named("c", torch.empty(3, 4, device="meta")), Named("d", a[1:])]
    assert [same_place(a, one.tensor) for one in named] == [True, True, False, False]
    assert [[one.name for one in cluster] for cluster in clusters(named)] == [["a", "b", "d"], ["c"]]
    assert equal_groups(clusters(named)) == []


def test_sparse_tensors_share_nothing() -> None:
    sparse = torch.eye(3).to_sparse()
    assert [len(cluster) for cluster in clusters([Named("a", sparse), Named("b", sparse)])] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex128, torch.bfloat16, torch.int8, torch.bool])
def test_numbers_of_every_dtype_are_compared(dtype: torch.dtype) -> None:
    a, same = torch.tensor([1.0, 0.0, 1.0]).to(dtype), torch.ones(3).to(dtype)
    named = [Named("a", a), Named("b", a.clone()), Named("ones", same), Named("more ones", same.clone())]
    assert [group.names for group in equal_groups(clusters(named))] == [("a", "b")]


def test_quantized_tensors_are_equal_to_no_other() -> None:
    with warnings.catch_warnings(action="ignore"):  # torch will not make such tensors for much longer
        a = torch.quantize_per_tensor(torch.tensor([1.0, 2.0]), 1.0, 0, torch.qint8)
    assert equal_groups(clusters([Named("a", a), Named("b", a.clone())])) == []
