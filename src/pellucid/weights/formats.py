"""A folder, a file or a state dict in, tensors out: safetensors, PyTorch pickles and llm.c binaries.

Every reader maps the file into memory privately: nothing is copied until it is written to, and a write changes
the process's own page, never the file. A pickle is read by PyTorch's restricted unpickler only, which builds
tensors and plain containers and calls nothing that the file names. Whatever a damaged file makes a library
raise leaves here as a `WeightsError`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import ConfigError, NotFoundError, WeightsError, printable, shown, warn
from pellucid.family.layout import EMBED, HEAD
from pellucid.numerics.dense import not_dense
from pellucid.weights import hub, saves
from pellucid.weights.kinds import no_weights, only_weights, refuse_archive, unknown_format
from pellucid.weights.layouts import IN_MEMORY, endings, find_weights
from pellucid.weights.leftovers import ADAPTERS, listed
from pellucid.weights.manifests import each_once, is_there, read_index, read_json, reading, require_regular, unreadable
from pellucid.weights.pickles import read_pickle

FOLDER_FILES = (*hub.WEIGHT_FILES, "ckpt.pt")
"""Where a folder keeps its weights, the best first; the last is what nanoGPT's train.py writes."""

LLMC_MAGIC = 20240326
_LLMC_HEADER = 256
_LLMC_DTYPES = {3: torch.float32, 5: torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """What was found, before anyone asked what it means."""

    path: Path  # the weights file, or the index of the shards
    format: str  # `safetensors`, `pickle`, `llm.c`, or `mapping` if it was in memory
    # under the names that they have there, dense, on the CPU, in the dtypes stored; mapped privately from a file
    tensors: dict[str, Tensor]
    # the fields of `config.json` or of the file's own header, in transformers' names; None if there are none
    config: Mapping[str, Any] | None = None
    model_args: Mapping[str, Any] | None = None  # nanoGPT's description of the model, if the file has it
    # where in a file the tensors lie, and what lies beside them, for the provenance
    notes: Mapping[str, str] = field(default_factory=dict)
    how: str = ""  # how to get the tensors in Python, for remedies
    saves: frozenset[str] = frozenset()  # the ids of the saves that wrote it, see `pellucid.weights.saves`


def read(path: Path, *, needs_config: bool = True) -> Stored:
    """Read a folder (`config.json` and weights, single or sharded) or one weights file.

    A file's configuration is the one in its own header, or else the `config.json` beside it.
    """
    with reading(path):
        is_folder = path.is_dir()
    weights = _best_weights(path) if is_folder else path
    beside = weights.parent / "config.json"
    config = read_json(beside, ConfigError, "config-not-json") if is_there(beside) else None
    found = _read_shards(weights) if weights.name.endswith(".index.json") else read_file(weights)
    if not found.tensors:
        raise WeightsError(
            f"{weights}: holds no tensors.", code="no-tensors", remedy="Download or write the file again."
        )
    if is_folder and needs_config and config is None and found.config is None and found.model_args is None:
        raise NotFoundError(
            f"{path}: no config.json beside {weights.name}.",
            code="config-not-found",
            remedy="Add the config.json of this model, or pass config=; the number of heads, among other "
            "things, cannot be inferred from the tensors.",
        )
    if found.saves and len(found.saves | saves.ids_in(config)) > 1:
        raise saves.mixed(shards_of(weights))
    if is_folder and is_there(path / "adapter_config.json"):
        said = "adapter_config.json beside the weights: the adapter is not applied"
        warn(f"load: {path}: {said}. {ADAPTERS.remedy}")
        found = replace(found, notes={**found.notes, "adapter": said})
    return found if found.config is not None else replace(found, config=config)


def in_memory(tensors: Mapping[str, Any]) -> Stored:
    """A state dict, or what `torch.load` gave, as if it had been read from a file.

    Its tensors are copied to the processor, so that no later change of theirs reaches the model.
    """
    found = _unpack(IN_MEMORY, tensors, "mapping")
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in found.tensors.items()}
    return replace(found, path=Path("mapping"), format="mapping", tensors=copies)


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


