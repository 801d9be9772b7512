"""Importing pellucid is quiet, offline and cheap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import pellucid

PROBE = """
import json, socket, sys, time
def refuse(*arguments, **options):
    raise AssertionError("a socket was opened")
class Refused(socket.socket):
    __init__ = refuse
socket.socket = Refused
socket.getaddrinfo = refuse
FIRST
before = set(sys.modules)
start = time.perf_counter()
IMPORTED
seconds = time.perf_counter() - start
new = sorted(set(sys.modules) - before)
ROOMS
sys.stderr.flush()
found = {"new": new, "with_rooms": sorted(set(sys.modules) - before), "seconds": seconds, "calls": calls}
json.dump(found, sys.__stdout__)
"""

FIRST = """
import torch, safetensors.torch, tokenizers
calls = []
def watched(name, plain):
    def call(x):
        calls.append([name, x.numel(), str(x.dtype)])
        return plain(x)
    return call
torch.tanh, torch.erf = watched("tanh", torch.tanh), watched("erf", torch.erf)
"""

IMPORTED = """
import pellucid
pellucid.CkptedTransformer, pellucid.ActivationCkpts, pellucid.Edit, pellucid.TransformerConfig
"""

ROOMS = """
import pellucid.measure, pellucid.plot, pellucid.corpus.writing, pellucid.exercises
def drawn(logits):
    return torch.distributions.Categorical(logits=logits).sample().item()
assert pellucid.exercises.check_sample_basic(drawn)
"""

NUMERICAL = {"matplotlib", "xarray", "statsmodels", "pandas", "scipy", "sympy"}
HEAVY = {"ray", "zarr", "transformers", "huggingface_hub", "typer", "rich", "jinja2", "requests", "httpx", *NUMERICAL}


def run(code: str) -> subprocess.CompletedProcess[str]:
    folder = os.path.dirname(os.path.dirname(pellucid.__file__))
    path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)


def watched(imported: str, first: str = "calls = []", rooms: str = "") -> subprocess.CompletedProcess[str]:
    """What an import does, as the probe sees it."""
    return run(PROBE.replace("FIRST", first).replace("IMPORTED", imported).replace("ROOMS", rooms))


@pytest.fixture(scope="module")
def probe() -> dict[str, Any]:
    done = watched(IMPORTED, FIRST, ROOMS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing wrote to stderr"
    return json.loads(done.stdout)  # fails if importing printed anything


def test_importing_the_package_alone_does_not_wait_for_torch() -> None:
    done = run("import sys, pellucid; assert not {'torch', 'numpy', 'tokenizers'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_nothing_heavy_is_imported(probe: dict[str, Any]) -> None:
    """Nor with the rooms whose functions need it: it is imported when one is called."""
    heavy = [name for name in probe["with_rooms"] if name.split(".")[0] in HEAVY]
    assert not heavy
    assert "torch._dynamo" not in probe["with_rooms"], "torch's compiler takes a second"


def test_few_modules_are_imported(probe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The count is what is bounded: time depends on what else the machine does, and is shown only."""
    ours = [name for name in probe["new"] if name.split(".")[0] == "pellucid"]
    others = [name for name in probe["new"] if name.split(".")[0] != "pellucid"]
    with capsys.disabled():
        sys.stdout.write(
            f"\nimport pellucid: {probe['seconds']:.3f} s over torch, {len(ours)} + {len(others)} modules\n"
        )
    assert len(ours) <= 87
    assert len(others) <= 40, others


def test_the_probe_notices() -> None:
    """A heavy import, a socket and a print would be seen."""
    opened = watched("socket.socket()")
    assert opened.returncode != 0
    assert "a socket was opened" in opened.stderr
    noisy = watched("import jinja2; print('hello')")
    with pytest.raises(json.JSONDecodeError):
        json.loads(noisy.stdout)
    assert "jinja2" in json.loads(noisy.stdout.removeprefix("hello"))["new"]


def test_importing_the_model_calls_what_mkl_computes_once_in_one_thread(probe: dict[str, Any]) -> None:
    """Two threads that share MKL's first call of such a function may get half of the digits."""
    for function in ("tanh", "erf"):
        for dtype in ("torch.float32", "torch.float64"):
            assert [function, 1, dtype] in probe["calls"]
