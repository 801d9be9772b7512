"""Files and folders that cannot be read as a model: what they are, and how to get weights that can be read."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path

from pellucid.errors import NotFoundError, WeightsError
from pellucid.weights.leftovers import ADAPTERS, DEEPSPEED_REMEDY, MEGATRON_REMEDY, TENSORFLOW_REMEDY, listed
from pellucid.weights.manifests import SHARD, STAND_INS, FileKind, is_there, reading, require_regular

_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt)$")
_NO_WEIGHTS = re.compile(
    r"^(training_args|optimizer|scheduler|scaler|sampler|dl_state|rng_state|random_states|adapter_|state_\d|\.)|optim_states"
)
"""What trainers write beside the weights under the same endings."""

READABLE = "Give safetensors, a PyTorch .bin or .pt, or an llm.c model .bin."
_FLAX = "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(folder, from_flax=True).save_pretrained(other)."
_H5 = "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(folder, from_tf=True).save_pretrained(other)."
_NPZ = "Read them with NumPy: pl.load(dict(numpy.load(path)), config=...)."
_ORIGIN = "Give the weights that it was converted from, as safetensors or .bin."
_UNPACK = "Unpack it, and give the folder or the weights file that was in it."
_EXPORT = "It is made for running, not for reading weights: give the weights that it was exported from."


def _magic(number: int) -> bytes:
    return re.escape(struct.pack("<i", number))


_FILES = (
    FileKind("a model of OpenVINO", _EXPORT, name=r"^openvino.*\.(bin|xml)$"),  # whose XML is no page of a hub
    *STAND_INS,
    FileKind("weights of TensorFlow or Keras (HDF5)", _H5, rb"\x89HDF\r\n\x1a\n", r"\.(h5|keras)$"),
    FileKind("weights of Flax (msgpack)", _FLAX, rb"[\x81-\x8f\xde\xdf](..)?[\xa1-\xbf\xd9]", r"\.msgpack$"),
    FileKind("a part of weights of TensorFlow", TENSORFLOW_REMEDY,
         name=r"\.(index|meta|data-\d+-of-\d+)$|saved_model\.pb$|^checkpoint$"),
    FileKind("a GGUF file", _ORIGIN, rb"GGUF", r"\.gguf$"),
    FileKind("a GGML file", _ORIGIN, rb"lmgg|tjgg|fmgg"),
    FileKind("a model of ONNX", _EXPORT, rb"\x08[\x03-\x20]\x12.(pytorch|onnx|tf2onnx|keras|skl2onnx)",
         r"\.onnx([._]data)?$"),
    FileKind("a model of Core ML", _EXPORT, name=r"\.ml(model|package)$"),
    FileKind("a model of TensorFlow Lite", _EXPORT, rb"....TFL3", r"\.tflite$"),
    FileKind("weights of PaddlePaddle", _ORIGIN, name=r"\.pd(params|model|iparams)$"),
    FileKind("weights of MXNet", _ORIGIN, rb"\x12\x01\0{6}", r"\.params$"),
    FileKind("weights of rust-bert", _ORIGIN, name=r"\.ot$"),
    FileKind("a model of CTranslate2", _ORIGIN, rb"[\x01-\x0f]\0{3}..\w+Spec\0"),
    FileKind("a model of TensorRT", _EXPORT, name=r"\.(engine|plan|trt)$"),
    FileKind("a model of ExecuTorch", _EXPORT, rb"....ET\d\d", r"\.pte$"),
    FileKind("an llm.c debug state", f"It holds one run. {READABLE}", _magic(20240327)),
    FileKind("an llm.c model of Llama", "Give the folder of transformers' that it was made from.", _magic(20240803)),
    FileKind("arrays of NumPy (.npz)", _NPZ, name=r"\.npz$"),
    FileKind("an array of NumPy", READABLE, rb"\x93NUMPY"),
    FileKind("a file of PyTorch's in the format before version 0.1.10 (tar)", "If you trust it, write it again: "
         "torch.save(torch.load(path, weights_only=False), other), then pl.load(other, config=...).",
         rb"(\./)?(sys_info|pickle|storages|tensors)\0.*ustar"),
    FileKind("a pickle of protocol 0 or 1, which is not read", "Save it again with torch.save.",
         rb"\(dp|\(lp|c[\w.]+\n[\w.]+\n|\}q|\]q|\(i"),
)  # fmt: skip
"""Weights, and what stands for them, told by their first bytes, else by their names; the first that fits."""

_PACKED = (
    FileKind("a compressed file (gzip, bzip2, xz, zlib or zstd)", _UNPACK,
         rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|x[\x01\x5e\x9c\xda]"),
    FileKind("an archive (7z or RAR)", _UNPACK, rb"7z\xbc\xaf\x27\x1c|Rar!"),
    FileKind("an archive (tar)", _UNPACK, rb".{257}ustar"),
    FileKind("an archive (ZIP)", _UNPACK, name=r"\.zip$"),
    FileKind("a download that was interrupted", "Download the file again, until its name has no such ending.",
         name=r"\.(incomplete|aria2|crdownload|part|partial|download)$"),
)  # fmt: skip
"""What weights may be inside of."""

_OTHERS = (
    *_PACKED,
    FileKind("an llm.c data file (tokens)", f"It holds a text. {READABLE}", _magic(20240520) + b"|" + _magic(20240801)),
    FileKind("an llm.c tokenizer", f"It holds no weights. {READABLE}", _magic(20240328)),
    FileKind("JSON text, without weights", "Give the folder that the file is in, or the weights file.", rb"\s*[{\[]"),
    FileKind("a picture, a document or a data set", READABLE, rb"%PDF|\x89PNG|\xff\xd8\xff|PAR1|ARROW1|SQLite format"),
    FileKind("text, without weights", READABLE, rb"[\t\n\r -~]{200}"),
)  # fmt: skip
"""What lies beside weights."""

_ENTRIES = (
    FileKind("a program of TorchScript", _EXPORT, name=r"(^|/)constants\.pkl$"),
    FileKind("a program of torch.export", _EXPORT, name=r"(^|/)(archive_format|serialized_exported_program\.json)$"),
    FileKind("arrays of NumPy (.npz)", _NPZ, name=r"\.npy$"),
    FileKind("a model of Keras", _H5, name=r"\.weights\.h5$"),
    FileKind("a model of Core ML", _EXPORT, name=r"(^|/)Manifest\.json$"),
    FileKind("an archive of a model's folder", _UNPACK, name=r"(safetensors|\.bin|config\.json|\.pt|\.pth)$"),
)
"""ZIP archives that are no file of PyTorch's, told by the names of their entries."""


