"""A save and a reload by transformers itself, without writing or copying the numbers.

transformers decides which names are written, and its own `from_pretrained` reads them into a model. What it reads are
stand-ins: each has the name, the shape and the dtype of a written tensor and holds a single number, stretched to that
shape, so a model of any size takes a few kilobytes. The number says afterwards which tensor came to which name.
Only the configurations, a few kilobytes, pass through a temporary folder.
"""

from __future__ import annotations

import copy
import errno
import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pellucid.errors import PellucidError, WeightsError
from pellucid.ties.memory import Named, alike, clusters
from pellucid.ties.subject import Declared, weight_names

GENERATION = "generation_config"
"""Begins the reason when transformers refuses to write the generation configuration."""
NO_TENSOR = "in the state dict is no tensor"
"""Is part of the reason when an entry of the state dict cannot be written."""


class Refused(Exception):  # noqa: N818 (an answer, not a failure: it never leaves the package)
    """Saving or reading raises; the text says why."""


@dataclass(frozen=True)
class Reread:
    """What `from_pretrained` made of tensors."""

    # each name of the model's state dict -> the name in the file that its numbers come from; None if they were drawn at
    # random
    source: Mapping[str, str | None]
    unread: tuple[str, ...]  # the names in the file whose numbers came to no name
    ties: Mapping[str, str]  # target -> source, as class and configuration declare them
    tied: frozenset[str]  # the names that share their Parameter with another name
    head: str | None  # the name of the output head's weight; None without a head
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)  # the dtype of each name
    # the model's modules by path, a shared one under each of its paths
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


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


