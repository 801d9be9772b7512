"""One file in, tensors out: safetensors, PyTorch pickles and llm.c binaries.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.errors import WeightsError, shown
from pellucid.weights.kinds import refuse_archive, unknown_format
from pellucid.weights.layouts import find_weights
from pellucid.weights.manifests import each_once, reading, require_regular, unreadable
from pellucid.weights.pickles import read_pickle

LLMC_MAGIC = 20240326
_LLMC_HEADER = 256
_LLMC_DTYPES = {3: torch.float32, 5: torch.bfloat16}


@dataclass(frozen=True)
class Content:
    """What one file holds."""

    format: str  # `safetensors`, `pickle` or `llm.c`
    tensors: dict[str, Tensor]  # names as the file has them, dense tensors on the CPU, in the file's dtypes
    config: Mapping[str, Any] | None = None  # fields in transformers' names, if the file itself has them (llm.c)
    model_args: Mapping[str, Any] | None = None  # nanoGPT's own description of the model, if the file has it
    key: str = ""  # where in the file the tensors lie; "" for the whole of it
    beside: tuple[str, ...] = ()  # the keys of what lies beside them
    how: str = ""  # how to get the tensors in Python, for remedies


def read_file(path: Path) -> Content:
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
        return unpack(str(path), read_pickle(path), f"torch.load({str(path)!r})")
    if struct.unpack("<i", start[:4])[0] == LLMC_MAGIC:
        return _read_llmc(path)
    if start[8:9] == b"{":
        return Content("safetensors", _read_safetensors(path), how=f"safetensors.torch.load_file({str(path)!r})")
    raise unknown_format(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        with path.open("rb") as head:  # of a tensor that its header gives twice the library takes the last
            json.loads(head.read(int.from_bytes(head.read(8), "little")), object_pairs_hook=each_once)
        return found
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


def unpack(where: str, content: Any, how: str) -> Content:
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
    keys = "".join(f"[{key if key.isdecimal() else repr(key)}]" for key in found.path)
    return Content("pickle", tensors, None, model_args, ".".join(found.path), found.beside, how + keys)


def _plain(where: str, name: str, tensor: Tensor) -> Tensor:
    kind, made = (
        ("on the meta device", "")
        if tensor.is_meta
        else ("nested", "to_padded_tensor(0)")
        if tensor.is_nested
        else ("quantized", "dequantize()")
        if tensor.is_quantized
        else (str(tensor.layout).removeprefix("torch."), "to_dense()")
    )
    if kind != "strided":
        raise WeightsError(
            f"{where}: {shown(name)} is {kind}, expected a dense tensor with numbers.",
            code="tensor-not-dense",
            remedy=f"Save dense tensors, as tensor.{made} makes them."
            if made
            else "Load its numbers before it is saved.",
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


def _read_llmc(path: Path) -> Content:
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
    return Content("llm.c", tensors, config)


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


def config_of_model_args(model_args: Mapping[str, Any]) -> dict[str, Any]:
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
