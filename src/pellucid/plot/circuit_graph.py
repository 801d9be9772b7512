"""A circuit drawn as what it is: parts of a model, from the embeddings up, and who reads whom."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pellucid.errors import InputError
from pellucid.plot.canvas import canvas, extent, longest, remember, say_what
from pellucid.plot.themes import COLUMN, SMALL, Theme, pandas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pellucid.circuits import Circuit

Point = tuple[float, float]

_PART = re.compile(r"blocks\.(\d+)\.(?:attn(?:\.([qkv]))?\[(\d+)\]|mlp)")

STYLES: dict[str, Any] = {"q": "-", "k": "--", "v": ":", "": "-"}
"""How an edge is drawn, by what its receiver reads it as."""

ROW = 24.0
"""Points from one row of parts to the next."""


def circuit(circuit: Circuit, *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw a circuit: a row for the heads of each block, with its MLP above on the right; edges from writer to reader.

    Parts and edges whose scores are positive are drawn in one colour, those whose scores are negative in another; the
    larger its magnitude, the thicker an edge. Edges into queries are solid, into keys dashed, into values dotted.

    Args:
        circuit: What `pl.circuits.Circuit` makes. Keys and values that several heads share stand at their own numbers.
        title: What the figure shows; how many parts there are if None.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes. `pl.plot.data` of them is a table with the score of each node (`node`), or of each edge (`sender`,
        `receiver`).

    Raises:
        InputError: If it has no parts.

    Example:
        >>> import pellucid as pl
        >>> made = pl.circuits.Circuit(edges=[("embeddings", "blocks.0.attn.v[2]"), ("blocks.0.attn[2]", "logits")])
        >>> ax = pl.plot.circuit(made)
        >>> ax.get_title(loc="left"), len(pl.plot.data(ax))
        ('circuit of 2 edges', 2)
    """
    if not isinstance(getattr(circuit, "parts", None), Mapping):
        raise InputError(
            f"plot.circuit: {type(circuit).__name__} given, expected a circuit.",
            code="not-a-circuit",
            remedy="Give pl.circuits.Circuit(nodes=[(5, 3), 'blocks.5.mlp']), for example.",
        )
    if not circuit.parts:
        raise InputError(
            "plot.circuit: the circuit has no parts, expected at least one.",
            code="nothing-to-draw",
            remedy="Keep more of it: a larger n in .top(n), a smaller x in .above(x).",
        )
    ends = {end for edge in circuit.edges for end in edge}
    parts = {_node_of(part) for part in (*circuit.nodes, *ends)}
    places = _places(parts)
    rows = max(y for _, y in places.values()) - min(y for _, y in places.values())
    with canvas(ax, (COLUMN, (ROW * (rows + 1.5) + 44) / 72)) as (axes, look):
        for part, (x, y) in places.items():
            colour = look.ink if circuit.nodes.get(part, 0.0) == 0 else _colour(look, circuit.nodes[part])
            box = {"boxstyle": "round,pad=0.3", "facecolor": look.paper, "edgecolor": colour, "linewidth": 0.9}
            written = axes.text(
                x, y, _label(part), fontsize=SMALL, color=look.ink, ha="center", va="center", bbox=box, zorder=3
            )
            written.set_in_layout(False)
        xs, ys = ([place[axis] for place in places.values()] for axis in (0, 1))
        axes.set(xlim=(min(xs) - 0.6, max(xs) + 0.6), ylim=(min(ys) - 0.6, max(ys) + 0.6), xticks=[])
        axes.plot(xs, ys, linestyle="none")  # so the axes know that there is something on them
        _draw_edges(axes, look, circuit, places)
        blocks = sorted({int(found[1]) for part in parts if (found := _PART.fullmatch(part))})
        axes.set_yticks([2 * block for block in blocks], [str(block) for block in blocks])
        axes.set_ylabel("block")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _legend(axes, look, circuit)
        say_what(axes, title or repr(circuit).partition(":")[0])
        return remember(axes, _table(circuit))


def _node_of(end: str) -> str:
    """The part that an end of an edge belongs to: "blocks.9.attn.q[9]" to "blocks.9.attn[9]"."""
    return re.sub(r"\.attn\.[qkv]\[", ".attn[", end)


