"""Two models compared to the bit: parameters by value, checkpoints by role, the first divergence by name.

Both models run freely and forced (see `pellucid.prove.program`), in their own dtype and in float64. A difference
that float64 makes vanish is rounding; one that stays is an error, whatever its size. So no tolerance is chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from pellucid.batch import Inputs
from pellucid.errors import InputError, WeightsError
from pellucid.model import CkptedTransformer
from pellucid.open import from_hf, load
from pellucid.prove.alignment import Alignment, align
from pellucid.prove.causes import Stage, confirmed_cause, relative_error
from pellucid.prove.program import Program, Values, sites_of
from pellucid.prove.report import (
    CheckpointRow,
    ComparisonReport,
    Divergence,
    Verdict,
    describe_difference,
    parameter_rows,
)
from pellucid.prove.tensors import TensorComparison, compare_tensors
from pellucid.prove.units import units_of
from pellucid.tokens import Tokenizer

BEYOND_ROUNDING = 1e-10
"""Relative error in float64 that rounding never reaches (it stays near 1e-15) and that every real difference passes."""

LOGITS = "logits"


class Runnable(Protocol):
    """A model as named values: runs freely, or forced onto a reference's values."""

    def run(self, ids: Tensor, replace_by: Values | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, P, V] and the values of the checkpoints that it shows."""
        ...


@dataclass(frozen=True)
class Glass:
    """A `CkptedTransformer`, whose checkpoints are all shown."""

    model: CkptedTransformer

    def run(self, ids: Tensor, replace_by: Values | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        tap = _ForcingTap({}, replace_by or {})
        mode = self.model.training
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                logits = self.model.eval()(ids, tap)
        finally:
            self.model.train(mode)
        return logits, tap.values


@dataclass(frozen=True)
class _ForcingTap:
    values: dict[str, Tensor]
    replace_by: Values

    def wants(self, name: str) -> bool:
        return not name.endswith(("ckpt_scaled", "ckpt_scores")) and (not self.replace_by or name in self.replace_by)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value.detach().clone()
        if name in self.replace_by and not name.endswith("ckpt_pattern"):
            return self.replace_by[name].to(value)
        return value


@overload
def compare(a: Tensor, b: Tensor) -> TensorComparison: ...  # pyright: ignore[reportOverlappingOverload] (Any is models)
@overload
def compare(a: Any, b: Any, inputs: Inputs = ..., tokenizer: Tokenizer | None = None) -> ComparisonReport: ...


def compare(
    a: Any, b: Any, inputs: Inputs = "alpha beta gamma delta epsilon", tokenizer: Tokenizer | None = None
) -> TensorComparison | ComparisonReport:
    """Compare two tensors, or two models.

    Args:
        a: A tensor; or a `CkptedTransformer`, a transformers `GPT2Model` or `GPT2LMHeadModel`, any `nn.Module`,
            a path, an alias or a hub id. At least one side must be a GPT-2 that is known, not any module.
        b: The other.
        inputs: What to run both on: text, or ids [P] or [B, P] without pads.
        tokenizer: For text; else the first side's that has one.

    Returns:
        For tensors, how they differ. For models, a report whose truth value is "identical or equivalent".

    Raises:
        InputError: Neither side is a known GPT-2, or text was given and no side has a tokenizer.

    Example:
        >>> import pellucid as pl
        >>> report = pl.compare(pl.load(), pl.to_hf(pl.load()), inputs="Once upon a time")
        >>> report.verdict
        'identical'
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return compare_tensors(a, b)
    first, second = (_opened(side) for side in (a, b))
    reference, others = _reference(first, second)
    ids = _ids(reference, (first, second), inputs, tokenizer)
    reports = [_Comparison(reference, other, ids).report() for other in others]
    return max(reports, key=lambda report: _SEVERITY.index(report.verdict))


_SEVERITY: tuple[Verdict, ...] = ("identical", "equivalent", "inconclusive", "different")


