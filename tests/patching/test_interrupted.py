"""Control-C at any moment of a sweep, an ablation or a path: what was measured is returned, or nothing was."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from loops import METRIC, exact, two

import pellucid as pl
from pellucid.patching import reruns

Z = "attn.ckpt_z"
CLEAN, CORRUPTED = two()
PATH: dict[str, Any] = {"senders": (Z, {}), "over": ("layer", "head"), "metric": METRIC}

VERBS: dict[str, Callable[[pl.CkptedTransformer], Any]] = {
    "sweep": lambda model: pl.patching.sweep(
        model, CLEAN, CORRUPTED, "resid_pre", over=("layer", "pos"), metric=METRIC
    ),
    "ablate": lambda model: pl.patching.ablate(model, CLEAN, Z, over=("layer", "head"), how="zero", metric=METRIC),
    "path": lambda model: pl.patching.path(
        model, CLEAN, CORRUPTED, receivers=("attn.ckpt_k", {"layer": 2, "head": 1}), **PATH
    ),
    "direct": lambda model: pl.patching.path(model, CLEAN, CORRUPTED, receivers="logits", **PATH),
}


@pytest.mark.parametrize("verb", VERBS)
def test_at_any_moment(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at the first run of the last block, then at the second, until there is none."""
    monkeypatch.setattr(reruns, "TOKENS", 24)
    model, left = exact(), 10**9

    def interrupts(*given: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    model.blocks[2].ln1.register_forward_pre_hook(interrupts)
    whole, counts, told = VERBS[verb](model), [], set[str]()
    for moment in range(1, 60):
        left = moment
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                found = VERBS[verb](model)
            except KeyboardInterrupt as interrupt:
                counts.append(-1)
                told.add(str(interrupt))
                continue
        if left > 0:  # it came to its end before
            break
        words = re.search(r"interrupted: (\d+) of (\d+) runs", str(said[0].message))
        assert words
        done = ~np.isnan(found.values)
        assert done.sum() == int(words[1]) < int(words[2]) == (~np.isnan(whole.values)).sum()
        np.testing.assert_allclose(found.values[done], whole.values[done], rtol=0, atol=1e-10)
        counts.append(int(words[1]))
    assert counts == sorted(counts), "later is more"
    assert len(set(counts)) >= 4, "nothing, and then more and more"
    assert told == {"interrupted during the plain runs: nothing was measured"}
    assert 0 in counts
