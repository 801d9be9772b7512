"""How measurements are made: pinned threads, alternating rounds, equality before any time is believed.

A benchmark is a script in this folder. It collects rows into a `Report` and ends with `report.finish()`:

    from harness import compete, require_equal                    # before torch: it pins the threads
    from report import Report, Row, Target, arguments

    options = arguments(__doc__)                                  # --quick, --out FOLDER, --only WORD
    report = Report("forward", options)
    run = {"pellucid": lambda: ours(ids), "transformers": lambda: theirs(ids).logits}
    require_equal({name: call() for name, call in run.items()})   # bit for bit, or within a bound with its reason
    samples = compete(run, rounds=options.rounds(7, quick=3))
    report.add(Row("plain forward", "1x128", samples.ratio("pellucid", "transformers"), Target(1.0)), samples)
    report.finish()                                               # prints a table, writes FOLDER/forward.json

`compete` runs every contender once a round, in an order that rotates, so that a disturbance hits all of them; the
ratio of two contenders is the median over rounds of the ratio within a round, its spread the quartiles. Peak memory
is that of a fresh process (`in_fresh_process`, `memory.peak_bytes`). `page.py` turns the JSON files into
`docs/benchmarks.md`.
"""

from __future__ import annotations

import contextlib
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
"""Threads of every contender: `OMP_NUM_THREADS` where it is set, else one for each processor at hand."""
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(THREADS)  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no contender may wait for a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high)


@dataclass(frozen=True)
class Samples:
    """Seconds a call, by contender and round; `repeats` calls made one sample."""

    seconds: dict[str, list[float]]
    repeats: int = 1

    def ratio(self, name: str, against: str) -> Spread:
        """Time of one contender as a share of another's, round by round."""
        return Spread.of([a / b for a, b in zip(self.seconds[name], self.seconds[against], strict=True)])

    def time(self, name: str) -> Spread:
        """Seconds a call."""
        return Spread.of(self.seconds[name])

    def fastest(self, names: Sequence[str]) -> str:
        """Of some contenders the one with the lowest median."""
        return min(names, key=lambda name: median(self.seconds[name]))


Call = Callable[[], Any]


def compete(
    calls: Mapping[str, Call], *, rounds: int, warm_up: int = 1, at_least: float = 0.05, device: str = "cpu"
) -> Samples:
    """Time several ways to do the same work, alternating.

    Args:
        calls: Contender -> what to time. What it returns lives until the clock has stopped.
        rounds: Samples of each contender.
        warm_up: Calls of each before the first sample.
        at_least: Seconds that a sample should last; shorter calls are repeated within a sample, all equally often.
        device: Where the work is done; the clock stops when an accelerator has finished.
    """
    import torch

    torch.set_num_threads(THREADS)
    wait = torch.cuda.synchronize if device.startswith("cuda") else _nothing
    slowest = 0.0
    for call in calls.values():
        for _ in range(warm_up):
            call()
        slowest = max(slowest, _seconds(call, 1, wait))
    repeats = max(1, round(at_least / slowest))
    gc.collect()
    gc.freeze()  # millions of objects of the libraries, which a collection before each sample need not look at again
    try:
        taken = alternate({name: partial(_seconds, call, repeats, wait) for name, call in calls.items()}, rounds)
    finally:
        gc.unfreeze()
    return Samples(taken, repeats)