def _opened(side: Any) -> nn.Module:
    if isinstance(side, nn.Module):
        return side
    if isinstance(side, (str, Path)):
        if str(side).startswith("hf:"):
            import transformers

            return transformers.AutoModelForCausalLM.from_pretrained(str(side)[3:], dtype=torch.float32)
        return load(side)
    raise InputError(
        f"compare: {type(side).__name__} given, expected two tensors, or two models, paths or names.",
        code="compare-kind",
        remedy="Pass tensors on both sides or models on both sides.",
    )


def _reference(a: nn.Module, b: nn.Module) -> tuple[CkptedTransformer, list[nn.Module]]:
    """The side that is made of glass, or a copy of one of them that is, and what is compared with it."""
    if isinstance(a, CkptedTransformer):
        return a, [b]
    if isinstance(b, CkptedTransformer):
        return b, [a]
    for side, others in ((a, [a, b]), (b, [b, a])):
        try:
            return from_hf(side), others  # pyright: ignore[reportArgumentType] (it refuses other classes)
        except WeightsError:
            continue
    raise InputError(
        f"compare: {type(a).__name__} and {type(b).__name__}, expected at least one GPT-2 that is known.",
        code="compare-unknown-both",
        remedy="Compare each with a CkptedTransformer or a transformers GPT-2, such as pl.load('folder').",
    )


def _ids(
    reference: CkptedTransformer, sides: tuple[nn.Module, nn.Module], inputs: Inputs, tokenizer: Tokenizer | None
) -> Tensor:
    found = tokenizer or next((s.tokenizer for s in sides if isinstance(s, CkptedTransformer) and s.tokenizer), None)
    if isinstance(inputs, str) and found is not None:
        inputs = [found.encode(inputs)]
    batch = reference.tokenize(inputs)
    if batch.padded:
        raise InputError(
            "compare: texts of unequal length, expected rows of one length.",
            code="compare-pads",
            remedy="Compare on one text, or on ids [B, P] without pads.",
        )
    return batch.ids


@dataclass
class _Comparison:
    reference: CkptedTransformer
    other: nn.Module
    ids: Tensor

    def report(self) -> ComparisonReport:
        config = self.reference.config
        units = units_of(self.reference)
        alignment = align(units, dict(self.other.state_dict(keep_vars=True)), config.n_layer, config.n_head)
        notes = _notes(alignment)
        try:
            single = self._measure(self.reference, self.other, alignment)
        except Exception as error:  # whatever a foreign forward raises
            notes.append(f"the other model did not run on ids {list(self.ids.shape)}: {type(error).__name__}: {error}")
            return self._finished("inconclusive", alignment, [], None, notes)
        double = self._double(alignment, notes)
        rows = _rows(single, double)
        divergence = self._divergence(alignment, single, double)
        verdict = _verdict(alignment, rows, divergence, measured=double is not None)
        return self._finished(verdict, alignment, rows, divergence, notes)

    def _finished(
        self,
        verdict: Verdict,
        alignment: Alignment,
        rows: list[CheckpointRow],
        divergence: Divergence | None,
        notes: list[str],
    ) -> ComparisonReport:
        shown = {row.name for row in rows}
        missing = tuple(name for name in self.reference.ckpt_names if name not in shown)
        return ComparisonReport(
            verdict, parameter_rows(alignment), tuple(rows), missing, divergence, alignment, tuple(notes)
        )

    def _double(self, alignment: Alignment, notes: list[str]) -> _Measured | None:
        try:
            reference, other = copy.deepcopy(self.reference).double(), copy.deepcopy(self.other).double()
            return self._measure(reference, other, alignment)
        except Exception as error:  # whatever a foreign forward raises in a dtype that it was not written for
            notes.append(f"rounding could not be told from error: in float64 {type(error).__name__}: {error}")
            return None

    def _measure(self, reference: CkptedTransformer, other: nn.Module, alignment: Alignment) -> _Measured:
        program: Runnable
        if isinstance(other, CkptedTransformer):
            program = Glass(other)
        else:
            program = Program(other, sites_of(alignment, other, reference.config.n_layer), reference.embed.W_E.detach())
        ids = self.ids.to(reference.device)
        logits, values = Glass(reference).run(ids)
        free_logits, free = program.run(ids)
        forced_logits, forced = program.run(ids, {name: values[name] for name in free if name in values})
        if free_logits.shape != logits.shape:
            raise InputError(
                f"the logits have shapes {list(logits.shape)} and {list(free_logits.shape)}",
                code="compare-logits",
                remedy="Compare models of one vocabulary.",
            )
        return _Measured(
            reference,
            {**values, LOGITS: logits},
            {**free, LOGITS: free_logits},
            {**forced, LOGITS: forced_logits},
        )

    def _divergence(self, alignment: Alignment, single: _Measured, double: _Measured | None) -> Divergence | None:
        changed = next((match for match in alignment.matches if not match.comparison.bit_equal), None)
        if changed is not None:
            where = " + ".join(changed.group.units)
            detail = f"{changed.name} {describe_difference(changed.comparison)}"
            return Divergence(where, "parameter", detail)
        return double.first_beyond_rounding() if double is not None else None


