"""To and from transformers: live models, and the folder that `save_pretrained` writes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid import generation_settings
from pellucid.config import TransformerConfig
from pellucid.config_fields import NEUTRAL, REFUSED, SYNONYMS
from pellucid.errors import MissingExtraError, WeightsError
from pellucid.execution import ordinary_tensors
from pellucid.generation_settings import GenerationSettings
from pellucid.parameters import require_numbers
from pellucid.tensor_file import write_tensors
from pellucid.transformer import stored_shapes
from pellucid.weights import saves
from pellucid.weights.building import M, Model, ModelClass, describe, separate
from pellucid.weights.importing import to_ours
from pellucid.weights.layouts import HF, from_ours


@ordinary_tensors()
def from_hf(cls: ModelClass[M], hf_model: nn.Module, *, attention: str = "auto", numerics: str = "exact") -> M:
    """Copy a live transformers model; the model given is only read.

    The tie is taken from memory: tied if the head's weight is the embedding's, whatever the configuration says.

    Args:
        cls: The model's class.
        hf_model: A `GPT2LMHeadModel`, or a `GPT2Model`, whose head is then the embedding.
        attention: Passed to the model.
        numerics: Passed to the model.

    Returns:
        A model with equal tensors on the same device, training or evaluating like the one given.

    Raises:
        WeightsError: Not such a model, or one with tensors or a head that GPT-2 has not.
        ConfigError: A configuration that is not implemented.
        MissingExtraError: transformers is not installed.
    """
    transformers = _transformers()
    if not isinstance(hf_model, (transformers.GPT2LMHeadModel, transformers.GPT2Model)):
        raise WeightsError(
            f"from_hf: given {type(hf_model).__name__}, expected GPT2LMHeadModel or GPT2Model.",
            code="hf-wrong-class",
            remedy="Unwrap it (`.module` of DDP, `._orig_mod` of torch.compile, `.transformer` of a model with a "
            "head for another task).",
        )
    tensors = dict(hf_model.state_dict())
    config = _config_of(hf_model)
    _require_as_configured(hf_model, config)
    if isinstance(hf_model, transformers.GPT2LMHeadModel):
        tied = _is_tied(hf_model)
        config = config.replace(tie_word_embeddings=tied)
        if tied:
            del tensors["lm_head.weight"]
    require_numbers("from_hf", tensors.values())
    copies = {name: _copy(tensor) for name, tensor in tensors.items()}
    imported = to_ours(copies, config)
    provenance = describe(imported, imported.weights, {"source": f"transformers {type(hf_model).__name__}"})
    model = cls(
        imported.config, imported.weights, attention=attention, numerics=numerics, provenance=provenance,
        generation=_generation_of(hf_model),
    )  # fmt: skip
    model.train(hf_model.training)
    return model


@ordinary_tensors()
def to_hf(model: Model) -> Any:
    """A transformers `GPT2LMHeadModel` with copies of the model's tensors, tied where the model is.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    transformers = _transformers()
    require_numbers("to_hf", model.state_dict().values())
    from transformers.utils import logging

    fields = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_FOR_LIVE}
    config = transformers.GPT2Config.from_dict(fields)
    tensors = {name: _copy(tensor) for name, tensor in from_ours(model.state_dict(), model.config, HF).items()}
    first = next(iter(tensors.values()))
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        hf = transformers.GPT2LMHeadModel.from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=first.dtype
        )
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    # from_pretrained gives every tensor one dtype and puts it on the CPU.
    for name, parameter in hf.named_parameters():
        parameter.data = tensors[name]
    hf.generation_config = _generation_for(model.generation, hf.generation_config)
    return hf.train(model.training)


