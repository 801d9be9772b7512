"""The notebooks, made from their percent-format scripts and run: `python examples/notebooks.py [NAME ...]`.

A reader of a notebook in a browser sees what its cells give, so outputs are kept in the file. They are of the day on
which this was run; the tests run every cell again, and see that what draws or prints has its output here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pellucid.exercises.starter_notebook import notebook, notebook_text

WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPTS = sorted(path for path in Path(__file__).parent.glob("*.py") if path != Path(__file__))


def executed(made: dict[str, Any]) -> dict[str, Any]:
    """The same notebook with the outputs of its cells, run in a kernel in this folder."""
    import nbformat
    from nbclient import NotebookClient

    node: Any = nbformat.from_dict(made)
    here = {"metadata": {"path": Path(__file__).parent}}
    NotebookClient(
        node, kernel_name="python3", timeout=600, resources=here, record_timing=False, coalesce_streams=True
    ).execute()
    node.metadata = made["metadata"]
    return node


def without_bars(made: dict[str, Any]) -> dict[str, Any]:
    """The same without progress bars."""
    for cell in made["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [one for one in cell["outputs"] if WIDGET not in one.get("data", {})]
    return made


if __name__ == "__main__":
    for path in SCRIPTS:
        if path.stem in (sys.argv[1:] or [path.stem]):
            run = executed(notebook(path.read_text(encoding="utf-8")))
            path.with_suffix(".ipynb").write_text(notebook_text(without_bars(run)), encoding="utf-8")
