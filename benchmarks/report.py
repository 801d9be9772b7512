"""What a benchmark found: rows with their targets, raw samples, failures, and where they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import THREADS, Call, Samples, Spread, profile, profile_python


@dataclass(frozen=True)
class Options:
    """What the command line asked for.

    Attributes:
        quick: Fewer rounds, smaller shapes and distilgpt2's size, for a look.
        out: Where the JSON goes; None prints only.
        only: Parts to run, by words that their names contain; empty runs all.
        device: Where the models are; targets are set for a processor.
        dtype: Of the models' weights.
    """

    quick: bool = False
    out: Path | None = None
    only: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def size(self) -> str:
        """Of the models that are measured."""
        return "distilgpt2" if self.quick else "gpt2-small"

    def rounds(self, full: int, *, quick: int) -> int:
        """How many rounds to run; an accelerator, which nobody disturbs, needs no more than nine."""
        return quick if self.quick else full if self.device == "cpu" else min(full, 9)

    def stem(self, name: str) -> str:
        """Of the file that a script of this name writes, with a device and a dtype that are not the usual ones."""
        return "-".join([name, *(word for word in (self.device, self.dtype) if word not in ("cpu", "float32"))])

    def wants(self, part: str) -> bool:
        """Whether the part of this name was asked for."""
        return not self.only or any(word in part for word in self.only)

    def target(self, value: float, *, at_least: bool = False) -> Target | None:
        """A target, where one is set for this device and dtype."""
        return Target(value, at_least) if (self.device, self.dtype) == ("cpu", "float32") else None


PROCESSOR, FLOAT32 = ("cpu",), ("float32",)
"""Devices and dtypes of a script that has no choice."""


def arguments(
    doc: str | None,
    devices: Sequence[str] = ("cpu", "cuda"),
    dtypes: Sequence[str] = ("float32", "bfloat16", "float16"),
) -> Options:
    """Read the command line that every benchmark shares.

    Args:
        doc: Of the script.
        devices: Where it can measure.
        dtypes: What it can measure.
    """
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller shapes and models")
    parser.add_argument("--out", type=Path, help="folder for the JSON; without it the table is printed only")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="parts whose names contain a word")
    parser.add_argument("--device", default="cpu", choices=devices, help="where to measure")
    parser.add_argument("--dtype", default="float32", choices=dtypes, help="of the weights")
    given = parser.parse_args()
    return Options(given.quick, given.out, tuple(given.only), given.device, given.dtype)


@dataclass(frozen=True)
class Target:
    """What a ratio should reach: at most `value`, or at least."""

    value: float
    at_least: bool = False

    def met(self, ratio: Spread) -> bool:
        """Whether the median reaches it."""
        return ratio.median >= self.value if self.at_least else ratio.median <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: What was done.
        shape: On what, such as "1x128".
        ratio: Ours as a share of what it is held against.
        target: What it should reach; None where the row is for information.
        ours: What was measured.
        against: What it was held against.
        kind: What the number is: a ratio of "time", "memory" or "size", a "share" of a limit, or "seconds", "bytes" and
            "exponent", which are held against no contender.
        note: How the measurement was made, where that does not go without saying.
    """

    work: str
    shape: str
    ratio: Spread
    target: Target | None = None
    ours: str = "pellucid"
    against: str = "transformers"
    kind: str = "time"
    note: str = ""


