"""Checkpoints of every layout, written from a transformers model by code that shares nothing with the library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import pellucid as pl
from support import reference

SMALL: dict[str, Any] = {"vocab_size": 61, "n_positions": 20, "n_embd": 12, "n_layer": 2, "n_head": 3}

ODD: dict[str, dict[str, Any]] = {
    "small": {},
    "untied": {"tie_word_embeddings": False},
    "narrow-mlp": {"n_inner": 7},
    "head-width-one": {"n_head": 12},
    "one-head": {"n_head": 1, "n_embd": 5, "n_inner": 20},
    "no-blocks": {"n_layer": 0},
    "twelve-blocks": {"n_layer": 12},
    "one-token-one-position": {"vocab_size": 1, "n_positions": 1},
    "erf-inverse-scale": {"activation_function": "gelu", "scale_attn_by_inverse_layer_idx": True},
    "epsilon": {"layer_norm_epsilon": 1e-3, "reorder_and_upcast_attn": True, "scale_attn_weights": False},
}
"""Configurations in which a transposition or a swapped pair of axes cannot hide."""


def stored_bytes(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """What a safetensors file holds, byte by byte: name -> dtype, shape, data."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return {
        name: (entry["dtype"], entry["shape"], content[start:][slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def small_hf(**fields: Any) -> Any:
    """A small transformers model in which every parameter matters."""
    given = {**SMALL, "bos_token_id": 0, "eos_token_id": 0, **fields}
    return reference(**given)


def config_of(hf: Any) -> pl.TransformerConfig:
    """Our configuration of a transformers model."""
    names = (*SMALL, "n_inner", "activation_function", "layer_norm_epsilon", "scale_attn_weights",
             "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "tie_word_embeddings")  # fmt: skip
    return pl.TransformerConfig(**{name: getattr(hf.config, name) for name in names})


def ids_for(hf: Any) -> Tensor:
    """A few ids that the model takes."""
    columns = min(7, hf.config.n_positions)
    return torch.randint(hf.config.vocab_size, (2, columns), generator=torch.Generator().manual_seed(5))


def same_logits(model: pl.CkptedTransformer, hf: Any) -> bool:
    """Whether ours gives transformers' logits to the bit."""
    ids = ids_for(hf)
    with torch.no_grad():
        return torch.equal(model(ids), hf(ids).logits)


def hf_dict(hf: Any, *, head: bool | None = None) -> dict[str, Tensor]:
    """Independent copies of its tensors; the head only when untied, unless said otherwise."""
    head = not hf.config.tie_word_embeddings if head is None else head
    return {n: t.detach().clone() for n, t in hf.state_dict().items() if head or n != "lm_head.weight"}


def save_folder(folder: Path, tensors: dict[str, Tensor], hf: Any, **config: Any) -> Path:
    """A transformers folder with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    write_config(folder, hf, **config)
    return folder


def write_config(folder: Path, hf: Any, **config: Any) -> None:
    """`config.json` of a transformers model, with some fields replaced."""
    (folder / "config.json").write_text(json.dumps({**hf.config.to_dict(), **config}))


def nanogpt_dict(hf: Any, *, bias: bool = True) -> dict[str, Tensor]:
    """nanoGPT's state dict: Linear's orientation, the embedding under both names in one storage."""
    result: dict[str, Tensor] = {}
    for name, tensor in hf_dict(hf, head=True).items():
        if not bias and name.endswith(".bias"):
            continue
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        result[name] = torch.from_numpy(np.ascontiguousarray(tensor.numpy().T)) if turned else tensor
    if hf.config.tie_word_embeddings:
        result["transformer.wte.weight"] = result["lm_head.weight"]
    return result


def save_nanogpt(path: Path, hf: Any, *, bias: bool = True, prefix: str = "", **model_args: Any) -> Path:
    """What nanoGPT's train.py writes."""
    names = {"n_positions": "block_size"}
    args = {names.get(name, name): getattr(hf.config, name) for name in SMALL}
    content = {
        "model": {prefix + name: tensor for name, tensor in nanogpt_dict(hf, bias=bias).items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 6e-4, "params": [0, 1]}]},
        "model_args": {**args, "bias": bias, "dropout": 0.0, **model_args},
        "iter_num": 5,
        "best_val_loss": torch.tensor(3.0),
        "config": {"out_dir": "out", "dtype": "float16"},
    }
    torch.save(content, path)
    return path


def llmc_bytes(hf: Any, version: int = 3) -> bytes:
    """What llm.c writes: a header of 256 int32, then each parameter for all layers before the next one."""
    c, d = hf.config, hf_dict(hf)
    padded = -(-c.vocab_size // 128) * 128
    header = [20240326, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded]
    wte = np.full((padded, c.n_embd), 7.0, dtype=np.float32)
    wte[: c.vocab_size] = d["transformer.wte.weight"].numpy()
    parts = [wte, d["transformer.wpe.weight"].numpy()]
    for name in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight",
                 "attn.c_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
                 "mlp.c_proj.weight", "mlp.c_proj.bias"):  # fmt: skip
        parts += [d[f"transformer.h.{i}.{name}"].numpy().T for i in range(c.n_layer)]
    parts += [d["transformer.ln_f.weight"].numpy(), d["transformer.ln_f.bias"].numpy()]
    data = b"".join(np.ascontiguousarray(part).astype("<f4").tobytes() for part in parts)
    if version == 5:
        numbers = torch.frombuffer(bytearray(data), dtype=torch.float32).bfloat16()
        data = numbers.view(torch.int16).numpy().tobytes()
    return struct.pack("<256i", *header, *[0] * 248) + data


def hooked_dict(hf: Any, *, buffers: bool = True) -> dict[str, Tensor]:
    """HookedTransformer's state dict without processing: matrices per head, the head apart."""
    c, d = hf.config, hf_dict(hf, head=True)
    heads, width = c.n_head, c.n_embd // c.n_head
    result = {"embed.W_E": d["transformer.wte.weight"], "pos_embed.W_pos": d["transformer.wpe.weight"]}
    for i in range(c.n_layer):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        weight, bias = d[f"{theirs}.attn.c_attn.weight"], d[f"{theirs}.attn.c_attn.bias"]
        for which, letter in enumerate("QKV"):
            starts = [which * c.n_embd + head * width for head in range(heads)]
            result[f"{ours}.attn.W_{letter}"] = torch.stack([weight[:, s : s + width] for s in starts])
            result[f"{ours}.attn.b_{letter}"] = torch.stack([bias[s : s + width] for s in starts])
        out = d[f"{theirs}.attn.c_proj.weight"]
        result[f"{ours}.attn.W_O"] = torch.stack([out[head * width : (head + 1) * width] for head in range(heads)])
        for a, b in (("ln_1.weight", "ln1.w"), ("ln_1.bias", "ln1.b"), ("attn.c_proj.bias", "attn.b_O"),
                     ("ln_2.weight", "ln2.w"), ("ln_2.bias", "ln2.b"), ("mlp.c_fc.weight", "mlp.W_in"),
                     ("mlp.c_fc.bias", "mlp.b_in"), ("mlp.c_proj.weight", "mlp.W_out"),
                     ("mlp.c_proj.bias", "mlp.b_out")):  # fmt: skip
            result[f"{ours}.{b}"] = d[f"{theirs}.{a}"]
        if buffers:
            result[f"{ours}.attn.mask"] = torch.ones(c.n_positions, c.n_positions).tril().bool()
            result[f"{ours}.attn.IGNORE"] = torch.tensor(float("-inf"))
    result["ln_final.w"], result["ln_final.b"] = d["transformer.ln_f.weight"], d["transformer.ln_f.bias"]
    result["unembed.W_U"] = d["lm_head.weight"].t().contiguous()
    result["unembed.b_U"] = torch.zeros(c.vocab_size)
    return result


def course_dict(hf: Any) -> dict[str, Tensor]:
    """The state dict of the GPT-2 that one builds in the course."""
    d = hf_dict(hf)
    renamed = {"ln_1": "ln1", "ln_2": "ln2", "attn.c_attn": "attn.qkv_proj", "attn.c_proj": "attn.output_proj",
               "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}  # fmt: skip
    around = {"token_embedding.weight": "wte.weight", "pos_embedding.weight": "wpe.weight",
              "ln.weight": "ln_f.weight", "ln.bias": "ln_f.bias"}  # fmt: skip
    result = {ours: d[f"transformer.{theirs}"] for ours, theirs in around.items()}
    for i in range(hf.config.n_layer):
        for theirs, name in renamed.items():
            weight = d[f"transformer.h.{i}.{theirs}.weight"]
            result[f"blocks.{i}.{name}.weight"] = weight.t().contiguous()
            result[f"blocks.{i}.{name}.bias"] = d[f"transformer.h.{i}.{theirs}.bias"]
    if not hf.config.tie_word_embeddings:
        result["unembed.weight"] = d["lm_head.weight"]
    return result


def own_dict(hf: Any) -> dict[str, Tensor]:
    """Our stored names, made by hand."""
    c, d = hf.config, hf_dict(hf)
    result = {"embed.W_E": d["transformer.wte.weight"], "pos_embed.W_pos": d["transformer.wpe.weight"]}
    for i in range(c.n_layer):
        for a, b in (("ln_1.weight", "ln1.w"), ("ln_1.bias", "ln1.b"), ("attn.c_attn.weight", "attn.W_QKV"),
                     ("attn.c_attn.bias", "attn.b_QKV"), ("attn.c_proj.weight", "attn.W_O"),
                     ("attn.c_proj.bias", "attn.b_O"), ("ln_2.weight", "ln2.w"), ("ln_2.bias", "ln2.b"),
                     ("mlp.c_fc.weight", "mlp.W_in"), ("mlp.c_fc.bias", "mlp.b_in"),
                     ("mlp.c_proj.weight", "mlp.W_out"), ("mlp.c_proj.bias", "mlp.b_out")):  # fmt: skip
            tensor = d[f"transformer.h.{i}.{a}"]
            result[f"blocks.{i}.{b}"] = tensor.reshape(c.n_head, -1, c.n_embd) if b == "attn.W_O" else tensor
    result["ln_final.w"], result["ln_final.b"] = d["transformer.ln_f.weight"], d["transformer.ln_f.bias"]
    if not c.tie_word_embeddings:
        result["unembed.W_U"] = d["lm_head.weight"].t()
    return result
