"""The notebook of the exercises, and what made it."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "build_gpt2_from_scratch.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")

sys.path.insert(0, str(EXAMPLES))
from notebooks import cells, notebook  # noqa: E402

__all__ = ["NOTEBOOK", "SCRIPT", "cells", "notebook"]
