"""Two models compared to the bit: parameters by value, checkpoints by role, the first divergence by name.

Both models run freely and forced (see `pellucid.prove.program`), in their own dtype and in float64. A difference
that float64 makes vanish is rounding; one that stays is an error, whatever its size. So no tolerance is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, overload

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pellucid.check import require_tree
from pellucid.errors import InputError, shown
from pellucid.html.listing import counted
from pellucid.names.calls import COMPARING, named_arguments
from pellucid.numerics.dense import bring_back
from pellucid.numerics.dispatch import ordinary_tensors
from pellucid.numerics.freed_memory import LITTLE, keep_freed
from pellucid.numerics.rounding import relative_error, same_bits
from pellucid.prove.about import About
from pellucid.prove.comparison import Comparison, Progress, silently
from pellucid.prove.copies import is_scripted
from pellucid.prove.dicts import compare_dicts, compare_unrecognised, compare_with_dict
from pellucid.prove.held import all_in
from pellucid.prove.lending import Loan, runs_without_meta
from pellucid.prove.program import Program
from pellucid.prove.report import ComparisonReport, Verdict
from pellucid.prove.sides import DEFAULT_TEXT, ids_of, opened, pairs, with_values
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.text.batch import Inputs
from pellucid.text.tokenizer import Tokenizer

_SEVERITY: tuple[Verdict, ...] = ("identical", "equivalent", "inconclusive", "different")


@overload
def compare(a: Tensor, b: Tensor) -> TensorComparison: ...  # pyright: ignore[reportOverlappingOverload] (Any is models)
@overload
def compare(
    a: Any, b: Any, inputs: Inputs = ..., tokenizer: Tokenizer | None = None, *, progress: Progress = ...
) -> ComparisonReport: ...


@named_arguments(COMPARING)
@ordinary_tensors()
def compare(
    a: Any,
    b: Any,
    inputs: Inputs = DEFAULT_TEXT,
    tokenizer: Tokenizer | None = None,
    *,
    progress: Progress = silently,
) -> TensorComparison | ComparisonReport:
    """Compare two tensors, or two models.

    Args:
        a: A tensor; or a `CkptedTransformer`, a transformers `GPT2Model` or `GPT2LMHeadModel`, any `nn.Module`, a
            state dict, a path, an alias, a hub id, or "hf:" and one of these three. If both are modules of other
            classes, one must be recognisable as a GPT-2 by its shapes and by what it computes.
        b: The other.
        inputs: What to run both on: whatever a model takes. Not read for two state dicts. If it is left out and no side
            has a tokenizer, ids are drawn with a fixed seed.
        tokenizer: For text; else the first side's that has one.
        progress: Called with what is being done, and the share of the work that is behind.

    Returns:
        For tensors, how they differ. For models, a report whose truth value is "identical or equivalent".

    What a path or a name stands for is opened in the dtype that it is stored in.

    Raises:
        InputError: If neither side can be recognised as a GPT-2, text was given and no side has a tokenizer, or one
            has tensors without values that a run reads: on the meta device, or in a lazy module that never ran.

    Example:
        >>> import pellucid as pl
        >>> report = pl.compare(pl.load(), pl.to_hf(pl.load()), inputs="Once upon a time")
        >>> report.verdict
        'identical'
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        require_values(a)
        require_values(b)
        return compare_tensors(with_values(a, "a"), with_values(b, "b"))
    sides = opened(a), opened(b)
    first, second = (opening.side for opening in sides)
    empty = [
        f"{name}: {note}" for name, side in zip("AB", (first, second), strict=True) for note in require_values(side)
    ]
    about = About(sides[0].name, sides[1].name)
    if not isinstance(first, nn.Module) and not isinstance(second, nn.Module):
        return replace(compare_dicts(first, second), about=about)
    todo = pairs(first, second)
    if not todo:
        return replace(compare_unrecognised(first, second), about=about)
    if sum(parameter.numel() for parameter in todo[0].reference.parameters()) > LITTLE:
        keep_freed()  # each run in float64 converts every weight again, into fresh memory otherwise
    ids, ran, notes = ids_of(todo[0].reference, inputs, tokenizer, sides)
    lengths = tuple(map(len, ran.ids))
    reports: list[ComparisonReport] = []
    turned: list[nn.Module] = []
    for pair in todo:
        if isinstance(pair.other, nn.Module):
            made = Comparison(pair.reference, pair.other, ids, pair.swapped, progress=progress, lengths=lengths)
            reports.append(made.report())
            turned += [pair.other] if made.turned else []
        else:
            reports.append(compare_with_dict(pair, ids, lengths, progress))
    head = todo[0].reference.embed.W_E.detach()
    modules = [(name, side) for name, side in zip("AB", (first, second), strict=True) if isinstance(side, nn.Module)]
    modes = (mode_note(name, side, ids, head, side in turned) for name, side in modules)
    notes = (*empty, *notes, *chain.from_iterable(modes))
    worst = max(reports, key=lambda report: _SEVERITY.index(report.verdict))
    return replace(worst, notes=(*notes, *worst.notes), about=replace(about, inputs=ran), distance=reports[0].distance)


