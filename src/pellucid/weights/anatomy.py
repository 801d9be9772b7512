"""The modules that a family's class in transformers runs, found in a live model, and the classes expected there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pellucid.weights.foreign import uncompiled

Classes = Mapping[str, tuple[type[nn.Module], ...]]
"""A module's name -> the classes that may stand there; none if any may."""

HEAD = "lm_head"


@dataclass(frozen=True)
class LiveModule:
    """One module that transformers' class runs."""

    path: str  # its name in the model given; "" for the model itself
    module: nn.Module | None  # what is there, None if nothing is
    # the class that transformers puts there, or others that compute the same; empty if any may be there
    expected: tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Anatomy:
    """The modules of a family in transformers."""

    headed: type[nn.Module]  # the class with a head, under `lm_head`
    base: type[nn.Module]  # the class without
    norm: type[nn.Module]  # the class of its norms
    inner: str  # where the one holds the other
    block: type[nn.Module]  # the class of a block
    blocks: str  # where they are listed
    around: Classes  # what stands around them
    in_block: Classes  # what is in each, parents first
    attention: str  # the name in a block of what attends, whose class is in `in_block`
    eager: Callable[..., Any]  # what it attends by if it is told to be eager
    limit: str = ""  # the field of the model's configuration that says how many blocks run; "" if all do


def parts_of(hf_model: nn.Module, anatomy: Anatomy) -> Iterator[LiveModule]:
    """Every module that runs, parents first; what stands below something unexpected is left out."""
    root = uncompiled(hf_model)
    headed = isinstance(root, anatomy.headed)
    yield LiveModule("", root, (anatomy.headed if headed else anatomy.base,))
    base = root
    if headed:
        base = _child(root, anatomy.inner)
        yield LiveModule(anatomy.inner, base, (anatomy.base,))
    if base is not None and isinstance(base, anatomy.base):
        prefix = f"{anatomy.inner}." if headed else ""
        yield from _below(prefix, base, anatomy.around)
        listed, config = _child(base, anatomy.blocks), vars(base).get("config")
        blocks = list(listed) if isinstance(listed, nn.ModuleList) else []
        for i, block in enumerate(blocks[: getattr(config, anatomy.limit, None) if anatomy.limit else None]):
            block = uncompiled(block)  # noqa: PLW2901
            yield LiveModule(f"{prefix}{anatomy.blocks}.{i}", block, (anatomy.block,))
            if isinstance(block, anatomy.block):
                yield from _below(f"{prefix}{anatomy.blocks}.{i}.", block, anatomy.in_block)
    if headed:
        yield LiveModule(HEAD, _child(root, HEAD), (nn.Linear,))


def _below(prefix: str, parent: nn.Module, expected: Classes) -> Iterator[LiveModule]:
    wrong: list[str] = []
    for path, classes in expected.items():
        if path.rpartition(".")[0] in wrong:
            continue
        module = parent
        for name in path.split("."):
            module = _child(module, name)
        if classes and not isinstance(module, classes):
            wrong.append(path)
        yield LiveModule(prefix + path, module, classes)


def _child(parent: nn.Module | None, name: str) -> nn.Module | None:
    child = getattr(parent, name, None)
    return uncompiled(child) if isinstance(child, nn.Module) else None
