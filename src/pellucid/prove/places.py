"""What a report says of the place where two programs first differ: a parameter, a checkpoint or the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pellucid.axes import POSITIONS
from pellucid.numerics.rounding import BEYOND_ROUNDING, not_alike, relative_error, shown_part, size_of
from pellucid.prove.alignment import Alignment
from pellucid.prove.causes import Cause
from pellucid.prove.points import LOGITS, ckpt_of, in_order
from pellucid.prove.report import Divergence, describe_difference
from pellucid.prove.runs import Runs, same_bits
from pellucid.prove.units import HEADS
from pellucid.schema import Schema


def first_changed(alignment: Alignment, units: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Divergence | None:
    """The first parameter that is not equal to the bit; of those that share its tensor, the ones that differ."""
    changed = next((match for match in alignment.matches if not match.comparison.bit_equal), None)
    if changed is None:
        return None
    undone = changed.transform.undo(others[changed.name].detach(), changed.group, changed.comparison.shape)
    differing = [
        unit
        for unit, part in changed.group.split(undone).items()
        if not same_bits(changed.group.of_head(units[unit]), part)
    ]
    head = "" if changed.group.head is None else f"[{changed.group.head}]"
    where = " + ".join(unit + head for unit in differing)
    theirs = "" if changed.name == where else f"{changed.name} "
    return Divergence(where, "parameter", theirs + describe_difference(changed.comparison))


def divergence_at(runs: Runs, point: str, cause: Cause | None) -> Divergence:
    """What a report says of a point that differs."""
    name = runs.ckpt(point)
    expected = runs.expected[name]
    given = runs.forced.get(point)
    if given is None or not runs.is_wrong(runs.forced, point):
        given = runs.free[point]
    expected = shown_part(expected, given)
    words = None if cause is None else f"{cause.words} ({cause.extent})"
    if given.shape != expected.shape:
        return Divergence(name, _what(name), f"shapes {list(expected.shape)} and {list(given.shape)}", words)
    error = relative_error(given, expected)
    detail = f"its own relative error in float64 is {error:.3g}, which is not rounding"
    gap = ~((given - expected).abs() <= BEYOND_ROUNDING * size_of(expected))
    return Divergence(name, _what(name), detail, words, *_places(runs, name, gap))


def not_finite_at(runs: Runs, point: str, *, wrong: bool) -> Divergence:
    """What a report says of a point at which one side only is finite, in the program's own dtype.

    Args:
        runs: In that dtype.
        point: The first such point.
        wrong: Whether float64 shows an error, too, at a later point.
    """
    name = runs.ckpt(point)
    given, expected = runs.free[point], shown_part(runs.expected[name], runs.free[point])
    odd = not_alike(given, expected)
    theirs, ours = _kind(given[odd]), _kind(expected.to(given.device)[odd])
    dtype = str(given.dtype).removeprefix("torch.")
    later = "" if wrong else "; in float64 both agree, so that the arithmetic leaves the range of its dtype"
    detail = f"{theirs} where the reference has {ours}, at {int(odd.sum())} of {odd.numel()} values in {dtype}{later}"
    return Divergence(name, _what(name), detail, None, *_places(runs, name, odd))


def _kind(values: Tensor) -> str:
    kinds = {"NaN": values.isnan(), "infinity": values.isinf(), "finite numbers": values.isfinite()}
    return " and ".join(word for word, where in kinds.items() if bool(where.any()))


def is_before(first: str, second: str, schema: Schema) -> bool:
    """Whether a right program passes one point before another that is not of the same checkpoint."""
    return in_order((first, second), schema)[0] == first and ckpt_of(first, schema) != ckpt_of(second, schema)


def positions_note(runs: Runs) -> list[str]:
    """What a program that leaves out positions leaves unseen."""
    given, expected = runs.free[LOGITS], runs.expected[LOGITS]
    shown, of = given.size(1), expected.size(1)
    if shown >= of:
        return []
    which = "one position, read as the last" if shown == 1 else f"{shown} positions, read as the first"
    return [f"the program gives the logits of {which}: of {of} positions it shows no more"]


def _places(runs: Runs, name: str, gap: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions, and the heads where a checkpoint has some, at which two values differ.

    Args:
        runs: Of which schema the checkpoint is.
        name: The checkpoint.
        gap: Where; of scores and patterns [B, H, Pq, Pk] the positions are those of queries.
    """
    axes = runs.schema.axes.get(name, ("batch", "pos"))
    position = next(place for place, axis in enumerate(axes) if axis in POSITIONS)
    head = next((place for place, axis in enumerate(axes) if axis in HEADS), None)
    return _along(gap, position), () if head is None else _along(gap, head)


def _along(gap: Tensor, axis: int) -> tuple[int, ...]:
    """Where along an axis anything is set."""
    return tuple(gap.transpose(0, axis).flatten(1).any(-1).nonzero().flatten().tolist())


def _what(name: str) -> Literal["checkpoint", "logits"]:
    return "logits" if name == LOGITS else "checkpoint"
