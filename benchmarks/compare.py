"""Comparing two models: what `pellucid.compare` takes in time and memory, and how both grow.

No peer does this work (docs/compare.md), so it is held against plain forward passes of the same model within the same
rounds, and against seconds and bytes. A comparison runs both models freely and forced, in float32 and in float64. Every
report must say what is true of the two models: identical where they hold equal weights, different where one weight of
one matrix is not.
"""

from __future__ import annotations

import copy
import math
import sys
from functools import partial
from typing import Any

import harness  # before torch: it pins the threads
from harness import ResultsDifferError, Samples, Spread, compete, in_fresh_process
from memory import available_bytes, peak_bytes
from report import FLOAT32, PROCESSOR, Options, Report, Row, arguments

# isort: split
import torch
from torch import nn

import pellucid as pl
from models import reference, some_ids

sys.path.append(str(harness.HERE.parent / "tests" / "prove"))
from course import course

GB = 10**9
XL_LIMIT = 24 * 2**30


def verdicts(hf: Any, model: pl.CkptedTransformer) -> None:
    """Refuse to time a comparison that does not see one wrong weight."""
    ids = some_ids("1x8")
    wrong = copy.deepcopy(hf)
    with torch.no_grad():
        wrong.transformer.h[1].mlp.c_fc.weight[3, 3] += 0.01
    found = {name: pl.compare(model, other, inputs=ids).verdict for name, other in (("same", hf), ("wrong", wrong))}
    if found != {"same": "identical", "wrong": "different"}:
        raise ResultsDifferError(f"the verdicts are {found}")


def identical(a: Any, b: Any, ids: Any) -> Any:
    """A comparison that must find two models the same."""
    report = pl.compare(a, b, inputs=ids)
    if report.verdict != "identical":
        raise ResultsDifferError(f"two copies of one model: {report!r}")
    return report


def two_models(report: Report, options: Options) -> None:
    """gpt2-small against transformers' with the same weights, 32 tokens."""
    work, shape = "compare two models", f"{options.size}, 1x32"
    hf, ids = reference(options.size), some_ids("1x32")
    model = pl.from_hf(hf)
    if not options.quick:
        verdicts(hf, model)
    calls = {"compare": lambda: identical(model, hf, ids), "plain forward": lambda: model(ids)}
    samples = compete(calls, rounds=options.rounds(5, quick=1), warm_up=0)
    report.add(
        Row(work, shape, samples.time("compare"), options.target(15.0), against="", kind="seconds"), samples
    )  # fmt: skip
    report.add(Row(work, shape, samples.ratio("compare", "plain forward"), against="plain forward"), samples)
    if not options.quick:
        report.profile(f"{work}, {shape}", calls["compare"])
        taken = [in_fresh_process("compare", "peak", "gpt2-small", 32, harness.THREADS) for _ in range(3)]
        note = "beyond the two models"
        row = Row(
            work, shape, Spread.of([n / GB for n in taken]), options.target(2.5), against="", kind="GB", note=note
        )
        report.add(row)


def peak(size: str, columns: int, threads: int) -> int:
    """Bytes at the highest beyond two models of this size; runs in a fresh process."""
    torch.set_num_threads(threads)
    hf, ids = reference(size), some_ids(f"1x{columns}")
    model = pl.from_hf(hf)
    return peak_bytes(lambda: identical(model, hf, ids))


def whole(size: str, columns: int, threads: int) -> dict[str, float]:
    """Seconds of a comparison of two random models, and bytes of the whole process at its highest, models included."""
    import time

    from memory import reset_peak, resident

    torch.set_num_threads(threads)
    hf, ids = reference(size), some_ids(f"1x{columns}")
    model = pl.from_hf(hf)
    reset_peak()
    begin = time.perf_counter()
    identical(model, hf, ids)
    return {"seconds": time.perf_counter() - begin, "bytes": resident("VmHWM")}


