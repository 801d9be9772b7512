"""`tie`, `untie`, `replace_head`: change a head so that memory, configuration, optimizer and disk all agree."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pellucid.errors import ShapeError, WeightsError
from pellucid.ties import optimizers, reload
from pellucid.ties.ends import Ends, ends_of, same_place
from pellucid.ties.predict import has_bias, plain_linear
from pellucid.ties.subject import live_subject, unwrapped
from pellucid.weights.importing import same_numbers


@dataclass(frozen=True)
class HeadChange:
    """What a change of the head did.

    Attributes:
        tied: Whether the head is the embedding now.
        given_up: What the model no longer has the numbers of: its old head, or the head given.
        optimizer: "none given", "valid" (it steps every parameter that it did, and the new ones, once), or
            "rebuild" (it must be made again; `note` says why).
        note: About the optimizer, in words; empty where there is nothing to say.
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


def tie(model: nn.Module, *, optimizer: Optimizer | None = None, verify: bool = False) -> HeadChange:
    """Make the head the embedding: one Parameter, a configuration that says so, written once.

    A head that has numbers of its own gives them up; the result says so.

    Args:
        model: One of ours, or one of transformers with a plain head.
        optimizer: Changed in place so that it stays valid, where that is possible.
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
    ends = ends_of(model)
    rows = ends.head_rows()
    if rows.shape != ends.embedding.shape:
        raise _misfit(ends, rows, "tie")
    lost = () if same_place(rows, ends.embedding) or same_numbers(rows, ends.embedding) else (ends.head_name,)
    with _Operation(model, ends, optimizer) as operation:
        ends.declare(True, operation.undo)
        ends.install(None, operation.undo)
        return operation.done(lost, verify=verify)


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
    ends = ends_of(model)
    rows = ends.head_rows()
    with _Operation(model, ends, optimizer) as operation:
        ends.declare(False, operation.undo)
        if same_place(rows, ends.embedding):
            ends.install(_linear(rows.detach().clone(), ends.embedding.requires_grad), operation.undo)
        return operation.done((), verify=verify)


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
    ends = ends_of(model)
    _check(head, ends)
    lost = () if ends.shares else (ends.head_name,)
    if tie and not same_numbers(head.weight.detach(), ends.embedding.detach()):
        lost = (*lost, "the head given")
    with _Operation(model, ends, optimizer) as operation:
        if not tie and same_place(head.weight, ends.embedding):
            operation.undo.callback(setattr, head, "weight", head.weight)
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        ends.declare(tie, operation.undo)
        ends.install(head, operation.undo)
        if tie:
            ends.install(None, operation.undo)
        return operation.done(lost, verify=verify)


class _Operation:
    """A change that is undone, optimizer included, unless it ends in `done`."""

    def __init__(self, model: nn.Module, ends: Ends, optimizer: Optimizer | None) -> None:
        self.model, self.ends, self.optimizer = unwrapped(model), ends, optimizer
        self.undo = ExitStack()
        self._before = list(self.model.parameters())
        self._head = [self._head_now()]

    def __enter__(self) -> _Operation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.undo.close()  # nothing is left to undo after `done`

    def done(self, given_up: tuple[str, ...], *, verify: bool) -> HeadChange:
        """Bring the optimizer up to date, verify, and keep the change."""
        status, note = self._renew()
        if verify:
            found = reload.reloads(self.model)
            if not found.empty:
                raise WeightsError(
                    f"{type(self.model).__name__}: a reload gave another model: {found}. The change was undone.",
                    code="reload-differs",
                    remedy="Look at pl.audit_ties(model).problems, which says what else keeps it from being "
                    "saved, and do that first.",
                )
        self.undo.pop_all()
        return HeadChange(self.ends.tied, given_up, status, note, True if verify else None)

    def _head_now(self) -> Tensor:
        return self.ends.embedding if self.ends.head is None else self.ends.head

    def _renew(self) -> tuple[str, str]:
        """The optimizer's state in one word, and why."""
        optimizer, now = self.optimizer, list(self.model.parameters())
        if optimizer is None:
            return ("none given", "")
        old, new = _without(self._before, now), _without(now, self._before)
        if (old or new) and not optimizers.can_edit(optimizer):
            return ("rebuild", f"{type(optimizer).__name__} was left as it is; {optimizers.REBUILD}")
        trained = optimizers.holds(optimizer, [*old, *self._head])
        self.undo.callback(optimizers.exchange(optimizer, old, new if trained else [], self.ends.embedding))
        found = optimizers.look(optimizer, live_subject(self.model).named)
        # What else it does not step is the caller's choice.
        gone = trained and not optimizers.holds(optimizer, [self._head_now()])
        missed = (self.ends.head_name,) if gone else ()
        wrong = optimizers.sentence(optimizers.OptimizerFindings(found.twice, found.stale, missed))
        return ("valid", "") if wrong is None else ("rebuild", f"it {wrong}; {optimizers.REBUILD}")


def _without(some: list[nn.Parameter], others: list[nn.Parameter]) -> list[Tensor]:
    known = {id(other) for other in others}
    return [one for one in some if id(one) not in known]


def _linear(rows: Tensor, requires_grad: bool) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    linear.weight = nn.Parameter(rows, requires_grad=requires_grad)
    return linear


def _check(head: nn.Linear, ends: Ends) -> None:
    if plain_linear(head) is not head or has_bias(head):
        raise WeightsError(
            f"replace_head: given {head}, expected a torch.nn.Linear without bias: a reload loses anything else.",
            code="head-not-plain",
            remedy="Give the Linear itself (head[0] of a Sequential), made with bias=False.",
        )
    there = ends.embedding
    if head.weight.shape != there.shape or head.weight.dtype != there.dtype or head.weight.device != there.device:
        raise _misfit(ends, head.weight, "replace_head")


def _misfit(ends: Ends, rows: Tensor, verb: str) -> ShapeError:
    there = ends.embedding
    return ShapeError(
        f"{verb}: the head is {list(rows.shape)} {rows.dtype} on {rows.device}, expected what {ends.embed_name} is: "
        f"{list(there.shape)} {there.dtype} on {there.device}.",
        code="head-shape",
        remedy="Make it torch.nn.Linear(n_embd, vocab_size, bias=False) and move it with .to(model.device, "
        "model.dtype); resize the embedding first if the vocabulary is to change.",
    )
