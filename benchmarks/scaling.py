"""From distilgpt2 to gpt2-xl: forward and capture at every size that memory allows, and how their times grow.

Each size runs in a process of its own, so that the memory of one is not missing for the next. The exponent is that of
a power law through the sizes, against the operations of the matrix products: 1 is proportional.
"""

from __future__ import annotations

from typing import Any

import harness  # before torch: it pins the threads
from harness import Samples, compete, in_fresh_process
from memory import available_bytes
from report import FLOAT32, Options, Report, Row, arguments

# isort: split
import torch

import pellucid as pl
from compare import exponents
from limits import best_product, share
from models import SIZES, products, reference, some_ids

SHAPE = "1x128"
GB = 10**9


def at(size: str, rounds: int, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Samples of every contender at one size, and what the work is; runs in a fresh process."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        hf, ids = reference(size, device=device), some_ids(SHAPE, device=device)
        model = pl.from_hf(hf)
        logits = {"transformers": hf(ids).logits, "pellucid": model(ids)}
        harness.require_equal({**logits, "pellucid, looking": model.run_with_ckpts(ids)[0]})
        limit, possible = best_product(device=device)
        calls = {
            "transformers": lambda: hf(ids),
            "pellucid": lambda: model(ids),
            "capture residuals": lambda: model.run_with_ckpts(ids, names="blocks.*.resid_*"),
            "capture everything": lambda: model.run_with_ckpts(ids),
            "matrix product": limit,
        }
        seconds = compete(calls, rounds=rounds, warm_up=0, device=device).seconds
    done = products(model.config, *ids.shape)
    return {"seconds": seconds, "operations": done, "possible": possible}


def bytes_needed(size: str) -> int:
    """Memory that two models of a size and a capture take, about."""
    shape = SIZES[size]
    parameters = 12 * shape["n_layer"] * shape["n_embd"] ** 2 + 51281 * shape["n_embd"]
    return 2 * 4 * parameters + 3 * GB


def measured(report: Report, options: Options) -> dict[str, Any]:
    """Size -> what `at` gave, for the sizes that there was memory for."""
    found: dict[str, Any] = {}
    for size in list(SIZES)[: 1 if options.quick else None]:
        if not options.wants(size):
            continue
        if available_bytes() < bytes_needed(size):
            free, needed = available_bytes() / GB, bytes_needed(size) / GB
            report.fail("scaling", size, f"{free:.1f} GB are free, about {needed:.1f} are needed")
            continue
        try:
            rounds = options.rounds(7, quick=2)
            found[size] = in_fresh_process("scaling", "at", size, rounds, harness.THREADS, options.device)
        except RuntimeError as error:
            report.fail("scaling", size, error)
    return found


def main() -> None:
    options = arguments(__doc__, dtypes=FLOAT32)
    report = Report("scaling", options)
    found = measured(report, options)
    for size, one in found.items():
        samples = Samples(one["seconds"])
        report.add(Row(f"plain forward, {SHAPE}", size, samples.ratio("pellucid", "transformers")), samples)
        reached = share(samples, "pellucid", one["operations"], "matrix product", one["possible"])
        row = Row(f"plain forward, {SHAPE}", size, reached, against="float32 matrix products", kind="share")
        report.add(row, samples)
        for work in ("capture residuals", "capture everything"):
            report.add(Row(f"{work}, {SHAPE}", size, samples.ratio(work, "pellucid"), against="plain forward"), samples)
    if len(found) > 1:
        operations = {size: float(one["operations"]) for size, one in found.items()}
        for work in ("pellucid", "capture residuals", "capture everything", "transformers"):
            curve = Samples({size: one["seconds"][work] for size, one in found.items()})
            name = {"pellucid": "plain forward", "transformers": "plain forward"}.get(work, work)
            who = "transformers" if work == "transformers" else "pellucid"
            row = Row(f"{name}, growth", f"{len(found)} sizes", exponents(curve, operations), ours=who, against="",
                      kind="exponent")  # fmt: skip
            report.add(row)
    report.finish()


if __name__ == "__main__":
    main()
