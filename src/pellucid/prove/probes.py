"""Ids of our own that show more of a program than its caller's do, and what of its inputs a comparison covers.

A verdict holds for what was run. So once nothing differs on the caller's ids, others run: two rows shorter than the
context, which show what runs over the batch, with the ids that the program itself names; rows of few tokens; every id
and every position, if the model is small enough; and else every id and every position as far as the first block, and
every position of one text through as many blocks as are quick.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.check import attribute
from pellucid.family.network import Run
from pellucid.numerics.dense import has_memory
from pellucid.numerics.rounding import BEYOND_ROUNDING, relative_error, same_bits, size_of
from pellucid.prove.about import Reach
from pellucid.prove.causes import COARSE
from pellucid.prove.copies import quietly
from pellucid.prove.points import LOGITS
from pellucid.prove.program import DOUBLE, Conditions, Glass
from pellucid.prove.trial import MARGIN, Trial, step_of

SHORT = 3
"""Up to how many tokens every length is tried: two or three are what people look at by hand."""

LONGEST = 64
"""Positions of a probe: more than windows and blocks of attention that are met in small programs, and still quick."""

PRODUCTS = 3_000_000_000
"""Multiplications that a run of every id and position may take: about a tenth of a second."""

HALVES_SLOWER = 50
"""How many times as long products in two bytes may take on a processor: those of float16 take 70 times as long here."""

DEEP = 10_000_000_000
"""Multiplications that a text as long as the context may take in the first blocks: one block of GPT-2 small."""

VALUES = 20_000_000
"""Values that such a run may keep: 160 MB in float64."""

FEW = 16
"""Up to how many numbers a list or a tensor may name ids; longer ones are tables."""

AT_ONCE = 1 << 13
"""Ids whose embeddings are computed at once."""


@dataclass
class Probes:
    """The batches that a comparison runs beside the caller's.

    Attributes:
        ran: What was run, the caller's ids first.
    """

    ids: Tensor  # the caller's, [B, P]
    sizes: Mapping[str, int]  # the reference's, by axis
    positions: int  # how many positions both sides have
    weights: int  # how many weights the reference has
    in_blocks: int  # how many of them are in its blocks
    named: Sequence[int] = ()  # ids that the program names
    # whether products are taken in two bytes on a processor, which for float16 hardly any does quickly
    in_halves: bool = False
    pads: Collection[int] = ()  # ids that either side declares as pads
    lengths: Sequence[int] = ()  # numbers that the program's code names, which may be lengths

    def __post_init__(self) -> None:
        self.ran, self.vocabulary = [self.ids], self.sizes["d_vocab"]

    def batches(self) -> list[Tensor]:
        """What to run, [B, P] each."""
        return [self.mixed(), *self._whole()]

    def mixed(self) -> Tensor:
        """Two rows, with the ids that the program names: as long as windows are, but shorter than the context.

        In rows as long as it is, positions that run on from one row to the next, modulo the context, would be right.
        """
        seen = self.ids.size(0) > 1 and self.ids.size(1) >= min(self.positions, LONGEST)  # what runs over rows, and far
        length = min(len(self.named) + 4 if seen else LONGEST, LONGEST, max(self.positions - 1, 1))
        drawn = torch.randint(self.vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
        inside = length // 2  # at an edge, an id that ends texts would be taken for a pad
        places = [place for place in range(1, length - 1) if place != inside]
        for place, named in zip(places, self.named, strict=False):
            drawn[1, place] = named
        drawn[0, inside], drawn[1, inside] = 0, self.vocabulary - 1
        drawn[0, inside + 1 : min(inside + 4, length - 1)] = drawn[0, inside - 1]  # a token that comes again and again
        return drawn.to(self.ids)

    def short(self) -> list[tuple[Tensor, list[int]]]:
        """Rows [B, P], and at how many of their first tokens to look: 1 to 3, and as many as the program names.

        The first rows are equal and begin with 0; the others begin with the ids that the program names. A declared pad
        begins none of them. The lengths that are named come to no more tokens than a long probe has.
        """
        drawn = self.every(1, LONGEST)[0].cpu()
        begins = [token for token in (0, *self.named, *drawn.tolist()) if token not in self.pads]
        begins = torch.tensor([begins[0], *begins[: max(min(len(self.named), FEW) + 1, SHORT)]])
        rows = torch.cat([begins[:, None], drawn[:2].expand(len(begins), 2)], 1)[:, : self.positions].to(self.ids)
        lengths = [n for n in self.lengths if SHORT < n < min(self.positions, LONGEST)]
        named = [n for place, n in enumerate(lengths) if sum(lengths[: place + 1]) <= LONGEST]
        return [(rows, list(range(1, rows.size(1) + 1))), *([(self.every(1, max(named)), named)] if named else [])]

    def _whole(self) -> Iterator[Tensor]:
        """Every id and every position, or as many of them as memory and time allow; nothing if these are few."""
        length = self.positions
        while length > LONGEST and not self._affordable(1, length):
            length //= 2
        rows = -(-self.vocabulary // length)
        while rows and not self._affordable(rows, length):
            rows //= 2
        if rows and (length > LONGEST or length == self.positions):
            yield self.every(rows, length)

    def _affordable(self, rows: int, length: int) -> bool:
        layers, width = self.sizes["layer"], self.sizes["d_model"]
        products = rows * length * (self.weights + 2 * layers * length * width)
        seen = layers * (20 * width + 2 * self.sizes["head"] * length)
        most = PRODUCTS // HALVES_SLOWER if self.in_halves else PRODUCTS
        return products <= most and rows * length * (self.vocabulary + seen) <= VALUES

    def every(self, rows: int, length: int) -> Tensor:
        """Ids in an order of their own [rows, length], from the first again if there are fewer.

        There is a row more if there would be as many as positions: which axis is which could not be seen.
        """
        rows += 1 < rows == length
        order = torch.randperm(self.vocabulary, generator=torch.Generator().manual_seed(1))
        return order[torch.arange(rows * length) % self.vocabulary].view(rows, length).to(self.ids)

    def deep(self) -> tuple[int, int]:
        """How many blocks a long text runs through, and how long it is: as long as the context if that is quick."""
        layers, length = self.sizes["layer"], self.positions
        while length > self.longest:
            products = length * (self.in_blocks // layers + 2 * length * self.sizes["d_model"]) if layers else DEEP + 1
            if products <= DEEP:
                return min(DEEP // products, layers), length
            length //= 2
        return 0, 0

    @property
    def longest(self) -> int:
        """The length of the longest rows that ran."""
        return max(batch.size(1) for batch in self.ran)

    def reach(self, beyond: str = "") -> Reach:
        """What the batches that ran come to; `beyond` says what else was compared."""
        ids = torch.cat([batch.flatten() for batch in self.ran]).unique().numel()
        return Reach((ids, self.vocabulary), (min(self.longest, self.positions), self.positions), beyond)


@dataclass
class Probing:
    """Runs of two programs beside a trial of them."""

    trial: Trial
    probes: Probes
    reach: Reach = field(default_factory=Reach)  # what of the model's inputs was compared; known after `trials`
    notes: list[str] = field(default_factory=list)  # what could not be run

    def trials(self) -> list[Trial]:
        """Trials on the probes, without those whose logits are equal to the bit."""
        tried = [self._on(ids) for ids in self.probes.batches()]
        runs_others = len(self.probes.ran) > 1
        tried += [self._on(ids) for ids in self._short()] if runs_others else []
        self.reach = self.probes.reach()
        if self.reach.partial and runs_others:
            odd = self._entrance()
            odd = self._deep() if odd is None else odd
            tried += [] if odd is None else [self._on(odd)]
        return [made for made in tried if made is not None]

    def _short(self) -> Iterator[Tensor]:
        """Short rows of which the program's logits may be off by more than rounding; a trial says whether they are."""
        observed = relative_error(self.trial.single.free[LOGITS], self.trial.single.expected[LOGITS])
        limit = min(COARSE, MARGIN * max(step_of(self.trial.plain.dtype), observed))
        for rows, lengths in self.probes.short():
            # What a row begins with has these logits, too: no query sees later keys.
            expected = Glass(self.trial.reference).logits(rows)
            for length in lengths:
                ids = rows[:, :length] if length == rows.size(1) else rows[: length + 1, :length]  # never square
                with contextlib.suppress(Exception):  # whatever a foreign forward raises: traced ones take one length
                    if relative_error(self.trial.program.plain(ids), expected[: len(ids), :length]) > limit:
                        yield ids

    def _entrance(self) -> Tensor | None:
        """A text at whose end what enters the first block differs, of every id and position; None if there is none."""
        length = min(self.probes.positions, AT_ONCE)
        what = "ids and positions" if length == self.probes.positions else "ids"
        ids = self.probes.every(-(-self.probes.vocabulary // length), length)
        return self._beginning(ids, 0, f"for all {what} what enters the first block")

    def _deep(self) -> Tensor | None:
        """A text longer than those that ran, at whose end what leaves one of the first blocks differs; None if none."""
        blocks, length = self.probes.deep()
        if not blocks:
            return None
        of = len(self.trial.reference.schema.blocks)
        words = f"at {length:,} positions what leaves the first {blocks} of {of} blocks"
        return self._beginning(self.probes.every(1, length), blocks, words)

    def _beginning(self, ids: Tensor, end: int, words: str) -> Tensor | None:
        """The first of these texts at whose end what would enter a block differs, and its reach in words."""
        shown, names = self.trial.double.points(), (f"blocks.{end}.resid_pre", f"blocks.{end - 1}.resid_post")
        places = [p for site in self.trial.program.sites for p in site.points if self.trial.double.ckpt(p) in names]
        point = next((p for p in places if p in shown or self.trial.double.certain), None)
        if point is None:
            return None
        try:
            odd = self._first_wrong(ids, point, end)
        except Exception as error:  # whatever a foreign forward raises
            self.notes.append(f"{words} could not be compared: {error_words(error)}")
            return None
        before = self.reach.beyond
        self.reach = self.probes.reach(f"{before}; {words}" if before else words)
        return odd

    def _first_wrong(self, ids: Tensor, point: str, end: int) -> Tensor | None:
        """The first text [1, P] of these at whose end the two differ by more than rounding; None if they do not."""
        rounds = bool(end) and (self.probes.in_halves or not self.trial.bit_equal)  # no run tells that bits are equal
        for part in ids.split(max(AT_ONCE // ids.size(1), 1)):
            if not rounds and same_bits(*self._both(part, point, end, Conditions())):
                continue
            given, expected = self._both(part, point, end, DOUBLE)
            gap = ~((given - expected).abs() <= BEYOND_ROUNDING * size_of(expected)).all(-1)
            if bool(gap.any()):
                row, place = gap.nonzero()[0].tolist()
                return part[row : row + 1, : place + 1]
        return None

    def _both(self, ids: Tensor, point: str, end: int, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """What would enter block `end` of the program, where it shows it, and of the reference."""
        given = self.trial.program.until(point, ids, conditions)
        assert given is not None  # it was shown when the caller's ids ran
        reference = self.trial.precise if conditions.double else self.trial.reference
        places = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        with quietly(reference, double=conditions.double):
            return given, reference(Run(ids, places, end=end))

    def _on(self, ids: Tensor) -> Trial | None:
        """A trial like another on other ids; None if it shows nothing, since its logits are equal to the bit."""
        try:
            made = self.trial.on(ids)
            finished = None if made.bit_equal else made.finish()
        except Exception as error:  # whatever a foreign forward raises
            self.notes.append(f"{probe_words(ids)} could not be run, so that the verdict does not cover it: "
                              f"{error_words(error)}")  # fmt: skip
            return None
        self.probes.ran.append(ids)
        return finished if finished is None or self.trial.point is not None else finished.shortened()


def probe_words(ids: Tensor) -> str:
    """What a batch is called."""
    return f"a probe of {ids.size(0)} x {ids.size(1)} ids"


def error_words(error: Exception) -> str:
    """What a program raised, in a line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def named_ids(module: nn.Module, vocabulary: int, *, in_code: bool = False) -> list[int]:
    """The whole numbers that a program's own code and attributes hold: it may treat ids of these numbers otherwise.

    Of torch's and transformers' classes, the attributes alone are looked at, such as `padding_idx`. With `in_code`,
    nothing but code is.
    """
    seen: set[int] = set()
    numbers: dict[int, None] = {}
    for child in module.modules():
        for kind in type(child).__mro__:
            for value in vars(kind).values() if not _is_library(kind.__module__) else ():
                numbers |= dict.fromkeys(_numbers(value, seen))
    for child in module.modules():
        config = attribute(child, "config")
        for value in (*vars(child).values(), *getattr(config, "__dict__", {}).values(), *child.buffers(recurse=False)):
            if not in_code or isinstance(value, (types.FunctionType, types.MethodType)):
                numbers |= dict.fromkeys(_numbers(value, seen))
    return [number for number in numbers if 0 < number < vocabulary]


def _is_library(name: str | None) -> bool:
    return (name or "").partition(".")[0] in ("torch", "transformers", "builtins", "pellucid", "math", "numpy")


def _numbers(value: Any, seen: set[int]) -> Iterator[int]:
    """The whole numbers in a value, in a function's code, and in what that code names."""
    if type(value) is int:
        yield value
    elif isinstance(value, Tensor):
        whole = value.dtype in (torch.int64, torch.int32) and has_memory(value) and not value.is_meta
        if whole and value.numel() <= FEW:
            yield from value.flatten().tolist()
    elif isinstance(value, types.CodeType):
        for constant in value.co_consts:
            yield from _numbers(constant, seen)
    elif isinstance(value, types.MethodType):
        yield from _numbers(value.__func__, seen)
    elif id(value) in seen:
        return
    elif isinstance(value, (tuple, list, set, frozenset)) and len(value) <= FEW:
        seen.add(id(value))
        for item in cast(Iterable[Any], value):
            yield from _numbers(item, seen)
    elif isinstance(value, types.FunctionType) and not _is_library(value.__module__):
        seen.add(id(value))
        yield from _numbers(value.__code__, seen)
        for name in value.__code__.co_names:
            yield from _numbers(value.__globals__.get(name), seen)
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # of a variable that was deleted
                yield from _numbers(cell.cell_contents, seen)
