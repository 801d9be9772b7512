"""A folder or a file on disk, read whole and written so that a reader never sees half of it."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from pellucid.errors import ConfigError, NotFoundError, WeightsError
from pellucid.weights import hub
from pellucid.weights.formats import Content, read_file
from pellucid.weights.manifests import is_there, read_index, read_json, unreadable

FOLDER_FILES = (*hub.WEIGHT_FILES, "ckpt.pt")
"""Where a folder keeps its weights, the best first; the last is what nanoGPT's train.py writes."""


@dataclass(frozen=True)
class Stored:
    """What was found on disk, before anyone asked what it means.

    Args:
        path: The weights file, or the index of the shards.
        format: `safetensors`, `pickle` or `llm.c`.
        tensors: Under the file's names, in the file's dtypes, mapped privately from the file.
        config: The fields of `config.json` or of the file's own header; None if there are none.
        model_args: nanoGPT's description of the model, where the file has it.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    config: Mapping[str, Any] | None
    model_args: Mapping[str, Any] | None = None


def read(path: Path, *, needs_config: bool = True) -> Stored:
    """Read a folder (`config.json` and weights, single or sharded) or one weights file.

    A file's configuration is the one in its own header, or else the `config.json` beside it.

    Args:
        path: The folder or file.
        needs_config: Whether a folder without `config.json` is an error.

    Raises:
        NotFoundError: Something that should be there is not.
        ConfigError: `config.json` is not a JSON object.
        WeightsError: Weights that cannot be read.
    """
    try:
        is_folder = path.is_dir()
    except OSError as problem:
        raise unreadable(path, problem) from problem
    weights = _best_weights(path) if is_folder else path
    config = _config_beside(weights)
    if is_folder and needs_config and config is None and weights.name != "ckpt.pt":
        raise NotFoundError(
            f"{path}: no config.json beside {weights.name}.",
            code="config-not-found",
            remedy="Add the config.json of this checkpoint, or pass config=; the number of heads, among other "
            "things, cannot be read off the tensors.",
        )
    content = _read_shards(weights) if weights.name.endswith(".index.json") else read_file(weights)
    if not content.tensors:
        raise WeightsError(
            f"{weights}: holds no tensors.", code="no-tensors", remedy="Download or write the file again."
        )
    own = content.config if content.config is not None else config
    return Stored(weights, content.format, content.tensors, own, content.model_args)


def _best_weights(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if is_there(folder / name):
            return folder / name
    try:
        others = sorted(entry.name for entry in folder.iterdir())[:8]
    except OSError as problem:
        raise unreadable(folder, problem) from problem
    raise NotFoundError(
        f"{folder}: none of {', '.join(FOLDER_FILES)}; it holds {', '.join(others) or 'nothing'}.",
        code="weights-not-found",
        remedy="Give the folder that save_pretrained wrote, or the weights file itself.",
    )


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
        promised = {name for name, file in weight_map.items() if file == shard}
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
    return replace(content, tensors=tensors)


Writer = Callable[[Path], object]
"""Writes one complete file at the path it is given."""


def write_folder(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write files into a folder so that each is, at every moment, the old one or the new one.

    All are written in full under temporary names in the same folder and flushed to the disk; only then do they
    take their names, in the order given. When anything fails before that, nothing in the folder has changed.

    Args:
        folder: Made if it does not exist.
        writers: File name -> what writes it.

    Raises:
        WeightsError: The folder cannot be written.
    """
    temporary: dict[str, Path] = {}
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            temporary[name] = _beside(folder / name)
            _write_durably(temporary[name], write)
        for name, part in temporary.items():
            if part.parent == folder:
                os.replace(part, folder / name)
            else:
                with part.open("rb") as whole, (folder / name).open("wb") as device:
                    shutil.copyfileobj(whole, device)
        if any(part.parent == folder for part in temporary.values()):
            _flush(folder)
    except OSError as problem:
        raise WeightsError(
            f"{folder}: cannot be written: {problem.strerror or problem}.",
            code="path-not-writable",
            remedy="Choose a folder that you may write, with enough free space.",
        ) from problem
    finally:
        # What is left here was not renamed, or the folder holds something and stays.
        for left in temporary.values():
            with suppress(OSError):
                left.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _is_device(path: Path) -> bool:
    """Whether a path is no file that can be exchanged: a pipe, a terminal, what is in /dev."""
    return path.exists() and not path.is_dir() and (not path.is_file() or path.parent == Path("/dev"))


def _beside(path: Path) -> Path:
    """A new name in the same folder; beside a device nothing can be put."""
    folder = Path(tempfile.gettempdir()) if _is_device(path) else path.parent
    return folder / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part"


def _write_durably(path: Path, write: Writer) -> None:
    with path.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    try:
        write(path)
    except SafetensorError as problem:  # which may be a full disk
        raise OSError(str(problem)) from problem
    # safetensors puts a file of its own, readable by the owner only, in this place.
    path.chmod(mode & 0o777)
    _flush(path)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
