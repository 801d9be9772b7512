"""What verbs show, as rich renderables that also read well without colour, and the tables and figures they write."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

import pellucid as pl
from pellucid import atomic
from pellucid.cli.shared.screen import show, show_json
from pellucid.cli.shared.widths import Column, Flow, Grid
from pellucid.errors import InputError, visible
from pellucid.extras import need
from pellucid.schema import LETTERS, Axis, Point
from pellucid.text.batch import pieces_of

BAR_WIDTH = 30
_EIGHTHS = " ▏▎▍▌▋▊▉"
_SHADES = "·░▒▓█"
_COLUMNS = "▁▂▃▄▅▆▇█"

LEGEND = Text(
    "P position, Pq query, Pk key, H head, D d_model, K d_head, M d_mlp\n"
    "norm: length of the vectors along the last axis, on average\n"
    "scores: without those that the causal mask takes out",
    style="dim",
)


def heading(text: str, *, first: bool = False) -> Text:
    """The title of a part, after an empty line unless it is the first."""
    return Text(text if first else f"\n{text}", style="bold cyan")


def token_list(tokens: Sequence[str]) -> Flow:
    """The tokens in reading order, each after its position, in as many columns as fit."""
    return Flow(Text.assemble((f"{i} ", "dim"), (visible(token), "bold")) for i, token in enumerate(tokens))


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of `share` (0 to 1) of the width, to an eighth of a column."""
    whole, eighth = divmod(round(max(0.0, min(share, 1.0)) * width * 8), 8)
    return "█" * whole + (_EIGHTHS[eighth] if eighth else "")


def shade(share: float) -> str:
    """A character that is the darker, the nearer `share` is to 1; a dot below 1/20, and for nan."""
    return _SHADES[min(4, 1 + int(share * 4))] if share >= 0.05 else _SHADES[0]


def spark(counts: Sequence[float]) -> str:
    """Counts as columns of one line, the largest full; what is not 0 shows."""
    largest = max(counts, default=0) or 1
    return "".join(" " if not count else _COLUMNS[min(7, int(8 * count / largest))] for count in counts)


def next_tokens(found: Iterable[NextToken]) -> Grid:
    """The likeliest next tokens, a bar each; a full bar is probability 1."""
    grid = Grid(Column(style="bold"), Column(right=True), Column(style="green"), heading=None)
    for one in found:
        grid.add(visible(one.token), f"{one.probability:.1%}", bar(one.probability))
    return grid


def checkpoints(summaries: Iterable[Summary]) -> Grid:
    """A row for each checkpoint."""
    numbers = [Column(title, right=True) for title in ("mean", "std", "min", "max", "norm")]
    grid = Grid(Column("checkpoint", label=True, style="cyan"), "axes", *numbers)
    for one in summaries:
        grid.add(one.name, one.size, *map(number, (one.mean, one.std, one.min, one.max, one.norm)))
    return grid


def number(value: float) -> str:
    """A number in at most six characters, to three decimals if they fit."""
    if value == 0 or 0.0005 <= abs(value) < 99_999:
        for decimals in (3, 2, 1):
            if len(text := f"{value:z.{decimals}f}") <= 6:
                return text
        return f"{value:.0f}"
    for digits in (1, 0):
        text = f"{value:.{digits}e}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")
        if len(text) <= 6:
            return text
    return text


@dataclass(frozen=True)
class Summary:
    """One checkpoint of a run."""

    name: str  # the checkpoint
    axes: tuple[str, ...]  # what its axes are
    shape: tuple[int, ...]  # how long they are
    dtype: str  # such as "float32"
    # mean, std, min, max: over all numbers; of scores, over those that the causal mask leaves in
    mean: float
    std: float
    min: float
    max: float
    norm: float  # Euclidean length of the vectors along the last axis, averaged over the other axes
    meaning: str  # what the value is, in a few words

    @property
    def size(self) -> str:
        """The axes by letter with their lengths, such as "P12 D256"; the batch is left out, it is one text."""
        pairs = zip(self.axes, self.shape, strict=True)
        return " ".join(f"{LETTERS[Axis(axis)]}{length}" for axis, length in pairs if axis != Axis.BATCH)


