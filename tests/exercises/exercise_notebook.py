"""The notebook of the exercises, and what made it."""

from __future__ import annotations

from pathlib import Path

from pellucid.exercises.starter_notebook import cells, notebook

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = EXAMPLES / "build_gpt2_from_scratch.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")

__all__ = ["NOTEBOOK", "SCRIPT", "cells", "notebook"]
