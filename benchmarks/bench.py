"""All benchmarks one after another, each in a process of its own, and then the page.

    python benchmarks/bench.py --out FOLDER     # everything; the page goes into docs/
    python benchmarks/bench.py --quick          # a look within three minutes; writes nothing into docs/
    python benchmarks/bench.py --device cuda    # on an accelerator alone; the page is docs/benchmarks_cuda.md

A script that fails is named at the end, and the page is then not written.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import page

ON_ACCELERATORS: dict[str, tuple[str, ...]] = {
    "limits": ("float32",), "forward": ("float32", "bfloat16"), "graphs": ("float32", "bfloat16"),
    "capture": ("float32", "bfloat16"), "fixed_cost": ("float32",), "generate": ("float32",), "scaling": ("float32",),
}  # fmt: skip
"""Scripts that take --device -> the dtypes in which they are run there; `generate` runs both by itself."""

SCRIPTS = ("limits", *(name for name in page.SECTIONS if name not in ("limits", "graphs")))
"""Scripts that are run on the processor."""

LONG = ("limits", "scaling")
"""What a look leaves out: others measure the limits that they need, and a curve needs the sizes."""


def run(name: str, options: Sequence[str], out: Path) -> int:
    """One script; what it prints is shown as it comes."""
    begin = time.perf_counter()
    print(f"-- {name} {' '.join(options)}".rstrip(), flush=True)
    command = [sys.executable, str(page.HERE / f"{name}.py"), "--out", str(out), *options]
    code = subprocess.run(command, check=False).returncode
    print(f"-- {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return code


def run_all(out: Path, *, quick: bool, device: str) -> list[str]:
    """Every script; gives the names of those that failed."""
    if device == "cpu":
        todo = [(name, []) for name in SCRIPTS if not (quick and name in LONG)]
    else:
        todo = [
            (name, ["--device", device, "--dtype", dtype])
            for name, dtypes in ON_ACCELERATORS.items()
            for dtype in dtypes
        ]
    more = ["--quick"] if quick else []
    return [" ".join([name, *options]) for name, options in todo if run(name, [*options, *more], out)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller shapes and models; writes no page")
    parser.add_argument("--out", type=Path, help="folder for the JSON; a temporary one if left out")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the load of this machine is {load:.1f}: an idle one gives better numbers", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        if any(out.glob("*.json")):
            parser.error(f"--out {out}: it holds results already; give an empty folder")
        failed = run_all(out, quick=given.quick, device=given.device)
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
            return 1
        name = page.PAGE if given.device == "cpu" else f"{page.PAGE}_{given.device}"
        return page.main([str(out), "--name", name, *(["--print"] if given.quick else [])])


if __name__ == "__main__":
    sys.exit(main())
