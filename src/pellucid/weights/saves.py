"""A model's folder, saved as one: weights of one model are never read with the configuration of another.

Every file is old or new, but a kill between two renames leaves a folder of both. So `config.json` and the weights carry
the same id, worked out from everything that is saved beside the weights. The weights are renamed first and
`config.json` last, so in between their ids differ, and reading such a folder is an error. A file without an id, such as
one that transformers wrote, fits with any other; a `config.json` that was edited by hand keeps its id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pellucid import atomic
from pellucid.errors import PellucidError, WeightsError
from pellucid.family.config import SAVE_ID
from pellucid.weights.manifests import json_text, unreadable
from pellucid.weights.own_file import read_metadata, rewrite

CONFIG = "config.json"
_BESIDE = "pellucid_files"
"""Under which key of their metadata weights say what was written beside them: file name -> SHA-256."""

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
"""What this library and transformers write weights as; what an earlier save left of it would be read instead."""

_TRIES = 3
T = TypeVar("T")


def stamp(texts: Mapping[str, str], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Give the files of one save, `config.json` among them, their common id.

    The record of what an earlier save left in the folder is handed on: after a kill between the weights and the removal
    of those files, the next save still knows them. Returns the texts with the id in `config.json`, and the metadata
    that the weights have to carry.
    """
    fields = {name: value for name, value in json.loads(texts[CONFIG]).items() if name != SAVE_ID}
    plain = {**texts, CONFIG: json_text(fields)}
    digests = {name: _sha256(text.encode("utf-8", "replace")) for name, text in plain.items()}
    found = _sha256(json.dumps(digests, sort_keys=True).encode())[:32]
    beside = {**_recorded(folder), **{name: digest for name, digest in digests.items() if name != CONFIG}}
    stamped = {**texts, CONFIG: json_text({**fields, SAVE_ID: found})}
    return stamped, {SAVE_ID: found, _BESIDE: json.dumps(beside, sort_keys=True)}


def stamp_folder(folder: Path, target: Path) -> None:
    """Do the same for the files that transformers has written into a folder, and align the numbers of its weights."""
    texts = {entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir() if _is_text(entry)}
    stamped, metadata = stamp(texts, target)
    (folder / CONFIG).write_text(stamped[CONFIG], encoding="utf-8")
    for path in list(folder.glob("*.safetensors")):
        copy = path.with_suffix(".copy")
        rewrite(path, copy, metadata)
        copy.chmod((folder / CONFIG).stat().st_mode)
        copy.replace(path)


def move(source: Path, folder: Path) -> None:
    """Move a stamped folder's files into another, as `write` does."""
    texts = {entry.name: entry.read_text(encoding="utf-8") for entry in source.iterdir() if _is_text(entry)}
    others = sorted(entry.name for entry in source.iterdir() if entry.name not in texts)
    write(folder, [(name, partial(os.replace, source / name)) for name in others], texts)


def _is_text(path: Path) -> bool:
    return path.suffix == ".json" and not _WEIGHTS.fullmatch(path.name)


def write(folder: Path, weights: Sequence[tuple[str, atomic.Writer]], texts: Mapping[str, str]) -> None:
    """Write stamped files into a folder, weights first and `config.json` last, and remove what they replace.

    What an earlier save wrote and this one does not have, such as a tokenizer, is removed if it is still as that save
    left it. Files of others stay.
    """
    names = {name for name, _ in weights} | set(texts)
    beside = [(name, atomic.text_writer(text)) for name, text in texts.items() if name != CONFIG]
    last = (CONFIG, atomic.text_writer(texts[CONFIG]))
    atomic.write_folder(
        folder, [*_marked(folder), *weights, *beside, last], outdated=lambda: set(_outdated(folder)) - names
    )


def ids_in(fields: Mapping[str, Any] | None) -> frozenset[str]:
    """The id that a `config.json` or the metadata of weights carry; none if they carry none."""
    found = (fields or {}).get(SAVE_ID)
    return frozenset() if found is None else frozenset({str(found)})


def mixed(weights: Sequence[Path]) -> WeightsError:
    """The error for weights that were saved with another `config.json` than the one that is beside them."""
    names = ", ".join(path.name for path in weights)
    return WeightsError(
        f"{weights[0].parent}: {names} and {CONFIG} come from two different saves: one was interrupted, or "
        "files were combined by hand.",
        code="saves-mixed",
        remedy=f"Save the model into this folder again. If these files belong together, delete the line "
        f"{SAVE_ID!r} from {CONFIG}.",
    )


def read_whole(path: Path, read: Callable[[], T]) -> T:
    """Read a model while no saver exchanges its files: again if one did, and the last time with savers kept out."""
    for _ in range(_TRIES):
        before = _state(path)
        try:
            found = read()
        except PellucidError:
            if _state(path) == before:
                raise
            continue
        if _state(path) == before:
            return found
    try:
        with atomic.alone(path if path.is_dir() else path.parent):
            return read()
    except OSError as problem:  # the folder is gone, or its saver never ends
        if isinstance(problem, PellucidError):
            raise
        raise unreadable(path, problem) from problem


def _state(path: Path) -> dict[str, tuple[int, int, int]]:
    """What a saver changes: which file each name is."""
    found: dict[str, tuple[int, int, int]] = {}
    with suppress(OSError):
        for name in os.listdir(path if path.is_dir() else path.parent):
            if name.endswith((".json", ".txt", ".safetensors", ".bin", ".pt")):
                with suppress(OSError):  # a link to nowhere, or a file that was removed just now
                    facts = os.stat(path / name if path.is_dir() else path.parent / name)
                    found[name] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def _marked(folder: Path) -> list[tuple[str, atomic.Writer]]:
    """A `config.json` that carries no id gets one before the weights beside it are exchanged."""
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(fields, dict) or SAVE_ID in fields:
        return []
    found = _sha256(json_text(fields).encode())[:32]
    return [(CONFIG, atomic.text_writer(json_text({**fields, SAVE_ID: found})))]


def _outdated(folder: Path) -> Iterable[str]:
    """What an earlier save left: all of its weights, and what it wrote beside them and nobody changed since."""
    yield from _weights_in(folder)
    yield from _recorded(folder)


def _weights_in(folder: Path) -> Iterable[str]:
    with suppress(OSError):  # not there yet, or not a folder, of which writing says so
        yield from (name for name in os.listdir(folder) if _WEIGHTS.fullmatch(name) and (folder / name).is_file())


def _recorded(folder: Path) -> dict[str, str]:
    """What is still as an earlier save wrote it beside its weights: file name -> SHA-256."""
    recorded: dict[str, str] = {}
    for name in _weights_in(folder):
        if name.endswith(".safetensors"):
            with suppress(OSError, ValueError, TypeError, RecursionError), (folder / name).open("rb") as file:
                recorded.update(json.loads(read_metadata(file).get(_BESIDE, "{}")))

    def is_unchanged(name: str, digest: str) -> bool:
        path = folder / name
        with suppress(OSError):
            return path.name == name and path.is_file() and _sha256(path.read_bytes()) == digest
        return False

    return {name: digest for name, digest in recorded.items() if is_unchanged(name, digest)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
