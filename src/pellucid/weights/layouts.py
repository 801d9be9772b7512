"""The layouts of all families: which one tensors have, and our tensors in one of them.

A trainer keeps its model under a name of its own (`model.`, `gpt2.`, `pretrained_model.`, `lm.model.`), and wrappers
add segments in front of names and within them (`h.0._orig_mod.ln_1.weight`). The names of a family's weights are
known, so its prefix is whatever stands in front of them; nobody has to list the trainers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from pellucid.families import FAMILIES, family_of
from pellucid.family import Family
from pellucid.json_config import Config
from pellucid.layout import HEAD, Layout, Place, Shape
from pellucid.schema import Schema

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


def detect(tensors: Mapping[str, Tensor]) -> Layout | None:
    """The layout of tensors under canonical names, or None."""
    return next((layout for family in FAMILIES if (layout := family.layout_of(tensors)) is not None), None)


def our_shapes(schema: Schema) -> dict[str, Shape]:
    """The stored tensors of our model and their shapes; the head's is listed, although a tied model has none."""
    return {**schema.stored, HEAD: schema.shape_of(schema.parameter(HEAD))}


def buffers_among(tensors: Mapping[str, Tensor], config: Config) -> set[str]:
    """The names, as given, of what the layout of these tensors drops; none where it is not known."""
    given = canonical_names(tensors)
    layout = detect({name: tensors[names[0]] for name, names in given.items()})
    shapes = {} if layout is None else layout.buffers_of(config.schema)
    return {names[0] for name, names in given.items() if tuple(tensors[names[0]].shape) == shapes.get(name)}


def from_ours(weights: Mapping[str, Tensor], config: Config, layout: Layout | str = "hf") -> dict[str, Tensor]:
    """Our stored tensors, the head among them only when it is untied, under the names and in the shapes of a layout.

    Theirs are contiguous, and views of ours where nothing had to be rearranged.
    """
    if isinstance(layout, str):
        layout = next(one for one in family_of(config).layouts if one.name == layout)
    schema = config.schema
    shapes = our_shapes(schema)
    rows = [*layout.rows_of(schema), *([] if schema.is_tied else [layout.head])]
    exported: dict[str, Tensor] = {}
    for row in rows:
        tensor = weights[row.ours]
        target = Place(row.ours, shapes[row.ours], tensor.dtype, schema.sizes["head"])
        exported.update(zip(row.theirs, row.transform.from_ours(tensor, target), strict=True))
    return exported