_FSDP = FileKind(
    "weights in parts, as FSDP saves them",
    "Join its parts: python -m torch.distributed.checkpoint.format_utils dcp_to_torch folder weights.pt, then "
    "pl.load('weights.pt', config=...).",
    name=r"\.distcp$|^\.metadata$|^(pytorch_model|optimizer)_fsdp_(rank)?\d+$|_fsdp_?rank_?\d+",
)
_PARTS = (
    FileKind("a PEFT adapter, which is a change to another model's weights", ADAPTERS.remedy,
         name=r"adapter_(config\.json|model\.(safetensors|bin))$"),
    _FSDP,
    FileKind("a training state in parts, as DeepSpeed saves it", DEEPSPEED_REMEDY,
         name=r"^zero_to_fp32\.py$|^mp_rank_\d+_model_states|^global_step\d+$|_optim_states\.pt$|^zero_pp_rank"),
    FileKind("weights as Megatron-LM saves them, with interleaved heads", MEGATRON_REMEDY,
         name=r"^latest_checkpointed_iteration\.txt$|^iter_\d{7}$|^mp_rank_\d+(_\d+)?$|^model_(optim_)?rng\.pt$"),
    FileKind("weights in parts, as Orbax saves them", "Restore them with Orbax, and save them with safetensors.flax "
         "under transformers' names.", name=r"^_CHECKPOINT_METADATA$|^manifest\.ocdbt$|^_METADATA$"),
)  # fmt: skip
"""Folders of which no file alone is the model, told by what is in them."""

_STATE = FileKind("a trainer's state without its weights", "Give the folder into which the trainer saved the model.",
              name=r"^rng_state|^random_st|^trainer_state\.json$|^optimizer\.(pt|bin)$|^scheduler\.pt$")  # fmt: skip


def unknown_format(path: Path) -> WeightsError:
    """The error for a file that is not read, with what it is."""
    start = _start(path)
    kind = next((kind for kind in (*_FILES, *_OTHERS) if kind.has(path.name, start)), None)
    if kind is not None:
        return kind.refused(path)
    return WeightsError(
        f"{path}: begins with {start[:8].hex(' ')}, expected safetensors, a PyTorch pickle or an llm.c model.",
        code="format-unknown",
        remedy=READABLE,
    )


def _start(path: Path) -> bytes:
    require_regular(path)
    with reading(path), path.open("rb") as file:
        return file.read(512)


