"""Where a patch goes, and which positions belong together when two texts have unequal lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from pellucid.check import as_whole
from pellucid.errors import InputError, ShapeError, shown
from pellucid.run.model import CkptedTransformer
from pellucid.schema import NEURONS, POSITIONS, Axes, Axis
from pellucid.text.batch import Batch, Inputs


@dataclass(frozen=True)
class Columns:
    """Which columns of some texts take which columns of another run."""

    rows: torch.Tensor  # [N], the text
    into: torch.Tensor  # [N], the column of the base run
    taken: torch.Tensor  # [N], the column of the source

    @property
    def first(self) -> int:
        """The first column of the base run that changes."""
        return int(self.into.min())

    @property
    def in_place(self) -> Columns:
        """The same columns of the base run, from a source that has the base's columns."""
        return replace(self, taken=self.into)


@dataclass(frozen=True)
class Put:
    """A part of one value that is replaced."""

    name: str
    source: Tensor  # what holds the new numbers: the whole value of another run of the same number of texts
    columns: Columns | None = None  # which columns; None for all
    heads: Sequence[int] | None = None  # which heads; None for all
    neurons: Sequence[int] | None = None  # which entries of the last axis; None for all

    def write(self, value: Tensor, axes: Axes, begin: int) -> None:
        """Write the part into a value [B, ...] of a run whose first column is `begin`."""
        _write(value, self.source, [
            (next(i for i, a in enumerate(axes) if a in kinds), list(entries))
            for kinds, entries in (((Axis.HEAD,), self.heads), (NEURONS, self.neurons))
            if entries is not None
        ], self._at(axes, begin))  # fmt: skip

    def _at(self, axes: Axes, begin: int) -> tuple[int, Columns] | None:
        if self.columns is None:
            return None
        axis = next(i for i, a in enumerate(axes) if a in POSITIONS)
        return axis, Columns(self.columns.rows, self.columns.into - begin, self.columns.taken)


def _write(value: Tensor, source: Tensor, parts: list[tuple[int, list[int]]], at: tuple[int, Columns] | None) -> None:
    """Copy a part of `source` into `value`: entries along axes, each run of neighbours at once, at some columns."""
    if parts:
        (axis, entries), *rest = parts
        for first, length in _stretches(entries):
            _write(value.narrow(axis, first, length), source.narrow(axis, first, length), rest, at)
    elif at is None:
        value.copy_(source)
    else:
        axis, columns = at
        given = source.movedim(axis, 1)[columns.rows, columns.taken]
        value.movedim(axis, 1)[columns.rows, columns.into] = given


