"""`tie`, `untie`, `replace_head`: change a head so that memory, configuration, optimizer and disk all agree."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.dialects import named_arguments
from pellucid.errors import InputError, ShapeError, WeightsError
from pellucid.run.model import CkptedTransformer
from pellucid.ties import saving
from pellucid.ties.memory import Named, address
from pellucid.ties.optimizers import renew
from pellucid.ties.subject import (
    OUR_EMBED,
    OUR_HEAD,
    built,
    declared_by,
    is_hf,
    plain_linear,
    remember,
    unwrapped,
    weight_names,
)  # fmt: skip
from pellucid.weights.importing import same_numbers


@dataclass(frozen=True)
class HeadChange:
    """What a change of the head did.

    Attributes:
        tied: Whether the head is the embedding now.
        given_up: What the model no longer has the numbers of: its old head, or the head given.
        optimizer: "none given", "valid" (it steps every parameter that it did, and the new ones, once), or
            "rebuild" (it must be made again; `note` says why).
        note: About the optimizer, in words; empty if there is nothing to say.
        verified: Whether a save and a reload gave the same model; None if that was not asked for.
    """

    tied: bool
    given_up: tuple[str, ...]
    optimizer: str
    note: str = ""
    verified: bool | None = None

    def __repr__(self) -> str:
        parts = ["tied" if self.tied else "untied"]
        parts += [f"gave up the numbers of {', '.join(self.given_up)}"] if self.given_up else []
        parts += [f"optimizer: {self.optimizer}{f', {self.note}' if self.note else ''}"]
        parts += ["verified by a reload"] if self.verified else []
        return "; ".join(parts)


@named_arguments()
def tie(model: nn.Module, *, optimizer: Optimizer | None = None, verify: bool = False) -> HeadChange:
    """Make the head the embedding: one Parameter, a configuration that says so, written once.

    A head that has numbers of its own gives them up; the result says so.

    Args:
        model: One of ours, or one of transformers with a plain head.
        optimizer: Changed in place so that it stays valid, if that is possible.
        verify: Save into a temporary folder, reload and compare; a difference undoes the change and raises.

    Raises:
        InputError: A model without a head.
        WeightsError: A head that cannot be the embedding, or a reload that gave another model.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.ties import tie, untie
        >>> model = pl.load()
        >>> untie(model), model.config.tie_word_embeddings
        (untied; optimizer: none given, False)
        >>> tie(model, verify=True)
        tied; optimizer: none given; verified by a reload
    """
    head = _head_of(model)
    rows = head.require_rows()
    if rows.shape != head.embedding.shape:
        raise _misfit(head, rows, "tie")
    lost = () if _same_place(rows, head.embedding) or same_numbers(rows, head.embedding) else (head.name,)
    with _changing(head, optimizer) as renewed:
        head.declare(True)
        head.install(None)
        return renewed(lost, verify)


@named_arguments()
def untie(model: nn.Module, *, optimizer: Optimizer | None = None, verify: bool = False) -> HeadChange:
    """Give the head memory of its own, with the numbers that it has, and a configuration that says so.

    Args:
        model: As for `tie`.
        optimizer: Changed in place: the head joins the embedding's group with a copy of its state.
        verify: As for `tie`.

    Raises:
        InputError: A model without a head.
        WeightsError: A head that is not plain, or a reload that gave another model.
    """
    head = _head_of(model)
    rows = head.require_rows()
    with _changing(head, optimizer) as renewed:
        head.declare(False)
        if _same_place(rows, head.embedding):
            with torch.device("meta"):
                own = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
            own.weight = nn.Parameter(rows.detach().clone(), requires_grad=head.embedding.requires_grad)
            head.install(own)
        return renewed((), verify)


@named_arguments()
def replace_head(
    model: nn.Module, head: nn.Linear, *, tie: bool, optimizer: Optimizer | None = None, verify: bool = False
) -> HeadChange:
    """Put another head in, so that a save and a reload keep it.

    Args:
        model: One of ours or of transformers, whatever its head is now.
        head: A `torch.nn.Linear(n_embd, vocab_size, bias=False)`. A transformers model gets this module, a model
            of ours a copy of its matrix.
        tie: Whether the new head is to be the embedding, and its own numbers are given up; otherwise they are
            kept, and the configuration says untied.
        optimizer: As for `tie`; a new head joins the embedding's group without a state.
        verify: As for `tie`.

    Raises:
        InputError: A model without a head.
        ShapeError: A head of another shape, dtype or device.
        WeightsError: A head that a reload would lose.

    Example:
        >>> import pellucid as pl, torch
        >>> from pellucid.ties import replace_head
        >>> model = pl.load()
        >>> replace_head(model, torch.nn.Linear(256, 4096, bias=False), tie=False)
        untied; optimizer: none given
        >>> pl.count_parameters(model).unique
        5322240
    """
    old = _head_of(model)
    _check(head, old)
    rows, embedding = old.rows, old.embedding
    kept = rows is not None and (old.tied or same_numbers(rows.detach(), embedding.detach()))
    lost = () if kept else (old.name,)
    if tie and not same_numbers(head.weight.detach(), embedding.detach()):
        lost = (*lost, "the head given")
    with _changing(old, optimizer, head) as renewed:
        if not tie and _same_place(head.weight, embedding):
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        old.declare(tie)
        old.install(head)
        if tie:
            old.install(None)
        return renewed(lost, verify)


@contextmanager
def _changing(
    head: _Head, optimizer: Optimizer | None, *others: nn.Module
) -> Generator[Callable[[tuple[str, ...], bool], HeadChange]]:
    """Put back the model, its configuration, the optimizer and other modules if the change inside raises.

    Yields what brings the optimizer up to date and verifies: it takes what was given up, and whether to verify.
    """
    model = head.model
    modules = [*model.modules(), *others]
    boxes = [vars(module) for module in modules] + [module._parameters for module in modules]
    boxes += [module._modules for module in modules] + ([vars(model.config)] if is_hf(model) else [])
    boxes += [] if optimizer is None else [optimizer.state, *optimizer.param_groups]
    put_back = remember(boxes)
    before = list(model.parameters())
    own = head.embedding if head.own is None else head.own

    def renewed(given_up: tuple[str, ...], verify: bool) -> HeadChange:
        status, note = "none given", ""
        if optimizer is not None:
            now = Named(head.name, head.embedding if head.own is None else head.own)
            note = renew(optimizer, model, before, own, now, head.embedding)
            status = "rebuild" if note else "valid"
        if verify and (different := saving.reload_differs(model)):
            raise WeightsError(
                f"{type(model).__name__}: a reload gave another model: {different}. The change was undone.",
                code="reload-differs",
                remedy="Look at pl.audit_ties(model).problems, which says what else keeps it from being saved, and do "
                "that first.",
            )
        return HeadChange(head.tied, given_up, status, note, True if verify else None)

    try:
        yield renewed
    except BaseException:
        put_back()
        raise


class _Head:
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
        return None if linear is None else linear._parameters["weight"]

    @property
    def rows(self) -> Tensor | None:
        """The head as [V, D]; None if it is no linear map."""
        return self.own

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding, as one object."""
        return self.own is self.embedding

    def unexpected(self) -> str | None:
        """What the head is instead of a plain linear map without bias, and what was expected; None if it is plain."""
        module = self.model.get_output_embeddings()
        plain = plain_linear(module) is module and _has_no_bias(module)
        return None if plain else f"{module}, expected a Linear without bias"

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


