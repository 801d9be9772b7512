"""The dtypes in which two programs are compared, and what both compute in the dtypes that they have.

Programs of two dtypes are compared on common ground, else nothing would be equal. But what is judged is what their
callers run, so each also runs once as it is, with nothing converted: one that cannot is no model, and one whose own
arithmetic leaves the range of its dtype gives no logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pellucid.numerics.dispatch import DispatchMode
from pellucid.prove.alignment import Alignment
from pellucid.prove.calling import NoLogitsError
from pellucid.prove.copies import parameter_dtypes, with_their_values
from pellucid.prove.lending import Loan
from pellucid.prove.program import Program
from pellucid.run.model import CkptedTransformer


@dataclass(frozen=True)
class Ground:
    """What two programs are converted to."""

    mixed: bool = False  # whether there is more than one dtype
    dtype: torch.dtype | None = None  # both run in this one; None if each keeps its own
    note: str = ""  # what the reader should know of it


def common_ground(reference: nn.Module, other: nn.Module) -> Ground:
    """The coarsest dtype of two programs, unless one of them has several: such a program runs in no other way."""
    ours, theirs = parameter_dtypes(reference), parameter_dtypes(other)
    if len(ours | theirs) < 2:
        return Ground()
    named = ", ".join(sorted(map(_word, ours | theirs)))
    if max(len(ours), len(theirs)) > 1:
        words = "parameters were rounded to the coarser of each two first, and the models"
        return Ground(True, None, f"the dtypes are {named}: {words} can be no more than equivalent")
    dtype = max(ours | theirs, key=step_of)
    words = f"both were rounded to {_word(dtype)} first, and can be no more than equivalent"
    return Ground(True, dtype, f"the dtypes are {named}: {words}")


def rounded_alike(
    reference: CkptedTransformer, program: Program, alignment: Alignment, others: Mapping[str, Tensor]
) -> CkptedTransformer:
    """Give each parameter of two programs the values that the coarser of its two dtypes has; the dtypes stay.

    Returns a copy of the reference; the program's loan is changed.
    """
    units = {name: reference.parameter(name).dtype for name in reference.parameter_names}
    same = [match for match in alignment.matches if match.comparison.bit_equal]
    finer = [match for match in same if step_of(others[match.name].dtype) > step_of(units[match.group.units[0]])]
    coarser = [match for match in same if step_of(others[match.name].dtype) < step_of(units[match.group.units[0]])]
    changed = {
        id(tensor): nn.Parameter(tensor.detach().to(units[match.group.units[0]]).to(tensor), requires_grad=False)
        for match in coarser
        if isinstance(tensor := others[match.name], nn.Parameter)
    }
    program.loan = program.loan.replacing(changed)
    return with_their_values(reference, finer, others)


def step_of(dtype: torch.dtype) -> float:
    """The relative step between the numbers of a dtype."""
    return torch.finfo(dtype).eps


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class DidNotRunError(Exception):
    """A program raises as its caller runs it; the message says where, and what."""


@dataclass(frozen=True)
class AsGiven:
    """Two programs with nothing converted."""

    reference: CkptedTransformer  # the caller's
    program: Program  # the caller's other one

    def logits(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the reference and the other program give, each in its own dtype; an error if one gives no logits."""
        ours = Program(Loan(self.reference), (), self.program.head)
        return _logits(ours, "the reference", ids), _logits(self.program, "the other model", ids)


def _logits(program: Program, name: str, ids: Tensor) -> Tensor:
    try:
        return program.plain(ids)
    except NoLogitsError:
        raise
    except Exception as error:  # whatever a foreign forward raises
        dtypes = " and ".join(sorted(map(_word, parameter_dtypes(program.loan.module))))
        raise DidNotRunError(f"{name} does not run as it is, in {dtypes}: {program.failure(ids, error)}") from error


def coarsest_in(program: Program, ids: Tensor) -> torch.dtype:
    """The coarsest dtype among what a program computes: `torch.autocast` chooses others than its parameters have.

    So does torch for products of float32 if it is allowed to.
    """
    seen = _Dtypes()
    with seen:
        logits = program.plain(ids)
    fast = torch.get_float32_matmul_precision() != "highest"
    return max([*seen.found, logits.dtype, *([torch.bfloat16] if fast else [])], key=step_of)


class _Dtypes(DispatchMode):
    """Keeps the floating dtypes of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found |= {t.dtype for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()}
        return out