def _stretches(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First entry and length of each run of neighbours."""
    for _, run in groupby(enumerate(sorted(entries)), lambda pair: pair[1] - pair[0]):
        found = [entry for _, entry in run]
        yield found[0], len(found)


Tokens = tuple[int, ...]
"""Numbers of tokens of one text, from 0."""

_PARTS = "Say which parts belong together: roles={'subject': ('Mary', 'John'), 'end': -1}."


@dataclass(frozen=True)
class Roles:
    """Positions of clean and corrupted texts that play the same part, text by text; `align` makes them.

    Attributes:
        names: What each part is called.
        clean: For each part, the numbers of its tokens in each clean text.
        corrupted: The same in the corrupted texts, as many.
        lengths: Tokens of each clean text, and of each corrupted one.
    """

    names: tuple[str, ...]
    clean: tuple[tuple[Tokens, ...], ...]
    corrupted: tuple[tuple[Tokens, ...], ...]
    lengths: tuple[tuple[int, ...], tuple[int, ...]]

    def turned(self) -> Roles:
        """The same with clean and corrupted exchanged."""
        return replace(self, clean=self.corrupted, corrupted=self.clean, lengths=self.lengths[::-1])

    def columns(self, clean: Batch, corrupted: Batch) -> list[Columns]:
        """For each part, which columns of the corrupted texts take which of the clean ones.

        Raises:
            InputError: If the batches are of other texts.
        """
        lengths = _lengths(clean), _lengths(corrupted)
        if lengths != self.lengths:
            raise _misfit(
                f"align: made for texts of {_counts(self.lengths)} tokens, given texts of {_counts(lengths)}.",
                "Align the very texts that are patched.",
            )
        return [_columns(clean, corrupted, *part) for part in zip(self.clean, self.corrupted, strict=True)]

    def __repr__(self) -> str:
        width = max(len("part"), *map(len, self.names))
        sides = zip(self.names, self.clean, self.corrupted, strict=True)
        rows = [f"{name:<{width}}  {_written(clean)} | {_written(corrupted)}" for name, clean, corrupted in sides]
        return "\n".join([f"{'part':<{width}}  tokens of the clean texts | of the corrupted ones", *rows])


def align(
    model: CkptedTransformer,
    clean: Inputs,
    corrupted: Inputs,
    roles: Mapping[str, Any] | None = None,
) -> Roles:
    """Find which positions of clean and corrupted texts belong together, for texts of unequal length.

    Args:
        model: Whose tokenizer reads the texts.
        clean: One or several texts.
        corrupted: As many.
        roles: A part's name -> where it is in the clean text and where in the corrupted one, as a pair; what is the
            same in both may be given once. Each is the number of a token (negative from the end), a word or phrase
            that occurs once, `("word", 1)` for its second occurrence, or a list with one of these for each text.
            If the two have unequally many tokens, the last ones belong together. If None, tokens that both texts
            share belong together, and those between them if there are as many on both sides.

    Returns:
        Roles, for `align=` of `sweep` and `path`.

    Raises:
        InputError: If a word does not occur exactly once, a token is not there, or the number of texts differs.

    Example:
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> pl.patching.align(model, "Tom had a red ball.", "Sue had a ball.", {"name": ("Tom", "Sue"), "end": -1})
        part  tokens of the clean texts | of the corrupted ones
        name  0 | 1
        end   5 | 5
    """
    batches = model.tokenize(clean), model.tokenize(corrupted)
    if len(batches[0]) != len(batches[1]):
        raise InputError(
            f"align: {len(batches[0])} clean texts and {len(batches[1])} corrupted ones.",
            code="texts-misfit",
            remedy="Give a corrupted text for each clean one.",
        )
    if roles is None:
        names, pairs = _shared(*batches)
    elif not isinstance(roles, Mapping) or not roles:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise _misfit(
            f"align: roles={shown(roles)}, expected the name of each part with where it is.",
            _PARTS,
        )
    else:
        names = tuple(map(str, roles))
        pairs = [_given(name, where, batches) for name, where in roles.items()]
    sides = tuple(tuple(pair[side] for pair in pairs) for side in (0, 1))
    return Roles(names, sides[0], sides[1], (_lengths(batches[0]), _lengths(batches[1])))


def roles_of(given: object, model: CkptedTransformer, clean: Batch, corrupted: Batch) -> Roles | None:
    """What `align=` says of these texts."""
    if given is True:
        return align(model, clean, corrupted)
    if given is None or given is False or isinstance(given, Roles):
        return given or None
    raise _misfit(
        f"align={shown(given)}, expected what pl.patching.align returned.",
        "Give align=pl.patching.align(model, clean, corrupted, roles), or True to pair what both texts share.",
    )


def of_unequal_length(where: str, one: Batch, other: Batch, remedy: str) -> ShapeError:
    """The error that texts of these batches have unequal lengths, with the remedy that fits.

    A name is often one token after a space and several if it begins a text, so texts of one template that begins
    with a name differ in length. A space before each of them mends that, if it does; else there is `remedy`.
    """
    if one.tokenizer is not None:
        texts = [[" " + "".join(pieces) for pieces in batch.strings] for batch in (one, other)]
        counts = [[len(one.tokenizer.encode(text)) for text in side] for side in texts]
        if counts[0] == counts[1]:
            remedy = "Begin each text with a space: a word that begins a text can be more tokens than after a space."
    return ShapeError(
        f"{where}: texts of {_range(one)} tokens and of {_range(other)}: which positions belong together is not known.",
        code="texts-of-unequal-length",
        remedy=remedy,
    )


def _given(name: str, where: Any, batches: tuple[Batch, Batch]) -> tuple[tuple[Tokens, ...], tuple[Tokens, ...]]:
    """The tokens of one part in each text of both batches."""
    is_pair = isinstance(where, tuple) and len(where) == 2 and not _is_occurrence(where)
    sides = where if is_pair else (where, where)
    found: list[list[Tokens]] = []
    for batch, side in zip(batches, sides, strict=True):
        each = side if isinstance(side, list) else [side] * len(batch)
        if len(each) != len(batch):
            raise _misfit(
                f"align: {name!r} has {len(each)} places for {len(batch)} texts.",
                "Give one place, or one for each text.",
            )
        found.append([_place(name, one, pieces) for one, pieces in zip(each, batch.strings, strict=True)])
    shared = [min(len(a), len(b)) for a, b in zip(*found, strict=True)]
    clean, corrupted = (tuple(t[-n:] for t, n in zip(side, shared, strict=True)) for side in found)
    return clean, corrupted


def _is_occurrence(where: tuple[Any, ...]) -> bool:
    return len(where) == 2 and isinstance(where[0], str) and as_whole(where[1]) is not None


def _place(name: str, where: Any, pieces: Sequence[str]) -> Tokens:
    """The tokens of one place in one text."""
    number = as_whole(where)
    if number is not None:
        if not -len(pieces) <= number < len(pieces):
            raise _misfit(
                f"align: {name!r} is token {number} of a text of {len(pieces)}.",
                "Give a token that is there; negative numbers count from the end.",
            )
        return (number % len(pieces),)
    word, occurrence = where if isinstance(where, tuple) and _is_occurrence(where) else (where, None)
    if not isinstance(word, str) or not word:
        raise _misfit(
            f"align: {name!r} is at {shown(where)}, expected a token's number, a word, or ('word', 1).",
            "Give (where it is in the clean text, where it is in the corrupted one).",
        )
    text = "".join(pieces)
    starts = [at for at in range(len(text)) if text.startswith(word, at)]
    if not starts or (occurrence is None and len(starts) > 1) or not 0 <= (occurrence or 0) < len(starts):
        raise _misfit(
            f"align: {shown(name)} is {shown(word)}, which occurs {len(starts)} times in {shown(text)}.",
            f"Say which occurrence is meant, from 0: ({word!r}, 0)." if starts else "Give a word of the text.",
        )
    first = starts[occurrence or 0]
    ends = torch.tensor([0, *map(len, pieces)], device="cpu").cumsum(0).tolist()
    return tuple(i for i in range(len(pieces)) if ends[i] < first + len(word) and ends[i + 1] > first)


def _shared(clean: Batch, corrupted: Batch) -> tuple[tuple[str, ...], list[Any]]:
    """Tokens that both texts of each pair share, and those between them if there are as many."""
    each = [_matched(a.tolist(), b.tolist()) for a, b in zip(clean.rows(), corrupted.rows(), strict=True)]
    count = min(map(len, each))
    if not count or any(len(found) != count for found in each):
        most = max(map(len, each))
        some = f"the pairs of texts share between {count} and {most} tokens, so positions have no number in common"
        raise _misfit(f"align: {some if most else 'the texts share no token'}.", _PARTS)
    pairs = [tuple(tuple((found[i][side],) for found in each) for side in (0, 1)) for i in range(count)]
    names = tuple(f"{clean.strings[0][each[0][i][0]]!r} {i}" for i in range(count))
    return names, pairs


def _matched(clean: list[int], corrupted: list[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for kind, a, b, c, d in SequenceMatcher(None, clean, corrupted, autojunk=False).get_opcodes():
        if kind == "equal" or b - a == d - c:
            found += zip(range(a, b), range(c, d), strict=True)
    return found


def _columns(clean: Batch, corrupted: Batch, taken: Sequence[Tokens], into: Sequence[Tokens]) -> Columns:
    counts = torch.tensor([len(tokens) for tokens in into], device="cpu")
    rows = torch.arange(len(into), device="cpu").repeat_interleave(counts)
    return Columns(rows, _in_batch(corrupted, into), _in_batch(clean, taken))


def _in_batch(batch: Batch, tokens: Sequence[Tokens]) -> torch.Tensor:
    """The columns of tokens that are given by their numbers in each text."""
    columns = [mask.nonzero().flatten() for mask in batch.mask.cpu()]
    return torch.cat([real[list(numbers)] for real, numbers in zip(columns, tokens, strict=True)])


def _lengths(batch: Batch) -> tuple[int, ...]:
    return tuple(batch.mask.sum(1).tolist())


def _range(batch: Batch) -> str:
    least, most = min(_lengths(batch)), max(_lengths(batch))
    return str(least) if least == most else f"{least} to {most}"


def _written(texts: Sequence[Tokens]) -> str:
    """Numbers of tokens as people write them: "1-2; 3" for two texts."""
    return "; ".join(str(t[0]) if len(t) == 1 else f"{t[0]}-{t[-1]}" for t in texts)


def _counts(lengths: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    return " and ".join(shown(list(side)) for side in lengths)


def _misfit(what: str, remedy: str) -> InputError:
    return InputError(what, code="align-misfit", remedy=remedy)
