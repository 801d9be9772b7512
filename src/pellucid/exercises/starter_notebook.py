"""A script whose cells are marked with `# %%` as a notebook, and a notebook as such a script."""

from __future__ import annotations

import ast
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


_OF_PYTHON = frozenset({"time", "timeit", "capture", "prun", "debug"})
"""Cell magics behind which Python follows."""

_MAGIC = re.compile(r"(\s*)(?:[%!?].*|[\w.]+\?{1,2}\s*)")
"""A line of IPython's own, such as `%matplotlib inline`, `!pip install einops` and `torch.softmax?`."""

_ASSIGNED = re.compile(r"(\s*[\w., ]+=)\s*[%!].*")
"""The answer of such a line, given a name."""

_CELL = "# %% code cell"
"""What stands above each cell in a notebook's program."""


def script_of(text: bytes) -> str:
    """The code cells of a notebook, one after another; IPython's own commands do nothing."""
    found = json.loads(text)
    listed = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(listed, list) or not all(isinstance(cell, dict) for cell in listed):
        raise ValueError("a JSON object with a list of cells was expected")
    return "".join(f"{_CELL}\n{_python(cell)}\n" for cell in listed if cell.get("cell_type") == "code")


def _python(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        if text.startswith("%%") and re.split(r"\W", text[2:], maxsplit=1)[0] not in _OF_PYTHON:
            return ""
        return "\n".join(map(_plain, text.split("\n")))
    return text


def _plain(line: str) -> str:
    """A line without what only IPython knows."""
    if _MAGIC.fullmatch(line):
        return _MAGIC.sub(r"\1pass", line)
    return _ASSIGNED.sub(r"\1 None", line) if _ASSIGNED.fullmatch(line) else line


def place_in(source: str, line: int) -> str:
    """A line of a notebook's program in words: which code cell, and which line of it."""
    above = source.split("\n")[:line]
    starts = [number for number, text in enumerate(above, 1) if text == _CELL]
    return f"code cell {len(starts)}, line {line - starts[-1]}" if starts else f"line {line}"