def written(model: Any, declared: Declared) -> dict[str, Tensor]:
    """Return what `save_pretrained` of a transformers model writes, by name; raise `Refused` if it raises."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    state = model.state_dict()
    for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
        state.pop(name, None)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        path = others[0].partition("._packed_params")[0]
        quantized = f", as {path} is quantized" if path != others[0] else ""
        raise Refused(f"save_pretrained raises: {others[0]} {NO_TENSOR}{quantized}")
    try:
        with quiet():
            return remove_tied_weights_from_state_dict(dict(state), model)
    except Exception as problem:
        raise Refused(f"save_pretrained raises: {_sharing(state, declared) or problem}") from problem


def _sharing(state: Mapping[str, Tensor], declared: Declared) -> str:
    """Which names share memory without being declared; empty if that is not why saving raised."""
    if declared.malformed:
        return f"_tied_weights_keys of {declared.malformed[0]} is a list, expected a dict"
    together = [[one.name for one in cluster] for cluster in clusters([Named(n, t) for n, t in state.items()])]
    shared = [sorted(names) for names in together if len(set(names) - set(declared.by_class or {})) > 1]
    shared = shared or [sorted(names) for names in together if len(names) > 1]
    said = "; ".join(" and ".join(names) for names in shared)
    return f"{said} share memory, and the class does not declare it" if said else ""


def saved_configuration(model: Any) -> Any:
    """Return the configuration of a transformers model as a save and a reload give it back.

    Raise `Refused` if saving or reading it, or saving the generation configuration, raises.
    """
    config = copy.deepcopy(model.config)
    config.dtype, config.architectures = str(model.dtype).removeprefix("torch."), [type(model).__name__]
    generation = copy.deepcopy(getattr(model, "generation_config", None)) if model.can_generate() else None
    with temporary_folder() as folder, quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _refusing("save_pretrained raises: config"):
            config.save_pretrained(folder)
        with _refusing(f"save_pretrained raises: {GENERATION}"):
            if generation is not None:
                generation.save_pretrained(folder)
        with _refusing("from_pretrained raises: config"):
            return type(config).from_pretrained(folder)


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A folder that is removed at the end; a disk that refuses it, or what is written there, is an error of ours."""
    try:
        with tempfile.TemporaryDirectory(prefix="pellucid-") as folder:
            yield Path(folder)
    except PellucidError:
        raise
    except (OSError, SafetensorError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise WeightsError(
            f"no temporary folder can be written: {reason or problem}.",
            code="path-not-writable",
            remedy="Set the environment variable TMPDIR to a folder that you may write.",
        ) from problem


def of_a_disk(problem: Exception) -> bool:
    """Whether a disk refuses something: transformers has OSErrors without a number, and a class may miss a file."""
    return isinstance(problem, OSError) and problem.errno not in (None, errno.ENOENT)


@contextmanager
def _refusing(what: str) -> Generator[None]:
    """Say with `Refused` what a configuration's own checks raise."""
    try:
        yield
    except Exception as problem:
        if of_a_disk(problem):
            raise
        raise Refused(f"{what}: {' '.join(str(problem).split())}") from problem


def reread(cls: Any, config: Any, tensors: Mapping[str, Tensor]) -> Reread:
    """Let `from_pretrained` read stand-ins for a file's tensors; raise `Refused` if it does. `config` is changed."""
    dtype = getattr(torch, str(getattr(config, "dtype", None)).removeprefix("torch."), None)
    numbers = _numbers(tensors, dtype if isinstance(dtype, torch.dtype) else None)
    given = {
        name: torch.tensor(numbers[name], dtype=t.dtype, device="cpu").expand(t.shape) for name, t in tensors.items()
    }
    try:
        model = _read(cls, config, given)
    except RuntimeError:
        if wrong := _misfits(cls, config, tensors):
            raise Refused(f"from_pretrained raises: {wrong}") from None
        # A class that draws into weights behind the back of transformers' guards needs memory to draw into.
        model = _read(cls, config, {name: tensor.contiguous() for name, tensor in given.items()})
    state = model.state_dict(keep_vars=True)
    objects: dict[int, list[str]] = {}
    for name, tensor in state.items():
        objects.setdefault(id(tensor), []).append(name)
    tied = frozenset(name for names in objects.values() if len(names) > 1 for name in names)
    held = {name: tensor[(0,) * tensor.dim()].item() for name, tensor in given.items() if tensor.numel()}
    source = {name: _source(name, tensor.detach(), held) for name, tensor in state.items()}
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    arrived = {held.get(name) for name in source.values() if name is not None}
    unread = tuple(name for name in given if name not in source and held.get(name) not in arrived)
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    return Reread(source, unread, ties, tied, weight_names(model)[0], dtypes, modules)


def _read(cls: Any, config: Any, tensors: Mapping[str, Tensor]) -> Any:
    # Tensors that are not in the file are drawn, from a generator that is put back afterwards.
    with torch.random.fork_rng(devices=[]), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = dict(tensors)
        return cls.from_pretrained(None, config=copy.deepcopy(config), state_dict=given, local_files_only=True)


def _misfits(cls: Any, config: Any, tensors: Mapping[str, Tensor]) -> str:
    """Which tensors have other shapes than in the class, which transformers' own error does not say."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in cls(copy.deepcopy(config)).state_dict().items()}
    named = {name if name in shapes else f"{cls.base_model_prefix}.{name}": t for name, t in tensors.items()}
    return misfits(named, shapes)


def misfits(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Which tensors of a file have other shapes than the parameters of their names; empty if none have."""
    return "; ".join(
        f"{name} is {list(tensor.shape)} in the file and {list(shapes[name])} in the model"
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != shapes.get(name, tuple(tensor.shape))
    )


def _numbers(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Any]:
    """A number for each tensor; the same one for tensors that transformers, which compares them, finds equal."""
    converted = [
        Named(name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)
        for name, tensor in tensors.items()
    ]
    groups = alike(converted, torch.equal)  # to which a NaN equals nothing
    number = {one.name: i for i, group in enumerate(groups) for one in group}
    return {
        name: _number(number[name]) if tensor.is_floating_point() or tensor.is_complex() else 2 + number[name] % 100
        for name, tensor in tensors.items()
    }


def _number(i: int) -> float:
    """One of 7,366 numbers that float16 and bfloat16 hold exactly, and that no initialisation repeats as 0 or 1."""
    exponent, fraction = divmod(i % 3683, 127)
    return (-1 if i // 3683 % 2 else 1) * (1 + (fraction + 1) / 128) * 2.0 ** (exponent - 13)


def _source(name: str, tensor: Tensor, held: Mapping[str, Any]) -> str | None:
    if tensor.numel() == 0:
        return name
    first, last = tensor[(0,) * tensor.dim()].item(), tensor[(-1,) * tensor.dim()].item()
    if first != last:
        return None
    return name if held.get(name) == first else next((other for other, value in held.items() if value == first), None)
