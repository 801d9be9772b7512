"""Capturing values: against the plain run, and against TransformerLens and nnsight, in time and in peak memory.

"Everything" is what each library gives when everything is asked for: pellucid 208 checkpoints, TransformerLens its full
cache (the same values, under several names), nnsight the output of every module (queries, keys and values side by
side; no scores, no scaled values). Whatever two show is compared before any time is believed. pellucid copies what it
hands out where the model goes on with the same memory; TransformerLens and nnsight hand out that memory. Exact numerics
hold themselves to the operations of transformers, as the peers do; fast numerics are held to the same distance from a
float64 run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import harness  # before torch: it pins the threads
from harness import Spread, compete, in_fresh_process
from memory import peak_bytes
from report import Options, Report, Row, arguments

# isort: split
import torch
from torch import Tensor

import pellucid as pl
from contest import Admission, Contender, captured_bounds
from models import asked_for, bridge, eager, reference, some_ids, traced
from peers import LENS, NNSIGHT, NNSIGHT_FUSED, SHOWN_BY_NNSIGHT, lens_run, lens_values, nnsight_run, nnsight_values

RESIDUALS = "blocks.*.resid_*"
INSIDE = ("ckpt_scores", "ckpt_pattern")
ONE_LAYER = "blocks.5.attn.ckpt_pattern"
SHAPES = ("1x128", "4x512", "1x1024")
SAME_AS_NNSIGHT, FAST = "pellucid, what nnsight shows", "pellucid, fast"


def capturing(model: pl.CkptedTransformer, ids: Tensor, names: Any = None, bounds: Any = None) -> Contender:
    """Our capture as a contender."""
    return Contender(lambda: model.run_with_ckpts(ids, names=names), lambda out: {**out[1], "logits": out[0]}, bounds)


def outside(model: pl.CkptedTransformer) -> list[str]:
    """Every checkpoint but scores and patterns."""
    return [name for name in model.ckpt_names if not name.endswith(INSIDE)]


def beside_plain(report: Report, model: pl.CkptedTransformer, options: Options) -> None:
    """What looking costs us: ratios to our own plain forward, whose logits must stay the same to the bit."""
    for work, shape, names, limit in (
        ("capture all residuals", "1x128", RESIDUALS, 1.02),
        ("capture everything", "1x128", None, 1.06),
        ("capture the pattern of one layer of twelve", "1x1024", ONE_LAYER, 1.04),
    ):
        if not options.wants(f"{work}, {shape}") or (options.quick and shape != "1x128"):
            continue
        ids = some_ids(shape, device=options.device)
        plain = Contender(lambda ids=ids: model(ids), lambda out: {"logits": out})
        looks = {"plain forward": plain, "pellucid": capturing(model, ids, names)}
        calls = Admission(report, f"{work} beside a plain forward, {shape}").admit(looks)
        rounds = options.rounds(21, quick=5) if shape == "1x128" else options.rounds(9, quick=3)
        samples = compete(calls, rounds=rounds, device=options.device)
        ratio = samples.ratio("pellucid", "plain forward")
        report.add(Row(work, shape, ratio, options.target(limit), against="plain forward"), samples)
        report.profile(f"{work}, {shape}, pellucid", calls["pellucid"])


def beside_peers(report: Report, hf: Any, shape: str, options: Options, *, fused: bool) -> None:
    """Against TransformerLens and nnsight.

    Args:
        report: Gets the rows.
        hf: The model that all of them run.
        shape: Such as "1x128".
        options: Of the command line.
        fused: Leave out scores and patterns, so that pellucid runs its fused attention. TransformerLens never does;
            nnsight runs what transformers runs, so it is measured both ways.
    """
    work = "capture everything but scores and patterns" if fused else "capture everything"
    model, ids = pl.from_hf(hf), some_ids(shape, device=options.device)
    names = outside(model) if fused else None
    logits, ckpts = model.run_with_ckpts(ids, names=names)
    bounds = captured_bounds(model, ids, ckpts, names)
    del logits, ckpts
    fast = pl.from_hf(hf, numerics="fast")
    everyone = {"pellucid": capturing(model, ids, names), FAST: capturing(fast, ids, names, bounds)}
    if not fused:
        everyone[SAME_AS_NNSIGHT] = capturing(model, ids, SHOWN_BY_NNSIGHT)
    peers: dict[str, Callable[[], Contender]] = {
        LENS: lambda: Contender(lens_run(bridge(hf), ids, INSIDE if fused else ()), lens_values, bounds),
        NNSIGHT: lambda: Contender(nnsight_run(traced(eager(hf)), ids), nnsight_values, bounds),
    }
    if fused:
        peers[NNSIGHT_FUSED] = lambda: Contender(nnsight_run(traced(hf), ids), nnsight_values, bounds)
    for name, build in peers.items():
        try:
            everyone[name] = build()
        except Exception as error:
            report.fail(work, name, error)
    calls = Admission(report, f"{work}, {shape}").admit(everyone, at_least=60)
    if len(calls) < 2:
        return
    samples = compete(calls, rounds=options.rounds(9, quick=3), device=options.device, warm_up=0)
    rivals = [name for name in calls if name in (LENS, NNSIGHT)]
    if fused:
        for name in [name for name in calls if name not in ("pellucid", FAST)]:
            for ours in ("pellucid", FAST):
                target = options.target(1.25, at_least=True) if name in rivals else None
                report.add(Row(work, shape, samples.ratio(name, ours), target, ours=name, against=ours), samples)
        return
    fastest = samples.fastest(rivals) if rivals else ""
    for name in rivals:
        for ours in ("pellucid", FAST):
            limit = 0.75 if (ours, name) == (FAST, LENS) else 1.0
            target = options.target(limit) if name == fastest or limit < 1 else None
            report.add(Row(work, shape, samples.ratio(ours, name), target, ours=ours, against=name), samples)
    if NNSIGHT in rivals:
        ratio = samples.ratio(SAME_AS_NNSIGHT, NNSIGHT)
        report.add(Row("capture what nnsight shows, and no more", shape, ratio, against=NNSIGHT), samples)
    for name in ("pellucid", FAST, *rivals):
        report.profile(f"{work}, {shape}, {name}", calls[name])


def peak(contender: str, shape: str, threads: int, dtype: str) -> int:
    """By how much a fresh process grows while it captures everything; runs there."""
    torch.set_num_threads(threads)
    return growth(contender, reference().to(getattr(torch, dtype)), some_ids(shape))


def growth(contender: str, hf: Any, ids: Tensor) -> int:
    """By how much what a contender has in memory grows while it captures everything."""
    with torch.no_grad():
        if contender == LENS:
            run = partial(lens_run, bridge(hf))
        elif contender == NNSIGHT:
            run = partial(nnsight_run, traced(eager(hf)))
        else:
            model, names = pl.from_hf(hf), SHOWN_BY_NNSIGHT if contender == SAME_AS_NNSIGHT else None
            run = lambda tokens: capturing(model, tokens, names).run  # noqa: E731 (as the others are)
        run(ids[:, :2])()  # what a first call sets up is not what capturing takes
        return peak_bytes(run(ids), str(ids.device))


def memory(report: Report, shape: str, options: Options) -> None:
    """Peaks of fresh processes, or of an accelerator's own memory; the rows are ratios to each peer."""
    work, peaks, times = "capture everything", {}, options.rounds(2, quick=1)
    on_processor = options.device == "cpu"
    hf, ids = (None, None) if on_processor else (asked_for(options), some_ids(shape, device=options.device))
    for name in ("pellucid", SAME_AS_NNSIGHT, LENS, NNSIGHT):
        try:
            if on_processor:
                given = ("capture", "peak", name, shape, harness.THREADS, options.dtype)
                fresh = [in_fresh_process(*given) for _ in range(times)]
            else:
                fresh = [growth(name, hf, ids)]
            peaks[name] = sorted(fresh)
        except Exception as error:
            report.fail(f"{work}, {shape}, memory", name, error)
    report.samples[f"peak bytes, {work}, {shape}"] = peaks
    for ours, against in (("pellucid", LENS), ("pellucid", NNSIGHT), (SAME_AS_NNSIGHT, NNSIGHT)):
        if ours in peaks and against in peaks:
            ratio = Spread.of([a / b for a, b in zip(peaks[ours], peaks[against], strict=True)])
            target = options.target(1.0) if ours == "pellucid" else None
            report.add(Row(work, shape, ratio, target, ours=ours, against=against, kind="memory"))


