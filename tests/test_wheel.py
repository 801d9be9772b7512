"""The wheel is the product: built from the tree, installed where no checkout is in sight, it works.

The clean environment has no pip and nothing of ours. A `.pth` line shows it the running environment's site-packages,
for torch and the others; `.pth` files in there are not read a second time, so an editable install stays out of sight.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "pellucid" / "bundled"

TRY = """
import json, pathlib, sys, urllib.request
import pellucid as pl
imported = sorted({"transformers", "matplotlib", "statsmodels"} & set(sys.modules))
model = pl.load()
logits, ckpts = model.run_with_ckpts("Once upon a time")
from typer.testing import CliRunner
from pellucid.cli import app
typed = CliRunner().invoke(app, ["run", "Once upon a time", "--json"])
package = pathlib.Path(pl.__file__).parent
server = pl.serve(model, "Once upon a time", port=0)
served = {name: urllib.request.urlopen(server.url + name).read().decode() for name in ("", "viewer.js", "api/readings")}
server.stop()
print(json.dumps({
    "package": str(package), "version": pl.__version__, "imported": imported, "shape": list(logits.shape),
    "checkpoints": len(ckpts), "typed_at_a_shell": typed.stdout,
    "typed": (package / "py.typed").is_file(), "path": sys.path, "served": served,
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; no variable of this environment shows it the checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE", "PYTEST"))}
    env |= {"HF_HUB_OFFLINE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tree_files() -> list[str]:
    """What a fresh clone would hold: tracked files, and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():  # an unpacked source distribution
        skipped = {".venv", "build", "dist", "__pycache__"}
        files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return [str(path) for path in files if not skipped & set(path.parts)]
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tree_files():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / "tree" / name)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder / "out", ".")
    run(sys.executable, *build, cwd=folder / "tree")
    (built,) = (folder / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a clean environment with the wheel in it."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = binary(venv, "python")
    # Before the line that shows it the other packages: pip would find ours among them and install nothing.
    install = ("-m", "pip", "--python", python, "install", "--quiet", "--no-compile", "--no-deps", "--no-index", wheel)
    run(sys.executable, *install, cwd=venv.parent)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=venv.parent).strip())
    shown = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "others.pth").write_text("\n".join(shown) + "\n", encoding="utf-8")
    return venv


def binary(venv: Path, name: str) -> Path:
    """A program of an environment."""
    return venv / ("Scripts" if os.name == "nt" else "bin") / name


@pytest.fixture(scope="module")
def tried(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happens when the installed package is used, from a folder of no meaning."""
    return json.loads(run(binary(clean, "python"), "-c", TRY, cwd=tmp_path_factory.mktemp("elsewhere")))


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    info = {name for name in top if name.endswith(".dist-info")}
    assert top - info == {"pellucid"}
    assert len(info) == 1
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name or "/training/" in name]


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    ours = {name.removeprefix("src/") for name in tree_files() if name.startswith("src/")}
    missing = ours - set(zipfile.ZipFile(wheel).namelist())
    assert not missing
    assert {"pellucid/py.typed", "pellucid/bundled/model.safetensors", "pellucid/run/edit.py"} <= ours


def test_wheel_holds_the_bundled_model_to_the_byte(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for path in BUNDLED.iterdir():
        if path.is_file():
            assert archive.read(f"pellucid/bundled/{path.name}") == path.read_bytes(), path.name


def test_wheel_holds_licence_and_credits(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    for name in ("LICENSE", "NOTICE"):
        assert archive.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in required if "transformers" in line or "matplotlib" in line]


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 30 * 2**20


def test_installed_it_runs_from_there(tried: dict[str, Any], clean: Path) -> None:
    assert Path(tried["package"]).resolve().is_relative_to(clean.resolve()), "imported from somewhere else"
    assert str(ROOT / "src") not in tried["path"], "the editable install is in sight"
    assert tried["shape"] == [1, 4, 4096]
    assert tried["checkpoints"] == 72
    assert tried["typed"]
    assert tried["imported"] == [], "importing pellucid imports optional packages"


def test_installed_it_serves_the_viewer(tried: dict[str, Any]) -> None:
    assert "<title>Once upon a time" in tried["served"][""]
    assert tried["served"]["viewer.js"] == (ROOT / "src/pellucid/viewer/static/viewer.js").read_text(encoding="utf-8")
    assert len(json.loads(tried["served"]["api/readings"])) == 6


def test_installed_command_line(tried: dict[str, Any], clean: Path, tmp_path: Path) -> None:
    assert tried["version"] in run(binary(clean, "pellucid"), "--version", cwd=tmp_path)
    assert "72" in tried["typed_at_a_shell"]
