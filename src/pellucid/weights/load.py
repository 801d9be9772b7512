"""Open a model, wherever it comes from: what was read becomes a model around checked tensors.

The model class is an argument: weights know nothing of the model but the stored names and these protocols.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from pellucid.errors import ConfigError, WeightsError, nearest, shown, some, warn
from pellucid.family.families import FAMILIES, class_for, config_named, config_of
from pellucid.family.json_config import Config
from pellucid.family.layout import HEAD
from pellucid.family.part import is_finite
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.numerics.dispatch import ordinary_tensors
from pellucid.numerics.freed_memory import give_back
from pellucid.numerics.products import DTYPES, Execution
from pellucid.text import tokenizer_files
from pellucid.weights import hub, saves
from pellucid.weights.formats import Stored, in_memory, read
from pellucid.weights.hub import HubOptions
from pellucid.weights.hub_answers import no_name
from pellucid.weights.importing import Imported, to_ours
from pellucid.weights.layouts import without_weight
from pellucid.weights.leftovers import described, listed, refuse_foreign
from pellucid.weights.manifests import refuse_single_shard


class Model(Protocol):
    """What loading and saving need of a model."""

    config: Config
    tokenizer: Any
    provenance: dict[str, str]
    training: bool
    execution: Execution

    @property
    def generation(self) -> GenerationSettings:
        """What its `generation_config.json`, or else its configuration, says."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The stored tensors, the head among them only when it is untied."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation."""
        ...


M_co = TypeVar("M_co", bound=Model, covariant=True)
M = TypeVar("M", bound=Model)


class ModelClass(Protocol[M_co]):
    """What builds a model around tensors, without copying them."""

    def __call__(
        self,
        config: Config,
        weights: dict[str, Tensor],
        *,
        tokenizer: Any = None,
        attention: str = "auto",
        numerics: str = "exact",
        provenance: dict[str, str] | None = None,
        generation: GenerationSettings | None = None,
    ) -> M_co:
        """A model of this configuration with these stored tensors."""
        ...


@runtime_checkable
class ForeignConfig(Protocol):
    """A configuration of transformers'."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        ...


