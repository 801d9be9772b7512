"""Memory of this process; imports nothing that a measured start-up would pay for."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or with "VmHWM" at the highest since `reset_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """From here on the highest counts."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def give_back() -> None:
    """Give freed memory back to the system; what the allocator keeps would be filled again without showing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """By how much this process grows, at its highest, while `call` runs; meant for a fresh process.

    On an accelerator, by how much the tensors there grow.
    """
    if device != "cpu":
        return _peak_there(call)
    give_back()
    reset_peak()
    before = resident()
    result = call()
    peak = resident("VmHWM")
    del result
    return peak - before


def _peak_there(call: Callable[[], Any]) -> int:
    import torch

    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    peak = torch.cuda.max_memory_allocated()
    del result
    return peak - before


def available_bytes() -> int:
    """Memory that the system could give to a new process."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")
