"""One text of a run with every checkpoint: what a trace is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pellucid.check import require_whole
from pellucid.errors import InputError
from pellucid.family.network import Network
from pellucid.run.activations import ActivationCkpts
from pellucid.run.cost import estimate
from pellucid.run.edit import Edit
from pellucid.run.model import CkptedTransformer
from pellucid.text.batch import Inputs

MOST_SQUARE = 256
"""Tokens up to which whole patterns and scores are kept; of longer texts patterns are pooled."""

_SCORES = "attn.ckpt_scores"

MOST_MEMORY = 4 << 30
"""Bytes of values that a view captures; a text of 1,024 tokens in GPT-2 small takes less than a third."""


@dataclass(frozen=True)
class OneText:
    """A text of a run, without pads."""

    model: CkptedTransformer  # what ran
    ckpts: ActivationCkpts  # its values [1, P, ...]: every checkpoint, but the scores of long texts
    logits: Tensor  # [P, V], those of the run
    edits: tuple[Edit, ...]  # what was changed on the way
    row: int  # which text of the run it is
    rows: int  # how many texts the run had

    @property
    def ids(self) -> list[int]:
        """The text's ids."""
        return self.ckpts.batch.ids[0].tolist()

    @property
    def n_tokens(self) -> int:
        """P."""
        return self.ckpts.batch.ids.size(1)


def run_text(model: CkptedTransformer, text: Inputs, edits: Sequence[Edit] = ()) -> OneText:
    """Run a text and capture what a trace needs."""
    batch = model.tokenize(text)
    if len(batch) != 1:
        raise InputError(
            f"view: {len(batch)} texts given, expected one.",
            code="view-one-text",
            remedy="Give one text.",
        )
    _, ckpts = model.run_with_ckpts(batch, names=_wanted(model, batch), edits=list(edits))
    return of_run(ckpts)


def of_run(ckpts: ActivationCkpts, *, text: int = 0, model: Network | None = None) -> OneText:
    """Take one text of a run; what was not captured is captured by running the texts again."""
    row = require_whole("view: text", text, at_most=len(ckpts.batch) - 1)
    maker = cast(CkptedTransformer, ckpts.made_by(model, "view"))
    whole = _complete(ckpts, maker)
    with torch.no_grad():
        logits = maker.unembed(whole["ln_final.ckpt_normalized"])
    real = logits[row, whole.batch.mask[row].to(logits.device)].cpu()
    return OneText(maker, whole.of_text(row), real, tuple(ckpts.fired), row, len(ckpts.batch))


def _wanted(model: CkptedTransformer, inputs: Inputs) -> list[str]:
    """The checkpoints to capture."""
    batch = model.tokenize(inputs)
    names = list(model.schema.names)
    if batch.shape[1] > MOST_SQUARE:
        names = [name for name in names if not name.endswith(_SCORES)]
    takes = int(estimate(model, batch, names))
    if takes > MOST_MEMORY:
        raise InputError(
            f"view: the values of {batch.shape[1]} tokens take {takes / 2**30:.1f} GiB in memory, expected at most "
            f"{MOST_MEMORY >> 30}.",
            code="view-too-large",
            remedy="Give a shorter text, or fewer texts at once.",
        )
    return names


def _complete(ckpts: ActivationCkpts, model: CkptedTransformer) -> ActivationCkpts:
    """The run with every checkpoint: itself, or the same texts run again with the same edits."""
    names = _wanted(model, ckpts.batch)
    if ckpts.part.is_everything and all(name in ckpts for name in names):
        return ckpts
    if ckpts.edited is None or (ckpts.edited and not ckpts.fired):
        raise InputError(
            "view: values are missing, and the run had edits that were not saved with them.",
            code="view-not-repeatable",
            remedy="Capture everything: model.run_with_ckpts(text, edits=edits) without names=, and view that.",
        )
    _, again = model.run_with_ckpts(ckpts.batch, names=names, edits=list(ckpts.fired))
    for name, value in ckpts.items():
        if not _same(value, again, name, ckpts):
            raise InputError(
                f"view: values are missing, and when the texts were run again {name!r} was another one: the run began "
                "elsewhere (start_at=), dropped values out, or ran on another machine.",
                code="view-not-repeatable",
                remedy="Capture everything: model.run_with_ckpts(text) without names=, pos= and heads=, and view that.",
            )
    return again


def _same(value: Tensor, again: ActivationCkpts, name: str, ckpts: ActivationCkpts) -> bool:
    """Whether a captured value, or the part of it that was kept, came out again to the bit."""
    if name not in again:
        return True
    axes = ckpts.schema[name].axes
    other = again[name]
    for axis, entries in ckpts.part.indices(name, other.shape, axes, strict=False).items():
        other = other.index_select(axis, entries.to(other.device))
    return value.shape == other.shape and bool((value.detach().to(other.device) == other).all())
