"""What is judged is what the caller runs, in the dtypes that it has: nothing that would not run as it is passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
import support

SMALL = {"vocab_size": 53, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 3}
IDS = support.some_ids(2, 7, 53)


@pytest.fixture(scope="module")
def small() -> pl.CkptedTransformer:
    return support.glass(**SMALL)


def one_part(path: str, dtype: torch.dtype) -> Any:
    def change(hf: Any) -> None:
        hf.get_submodule(path).to(dtype)

    return change


def head_of_its_own(hf: Any) -> None:
    hf.lm_head.weight = nn.Parameter(hf.lm_head.weight.detach().double())


UNRUNNABLE: dict[str, tuple[Any, str]] = {
    "a block in half": (one_part("transformer.h.0", torch.float16), "at transformer.h.0.ln_1: RuntimeError"),
    "a matrix in bfloat16": (one_part("transformer.h.0.mlp.c_fc", torch.bfloat16), "at transformer.h.0.mlp.c_fc: Runt"),
    "the last norm in float64": (one_part("transformer.ln_f", torch.float64), "at transformer.ln_f: RuntimeError"),
    "the head in float64": (head_of_its_own, "at lm_head: RuntimeError"),
}


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_what_does_not_run_as_it_is_is_no_pass(name: str, small: pl.CkptedTransformer) -> None:
    change, where = UNRUNNABLE[name]
    hf: Any = pl.to_hf(small)
    change(hf)
    with pytest.raises(RuntimeError):
        hf(IDS)
    report = pl.compare(small, hf, IDS)
    assert report.verdict == "inconclusive", report
    assert where in report.notes[-1]
    assert "the other model does not run as it is, in float" in report.notes[-1] or "bfloat16" in report.notes[-1]
    report = pl.compare(hf, small, IDS)
    assert report.verdict == "inconclusive", report
    assert "does not run as it is" in report.notes[-1]


def test_a_reference_that_does_not_run_as_it_is(small: pl.CkptedTransformer) -> None:
    partly = support.glass(**SMALL)
    partly.blocks[0].half()
    report = pl.compare(partly, pl.to_hf(small), IDS)
    assert report.verdict == "inconclusive"
    assert "the reference does not run as it is, in float16 and float32: at blocks.0" in report.notes[-1]


class Upcasting(nn.LayerNorm):
    """A norm that computes in float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        wide = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return wide.to(x.dtype)


def halved(model: pl.CkptedTransformer, eps: float = 1e-5) -> Any:
    """Matrices in half, and norms in float32 that upcast; the second block's first norm with this epsilon."""
    hf: Any = pl.to_hf(model)
    norms = {path: child for path, child in hf.named_modules() if isinstance(child, nn.LayerNorm)}
    hf.half()
    for path, norm in norms.items():
        made = Upcasting(24, eps if path == "transformer.h.0.ln_1" else 1e-5)
        source = model.ln_final if path.endswith("ln_f") else model.blocks[int(path.split(".")[2])]
        source = source if path.endswith("ln_f") else getattr(source, path[-4:].replace("_", ""))
        made.weight, made.bias = nn.Parameter(source.w.detach().clone()), nn.Parameter(source.b.detach().clone())
        hf.get_submodule(path.rpartition(".")[0]).register_module(path.rpartition(".")[2], made)
        assert norm.weight.dtype == torch.float16
    return hf


def test_several_dtypes_that_run_together(small: pl.CkptedTransformer) -> None:
    report = pl.compare(small, halved(small), IDS)
    assert report.verdict == "equivalent", report
    assert "each two" in " ".join(report.notes)
    found = pl.compare(small, halved(small, eps=1e-3), IDS).first_divergence
    assert found is not None
    assert found.where == "blocks.0.ln1.ckpt_normalized"
    assert "LayerNorm epsilon 0.001" in (found.cause or "")


class After(nn.Module):
    """A model whose logits are changed in one dtype alone."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype, change: Any) -> None:
        super().__init__()
        self.inner, self.dtype, self.change = inner, dtype, change

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.inner(ids).logits
        return self.change(logits) if logits.dtype == self.dtype else logits


ONLY_THERE = {torch.float16: 1.2, torch.float32: 1.001}
"""Factors that are no rounding in these dtypes."""


@pytest.mark.parametrize("dtype", ONLY_THERE)
def test_what_is_wrong_in_its_own_dtype_alone_is_no_pass(dtype: torch.dtype, small: pl.CkptedTransformer) -> None:
    right = After(pl.to_hf(small).to(dtype), dtype, lambda logits: logits)
    assert pl.compare(small, right, IDS)
    wrong = After(pl.to_hf(small).to(dtype), dtype, lambda logits: logits * ONLY_THERE[dtype])
    report = pl.compare(small, wrong, IDS)
    assert report.verdict == "inconclusive", report
    assert sum("its arithmetic depends on the dtype" in note for note in report.notes) == 1


def test_what_is_wrong_in_the_caller_s_float64(small: pl.CkptedTransformer) -> None:
    wrong = After(pl.to_hf(small).double(), torch.float64, lambda logits: logits * 1.001)
    assert pl.compare(small, wrong, IDS).verdict == "different"


def test_numbers_that_leave_the_range_of_the_program_s_own_dtype(small: pl.CkptedTransformer) -> None:
    """Converted to the common dtype both overflow or neither does; what the caller sees is infinite on one side."""
    far = After(pl.to_hf(small).half(), torch.float16, lambda logits: logits * 1e30 / 1e30)
    found = pl.compare(small, far, IDS).first_divergence
    assert found is not None
    assert found.where == "logits"
    assert "in float16" in found.detail
    assert pl.compare(small, pl.to_hf(small).half(), IDS)


class Autocast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(ids).logits.float()


def test_rounding_of_autocast_is_rounding(small: pl.CkptedTransformer) -> None:
    assert pl.compare(small, Autocast(pl.to_hf(small)), IDS).verdict == "equivalent"


def test_the_distance_is_between_what_the_callers_see(small: pl.CkptedTransformer) -> None:
    """Not between two models that were both rounded to the coarser dtype, which are equal."""
    report = pl.compare(small, pl.to_hf(small).half(), IDS)
    with torch.no_grad():
        a, b = small(IDS).double().log_softmax(-1), pl.to_hf(small).half()(IDS).logits.double().log_softmax(-1)
    assert report.distance.kl == pytest.approx(float((a.exp() * (a - b)).sum(-1).mean()), rel=1e-6)
