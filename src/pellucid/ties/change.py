"""`tie`, `untie`, `replace_head`: change a head so that memory, configuration, optimizer and disk all agree."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from pellucid.errors import WeightsError
from pellucid.names.calls import named_arguments
from pellucid.numerics.rounding import same_numbers
from pellucid.ties import saving
from pellucid.ties.memory import Named, same_place
from pellucid.ties.output_head import OutputHead, has_no_bias, head_of, misfit, renew, require_optimizer
from pellucid.ties.subject import is_hf, plain_linear, remember


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
        InputError: If the model has no head.
        WeightsError: If the head cannot be the embedding, or a reload gave another model.

    Example:
        >>> import pellucid as pl
        >>> from pellucid.ties import tie, untie
        >>> model = pl.load()
        >>> untie(model), model.config.tie_word_embeddings
        (untied; optimizer: none given, False)
        >>> tie(model, verify=True)
        tied; optimizer: none given; verified by a reload
    """
    head = head_of(model)
    rows = head.require_rows()
    if rows.shape != head.embedding.shape:
        raise misfit(head, rows, "tie")
    lost = () if same_place(rows, head.embedding) or same_numbers(rows, head.embedding) else (head.name,)
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
        InputError: If the model has no head.
        WeightsError: If the head is not plain, or a reload gave another model.
    """
    head = head_of(model)
    rows = head.require_rows()
    with _changing(head, optimizer) as renewed:
        head.declare(False)
        if same_place(rows, head.embedding):
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
        InputError: If the model has no head.
        ShapeError: If the head has another shape, dtype or device.
        WeightsError: If a reload would lose the head.

    Example:
        >>> import pellucid as pl, torch
        >>> from pellucid.ties import replace_head
        >>> model = pl.load()
        >>> replace_head(model, torch.nn.Linear(256, 4096, bias=False), tie=False)
        untied; optimizer: none given
        >>> pl.count_parameters(model).unique
        5322240
    """
    old = head_of(model)
    _check(head, old)
    rows, embedding = old.rows, old.embedding
    kept = rows is not None and (old.tied or same_numbers(rows.detach(), embedding.detach()))
    lost = () if kept else (old.name,)
    if tie and not same_numbers(head.weight.detach(), embedding.detach()):
        lost = (*lost, "the head given")
    with _changing(old, optimizer, head) as renewed:
        if not tie and same_place(head.weight, embedding):
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        old.declare(tie)
        old.install(head)
        if tie:
            old.install(None)
        return renewed(lost, verify)


@contextmanager
def _changing(
    head: OutputHead, optimizer: Optimizer | None, *others: nn.Module
) -> Generator[Callable[[tuple[str, ...], bool], HeadChange]]:
    """Put back the model, its configuration, the optimizer and other modules if the change inside raises.

    Yields what brings the optimizer up to date and verifies: it takes what was given up, and whether to verify.
    """
    require_optimizer("a change of the head", optimizer)
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


def _check(head: nn.Linear, old: OutputHead) -> None:
    linear = plain_linear(head)
    if linear is None or linear is not head or not has_no_bias(linear):
        raise WeightsError(
            f"replace_head: given {head}, expected a torch.nn.Linear without bias: a reload loses anything else.",
            code="head-not-plain",
            remedy="Give the Linear itself (head[0] of a Sequential), made with bias=False.",
        )
    there = old.embedding
    if head.weight.shape != there.shape or head.weight.dtype != there.dtype or head.weight.device != there.device:
        raise misfit(old, head.weight, "replace_head")
