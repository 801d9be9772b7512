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
from torch import Tensor

from pellucid.errors import ConfigError, NotFoundError, WeightsError, nearest, printable, shown
from pellucid.family.families import FAMILIES, class_for, config_named, config_of
from pellucid.family.json_config import Config
from pellucid.family.layout import EMBED, HEAD
from pellucid.generate.generation_settings import GenerationSettings
from pellucid.numerics.freed_memory import give_back
from pellucid.numerics.products import DTYPES, ordinary_tensors
from pellucid.text import tokenizer_files
from pellucid.weights import hub, saves
from pellucid.weights.building import M, ModelClass, convert, describe, dtype_names
from pellucid.weights.exchange import from_hf, save_pretrained, to_hf
from pellucid.weights.formats import Content, config_of_model_args, read_file, unpack
from pellucid.weights.hub import HubOptions
from pellucid.weights.hub_answers import no_name
from pellucid.weights.importing import to_ours
from pellucid.weights.kinds import no_weights, only_weights, require_whole
from pellucid.weights.layouts import IN_MEMORY, endings
from pellucid.weights.leftovers import listed
from pellucid.weights.manifests import is_there, read_index, read_json, reading

FOLDER_FILES = (*hub.WEIGHT_FILES, "ckpt.pt")
"""Where a folder keeps its weights, the best first; the last is what nanoGPT's train.py writes."""


@dataclass(frozen=True)
class Stored:
    """What was found on disk, before anyone asked what it means."""

    path: Path  # the weights file, or the index of the shards
    format: str  # `safetensors`, `pickle` or `llm.c`
    tensors: dict[str, Tensor]  # under the file's names, in the file's dtypes, mapped privately from the file
    config: Mapping[str, Any] | None  # the fields of `config.json` or of the file's own header; None if there are none
    model_args: Mapping[str, Any] | None = None  # nanoGPT's description of the model, if the file has it
    # what else is to be known of the reading, for the provenance
    notes: Mapping[str, str] = field(default_factory=dict)
    how: str = ""  # how to get the tensors in Python, for remedies


def read(path: Path, *, needs_config: bool = True) -> Stored:
    """Read a folder (`config.json` and weights, single or sharded) or one weights file.

    A file's configuration is the one in its own header, or else the `config.json` beside it.
    """
    with reading(path):
        is_folder = path.is_dir()
    weights = _best_weights(path) if is_folder else path
    beside = weights.parent / "config.json"
    config = read_json(beside, ConfigError, "config-not-json") if is_there(beside) else None
    content = _read_shards(weights) if weights.name.endswith(".index.json") else read_file(weights)
    if not content.tensors:
        raise WeightsError(
            f"{weights}: holds no tensors.", code="no-tensors", remedy="Download or write the file again."
        )
    if is_folder and needs_config and config is None and content.config is None and content.model_args is None:
        raise NotFoundError(
            f"{path}: no config.json beside {weights.name}.",
            code="config-not-found",
            remedy="Add the config.json of this model, or pass config=; the number of heads, among other "
            "things, cannot be inferred from the tensors.",
        )
    if content.format == "safetensors":
        saves.require_one_save(shards_of(weights), config)
    own = content.config if content.config is not None else config
    return Stored(weights, content.format, content.tensors, own, content.model_args, notes_of(content), content.how)


def in_memory(tensors: Mapping[str, Any]) -> Stored:
    """A state dict, or what `torch.load` gave, as if it had been read from a file.

    Its tensors are copied to the processor, so that no later change of theirs reaches the model.
    """
    content = unpack(IN_MEMORY, tensors, "mapping")
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in content.tensors.items()}
    return Stored(Path("mapping"), "mapping", copies, None, content.model_args, notes_of(content), content.how)


def notes_of(content: Content) -> dict[str, str]:
    """Where in a file the weights were found, and what lies beside them."""
    notes = {"key": content.key, "beside": listed(content.beside, 20)}
    return {name: printable(note) for name, note in notes.items() if note}


def shards_of(weights: Path) -> list[Path]:
    """The files that hold the tensors: those that an index names, or the one file itself."""
    if not weights.name.endswith(".index.json"):
        return [weights]
    return [weights.parent / shard for shard in sorted(set(read_index(weights).values()))]


def _best_weights(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if is_there(folder / name):
            return folder / name
    with reading(folder):
        others = sorted(entry.name for entry in folder.iterdir())
    alone = only_weights(folder, others)
    if len(alone) == 1:
        return folder / alone[0]
    raise no_weights(folder, FOLDER_FILES, others, alone)


def _read_shards(index: Path) -> Content:
    weight_map = read_index(index)
    tensors: dict[str, Tensor] = {}
    content: Content | None = None
    for shard in sorted(set(weight_map.values())):
        if not is_there(index.parent / shard):
            raise NotFoundError(
                f"{index}: names {shard}, which is not in the folder.",
                code="shard-missing",
                remedy=f"Download {shard} into {index.parent}.",
            )
        content = read_file(index.parent / shard)
        # A tied model writes its matrix once, although its index may give both names; whether one of them is missing is
        # known with the configuration.
        tied = (*endings(EMBED), *endings(HEAD))
        promised = {name for name, file in weight_map.items() if file == shard and not name.endswith(tied)}
        absent, twice = sorted(promised - set(content.tensors)), sorted(set(content.tensors) & set(tensors))
        if absent or twice:
            raise WeightsError(
                f"{index.parent / shard}: "
                + (f"lacks {', '.join(absent[:8])}, which the index promises" if absent else "")
                + (f"repeats {', '.join(twice[:8])} of another shard" if twice else "")
                + ".",
                code="shard-mismatch",
                remedy="Download index and shards again, of one revision.",
            )
        tensors.update(content.tensors)
    assert content is not None, "read_index refuses an empty weight_map"
    read, ending = _READERS.get(content.format, ("", ""))
    how = (
        f"{{name: tensor for shard in pathlib.Path({str(index.parent)!r}).glob('*-of-*.{ending}') "
        f"for name, tensor in {read}(shard).items()}}"
    )
    return replace(content, tensors=tensors, how=how)


_READERS = {
    "safetensors": ("safetensors.torch.load_file", "safetensors"),
    "pickle": ("torch.load", "bin"),
}
"""Other libraries' functions that read a shard, and how its name ends."""


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
        return _build(cls, "a state dict in memory", in_memory(name), options, None)
    if isinstance(name, ForeignConfig) and hasattr(name, "model_type"):
        raise no_name(name, class_for(name))
    path = hub.locate(name, options.hub)
    require_whole(path)
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
    give_back()  # what the tokenizer was read through, which is as large as some models
    if read_tokenizer is not None and tokenizer is None and (other := tokenizer_files.not_read(stored.path.parent)):
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
    return "eager" if asked == "auto" and said == "eager" else asked


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
    own = stored.config if stored.model_args is None else config_of_model_args(stored.model_args)
    if own is None and given is None:
        raise ConfigError(
            f"{stored.path}: no configuration in it, and no config.json beside it.",
            code="config-needed",
            remedy="Pass config=: the number of heads, the activation and the LayerNorm epsilon cannot be read off "
            "tensors.",
        )
    return config_of(own or {}, given, ignore=options.ignore_config)