def _read_shards(index: Path) -> Stored:
    weight_map = read_index(index)
    tensors: dict[str, Tensor] = {}
    ids = frozenset[str]()
    found: Stored | None = None
    for shard in sorted(set(weight_map.values())):
        if not is_there(index.parent / shard):
            raise NotFoundError(
                f"{index}: names {shard}, which is not in the folder.",
                code="shard-missing",
                remedy=f"Download {shard} into {index.parent}.",
            )
        found = read_file(index.parent / shard)
        # A tied model writes its matrix once, although its index may give both names; whether one of them is missing is
        # known with the configuration.
        tied = (*endings(EMBED), *endings(HEAD))
        promised = {name for name, file in weight_map.items() if file == shard and not name.endswith(tied)}
        absent, twice = sorted(promised - set(found.tensors)), sorted(set(found.tensors) & set(tensors))
        if absent or twice:
            raise WeightsError(
                f"{index.parent / shard}: "
                + (f"lacks {', '.join(absent[:8])}, which the index promises" if absent else "")
                + (f"repeats {', '.join(twice[:8])} of another shard" if twice else "")
                + ".",
                code="shard-mismatch",
                remedy="Download index and shards again, of one revision.",
            )
        tensors.update(found.tensors)
        ids |= found.saves
    assert found is not None, "read_index refuses an empty weight_map"
    read, ending = _READERS.get(found.format, ("", ""))
    how = (
        f"{{name: tensor for shard in pathlib.Path({str(index.parent)!r}).glob('*-of-*.{ending}') "
        f"for name, tensor in {read}(shard).items()}}"
    )
    return replace(found, path=index, tensors=tensors, how=how, saves=ids)


_READERS = {
    "safetensors": ("safetensors.torch.load_file", "safetensors"),
    "pickle": ("torch.load", "bin"),
}
"""Other libraries' functions that read a shard, and how its name ends."""


