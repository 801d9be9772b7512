"""Save, reload and compare: what a prediction is held against, and what `save_hf` does before anything is kept."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pellucid.errors import PellucidWarning, WeightsError
from pellucid.run.model import CkptedTransformer
from pellucid.ties.memory import Named, clusters
from pellucid.weights.importing import same_numbers

_COLUMNS = 8


@dataclass(frozen=True)
class Difference:
    """What is not the same after a reload; empty where everything is.

    Attributes:
        tensors: Names with other numbers, dtypes or shapes, or on one side only.
        ties: Names that share memory on one side only.
        outputs: Whether the outputs were compared and are equal to the bit; None if the model could not be run.
    """

    tensors: tuple[str, ...]
    ties: tuple[str, ...]
    outputs: bool | None

    @property
    def empty(self) -> bool:
        """Whether nothing was found."""
        return not self.tensors and not self.ties and self.outputs is not False

    def __str__(self) -> str:
        parts = [f"{', '.join(self.tensors[:4])} not the same numbers"] if self.tensors else []
        parts += [f"{', '.join(self.ties[:4])} not tied as before"] if self.ties else []
        parts += ["other outputs"] if self.outputs is False else []
        return "; ".join(parts)


def reloads(model: nn.Module) -> Difference:
    """Save a model of ours or of transformers into a temporary folder, reload it from there and compare."""
    with tempfile.TemporaryDirectory(prefix="pellucid-") as folder:
        if isinstance(model, CkptedTransformer):
            model.save_pretrained(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PellucidWarning)  # of NaN and the like, which the model has already
                again = CkptedTransformer.from_pretrained(folder, dtype="stored", device=model.device)
            return Difference(*_tensors(model, again), outputs=None)
        save_quietly(model, Path(folder))
        return compare(model, read_again(model, Path(folder)))


def save_quietly(model: Any, folder: Path) -> None:
    """transformers' `save_pretrained`, without its progress bar, leaving the configuration as it was.

    Raises:
        WeightsError: It raised.
    """
    config = dict(vars(model.config))
    try:
        with quiet():
            model.save_pretrained(folder)
    except (RuntimeError, ValueError, AttributeError, TypeError) as problem:  # shared memory, what is no tensor, …
        raise WeightsError(
            f"{type(model).__name__}.save_pretrained: {str(problem).splitlines()[0]}",
            code="save-raises",
            remedy="Mend what it names; pl.audit_ties(model).problems says which tensors share memory and what to do.",
        ) from problem
    finally:
        vars(model.config).clear()
        vars(model.config).update(config)


def read_again(model: Any, folder: Path) -> Any:
    """The same class from a folder, on the same device, with the same attention.

    Raises:
        WeightsError: Reading raised.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    try:
        with quiet():
            again = type(model).from_pretrained(folder, attn_implementation=attention, local_files_only=True)
    except (RuntimeError, ValueError, TypeError) as problem:
        raise WeightsError(
            f"{type(model).__name__}.from_pretrained: {str(problem).splitlines()[0]}",
            code="reload-raises",
            remedy="Look at pl.audit_ties(model): after_reload says why, and problems what to do.",
        ) from problem
    return again.to(model.device)


@contextmanager
def quiet() -> Generator[None]:
    """transformers without progress bars and loading reports: what they would say is compared instead."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(50)  # CRITICAL
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def compare(model: Any, again: Any) -> Difference:
    """A transformers model and its reload: tensors, ties, and what they compute on the same memory."""
    tensors, ties = _tensors(model, again)
    return Difference(tensors, ties, None if tensors or ties else _same_outputs(model, again))


def _tensors(model: nn.Module, again: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    before, after = model.state_dict(), again.state_dict()
    names = dict.fromkeys((*before, *after))
    other = tuple(name for name in names if not _same(before.get(name), after.get(name)))
    tied, tied_after = _tied(before), _tied(after)
    return other, tuple(sorted(name for name in names if tied.get(name) != tied_after.get(name)))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and same_numbers(a, b)


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, frozenset[str]]:
    together = clusters([Named(name, tensor) for name, tensor in tensors.items()])
    return {one.name: frozenset(o.name for o in cluster) for cluster in together for one in cluster if len(cluster) > 1}


def _same_outputs(model: Any, again: Any) -> bool | None:
    """Run both on the tensors of the first, so that not even the alignment of memory differs.

    Only the outputs' first tensor, the logits or the last hidden state, is compared. Every module's mode is put
    back; no random numbers are drawn.
    """
    vocabulary = getattr(model.config, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return None
    ids = (torch.arange(_COLUMNS, device=model.device) % vocabulary)[None]
    modes = {module: module.training for module in model.modules()}
    try:
        # Warnings of padding or of dummy inputs concern both alike.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                first = _first(model.eval()(input_ids=ids))
            except (RuntimeError, ValueError, TypeError, IndexError):
                return None  # a model that takes other inputs
            second = _first(torch.func.functional_call(again.eval(), _tensors_once(model), (), {"input_ids": ids}))
    finally:
        for module, training in modes.items():
            module.training = training
    return _same(first, second)


def _tensors_once(model: nn.Module) -> dict[str, Tensor]:
    """Every name of a state dict, tied ones with one and the same object."""
    tensors = model.state_dict()
    together = clusters([Named(name, tensor) for name, tensor in tensors.items()])
    return {one.name: cluster[0].tensor for cluster in together for one in cluster}


def _first(outputs: Any) -> Tensor:
    return cast(Tensor, outputs[0])