def alternate(samplers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Contender -> its samples; every round takes one of each, in an order that rotates."""
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    names = list(samplers)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(samplers[name]())
    return taken


def _nothing() -> None:
    """What a processor has to wait for."""


def _seconds(call: Call, repeats: int, wait: Call = _nothing) -> float:
    """Seconds a call, without the collector's pauses and without freeing the last result."""
    gc.collect()
    gc.disable()
    try:
        result = None
        wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            result = call()
        wait()
        elapsed = time.perf_counter() - begin
        del result
        return elapsed / repeats
    finally:
        gc.enable()


def profile(call: Call, device: str = "cpu", most: int = 8) -> list[tuple[str, float]]:
    """Where the time of a call goes: torch's operations and their share of it, the largest first.

    On an accelerator it is the time of their kernels; what is left is that of other operations, and of waiting for
    launches.
    """
    import torch

    kind = torch.profiler.ProfilerActivity
    if device == "cpu":
        kinds, wait, field = [kind.CPU], _nothing, "self_cpu_time_total"
    else:
        kinds, wait, field = [kind.CPU, kind.CUDA], torch.cuda.synchronize, "self_device_time_total"
    call()
    wait()
    with _silence(), torch.profiler.profile(activities=kinds) as seen:
        begin = time.perf_counter()
        call()
        wait()
        whole = (time.perf_counter() - begin) * 1e6
    operations = [row for row in seen.key_averages() if row.device_type == torch.autograd.DeviceType.CPU]
    rows = sorted(operations, key=lambda row: -getattr(row, field))
    named = [(row.key.removeprefix("aten::"), getattr(row, field) / whole) for row in rows]
    return [*named[:most], ("everything else", max(0.0, 1.0 - sum(share for _, share in named[:most])))]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what the profiler's C++ writes to stderr when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class ResultsDifferError(AssertionError):
    """Contenders that should do the same work do not."""


def require_equal(results: Mapping[str, Any], *, within: float = 0.0, because: str = "") -> float:
    """Refuse to time contenders whose results differ.

    Args:
        results: Contender -> tensor; the first is what the others are held against.
        within: Largest absolute difference allowed; 0 asks for equal bits.
        because: Why a difference is to be expected; required with `within`.

    Returns:
        The largest difference found.
    """
    import torch

    assert because or not within, "a tolerance needs its reason"
    (first, expected), *others = results.items()
    worst = 0.0
    for name, value in others:
        if value.shape != expected.shape:
            raise ResultsDifferError(f"{name}: {list(value.shape)}, {first}: {list(expected.shape)}")
        if within == 0.0 and value.dtype == expected.dtype and torch.equal(value, expected):
            continue
        difference = float((value.double() - expected.double()).abs().max())
        if within == 0.0 or not difference <= within:
            raise ResultsDifferError(f"{name} and {first} differ by {difference:.3g}; allowed {within:.3g}")
        worst = max(worst, difference)
    return worst


def rounding(ours: Any, exact: Any, times: float = 8.0) -> float:
    """A bound for `require_equal`: some times the largest distance of our own result from that of a float64 run.

    Two right programs that sum in different orders are each about so far from the exact result; one with a wrong
    epsilon or the other GELU is thousands of times farther (docs/same_model.md).
    """
    return times * float((ours.double() - exact.double()).abs().max())


def in_fresh_process(module: str, function: str, *values: Any, timeout: float = 600.0) -> Any:
    """What `module.function(*values)` returns in a new interpreter; values and result go through JSON.

    Raises:
        RuntimeError: It failed; with the last line of what it wrote to stderr.
    """
    return timed_process(module, function, *values, timeout=timeout)[1]


def timed_process(module: str, function: str, *values: Any, timeout: float = 600.0) -> tuple[float, Any]:
    """As `in_fresh_process`, with the seconds from the interpreter's start to its end.

    Raises:
        RuntimeError: As there.
    """
    program = (
        f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import {module}\n"
        f"answer = {module}.{function}(*json.loads({json.dumps(values)!r}))\n"
        "print('\\n' + json.dumps(answer))"
    )
    # Installed packages come with byte code; without this, ours, which is run from its source, would be compiled anew.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", program]
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {timeout:.0f} s") from error
    taken = time.perf_counter() - begin
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    return taken, json.loads(done.stdout.strip().splitlines()[-1])


def profile_python(call: Call, calls: int = 20, most: int = 8) -> list[tuple[str, float]]:
    """Where the time of many short calls goes: functions of Python and their own share of it, the largest first."""
    call()
    seen = cProfile.Profile()
    seen.enable()
    for _ in range(calls):
        call()
    seen.disable()
    stats = pstats.Stats(seen).stats  # (file, line, name) -> calls, ..., own seconds, ...
    whole = sum(row[2] for row in stats.values())
    rows = sorted(stats.items(), key=lambda item: -item[1][2])[:most]
    named = [(f"{Path(file).stem}.{name}" if line else name, row[2] / whole) for (file, line, name), row in rows]
    return [*named, ("everything else", 1.0 - sum(share for _, share in named))]