Configuration = Config | Mapping[str, Any] | ForeignConfig | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to open a model."""

    device: str | torch.device = "cpu"  # where its tensors go
    # `float32`, `float16`, `bfloat16`, `float64`, a torch dtype of these, or `stored` for what the file has (the
    # widest, if it mixes several)
    dtype: str | torch.dtype = "float32"
    # Instead of the file's own configuration: one of ours or of transformers', or the name of a folder or `config.json`
    # that holds one. A mapping replaces single fields of the file's own.
    config: Configuration | None = None
    # fields of the configuration to drop, although they are known to change the computation
    ignore_config: Collection[str] = ()
    attention: str = "auto"  # passed to the model
    numerics: str = "exact"  # passed to the model
    hub: HubOptions = field(default_factory=HubOptions)  # how to reach the hub


@ordinary_tensors()
def load(
    cls: ModelClass[M],
    name: str | os.PathLike[str] | Mapping[str, Any],
    options: LoadOptions,
    read_tokenizer: Callable[[Path], Any] | None = None,
) -> M:
    """Open a model, evaluating: a path, an alias, a hub id, or a state dict in memory, whose tensors are copied.

    Tensors that need no conversion stay mapped from the file: nothing is copied until it is written to, and writing
    changes the model, not the file. `read_tokenizer` reads the tokenizer of a folder, or returns None if there is none.
    """
    parse_dtype(options.dtype)  # before anything is downloaded
    if not isinstance(options.hub, HubOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"load: hub is {type(options.hub).__name__}, expected the options of the hub.",
            code="config-wrong-type",
            remedy="Pass hub=pl.HubOptions(revision='main'), with what else is wanted.",
        )
    options = replace(options, config=whole_config(options))
    if isinstance(name, Mapping):
        return _build(cls, "a state dict in memory", in_memory(name), options, None)
    if isinstance(name, ForeignConfig) and hasattr(name, "model_type"):
        raise no_name(name, class_for(name))
    path = hub.locate(name, options.hub)
    refuse_single_shard(path)
    needs_config = options.config is None

    def built() -> M:
        return _build(cls, str(path), read(path, needs_config=needs_config), options, read_tokenizer)

    return saves.read_whole(path, built)


def _build(
    cls: ModelClass[M],
    source: str,
    stored: Stored,
    options: LoadOptions,
    read_tokenizer: Callable[[Path], Any] | None,
) -> M:
    config = _config(stored, options)
    imported = to_ours(stored.tensors, config, stored.how)
    provenance = {
        "source": source,
        "file": stored.path.name,
        "format": stored.format,
        **stored.notes,
        "stored_dtype": dtype_names(imported.weights),
    }
    if options.config is not None or options.ignore_config:
        provenance["config"] = "given by the caller, or fields of the file's own left out"
    if stored.model_args is not None and not _says(options.config, "activation_function"):
        provenance["activation_function"] = "gelu (erf) assumed: nanoGPT does not record it; pass config= otherwise"
    weights = convert(imported.weights, parse_dtype(options.dtype), options.device)
    generation = None if stored.format == "mapping" else GenerationSettings.from_folder(stored.path.parent)
    if generation is not None or GenerationSettings.of_config(imported.config).sampling:
        provenance["generation"] = (generation or GenerationSettings.of_config(imported.config)).summary()
    tokenizer = read_tokenizer(stored.path.parent) if read_tokenizer is not None else None
    if tokenizer is not None:
        give_back()  # what it was read through, which is as large as some models
    elif read_tokenizer is not None and (other := tokenizer_files.not_read(stored.path.parent)):
        provenance["tokenizer"] = other
    model = cls(
        imported.config,
        weights,
        tokenizer=tokenizer,
        attention=_attention_of(imported.config, options.attention),
        numerics=options.numerics,
        provenance=describe(imported, weights, provenance),
        generation=generation,
    )
    model.train(False)
    return model


def _attention_of(config: Config, asked: str) -> str:
    """How to attend: explicitly where the configuration asks for it, as transformers does, unless the caller does."""
    said = config.neutral.get("_attn_implementation") or config.neutral.get("attn_implementation")
    return "eager" if said == "eager" and asked == "auto" else asked


def parse_dtype(given: str | torch.dtype) -> torch.dtype | None:
    """A torch dtype that a model may have; None for `stored`."""
    if isinstance(given, str) and given == "stored":
        return None
    found = DTYPES.get(given.removeprefix("torch.")) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise WeightsError(
            f"load: dtype={shown(given)}, expected one of {', '.join(DTYPES)}, stored.",
            code="dtype-unknown",
            remedy=f"{nearest(given, [*DTYPES, 'stored'])} Give one of these; transformers' 'auto' is 'stored' "
            "here.".strip(),
        )
    return found


def whole_config(options: LoadOptions) -> Config | Mapping[str, Any] | None:
    """The configuration that was given: a whole one of ours, or fields that replace single ones."""
    given = options.config
    if given is None or isinstance(given, Mapping) or _is_ours(given):
        return given  # pyright: ignore[reportReturnType]
    if isinstance(given, (str, os.PathLike)):
        return config_named(os.fspath(given), ignore=options.ignore_config)
    if isinstance(given, ForeignConfig) and not isinstance(given, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        change = "pass config={**config.to_dict(), {field}}"
        return config_of(given.to_dict(), ignore=options.ignore_config, change=change)
    raise ConfigError(
        f"load: config is {type(given).__name__}, expected a TransformerConfig, a mapping of its fields, a "
        "configuration of transformers', or the path of a config.json.",
        code="config-wrong-type",
        remedy="Pass config=pl.TransformerConfig(...), or config='folder/config.json'.",
    )


def _is_ours(config: object) -> bool:
    return isinstance(config, tuple(family.config for family in FAMILIES))


def _says(config: Configuration | None, field_name: str) -> bool:
    return _is_ours(config) or (isinstance(config, Mapping) and field_name in config)


def _config(stored: Stored, options: LoadOptions) -> Config:
    given = whole_config(options)
    if given is not None and not isinstance(given, Mapping):
        return given
    own = stored.config if stored.model_args is None else _config_of_model_args(stored.model_args)
    if own is None and given is None:
        refuse_foreign(map(without_weight, stored.tensors))  # else it would be asked for a configuration, in vain
        raise ConfigError(
            f"{stored.path}: no configuration in it, and no config.json beside it.",
            code="config-needed",
            remedy="Pass config=: the number of heads, the activation and the LayerNorm epsilon cannot be read off "
            "tensors.",
        )
    return config_of(own or {}, given, ignore=options.ignore_config)


def _config_of_model_args(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """nanoGPT's `model_args` in transformers' names.

    Its MLP has used `nn.GELU()`, which is the exact (erf) one, since 2023; earlier versions had tanh's.
    """
    dropout = model_args.get("dropout", 0.0)
    renamed = {"block_size": "n_positions"}
    sizes = {
        renamed.get(name, name): model_args[name]
        for name in ("vocab_size", "block_size", "n_embd", "n_layer", "n_head")
        if name in model_args
    }
    return {
        **sizes,
        "activation_function": "gelu",
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        "resid_pdrop": dropout,
    }


def convert(weights: Mapping[str, Tensor], dtype: torch.dtype | None, device: str | torch.device) -> dict[str, Tensor]:
    """Tensors in one dtype (None: the narrowest that holds all of theirs) on a device; copied only if need be."""
    if dtype is None:
        dtypes = sorted({tensor.dtype for tensor in weights.values()}, key=str)
        try:
            dtype = functools.reduce(torch.promote_types, dtypes)
        except RuntimeError:  # eight-bit floats promote to nothing
            dtype = next(one for one in dtypes if one not in DTYPES.values())
        if dtype not in DTYPES.values():
            raise WeightsError(
                f"weights: stored as {dtype}, expected one of {', '.join(DTYPES)}.",
                code="dtype-not-supported",
                remedy="Pass dtype='float32' to have them converted.",
            )
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("the meta device holds no numbers")
        return separate({name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()})
    except DEVICE_ERRORS as problem:
        raise no_device("load", device, problem) from problem


DEVICE_ERRORS = (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError)
"""What torch raises for a device that is none, or is not there."""


def no_device(verb: str, device: object, problem: Exception) -> WeightsError:
    """The error for a device that torch cannot use."""
    return WeightsError(
        f"{verb}: device={shown(str(device))}: {str(problem).partition(chr(10))[0]}",
        code="device-not-available",
        remedy="Pass device='cpu', or the name of a device that torch can use on this machine.",
    )


def separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own: one that overlaps an earlier one is copied.

    A pickle may hold one storage under several names. As parameters of a model they would change together.
    """
    seen_end, separated = 0, dict(weights)
    for name in sorted(weights, key=lambda name: weights[name].data_ptr()):
        tensor = weights[name]
        if tensor.numel() == 0:
            continue
        start = tensor.data_ptr()
        if start < seen_end:
            separated[name] = tensor.clone(memory_format=torch.preserve_format)
        seen_end = max(seen_end, start + tensor.numel() * tensor.element_size())
    return separated


def describe(imported: Imported, weights: Mapping[str, Tensor], provenance: dict[str, str]) -> dict[str, str]:
    """Complete a provenance, and warn of what the reader should know."""
    remarks = list(imported.remarks)
    broken = [name for name, tensor in weights.items() if not is_finite(tensor)]
    if broken:
        provenance = {**provenance, "non_finite": ", ".join(broken)}
        remarks.append(f"not finite numbers (NaN or infinity) in {some(broken, 8)}")
    if remarks:
        provenance = {**provenance, "remarks": "; ".join(remarks)}
        warn(f"{provenance.get('source', 'weights')}: {'; '.join(remarks)}.")
    if imported.config.unread:
        provenance = {**provenance, "config_unread": listed(imported.config.unread, 100)}
    if imported.left_out:
        provenance = {**provenance, "left_out": described(imported.left_out)}
    if imported.filled:
        provenance = {**provenance, "zeros": f"no such biases in the weights file: {listed(imported.filled)}"}
    return {
        **provenance,
        "layout": imported.layout,
        "dtype": dtype_names(weights),
        "head": "untied" if HEAD in weights else "tied",
    }


def dtype_names(weights: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}))