def require_values(side: Tensor | nn.Module | Mapping[str, Tensor]) -> tuple[str, ...]:
    """Notes of tensors without values that no run reads; `InputError` if a side has others."""
    if isinstance(side, nn.Module):
        require_tree(side, "compare")
        held = all_in(side)[0]
    else:
        held = {"the tensor": side} if isinstance(side, Tensor) else dict(side)
    waiting = [name for name, tensor in held.items() if nn.parameter.is_lazy(tensor)]
    if waiting:
        raise InputError(
            f"compare: {shown(waiting[0])} of {type(side).__name__} has no shape yet: a lazy module makes its "
            "parameters at its first run.",
            code="compare-no-values",
            remedy="Run the model once on a batch of ids, and remove lazy modules that do not run.",
        )
    empty = [name for name, tensor in held.items() if tensor.is_meta]
    if not empty:
        return ()
    away = bring_back(side) if isinstance(side, nn.Module) else ""
    if isinstance(side, nn.Module) and not away and len(empty) < len(held) and runs_without_meta(side):
        return (f"on the meta device, where nothing has values, and not read in a run of two ids: {shown(empty)}",)
    raise InputError(
        f"compare: {shown(empty[0])} of {type(side).__name__} is on the meta device and has no values"
        f" ({len(empty)} of {len(held)} tensors are).",
        code="compare-no-values",
        remedy=away or "Give it values first: model.to_empty(device='cpu'), then model.load_state_dict(weights)."
        if isinstance(side, nn.Module)
        else "Give tensors with values, such as torch.load(file, map_location='cpu') returns.",
    )


def mode_note(name: str, module: nn.Module, ids: Tensor, head: Tensor, turned: bool) -> list[str]:
    """What to say of a side's module, all or part of which is in training mode, if that changes its logits."""
    children = list(module.modules())
    if any(map(is_scripted, children)) or not any(child.training for child in children):
        return []
    program = Program(Loan(module), (), head, turned=turned)
    try:
        plain = program.plain(ids)
        first, second = (program.plain(ids, evaluating=False, number=number) for number in (0, 1))
    except Exception:  # whatever a foreign forward raises: then the comparison says it
        return []
    if same_bits(first, plain) and same_bits(second, plain):
        return []
    judged = f"it is judged as it evaluates: call {name}.eval() before it is used so"
    if same_bits(first, second):
        gap = relative_error(first, plain)
        return [f"{name} was given in training mode, in which its logits are off by {gap:.2g} of the largest; {judged}"]
    return [f"{name} was given in training mode, in which its logits are random from run to run{_dropout(children)}; "
            f"{judged}"]  # fmt: skip


def _dropout(children: list[nn.Module]) -> str:
    """The dropout that acts, in words; nothing if no module of torch's says so."""
    rates = [child.p for child in children if isinstance(child, _DropoutNd) and child.training and child.p]
    if not rates:
        return ""
    named = ", ".join(f"{rate:g}" for rate in sorted(set(rates)))
    return f" (dropout of {named} in {counted(len(rates), 'module')})"
