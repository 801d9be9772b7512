"""A learner's module: which of its parameters are the course's, by name, else by what it computes; its copies."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.exercises.result import NAMES, Findings, WrongAnswerError, theirs
from pellucid.prove.copies import deep_copy

STEP = "the parameters"

MOST = 24
"""Ways to read the same shapes that are tried; four square matrices in attention have as many."""

Layer = Mapping[str, tuple[str, ...]]
"""Kind ("weight", "bias") -> the parameters in the module that hold it, one behind the other along the first axis."""


@dataclass(frozen=True)
class Source:
    """Where one of the course's parameters is kept."""

    names: tuple[str, ...]  # the module's own parameters, one behind the other along the first axis
    turned: bool = False  # whether they are kept transposed


@dataclass(frozen=True)
class Naming:
    """Every parameter of the course -> where a module keeps it."""

    sources: Mapping[str, Source]

    def read(self, module: nn.Module) -> dict[str, Tensor]:
        """The values by the names of the course; one that has its own name is the parameter itself."""
        held = dict(module.named_parameters(remove_duplicate=False))
        out: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            parts = [
                _as_linear(held[part], source.turned) if name.endswith("weight") else held[part].flatten()
                for part in source.names
            ]
            out[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out

    def told(self) -> list[str]:
        """Sentences that say which layer the course calls how, each once for all blocks."""
        found: dict[str, None] = {}
        for name, source in self.sources.items():
            if not name.endswith("weight"):
                continue
            layer, mine = name.rpartition(".")[0], [re.sub(r"[._]?weight$", "", part) for part in source.names]
            course, *theirs = (
                re.sub(r"(^|(?<=\.))\d+(?=\.)", "0", part) for part in (layer, *mine)
            )  # any block is as 0
            theirs = list(dict.fromkeys(theirs))  # heads have one each, or blocks
            if theirs != [course]:
                listed = ", ".join(f"`{part}`" for part in theirs)
                what = "is what the course calls" if len(theirs) == 1 else "are together what the course calls"
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
    layers = _layers(module)
    digits = 1 + max(len(re.findall(r"\.\d+\.", name)) for name in shapes)
    every = {**layers, **_by_head(layers, digits)}  # each head may have layers of its own
    found: list[dict[str, Source]] = []
    for numbered, there in itertools.product((True, False), (layers, every)):
        held = _Held({name: tuple(p.shape) for name, p in module.named_parameters()}, turned, numbered)
        found = found or list(itertools.islice(_assigned(list(wanted.items()), there, held), MOST))
    return [Naming(sources) for sources in found]


@dataclass
class Built:
    """A learner's module, and the parameters that the course asks of it."""

    name: str  # what the course calls its class
    module: nn.Module
    shapes: Mapping[str, tuple[int, ...]]  # parameter of the course -> its shape
    right: Callable[[Naming], bool]  # whether the module computes what it should if its parameters are read so

    @cached_property
    def has_names(self) -> bool:
        """True if every parameter has the course's name and shape."""
        try:
            self._require_names()
        except WrongAnswerError:
            return False
        return True

    @cached_property
    def naming(self) -> Naming | None:
        """Which parameters are which, where names are not the course's; the first way that gives the right output."""
        if self.has_names:
            return None
        found = namings(self.module, self.shapes)
        return found[0] if len(found) == 1 else next((one for one in found if self.right(one)), found[0])

    def live(self) -> dict[str, Tensor]:
        """The parameters that the course names, and any others."""
        held = dict(self.module.named_parameters())
        if self.naming is None:
            named: dict[str, Tensor] = {name: parameter(self.module, name) for name in self.shapes}
            known = {id(value) for value in named.values()}
            return named | {name: value for name, value in held.items() if id(value) not in known}
        used = {name for source in self.naming.sources.values() for name in source.names}
        return self.naming.read(self.module) | {name: value for name, value in held.items() if name not in used}

    def parameters(self) -> dict[str, Tensor]:
        """The same as copies in float64."""
        return {name: value.detach().clone().double() for name, value in self.live().items()}

    def note_names(self, found: Findings) -> None:
        """Say which layers have other names than the course's, which its tests and later exercises look for."""
        for told in self.naming.told() if self.naming else ():
            found.note(f"names: {told}; what is computed is right, but the course's own tests look for its names")

    def require_parameters(self) -> None:
        """Check that the course's parameters are there, under any names."""
        if not self.has_names and not namings(self.module, self.shapes):
            self._require_names()

    def require_apart(self) -> None:
        """Check that no two parameters are one, or lie in one memory."""
        seen: dict[int, tuple[str, Tensor]] = {}
        live = self.live() if self.has_names else dict(self.module.named_parameters())
        for name, value in live.items():
            other, first = seen.setdefault(value.untyped_storage().data_ptr(), (name, value))
            if other == name:
                continue
            words = f"`{name}` and `{other}` are one parameter: construct a module for each"
            if first is not value:
                words = (
                    f"`{name}` and `{other}` are two parameters in one memory, and a change of dtype or device parts "
                    f"them: give each its own, or use `{other}` itself in both places"
                )
            raise WrongAnswerError(words, STEP, name, "parameters that should differ are one")

    def _require_names(self) -> None:
        for name, shape in self.shapes.items():
            owner, _, kind = name.rpartition(".")
            try:
                value = parameter(self.module, name)
            except (AttributeError, IndexError, TypeError, KeyError):
                raise WrongAnswerError(f"{self.name} has no `{owner}` with a {kind}", STEP, name, NAMES) from None
            if value is None:
                raise WrongAnswerError(f"`{owner}` has no bias; GPT-2's has one", STEP, name, NAMES)
            if tuple(value.shape) != shape:
                turned = ", which is this transposed" if len(shape) > 1 and tuple(value.shape) == shape[::-1] else ""
                words = f"`{name}` has shape {list(value.shape)}, expected {list(shape)}{turned}"
                raise WrongAnswerError(words, STEP, name, NAMES)
            if not any(value is one for one in self.module.parameters()):
                words = (
                    f"`{name}` is not among the parameters of {self.name}: keep modules in nn.ModuleList or as "
                    "attributes, not in a plain list"
                )
                raise WrongAnswerError(words, STEP, name, "a module is kept where torch does not find it")


def parameter(module: Any, path: str) -> Any:
    """An attribute by its dotted path, numbers being places in a list."""
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return module


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, or a wrong answer that says why there is none."""
    with theirs("copying the module"):
        return deep_copy(module, {})


def in_float64(module: nn.Module, x: Tensor) -> nn.Module:
    """A copy in float64 if it runs there; else the module itself, written for float32, which raises a real mistake."""
    double = copied(module).double()
    try:
        with torch.no_grad():
            double(x)
    except (Exception, SystemExit):
        return module
    return double


def own(module: nn.Module, x: Tensor) -> Tensor:
    """An input in the dtype of the module's parameters; ids as they are."""
    dtype = next((value.dtype for value in module.parameters()), x.dtype)
    return x.to(dtype) if x.is_floating_point() else x


def spread(module: nn.Module) -> None:
    """Values under which every parameter matters and no two mistakes look alike."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            std = 0.3 if value.dim() < 2 else 1.5 / value.shape[-1] ** 0.5
            mean = 1.0 if value.dim() < 2 and name.endswith("weight") else 0.0  # a gain
            if name.endswith("linear1.weight"):  # activations that differ only far from 0 are told apart, too
                std *= 4
            value.copy_(torch.empty(value.shape).normal_(mean, std, generator=generator))


@dataclass(frozen=True)
class _Held:
    """What is known of a module's parameters: their shapes, and the layers that keep [in, out]."""

    shapes: Mapping[str, tuple[int, ...]]
    turned: Collection[str]
    numbered: bool  # whether layers are taken by the number of their block

    def may_be(self, course: str, name: str) -> bool:
        """Whether a layer stands in the same block as the course's, or outside of blocks as that does."""
        return not self.numbered or _number(course) == _number(name)

    def fits(self, name: str, layer: Layer, parts: Mapping[str, tuple[int, ...]], turned: bool) -> bool:
        """Whether a layer has the parts of one of the course's; a square matrix is turned if its class says so."""
        if not parts.keys() <= layer.keys():
            return False
        shape = parts["weight"]
        square = len(shape) == 2 and shape[0] == shape[1] and len(self.shapes[layer["weight"][0]]) == 2
        if square and turned != (name in self.turned):
            return False
        return all(self._shape(layer[kind], kind, turned) == part for kind, part in parts.items())

    def _shape(self, names: Sequence[str], kind: str, turned: bool) -> tuple[int, ...]:
        """The shape of several parameters together, as an nn.Linear would hold them."""
        if kind == "bias":
            return (sum(math.prod(self.shapes[name]) for name in names),)
        with torch.device("meta"):
            every = [_as_linear(torch.empty(self.shapes[name]), turned).shape for name in names]
        return (sum(shape[0] for shape in every), *every[0][1:])


def _as_linear(weight: Tensor, turned: bool) -> Tensor:
    """A weight as nn.Linear holds it, [out, in]; one [head, in, out] has an axis for heads among the outer or inner."""
    if weight.dim() == 3:
        return weight.flatten(0, 1).T if turned else weight.mT.flatten(0, 1)
    return weight.T if turned and weight.dim() == 2 else weight


def _number(path: str) -> str | None:
    """The first number in a path: of blocks in a list, which block it is."""
    found = re.search(r"(?:^|\.)(\d+)\.", path)
    return None if found is None else found[1]


def _layer(name: str) -> tuple[str, str]:
    """A parameter's layer and its kind: nn.MultiheadAttention writes in_proj_weight, others W_Q and b_Q, or ln1.w."""
    if match := re.fullmatch(r"(.+)\.(?:(gain|gamma|g|scale|alpha)|beta|shift|offset|b)", name):  # norms by hand
        return match[1], "weight" if match[2] else "bias"
    if match := re.fullmatch(r"(.*?)[._]?(weight|bias)", name):
        return match[1], match[2]
    if match := re.fullmatch(r"(.*\.)?([Wb])_(\w+)|(.+)\.([wb])", name):
        kind = "bias" if "b" in (match[2], match[5]) else "weight"
        return match[4] or f"{match[1] or ''}{match[3]}", kind
    return name, "weight"


def _layers(module: nn.Module) -> dict[str, dict[str, tuple[str, ...]]]:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, _ in module.named_parameters():
        layer, kind = _layer(name)
        found.setdefault(layer, {})[kind] = (name,)
    return found


def _by_head(layers: Mapping[str, Layer], digits: int) -> dict[str, Layer]:
    """Layers whose names differ in the last of so many numbers, as one: those of each head of a list."""
    groups: dict[str, list[str]] = {}
    for name in layers:
        if len(re.findall(r"\.\d+\.", name)) >= digits:
            groups.setdefault(re.sub(r"\.\d+\.(?!.*\.\d+\.)", ".*.", name), []).append(name)
    return {
        group: {kind: tuple(layers[name][kind][0] for name in names) for kind in layers[names[0]]}
        for group, names in groups.items()
        if len(names) > 1 and len({tuple(layers[name]) for name in names}) == 1
    }


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
            f"{course}.{kind}": Source(
                tuple(part for name in chosen for part in layers[name][kind]), turned and kind == "weight"
            )
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
        near = {name: layer for name, layer in layers.items() if held.may_be(course, name)}
        whole = [name for name, layer in near.items() if held.fits(name, layer, parts, turned)]
        yield from (((name,), turned) for name in sorted(whole, key=lambda name: name != course))
        if course.endswith("qkv_proj"):
            third = {kind: (shape[0] // 3, *shape[1:]) for kind, shape in parts.items()}
            alike = [name for name, layer in near.items() if held.fits(name, layer, third, turned)]
            yield from ((three, turned) for three in sorted(itertools.permutations(alike, 3), key=_unlike_qkv))


def _unlike_qkv(names: Sequence[str]) -> int:
    """How many of three layers have no q, k and v in their names, in this order."""
    return sum(letter not in name.rpartition(".")[2].lower() for letter, name in zip("qkv", names, strict=True))
