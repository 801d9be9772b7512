"""A model's folder or weights file on disk, read whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.errors import ConfigError, NotFoundError, WeightsError, printable
from pellucid.layout import EMBED, HEAD
from pellucid.weights import hub, saves
from pellucid.weights.formats import Content, read_file, unpack
from pellucid.weights.kinds import no_weights, only_weights
from pellucid.weights.layouts import endings
from pellucid.weights.leftovers import listed
from pellucid.weights.manifests import is_there, read_index, read_json, unreadable
from pellucid.weights.nested import IN_MEMORY

FOLDER_FILES = (*hub.WEIGHT_FILES, "ckpt.pt")
"""Where a folder keeps its weights, the best first; the last is what nanoGPT's train.py writes."""


@dataclass(frozen=True)
class Stored:
    """What was found on disk, before anyone asked what it means."""

    path: Path  # the weights file, or the index of the shards
    format: str  # `safetensors`, `pickle` or `llm.c`
    tensors: dict[str, Tensor]  # under the file's names, in the file's dtypes, mapped privately from the file
    config: Mapping[str, Any] | None  # the fields of `config.json` or of the file's own header; None if there are none
    model_args: Mapping[str, Any] | None = None  # nanoGPT's description of the model, where the file has it
    # what else is to be known of the reading, for the provenance
    notes: Mapping[str, str] = field(default_factory=dict)
    how: str = ""  # how to get the tensors in Python, for remedies


def read(path: Path, *, needs_config: bool = True) -> Stored:
    """Read a folder (`config.json` and weights, single or sharded) or one weights file.

    A file's configuration is the one in its own header, or else the `config.json` beside it.
    """
    try:
        is_folder = path.is_dir()
    except OSError as problem:
        raise unreadable(path, problem) from problem
    weights = _best_weights(path) if is_folder else path
    config = _config_beside(weights)
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
    try:
        others = sorted(entry.name for entry in folder.iterdir())
    except OSError as problem:
        raise unreadable(folder, problem) from problem
    alone = only_weights(folder, others)
    if len(alone) == 1:
        return folder / alone[0]
    raise no_weights(folder, FOLDER_FILES, others, alone)


def _config_beside(weights: Path) -> dict[str, Any] | None:
    path = weights.parent / "config.json"
    return read_json(path, ConfigError, "config-not-json") if is_there(path) else None


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
