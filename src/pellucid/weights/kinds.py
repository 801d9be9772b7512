"""Files and folders that cannot be read as a GPT-2: what they are, and how to get weights that can be read."""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.errors import NotFoundError, WeightsError
from pellucid.weights.leftovers import ADAPTERS, DEEPSPEED_REMEDY, TENSORFLOW_REMEDY, listed
from pellucid.weights.manifests import unreadable

READABLE = "Give safetensors, a PyTorch .bin or .pt, or an llm.c model .bin."
_AGAIN = "Download the file itself"
_FLAX = "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(folder, from_flax=True).save_pretrained(other)."
_H5 = "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(folder, from_tf=True).save_pretrained(other)."
_LFS = f"{_AGAIN} in its place: git lfs pull, or hf download with the repository's id."
_ORIGIN = "Give the weights that it was converted from, as safetensors or .bin."
_UNPACK = "Unpack it, and give the folder or the weights file that was in it."
_EXPORT = "It is made for running, not for reading weights: give the weights that it was exported from."


@dataclass(frozen=True)
class Kind:
    """A kind of file that is not read.

    Args:
        what: What it is, as the end of "the file is ...".
        remedy: How to get what this library reads.
        start: What its first bytes match.
        name: What its name matches.
    """

    what: str
    remedy: str
    start: bytes = rb"(?!)"
    name: str = "(?!)"

    def has(self, name: str, start: bytes) -> bool:
        """Whether a file is of this kind."""
        return re.match(self.start, start, re.DOTALL | re.IGNORECASE) is not None or bool(re.search(self.name, name))


def _magic(number: int) -> bytes:
    return re.escape(struct.pack("<i", number))


FILES = (
    Kind("a Git LFS pointer, which stands for the file", _LFS, rb"version https://git-lfs|version https://hawser"),
    Kind("a pointer of git-annex, which stands for the file", f"{_AGAIN}: git annex get.", rb"/annex/objects/"),
    Kind("a page of HTML or XML, not the file", f"{_AGAIN}: the address led to a page about it, or to a login.",
         rb"\s*(<!doctype|<html|<head|<\?xml)"),
    Kind("weights of TensorFlow or Keras (HDF5)", _H5, rb"\x89HDF\r\n\x1a\n", r"\.(h5|keras)$"),
    Kind("weights of Flax (msgpack)", _FLAX, rb"[\x81-\x8f\xde\xdf](..)?[\xa1-\xbf\xd9]", r"\.msgpack$"),
    Kind("a part of weights of TensorFlow", TENSORFLOW_REMEDY,
         name=r"\.(index|meta|data-\d+-of-\d+)$|saved_model\.pb$"),
    Kind("a GGUF file", _ORIGIN, rb"GGUF", r"\.gguf$"),
    Kind("a GGML file", _ORIGIN, rb"lmgg|tjgg|fmgg"),
    Kind("a model of ONNX", _EXPORT, name=r"\.onnx(_data)?$"),
    Kind("a model of Core ML", _EXPORT, name=r"\.ml(model|package)$"),
    Kind("a model of TensorFlow Lite", _EXPORT, rb"....TFL3", r"\.tflite$"),
    Kind("an llm.c data file (tokens)", f"It holds a text. {READABLE}", _magic(20240520) + b"|" + _magic(20240801)),
    Kind("an llm.c debug state", f"It holds one run. {READABLE}", _magic(20240327)),
    Kind("an llm.c tokenizer", f"It holds no weights. {READABLE}", _magic(20240328)),
    Kind("an llm.c model of Llama", "Give the weights of a GPT-2; no other is read.", _magic(20240803)),
    Kind("an array of NumPy", READABLE, rb"\x93NUMPY"),
    Kind("a compressed file (gzip, bzip2, xz or zstd)", _UNPACK, rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd"),
    Kind("an archive (7z or RAR)", _UNPACK, rb"7z\xbc\xaf\x27\x1c|Rar!"),
    Kind("an archive (tar)", _UNPACK, rb".{257}ustar"),
    Kind("a pickle of protocol 0 or 1, which is not read", "Save it again with torch.save.",
         rb"\(dp|\(lp|c[\w.]+\n[\w.]+\n|\}q|\]q|\(i"),
    Kind("JSON text, without weights", "Give the folder that the file is in, or the weights file.", rb"\s*[{\[]"),
    Kind("a picture, a document or a data set", READABLE, rb"%PDF|\x89PNG|\xff\xd8\xff|PAR1|ARROW1|SQLite format"),
    Kind("text, without weights", READABLE, rb"[\t\n\r -~]{200}"),
)  # fmt: skip
"""Told by their first bytes, else by their names; the first that fits."""

ENTRIES = (
    Kind("a program of TorchScript", _EXPORT, name=r"(^|/)constants\.pkl$"),
    Kind("arrays of NumPy (.npz)", READABLE, name=r"\.npy$"),
    Kind("a model of Keras", _H5, name=r"\.weights\.h5$"),
    Kind("a model of Core ML", _EXPORT, name=r"(^|/)Manifest\.json$"),
    Kind("an archive of a model's folder", _UNPACK, name=r"(safetensors|\.bin|config\.json|\.pt|\.pth)$"),
)
"""ZIP archives that are no file of PyTorch's, told by the names of their entries."""


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that is not read, told by what is in it."""

    name: str
    what: str
    remedy: str


_PEFT = "a PEFT adapter, which is a change to another model's weights"
FOLDERS = (
    FolderKind(r"adapter_(config\.json|model\.(safetensors|bin))$", _PEFT, ADAPTERS.remedy),
    FolderKind(
        r"\.distcp$|^\.metadata$|^pytorch_model_fsdp", "weights in parts, as FSDP saves them",
        "Join its parts: python -m torch.distributed.checkpoint.format_utils dcp_to_torch folder weights.pt, then "
        "pl.load('weights.pt', config=...).",
    ),
    FolderKind(
        r"^zero_to_fp32\.py$|mp_rank_\d+|^global_step\d+$|_optim_states\.pt$|^zero_pp_rank",
        "a training state in parts, as DeepSpeed saves it", DEEPSPEED_REMEDY,
    ),
    FolderKind(r"\.ckpt\.(index|meta|data)|^checkpoint$|^saved_model\.pb$", "weights of TensorFlow",
               TENSORFLOW_REMEDY),
    FolderKind(r"^tf_model\.h5$|\.h5$", "weights of TensorFlow or Keras only", _H5),
    FolderKind(r"^flax_model\.msgpack$|\.msgpack$", "weights of Flax only", _FLAX),
    FolderKind(r"\.gguf$", "GGUF files only", "Give the weights that they were converted from."),
    FolderKind(r"\.onnx$", "a model of ONNX only", _EXPORT),
    FolderKind(r"^rng_state|^trainer_state\.json$|^optimizer\.(pt|bin)$|^scheduler\.pt$",
               "a trainer's state without its weights", "Give the folder into which the trainer saved the model."),
)  # fmt: skip


def unknown_format(path: Path) -> WeightsError:
    """The error for a file that is not read, with what it is."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as problem:
        return unreadable(path, problem)
    kind = next((kind for kind in FILES if kind.has(path.name, start)), None)
    if kind is not None:
        return WeightsError(f"{path}: {kind.what}.", code="format-not-supported", remedy=kind.remedy)
    return WeightsError(
        f"{path}: begins with {start[:8].hex(' ')}, expected safetensors, a PyTorch pickle or an llm.c model.",
        code="format-unknown",
        remedy=READABLE,
    )


def refuse_archive(path: Path) -> None:
    """Refuse a ZIP archive that PyTorch did not write.

    Raises:
        WeightsError: It is another.
    """
    if path.suffix == ".distcp":
        raise WeightsError(
            f"{path}: one of several files: {FOLDERS[1].what}.", code="format-not-supported", remedy=FOLDERS[1].remedy
        )
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError):
        return  # no archive, or a damaged one, of which its reader says so
    script = ENTRIES[0]
    is_torch = any(re.search(r"(^|/)data\.pkl$", name) for name in names)
    for kind in (script,) if is_torch else ENTRIES:
        if any(kind.has(name, b"") for name in names):
            raise WeightsError(f"{path}: {kind.what}.", code="format-not-supported", remedy=kind.remedy)
    if not is_torch:
        raise WeightsError(
            f"{path}: an archive without weights; it holds {listed(names, 8) or 'nothing'}.",
            code="format-not-supported",
            remedy=READABLE,
        )


_SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
"""What tells the name of a shard from that of a whole."""


def is_in_parts(names: Sequence[str]) -> bool:
    """Whether a folder of these files holds an adapter, or a model in parts, of which no file alone is the model."""
    return any(re.search(kind.name, name) for kind in FOLDERS[:3] for name in names)


def no_weights(folder: Path, expected: Sequence[str], others: Sequence[str], several: Sequence[str]) -> WeightsError:
    """The error for a folder without weights that are read, with what it is.

    Args:
        folder: The folder.
        expected: The names of weights files that are read.
        others: What it holds.
        several: The files in it that may be weights under another name.
    """
    shard = next((name for name in several if _SHARD.search(name)), None)
    if shard is not None:
        return NotFoundError(
            f"{folder}: shards without their index: {listed(several, 8)}.",
            code="weights-not-found",
            remedy=f"Put the index of the same revision beside them: {_SHARD.sub('', shard)}.index.json.",
        )
    if len(several) > 1 and not is_in_parts(others):
        return NotFoundError(
            f"{folder}: several weights files, none of them under a usual name: {listed(several, 8)}.",
            code="weights-not-found",
            remedy=f"Give one of them, such as {str(folder / several[-1])!r}.",
        )
    steps = [name for name in others if re.fullmatch(r"checkpoint-\d+", name)]
    if steps:
        newest = max(steps, key=lambda name: int(name.rpartition("-")[2]))
        return NotFoundError(
            f"{folder}: a trainer's folder, with saved models inside: {listed(steps, 8)}.",
            code="weights-not-found",
            remedy=f"Give one of them; the newest is {str(folder / newest)!r}.",
        )
    kind = next((kind for kind in FOLDERS if any(re.search(kind.name, name) for name in others)), None)
    if kind is not None:
        return WeightsError(f"{folder}: {kind.what}.", code="format-not-supported", remedy=kind.remedy)
    return NotFoundError(
        f"{folder}: none of {', '.join(expected)}; it holds {listed(sorted(others), 8) or 'nothing'}.",
        code="weights-not-found",
        remedy="Give the folder that save_pretrained wrote, or the weights file itself.",
    )
