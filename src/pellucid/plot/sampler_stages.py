"""The distribution of the next token, as the model gives it and after each stage of a sampler."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.check import require_whole
from pellucid.errors import InputError, shown
from pellucid.html.listing import counted
from pellucid.plot.canvas import LETTER, canvas, keep_above, label_of, longest, remember, say_what
from pellucid.plot.inputs import Numbers, as_numbers
from pellucid.plot.themes import COLUMN, PAGE, SMALL, Theme, pandas
from pellucid.text.batch import pieces_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.text.tokenizer import Tokenizer

ROW = 10.0
"""Points from one token to the next."""

STAGE = 46.0
"""Points: the width of a stage beside whose bars their numbers are written and above which its name is."""

NUMBER = 0.46
"""The part of a stage's width that its longest bar leaves to the numbers."""

TAKEN_OUT = "–"
"""Written in the place of a probability of zero."""


def next_tokens(
    stages: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    most: int = 10,
    drawn: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the likeliest next tokens as bars, in a column for the model and for each stage of a sampler.

    The rows are the tokens that have the largest probability at any stage, in the model's order; the last row counts
    the others and gives what they have together. All columns have one scale; "–" is a token that a stage took out.

    Args:
        stages: What `pl.Sampler(...).explain(logits)` gives, or `Token.stages` of a stream: the name of each stage ->
            probabilities [V], in order.
        tokenizer: `model.tokenizer`, which names the tokens; their ids are shown if None.
        most: How many tokens have rows of their own.
        drawn: The id of the token that was chosen; it has a row whose bars have another colour.
        title: What the figure shows; the stages and the size of the vocabulary if None.
        ax: Axes to draw on; new ones by default, wider for many stages.

    Returns:
        The axes. `pl.plot.data` of them is a table: id (-1 for the others), token, and a column for each stage.

    Raises:
        InputError: If these are no distributions over one vocabulary, or a number is out of range.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> stages = pl.Sampler(temperature=0.7, top_k=4).explain(model.next_token_logits("Lily had a red")[0])
        >>> ax = pl.plot.next_tokens(stages, tokenizer=model.tokenizer, most=3)
        >>> pl.plot.data(ax).round(2)
             id         token  model  temperature  top_k
        0   903          ball   0.17         0.35   0.50
        1  2027          coll   0.10         0.16   0.24
        2  1297         dress   0.08         0.12   0.17
        3    -1  4,093 others   0.65         0.37   0.10
    """
    table = _table(*_read(stages), tokenizer, most, drawn)
    columns = list(table.columns[2:])
    labels = [
        label_of(token).replace("$", r"\$") if i >= 0 else token
        for i, token in zip(table["id"], table["token"], strict=True)
    ]
    beside = longest(labels)
    width = min(max(72 * COLUMN, STAGE * len(columns) + beside + 12), 72 * PAGE)
    names, above, upright = _names(columns, (width - beside - 12) / len(columns))
    with canvas(ax, (width / 72, (ROW * len(table) + above + 22) / 72)) as (axes, look):
        _draw(axes, look, table, drawn)
        for i, name in enumerate(names):
            axes.annotate(
                name, (i, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=SMALL,
                va="bottom", ha="left", rotation=90 * upright,
            )  # fmt: skip
        axes.set(xlim=(-0.03, len(columns)), ylim=(len(table) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(table)), labels, usetex=False)
        axes.tick_params(length=0, labelsize=SMALL)
        axes.spines[["left", "bottom"]].set_visible(False)
        keep_above(axes, above)
        count = len(next(iter(stages.values())))
        about = f"probability of the next token, {(table['id'] >= 0).sum()} of {count:,} shown"
        chosen = table["token"][table["id"] == drawn].map(lambda token: f"{label_of(token)} drawn")
        say_what(axes, about, *chosen, title=title, room=width - beside if ax is None else None)
        return remember(axes, table)


def _read(stages: Any) -> tuple[list[str], Numbers]:
    """The names of the stages, and their probabilities [stage, V]."""
    given = dict(stages) if isinstance(stages, Mapping) else {}
    rows = [as_numbers("plot.next_tokens", probabilities) for probabilities in given.values()]
    alike = len({row.shape for row in rows}) == 1 and rows[0].ndim == 1 and rows[0].size > 0
    if not alike or not all(np.isfinite(row).all() and row.min() >= 0 and abs(row.sum() - 1) < 0.01 for row in rows):
        shapes = shown({name: list(row.shape) for name, row in zip(given, rows, strict=True)})
        what = shapes if isinstance(stages, Mapping) else type(stages).__name__
        raise InputError(
            f"plot.next_tokens: {what} given, expected probabilities [V] of each stage, which sum to 1.",
            code="not-stages",
            remedy="Pass pl.Sampler(temperature=0.8, top_k=50).explain(model.next_token_logits(text)[0]).",
        )
    return [str(name) for name in given], np.stack(rows).astype(np.float64)


def _table(names: list[str], chances: Numbers, tokenizer: Tokenizer | None, most: int, drawn: int | None) -> Any:
    """A row for each token that is shown, and one for all others."""
    where, count = "plot.next_tokens", chances.shape[1]
    most = require_whole(f"{where}: most", most, at_least=1)
    order = np.argsort(-chances.max(0), kind="stable")[: min(most, count)]
    if drawn is not None and require_whole(f"{where}: drawn", drawn, at_most=count - 1) not in order:
        order[-1] = drawn
    order = order[np.argsort(-chances[0, order], kind="stable")]
    ids = order.tolist()
    others = count - len(ids)
    tokens = pieces_of(tokenizer, ids)
    rest = np.delete(chances, order, axis=1).sum(1)  # not 1 - the sum of those shown, whose rounding looks like a rest
    values = np.concatenate([chances[:, order], rest[:, None]], axis=1)
    last = counted(others, "other")
    table = pandas().DataFrame({"id": [*ids, -1], "token": [*tokens, last], **dict(zip(names, values, strict=True))})
    return table if others else table[:-1]


def _names(columns: list[str], width: float) -> tuple[list[str], float, bool]:
    """What stands above the columns, how many points high that is, and whether it stands upright for want of width."""
    plain = [name.replace("_", " ") for name in columns]
    letters = int(width / (0.9 * LETTER * SMALL))
    lines = [textwrap.wrap(name, max(letters, 1), break_long_words=False) for name in plain]
    if max(len(line) for name in lines for line in name) > letters:
        return plain, longest(plain) + 2, True
    return ["\n".join(name) for name in lines], SMALL * 1.25 * max(map(len, lines)) + 2, False


def _draw(axes: Axes, look: Theme, table: Any, drawn: int | None) -> None:
    """Bars from the left of each column; the others, who may be far more, are numbers alone."""
    shown = (table["id"] >= 0).to_numpy()
    most = float(table.iloc[:, 2:][shown].to_numpy().max()) or 1.0
    colours = [look.marks[1] if i == drawn else look.marks[0] for i in table["id"]]
    for i, name in enumerate(table.columns[2:]):
        values = table[name].to_numpy()
        lengths = values * shown * (1 - NUMBER) / most
        axes.barh(range(len(table)), lengths, left=i, height=0.7, color=colours)
        for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
            text = TAKEN_OUT if value <= 0 else f"{value:.0%}" if value >= 0.005 else "<1%"
            axes.annotate(text, (i + length, row), (2, 0), textcoords="offset points", fontsize=SMALL, va="center")
        if i:
            axes.axvline(i - 0.03, color=look.soft, linewidth=0.4)
