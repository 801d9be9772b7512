"""The program in a Jupyter notebook: its code cells as one Python text."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_OF_PYTHON = frozenset({"time", "timeit", "capture", "prun", "debug"})
"""Cell magics behind which Python follows."""

_MAGIC = re.compile(r"(\s*)[%!?].*")


def program(text: str | bytes) -> str:
    """The code cells, one after another; IPython's own commands (`%matplotlib inline`, `!pip …`) do nothing.

    Args:
        text: An .ipynb file.

    Raises:
        ValueError: No notebook.

    Example:
        >>> cells = [{"cell_type": "markdown", "source": "# Mine"}, {"cell_type": "code", "source": ["x = 1"]}]
        >>> program(json.dumps({"cells": cells}))
        '# %%\\nx = 1\\n'
    """
    found = json.loads(text)
    cells = found.get("cells") if isinstance(found, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("a JSON object with a list of cells was expected")
    return "".join(f"# %%\n{_python(cell)}\n" for cell in cells if cell.get("cell_type") == "code")


def _python(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    text = "".join(map(str, source)) if isinstance(source, list) else str(source)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        if text.startswith("%%") and re.split(r"\W", text[2:], maxsplit=1)[0] not in _OF_PYTHON:
            return ""
        return "\n".join(_MAGIC.sub(r"\1pass", line) if _MAGIC.fullmatch(line) else line for line in text.split("\n"))
    return text
