"""What transformers writes of a model and what it makes of a checkpoint, worked out without doing either.

The rules are those of `PreTrainedModel.save_pretrained`, `remove_tied_weights_from_state_dict` and
`PreTrainedModel.tie_weights` of transformers 5.20 to 5.24; tests/ties holds them against the real thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.gpt2.config import TransformerConfig
from pellucid.run.versions import WRITES_AS_READ, followed
from pellucid.ties.memory import address
from pellucid.weights.importing import same_numbers
from pellucid.weights.layouts import EMBED, HF, our_shapes
from pellucid.weights.transforms import Place


@dataclass(frozen=True)
class Fresh:
    """What a class builds from a configuration, before weights are read into it.

    Args:
        shapes: The names of its state dict and their shapes.
        ties: Target -> source, where the configuration says tied.
        head: The name of the output head's weight; None without a head.
        embedding: The name of the input embedding's weight.
        modules: What is where; empty if it was not built.
    """

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
    head: str | None
    embedding: str | None
    modules: Mapping[str, nn.Module] = field(default_factory=dict)


def fresh(cls: Any, config: Any, tied: bool | None = None) -> Fresh:
    """Build a class from what its configuration would be after a save, on the meta device.

    Args:
        cls: A class of transformers.
        config: Left as it is.
        tied: What the configuration is to say instead of what it does.
    """
    copy = type(config).from_dict(json.loads(config.to_json_string()))
    if tied is not None:
        copy.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = cls(copy)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    head, embedding = embeddings_of(model)
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Fresh(shapes, ties, head, embedding, dict(model.named_modules(remove_duplicate=False)))


def embeddings_of(model: Any) -> tuple[str | None, str | None]:
    """The names of a transformers model's output and input embedding weights."""
    return (_weight_name(model, "get_output_embeddings"), _weight_name(model, "get_input_embeddings"))


def _weight_name(model: Any, getter: str) -> str | None:
    path = module_path(model, getter)
    return None if path is None else f"{path}.weight"


def module_path(model: Any, getter: str) -> str | None:
    """Where the module that a getter of transformers returns is; None if there is none."""
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return next((path for path, other in model.named_modules() if other is module and path), None)


def fresh_gpt2(config: TransformerConfig, *, headless: bool) -> Fresh:
    """The same for transformers' GPT-2, from our own table of its names: transformers is not needed."""
    ours = our_shapes(config)
    rows = [*HF.rows_of(config), *([] if headless else [HF.head])]
    shapes = {
        name: tuple(shape)
        for row in rows
        for name, shape in zip(
            row.theirs,
            row.transform.shapes(Place(row.ours, ours[row.ours], torch.float32, config.n_head)),
            strict=True,
        )
    }
    embedding = next(row.theirs[0] for row in HF.rows_of(config) if row.ours == EMBED)
    head = None if headless else HF.head.theirs[0]
    ties = {head: embedding} if head is not None and config.tie_word_embeddings else {}
    return Fresh(shapes, ties, head, embedding)


GENERATION = "generation_config"
"""Begins what is said of a generation configuration."""


NO_TENSOR = "in the state dict is no tensor"
"""What is said of an entry that cannot be written."""


class Refused(Exception):  # noqa: N818 (an answer, not a failure: it never leaves the package)
    """Saving or reading would raise; the text says why."""


def written(tensors: Mapping[str, Tensor], potential: Collection[str]) -> dict[str, Tensor]:
    """The tensors that `save_pretrained` writes.

    Args:
        tensors: Name -> tensor, tied names included.
        potential: The targets that classes declare, whatever the configuration says.

    Raises:
        Refused: It raises.
    """
    storages: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        storages.setdefault(_storage(tensor), []).append(name)
    left_out: set[str] = set()
    undeclared: list[list[str]] = []
    for names in storages.values():
        if len(names) < 2:
            continue
        declared = [name for name in sorted(names) if any(re.search(pattern, name) for pattern in potential)]
        removable = set(declared[: len(names) - 1])
        for run in _touching(names, tensors):
            identical = len({(_start(tensors[name]), _end(tensors[name])) for name in run}) == 1
            left_out |= set(run) & removable if identical else set()
            rest = [name for name in run if name not in removable] if identical else run
            if len(rest) > 1:
                undeclared.append(sorted(rest))
    if undeclared:
        shared = "; ".join(" and ".join(names) for names in undeclared)
        raise Refused(f"save_pretrained raises: {shared} share memory, and the class does not declare it")
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def unsaveable_state(model: nn.Module) -> str | None:
    """The names in a model's state dict that are no tensors, such as a quantized head's; None if there are none."""
    others = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if not others:
        return None
    path = others[0].partition("._packed_params")[0]
    quantized = f", as {path} is quantized" if path != others[0] else ""
    return f"{others[0]} {NO_TENSOR}{quantized}"


