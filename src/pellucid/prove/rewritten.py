"""Suspects of a family that lists its mistakes as changes of its own modules, made in a copy of the reference."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.family.common_mistakes import Change
from pellucid.family.families import Span, Suspect
from pellucid.family.network import Run
from pellucid.prove.copies import parameter_dtypes, quietly, working_copy
from pellucid.prove.points import LOGITS, places_of
from pellucid.prove.units import makers_of
from pellucid.run.model import CkptedTransformer


class Scratch:
    """A copy of a reference in which one mistake after another is made; each finds it as it was.

    Mistakes replace attributes and modules, and write into nothing else: what a module holds is put back afterwards.
    """

    def __init__(self, reference: CkptedTransformer) -> None:
        self.reference = reference
        self._made = working_copy(reference)
        self._kept = [(vars(child), _copied(vars(child))) for child in self._made.modules()]

    @contextmanager
    def taken(self) -> Generator[CkptedTransformer]:
        """The copy, for one mistake."""
        try:
            yield self._made
        finally:
            for held, state in self._kept:
                held.clear()
                held.update(_copied(state))


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a module holds, its containers as copies."""
    return {name: value.copy() if type(value) in CONTAINERS else value for name, value in state.items()}


CONTAINERS = (dict, OrderedDict, list, set)


def suspect_of(change: Change, scratch: Scratch, blocks: tuple[int, ...] | None = None) -> Suspect:
    """A model with a mistake in it, in these blocks alone or, with None, everywhere."""
    n_layer = len(scratch.reference.schema.blocks)
    places = range(n_layer) if blocks is None else blocks

    def run(span: Span, coarsely: bool) -> dict[str, Tensor]:
        with scratch.taken() as made:
            entered = _watched(made)  # before blocks change places
            if change.network is not None and blocks is None:
                change.network(made)
            if change.block is not None:
                for i in places:
                    change.block(made.blocks[i])
            double = not coarsely or parameter_dtypes(made) != {torch.float32}
            return _values(made, entered, span, double=double)

    def only_in(chosen: tuple[int, ...]) -> Suspect:
        words = f"{change.report}, in block{'s' * (len(chosen) > 1)} {', '.join(map(str, chosen))} only"
        return suspect_of(replace(change, report=words), scratch, chosen)

    begins = {"embeddings": -1, "blocks": 0, "end": n_layer}[change.begins]
    return Suspect(
        change.report,
        run,
        min(places, default=n_layer) if change.block is not None else begins,
        only_in if change.block is not None and blocks is None else None,
        is_of_order=change.begins == "blocks",
        is_of_logits=change.of_logits,
        harmless=change.harmless,
        slight=change.slight,
    )


def _watched(made: CkptedTransformer) -> dict[str, Tensor]:
    """What enters each module that makes a checkpoint, and each block, once the model runs."""
    entered: dict[str, Tensor] = {}
    modules = dict(made.named_modules())
    for name in {place for maker in makers_of(made.schema) for place in (maker.module, f"blocks.{maker.block}")}:
        if name in modules:
            modules[name].register_forward_pre_hook(_keeping(entered, name))
    return entered


def _values(made: CkptedTransformer, entered: dict[str, Tensor], span: Span, *, double: bool) -> dict[str, Tensor]:
    """What a model computes on a span, by point: what its checkpoints hold, and what enters its modules.

    A wrong model's modules may read other checkpoints than a right one's, so what enters them is kept by itself.
    """
    schema, ids = made.schema, span.ids
    dtype = torch.float64 if double else made.embed.W_E.dtype
    start = None if span.residual is None else (max(span.first, 0), span.residual.to(dtype))
    end = span.last + 1 if span.last < len(schema.blocks) else None
    tap = _Tap({point.name for point in schema.points if point.computed == "always"})
    with quietly(made, double=double):
        places = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
        out = made(Run(ids, places, start=start, end=end), tap)
    values = {point: tap.values[name] for point, name in places_of(schema).items() if name in tap.values}
    values |= {f"{name}<": value for name, value in entered.items()}
    for maker in makers_of(schema):
        if not maker.reads.startswith(f"{maker.module}.") and maker.module in entered:
            values[f"{maker.weight}<"] = entered[maker.module]
    return values if end is not None else {**values, LOGITS: out[..., :: span.step]}


def _keeping(entered: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        entered[name] = args[0]

    return hook


class _Tap:
    """Keeps the values of some checkpoints."""

    def __init__(self, names: Collection[str]) -> None:
        self.names, self.values = names, dict[str, Tensor]()

    def wants(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value
        return value
