"""Which parameter of one model is which of another: a mapping that can be kept, checked again and used to convert.

`pellucid.prove.aligning` finds it from the values.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pellucid import atomic
from pellucid.check import as_number, as_whole, path_of
from pellucid.errors import WeightsError, shown
from pellucid.family.network import Network
from pellucid.names.calls import named_methods
from pellucid.prove.held import held_in
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import HEAD, N_CTX, Group, GroupTransform, axes_known_of, units_of
from pellucid.weights.manifests import read_json

FORMAT = "pellucid.alignment/1"
EARLIER = {"pos": N_CTX}
"""Axes that earlier files call otherwise."""
ADDED = ("relative", "relative_to_b")
"""What earlier files do not say of a comparison: it is not known where a match is not equal."""
_ROWS = 6
"""Matches that an alignment shows of itself."""

T = TypeVar("T")


@dataclass(frozen=True)
class Match:
    """One tensor of the other program."""

    name: str  # its name there; other names of the same memory are in `copies`
    group: Group  # the units that it is made from
    transform: GroupTransform  # how
    shape: tuple[int, ...]  # its shape
    comparison: TensorComparison  # how its values differ from the units'
    ambiguous: bool = False  # other units hold the same values; neighbours decided
    copies: tuple[str, ...] = ()  # other names of the same memory


@named_methods
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

    def convert(self, units: Mapping[str, Tensor] | Network) -> dict[str, Tensor]:
        """A state dict for the other program, made from a model or its units (`pellucid.prove.units.units_of`).

        Buffers are not in it: load it with `strict=False`.

        Raises:
            WeightsError: If a unit that the alignment needs is not there.
        """
        given = units_of(units) if isinstance(units, Network) else units
        self._require({unit for match in self.matches for unit in match.group.units}, given, "unit")
        out: dict[str, Tensor] = {}
        for match in self.matches:
            with _fitting(match):
                made = match.transform.apply(match.group.natural(given), match.group, match.shape).clone()
            out |= dict.fromkeys((match.name, *match.copies), made)
        return out

    def check(self, units: Mapping[str, Tensor] | Network, others: Mapping[str, Tensor] | nn.Module) -> Alignment:
        """The same mapping with the differences that it has now; nothing is searched for.

        Args:
            units: The reference, or its units.
            others: The other program, or its state dict.

        Raises:
            WeightsError: If a tensor that the alignment names is not there, or has another shape.
        """
        given = units_of(units) if isinstance(units, Network) else units
        theirs = held_in(others)[0] if isinstance(others, nn.Module) else others
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
            NotFoundError: If there is no such file.
            WeightsError: If it is another file.
        """
        about = read_json(path_of(path), WeightsError, "alignment-unreadable")
        try:
            if about["format"] != FORMAT:
                raise ValueError(f"format {shown(about['format'])}, expected {FORMAT}")
            matches = tuple(_match_from(_object(row)) for row in _listed(about["matches"]))
            buffers = {name: _text(what) for name, what in _object(about["buffers"]).items()}
            unexplained, missing, unneeded = (_texts(about[name]) for name in ("unexplained", "missing", "unneeded"))
            return cls(matches, buffers, unexplained, missing, unneeded)
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"{path}: not an alignment ({error!r}).",
                code="alignment-unreadable",
                remedy="Give a file that Alignment.save wrote.",
            ) from error


def _match_from(row: dict[str, Any]) -> Match:
    given, how, comparison = (_object(row[name]) for name in ("group", "transform", "comparison"))
    head = None if given["head"] is None else _count(given["head"])
    units = _texts(given["units"])
    if not units or not axes_known_of(units[0]):
        raise ValueError(f"no such unit: {shown(units)}")
    inner = _texts(given["inner"]) if "inner" in given else axes_known_of(units[0])[0]  # earlier files leave it out
    group = Group(units, inner, head, _count(given["layers"]), _counts(given.get("heads", [])))
    heads = None if how["heads"] is None else _counts(how["heads"])
    transform = GroupTransform(tuple(EARLIER.get(axis, axis) for axis in _texts(how["axes"])), heads)
    _require_sound(group, transform)
    known = {**dict.fromkeys(ADDED, 0.0 if comparison.get("bit_equal") is True else math.nan), **comparison}
    if set(known) != {field.name for field in fields(TensorComparison)}:
        raise ValueError(f"a comparison of {shown(list(comparison))}")
    return Match(
        name=_text(row["name"]),
        group=group,
        transform=transform,
        shape=_counts(row["shape"]),
        comparison=TensorComparison(
            **{name: _number(known[name]) for name in ("fraction", "max_abs", "max_rel", *ADDED)},
            bit_equal=_flag(comparison["bit_equal"]),
            max_ulp=_count(comparison["max_ulp"]),
            shape=_counts(comparison["shape"]),
            dtype=_text(comparison["dtype"]),
        ),
        ambiguous=_flag(row["ambiguous"]),
        copies=_texts(row["copies"]),
    )


def _require_sound(group: Group, transform: GroupTransform) -> None:
    """See that units are some of one kind that exists, and that every axis and head comes once."""
    unknown = [unit for unit in group.units if group.inner not in axes_known_of(unit)]
    if unknown or (group.layers and len(group.units) % group.layers):
        raise ValueError(f"no group of units: {shown(group.units)}")
    if sorted(transform.axes) != sorted(group.axes):
        raise ValueError(f"the axes {shown(transform.axes)}, expected those of {shown(group.units)}")
    heads = transform.heads
    if heads is not None and (HEAD not in group.axes or sorted(heads) != list(range(len(heads)))):
        raise ValueError(f"heads {shown(heads)}, expected each once")


def _object(value: Any) -> dict[str, Any]:
    return _only(dict, value)


def _listed(value: Any) -> list[Any]:
    return _only(list, value)


def _text(value: Any) -> str:
    return _only(str, value)


def _flag(value: Any) -> bool:
    return _only(bool, value)


def _only(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{shown(value)}, expected {kind.__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(text) for text in _listed(value))


def _count(value: Any) -> int:
    found = as_whole(value)
    if found is None or not 0 <= found < 2**63:
        raise ValueError(f"{shown(value)}, expected a whole number of 0 or more")
    return found


def _counts(value: Any) -> tuple[int, ...]:
    return tuple(_count(number) for number in _listed(value))


def _number(value: Any) -> float:
    found = as_number(value)
    if found is None:
        raise ValueError(f"{shown(value)}, expected a number")
    return found


def _measured_again(match: Match, units: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Match:
    with _fitting(match):
        natural = match.group.natural(units)
        undone = [
            match.transform.undo(theirs[name].detach(), match.group, natural.shape)
            for name in (match.name, *match.copies)
        ]
    found = [compare_tensors(natural, tensor) for tensor in undone]
    worst = next((comparison for comparison in found if not comparison.bit_equal), found[0])
    return replace(match, comparison=worst)


@contextmanager
def _fitting(match: Match) -> Generator[None]:
    """Heads, layers and sizes may be those of another configuration, at which torch raises."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as problem:
        raise _misfit(f"{match.name} is not made from {shown(match.group.units)} of this model") from problem


def _misfit(what: str) -> WeightsError:
    return WeightsError(
        f"alignment: {what}.",
        code="alignment-units",
        remedy="Give models of the configuration and the class that the alignment was made for.",
    )
