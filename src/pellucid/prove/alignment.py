"""Which parameter of one model is which of another, found from the values and not from the names.

A reference model's parameters are units with named axes. Every tensor of the other program is matched to a
group of units by the fingerprint of its values, and the transform (axes, heads, parts) is then found and checked
on every value. Tensors that match nothing exactly are matched to the group that they are closest to, and
reported with how they differ; equal-valued ones are told apart by their neighbours and marked ambiguous.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import WeightsError
from pellucid.prove.fingerprint import Fingerprint, fingerprint, total
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import HEAD, Group, Transform, groups_of, orders
from pellucid.weights import files

SAMPLE = 509
"""How many values decide whether a transform is worth checking on all of them; a prime, so that strides vary."""

NEAR = 0.5
"""Relative distance on the sample below which two tensors count as versions of one another."""


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


@dataclass(frozen=True)
class Alignment:
    """Every tensor of the other program, explained or not.

    Attributes:
        matches: The explained parameters, in the other program's order.
        buffers: Names of tensors that hold no parameter, with what they are.
        unexplained: Names that match nothing.
        missing: Units of the reference that nothing matches.
    """

    matches: tuple[Match, ...]
    buffers: Mapping[str, str] = field(default_factory=dict)
    unexplained: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything on both sides is explained."""
        return not self.unexplained and not self.missing

    @property
    def bit_equal(self) -> bool:
        """Whether everything is explained and every value is the same."""
        return self.complete and all(match.comparison.bit_equal for match in self.matches)

    def convert(self, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict for the other program, made from a model's units (`pellucid.prove.units.units_of`).

        Raises:
            WeightsError: A unit that the alignment needs is not there.
        """
        needed = {unit for match in self.matches for unit in match.group.units}
        if lacking := sorted(needed - set(units)):
            raise WeightsError(
                f"convert: no unit {', '.join(lacking)}.",
                code="alignment-units",
                remedy="Give the units of a model of the same configuration.",
            )
        out: dict[str, Tensor] = {}
        for match in self.matches:
            made = match.transform.apply(match.group.natural(units), match.group, match.shape).clone()
            out |= dict.fromkeys((match.name, *match.copies), made)
        return out

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
        about = {"buffers": dict(self.buffers), "unexplained": self.unexplained, "missing": self.missing}
        return json.dumps({"format": "pellucid.alignment/1", "matches": rows, **about}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        text = self.to_json()
        files.write_folder(Path(path).parent, {Path(path).name: lambda part: part.write_text(text, encoding="utf-8")})

    @classmethod
    def load(cls, path: str | Path) -> Alignment:
        """Read what `save` wrote.

        Raises:
            WeightsError: Another file.
        """
        try:
            about = json.loads(Path(path).read_text(encoding="utf-8"))
            if about["format"] != "pellucid.alignment/1":
                raise KeyError(about["format"])
            return cls(
                tuple(_match_from(row) for row in about["matches"]),
                about["buffers"], tuple(about["unexplained"]), tuple(about["missing"]),
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


def align(units: Mapping[str, Tensor], others: Mapping[str, Tensor], n_layer: int, n_head: int) -> Alignment:
    """Explain another program's tensors by a reference's units.

    Args:
        units: `units_of` the reference.
        others: The other program's state dict, buffers included; names of one memory are copies of each other.
        n_layer, n_head: The reference's sizes.
    """
    return _Aligner(units, others, n_layer, n_head).run()


class _Aligner:
    def __init__(self, units: Mapping[str, Tensor], others: Mapping[str, Tensor], n_layer: int, n_head: int) -> None:
        dtypes = {tensor.dtype for tensor in [*units.values(), *others.values()] if tensor.is_floating_point()}
        coarse = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        self.units = {name: tensor.to("cpu", coarse) for name, tensor in units.items()}
        self.names, self.others = _by_memory(others, coarse)
        self.groups = list(groups_of(self.units, n_layer, n_head))
        self.by_print: dict[Fingerprint, list[Group]] = defaultdict(list)
        prints = {name: fingerprint(tensor) for name, tensor in self.units.items()}
        heads = {
            name: [fingerprint(head) for head in t]
            for name, t in self.units.items()
            if ".attn." in name and t.dim() > 1
        }
        for group in self.groups:
            parts = [prints[unit] if group.head is None else heads[unit][group.head] for unit in group.units]
            self.by_print[total(parts)].append(group)
        self.taken: set[tuple[str, int | None]] = set()
        self.found: dict[str, Match] = {}

    def run(self) -> Alignment:
        buffers = {name: what for name, tensor in self.others.items() if (what := _buffer(tensor))}
        parameters = {name: tensor for name, tensor in self.others.items() if name not in buffers}
        uncertain: dict[str, list[Group]] = {}
        for name, tensor in parameters.items():
            candidates = self._of_size(self.by_print.get(fingerprint(tensor), []), tensor)
            if len(candidates) == 1:
                self._accept(name, tensor, candidates[0], ambiguous=False)
            elif candidates:
                uncertain[name] = candidates
        for name, candidates in uncertain.items():
            free = [group for group in candidates if not self._overlaps(group)]
            if free:
                best = min(free, key=lambda group: self._unlikeliness(name, group))
                self._accept(name, parameters[name], best, ambiguous=True)
        for free_only in (True, False):  # what is left may be an untied copy of something that is explained already
            for name, tensor in parameters.items():
                if name not in self.found:
                    self._nearest(name, tensor, free_only=free_only)
        unexplained = tuple(name for name in parameters if name not in self.found)
        covered = {unit for unit, _ in self.taken}
        missing = tuple(unit for unit in self.units if unit not in covered)
        return Alignment(tuple(self.found[n] for n in parameters if n in self.found), buffers, unexplained, missing)

    def _of_size(self, groups: list[Group], tensor: Tensor) -> list[Group]:
        return [group for group in groups if group.natural(self.units).numel() == tensor.numel()]

    def _overlaps(self, group: Group) -> bool:
        heads = [group.head, None] if group.head is not None else None
        return any(u in group.units and (heads is None or h in heads) for u, h in self.taken)

    def _accept(self, name: str, tensor: Tensor, group: Group, *, ambiguous: bool) -> None:
        natural = group.natural(self.units)
        transform, _ = _best_transform(group, natural, tensor)
        if transform is None:
            return
        undone = transform.undo(tensor, group, natural.shape)
        self.found[name] = Match(
            name, group, transform, tuple(tensor.shape), compare_tensors(natural, undone), ambiguous, self.names[name]
        )
        self.taken |= {(unit, group.head) for unit in group.units}

    def _nearest(self, name: str, tensor: Tensor, *, free_only: bool) -> None:
        """Match a tensor that equals nothing to the group of its size that it is closest to."""
        scored: list[tuple[float, float, int]] = []
        for number, group in enumerate(self.groups):
            if (free_only and self._overlaps(group)) or not self._of_size([group], tensor):
                continue
            transform, distance = _best_transform(group, group.natural(self.units), tensor)
            if transform is not None and distance < NEAR:
                scored.append((distance, self._unlikeliness(name, group), number))
        if scored:
            self._accept(name, tensor, self.groups[min(scored)[2]], ambiguous=False)

    def _unlikeliness(self, name: str, group: Group) -> float:
        """How badly a group fits a name's neighbourhood: the modules around it and the order of registration."""
        owner = name.rpartition(".")[0]
        siblings = [m for n, m in self.found.items() if n.rpartition(".")[0] == owner]
        wanted = {_partner(unit) for match in siblings for unit in match.group.units}
        penalty = 0.0 if wanted and set(group.units) <= wanted else 1.0
        block = self._block_around(name)
        penalty += 2.0 if block is not None and not group.units[0].startswith(f"blocks.{block}.") else 0.0
        kind = {"weight": ".w", "bias": ".b"}.get(name.rpartition(".")[2], "")
        penalty += 0.5 if kind and kind[1] != group.units[0].rpartition(".")[2][0].lower() else 0.0
        return penalty

    def _block_around(self, name: str) -> str | None:
        """The block that the nearest certain neighbours belong to, by the longest common prefix of dotted names."""
        parts = name.split(".")
        for length in range(len(parts) - 1, 0, -1):
            prefix = ".".join(parts[:length]) + "."
            blocks = {
                m.group.units[0].split(".")[1]
                for n, m in self.found.items()
                if n.startswith(prefix) and m.group.units[0].startswith("blocks.") and not m.group.layers
            }
            if blocks:
                return blocks.pop() if len(blocks) == 1 else None
        return None


def _by_memory(
    others: Mapping[str, Tensor], coarse: torch.dtype
) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
    """First name of each memory -> its other names, and -> the tensor in the common dtype on the CPU."""
    seen: dict[tuple[object, ...], str] = {}
    copies: dict[str, tuple[str, ...]] = {}
    for name, tensor in others.items():
        key = (
            tensor.untyped_storage().data_ptr() or id(tensor),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
        )
        first = seen.setdefault(key, name)
        copies[first] = (*copies[first], name) if first != name else ()
    kept = {name: others[name].detach() for name in copies}
    return copies, {n: t.to("cpu", coarse) if t.is_floating_point() else t.cpu() for n, t in kept.items()}


def _buffer(tensor: Tensor) -> str:
    """What a tensor is that holds no parameter, or an empty string."""
    if tensor.numel() <= 1:
        return "a single value"
    if tensor.dim() >= 2 and tensor.shape[-1] == tensor.shape[-2] and tensor.numel() == tensor.shape[-1] ** 2:
        square = tensor.reshape(tensor.shape[-2:])
        causal = torch.ones(square.shape, dtype=torch.bool).tril()
        inside, outside = square[causal], square[~causal]
        if (
            outside.numel()
            and bool((inside == inside[0]).all())
            and bool((outside == outside[0]).all())
            and inside[0] != outside[0]
        ):
            return "a causal mask"
    flat = tensor.reshape(-1)
    if not tensor.is_floating_point():
        return "positions" if torch.equal(flat.long(), torch.arange(flat.numel())) else "whole numbers"
    return ""


def _partner(unit: str) -> str:
    """The unit that belongs in the same module: a matrix's bias, a bias's matrix, a gain's shift."""
    path, _, kind = unit.rpartition(".")
    swapped = {"w": "b", "b": "w"}.get(kind) or {"W": "b", "b": "W"}[kind[0]] + kind[1:]
    return f"{path}.{swapped}"


def _best_transform(group: Group, natural: Tensor, tensor: Tensor) -> tuple[Transform | None, float]:
    """The transform under which a tensor is closest to a group on a sample, and the relative distance there."""
    best: tuple[Transform | None, float] = (None, float("inf"))
    where = _sample(natural.shape, group)
    expected = natural[where]  # [H or 1, SAMPLE]
    for axes in orders(group, tensor.shape, natural.shape):
        given = Transform(axes).undo(tensor, group, natural.shape)[where]
        heads, distance = _match_heads(expected, given)
        if distance < best[1]:
            best = Transform(axes, heads), distance
        if distance == 0.0:
            break
    return best


def _sample(shape: torch.Size, group: Group) -> tuple[Tensor, ...]:
    """Index tensors that pick, for every head, the same places along the other axes."""
    at = group.axes.index(HEAD) if HEAD in group.axes else None
    others = [size for axis, size in enumerate(shape) if axis != at]
    total = torch.Size(others).numel()
    places = torch.unravel_index(torch.arange(0, total, max(1, total // SAMPLE)), others) if others else ()
    rest = iter(places)
    head = torch.arange(shape[at])[:, None] if at is not None else torch.zeros(1, 1, dtype=torch.long)
    return tuple(head if axis == at else next(rest)[None, :] for axis in range(len(shape)))


def _match_heads(expected: Tensor, given: Tensor) -> tuple[tuple[int, ...] | None, float]:
    """Which expected head each given head is, if they are all there in another order; and the distance then."""
    expected, given = expected.double(), given.double()
    if torch.equal(expected, given):
        return None, 0.0
    rows = {tuple(row): number for number, row in enumerate(expected.tolist())}
    order = [rows.get(tuple(row)) for row in given.tolist()]
    if len(rows) == len(order) > 1 and None not in order and len(set(order)) == len(order):
        return tuple(number for number in order if number is not None), 0.0
    size = float(expected.norm())
    return None, float((expected - given).norm()) / (size or 1.0)