def refuse_archive(path: Path) -> None:
    """Refuse a ZIP archive that PyTorch did not write."""
    if path.suffix == ".distcp":
        raise _FSDP.refused(f"{path}: one of several files")
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError):
        return  # no archive, or a damaged one, of which its reader says so
    is_torch = any(re.search(r"(^|/)data\.pkl$", name) for name in names)
    for kind in _ENTRIES[:2] if is_torch else _ENTRIES:
        if any(kind.has(name, b"") for name in names):
            raise kind.refused(path)
    if not is_torch:
        raise WeightsError(
            f"{path}: an archive without weights; it holds {listed(names, 8) or 'nothing'}.",
            code="format-not-supported",
            remedy=READABLE,
        )


def only_weights(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of a folder's files that may be a model's weights, by their first bytes and by what lies beside them."""
    if any(kind.has(name, b"") for kind in _PARTS for name in names):
        return []
    return [name for name in names if _may_hold_weights(folder / name)]


def _may_hold_weights(path: Path) -> bool:
    """Whether a file may hold a model's weights, by its name and its first bytes."""
    if not _WEIGHTS.search(path.name) or _NO_WEIGHTS.search(path.name) or path.is_dir():  # Lightning has last.ckpt/
        return False
    start = _start(path)
    return not any(kind.has(path.name, start) for kind in (*_FILES, *_OTHERS))


def _files_below(folder: Path) -> list[Path]:
    """The files in a folder's folders, hidden ones left out: those of three levels, and no more than some hundreds."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):  # which follows no links, and passes over what it may not read
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < 3 else []
        found += [Path(place, name) for name in sorted(names) if depth and Path(place, name).is_file()]
        if len(found) > 500:
            break
    return found


def no_weights(folder: Path, expected: Sequence[str], others: Sequence[str], several: Sequence[str]) -> WeightsError:
    """The error for a folder without weights that are read, with what it is."""
    shard = next((name for name in several if SHARD.search(name)), None)
    if shard is not None:
        return _without_weights(
            f"{folder}: shards without their index: {listed(several, 8)}.",
            f"Put the index of the same revision beside them: {SHARD.sub('', shard)}.index.json.",
        )
    if len(several) > 1:
        return _without_weights(
            f"{folder}: several weights files, none of them under a usual name: {listed(several, 8)}.",
            f"Give one of them, such as {str(folder / several[-1])!r}.",
        )
    steps = {int(name.rpartition("-")[2]): name for name in others if re.fullmatch(r"checkpoint-\d+", name)}
    if steps:
        return _without_weights(
            f"{folder}: a trainer's folder, with saved models inside: {listed(list(steps.values()), 8)}.",
            f"Give one of them; the newest is {str(folder / steps[max(steps)])!r}.",
        )
    snapshots = sorted((folder / "snapshots").glob("*/"), key=lambda snapshot: snapshot.stat().st_mtime)
    if snapshots:
        return _without_weights(
            f"{folder}: what the hub's cache keeps of a repository.",
            f"Give a snapshot; the newest is {str(snapshots[-1])!r}.",
        )
    inner = [name for name in others if any(is_there(folder / name / file) for file in expected)]
    if inner:
        return _without_weights(
            f"{folder}: no weights, but folders with some: {listed(inner, 8)}.",
            f"Give one of them, such as {str(folder / inner[-1])!r}.",
        )
    for kind, name in ((kind, name) for kind in _PARTS for name in others):
        if kind.has(name, b""):
            return kind.refused(folder / name if kind is _FSDP and (folder / name).is_dir() else folder)
    below = _files_below(folder)
    apart = sorted(filter(_may_hold_weights, below), key=lambda path: path.stat().st_mtime)
    if apart:
        return _without_weights(
            f"{folder}: no weights, but files below that may hold some: "
            f"{listed([str(path.relative_to(folder)) for path in apart], 8)}.",
            f"Give one of them; the newest is {str(apart[-1])!r}.",
        )
    own = [folder / name for name in others if (folder / name).is_file()]
    for path, kinds in (*((path, (*_FILES, *_PACKED)) for path in own), *((path, _FILES) for path in below)):
        start, parts = _start(path), path.relative_to(folder).parts  # a package of Core ML is a folder
        kind = next((kind for kind in kinds if any(kind.has(part, start) for part in parts)), None)
        if kind is not None:
            return kind.refused(path)
    if any(_STATE.has(name, b"") for name in others):
        return _STATE.refused(folder)
    return _without_weights(
        f"{folder}: none of {', '.join(expected)}; it holds {listed(sorted(others), 8) or 'nothing'}.",
        "Give the folder that save_pretrained wrote, or the weights file itself."
        if "config.json" not in others
        else f"Put the weights of the same model beside its config.json, such as {expected[0]}; or give the weights "
        "file itself.",
    )


def _without_weights(what: str, remedy: str) -> NotFoundError:
    return NotFoundError(what, code="weights-not-found", remedy=remedy)
