"""A script whose cells are marked with `# %%` as a notebook."""

from __future__ import annotations

import json
import re
from typing import Any


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) for each cell of a script whose cells are marked with `# %%`."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, text = part.partition("\n")
        if "[markdown]" in head:
            found.append(("markdown", "\n".join(re.sub("^# ?", "", line) for line in text.strip().splitlines())))
        else:
            found.append(("code", text.strip()))
    return found


def notebook(script: str) -> dict[str, Any]:
    """An .ipynb of such a script, without outputs."""
    made: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | {"source": text})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def notebook_text(made: dict[str, Any]) -> str:
    """The text of a notebook's file: sources and printed outputs a line each, so that changes can be read."""
    for cell in made["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = "".join(output["text"]).splitlines(keepends=True)
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"
