"""Exchange models with transformers: read its live models and make them, and write a folder that it loads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from pellucid.check import attribute
from pellucid.errors import WeightsError, warn
from pellucid.extras import need
from pellucid.family.families import FAMILIES, family_of
from pellucid.family.json_config import Config
from pellucid.family.part import put_buffers, require_numbers
from pellucid.generate import generation_settings
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.numerics.dispatch import ordinary_tensors
from pellucid.weights import living, saves
from pellucid.weights.foreign import AS_IT_IS, uncompiled
from pellucid.weights.importing import to_ours
from pellucid.weights.layouts import from_ours
from pellucid.weights.load import M, Model, ModelClass, describe, separate
from pellucid.weights.manifests import json_text
from pellucid.weights.own_file import write_tensors


@ordinary_tensors()
def from_hf(cls: ModelClass[M], hf_model: nn.Module, *, attention: str = "auto", numerics: str = "exact") -> M:
    """Copy a live transformers model, as `pellucid.from_hf` says; the model given is only read.

    What counts is what the modules compute, whatever the configuration says: the tie is the one in memory, sizes and
    rates of dropout are those of the modules, a `Linear` in the place of a `Conv1D` is read as the same matrix, and
    what `torch.compile` wrapped is unwrapped. "auto" attends as the model does. What cannot be carried over is refused
    by name.
    """
    given = hf_model
    if isinstance(given, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        _require_gathered(given)
        given = uncompiled(given)
    for family in FAMILIES:
        here = family.in_transformers
        transformers = need("transformers", "from_hf", here.model, here.base)
        if isinstance(given, (getattr(transformers, here.model), getattr(transformers, here.base))):
            read = living.read(hf_model, here.kind)
            break
    else:
        raise _wrong_class(hf_model)
    try:
        imported = to_ours({name: _copy(tensor) for name, tensor in read.tensors.items()}, read.config)
    except WeightsError as problem:
        raise WeightsError(
            f"from_hf: {problem.message}",
            code=problem.code,
            remedy="Give the tensors the sizes of the rest of the model. An untied head gets the embedding's n rows by "
            "hf_model.config.tie_word_embeddings = False; hf_model.resize_token_embeddings(n). " + AS_IT_IS,
        ) from problem
    if attention == "auto":
        attention = read.attention
    source = {"source": f"transformers {type(given).__name__}", **read.notes}
    provenance = describe(imported, imported.weights, source)
    model = cls(
        imported.config, imported.weights, attention=attention, numerics=numerics, provenance=provenance,
        generation=_generation_of(hf_model),
    )  # fmt: skip
    put_buffers(cast(nn.Module, model), {name: _copy(tensor) for name, tensor in read.buffers.items()})
    model.train(hf_model.training)
    return model


def _require_gathered(hf_model: nn.Module) -> None:
    """Refuse a model whose tensors lie in parts, with all of several processes, as FSDP's do."""
    parts = [path for path, module in hf_model.named_modules() if re.match("FSDP|FullyShard", type(module).__name__)]
    if parts:
        raise WeightsError(
            f"from_hf: {parts[0] or 'the model'} is sharded (FSDP), so its tensors lie in parts.",
            code="hf-tensors",
            remedy="Gather them with torch.distributed.checkpoint.state_dict: pl.load(get_model_state_dict(hf_model, "
            "options=StateDictOptions(full_state_dict=True)), config=hf_model.config).",
        )


def _wrong_class(given: object) -> WeightsError:
    """The error for what is no model of a known family of transformers: where it holds one, or what opens it."""
    known = [family.in_transformers for family in FAMILIES]
    names = [name for here in known for name in (here.model, here.base)]
    transformers = need("transformers", "from_hf", *names)
    models = tuple(getattr(transformers, name) for name in names)
    name, inner = type(given).__name__, attribute(given, "model")
    modules = given.named_modules() if isinstance(given, nn.Module) else [("model", inner)]
    held = next((path for path, module in modules if isinstance(module, models)), None)
    if isinstance(given, type):
        name, remedy = f"the class {given.__name__}", f"Make a model of it: {given.__name__}.from_pretrained(name)."
    elif hasattr(given, "merge_and_unload"):
        remedy = "Merge the adapters (PEFT) into the weights: pl.from_hf(hf_model.merge_and_unload())."
    elif held is not None:
        place = held if all(map(str.isidentifier, held.split("."))) else f"get_submodule({held!r})"
        remedy = f"Give the one that it holds: pl.from_hf(hf_model.{place}). What stands around it is not carried over."
    elif isinstance(given, (str, Path, Mapping)):
        remedy = "pl.load opens names, folders, files and state dicts."
    elif isinstance(given, nn.Module) and type(given).__module__.startswith("pellucid."):
        remedy = "It is one of pellucid's already; copy.deepcopy(model) makes another."
    else:
        remedy = "pellucid reads these of transformers only; pl.compare takes other programs that compute the same."
    return WeightsError(f"from_hf: given {name}, expected {' or '.join(names)}.", code="hf-wrong-class", remedy=remedy)


