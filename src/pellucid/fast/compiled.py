"""The C++ of a family's kernels, compiled once for each processor and compiler, and kept in the user's cache."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from pellucid.errors import NumericsError

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fPIC",
    "-fopenmp", "-shared",
)  # fmt: skip
WIDE = "-mprefer-vector-width=512"
COMPILERS = ("c++", "g++", "clang++")


@functools.cache
def library(source: Path) -> ctypes.CDLL:
    """The compiled kernels in a file."""
    compiler = _compiler()
    built = _folder() / f"{source.stem}-{_fingerprint(source, compiler)}.so"
    if built.is_file():
        with suppress(OSError):  # one that was cut off is made again
            return ctypes.CDLL(str(built))
    _build(source, compiler, built)
    try:
        return ctypes.CDLL(str(built))
    except OSError as problem:
        raise NumericsError(
            f"fast numerics: {built}: cannot be loaded: {problem}.",
            code="kernel-cache",
            remedy="Name a folder in PELLUCID_CACHE from which programs may be run.",
        ) from problem


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise NumericsError(
            f"fast numerics: no C++ compiler ({wanted or ', '.join(COMPILERS)}), which generation needs.",
            code="no-compiler",
            remedy="Install one (Debian: apt install g++), name it in CXX, or use numerics='exact'.",
        )
    return found


def _folder() -> Path:
    base = os.environ.get("PELLUCID_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "pellucid"
    except RuntimeError as problem:  # a user without a home
        raise NumericsError(
            f"fast numerics: no folder for compiled kernels: {problem}",
            code="kernel-cache",
            remedy="Name a folder that can be written in PELLUCID_CACHE.",
        ) from problem


def _fingerprint(source: Path, compiler: str) -> str:
    """What the result depends on: source, flags, compiler, and the processor that `-march=native` stands for."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (source.read_text(encoding="utf-8"), " ".join(FLAGS), compiler, version, _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    wanted = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *wanted[:2]])


def _build(source: Path, compiler: str, built: Path) -> None:
    """Compile beside the place where the result goes, so that it is there whole or not at all."""
    flags = [*FLAGS, *([WIDE] if platform.machine() in ("x86_64", "AMD64") else [])]
    try:
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / built.name
            done = subprocess.run(
                [compiler, *flags, str(source), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise NumericsError(
                    f"fast numerics: {compiler} cannot compile {source.name}: {_first_error(done.stderr)}",
                    code="compiler-failed",
                    remedy="Name another compiler in CXX, such as g++ 10 or newer, or use numerics='exact'.",
                )
            os.replace(made, built)
    except OSError as problem:
        raise NumericsError(
            f"fast numerics: {built.parent}: cannot be written: {problem.strerror or problem}.",
            code="kernel-cache",
            remedy="Name a folder that can be written in PELLUCID_CACHE.",
        ) from problem


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or ["it says nothing"]
    return lines[0][:300]
