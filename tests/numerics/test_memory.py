"""The memory of captures that were dropped serves the next ones."""

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import pellucid as pl
import support
from pellucid.numerics import freed_memory

FAULTS = """
import resource
import torch
import support

model = support.glass(n_positions=512, n_embd=128, n_layer=6)


def faults():
    found = []
    for _ in range(4):  # a block that was freed may be too small for the next one, which has to be aligned
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)


print(faults())
model.run_with_ckpts(torch.zeros(1, 4, dtype=torch.long))
print(faults())
model.run_with_ckpts(torch.zeros(1, 512, dtype=torch.long))
print(faults())
"""
"""Pages that are handed out for 64 MB which were freed before: first, after a small and after a large capture."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory as they like")
QUIET = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}


@glibc
def test_what_a_large_capture_leaves_is_kept():
    here = {**QUIET, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=here)
    first, after_little, after_much = map(int, done.stdout.split())
    assert min(first, after_little) > 16_000
    assert after_much < 100


@glibc
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_whoever_told_glibc_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "1")
    assert freed_memory.keep_freed.__wrapped__() == 0


@pytest.mark.parametrize("large", [True, False])
def test_comparing_large_models_keeps_what_is_freed(large: bool, monkeypatch: pytest.MonkeyPatch):
    place, told = importlib.import_module("pellucid.prove.compare"), list[int]()
    model = support.glass(n_layer=1)
    monkeypatch.setattr(place, "keep_freed", lambda: told.append(1))
    monkeypatch.setattr(place, "LITTLE", sum(p.numel() for p in model.parameters()) - large)
    pl.compare(model, model, inputs=support.ROW)
    assert bool(told) == large