@dataclass
class Report:
    """The rows of one script, with raw samples, failures and where they were measured."""

    name: str
    options: Options
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._load = OtherLoad()
        self._begin = time.perf_counter()

    def add(self, row: Row, samples: Samples | None = None) -> None:
        """Show and keep a row, and the samples that it came from."""
        self.rows.append(row)
        if samples is not None:
            self.samples[f"{row.work}, {row.shape}"] = asdict(samples)
        print(line(row), flush=True)
        self._write(finished=False)

    def profile(self, name: str, call: Call, *, python: bool = False) -> None:
        """Keep where the time of a call goes, for the page to show beside a target that is missed; not in a look."""
        if self.options.quick:
            return
        found = profile_python(call) if python else profile(call, self.options.device)
        self.facts.setdefault("profiles", {})[name] = found

    def fail(self, work: str, contender: str, error: BaseException | str) -> None:
        """Keep how a contender failed; the benchmark goes on without it."""
        words = " ".join(str(error).split())
        kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
        self.failures.append({"work": work, "contender": contender, "how": f"{kind}{words}"[:300]})
        print(f"{work}: {contender} failed: {kind}{words}", file=sys.stderr)

    def finish(self) -> None:
        """Write the JSON for the last time; until then it holds what there was when it was interrupted."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        if self.options.out is None:
            return
        self.options.out.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "finished": finished,
            "quick": self.options.quick,
            "device": self.options.device,
            "dtype": self.options.dtype,
            "seconds": round(time.perf_counter() - self._begin, 1),
            "environment": {**environment(), "cores_used_by_others": self._load.cores()},
            "rows": [
                {**asdict(row), "met": None if row.target is None else row.target.met(row.ratio)} for row in self.rows
            ],
            "failures": self.failures,
            "facts": self.facts,
            "samples": self.samples,
        }
        text = json.dumps(_rounded(content), indent=1) + "\n"
        (self.options.out / f"{self.options.stem(self.name)}.json").write_text(text, encoding="utf-8")


def line(row: Row) -> str:
    """A row as one line of text."""
    met = "" if row.target is None else ("  reached" if row.target.met(row.ratio) else "  MISSED")
    aim = "" if row.target is None else f"  target {'>=' if row.target.at_least else '<='} {row.target.value:g}"
    spread = f"{row.ratio.median:.3f} ({row.ratio.low:.3f} to {row.ratio.high:.3f})"
    pair = f"{row.ours} / {row.against}" if row.against else row.ours
    return f"{row.work:48s} {row.shape:10s} {row.kind:8s} {pair}: {spread}{aim}{met}"


class OtherLoad:
    """Processor time that other processes use while something is measured here."""

    def __init__(self) -> None:
        self._begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ticks = [int(word) for word in words[:8]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting
        own = os.times()
        return time.perf_counter(), busy, own.user + own.system + own.children_user + own.children_system

    def cores(self) -> float:
        """On average since this was made."""
        (begin, busy, own), (end, busy_now, own_now) = self._begin, self._now()
        return max(0.0, (busy_now - busy - (own_now - own)) / max(end - begin, 1e-9))


def environment() -> dict[str, Any]:
    """Where the numbers hold: versions, processor and its features, threads."""
    import torch

    wanted = ("pellucid", "torch", "transformers", "transformer_lens", "nnsight", "torchlens", "statsmodels", "numpy")
    versions = {name: metadata.version(name) for name in wanted if _installed(name)}
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    facts = {key.strip(): value.strip() for key, _, value in (part.partition(":") for part in cpu.splitlines())}
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name", platform.processor()),
        "features": sorted(flag for flag in flags if flag.startswith(("avx", "amx", "fma", "bf16", "vnni"))),
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": THREADS,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "accelerator": accelerator(),
        "numpy_uses": numpy_kernels(),
    }


def accelerator() -> str | None:
    """What torch sees, and how it multiplies float32 there."""
    import torch

    if not torch.cuda.is_available():
        return None
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    precision = torch.get_float32_matmul_precision()
    return f"{torch.cuda.get_device_name()}, {gib:.0f} GiB, CUDA {torch.version.cuda}, float32 products: {precision}"


def numpy_kernels() -> str:
    """What numpy's matrix products are, and a variable that holds them back, if one is set."""
    import numpy as np

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    forced = os.environ.get("OPENBLAS_CORETYPE")
    return f"{blas['name']} {blas['version']}" + (f", OPENBLAS_CORETYPE={forced}" if forced else "")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _rounded(value: Any) -> Any:
    """Floats with five significant digits, which is more than a clock gives."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return str(value) if isinstance(value, Path) else value
