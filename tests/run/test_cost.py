"""Estimates of memory, held against what a run takes."""

from __future__ import annotations

import torch

import pellucid as pl
import support


def test_estimates_know_how_many_rows_the_kernels_take():
    model = support.glass(numerics="fast", dtype=torch.bfloat16)
    few, many = (pl.estimate_generation(model, [[1, 2]] * rows, max_new_tokens=4) for rows in (32, 33))
    assert few.prepared
    assert not many.prepared
    assert few.cache > many.cache
    wide = support.glass(attention="eager", reorder_and_upcast_attn=True, dtype=torch.float64)
    captured = wide.run_with_ckpts([[1, 2, 3]])[1]
    assert pl.estimate(wide, [[1, 2, 3]]).nbytes == sum(value.nbytes for value in captured.values())
