"""The course's parameters under other names: found by their shapes, and chosen by what the module computes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST = 24
"""Ways to read the same shapes that are tried; four square matrices in attention have as many."""

Layer = Mapping[str, str]
"""Kind ("weight", "bias") -> the parameter's name in the module."""


@dataclass(frozen=True)
class Source:
    """Where one of the course's parameters is kept.

    Attributes:
        names: The module's own parameters, one behind the other along the first axis.
        turned: Whether they are kept transposed.
    """

    names: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Naming:
    """Every parameter of the course -> where a module keeps it."""

    sources: Mapping[str, Source]

    def read(self, module: nn.Module) -> dict[str, Tensor]:
        """The values by the names of the course; one that has its own name is the parameter itself."""
        held = dict(module.named_parameters(remove_duplicate=False))
        out: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            parts = [held[part].T if source.turned else held[part] for part in source.names]
            out[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out

    def told(self) -> list[str]:
        """Sentences that say which layer the course calls how, each once for all blocks."""
        found: dict[str, None] = {}
        for name, source in self.sources.items():
            if not name.endswith("weight"):
                continue
            layer, mine = name.rpartition(".")[0], [_layer(part)[0] for part in source.names]
            course, *theirs = (
                re.sub(r"(^|(?<=\.))\d+(?=\.)", "0", part) for part in (layer, *mine)
            )  # any block is as 0
            if theirs != [course]:
                listed = ", ".join(f"`{part}`" for part in theirs)
                what = "is what the course calls" if len(mine) == 1 else "are together what the course calls"
                found[f"{listed} {what} `{course}`"] = None
            elif source.turned:
                found[f"`{course}` is kept transposed, [in, out]; the course's nn.Linear keeps [out, in]"] = None
        return list(found)


def namings(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[Naming]:
    """The ways in which a module's parameters can be the course's, the likeliest first."""
    wanted: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        wanted.setdefault(layer, {})[kind] = shape
    turned = {path for path, one in module.named_modules() if type(one).__name__ == "Conv1D"}  # transformers' layer
    held = _Held({name: tuple(p.shape) for name, p in module.named_parameters()}, turned)
    found = _assigned(list(wanted.items()), _layers(module), held)
    return [Naming(sources) for sources in itertools.islice(found, MOST)]


@dataclass(frozen=True)
class _Held:
    """What is known of a module's parameters: their shapes, and the layers that keep [in, out]."""

    shapes: Mapping[str, tuple[int, ...]]
    turned: Collection[str]

    def fits(self, name: str, layer: Layer, parts: Mapping[str, tuple[int, ...]], turned: bool) -> bool:
        """Whether a layer has the parts of one of the course's; a square matrix is turned if its class says so."""
        shape = parts["weight"]
        if len(shape) == 2 and shape[0] == shape[1] and turned != (name in self.turned):
            return False
        return all(
            kind in layer and self.shapes[layer[kind]] == (part[::-1] if turned and kind == "weight" else part)
            for kind, part in parts.items()
        )


def _layer(name: str) -> tuple[str, str]:
    """A parameter's layer and its kind; nn.MultiheadAttention writes in_proj_weight."""
    match = re.fullmatch(r"(.*?)[._]?(weight|bias)", name)
    return (match[1], match[2]) if match else (name, "weight")


def _layers(module: nn.Module) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, _ in module.named_parameters():
        layer, kind = _layer(name)
        found.setdefault(layer, {})[kind] = name
    return found


def _assigned(
    wanted: Sequence[tuple[str, Mapping[str, tuple[int, ...]]]],
    layers: Mapping[str, Layer],
    held: _Held,
) -> Iterator[dict[str, Source]]:
    """Backtracking: the first of the course's layers, then the rest with what is left."""
    if not wanted:
        yield {}
        return
    (course, parts), *rest = wanted
    for chosen, turned in _fitting(course, parts, layers, held):
        left = {name: layer for name, layer in layers.items() if name not in chosen}
        mine = {
            f"{course}.{kind}": Source(tuple(layers[name][kind] for name in chosen), turned and kind == "weight")
            for kind in parts
        }
        for others in _assigned(rest, left, held):
            yield mine | others


def _fitting(
    course: str,
    parts: Mapping[str, tuple[int, ...]],
    layers: Mapping[str, Layer],
    held: _Held,
) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The layers that can be one of the course's, that of its own name first, and whether they are transposed."""
    for turned in (False, True) if len(parts["weight"]) == 2 and "embedding" not in course else (False,):
        whole = [name for name, layer in layers.items() if held.fits(name, layer, parts, turned)]
        yield from (((name,), turned) for name in sorted(whole, key=lambda name: name != course))
        if course.endswith("qkv_proj"):
            third = {kind: (shape[0] // 3, *shape[1:]) for kind, shape in parts.items()}
            alike = [name for name, layer in layers.items() if held.fits(name, layer, third, turned)]
            yield from ((three, turned) for three in sorted(itertools.permutations(alike, 3), key=_unlike_qkv))


def _unlike_qkv(names: Sequence[str]) -> int:
    """How many of three layers have no q, k and v in their names, in this order."""
    return sum(letter not in name.rpartition(".")[2].lower() for letter, name in zip("qkv", names, strict=True))
