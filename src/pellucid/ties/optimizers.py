"""An optimizer and a model whose parameters change: what it would step twice, what it misses, how it is kept valid."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from pellucid.ties.memory import Named, clusters


@dataclass(frozen=True)
class OptimizerFindings:
    """What an optimizer does with a model's parameters.

    Attributes:
        twice: Names whose memory a step changes more than once, grouped.
        stale: Tensors that it steps and the model does not have, by their shapes.
        missed: Trainable parameters that it does not step.
    """

    twice: tuple[tuple[str, ...], ...]
    stale: tuple[tuple[int, ...], ...]
    missed: tuple[str, ...]


def look(optimizer: Optimizer, named: Sequence[Named]) -> OptimizerFindings:
    """Compare what an optimizer holds with the parameters of a model."""
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    names = {f"\0{i}": tensor for i, tensor in enumerate(held)}
    together = clusters([*named, *(Named(key, tensor) for key, tensor in names.items())])
    twice: list[tuple[str, ...]] = []
    stale: list[tuple[int, ...]] = []
    missed: list[str] = []
    for cluster in together:
        known = [one for one in cluster if one.name not in names]
        steps = [one for one in cluster if one.name in names]
        if len(steps) > 1:
            twice.append(tuple(one.name for one in known) or (f"{len(steps)} tensors that the model does not have",))
        elif steps and not known:
            stale.append(tuple(steps[0].tensor.shape))
        elif not steps and any(one.counted and one.tensor.requires_grad for one in known):
            missed.append(known[0].name)
    return OptimizerFindings(tuple(twice), tuple(stale), tuple(missed))


REBUILD = "rebuild it: optimizer = type(optimizer)(model.parameters(), ...)"


def can_edit(optimizer: Optimizer) -> bool:
    """Whether parameters may be exchanged in its groups: PyTorch's own, which keep their state by parameter."""
    return type(optimizer).__module__.startswith("torch.optim") and not isinstance(optimizer, LBFGS)


def holds(optimizer: Optimizer, tensors: Sequence[Tensor]) -> bool:
    """Whether any of these is in its groups."""
    return any(_group_of(optimizer, tensor) is not None for tensor in tensors)


def exchange(optimizer: Optimizer, old: Sequence[Tensor], new: Sequence[Tensor], like: Tensor) -> Callable[[], None]:
    """Take parameters out of the groups, put others in, and return what undoes both.

    Args:
        optimizer: One that `can_edit` allows.
        old: What leaves, with its state.
        new: What enters, with a copy of the state of `like` if it has its numbers.
        like: The parameter in whose group the new ones belong; if it is in none, that of an old one.
    """
    groups = [list(group["params"]) for group in optimizer.param_groups]
    state = dict(optimizer.state)

    def undo() -> None:
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group["params"][:] = before
        optimizer.state.clear()
        optimizer.state.update(state)

    home = next((g for tensor in (like, *old) if (g := _group_of(optimizer, tensor)) is not None), None)
    leaving = {id(tensor) for tensor in old}
    for group in optimizer.param_groups:
        group["params"][:] = [tensor for tensor in group["params"] if id(tensor) not in leaving]
    for tensor in old:
        optimizer.state.pop(tensor, None)
    if home is None:
        return undo
    for tensor in new:
        home["params"].append(tensor)
        # Our W_U is [D, V] over the memory of [V, D]; its state is laid out likewise.
        turned = tensor.dim() == 2 and tensor.stride() != like.stride()
        rows = tensor.t() if turned else tensor
        if rows.shape == like.shape and torch.equal(rows, like) and like in optimizer.state:
            inherited = optimizer.state[like]
            optimizer.state[tensor] = {key: _copied(value, like, turned) for key, value in inherited.items()}
    return undo


def _copied(value: Any, like: Tensor, turned: bool) -> Any:
    if turned and isinstance(value, Tensor) and value.shape == like.shape:
        return value.clone().t()
    return copy.deepcopy(value)


def _group_of(optimizer: Optimizer, tensor: Tensor) -> dict[str, Any] | None:
    return next((g for g in optimizer.param_groups if any(held is tensor for held in g["params"])), None)


def sentence(findings: OptimizerFindings) -> str | None:
    """What is wrong, or None."""
    parts: Mapping[str, object] = {
        "steps twice": [" = ".join(names) for names in findings.twice],
        "steps tensors that the model does not have, of shapes": [list(shape) for shape in findings.stale],
        "does not step": list(findings.missed[:4]),
    }
    said = [f"{what} {str(which).strip('[]')}" for what, which in parts.items() if which]
    return "; ".join(said) or None