def read_file(path: Path) -> Stored:
    """Read one weights file; its first bytes, not its name, tell the format."""
    require_regular(path)
    with reading(path), path.open("rb") as file:
        start = file.read(12)
    if len(start) < 12:
        raise WeightsError(
            f"{path}: {len(start)} bytes, too short to hold weights.",
            code="file-truncated",
            remedy="Download or write the file again.",
        )
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1] in range(2, 6) and start[8:9] != b"{"):
        refuse_archive(path)
        return _unpack(str(path), read_pickle(path), f"torch.load({str(path)!r})")
    if struct.unpack("<i", start[:4])[0] == LLMC_MAGIC:
        return _read_llmc(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise unknown_format(path)


def _read_safetensors(path: Path) -> Stored:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            ids = saves.ids_in(file.metadata())
        with path.open("rb") as head:  # of a tensor that its header gives twice the library takes the last
            json.loads(head.read(int.from_bytes(head.read(8), "little")), object_pairs_hook=each_once)
        how = f"safetensors.torch.load_file({str(path)!r})"
        return Stored(path, "safetensors", tensors, how=how, saves=ids)
    except OSError as problem:
        raise unreadable(path, problem) from problem
    # The library's own exception derives from Exception directly, and PyTorch adds RuntimeError, TypeError and
    # ValueError for headers whose dtypes and offsets cannot be views.
    except Exception as problem:
        raise WeightsError(
            f"{path}: not a sound safetensors file: {problem}.",
            code="safetensors-damaged",
            remedy="Download or write the file again; its header and its data do not agree.",
        ) from problem


def _unpack(where: str, content: Any, how: str) -> Stored:
    """The weights in what was saved, wherever they lie in it, and nanoGPT's `model_args` beside them."""
    found = find_weights(where, content)
    model_args = content.get("model_args") if isinstance(content, Mapping) and found.path else None
    if model_args is not None and not isinstance(model_args, Mapping):
        raise WeightsError(
            f"{where}: model_args is {type(model_args).__name__}, expected a dict.",
            code="pickle-model-args",
            remedy="Write the file again with nanoGPT's train.py.",
        )
    tensors = {name: _plain(where, name, value) for name, value in found.tensors.items()}
    _require_own_numbers(where, tensors)
    notes = {"key": ".".join(map(str, found.path)), "beside": listed(found.beside, 20)}
    return Stored(
        Path(where), "pickle", tensors, None, model_args,
        {name: printable(note) for name, note in notes.items() if note},
        how + "".join(f"[{key!r}]" for key in found.path),
    )  # fmt: skip


def _plain(where: str, name: str, tensor: Tensor) -> Tensor:
    kind = not_dense(tensor)
    if kind is not None:
        raise WeightsError(
            f"{where}: {shown(name)} is {kind.said}, expected a dense tensor with numbers.",
            code="tensor-not-dense",
            remedy=kind.remedy("Save"),
        )
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > max(stored, 1):  # stride 0: a few bytes that claim to be a terabyte
        raise WeightsError(
            f"{where}: {shown(name)} is {list(tensor.shape)} over {stored} bytes: expanded, not stored.",
            code="tensor-not-dense",
            remedy="Save tensors that hold their own numbers: tensor.contiguous().",
        )
    return tensor.detach()


def _require_own_numbers(where: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse names without end for the same few bytes: in a model each of them becomes a parameter of its own."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if claimed > 100 * sum(stored.values()) + 2**28:
        raise WeightsError(
            f"{where}: {len(tensors)} tensors of {claimed} bytes together, over {sum(stored.values())} bytes.",
            code="tensor-not-dense",
            remedy="Save tensors that hold their own numbers: tensor.clone().",
        )


def _read_llmc(path: Path) -> Stored:
    """llm.c's model file: 256 int32 of header, then each parameter for all layers before the next one.

    Source: `gpt2_write_to_checkpoint` in llm.c's train_gpt2.cu. The vocabulary is padded to a multiple of 128
    in the file; the padding is no token and is left out here.
    """
    size = path.stat().st_size
    if size < 4 * _LLMC_HEADER:
        raise _llmc_error(path, f"{size} bytes, shorter than its header", "file-truncated")
    with path.open("rb") as file:
        header = struct.unpack(f"<{_LLMC_HEADER}i", file.read(4 * _LLMC_HEADER))
    version, (positions, vocab, layers, heads, width, padded) = header[1], header[2:8]
    if version not in _LLMC_DTYPES:
        raise _llmc_error(path, f"version {version}, expected 3 (float32) or 5 (bfloat16)", "llmc-version")
    if min(positions, vocab, heads, width) < 1 or layers < 0 or padded < vocab:
        raise _llmc_error(path, f"impossible sizes in its header: {header[2:8]}", "llmc-header")
    parts: list[tuple[str, int, tuple[int, ...]]] = [
        ("wte", 1, (padded, width)),
        ("wpe", 1, (positions, width)),
        *((stem, layers, shape) for stem, shape in _llmc_layer(width)),
        ("lnfw", 1, (width,)),
        ("lnfb", 1, (width,)),
    ]
    dtype = _LLMC_DTYPES[version]
    expected = 4 * _LLMC_HEADER + dtype.itemsize * sum(count * math.prod(shape) for _, count, shape in parts)
    if size != expected:
        raise _llmc_error(path, f"{size} bytes, its header promises {expected}", "file-truncated")
    storage = torch.UntypedStorage.from_file(str(path), False, size)
    at = 4 * _LLMC_HEADER // dtype.itemsize
    tensors: dict[str, Tensor] = {}
    for stem, count, shape in parts:
        for layer in range(count):
            name = stem if stem in ("wte", "wpe", "lnfw", "lnfb") else f"{stem}.{layer}"
            tensors[name] = torch.empty(0, dtype=dtype).set_(storage, at, shape)  # pyright: ignore[reportCallIssue]
            at += math.prod(shape)
    tensors["wte"] = tensors["wte"][:vocab]
    config = {
        "vocab_size": vocab, "n_positions": positions, "n_embd": width, "n_layer": layers, "n_head": heads,
        "activation_function": "gelu_new", "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
    }  # fmt: skip
    return Stored(path, "llm.c", tensors, config)


def _llmc_layer(width: int) -> list[tuple[str, tuple[int, ...]]]:
    return [
        ("ln1w", (width,)), ("ln1b", (width,)),
        ("qkvw", (3 * width, width)), ("qkvb", (3 * width,)),
        ("attprojw", (width, width)), ("attprojb", (width,)),
        ("ln2w", (width,)), ("ln2b", (width,)),
        ("fcw", (4 * width, width)), ("fcb", (4 * width,)),
        ("fcprojw", (width, 4 * width)), ("fcprojb", (width,)),
    ]  # fmt: skip


def _llmc_error(path: Path, what: str, code: str) -> WeightsError:
    return WeightsError(
        f"{path}: an llm.c model with {what}.",
        code=code,
        remedy="Write the file again with llm.c's train_gpt2, version 3 or 5.",
    )
