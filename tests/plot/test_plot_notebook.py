"""In a notebook every figure is shown, in the cell that makes it: asked of a real kernel."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pytest

import pellucid as pl

CELLS = [
    "import matplotlib.pyplot as plt, pellucid as pl\npattern = [[1.0, 0.0], [0.3, 0.7]]",
    "ax = pl.plot.attention(pattern)",
    "ax = pl.plot.attention(pattern)",
    "with pl.plot.theme('dark'):\n    plt.subplots()",
    "figure, ax = plt.subplots()",
    "pl.load().tokenize('<b>')",
]


def executed(cells: list[str]) -> list[Any]:
    """The cells of a notebook that a kernel has run."""
    import nbformat
    from nbclient import NotebookClient

    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(made, kernel_name="python3", timeout=120).execute()
    return made.cells


@pytest.mark.long  # tests/plot/test_plot_canvas.py asks in every run whether a notebook is taken for one
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of the notebook's own libraries
def test_every_figure_is_shown_in_the_cell_that_makes_it() -> None:
    ran = executed(CELLS)
    pictures = [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in ran]
    assert pictures == [0, 1, 1, 1, 1, 0]
    assert "&lt;" in ran[-1].outputs[0]["data"]["text/html"]


@pytest.mark.parametrize("before", [False, True])
def test_a_theme_leaves_interactive_mode_as_the_block_leaves_it(before: bool) -> None:
    mpl.interactive(before)
    try:
        with pl.plot.theme("light"):
            mpl.interactive(True)
        assert mpl.is_interactive()
        with pl.plot.theme("light"):
            mpl.interactive(False)
        assert not mpl.is_interactive()
    finally:
        mpl.interactive(False)