def save_pretrained(model: Model, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors`, and the tokenizer and generation settings if the model has them.

    Names and bytes are those of transformers' own `save_pretrained`; a tied matrix is written once. Files take
    their names only when all are complete: whatever happens, each is the old one or the new one.

    Args:
        model: The model.
        folder: Made if it does not exist.

    Raises:
        WeightsError: The folder cannot be written, or the parameters are not those of the configuration.
    """
    state = model.state_dict()
    require_numbers("save_pretrained", state.values())
    expected = stored_shapes(model.config)
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != expected:
        differing = sorted(
            name for name in {*state, *expected} if name not in state or tuple(state[name].shape) != expected.get(name)
        )
        raise WeightsError(
            f"save_pretrained: the parameters are not those of the configuration: {', '.join(differing[:5])}.",
            code="weights-misfit",
            remedy="Change model.config together with the parameters; pellucid.tie and untie do both.",
        )
    tensors = separate(from_ours(state, model.config, HF))
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    texts = {"config.json": _config_json(model.config, tensors)}
    if model.tokenizer is not None:
        texts["tokenizer.json"] = model.tokenizer.to_json()
    beside = Path(folder) / generation_settings.FILE  # another model's would count if it stayed there
    if model.generation.source == generation_settings.FILE or beside.is_file():
        texts[generation_settings.FILE] = model.generation.to_json()
    texts, metadata = saves.stamp(texts)
    write = partial(write_tensors, tensors=tensors, metadata={"format": "pt", **metadata})
    saves.write(Path(folder), [("model.safetensors", write)], texts)


_NOT_FOR_LIVE = ("_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "torch_dtype", "dtype")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as problem:
        raise MissingExtraError(
            "transformers is not installed.",
            code="missing-transformers",
            remedy="pip install 'pellucid[hf]'",
        ) from problem
    return transformers


def _config_of(hf_model: Any) -> TransformerConfig:
    """The configuration of a live model; attributes that its class does not read are left out."""
    given = hf_model.config.to_dict()
    known = {field.name for field in dataclasses.fields(TransformerConfig)} | {"model_type", "is_causal"}
    unread = set(given) - known - NEUTRAL - set(REFUSED) - set(SYNONYMS)
    return TransformerConfig.from_dict(given, ignore=unread)


def _generation_of(hf_model: Any) -> GenerationSettings | None:
    """The settings of a live model; None where they are what its configuration says."""
    from transformers import GenerationConfig

    given = getattr(hf_model, "generation_config", None)
    if given is None or given == GenerationConfig.from_model_config(hf_model.config):
        return None
    passed_over = ("transformers_version", "_from_model_config")
    said = {name: value for name, value in given.to_dict().items() if value is not None and name not in passed_over}
    return GenerationSettings(said)


def _generation_for(settings: GenerationSettings, of_config: Any) -> Any:
    """The same settings in transformers' class, which has built those of the configuration already."""
    from transformers import GenerationConfig

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


def _require_as_configured(hf_model: Any, config: TransformerConfig) -> None:
    """Refuse a live model whose modules were changed after they were built from the configuration."""
    from transformers.activations import ACT2FN

    base = getattr(hf_model, "transformer", hf_model)
    activation, eps = type(ACT2FN[config.activation_function]), config.layer_norm_epsilon
    norms = {"ln_f": base.ln_f}
    differing: list[str] = []
    for i, block in enumerate(base.h):
        norms |= {f"h.{i}.ln_1": block.ln_1, f"h.{i}.ln_2": block.ln_2}
        if type(block.mlp.act) is not activation:
            differing.append(f"h.{i}.mlp.act is {type(block.mlp.act).__name__}, not {activation.__name__}")
        scaling = _scaling_as_built(block.attn)
        if block.attn.scaling != scaling:
            differing.append(f"h.{i}.attn.scaling is {block.attn.scaling:g}, not {scaling:g}")
    differing += [f"{name}.eps is {norm.eps:g}, not {eps:g}" for name, norm in norms.items() if norm.eps != eps]
    if differing:
        raise WeightsError(
            f"from_hf: the model is not what its configuration says: {'; '.join(differing[:3])}.",
            code="hf-differs-from-config",
            remedy="Change the configuration and build the model from it, or put the modules back.",
        )


def _scaling_as_built(attention: Any) -> float:
    """What transformers' own constructor gives its attention, from the facts that the module keeps."""
    scaling = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
    return scaling / float(attention.layer_idx + 1) if attention.scale_attn_by_inverse_layer_idx else scaling


def _is_tied(hf_model: Any) -> bool:
    head, embedding = hf_model.lm_head, hf_model.transformer.wte
    if type(head) is not nn.Linear or head.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        raise WeightsError(
            f"from_hf: the head is {head}, expected a plain Linear without bias.",
            code="hf-head",
            remedy="Put a torch.nn.Linear(n_embd, vocab_size, bias=False) in its place; GPT-2 has no other head.",
        )
    if head.weight is embedding.weight:
        return True
    same_place = head.weight.data_ptr() == embedding.weight.data_ptr() and not head.weight.is_meta
    return same_place and head.weight.shape == embedding.weight.shape


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _config_json(config: TransformerConfig, tensors: Mapping[str, Tensor]) -> str:
    fields = {name: value for name, value in config.to_dict().items() if name != "torch_dtype"}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    fields |= {"architectures": ["GPT2LMHeadModel"], "dtype": dtype}
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"
