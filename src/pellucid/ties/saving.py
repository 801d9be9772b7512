"""Save, reload and compare: `save_hf` keeps only a checkpoint that comes back as the model that was saved."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pellucid import atomic
from pellucid.check import path_of
from pellucid.errors import InputError, PellucidWarning, WeightsError
from pellucid.family.part import require_numbers
from pellucid.names.calls import SAVING, named_arguments
from pellucid.numerics.dispatch import ordinary_tensors
from pellucid.run.model import CkptedTransformer
from pellucid.ties.audit import TieAudit, audit_ties
from pellucid.ties.memory import Named, clusters
from pellucid.ties.predict import equal, predict_ours
from pellucid.ties.standins import of_a_disk, quiet, temporary_folder
from pellucid.ties.subject import is_hf, remember, require_here
from pellucid.weights import saves
from pellucid.weights.foreign import unwrapped

_GRAVE = ("save-raises", "reload-raises", "reload-replaced", "reload-dropped", "reload-random", "reload-dtype",
          "reload-overwritten", "reload-setting", "reload-rounded", "tie-not-in-config",
          "equal-becomes-tied")  # fmt: skip
"""Problems that keep a reload from being the same model."""

_COLUMNS = 8
"""How many tokens both models are run on."""


@dataclass(frozen=True)
class Saved:
    """What `save_hf` wrote and compared.

    Attributes:
        folder: Where.
        files: Their names.
        nbytes: The bytes of all of them.
        tensors: How many names were compared, to the bit.
        outputs: Whether outputs were compared, too; a model that takes more than ids, or lies on several devices, is
            not run.
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


@named_arguments(SAVING)
@ordinary_tensors()
def save_hf(hf_model: Any, folder: str | os.PathLike[str]) -> Saved:
    """Save a transformers model only if the same class reads the same model back: saves, reloads, compares.

    It is first written beside the folder and read back from there. Tensors are compared to the bit, ties by
    memory, and outputs by running both models once, the model given included (its hooks see that run). Only then
    do the files take their places; on any failure the folder is as it was.

    Args:
        hf_model: Any model of transformers; left as it is, its modes and its configuration included.
        folder: Made if it does not exist.

    Raises:
        InputError: If it is no model of transformers.
        WeightsError: If saving or reloading raises or would give another model, or the folder cannot be written.
    """
    model = unwrapped(hf_model)
    if not is_hf(model):
        raise InputError(
            f"save_hf: given {type(model).__name__}, expected a model of transformers.",
            code="not-a-transformers-model",
            remedy="Models of pellucid have save_pretrained, which transformers reads; others use torch.save.",
        )
    require_here("save_hf", model)
    require_numbers("save_hf", model.parameters())
    audit = audit_ties(model)
    if audit.after_reload.survives is not True:
        raise _refusal(audit, audit.after_reload.reason)
    target = path_of(folder)
    try:
        with atomic.temporary_folder(_existing(target)) as beside:
            _save_quietly(model, beside)
            saves.stamp_folder(beside, target)
            different, outputs = _compare(model, _read_again(model, beside))
            if different:
                raise _refusal(audit, f"a reload gave another model: {different}")
            names = sorted(entry.name for entry in beside.iterdir())
            size = sum((beside / name).stat().st_size for name in names)
            saves.move(beside, target)
    except (OSError, SafetensorError) as problem:  # the latter, too, may be a full disk
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise atomic.not_writable(target, reason or str(problem)) from problem
    return Saved(target, tuple(names), size, len(model.state_dict()), outputs, audit.after_reload.tied_after)


def _refusal(audit: TieAudit, what: str) -> WeightsError:
    grave = (problem.remedy for problem in audit.problems if problem.code in _GRAVE)
    beside = "Take away what changes its outputs beside its tensors, such as forward hooks (handle.remove() of each)."
    remedy = next(grave, beside)
    return WeightsError(f"save_hf: nothing was saved: {what}.", code="save-would-lose", remedy=remedy)


