"""Memory that a process keeps when it is freed, so that later captures and comparisons need not ask the system again.

The system hands out each page at a cost: everything that a GPT-2 small computes on 128 tokens takes 30,000 of them,
which was a sixth of such a run. glibc gives memory back as soon as captures are dropped, and the next run pays again.
Captured values are made by torch's operations and not copied, so they cannot be put into memory of our own; but glibc
can be told to keep what is freed. Values that somebody still holds stay where they are. Comparing converts the weights
to float64 for each of its runs: half of the pages, and a tenth of the processor's time, for a GPT-2 small.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

LITTLE = 2**22
"""Numbers for which nothing needs to be told: glibc keeps twice its largest threshold, 64 MB, by itself. A capture has
one for each name, token and column of the residual stream, a comparison one for each weight."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h calls them
_MOST = 2**31 - 1  # what mallopt takes
_LARGEST = 2**30  # a block above it goes back to the system at once


@functools.cache
def keep_freed() -> int:
    """Tell glibc, once in a process, to keep freed memory: an eighth of the machine's, but less than 2 GiB.

    Returns:
        The bytes that it keeps at most; 0 if another allocator is at work, or if its environment variables
        (`MALLOC_TRIM_THRESHOLD_` and others) tell glibc what to do.
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    tell = None if told or sys.platform != "linux" else getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        return 0
    most = min(_MOST, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)
    return most if tell(_MMAP_THRESHOLD, _LARGEST) and tell(_TRIM_THRESHOLD, most) else 0


def give_back() -> None:
    """Return to the system what lies freed between blocks in use, which glibc keeps: after GPT-2's tokenizer 42 MB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
