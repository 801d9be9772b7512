"""`save_hf`: a transformers checkpoint that is known to come back as the model that was saved."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pellucid import atomic
from pellucid.errors import InputError, WeightsError
from pellucid.ties import reload
from pellucid.ties.audit import TieAudit, audit_ties
from pellucid.ties.subject import is_hf, unwrapped
from pellucid.weights import saves

_GRAVE = ("save-raises", "reload-raises", "reload-replaced", "reload-dropped", "reload-random", "reload-dtype",
          "reload-overwritten", "reload-setting", "tie-not-in-config", "equal-becomes-tied")  # fmt: skip
"""Problems that keep a reload from being the same model."""


@dataclass(frozen=True)
class Saved:
    """What `save_hf` wrote and compared.

    Attributes:
        folder: Where.
        files: Their names.
        nbytes: The bytes of all of them.
        tensors: How many names were compared, to the bit.
        outputs: Whether outputs were compared, too; a model that does not run on ids alone is not run.
        tied: Whether the reloaded head was the embedding; None without a head.
    """

    folder: Path
    files: tuple[str, ...]
    nbytes: int
    tensors: int
    outputs: bool
    tied: bool | None

    def __repr__(self) -> str:
        state = {True: ", tied", False: ", untied", None: ""}[self.tied]
        compared = f"{self.tensors} tensors{' and the outputs' if self.outputs else ''} equal after a reload{state}"
        return f"{self.folder}: {', '.join(self.files)}, {self.nbytes:,} bytes; {compared}"


def save_hf(hf_model: Any, folder: str | os.PathLike[str]) -> Saved:
    """Save a transformers model only if the same class reads the same model back: saves, reloads, compares.

    It is first written beside the folder and read back from there. Tensors are compared to the bit, ties by
    memory, and outputs by running both models once, the model given included (its hooks see that run). Only then
    do the files take their places; on any failure the folder is as it was.

    Args:
        hf_model: Any model of transformers; left as it is, its modes and its configuration included.
        folder: Made if it does not exist.

    Raises:
        InputError: Not a model of transformers.
        WeightsError: Saving or reloading raises, or would give another model; or a folder that cannot be written.
    """
    model = unwrapped(hf_model)
    if not is_hf(model):
        raise InputError(
            f"save_hf: given {type(model).__name__}, expected a model of transformers.",
            code="not-a-transformers-model",
            remedy="Models of pellucid have save_pretrained, which transformers reads; others use torch.save.",
        )
    audit = audit_ties(model)
    if audit.after_reload.survives is not True:
        raise _refusal(audit, audit.after_reload.reason)
    target = Path(folder)
    try:
        with atomic.temporary_folder(_existing(target)) as beside:
            reload.save_quietly(model, beside)
            saves.stamp_folder(beside, target)
            again = reload.read_again(model, beside)
            found = reload.compare(model, again)
            if not found.empty:
                raise _refusal(audit, f"a reload gave another model: {found}")
            names = sorted(entry.name for entry in beside.iterdir())
            size = sum((beside / name).stat().st_size for name in names)
            saves.move(beside, target)
    except (OSError, SafetensorError) as problem:  # the latter, too, may be a full disk
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise WeightsError(
            f"{target}: cannot be written: {reason or problem}.",
            code="path-not-writable",
            remedy="Choose a folder that you may write, with enough free space.",
        ) from problem
    return Saved(
        target, tuple(names), size, len(model.state_dict()), bool(found.outputs), audit.after_reload.tied_after
    )


def _refusal(audit: TieAudit, what: str) -> WeightsError:
    grave = [problem.remedy for problem in audit.problems if problem.code in _GRAVE]
    remedy = (
        grave[0] if grave else "Put a plain head there that is saved as it is: pl.replace_head(model, head, tie=...)."
    )
    return WeightsError(f"save_hf: nothing was saved: {what}.", code="save-would-lose", remedy=remedy)


def _existing(folder: Path) -> Path:
    """The folder or its closest parent that is there: on the file system that the files will be on."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.is_dir())
