"""Which parameter of one model is which of another: a mapping that can be kept, checked again and used to convert.

`pellucid.prove.aligning` finds it from the values.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pellucid import atomic
from pellucid.errors import WeightsError, shown
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import Group, Transform, units_of
from pellucid.transformer import Transformer

FORMAT = "pellucid.alignment/1"
_ROWS = 6
"""Matches that an alignment shows of itself."""


@dataclass(frozen=True)
class Match:
    """One tensor of the other program.

    Attributes:
        name: Its name there; other names of the same memory are in `copies`.
        group: The units that it is made from.
        transform: How.
        shape: Its shape.
        comparison: How its values differ from the units'.
        ambiguous: Other units hold the same values; neighbours decided.
        copies: Other names of the same memory.
    """

    name: str
    group: Group
    transform: Transform
    shape: tuple[int, ...]
    comparison: TensorComparison
    ambiguous: bool = False
    copies: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Alignment:
    """Every tensor of the other program, explained or not.

    Attributes:
        matches: The explained parameters, in the other program's order.
        buffers: Names of tensors that hold no parameter, with what they are.
        unexplained: Names that match nothing.
        missing: Units of the reference that nothing matches.
        unneeded: Units that nothing matches and that change nothing: biases of zeros, gains of ones, one of two ends
            that are untied and equal.
    """

    matches: tuple[Match, ...]
    buffers: Mapping[str, str] = field(default_factory=dict)
    unexplained: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unneeded: tuple[str, ...] = ()

    def __repr__(self) -> str:
        equal = sum(match.comparison.bit_equal for match in self.matches)
        lines = [f"Alignment: {len(self.matches)} parameters are explained, {equal} of them equal to the bit"]
        about = {"unexplained": self.unexplained, "missing": self.missing, "unneeded": self.unneeded}
        lines += [f"  {what}: {shown(list(names))}" for what, names in about.items() if names]
        lines += [
            f"  {match.name} {list(match.shape)} from {', '.join(match.group.units)}" for match in self.matches[:_ROWS]
        ]
        return "\n".join([*lines, *(["  …"] if len(self.matches) > _ROWS else [])])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @property
    def complete(self) -> bool:
        """Whether everything on both sides is explained."""
        return not self.unexplained and not self.missing

    @property
    def bit_equal(self) -> bool:
        """Whether everything is explained and every value is the same."""
        return self.complete and all(match.comparison.bit_equal for match in self.matches)

    def convert(self, units: Mapping[str, Tensor] | Transformer) -> dict[str, Tensor]:
        """A state dict for the other program, made from a model or its units (`pellucid.prove.units.units_of`).

        Buffers are not in it: load it with `strict=False`.

        Raises:
            WeightsError: A unit that the alignment needs is not there.
        """
        given = units_of(units) if isinstance(units, Transformer) else units
        self._require({unit for match in self.matches for unit in match.group.units}, given, "unit")
        out: dict[str, Tensor] = {}
        for match in self.matches:
            made = match.transform.apply(match.group.natural(given), match.group, match.shape).clone()
            out |= dict.fromkeys((match.name, *match.copies), made)
        return out

    def check(self, units: Mapping[str, Tensor] | Transformer, others: Mapping[str, Tensor] | nn.Module) -> Alignment:
        """The same mapping with the differences that it has now; nothing is searched for.

        Args:
            units: The reference, or its units.
            others: The other program, or its state dict.

        Raises:
            WeightsError: A tensor that the alignment names is not there, or has another shape.
        """
        given = units_of(units) if isinstance(units, Transformer) else units
        theirs = others.state_dict(keep_vars=True) if isinstance(others, nn.Module) else others
        self._require({unit for match in self.matches for unit in match.group.units}, given, "unit")
        self._require({name for match in self.matches for name in (match.name, *match.copies)}, theirs, "tensor")
        wrong = [match.name for match in self.matches if tuple(theirs[match.name].shape) != match.shape]
        if wrong:
            raise _misfit(f"other shapes of {', '.join(wrong)}")
        return replace(self, matches=tuple(_measured_again(match, given, theirs) for match in self.matches))

    def _require(self, needed: set[str], given: Mapping[str, Tensor], what: str) -> None:
        if lacking := sorted(needed - set(given)):
            raise _misfit(f"no {what} {', '.join(lacking)}")

    def to_json(self) -> str:
        """The alignment as JSON, without values."""
        rows = [
            {
                "name": match.name, "copies": match.copies, "shape": match.shape, "ambiguous": match.ambiguous,
                "group": asdict(match.group), "transform": asdict(match.transform),
                "comparison": match.comparison.to_dict(),
            }
            for match in self.matches
        ]  # fmt: skip
        about = {
            "buffers": dict(self.buffers), "unexplained": self.unexplained, "missing": self.missing,
            "unneeded": self.unneeded,
        }  # fmt: skip
        return json.dumps({"format": FORMAT, "matches": rows, **about}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        atomic.write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what `save` wrote.

        Raises:
            WeightsError: Another file.
        """
        try:
            about = json.loads(Path(path).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise KeyError(about["format"])
            return cls(
                tuple(_match_from(row) for row in about["matches"]),
                about["buffers"],
                *(tuple(about[name]) for name in ("unexplained", "missing", "unneeded")),
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"{path}: not an alignment ({error!r}).",
                code="alignment-unreadable",
                remedy="Give a file that Alignment.save wrote.",
            ) from error


def _match_from(row: dict[str, Any]) -> Match:
    group, transform, comparison = row["group"], row["transform"], row["comparison"]
    heads = transform["heads"]
    return Match(
        name=str(row["name"]),
        group=Group(tuple(group["units"]), group["head"], int(group["layers"])),
        transform=Transform(tuple(transform["axes"]), None if heads is None else tuple(heads)),
        shape=tuple(row["shape"]),
        comparison=TensorComparison(**(comparison | {"shape": tuple(comparison["shape"])})),
        ambiguous=bool(row["ambiguous"]),
        copies=tuple(row["copies"]),
    )


def _measured_again(match: Match, units: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Match:
    natural = match.group.natural(units)
    found = [
        compare_tensors(natural, match.transform.undo(theirs[name].detach(), match.group, natural.shape))
        for name in (match.name, *match.copies)
    ]
    worst = next((comparison for comparison in found if not comparison.bit_equal), found[0])
    return replace(match, comparison=worst)


def _misfit(what: str) -> WeightsError:
    return WeightsError(
        f"alignment: {what}.",
        code="alignment-units",
        remedy="Give models of the configuration and the class that the alignment was made for.",
    )
