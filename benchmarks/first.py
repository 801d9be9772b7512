"""What the fresh processes of startup.py do; nothing here is imported that is not timed."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from typing import Any

from memory import reset_peak, resident

SENTENCE = "When Mary and John went to the store, John gave a drink to"
LENS = "TransformerLens"


def result(contender: str, folder: str) -> dict[str, Any]:
    """Open the folder and give the logits of what follows a sentence.

    Returns:
        "logits" [V]; "grown", the bytes by which memory exceeds, at its highest, what the imports took; "stages", the
        seconds of each.
    """
    clock = [time.perf_counter()]
    load, run = {"pellucid": _pellucid, "transformers": _transformers, LENS: _lens}[contender]()
    clock.append(time.perf_counter())
    before = resident()
    reset_peak()
    model = load(folder)
    clock.append(time.perf_counter())
    last = run(model)[0, -1]
    clock.append(time.perf_counter())
    stages = dict(zip(("imports", "open", "logits"), (b - a for a, b in pairwise(clock)), strict=True))
    return {"logits": last.tolist(), "grown": resident("VmHWM") - before, "stages": stages}


def imported(statement: str) -> None:
    """Run an import."""
    exec(statement)


def _pellucid() -> tuple[Any, Any]:
    import torch

    import pellucid as pl

    load = pl.load  # imported at its first use

    def run(model: pl.CkptedTransformer) -> Any:
        with torch.no_grad():
            return model(SENTENCE)

    return load, run


def _transformers() -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    def load(folder: str) -> Any:
        return GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def run(both: Any) -> Any:
        model, tokenizer = both
        with torch.no_grad():
            return model(**tokenizer(SENTENCE, return_tensors="pt")).logits

    return load, run


def _lens() -> tuple[Any, Any]:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    def run(bridge: Any) -> Any:
        with torch.no_grad():
            return bridge(bridge.to_tokens(SENTENCE, prepend_bos=False))

    return partial(TransformerBridge.boot_transformers, device="cpu"), run
