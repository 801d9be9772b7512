"""The small Llamas of `samples`, by themselves."""

from __future__ import annotations

from functools import partial

import samples
from samples import LLAMA3, ragged_ids, reference_values, some_ids, spread

SIZES = samples.SAMPLES["llama"].sizes
reference, pair, glass = (partial(make, "llama") for make in (samples.reference, samples.pair, samples.glass))

__all__ = ["LLAMA3", "SIZES", "glass", "pair", "ragged_ids", "reference", "reference_values", "some_ids", "spread"]
