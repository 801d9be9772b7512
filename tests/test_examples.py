"""The notebooks: made from their scripts, offline, and every cell runs."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pellucid.exercises.starter_notebook import notebook

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
from notebooks import SCRIPTS  # noqa: E402

OTHERS = ("build_gpt2_from_scratch", "another_model")
"""The one runs in tests/exercises; the other needs weights that a package brings, and is tried if it is installed."""

FEWER = {
    "find_a_circuit": {"(TEMPLATE, 16,": "(TEMPLATE, 2,", "64, seed=1": "2, seed=1", "template, 16,": "template, 2,",
                       "draws=64": "draws=2", "subsets=20": "subsets=2", "\"steps\": 5": "\"steps\": 2",
                       "READERS.items()": "[*READERS.items()][:2]", "METHODS.items()": "[*METHODS.items()][::3]",
                       "[0.02, 0.05, 0.1, 0.2]": "[0.1]", "TEMPLATES[1:]": "TEMPLATES[3:]"},
    "sampling": {"(0.1, 0.4, 0.7, 1.0, 1.3, 1.6, 2.0)": "(0.1, 2.0)", "in (1, 2, 4, 8)": "in (1, 4)",
                 "tokens=40": "tokens=8", "tokens=60": "tokens=12", "sequences=8": "sequences=2"},
    "sparse_autoencoder": {"range(6)": "range(2)", "count=50": "count=10",
                           "stories[:240], stories[240:250]": "stories[:120], stories[120:124]"},
}  # fmt: skip
"""What takes long -> the same cells with fewer sentences and draws; `make test-all` runs them as they are."""

RUNS = [
    pytest.param(path, fewer, id=path.stem + " as it is" * (len(FEWER.get(path.stem, {})) > len(fewer)), marks=marks)
    for path in SCRIPTS
    if path.stem not in OTHERS
    for fewer, marks in ([(FEWER[path.stem], []), ({}, [pytest.mark.long])] if path.stem in FEWER else [({}, [])])
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_made_from_its_script(script: Path):
    kept, made = stored(script)["cells"], notebook(script.read_text(encoding="utf-8"))["cells"]
    same = [("".join(cell["source"]), cell["cell_type"]) for cell in kept]
    assert same == [(cell["source"], cell["cell_type"]) for cell in made], "run python examples/notebooks.py"


def stored(script: Path) -> dict[str, Any]:
    """The notebook of a script, as it is in the repository."""
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_reader_sees_what_the_cells_give(script: Path):
    outputs: list[dict[str, Any]] = []
    for cell in stored(script)["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            pictures = sum("image/png" in output.get("data", {}) for output in cell["outputs"])
            assert pictures == len(re.findall(r"plt\.subplots\(|^ *ax = pl\.plot\.", source, re.MULTILINE)), source
            outputs += cell["outputs"]
    assert any("image/png" in output.get("data", {}) for output in outputs) or script.stem.startswith("build")
    assert not [output for output in outputs if output.get("name") == "stderr" or output["output_type"] == "error"]
    assert not re.search(r"/tmp/|/home/|/root/", json.dumps([output.get("text") for output in outputs]))


def packages_without(extra: str) -> set[str]:
    """What other extras install and this one does not, as it is imported."""
    every = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

    def of(name: str) -> set[str]:
        found = {re.match(r"[\w-]+", line)[0] for line in every[name] if not line.startswith("pellucid[")}
        parts = [part for line in every[name] if line.startswith("pellucid[") for part in line[9:-1].split(",")]
        return found.union(*map(of, parts))

    others = set().union(*(of(name) for name in every if name != "dev")) - of(extra)
    return {{"scikit-learn": "sklearn"}.get(package, package) for package in others}


@pytest.mark.parametrize(("script", "fewer"), RUNS)
def test_every_cell_runs_offline(script: Path, fewer: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("the notebook opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for package in packages_without("notebook"):
        monkeypatch.setitem(sys.modules, package, None)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = stored(script)["cells"]
    assert all(any(many in "".join(cell["source"]) for cell in cells) for many in fewer)
    for cell in cells:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            for many, few in fewer.items():
                source = source.replace(many, few)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(source, script.name, "exec", dont_inherit=True), names)
            kept = any(output.get("name") == "stdout" for output in cell["outputs"])
            assert bool(printed.getvalue()) == kept, cell["source"]


def test_a_failing_cell_fails():
    with pytest.raises(AssertionError):
        exec(compile("assert False", "cell", "exec"), {})
