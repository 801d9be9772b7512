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


def test_rebuilding_gives_the_same_bytes(tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm build the viewer, and they are not on this machine")
    if not (SOURCES / "node_modules" / "esbuild").is_dir():
        installed = subprocess.run([npm, "ci"], cwd=SOURCES, capture_output=True, text=True, check=False)
        if installed.returncode:
            pytest.skip(f"npm ci needs a registry: {installed.stderr[-200:]}")
    built = tmp_path / "viewer.js"
    subprocess.run([node, "build.mjs", built], cwd=SOURCES, check=True)
    assert built.read_bytes() == VIEWER.read_bytes(), "the built viewer is old: make viewer"


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
