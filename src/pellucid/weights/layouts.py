"""The layouts of all families: which one tensors have, and our tensors in one of them.

A trainer keeps its model under a name of its own (`model.`, `gpt2.`, `pretrained_model.`, `lm.model.`), and wrappers
add segments in front of names and within them (`h.0._orig_mod.ln_1.weight`). The names of a family's weights are
known, so its prefix is whatever stands in front of them; nobody has to list the trainers. They save optimizer, step and
arguments with the model, each under a key of its own choice; the dict of the model is the one that holds such names.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.errors import WeightsError
from pellucid.family.families import FAMILIES, Family, family_of
from pellucid.family.json_config import Config
from pellucid.family.layout import HEAD, Layout, Place, Shape
from pellucid.schema import Schema
from pellucid.weights.leftovers import ADAPTERS, MEGATRON, kind_of, listed
from pellucid.weights.pickles import as_tensor

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

    prefix: str  # what transformers puts in front of them if a model has a head
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
    """The names that do not lie under the one prefix of the model's weights; none if there is no prefix."""
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


def their_shapes(layout: Layout, schema: Schema, *, headless: bool = False) -> dict[str, Shape]:
    """Return the tensors of theirs that a layout may have, and their shapes."""
    ours = our_shapes(schema)
    return {
        name: shape
        for row in (*layout.rows_of(schema), *(() if headless else (layout.head,)))
        for name, shape in zip(
            row.theirs,
            row.transform.shapes(Place(row.ours, ours[row.ours], torch.float32, schema.sizes["head"])),
            strict=True,
        )
    }


def buffers_among(tensors: Mapping[str, Tensor], config: Config) -> set[str]:
    """The names, as given, of what the layout of these tensors drops; none if it is not known."""
    given = canonical_names(tensors)
    layout = detect({name: tensors[names[0]] for name, names in given.items()})
    shapes = {} if layout is None else layout.buffers_of(config.schema)
    return {names[0] for name, names in given.items() if tuple(tensors[names[0]].shape) == shapes.get(name)}


def from_ours(weights: Mapping[str, Tensor], config: Config, layout: Layout | str = "hf") -> dict[str, Tensor]:
    """Our stored tensors, the head among them only when it is untied, under the names and in the shapes of a layout.

    Theirs are contiguous, and views of ours if nothing had to be rearranged.
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


IN_MEMORY = "the mapping given"
"""Where weights lie that were read from no file, for messages."""

_DEEPEST, _MOST = 12, 200_000
"""Levels and entries of nested containers that are looked through; no weights file has more."""

_STATE_OF_TRAINING = ("optim", "grad", "exp_avg", "momentum", "scheduler", "scaler")
"""Beginnings of keys under which the parameters' names stand for something else."""


@dataclass(frozen=True)
class Found:
    """The weights in what was saved."""

    path: tuple[Any, ...]  # the keys that lead to them, or numbers in a list
    tensors: dict[str, Tensor]  # under the names that they have there
    beside: tuple[str, ...] = ()  # the keys of what stands beside them


def find_weights(where: str, content: object) -> Found:
    """The one dict of tensors in what was saved that holds a model."""
    dicts = {path: tensors for path, tensors in _dicts_of(content) if tensors}
    if not dicts:
        raise WeightsError(
            f"{where}: holds {_kind(content)}, expected a dict of tensors.",
            code="pickle-no-state-dict",
            remedy="Give tensors or NumPy's arrays of numbers by their names, such as model.state_dict()."
            if where == IN_MEMORY
            else "Save the state dict: torch.save(model.state_dict(), path)."
            + (_PAIRS if isinstance(content, (list, tuple)) else ""),
        )
    own = {path: tensors for path, tensors in dicts.items() if not _of_training(path)} or dicts
    models = {path: tensors for path, tensors in own.items() if prefixes_of(tensors)}
    joined = {
        ".".join(map(str, (*path, name))): tensor for path, tensors in own.items() for name, tensor in tensors.items()
    }
    if not models and (prefixes_of(joined) or kind_of(joined)):  # a mapping for every module, one within the other
        return Found((), joined)
    if models:
        _refuse_others(where, joined)
        _refuse_several(where, models)
    path, tensors = next(iter(models.items())) if models else max(own.items(), key=lambda item: len(item[1]))
    return Found(path, tensors, tuple(_beside(content, path, tensors)))


_PAIRS = " Pairs of names and tensors make one: pl.load(dict(torch.load(path)), config=...)."


def _kind(content: object) -> str:
    """What was saved, without its numbers."""
    size = f" of {len(cast('list[Any]', content))}" if isinstance(content, (Mapping, list, tuple)) else ""
    return f"{type(content).__name__}{size}"


def _dicts_of(content: object) -> Iterator[tuple[tuple[Any, ...], dict[str, Tensor]]]:
    """Every mapping in what was saved, with the tensors that it holds itself under names."""
    waiting: deque[tuple[tuple[Any, ...], object]] = deque([((), content)])
    seen: set[int] = set()
    while waiting and len(seen) < _MOST:
        path, value = waiting.popleft()
        if id(value) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(value))
        entries = _entries(value)
        if isinstance(value, Mapping):
            named = {name: as_tensor(value) for name, value in entries.items() if isinstance(name, str)}
            yield path, {name: tensor for name, tensor in named.items() if tensor is not None}
        waiting += [((*path, key), e) for key, e in entries.items() if isinstance(e, (Mapping, list, tuple))]


def _entries(value: object) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return cast(Mapping[Any, Any], value)
    return dict(enumerate(cast("list[Any]", value)[:_MOST])) if isinstance(value, (list, tuple)) else {}


def _of_training(path: tuple[Any, ...]) -> bool:
    return any(str(key).lower().startswith(_STATE_OF_TRAINING) for key in path)


def _beside(content: object, path: tuple[Any, ...], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The keys on the way to the weights that were not taken."""
    for taken in path:
        entries = _entries(content)
        yield from (str(key) for key in entries if key != taken)
        content = entries[taken]
    yield from (str(key) for key in _entries(content) if key not in tensors)


def _refuse_others(where: str, joined: Mapping[str, Tensor]) -> None:
    """Refuse what may lie in several mappings, of which one alone looks like a model of a family."""
    for kind, pattern in ((ADAPTERS, ADAPTERS.pattern), (MEGATRON, r"language_model\.embedding\.\w+_embeddings\.")):
        found = [name for name in joined if len(name) < 1000 and re.search(pattern, name)]
        if found:
            raise WeightsError(
                f"{where}: holds {kind.what}: {listed(found, 3)}.", code="weights-foreign", remedy=kind.remedy
            )


def _refuse_several(where: str, models: Mapping[tuple[Any, ...], dict[str, Tensor]]) -> None:
    first, *others = models.values()
    if all(_same(first, other) for other in others):
        return
    places = ["".join(f"[{key!r}]" for key in path) or "the top" for path in models]
    chosen = next(place for place in places if place != "the top")
    read = "mapping" if where == IN_MEMORY else "torch.load(path)"
    raise WeightsError(
        f"{where}: holds the weights of {len(models)} models, at {listed(places)}.",
        code="weights-ambiguous",
        remedy=f"Choose one of them: pl.load({read}{chosen}, config=...).",
    )


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    def equal(x: Tensor, y: Tensor) -> bool:
        return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)

    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
