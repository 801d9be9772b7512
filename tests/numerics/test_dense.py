"""What is no dense tensor is called the same wherever it is given, and what is said to make it dense does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import pellucid as pl

WHOLE = torch.arange(12.0).reshape(4, 3)


@pytest.fixture(scope="module")
def sharded() -> Iterator[Tensor]:
    """A real DTensor, of the only process."""
    from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield distribute_tensor(WHOLE, init_device_mesh("cpu", (1,)), [Shard(0)])
    finally:
        distributed.destroy_process_group()


def masked() -> Tensor:
    from torch.masked import masked_tensor

    return masked_tensor(WHOLE, WHOLE > 3)


KINDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested": (lambda: torch.nested.nested_tensor([WHOLE[0], WHOLE[1, :2]]), "unbind"),
    "quantized": (lambda: torch.quantize_per_tensor(WHOLE, 1.0, 0, torch.qint8), "dequantize"),
    "sparse_coo": (WHOLE.to_sparse, "to_dense"),
    "a MaskedTensor": (masked, ""),
    "without a shape": (nn.UninitializedParameter, ""),
}
"""What such a tensor is called -> what makes one, and the method that makes it dense."""


def _refused(act: Callable[[], object]) -> pl.PellucidError | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that masked tensors are young
        try:
            act()
        except pl.PellucidError as error:
            return error
    return None


def _check(tensor: Tensor, word: str, method: str) -> None:
    """Every reader of tensors takes this one, or calls it so and says what makes it dense; then it takes that."""
    readers: list[Callable[[Any], object]] = [
        lambda given: pl.load({"w": given}),
        lambda given: pl.audit_ties({"w": given}),
        lambda given: pl.compare(given, given),
        lambda given: pl.compare({"w": given}, {"w": given}),
    ]
    refusals = [_refused(lambda read=read: read(tensor)) for read in readers]
    assert [refusal is not None for refusal in refusals] == [True, *[method not in ("dequantize", "to_dense")] * 3]
    for read, refusal in zip(readers, refusals, strict=True):
        if refusal is not None:
            assert refusal.code in ("tensor-not-dense", "compare-no-values")
            assert f" {word} " in refusal.message.replace(",", " ") or "no shape yet" in refusal.message
            assert f"tensor.{method}()" in refusal.remedy if method else "tensor." not in refusal.remedy
        if refusal is not None and method:
            dense: Any = getattr(tensor, method)()
            again = _refused(lambda read=read, dense=dense: read(dense[0] if method == "unbind" else dense))
            assert again is None or again.code == "config-needed"


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that these kinds are young or old
@pytest.mark.parametrize("word", KINDS)
def test_a_tensor_that_is_not_dense_is_called_the_same_everywhere(word: str) -> None:
    make, method = KINDS[word]
    _check(make(), word, method)


@pytest.mark.remedy("tensor-not-dense", "compare-no-values")
def test_a_sharded_tensor_is_gathered_by_whoever_gives_it(sharded: Tensor) -> None:
    _check(sharded, "sharded", "full_tensor")
    with pytest.raises(pl.WeightsError) as caught:
        pl.audit_ties({"w": sharded})
    assert "full_tensor" in caught.value.remedy
    with pytest.raises(pl.InputError, match="sharded"):
        pl.compare({"w": sharded}, {"w": WHOLE})
    gathered: Any = sharded
    assert pl.compare({"w": gathered.full_tensor()}, {"w": WHOLE}).verdict == "identical"
