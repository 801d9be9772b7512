"""The notebooks, made from their percent-format scripts and run: `python examples/notebooks.py [NAME ...]`.

A reader of a notebook in a browser sees what its cells give, so outputs are kept in the file. They are of the day on
which this was run; the tests run every cell again, and see that what draws or prints has its output here.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

WIDGET = "application/vnd.jupyter.widget-view+json"
SCRIPTS = sorted(path for path in Path(__file__).parent.glob("*.py") if path != Path(__file__))


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) for each cell of a script."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        if "[markdown]" in head:
            found.append(("markdown", "\n".join(re.sub("^# ?", "", line) for line in text.strip().splitlines())))
        else:
            found.append(("code", text.strip()))
    return found


def notebook(script: str) -> dict[str, Any]:
    """An .ipynb without outputs."""
    made: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | {"source": text})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


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


def text_of(made: dict[str, Any]) -> str:
    """The file's text: sources and printed outputs a line each, so that changes can be read; without progress bars."""
    for cell in made["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [one for one in cell["outputs"] if WIDGET not in one.get("data", {})]
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = "".join(output["text"]).splitlines(keepends=True)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in SCRIPTS:
        if path.stem in (sys.argv[1:] or [path.stem]):
            run = executed(notebook(path.read_text(encoding="utf-8")))
            path.with_suffix(".ipynb").write_text(text_of(run), encoding="utf-8")
