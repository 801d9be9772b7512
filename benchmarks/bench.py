"""All benchmarks one after another, each in a process of its own, and then the page.

    python benchmarks/bench.py --out FOLDER     # everything; the page goes into docs/
    python benchmarks/bench.py --quick          # a look within three minutes; writes nothing into docs/

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

SCRIPTS = ("limits", *(name for name in page.SECTIONS if name != "limits"))
ON_ACCELERATORS = ("forward", "capture")
"""Scripts that take --device."""


def run(name: str, options: Sequence[str], out: Path) -> int:
    """One script; what it prints is shown as it comes."""
    begin = time.perf_counter()
    print(f"-- {name} {' '.join(options)}".rstrip(), flush=True)
    command = [sys.executable, str(page.HERE / f"{name}.py"), "--out", str(out), *options]
    code = subprocess.run(command, check=False).returncode
    print(f"-- {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return code


def run_all(out: Path, *, quick: bool, accelerated: bool) -> list[str]:
    """Every script; gives the names of those that failed."""
    todo = [(name, ["--quick"] if quick else []) for name in SCRIPTS]
    if accelerated:
        todo += [(name, [*options, "--device", "cuda"]) for name, options in todo if name in ON_ACCELERATORS]
    return [" ".join([name, *options]) for name, options in todo if run(name, options, out)]


def has_accelerator() -> bool:
    """Whether torch sees one; asked in a process of its own, so that this one stays small."""
    program = "import sys, torch; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run all benchmarks.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller shapes; writes no page")
    parser.add_argument("--out", type=Path, help="folder for the JSON; a temporary one if left out")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the load of this machine is {load:.1f}: an idle one gives better numbers", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        out = given.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("*.json"):
            old.unlink()
        failed = run_all(out, quick=given.quick, accelerated=has_accelerator())
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
            return 1
        return page.main([str(out), *(["--print"] if given.quick else [])])


if __name__ == "__main__":
    sys.exit(main())
