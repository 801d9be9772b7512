"""A notebook as a program: its code cells, and what a line of them is called."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_OF_PYTHON = frozenset({"time", "timeit", "capture", "prun", "debug"})
"""Cell magics behind which Python follows."""

_MAGIC = re.compile(r"(\s*)(?:[%!?].*|[\w.]+\?{1,2}\s*)")
"""A line of IPython's own, such as `%matplotlib inline`, `!pip install einops` and `torch.softmax?`."""

_ASSIGNED = re.compile(r"(\s*[\w., ]+=)\s*[%!].*")
"""The answer of such a line, given a name."""

CELL = "# %%"


def program(text: str | bytes) -> str:
    """The code cells, one after another; IPython's own commands (`%matplotlib inline`, `!pip …`) do nothing.

    Example:
        >>> cells = [{"cell_type": "markdown", "source": "# Mine"}, {"cell_type": "code", "source": ["x = 1"]}]
        >>> program(json.dumps({"cells": cells}))
        '# %%\\nx = 1\\n'
    """
    found = json.loads(text)
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("a JSON object with a list of cells was expected")
    return "".join(f"{CELL}\n{_python(cell)}\n" for cell in cells if cell.get("cell_type") == "code")


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
    above = source.splitlines()[:line]
    starts = [number for number, text in enumerate(above, 1) if text == CELL]
    return f"code cell {len(starts)}, line {line - starts[-1]}" if starts else f"line {line}"
