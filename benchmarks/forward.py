"""The plain forward pass, gpt2-small's shape, float32, against transformers and as a share of the matrix-product limit.

Exact numerics must equal transformers' logits to the bit. Fast numerics must be as near to a float64 run as our own
rounding allows; with bfloat16 products, as near as transformers is when it runs in bfloat16. Where the processor has no
such products, neither is timed.
"""

from __future__ import annotations

import copy
from typing import Any

from harness import compete, rounding  # before torch: it pins the threads
from report import Options, Report, Row, arguments

# isort: split
import torch
from torch import Tensor

import pellucid as pl
from contest import Admission, Contender, Values
from limits import best_product, multiplies_bfloat16, share
from models import asked_for, exact_logits, products, some_ids

SHORT = "1x128"
SHAPES = (SHORT, "4x512", "1x1024")
HALVES = "pellucid, fast, bfloat16 products"
PACKED = "pellucid, packed"
TARGETS = {"pellucid": 1.00, "pellucid, fast": 0.72, PACKED: 0.68, HALVES: 0.65}
THEIRS, CACHELESS = "transformers", "transformers, use_cache=False"


def logits_of(out: Any) -> Values:
    """What is compared."""
    return {"logits": out if isinstance(out, Tensor) else out.logits}


def contenders(hf: Any, shape: str, device: str) -> dict[str, Contender]:
    """Everyone who runs a forward of this shape, transformers first."""
    ids = some_ids(shape, device=device)
    exact, fast, packed = (pl.from_hf(hf, numerics=numerics) for numerics in ("exact", "fast", "packed"))
    true = exact_logits(exact, ids)
    near = {"logits": rounding(exact(ids), true)}
    found = {
        THEIRS: Contender(lambda: hf(ids), logits_of),
        CACHELESS: Contender(lambda: hf(ids, use_cache=False), logits_of, near),
        "pellucid": Contender(lambda: exact(ids), logits_of),
        "pellucid, fast": Contender(lambda: fast(ids), logits_of, near),
        PACKED: Contender(lambda: packed(ids), logits_of, near),
    }
    if not multiplies_bfloat16(device) or exact.dtype == torch.bfloat16:
        return found
    halves, theirs = pl.from_hf(hf, numerics="bfloat16"), copy.deepcopy(hf).bfloat16()(ids).logits
    found[HALVES] = Contender(
        lambda: halves(ids), logits_of, {"logits": rounding(theirs, true, times=1.0)},
        "no farther from a float64 run than transformers' own bfloat16 run is",
    )  # fmt: skip
    return found


def plain(report: Report, hf: Any, shape: str, options: Options) -> None:
    """One shape: ratios to transformers, and shares of the limit."""
    work = "plain forward"
    calls = Admission(report, f"{work}, {shape}").admit(contenders(hf, shape, options.device))
    calls["matrix product"], possible = best_product(getattr(torch, options.dtype), options.device)
    rounds = options.rounds(31 if shape == SHORT else 9, quick=3)
    samples = compete(calls, rounds=rounds, device=options.device)
    against = {THEIRS: TARGETS, CACHELESS: dict.fromkeys(["pellucid"])}
    for name in [name for name in calls if name.startswith("pellucid")]:
        for theirs, targets in against.items():
            if theirs in calls and name in targets:
                target = options.target(targets[name]) if targets[name] else None
                ratio = samples.ratio(name, theirs)
                report.add(Row(work, shape, ratio, target, ours=name, against=theirs), samples)
    done = products(pl.from_hf(hf).config, *map(int, shape.split("x")))
    for name in [name for name in calls if name.startswith(("pellucid", THEIRS)) and name != HALVES]:
        reached = share(samples, name, done, "matrix product", possible)
        report.add(Row(work, shape, reached, ours=name, against=f"{options.dtype} matrix products", kind="share"))
    for name in ("pellucid", "pellucid, fast", HALVES, THEIRS):
        if name in calls:
            report.profile(f"{work}, {shape}, {name}", calls[name])


def last_only(report: Report, hf: Any, shape: str, options: Options) -> None:
    """The logits of the last position alone, against all of them."""
    model, ids = pl.from_hf(hf), some_ids(shape, device=options.device)
    near = {"last": rounding(model(ids)[:, -1], exact_logits(model, ids)[:, -1])}
    everyone = {
        "pellucid": Contender(lambda: model(ids), lambda out: {"last": out[:, -1]}),
        "pellucid, last position": Contender(lambda: model.next_token_logits(ids), lambda out: {"last": out}, near),
        "transformers, last position": Contender(
            lambda: hf(ids, logits_to_keep=1), lambda out: {"last": out.logits[:, -1]}, near
        ),
    }
    work = "logits of the last position only"
    calls = Admission(report, f"{work}, {shape}").admit(everyone)
    samples = compete(calls, rounds=options.rounds(31, quick=3), device=options.device)
    for against, target in (("pellucid", options.target(0.68)), ("transformers, last position", None)):
        ratio = samples.ratio("pellucid, last position", against)
        report.add(Row(work, shape, ratio, target, ours="pellucid, last position", against=against), samples)
    config = model.config
    least = products(config, *map(int, shape.split("x")), logits=1) / products(config, *map(int, shape.split("x")))
    report.facts["operations that remain with the last position's logits only"] = least
    report.profile(f"{work}, {shape}, pellucid", calls["pellucid, last position"])


def main() -> None:
    options = arguments(__doc__)
    report = Report("forward", options)
    hf = asked_for(options)
    with torch.no_grad():
        for shape in SHAPES:
            if options.wants(shape) and not (options.quick and shape != SHORT):
                plain(report, hf, shape, options)
        if options.wants("last"):
            last_only(report, hf, SHORT, options)
    report.finish()


if __name__ == "__main__":
    main()
