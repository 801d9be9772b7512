"""An optimizer and a model whose parameters change: what it steps twice, what it misses, how it is kept valid."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pellucid.ties.memory import Named, clusters
from pellucid.ties.subject import live_subject

REBUILD = "rebuild it: optimizer = type(optimizer)(model.parameters(), ...)"


@dataclass(frozen=True)
class OptimizerFindings:
    """What an optimizer does with a model's parameters."""

    twice: tuple[tuple[str, ...], ...]  # names whose memory a step changes more than once, grouped
    stale: tuple[tuple[int, ...], ...]  # tensors that it steps and the model does not have, by their shapes
    missed: tuple[str, ...]  # trainable parameters that it does not step

    def said(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Each of them: the code of the problem, what is the case, the names that it is about."""
        for names in self.twice:
            yield "stepped-twice", f"the optimizer steps {' = '.join(names)} more than once in each step", names
        if self.stale:
            shapes = ", ".join(str(list(shape)) for shape in self.stale)
            text = f"the optimizer steps tensors that the model does not have (any more), of shapes {shapes}"
            yield "optimizer-stale", text, ()
        if self.missed:
            text = f"the optimizer does not step {', '.join(self.missed[:4])}, which is trainable"
            yield "optimizer-misses", text, self.missed


def compare_optimizer(optimizer: Optimizer, named: Sequence[Named]) -> OptimizerFindings:
    """Compare what an optimizer holds with the parameters of a model, by their memory."""
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    steps = [Named("", tensor) for tensor in held]
    twice: list[tuple[str, ...]] = []
    stale: list[tuple[int, ...]] = []
    missed: list[str] = []
    for cluster in clusters([*named, *steps]):
        known = [one for one in cluster if one.name]
        times = len(cluster) - len(known)
        if times > 1:
            twice.append(tuple(one.name for one in known) or (f"{times} tensors that the model does not have",))
        elif times and not known:
            stale.append(tuple(cluster[0].tensor.shape))
        elif not times and any(one.counted and one.tensor.requires_grad for one in known):
            missed.append(known[0].name)
    return OptimizerFindings(tuple(twice), tuple(stale), tuple(missed))


def renew(
    optimizer: Optimizer, model: nn.Module, before: Sequence[Tensor], old: Tensor, head: Named, like: Tensor
) -> str:
    """Bring an optimizer up to date after a change of a model's head.

    Args:
        optimizer: Changed in place if it is one of PyTorch's own that keep their state by parameter.
        model: As it is now.
        before: The parameters that it had.
        old: The parameter that was the head's, or the embedding's if the head had none.
        head: The same now, under the head's name.
        like: The embedding.

    Returns:
        Why the optimizer must be made again; empty if it is valid.
    """
    now = list(model.parameters())
    gone, new = _without(before, now), _without(now, before)
    if (gone or new) and (not type(optimizer).__module__.startswith("torch.optim") or isinstance(optimizer, LBFGS)):
        return f"{type(optimizer).__name__} was left as it is; {REBUILD}"
    trained = any(_group_of(optimizer, tensor) is not None for tensor in (*gone, old))
    _exchange(optimizer, gone, new if trained else [], like)
    found = compare_optimizer(optimizer, live_subject(model).named)
    missed = (head.name,) if trained and _group_of(optimizer, head.tensor) is None else ()
    # What else it does not step is the caller's choice.
    wrong = "; ".join(text for _, text, _ in OptimizerFindings(found.twice, found.stale, missed).said())
    return f"{wrong}; {REBUILD}" if wrong else ""


def _without(some: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    known = {id(other) for other in others}
    return [one for one in some if id(one) not in known]


def _exchange(optimizer: Optimizer, old: Sequence[Tensor], new: Sequence[Tensor], like: Tensor) -> None:
    """Take parameters out of an optimizer's groups, and put others in."""
    home = next((g for tensor in (like, *old) if (g := _group_of(optimizer, tensor)) is not None), None)
    for group in optimizer.param_groups:
        group["params"] = _without(group["params"], old)
    for tensor in old:
        optimizer.state.pop(tensor, None)
    if home is None:
        return
    for tensor in new:
        home["params"].append(tensor)
        # Our W_U is [D, V] over the memory of [V, D]; its state is laid out likewise.
        turned = tensor.dim() == 2 and tensor.stride() != like.stride()
        rows = tensor.t() if turned else tensor
        if rows.shape == like.shape and torch.equal(rows, like) and like in optimizer.state:
            inherited = optimizer.state[like]
            optimizer.state[tensor] = {key: _copied(value, like, turned) for key, value in inherited.items()}


def _copied(value: Any, like: Tensor, turned: bool) -> Any:
    if turned and isinstance(value, Tensor) and value.shape == like.shape:
        return value.clone().t()
    return copy.deepcopy(value)


def _group_of(optimizer: Optimizer, tensor: Tensor) -> dict[str, Any] | None:
    return next((g for g in optimizer.param_groups if any(held is tensor for held in g["params"])), None)
