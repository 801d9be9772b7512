"""What a captured value looks like from outside: its shape, and six numbers about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import pellucid as pl
from pellucid.axes import LETTERS, Axis
from pellucid.schema import Point


@dataclass(frozen=True)
class Summary:
    """One checkpoint of a run.

    Attributes:
        name: The checkpoint.
        axes: What its axes are.
        shape: How long they are.
        dtype: Such as "float32".
        mean, std, min, max: Over all numbers; of scores, over those that the causal mask leaves in.
        norm: Euclidean length of the vectors along the last axis, averaged over the other axes.
        meaning: What the value is, in a few words.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    mean: float
    std: float
    min: float
    max: float
    norm: float
    meaning: str

    @property
    def size(self) -> str:
        """The axes by letter with their lengths, such as "P12 D256"; the batch is left out, it is one text."""
        pairs = zip(self.axes, self.shape, strict=True)
        return " ".join(f"{LETTERS[Axis(axis)]}{length}" for axis, length in pairs if axis != Axis.BATCH)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summarize(ckpts: pl.ActivationCkpts) -> list[Summary]:
    """A summary of each captured value, in execution order."""
    return [_summary(ckpts.schema[name], value) for name, value in ckpts.items()]


def _summary(point: Point, value: Tensor) -> Summary:
    numbers = value.double()
    if point.masked:
        masked = value == torch.finfo(value.dtype).min
        counted, vectors = numbers[~masked], numbers.masked_fill(masked, 0.0)
    else:
        counted, vectors = numbers, numbers
    return Summary(
        point.name, tuple(map(str, point.axes)), tuple(value.shape), str(value.dtype).removeprefix("torch."),
        mean=float(counted.mean()), std=float(counted.std(correction=0)),
        min=float(counted.min()), max=float(counted.max()), norm=float(vectors.norm(dim=-1).mean()),
        meaning=point.meaning,
    )  # fmt: skip


@dataclass(frozen=True)
class NextToken:
    """A token that may come next, and how probable the model thinks it."""

    token: str
    id: int
    probability: float


def likeliest(logits: Tensor, tokens: pl.Tokenizer | None, top: int) -> list[NextToken]:
    """The `top` likeliest tokens, the likeliest first.

    Args:
        logits: [V], at one position.
        tokens: The model's tokenizer; ids as digits without one.
        top: How many, at most all.
    """
    return most_probable(logits.double().softmax(-1), tokens, top)


def most_probable(probabilities: Tensor, tokens: pl.Tokenizer | None, top: int) -> list[NextToken]:
    """The `top` most probable tokens of a distribution [V]; ids as digits without a tokenizer."""
    best = probabilities.topk(min(top, probabilities.numel()))
    ids = best.indices.tolist()
    pieces = [str(i) for i in ids] if tokens is None else tokens.pieces(ids)
    found = zip(pieces, ids, best.values.tolist(), strict=True)
    return [NextToken(piece, i, probability) for piece, i, probability in found]