class Odd(nn.Module):
    """A layer whose results are off in a way that no list of mistakes holds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.layer(x)
        return made + 0.01 * made.sin()


FOREIGN = {"right": ("identical", "equivalent"), "wrong": ("different",)}
"""What is found of a module that others wrote, and of one whose mistake is not among the known ones."""


def foreign(kind: str, size: str) -> tuple[Any, nn.Module]:
    """A model of ours, and a learner's module with its weights."""
    model = pl.from_hf(reference(size))
    module = course(model)
    if kind == "wrong":
        module.blocks[len(module.blocks) // 2].linear2 = Odd(module.blocks[len(module.blocks) // 2].linear2)
    return model, module


def judged(kind: str, model: Any, module: nn.Module, ids: Any) -> Any:
    """A comparison that must find what is so, and no cause where none is known."""
    report = pl.compare(model, module, inputs=ids)
    if report.verdict not in FOREIGN[kind] or (report.first_divergence and report.first_divergence.cause):
        raise ResultsDifferError(f"the module that is {kind}: {report!r}")
    return report


def modules_of_others(report: Report, options: Options) -> None:
    """gpt2-small against a module that a learner wrote, 16 tokens."""
    ids = some_ids("1x16")
    for kind, limit in (("right", 5.0), ("wrong", 10.0)):
        work = f"compare with a learner's module that is {kind}" + ", nobody knows why" * (kind == "wrong")
        shape = f"{options.size}, 1x16"
        model, module = foreign(kind, options.size)
        call = partial(judged, kind, model, module, ids)
        samples = compete({"compare": call}, rounds=options.rounds(3, quick=1), warm_up=0)
        row = Row(work, shape, samples.time("compare"), options.target(limit), against="", kind="seconds")
        report.add(row, samples)
        if not options.quick:
            report.profile(f"{work}, {shape}", call)
            taken = in_fresh_process("compare", "grown_by", kind, options.size, harness.THREADS)
            note = "beyond the two models"
            report.add(Row(work, shape, Spread.of([taken / GB]), against="", kind="GB", note=note))


def grown_by(kind: str, size: str, threads: int) -> int:
    """Bytes at the highest beyond the two; runs in a fresh process."""
    torch.set_num_threads(threads)
    model, module = foreign(kind, size)
    return peak_bytes(partial(judged, kind, model, module, some_ids("1x16")))


def growth(sizes: list[float], seconds: list[float]) -> float:
    """The exponent of a power law through the points: the slope of a line through their logarithms."""
    x, y = [math.log(value) for value in sizes], [math.log(value) for value in seconds]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def exponents(samples: Samples, sizes: dict[str, float]) -> Spread:
    """Of each round."""
    rounds = zip(*(samples.seconds[name] for name in sizes), strict=True)
    return Spread.of([growth(list(sizes.values()), list(seconds)) for seconds in rounds])


def growing(report: Report, options: Options) -> None:
    """Time against parameters and against tokens; 1 is proportional."""
    sizes = ["distilgpt2", "gpt2-small", "gpt2-medium"]
    if available_bytes() > 16 * GB:  # all of them are there at once, so that they can take turns
        sizes.append("gpt2-large")
    ids = some_ids("1x32")
    models = {size: reference(size) for size in sizes}
    calls = {size: partial(identical, pl.from_hf(hf), hf, ids) for size, hf in models.items()}
    samples = compete(calls, rounds=3, warm_up=0)
    parameters = {size: float(pl.count_parameters(hf).unique) for size, hf in models.items()}
    work = "compare, growth with parameters"
    row = Row(work, f"{len(sizes)} sizes, 1x32", exponents(samples, parameters), against="", kind="exponent")
    report.add(row, samples)
    hf = models["distilgpt2"]
    model = pl.from_hf(hf)
    tokens = {f"1x{n}": float(n) for n in (32, 128, 512)}
    calls = {shape: partial(identical, model, hf, some_ids(shape)) for shape in tokens}
    samples = compete(calls, rounds=3, warm_up=0)
    work = "compare, growth with tokens"
    report.add(Row(work, "distilgpt2", exponents(samples, tokens), against="", kind="exponent"), samples)


def largest(report: Report, options: Options) -> None:
    """Two gpt2-xl in float32, once, in a process of its own."""
    work, shape = "compare two gpt2-xl", "1x8"
    needed = 17 * GB
    if available_bytes() < needed:
        report.fail(work, "pellucid", f"{available_bytes() / GB:.1f} GB are free, about {needed / GB:.0f} are needed")
        return
    try:
        found = in_fresh_process("compare", "whole", "gpt2-xl", 8, harness.THREADS, timeout=1200.0)
    except RuntimeError as error:
        report.fail(work, "pellucid", error)
        return
    peak_of, seconds = Spread.of([found["bytes"] / 2**30]), Spread.of([found["seconds"]])
    note = "the whole process at its highest, both models included"
    report.add(Row(work, shape, peak_of, options.target(XL_LIMIT / 2**30), against="", kind="GiB", note=note))
    report.add(Row(work, shape, seconds, against="", kind="seconds"))


def main() -> None:
    options = arguments(__doc__, PROCESSOR, FLOAT32)
    report = Report("compare", options)
    if options.wants("two"):
        two_models(report, options)
    if options.wants("others"):
        modules_of_others(report, options)
    if options.wants("growth") and not options.quick:
        growing(report, options)
    if options.wants("xl") and not options.quick:
        largest(report, options)
    report.finish()


if __name__ == "__main__":
    main()
