"""The output head of a model, ours or of transformers, made another; and how an optimizer is kept valid then."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from pellucid.errors import InputError, ShapeError, WeightsError, shown
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import Named, clusters
from pellucid.ties.subject import (
    OUR_EMBED,
    OUR_HEAD,
    built,
    declared_by,
    is_hf,
    live_subject,
    plain_linear,
    require_here,
    weight_names,
)
from pellucid.weights.foreign import unwrapped

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


def require_optimizer(verb: str, optimizer: Any) -> None:
    """Raise `InputError` unless something has the groups and the state of an optimizer."""
    if optimizer is not None and not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
        raise InputError(
            f"{verb}: optimizer={shown(optimizer)}, expected a torch.optim.Optimizer.",
            code="not-an-optimizer",
            remedy="Give the optimizer itself, such as torch.optim.AdamW(model.parameters()).",
        )


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
    """Bring one of PyTorch's own optimizers up to date, in place, after a change of a model's head.

    `before` are the parameters that the model had; `old` was the head's, or the embedding's if the head had none, and
    `head` is the same now; a new one joins the group of the embedding, `like`. Returns why the optimizer must be made
    again; empty if it is valid.
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


class OutputHead:
    """The output head of a transformers model; if it is tied, it holds the embedding's own parameter."""

    def __init__(self, model: Any, name: str, embedding_name: str) -> None:
        self.model, self.name, self.embedding_name = model, name, embedding_name

    @property
    def embedding(self) -> nn.Parameter:
        """The embedding that the head may be, [V, D]."""
        return self.model.get_input_embeddings().weight

    @property
    def own(self) -> nn.Parameter | None:
        """The head's own parameter, whatever its order of axes; None if it owns none."""
        linear = plain_linear(self.model.get_output_embeddings())
        return None if linear is None else linear._parameters.get("weight")

    @property
    def rows(self) -> Tensor | None:
        """The head as [V, D]; None if it is no linear map, or its weight is computed."""
        linear = plain_linear(self.model.get_output_embeddings())
        return self.own if linear is None or self.own is not None else linear._buffers.get("weight")

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, as one object."""
        return self.own is self.embedding

    def unexpected(self) -> str | None:
        """What the head is instead of a plain linear map without bias, and what was expected; None if it is plain."""
        module = self.model.get_output_embeddings()
        if plain_linear(module) is not module or not has_no_bias(module):
            return f"{module}, expected a Linear without bias"
        return None if self.rows is not None else f"{module}, whose weight is computed, expected one that is stored"

    def require_rows(self) -> Tensor:
        """Return the head as [V, D]; raise `WeightsError` if it is no plain linear map without bias."""
        unexpected, rows = self.unexpected(), self.rows
        if unexpected is not None or rows is None:
            vocab, width = self.embedding.shape
            raise WeightsError(
                f"{self.name.rpartition('.')[0]} is {unexpected}.",
                code="head-not-plain",
                remedy=f"pl.replace_head(model, torch.nn.Linear({width}, {vocab}, bias=False), tie=...) puts a head "
                "there that is reloaded.",
            )
        return rows

    def install(self, head: nn.Linear | None) -> None:
        """Make the head this `Linear`'s matrix; None makes it the embedding."""
        if head is None:
            self.model.get_output_embeddings().weight = self.embedding
        else:
            self.model.set_output_embeddings(head)

    def declare(self, tied: bool) -> None:
        """Make configuration and caches say whether it is tied; raise `WeightsError` if the class knows no such tie."""
        pairs = declared_by(self.model).by_class or {}
        if tied and pairs.get(self.name) != self.embedding_name:
            raise WeightsError(
                f"{type(self.model).__name__} does not declare that {self.name} may be {self.embedding_name}, "
                "so it could not be saved.",
                code="tie-not-declared",
                remedy=f"Declare it in the class: _tied_weights_keys = {{{self.name!r}: {self.embedding_name!r}}}.",
            )
        self.model.config.tie_word_embeddings = tied
        self.model.all_tied_weights_keys = self.model.get_expanded_tied_weights_keys(all_submodels=True)


class _OurHead(OutputHead):
    """The output head of a `CkptedTransformer`; if it is tied, it owns no parameter."""

    def __init__(self, model: CkptedTransformer) -> None:
        super().__init__(model, OUR_HEAD, OUR_EMBED)
        self.kind = type(built(model).unembed)  # of the head that the model was built with

    @property
    def own(self) -> nn.Parameter | None:
        return self.model.unembed._parameters.get("W_U")

    @property
    def rows(self) -> Tensor | None:
        return None if self.unexpected() else self.model.unembed.weight

    @property
    def tied(self) -> bool:
        return not self.unexpected() and self.model.unembed.tied

    def unexpected(self) -> str | None:
        given = type(self.model.unembed)
        return None if given is self.kind else f"a {given.__name__}, expected the one that the model was built with"

    def install(self, head: nn.Linear | None) -> None:
        if self.unexpected():
            self.model.unembed = self.kind(self.model.embed, None, self.model.products)
        unembed = self.model.unembed
        unembed._parameters.pop("W_U", None)
        unembed.tied = head is None
        if head is not None:
            rows = head.weight.detach().clone()  # a copy, because the Linear given stays the caller's
            unembed.W_U = nn.Parameter(rows.t(), requires_grad=head.weight.requires_grad)

    def declare(self, tied: bool) -> None:
        self.model.config = self.model.config.replace(tie_word_embeddings=tied)


def head_of(model: nn.Module) -> OutputHead:
    inner = unwrapped(model)
    if isinstance(inner, CkptedTransformer):
        return _OurHead(inner)
    head, embedding = weight_names(inner) if is_hf(inner) else (None, None)
    if head is None or embedding is None:
        raise InputError(
            f"{type(inner).__name__}: no output head that could be tied to an embedding.",
            code="no-head",
            remedy="Give a model of pellucid, or one of transformers with get_output_embeddings().",
        )
    found = OutputHead(inner, head, embedding)
    if any(tensor is not None and tensor.is_meta for tensor in (found.embedding, found.own)):
        require_here("a change of the head", inner)
    return found


def has_no_bias(linear: nn.Linear) -> bool:
    return linear._parameters.get("bias") is None  # `linear.bias` is annotated as a Tensor, never None


def misfit(head: OutputHead, rows: Tensor, verb: str) -> ShapeError:
    there = head.embedding
    return ShapeError(
        f"{verb}: the head is {list(rows.shape)} {rows.dtype} on {rows.device}, expected what {head.embedding_name} "
        f"is: {list(there.shape)} {there.dtype} on {there.device}.",
        code="head-shape",
        remedy="Make it torch.nn.Linear(n_embd, vocab_size, bias=False) and move it with .to(model.device, "
        "model.dtype); resize the embedding first if the vocabulary is to change.",
    )
