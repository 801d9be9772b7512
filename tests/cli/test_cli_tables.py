"""Numbers, bars and shades, as the tables show them."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from noticed import must_be_noticed
from pellucid.cli.shared import tables, widths
from pellucid.cli.shared.tables import BAR_WIDTH, NextToken, bar, number, shade
from pellucid.errors import visible
from pellucid.html.listing import finite


@given(st.floats(-1e38, 1e38))
def test_a_number_is_short_and_near(value: float) -> None:
    text = number(value)
    assert len(text) <= (6 if 1e-9 < abs(value) < 1e9 or value == 0 else 7)
    small, large = abs(value) < 5e-4, abs(value) >= 1e9  # two digits, or one where the sign or exponent is long
    expected = pytest.approx(value, rel=0.5, abs=0) if small or large else pytest.approx(value, rel=0.06, abs=5.01e-4)
    assert float(text) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"), (-0.0, "0.000"), (1.0, "1.000"), (-0.0123, "-0.012"), (12.3456, "12.346"), (-12.3456, "-12.35"),
        (-1234.56, "-1235"), (123456.0, "1.2e5"), (-0.000123, "-1e-4"), (1.5e-7, "1.5e-7"),
        (float("nan"), "nan"), (float("-inf"), "-inf"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_bars_are_as_long_as_the_share() -> None:
    assert [bar(0.0), bar(1.0), bar(0.5)] == ["", "█" * BAR_WIDTH, "█" * (BAR_WIDTH // 2)]
    assert bar(2.0) == bar(1.0)
    lengths = [8 * bar(i / 240).count("█") + "▏▎▍▌▋▊▉".find(bar(i / 240)[-1:] or " ") + 1 for i in range(241)]
    assert lengths == list(range(241))


def test_shades_grow_darker() -> None:
    shades = [shade(i / 100) for i in range(101)]
    assert "".join(dict.fromkeys(shades)) == "·░▒▓█"
    assert (shade(0.049), shade(0.05), shade(0.5), shade(1.0)) == ("·", "░", "▓", "█")


def test_tokens_are_visible() -> None:
    assert visible(" a\n\tb\x1b\u202e\ufffd") == "·a↵\\tb\\x1b\\u202e\ufffd"


def test_json_has_no_number_that_json_lacks() -> None:
    found = finite({"a": [math.nan, 1.5, (math.inf, 2)], "b": {"c": -math.inf}, "d": "nan"})
    assert found == {"a": [None, 1.5, [None, 2]], "b": {"c": None}, "d": "nan"}


def test_a_table_shows_brackets():
    for token in ("[eos]", "x[/INST]", "[bold]x"):
        written = io.StringIO()
        Console(width=80, file=written).print(tables.next_tokens([NextToken(token, 1, 0.5)]))
        assert token in written.getvalue()


def test_brackets_in_names_of_tensors_are_text(cli: Any, tmp_path: Path):
    from safetensors.torch import save_file

    path = tmp_path / "odd.safetensors"
    save_file({name: torch.arange(16.0).view(4, 4) for name in ("x[/b]", "y[red]")}, path)
    result = cli("ties", str(path))
    assert result.exit_code in (0, 1), result.output
    assert "x[/b]" in result.stdout
    assert "y[red]" in result.stdout


def test_cells_that_are_markup_are_noticed() -> None:
    as_markup = (widths, "printable", lambda cell: Text.from_markup(cell).plain, test_a_table_shows_brackets)
    must_be_noticed(as_markup)