def unsaveable_generation(model: Any) -> str | None:
    """Why transformers would not write a model's generation configuration; None where it would, or has none."""
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate():
        return None
    if followed() >= WRITES_AS_READ and getattr(config, "_original_object_hash", None) == hash(config):
        return None
    try:
        config.validate(strict=True)
    except ValueError as problem:
        return f"{GENERATION}: {' '.join(str(problem).split())}"
    return None


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    if tensor.is_meta:
        return ("meta", storage._cdata)
    return (str(tensor.device), storage.data_ptr(), storage.nbytes())


def _start(tensor: Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size() if tensor.is_meta else address(tensor)


def _end(tensor: Tensor) -> int:
    return _start(tensor) + tensor.numel() * tensor.element_size()


def _touching(names: list[str], tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of one storage, in runs in which each begins before the one before it ends."""
    strided = next((name for name in names if not tensors[name].is_contiguous()), None)
    if strided is not None:
        raise Refused(f"save_pretrained raises: {strided} shares its storage and is not contiguous")
    runs: list[list[str]] = []
    stop = -1
    for start, end, name in sorted((_start(tensors[name]), _end(tensors[name]), name) for name in names):
        if runs and start < stop:
            runs[-1].append(name)
        else:
            runs.append([name])
        stop = max(stop, end)
    return [run for run in runs if len(run) > 1]


@dataclass(frozen=True)
class Read:
    """What `from_pretrained` makes of a file.

    Args:
        origin: Every name of the model -> the name in the file that its numbers come from; None if they are
            drawn at random.
        ties: Target -> source, as they are in the end.
        unexpected: Names in the file that go nowhere.
    """

    origin: Mapping[str, str | None]
    ties: Mapping[str, str]
    unexpected: tuple[str, ...]


def read(file: Mapping[str, Tensor], model: Fresh, dtype: torch.dtype | None) -> Read:
    """Read tensors into a fresh model, tying as `tie_weights(missing_keys=...)` does.

    Args:
        file: Name -> tensor, as the file has them.
        model: What they are read into.
        dtype: What they are converted to first; None for no conversion.

    Raises:
        Refused: It raises.
    """
    wrong = [
        f"{name} is {list(tensor.shape)} in the file and {list(model.shapes[name])} in the model"
        for name, tensor in file.items()
        if name in model.shapes and tuple(tensor.shape) != model.shapes[name]
    ]
    if wrong:
        raise Refused(f"from_pretrained raises: {'; '.join(wrong)}")
    origin: dict[str, str | None] = {name: name if name in file else None for name in model.shapes}
    ties: dict[str, str] = {}
    missing = {name for name in model.shapes if name not in file}
    pairs = list(model.ties.items())
    for i, (target, source) in enumerate(pairs):
        if target not in missing and source not in missing:
            if not equal(_as(file[target], dtype), _as(file[source], dtype)):
                continue
        elif source in missing and target not in missing:
            target, source = source, target  # noqa: PLW2901 (as in tie_weights)
        elif source in missing:
            later = (other for other, of in pairs[i + 1 :] if of == source and other not in missing)
            source = next(later, source)  # noqa: PLW2901
        origin[target] = origin.get(source)
        ties[target] = source
        if origin[target] is not None:
            missing.discard(target)
    return Read(origin, ties, tuple(name for name in file if name not in model.shapes))


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether transformers takes two tensors for equal: a NaN equals nothing; of meta tensors it cannot be told."""
    alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and not a.is_meta
    return alike and torch.equal(a, b)


def overwritten_by_tying(model: Any) -> tuple[str, ...]:
    """The names whose own tensor `tie_weights()` or `resize_token_embeddings(...)` would replace, as things are."""
    try:
        pairs = model.get_expanded_tied_weights_keys(all_submodels=True).items()
    except (AttributeError, ValueError):  # a list from transformers 4, or patterns that fit nothing
        return ()
    live = dict(model.named_parameters(remove_duplicate=False))
    both = [(target, live[target], live[source]) for target, source in pairs if target in live and source in live]
    return tuple(target for target, a, b in both if not _same_numbers(a, b))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    alike = a.shape == b.shape and a.device == b.device and not a.is_meta
    return a is b or (alike and same_numbers(a, b))