@dataclass(frozen=True)
class _Measured:
    """One dtype: the reference's values, and the other's when it runs freely and when it is forced."""

    reference: CkptedTransformer
    values: Values
    free: Values
    forced: Values

    def names(self) -> list[str]:
        """What both show, in execution order."""
        order = {name: place for place, name in enumerate((*self.reference.ckpt_names, LOGITS))}
        return sorted((name for name in self.free if name in self.values), key=order.__getitem__)

    def first_beyond_rounding(self) -> Divergence | None:
        """The first stage whose own error rounding cannot explain."""
        for name in self.names():
            expected, given = self.values[name], self.forced[name]
            error = relative_error(given, expected)
            if error > BEYOND_ROUNDING:
                cause = confirmed_cause(Stage(name, self.values, self.reference), given)
                gap = (given - expected).abs() > BEYOND_ROUNDING * float(expected.abs().max())
                positions = gap.flatten(2).any(-1).any(0) if gap.dim() > 2 else gap.any(0)
                heads = gap.flatten(0, 1).any(-1).any(0) if gap.dim() == 4 else torch.zeros(0)
                return Divergence(
                    name,
                    "logits" if name == LOGITS else "checkpoint",
                    f"its own relative error in float64 is {error:.3g}, which is not rounding",
                    cause,
                    tuple(positions.nonzero().flatten().tolist()),
                    tuple(heads.nonzero().flatten().tolist()),
                )
        return None


def _rows(single: _Measured, double: _Measured | None) -> list[CheckpointRow]:
    rows: list[CheckpointRow] = []
    for name in single.names():
        value, free, forced = single.values[name], single.free[name], single.forced[name]
        rows.append(
            CheckpointRow(
                name,
                bit_equal=value.dtype == free.dtype and torch.equal(value, free),
                fp32=relative_error(free, value),
                fp32_local=relative_error(forced, value),
                fp64=relative_error(double.free[name], double.values[name]) if double else None,
                fp64_local=relative_error(double.forced[name], double.values[name]) if double else None,
            )
        )
    return rows


def _verdict(
    alignment: Alignment, rows: list[CheckpointRow], divergence: Divergence | None, *, measured: bool
) -> Verdict:
    if divergence is not None:
        return "different"
    if not alignment.complete:
        return "inconclusive"
    if all(row.bit_equal for row in rows):
        return "identical" if not _rearranged(alignment) else "equivalent"
    if not measured:
        return "inconclusive"
    explained = all(row.fp64 is not None and row.fp64 <= BEYOND_ROUNDING for row in rows)
    return "equivalent" if explained else "different"


def _rearranged(alignment: Alignment) -> bool:
    """Whether heads stand in another order, so that sums are the same numbers in another order."""
    return any(match.transform.heads is not None for match in alignment.matches)


def _notes(alignment: Alignment) -> list[str]:
    notes: list[str] = []
    kinds: Mapping[str, str] = alignment.buffers
    if kinds:
        notes.append("buffers: " + ", ".join(f"{name} ({what})" for name, what in list(kinds.items())[:4]))
    if alignment.unexplained:
        notes.append("unexplained: " + ", ".join(alignment.unexplained))
    if alignment.missing:
        notes.append("missing: " + ", ".join(alignment.missing))
    if _rearranged(alignment):
        notes.append("heads stand in another order")
    return notes