@ordinary_tensors()
def to_hf(model: Model) -> Any:
    """A transformers model of the same family with copies of the model's tensors, tied if the model is.

    It attends as the model does.
    """
    here = family_of(model.config).in_transformers
    transformers = need("transformers", "to_hf", here.config, here.model)
    require_numbers("to_hf", model.state_dict().values())
    from transformers.utils import logging

    fields = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_FOR_LIVE}
    config = getattr(transformers, here.config).from_dict(fields)
    tensors = {name: _copy(tensor) for name, tensor in from_ours(model.state_dict(), model.config).items()}
    first = next(iter(tensors.values()))
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        hf = getattr(transformers, here.model).from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=first.dtype
        )
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    # from_pretrained gives every tensor one dtype and puts it on the CPU.
    for name, parameter in hf.named_parameters():
        parameter.data = tensors[name]
    own = dict(cast(nn.Module, model).named_buffers())
    put_buffers(hf, {theirs: _copy(own[ours]) for ours, theirs in here.buffers.items()})
    hf.generation_config = _generation_for(model.generation, hf.generation_config)
    if model.execution.attention == "eager":
        hf.set_attn_implementation("eager")
    return hf.train(model.training)


def save_pretrained(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`, and the tokenizer and generation settings if the model has them.

    A tokenizer that cannot be written, because it is an object of the caller's own, is left out with a warning.

    Names, and the bytes of every tensor, are those of transformers' own `save_pretrained`; a tied matrix is written
    once. The folder is saved as one (`pellucid.weights.saves`): after a kill it holds the old model, the new one, or
    files of both that `load` refuses to read together.
    """
    state = model.state_dict()
    require_numbers("save_pretrained", state.values())
    expected = model.config.schema.stored
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != expected:
        differing = sorted(
            name for name in {*state, *expected} if name not in state or tuple(state[name].shape) != expected.get(name)
        )
        raise WeightsError(
            f"save_pretrained: the parameters are not those of the configuration: {', '.join(differing[:5])}.",
            code="weights-misfit",
            remedy="Change model.config together with the parameters; pellucid.tie and untie do both.",
        )
    tensors = separate(from_ours(state, model.config, family_of(model.config).in_transformers.files or "hf"))
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    texts = {"config.json": _config_json(model.config, tensors)}
    texts |= _tokenizer_files(model.tokenizer)
    # Another model's file would count if it stayed there. A folder that may not be looked into has none.
    is_beside = os.path.isfile(Path(folder) / generation_settings.FILE)
    if model.generation.source == generation_settings.FILE or is_beside:
        texts[generation_settings.FILE] = model.generation.to_json()
    texts, metadata = saves.stamp(texts, Path(folder))
    write = partial(write_tensors, tensors=tensors, metadata={"format": "pt", **metadata})
    saves.write(Path(folder), [("model.safetensors", write)], texts)


@runtime_checkable
class SavableTokenizer(Protocol):
    """A tokenizer that can be written as files."""

    def files(self) -> Mapping[str, str]:
        """The text of each file by its name."""
        ...


def _tokenizer_files(tokenizer: object) -> Mapping[str, str]:
    tokenizer = getattr(tokenizer, "borrowed", tokenizer)
    if isinstance(tokenizer, SavableTokenizer):
        return tokenizer.files()
    if tokenizer is not None:
        warn(
            f"save_pretrained: the tokenizer is not saved: {type(tokenizer).__name__} has no files(), which gives the "
            "text of each of its files by its name."
        )
    return {}


_NOT_FOR_LIVE = ("_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "torch_dtype", "dtype")


def _generation_of(hf_model: Any) -> GenerationSettings | None:
    """The settings of a live model; None if they are what its configuration says."""
    from transformers.generation.configuration_utils import GenerationConfig

    given = getattr(hf_model, "generation_config", None)
    if given is None or given == GenerationConfig.from_model_config(hf_model.config):
        return None
    passed_over = ("transformers_version", "_from_model_config")
    said = {name: value for name, value in given.to_dict().items() if value is not None and name not in passed_over}
    return GenerationSettings(said)


def _generation_for(settings: GenerationSettings, of_config: Any) -> Any:
    """The same settings in transformers' class, which has built those of the configuration already."""
    from transformers.generation.configuration_utils import GenerationConfig

    if settings.source != generation_settings.FILE and not settings.sampling:
        return of_config
    try:
        return GenerationConfig.from_dict(dict(settings.fields))
    except (ValueError, TypeError) as problem:
        raise WeightsError(
            f"to_hf: transformers refuses the generation settings: {str(problem).splitlines()[0]}",
            code="generation-refused",
            remedy="Leave the setting out: model.generation = model.generation.without('its name').",
        ) from problem


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _config_json(config: Config, tensors: Mapping[str, Tensor]) -> str:
    fields = {name: value for name, value in config.to_dict().items() if name != "torch_dtype"}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    fields |= {"architectures": [family_of(config).in_transformers.model], "dtype": dtype}
    return json_text(fields)
