"""From evidence to words: the verdict, its notes and the rows of parameters."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.prove.alignment import Alignment
from pellucid.prove.differences import BEYOND_ROUNDING
from pellucid.prove.report import CheckpointRow, Divergence, ParameterRow, Verdict


def verdict_of(
    alignment: Alignment,
    rows: Sequence[CheckpointRow],
    divergence: Divergence | None,
    *,
    may_be_identical: bool,
    rounding_explains: bool,
) -> Verdict:
    """What the evidence comes to.

    Args:
        alignment: Which parameter is which.
        rows: Checkpoints and logits.
        divergence: Where the two first differ by more than rounding.
        may_be_identical: Both sides have one dtype.
        rounding_explains: Whether float64 was measured and showed that every difference is rounding.
    """
    if divergence is not None:
        return "different"
    if not alignment.complete:
        return "inconclusive"
    if all(row.bit_equal for row in rows):
        return "identical" if may_be_identical and not rearranged(alignment) else "equivalent"
    return "equivalent" if rounding_explains else "inconclusive"


def is_rounding(rows: Sequence[CheckpointRow]) -> bool:
    """Whether no error is left in float64."""
    return all(row.fp64 is not None and row.fp64 <= BEYOND_ROUNDING for row in rows)


def rearranged(alignment: Alignment) -> bool:
    """Whether heads stand in another order, so that sums are the same numbers in another order."""
    return any(match.transform.heads is not None for match in alignment.matches)


def rows_of_parameters(alignment: Alignment, *, swapped: bool) -> tuple[ParameterRow, ...]:
    """The alignment's matches as rows; `swapped` where the reference is the second model."""
    rows: list[ParameterRow] = []
    for match in alignment.matches:
        head = "" if match.group.head is None else f"[{match.group.head}]"
        units = " + ".join(unit + head for unit in match.group.units)
        rows.append(
            ParameterRow(
                a=match.name if swapped else units,
                b=units if swapped else match.name,
                transform=match.transform.describe(match.group),
                max_abs=match.comparison.max_abs,
                bit_equal=match.comparison.bit_equal,
                ambiguous=match.ambiguous,
                relative=match.comparison.relative_to_b if swapped else match.comparison.relative,
            )
        )
    return tuple(rows)


def notes_on(alignment: Alignment) -> list[str]:
    """What the reader should know of an alignment."""
    notes: list[str] = []
    if alignment.buffers:
        named = [f"{name} ({what})" for name, what in list(alignment.buffers.items())[:4]]
        more = len(alignment.buffers) - len(named)
        notes.append("no parameters: " + ", ".join(named) + (f" and {more} more" if more else ""))
    for what, names in (
        ("unexplained by the reference", alignment.unexplained),
        ("missing, and the reference has them", alignment.missing),
        ("missing, which changes nothing (zeros, ones, k's bias or the other end again)", alignment.unneeded),
    ):
        if names:
            notes.append(f"{what}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else ""))
    if hidden := [unit for unit in alignment.unneeded if unit.endswith("attn.b_K")]:
        notes.append(f"no text can show {hidden[0]} or whether it is there: softmax ignores q · b_K, which is the same "
                     "for every key")  # fmt: skip
    ends = [match.name for match in alignment.matches if match.group.units == ("embed.W_E",)]
    if len(ends) > 1:
        notes.append(f"ties: {ends[1]} is a tensor of its own, and the reference's head is the embedding; equal now, "
                     "they part when one is trained")  # fmt: skip
    if "unembed.W_U" in alignment.unneeded:
        notes.append("ties: the reference's head is a tensor of its own, and the other program's is its embedding")
    if rearranged(alignment):
        notes.append("heads stand in another order, so that the same numbers are added in another order")
    ambiguous = [match.name for match in alignment.matches if match.ambiguous]
    if ambiguous:
        notes.append(f"equal-valued, told apart by their neighbours: {', '.join(ambiguous[:4])}"
                     + (f" and {len(ambiguous) - 4} more" if len(ambiguous) > 4 else ""))  # fmt: skip
    return notes
