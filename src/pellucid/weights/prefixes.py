"""Names without what was put around the model: wrappers of trainers and compilers, and one common prefix.

A trainer keeps its model under a name of its own (`model.`, `gpt2.`, `pretrained_model.`, `lm.model.`), and wrappers
add segments in front of names and within them (`h.0._orig_mod.ln_1.weight`). The names of a family's weights are
known, so its prefix is whatever stands in front of them; nobody has to list the trainers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from pellucid.families import FAMILIES
from pellucid.family import Family

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_\w*mod(?:ule)?|base_layer)\.")
"""DDP, DataParallel and DeepSpeed; `_orig_mod` of torch.compile, `_fsdp_wrapped_module`, and so on; PEFT."""

_OLD = {"gamma": "weight", "beta": "bias"}
_OLD_NORM = re.compile(r"((?:^|\.)ln_(?:1|2|f)\.)(gamma|beta)$")
"""TensorFlow's names for a LayerNorm's gain and bias, in weights that were converted long ago."""

_ORDINARY = ("norm.", "rotary_emb.")
"""Names that programs of all kinds use: one of a family's only behind the family's own prefix."""


@dataclass(frozen=True)
class _Words:
    """The names of a family's weights."""

    prefix: str  # what transformers puts in front of them where a model has a head
    below: re.Pattern[str]  # the beginnings of names below the prefix
    weight: re.Pattern[str]  # a weight's name with whatever stands in front of it, which is the first group
    known: re.Pattern[str]  # the same of weights and buffers

    @staticmethod
    def of(family: Family) -> _Words:
        """The names in a family's layouts."""
        prefix = family.layouts[0].prefix
        weights = [name for layout in family.layouts for row in layout.rows for name in row.theirs]
        buffers = [buffer.name for layout in family.layouts for buffer in layout.buffers]
        below = (name.removeprefix(prefix) for row in family.layouts[0].rows for name in row.theirs)
        starts = dict.fromkeys(re.sub(r"(\{i\}|^[^.]*)\..*", r"\1.", name) for name in below)
        patterns = (re.compile(_any(starts)), _ending(weights, prefix), _ending([*weights, *buffers], prefix))
        return _Words(prefix, *patterns)


def _ending(names: Iterable[str], prefix: str) -> re.Pattern[str]:
    """A pattern of whatever ends with one of these names, perhaps without the prefix; the first group stands before."""
    bare = dict.fromkeys(name.removeprefix(prefix) for name in names if "." in name)
    own, ordinary = ([n for n in bare if n.startswith(_ORDINARY) is is_ordinary] for is_ordinary in (False, True))
    front = re.escape(prefix)
    more = f"|{front}(?:{_any(ordinary)})" if ordinary else ""
    return re.compile(rf"((?:[^.]+\.)*?)(?:(?:{front})?(?:{_any(own)}){more})")


def _any(names: Iterable[str]) -> str:
    """A pattern of any of these names, in any block."""
    return "|".join(re.escape(name).replace(r"\{i\}", r"\d+") for name in names)


@cache
def _words() -> tuple[_Words, ...]:
    return tuple(map(_Words.of, FAMILIES))


@cache
def endings(ours: str) -> tuple[str, ...]:
    """Return what transformers' names of the embedding or of the head end with, in every family."""
    layouts = (one for family in FAMILIES for one in (family.layouts[0], family.in_transformers.files) if one)
    rows = ((layout, row) for layout in layouts for row in (*layout.rows, layout.head))
    return tuple(dict.fromkeys(row.theirs[0].removeprefix(layout.prefix) for layout, row in rows if row.ours == ours))


_LONGEST = 400
"""Characters; a longer name is no weight of a model."""


def unwrapped(name: str) -> str:
    """A name without the segments of wrappers, and with today's names of a LayerNorm's parameters."""
    if len(name) > _LONGEST:
        return name
    return _OLD_NORM.sub(lambda found: found[1] + _OLD[found[2]], _WRAPPERS.sub("", name))


def prefixes_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What stands in front of a family's weights -> each of them -> the name given; several for several models."""
    return _found(names)[1]


def _found(names: Iterable[str]) -> tuple[_Words, dict[str, dict[str, str]]]:
    """The family that most of the names are of, and its weights by what stands in front of them."""
    short = {name: unwrapped(name) for name in names if len(name) <= _LONGEST}
    found: list[tuple[_Words, dict[str, dict[str, str]]]] = []
    for words in _words():
        models: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, plain in short.items():
            match = words.weight.fullmatch(plain)
            if match is not None:
                models[match[1]][_prefixed(plain.removeprefix(match[1]), words)] = name
        found.append((words, dict(models)))
    return max(found, key=lambda one: sum(map(len, one[1].values())))


def canonical_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Names as transformers has them, with its prefix and without wrappers and others' prefixes -> the names given.

    Of several models' weights none is chosen: their prefixes stay.
    """
    names = list(names)
    words, found = _found(names)
    prefix = next(iter(found)) if len(found) == 1 else ""
    canonical: dict[str, list[str]] = {}
    for name in names:
        canonical.setdefault(_prefixed(unwrapped(name).removeprefix(prefix), words), []).append(name)
    return canonical


def _prefixed(name: str, words: _Words) -> str:
    return f"{words.prefix}{name}" if words.below.match(name) else name


def prefixed(name: str, family: Family) -> str:
    """A name with transformers' prefix, which a model without a head does not write."""
    return _prefixed(name, _words()[FAMILIES.index(family)])


def without_weight(name: str) -> str:
    """What stands in front of a weight's or buffer's name; the whole name of anything else."""
    short = unwrapped(name)
    found = (words.known.fullmatch(short) for words in _words())
    return next((match[1] for match in found if match is not None), name)


def beside(names: Iterable[str]) -> set[str]:
    """The names that do not lie under the one prefix of the model's weights; none where there is no prefix."""
    names = list(names)
    found = prefixes_of(names)
    prefix = next(iter(found)) if len(found) == 1 else ""
    return {name for name in names if not unwrapped(name).startswith((prefix, "lm_head."))}
