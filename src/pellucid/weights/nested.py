"""Finds the weights in a saved object: a dict of tensors, bare or under any key, with anything beside it.

Trainers save their optimizer, step and arguments with the model, each under a key of its own choice. The dict of the
model is the one that holds names of a GPT-2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pellucid.errors import WeightsError
from pellucid.weights.layouts import prefixes_of
from pellucid.weights.leftovers import ADAPTERS, kind_of, listed
from pellucid.weights.pickles import as_tensor

IN_MEMORY = "the mapping given"
"""Where weights lie that were read from no file, for messages."""

_DEEPEST, _MOST = 12, 200_000
"""Levels and entries of nested containers that are looked through; no weights file has more."""

_STATE_OF_TRAINING = ("optim", "grad", "exp_avg", "momentum", "scheduler", "scaler")
"""Beginnings of keys under which the parameters' names stand for something else."""


@dataclass(frozen=True)
class Found:
    """The weights in what was saved."""

    path: tuple[str, ...]  # the keys that lead to them
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
            else "Save the state dict: torch.save(model.state_dict(), path). Pairs of names and tensors make one: "
            "pl.load(dict(torch.load(path)), config=...).",
        )
    own = {path: tensors for path, tensors in dicts.items() if not _of_training(path)} or dicts
    models = {path: tensors for path, tensors in own.items() if prefixes_of(tensors)}
    joined = {".".join((*path, name)): tensor for path, tensors in own.items() for name, tensor in tensors.items()}
    if not models and (prefixes_of(joined) or kind_of(joined)):  # a mapping for every module, one within the other
        return Found((), joined)
    if models:
        _refuse_adapters(where, joined)
        _refuse_several(where, models)
    path, tensors = next(iter(models.items())) if models else max(own.items(), key=lambda item: len(item[1]))
    return Found(path, tensors, tuple(_beside(content, path, tensors)))


def _kind(content: object) -> str:
    """What was saved, without its numbers."""
    size = f" of {len(cast('list[Any]', content))}" if isinstance(content, (Mapping, list, tuple)) else ""
    return f"{type(content).__name__}{size}"


def _dicts_of(content: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping in what was saved, with the tensors that it holds itself under names."""
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
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
        waiting += [((*path, str(key)), e) for key, e in entries.items() if isinstance(e, (Mapping, list, tuple))]


def _entries(value: object) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return cast(Mapping[Any, Any], value)
    return dict(enumerate(cast("list[Any]", value)[:_MOST])) if isinstance(value, (list, tuple)) else {}


def _of_training(path: tuple[str, ...]) -> bool:
    return any(key.lower().startswith(_STATE_OF_TRAINING) for key in path)


def _beside(content: object, path: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The keys on the way to the weights that were not taken."""
    for taken in path:
        entries = _entries(content)
        yield from (str(key) for key in entries if str(key) != taken)
        content = next(value for key, value in entries.items() if str(key) == taken)
    yield from (str(key) for key in _entries(content) if key not in tensors)


def _refuse_adapters(where: str, joined: Mapping[str, Tensor]) -> None:
    found = [name for name in joined if len(name) < 1000 and ADAPTERS.has(name)]
    if found:
        raise WeightsError(
            f"{where}: holds {ADAPTERS.what}: {listed(found, 3)}.", code="weights-foreign", remedy=ADAPTERS.remedy
        )


def _refuse_several(where: str, models: Mapping[tuple[str, ...], dict[str, Tensor]]) -> None:
    first, *others = models.values()
    if all(_same(first, other) for other in others):
        return
    places = ["".join(f"[{key!r}]" for key in path) or "the top" for path in models]
    chosen = next(place for place in places if place != "the top")
    raise WeightsError(
        f"{where}: holds the weights of {len(models)} models, at {listed(places)}.",
        code="weights-ambiguous",
        remedy=f"Choose one of them: pl.load(torch.load(path){chosen}, config=...).",
    )


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    def equal(x: Tensor, y: Tensor) -> bool:
        return x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y)

    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
