"""How a program wants to be called: ids alone, by name, in a mapping, with masks and positions beside them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[nn.Module, Tensor], Any]

IDS = ("input_ids", "ids", "idx", "tokens", "input_tokens", "token_ids", "input", "inputs", "x")
"""What programs call ids, the likeliest first."""


def calls(module: nn.Module) -> Iterator[Call]:
    """The ways in which a module may want to be called, the one that its signature suggests first."""
    parameters = _parameters(module)
    given = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    named = next((name for name in IDS if name in given), next(iter(given), None))
    if parameters and not takes and named is not None:
        yield lambda module, ids: module(**{named: ids, **_beside(module, ids, {named})})
    else:
        yield lambda module, ids: module(ids, **_beside(module, ids, {p.name for p in takes[:1]}))
    yield lambda module, ids: module(input_ids=ids)
    yield lambda module, ids: module({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def working_call(module: nn.Module, ids: Tensor) -> tuple[Call, Any]:
    """The first way to call a module that does not raise, and what it returned.

    Raises:
        Exception: What the way that the signature suggests raised, where no other works either.
    """
    first: Exception | None = None
    for call in calls(module):
        try:
            return call, call(module, ids)
        except Exception as error:  # whatever a foreign forward raises
            first = first or error
    assert first is not None
    raise first


def _beside(module: nn.Module, ids: Tensor, given: set[str]) -> dict[str, Any]:
    """What else a forward demands, by name: masks of ones, positions, else None."""
    more: dict[str, Any] = {}
    for parameter in _parameters(module):
        demanded = parameter.default is parameter.empty and parameter.name not in given
        if not demanded or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        name = parameter.name.lower()
        if "mask" in name:
            more[parameter.name] = torch.ones_like(ids)
        else:
            positions = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
            more[parameter.name] = positions if "pos" in name else None
    return more


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # what is not Python has no signature
        return []
