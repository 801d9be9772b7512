"""The built viewer is what its sources build, small, and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from written_traces import VIEWER

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "viewer"


def test_rebuilding_gives_the_same_bytes_of_libraries_that_the_notice_names(tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm build the viewer, and they are not on this machine")
    package = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))
    if not all(
        (SOURCES / "node_modules" / name).is_dir() for name in package["dependencies"] | package["devDependencies"]
    ):
        installed = subprocess.run([npm, "ci"], cwd=SOURCES, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"npm ci needs a registry: {installed.stderr[-200:]}")
    built, parts = tmp_path / "viewer.js", tmp_path / "parts.json"
    subprocess.run([node, "build.mjs", built, parts], cwd=SOURCES, check=True)
    assert built.read_bytes() == VIEWER.read_bytes(), "the built viewer is old: make viewer"
    (output,) = json.loads(parts.read_text(encoding="utf-8"))["outputs"].values()
    files = [name for name, part in output["inputs"].items() if part["bytesInOutput"]]
    libraries = {found[1] for found in map(re.compile(r"node_modules/((?:@[^/]+/)?[^/]+)").match, files) if found}
    notice = (SOURCES / "NOTICE").read_text(encoding="utf-8")
    assert {"preact", "d3-path"} <= libraries
    assert {library for library in libraries if not re.search(rf"{library}[ :,]", notice)} == set()


def test_the_built_file_is_small_and_asks_for_nothing() -> None:
    script = VIEWER.read_text(encoding="utf-8")
    assert len(script.encode()) <= 200_000
    addresses = set(re.findall(r"https?://[^\s\"'`)<>\\]*", script))
    # Names of notations, which no browser opens.
    assert {address for address in addresses if not address.startswith("http://www.w3.org/")} == set()
    assert "</script" not in script.lower()
    assert not re.search(r"\b(eval|XMLHttpRequest|importScripts|sendBeacon|WebSocket)\b", script)


def test_the_lock_names_no_host_and_exact_versions() -> None:
    lock = (SOURCES / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in lock
    package = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))
    versions = package["dependencies"] | package["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())
    packages = json.loads(lock)["packages"]
    assert all("integrity" in entry for name, entry in packages.items() if name)


def test_what_is_bundled_is_in_the_notice() -> None:
    notice = (SOURCES / "NOTICE").read_text(encoding="utf-8")
    assert (ROOT / "NOTICE").read_text(encoding="utf-8").endswith("\n\n" + notice)
    package = json.loads((SOURCES / "package.json").read_text(encoding="utf-8"))
    for name, version in package["dependencies"].items():
        assert f"{name} {version}" in notice
