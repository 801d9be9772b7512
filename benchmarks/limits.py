"""What this machine can do: matrix products a second, and bytes read a second from as much memory as the weights take.

Other benchmarks run these beside their contenders, within the same rounds, and state the share that is reached. Alone,
this script says which way of multiplying and of reading is the best here, and how far the others stay behind.
"""

from __future__ import annotations

import mmap
from statistics import median

from harness import Call, Samples, Spread, compete  # before torch: it pins the threads
from report import Report, Row, arguments

# isort: split
import torch
from torch import Tensor

from pellucid.numerics.products import cpu_multiplies_bfloat16

PRODUCT_SIZES = (1024, 2048, 3072)
ON_ACCELERATORS = (4096, 8192)
"""Sides of square matrices; the best of them is the limit."""


def product(size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Call, int]:
    """A product of square matrices into memory that is there, and how many operations it takes."""
    drawn = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=drawn).to(device, dtype) for _ in range(2))
    into = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=into), 2 * size**3


def best_product(dtype: torch.dtype = torch.float32, device: str = "cpu", *, rounds: int = 2) -> tuple[Call, int]:
    """The size with most operations a second, and how many operations it takes."""
    sizes = PRODUCT_SIZES if device == "cpu" else ON_ACCELERATORS
    tried = {size: product(size, dtype, device) for size in sizes}
    samples = compete({str(size): call for size, (call, _) in tried.items()}, rounds=rounds, device=device)
    return tried[max(sizes, key=lambda size: tried[size][1] / median(samples.seconds[str(size)]))]


def multiplies_bfloat16(device: str = "cpu") -> bool:
    """Whether products in bfloat16 are worth a measurement: without the instructions they take fifty times as long."""
    return device != "cpu" or cpu_multiplies_bfloat16()


def large_pages(nbytes: int, device: str = "cpu") -> Tensor:
    """Float32 numbers in large pages where the system has them, all of them written once."""
    if device != "cpu":
        return torch.full((nbytes // 4,), 1e-6, device=device)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    flat = torch.frombuffer(memory, dtype=torch.float32)  # holds on to `memory`
    return flat.fill_(1e-6)


def readers(flat: Tensor) -> dict[str, Call]:
    """Ways to read every number once, none of which writes more than a few."""
    rows = flat[: len(flat) // 1024 * 1024].view(-1, 1024)
    ones, halves = torch.ones(1024, device=flat.device), flat.view(2, -1)
    return {
        "sum": flat.sum,
        "max": flat.max,
        "sums of halves": lambda: halves.sum(1),
        "dot with itself": lambda: torch.dot(flat, flat),
        "matrix times vector": lambda: torch.mv(rows, ones),
    }


def best_reader(nbytes: int, device: str = "cpu", *, rounds: int = 3) -> tuple[Call, int]:
    """The quickest way to read about so many bytes, and how many it reads."""
    flat = large_pages(-(-nbytes // 4096) * 4096, device)
    ways = readers(flat)
    samples = compete(ways, rounds=rounds, device=device)
    return ways[samples.fastest(list(ways))], flat.numel() * 4


def share(samples: Samples, ours: str, done: int, limit: str, possible: int) -> Spread:
    """What a contender does a second as a share of what is possible, round by round.

    Args:
        samples: Of both.
        ours: The contender.
        done: What one call of it does, in operations or bytes.
        limit: The contender that is the limit.
        possible: What one call of that does.
    """
    pairs = zip(samples.seconds[ours], samples.seconds[limit], strict=True)
    return Spread.of([(done / seconds) / (possible / at_best) for seconds, at_best in pairs])


def main() -> None:
    options = arguments(__doc__)
    report = Report("limits", options)
    rounds = options.rounds(9, quick=3)
    calls: dict[str, Call] = {}
    work: dict[str, int] = {}
    for dtype in (torch.float32, *([torch.bfloat16] if multiplies_bfloat16(options.device) else [])):
        name = f"{str(dtype).removeprefix('torch.')} product"
        calls[name], work[name] = best_product(dtype, options.device, rounds=rounds)
    samples = compete(calls, rounds=rounds, device=options.device)
    rates = {name: Spread.of([work[name] / s / 1e9 for s in samples.seconds[name]]) for name in calls}
    for name, rate in rates.items():
        report.add(
            Row(name, f"{round((work[name] / 2) ** (1 / 3))} cubed", rate, kind="GFLOP/s", ours=name, against="")
        )
    for size, nbytes in {"gpt2-small, bfloat16": 247 << 20, "gpt2-small, float32": 494 << 20}.items():
        flat = large_pages(nbytes >> 12 << 12, options.device)
        ways = readers(flat)
        read = compete(ways, rounds=rounds, device=options.device)
        best = read.fastest(list(ways))
        rate = Spread.of([flat.numel() * 4 / s / 1e9 for s in read.seconds[best]])
        report.add(Row("reading", size, rate, kind="GB/s", ours=best, against=""), read)
        for way in ways:
            report.facts.setdefault("ways to read", {}).setdefault(size, {})[way] = read.time(way).median
    report.samples["products"] = {"seconds": samples.seconds, "repeats": samples.repeats}
    report.finish()


if __name__ == "__main__":
    main()