def _places(parts: set[str]) -> dict[str, Point]:
    """Where each part stands: heads side by side in a row of their block, its MLP half a step above them."""
    found = {part: _PART.fullmatch(part) for part in parts}
    heads = sorted({int(one[3]) for one in found.values() if one and one[3] is not None})
    blocks = [int(one[1]) for one in found.values() if one]
    column = {head: float(number) for number, head in enumerate(heads)}  # heads that no block has in it take no room
    middle = len(heads) / 2
    low, high = (min(blocks), max(blocks)) if blocks else (0, 0)
    outside = {"embeddings": (middle, 2.0 * low - 1.2), "logits": (middle, 2.0 * high + 2.2)}
    return {
        part: outside[part] if one is None
        else (column[int(one[3])], 2.0 * int(one[1])) if one[3] is not None
        else (float(len(heads)), 2.0 * int(one[1]) + 1)
        for part, one in sorted(found.items())
    }  # fmt: skip


def _label(part: str) -> str:
    found = _PART.fullmatch(part)
    if found is None:
        return part
    return f"{found[1]}.{found[3]}" if found[3] is not None else f"MLP {found[1]}"


def _colour(look: Theme, score: float) -> str:
    return look.marks[0] if score >= 0 else look.marks[1]


def _draw_edges(axes: Axes, look: Theme, circuit: Circuit, places: dict[str, Point]) -> None:
    """Arrows, bent so that edges between the same rows lie beside each other, the thicker the larger their scores."""
    most = max((abs(score) for score in circuit.edges.values()), default=1.0) or 1.0
    width, height = extent(axes)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    step = width / (right - left), height / (high - low)
    for number, ((sender, receiver), score) in enumerate(circuit.edges.items()):
        letter = found[2] or "" if (found := _PART.fullmatch(receiver)) else ""
        begin, end = places[sender], places[_node_of(receiver)]
        angle = math.atan2(step[1] * (end[1] - begin[1]), step[0] * (end[0] - begin[0]))
        thick = 0.6 + 2.2 * abs(score) / most
        long, wide = 3.0 + thick, 1.5 + 0.55 * thick  # of the head, in points
        before, behind = _half(_label(sender), angle), _half(_label(_node_of(receiver)), angle)
        arrow = {
            "color": _colour(look, score), "connectionstyle": f"arc3,rad={0.12 if number % 2 else -0.12}",
            "shrinkA": before, "mutation_scale": 1,
        }  # fmt: skip
        line = {"arrowstyle": "-", "linewidth": thick, "linestyle": STYLES[letter], "shrinkB": behind + 0.7 * long}
        head = {"arrowstyle": f"-|>,head_length={long},head_width={wide}", "linewidth": 0.0, "shrinkB": behind}
        for part in (line, head):  # of a dashed arrow the outline of the head would be dashed, too
            drawn = axes.annotate("", end, begin, arrowprops=arrow | part, zorder=2)
            drawn.set_in_layout(False)  # a layout would take it to be where it was drawn last


def _half(label: str, angle: float) -> float:
    """Points from the middle of a part's box to its edge, in a direction."""
    across, up = abs(math.cos(angle)), abs(math.sin(angle))
    sides = (longest([label]) / 2 + 3) / max(across, 1e-9), 7 / max(up, 1e-9)
    return min(sides)


def _legend(axes: Axes, look: Theme, circuit: Circuit) -> None:
    """Which line is into what, and which colour is which sign, as far as both are there."""
    from matplotlib.lines import Line2D

    letters = {found[2] for _, receiver in circuit.edges if (found := _PART.fullmatch(receiver)) and found[2]}
    entries = [Line2D([], [], color=look.ink, linestyle=STYLES[one], label=one, linewidth=1.2)
               for one in "qkv" if one in letters]  # fmt: skip
    if any(score < 0 for score in circuit.parts.values()):
        entries += [Line2D([], [], color=_colour(look, sign), label=word, linewidth=1.2)
                    for sign, word in ((1, "positive"), (-1, "negative"))]  # fmt: skip
    if entries:
        axes.legend(
            handles=entries, ncols=5, loc="upper left", bbox_to_anchor=(0, 0), frameon=False, borderpad=0.2,
            handlelength=1.6, handletextpad=0.5, columnspacing=1.2,
        )  # fmt: skip


def _table(circuit: Circuit) -> Any:
    rows = [
        {"node": part, "score": score} if isinstance(part, str)
        else {"sender": part[0], "receiver": part[1], "score": score}
        for part, score in circuit.parts.items()
    ]  # fmt: skip
    return pandas().DataFrame(rows)