class _OurHead(_Head):
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


def _head_of(model: nn.Module) -> _Head:
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
    return _Head(inner, head, embedding)


def _same_place(a: Tensor, b: Tensor) -> bool:
    """Whether two matrices show the same numbers of the same memory."""
    return a is b or (address(a) == address(b) != 0 and a.shape == b.shape and a.stride() == b.stride())


def _has_no_bias(linear: nn.Linear) -> bool:
    return linear._parameters.get("bias") is None  # `linear.bias` is annotated as a Tensor, never None


def _check(head: nn.Linear, old: _Head) -> None:
    if plain_linear(head) is not head or not _has_no_bias(head):
        raise WeightsError(
            f"replace_head: given {head}, expected a torch.nn.Linear without bias: a reload loses anything else.",
            code="head-not-plain",
            remedy="Give the Linear itself (head[0] of a Sequential), made with bias=False.",
        )
    there = old.embedding
    if head.weight.shape != there.shape or head.weight.dtype != there.dtype or head.weight.device != there.device:
        raise _misfit(old, head.weight, "replace_head")


def _misfit(head: _Head, rows: Tensor, verb: str) -> ShapeError:
    there = head.embedding
    return ShapeError(
        f"{verb}: the head is {list(rows.shape)} {rows.dtype} on {rows.device}, expected what {head.embedding_name} "
        f"is: {list(there.shape)} {there.dtype} on {there.device}.",
        code="head-shape",
        remedy="Make it torch.nn.Linear(n_embd, vocab_size, bias=False) and move it with .to(model.device, "
        "model.dtype); resize the embedding first if the vocabulary is to change.",
    )
