"""Open a model, wherever it comes from, and write it so that transformers opens it too.

The model class is an argument: weights know nothing of the model but the stored names and this protocol.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from pellucid.errors import ConfigError, WeightsError, nearest, shown
from pellucid.families import FAMILIES, config_named, config_of
from pellucid.generation_settings import GenerationSettings
from pellucid.json_config import Config
from pellucid.numerics.products import DTYPES, ordinary_tensors
from pellucid.text import tokenizer_files
from pellucid.weights import files, hub, saves
from pellucid.weights.building import M, ModelClass, convert, describe, dtype_names
from pellucid.weights.exchange import from_hf, save_pretrained, to_hf
from pellucid.weights.formats import config_of_model_args
from pellucid.weights.hub import HubOptions
from pellucid.weights.importing import to_ours
from pellucid.weights.kinds import require_whole

__all__ = ["Configuration", "HubOptions", "LoadOptions", "from_hf", "load", "parse_dtype", "save_pretrained", "to_hf",
           "whole_config"]  # fmt: skip


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
    # widest, where it mixes several)
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
    options: LoadOptions | None = None,
    read_tokenizer: Callable[[Path], Any] | None = None,
) -> M:
    """Open a model, evaluating: a path, an alias, a hub id, or a state dict in memory, whose tensors are copied.

    Tensors that need no conversion stay mapped from the file: nothing is copied until it is written to, and writing
    changes the model, not the file. `read_tokenizer` reads the tokenizer of a folder, or returns None if there is none.
    """
    options = options or LoadOptions()
    parse_dtype(options.dtype)  # before anything is downloaded
    if not isinstance(options.hub, HubOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"load: hub is {type(options.hub).__name__}, expected the options of the hub.",
            code="config-wrong-type",
            remedy="Pass hub=pl.HubOptions(revision='main'), with what else is wanted.",
        )
    options = replace(options, config=whole_config(options))
    if isinstance(name, Mapping):
        return _build(cls, "a state dict in memory", files.in_memory(name), options, None)
    path = hub.locate(name, options.hub)
    require_whole(path)
    needs_config = options.config is None

    def read() -> M:
        return _build(cls, str(path), files.read(path, needs_config=needs_config), options, read_tokenizer)

    return saves.read_whole(path, read)


def _build(
    cls: ModelClass[M],
    source: str,
    stored: files.Stored,
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
    if stored.model_args is not None and not _says(options.config, "activation_function"):
        provenance["activation_function"] = "gelu (erf) assumed: nanoGPT does not record it; pass config= otherwise"
    weights = convert(imported.weights, parse_dtype(options.dtype), options.device)
    generation = None if stored.format == "mapping" else GenerationSettings.from_folder(stored.path.parent)
    if generation is not None or GenerationSettings.of_config(imported.config).sampling:
        provenance["generation"] = (generation or GenerationSettings.of_config(imported.config)).summary()
    tokenizer = read_tokenizer(stored.path.parent) if read_tokenizer is not None else None
    if read_tokenizer is not None and tokenizer is None and (other := tokenizer_files.not_read(stored.path.parent)):
        provenance["tokenizer"] = other
    model = cls(
        imported.config,
        weights,
        tokenizer=tokenizer,
        attention=options.attention,
        numerics=options.numerics,
        provenance=describe(imported, weights, provenance),
        generation=generation,
    )
    model.train(False)
    return model


def parse_dtype(given: str | torch.dtype) -> torch.dtype | None:
    """A torch dtype that a model may have; None for `stored`."""
    if given == "stored":
        return None
    found = DTYPES.get(given.removeprefix("torch.")) if isinstance(given, str) else given
    if found not in DTYPES.values():
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
        return config_of(given.to_dict(), ignore=options.ignore_config)
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


def _config(stored: files.Stored, options: LoadOptions) -> Config:
    given = whole_config(options)
    if given is not None and not isinstance(given, Mapping):
        return given
    own = stored.config if stored.model_args is None else config_of_model_args(stored.model_args)
    if own is None and given is None:
        raise ConfigError(
            f"{stored.path}: no configuration in it, and no config.json beside it.",
            code="config-needed",
            remedy="Pass config=: the number of heads, the activation and the LayerNorm epsilon cannot be read off "
            "tensors.",
        )
    return config_of(own or {}, given, ignore=options.ignore_config)