def summarize(ckpts: pl.ActivationCkpts) -> list[Summary]:
    """A summary of each captured value, in execution order."""
    return [_summary(ckpts.schema[name], value) for name, value in ckpts.items()]


def _summary(point: Point, value: Tensor) -> Summary:
    numbers = value.double()
    if point.masked:
        masked = value == torch.finfo(value.dtype).min
        counted, vectors = numbers[~masked], numbers.masked_fill(masked, 0.0)
    else:
        counted, vectors = numbers, numbers
    return Summary(
        point.name, tuple(map(str, point.axes)), tuple(value.shape), str(value.dtype).removeprefix("torch."),
        mean=float(counted.mean()), std=float(counted.std(correction=0)),
        min=float(counted.min()), max=float(counted.max()), norm=float(vectors.norm(dim=-1).mean()),
        meaning=point.meaning,
    )  # fmt: skip


@dataclass(frozen=True)
class NextToken:
    """A token that may come next, and how probable the model thinks it."""

    token: str
    id: int
    probability: float


def likeliest(logits: Tensor, tokens: pl.Tokenizer | None, top: int) -> list[NextToken]:
    """The `top` likeliest tokens at one position, whose logits [V] are given, the likeliest first."""
    return most_probable(logits.double().softmax(-1), tokens, top)


def most_probable(probabilities: Tensor, tokens: pl.Tokenizer | None, top: int) -> list[NextToken]:
    """The `top` most probable tokens of a distribution [V]; ids as digits without a tokenizer."""
    best = probabilities.topk(min(top, probabilities.numel()))
    ids = best.indices.tolist()
    found = zip(pieces_of(tokens, ids), ids, best.values.tolist(), strict=True)
    return [NextToken(piece, i, probability) for piece, i, probability in found]


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How a cell begins that spreadsheets compute."""

PANEL = (3.3, 2.5)
"""Inches of one panel of a figure."""


def write_csv(path: Path, table: Any) -> None:
    """Write a table as CSV in which no spreadsheet takes a cell of text for a formula."""
    texts = table.select_dtypes(include=["object", "string"])
    atomic.write_text(path, table.assign(**{name: texts[name].map(_no_formula) for name in texts}).to_csv(index=False))


def _no_formula(cell: Any) -> Any:
    """A cell that begins like a formula, behind an apostrophe, as spreadsheets mark text (OWASP, CSV injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def require_format(path: Path | None) -> None:
    """Check that a figure's name ends in a format that can be written, if a figure is wanted."""
    if path is None:
        return
    kinds = set(need("matplotlib.figure", "--figure").Figure().canvas.get_supported_filetypes())
    if shutil.which(need("matplotlib", "--figure").rcParams["pgf.texsystem"]) is None:
        kinds.discard("pgf")  # which TeX draws
    if path.suffix.lstrip(".").lower() not in kinds:
        raise InputError(
            f"--figure {path}: it ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(sorted(kinds))}.",
            code="figure-format",
            remedy="Name a file that ends in .svg, .pdf or .png.",
        )


def panels(columns: int) -> tuple[Any, Any]:
    """Make a figure of several panels side by side; returns it and its axes."""
    size = (PANEL[0] * columns, PANEL[1])
    return need("matplotlib.pyplot", "--figure").subplots(1, columns, figsize=size, layout="constrained")


def write_figure(path: Path, draw: Callable[[], Any]) -> None:
    """Write a figure that is drawn in the light theme."""
    pyplot = need("matplotlib.pyplot", "--figure")
    with pl.plot.theme("light"):
        figure = draw()
        atomic.write_file(path, lambda part: figure.savefig(part, format=path.suffix[1:].lower()))
        pyplot.close(figure)


def deliver(
    wish: Any,
    result: Mapping[str, Any],
    show_it: Callable[[], None],
    table: Callable[[], Any],
    draw: Callable[[], Any],
) -> None:
    """Write the table and the figure that were asked for, and show the result: in JSON, or by `show_it`."""
    if wish.csv is not None:
        write_csv(wish.csv, table())
    if wish.figure is not None:
        write_figure(wish.figure, draw)
    if wish.as_json:
        show_json(result)
        return
    show_it()
    for path in wish.outputs().values():
        if path is not None:
            show(Text.assemble("\nwritten: ", (str(path), "bold")))