def main() -> None:
    options = arguments(__doc__)
    report = Report("capture", options)
    hf = asked_for(options)
    with torch.no_grad():
        beside_plain(report, pl.from_hf(hf), options)
        for shape in SHAPES:
            if options.wants(shape) and not (options.quick and shape != "1x128"):
                beside_peers(report, hf, shape, options, fused=False)
        if options.wants("scores") and not options.quick:
            beside_peers(report, hf, "1x1024", options, fused=True)
    del hf
    for shape in SHAPES:
        if options.wants("memory") and not options.quick:
            memory(report, shape, options)
    if options.wants("torchlens") and not options.quick and options.device == "cpu":
        recorded(report, options)
    report.finish()


def recorded(report: Report, options: Options) -> None:
    """torchlens, which wraps torch's functions for the rest of the process, in a process of its own."""
    work, shape = "record every operation", "1x128"
    try:
        seconds = in_fresh_process(
            "peers", "torchlens_against_ours", shape, harness.THREADS, options.rounds(7, quick=3)
        )
    except RuntimeError as error:
        report.fail(work, "torchlens", error)
        return
    samples = harness.Samples(seconds)
    for against in ("pellucid", "plain forward"):
        report.add(Row(work, shape, samples.ratio("torchlens", against), ours="torchlens", against=against), samples)


if __name__ == "__main__":
    main()