def _existing(folder: Path) -> Path:
    """The folder or its closest parent that is there: on the file system that the files will be on."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.is_dir())


def reload_differs(model: nn.Module) -> str:
    """Save a model of ours or of transformers into a temporary folder, reload it, and say what differs, if anything."""
    with temporary_folder() as folder:
        if not isinstance(model, CkptedTransformer):
            _save_quietly(model, folder)
            return _compare(model, _read_again(model, folder))[0]
        model.save_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PellucidWarning)  # of NaN and the like, which the model has already
            again = CkptedTransformer.from_pretrained(folder, dtype="stored", device=model.device)
        after = predict_ours(model)  # which knows what no file holds
        return _different_tensors(model, again) or ("" if after.survives else after.reason)


def _save_quietly(model: Any, folder: Path) -> None:
    """transformers' `save_pretrained`, without its progress bar, leaving the configuration as it was."""
    put_back = remember([vars(model.config)])

    def raised(said: str) -> WeightsError:
        return WeightsError(
            f"{type(model).__name__}.save_pretrained: {said}",
            code="save-raises",
            remedy="Mend what it names; pl.audit_ties(model).problems says which tensors share memory and what to do.",
        )

    try:
        with _calling(raised, SafetensorError):
            model.save_pretrained(folder)
    finally:
        put_back()


def _read_again(model: Any, folder: Path) -> Any:
    """The same class from a folder, on the same device, with the same attention."""

    def raised(said: str) -> WeightsError:
        return WeightsError(
            f"{type(model).__name__}.from_pretrained: {said}",
            code="reload-raises",
            remedy="Look at pl.audit_ties(model): after_reload says why, and problems what to do.",
        )

    attention = getattr(model.config, "_attn_implementation", None)
    with _calling(raised):
        again = type(model).from_pretrained(folder, attn_implementation=attention, local_files_only=True)
    return again.to(model.device)


@contextmanager
def _calling(raised: Callable[[str], WeightsError], *passing: type[Exception]) -> Generator[None]:
    """Run somebody's class: what it raises, by its first line, is an error of ours, but for what the disk refuses."""
    try:
        with quiet():
            yield
    except Exception as problem:
        if of_a_disk(problem) or isinstance(problem, passing):
            raise
        raise raised(next(iter(str(problem).splitlines()), "") or type(problem).__name__) from problem


def _compare(model: Any, again: Any) -> tuple[str, bool]:
    """What differs between a transformers model and its reload, and whether outputs were compared."""
    different = _different_tensors(model, again)
    outputs = None if different else _same_outputs(model, again)
    return different or ("other outputs" if outputs is False else ""), bool(outputs)


def _different_tensors(model: nn.Module, again: nn.Module) -> str:
    """Which names have other numbers, dtypes or shapes, or share memory on one side only; empty if none do."""
    before, after = model.state_dict(), again.state_dict()
    names = dict.fromkeys((*before, *after))
    same = {name for name in before.keys() & after.keys() if _equal(before[name], after[name])}
    other = [name for name in names if name not in same]
    tied, tied_after = _together(before), _together(after)
    apart = sorted(
        name
        for name in names
        if [one.name for one in tied.get(name, ())] != [one.name for one in tied_after.get(name, ())]
    )
    parts = [f"{', '.join(other[:4])} not the same numbers"] if other else []
    parts += [f"{', '.join(apart[:4])} not tied as before"] if apart else []
    return "; ".join(parts)


def _equal(before: Tensor, after: Tensor) -> bool:
    """Whether they are the same, wherever a reload lies: of a model on several devices, it is on one."""
    return equal(before, after if after.is_meta else after.to(before.device))


def _together(tensors: Mapping[str, Tensor]) -> dict[str, list[Named]]:
    """Each name with all names that share memory with it, itself included."""
    found = clusters([Named(name, tensor) for name, tensor in tensors.items()])
    return {one.name: cluster for cluster in found for one in cluster}


def _same_outputs(model: Any, again: Any) -> bool | None:
    """Run both on the tensors of the first, so not even the alignment of memory differs; None if it does not run.

    Only the outputs' first tensor, the logits or the last hidden state, is compared. Every module's mode is put
    back; no random numbers are drawn.
    """
    vocabulary = getattr(model.config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return None
    ids = (torch.arange(_COLUMNS, device=model.device) % vocabulary)[None]
    tensors = {name: together[0].tensor for name, together in _together(model.state_dict()).items()}
    if len({tensor.device for tensor in tensors.values()}) > 1:
        return None
    modes = {module: module.training for module in model.modules()}
    try:
        # Warnings of padding or of dummy inputs concern both alike.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                first = model.eval()(input_ids=ids)[0]
            except Exception:  # whatever a model raises that needs more than ids, such as AttributeError without pixels
                return None
            if not isinstance(first, Tensor):
                return None
            return equal(first, torch.func.functional_call(again.eval(), tensors, (), {"input_ids": ids})[0])
    finally:
        for module, training in modes.items():
            module.training = training
