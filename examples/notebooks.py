"""The notebooks, made from their percent-format scripts: `python examples/notebooks.py` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def notebook(script: str) -> str:
    """The text of an .ipynb without outputs."""
    made: list[dict[str, Any]] = []
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


if __name__ == "__main__":
    for path in SCRIPTS:
        path.with_suffix(".ipynb").write_text(notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
