"""Every kind of file that the library reads: how a sound one is made, how it is damaged, and who reads it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch

import pellucid as pl
from fuzz import mutations as m
from pellucid.prove.aligning import align
from pellucid.prove.alignment import Alignment
from pellucid.prove.units import units_of
from support import glass
from weights import checkpoints

Read = Callable[[Path], object]
Mutate = Callable[[bytes, Random], bytes]

TEXTS = ["one two three", "two", "three one one two three three", "one one"]
SIZES: dict[str, Any] = {"vocab_size": 61, "n_positions": 20, "n_embd": 12, "n_layer": 2, "n_head": 3}


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: Of the file, in its folder.
        make: Writes a sound folder.
        mutations: What is done to the file; each is drawn as often as the others.
        reads: Who reads it.
    """

    name: str
    make: Callable[[Path], object]
    mutations: tuple[Mutate, ...]
    reads: tuple[Read, ...]


MODEL = glass(**SIZES, pad_token_id=0, eos_token_id=1)
IDS = torch.tensor([[3, 1, 2]])


def run_model(folder: Path) -> None:
    model = pl.load(_weights_in(folder))
    with torch.no_grad():
        model(torch.remainder(IDS, model.config.vocab_size))
    if model.tokenizer is not None:
        batch = model.tokenize(["one two", "three"])
        _ = batch.strings
        model(batch)


def audit(folder: Path) -> None:
    repr(pl.audit_ties(_weights_in(folder)))


def tokenize(folder: Path) -> None:
    tokenizer = pl.Tokenizer.from_folder(folder)
    assert tokenizer is not None
    ids = tokenizer.encode("one two <sep> three\N{SNOWMAN}")
    tokenizer.decode(ids)
    tokenizer.pieces(ids)
    tokenizer.files()


def _weights_in(folder: Path) -> Path:
    alone = [path for path in folder.iterdir() if path.name in ("weights.pt", "raw.bin", "llmc.bin")]
    return alone[0] if alone else folder


def captured(folder: Path) -> None:
    ckpts = pl.ActivationCkpts.load(folder / "run.safetensors")
    repr(ckpts)
    _ = ckpts.batch.strings, ckpts.provenance, ckpts.nbytes
    ckpts.to_xarray()
    pl.measure.norms(ckpts, "resid_post")
    ckpts.stack("resid_post")


def cached(folder: Path) -> None:
    cache = pl.KeyValueCache.load(folder / "cache.safetensors")
    repr(cache)
    with torch.no_grad():
        MODEL(IDS, cache=cache.fork(capacity=cache.capacity + 3))


def statistics() -> list[Any]:
    return [
        pl.measure.Moments("resid_post", of="norm"),
        pl.measure.Covariance("attn.ckpt_z"),
        pl.measure.Quantiles("resid_mid", of="norm"),
        pl.measure.Autoregression("attn.ckpt_attn_out", lags=1),
    ]


def resumed(folder: Path) -> None:
    saving = pl.measure.Saving(folder / "stream.safetensors", every_texts=1)
    _results(pl.measure.stream(MODEL, _rows(), statistics(), batch_size=2, checkpoint=saving))


def _results(gathered: Any) -> None:
    for number in range(len(gathered)):
        repr(gathered[number])


def _rows() -> list[list[int]]:
    draw = Random(7)
    return [[draw.randrange(61) for _ in range(length)] for length in (5, 9, 4, 7, 12, 3, 8, 6)]


def aligned(folder: Path) -> None:
    alignment = Alignment.load(folder / "alignment.json")
    repr(alignment)
    alignment.to_json()
    for act in (lambda: alignment.convert(MODEL), lambda: alignment.check(MODEL, MODEL)):
        with suppress(pl.PellucidError):
            act()


def folder_of_model(folder: Path) -> None:
    MODEL.save_pretrained(folder)
    _tokenizer_json(folder)


def _generation(folder: Path) -> None:
    MODEL.save_pretrained(folder)
    settings = {"eos_token_id": [1, 2], "pad_token_id": 0, "temperature": 0.7, "top_k": 5, "do_sample": True,
                "suppress_tokens": [4], "repetition_penalty": 1.2, "transformers_version": "5.24.0"}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(settings))


def generates(folder: Path) -> None:
    model = pl.load(folder)
    model.generate(IDS, max_new_tokens=2)


def _tokenizer_json(folder: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *"oentwhrĠ", "on", "one", "tw", "two", "th"])}
    merges = [("o", "n"), ("on", "e"), ("t", "w"), ("tw", "o"), ("t", "h")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<sep>"])
    (folder / "tokenizer.json").write_text(backend.to_str())


def _vocabulary(folder: Path) -> None:
    MODEL.save_pretrained(folder)
    vocabulary = {
        piece: number for number, piece in enumerate(["<|endoftext|>", *"oentwhrĠ", "on", "one", "tw", "two"])
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\no n\non e\nt w\ntw o\n")
    (folder / "added_tokens.json").write_text(json.dumps({"<sep>": len(vocabulary)}))


def _special_tokens(folder: Path) -> None:
    _vocabulary(folder)
    (folder / "added_tokens.json").unlink()
    named = {"pad_token": {"content": "<pad>", "lstrip": True}, "eos_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**named, "additional_special_tokens": ["<sep>"]}))


def _tokenizer_config(folder: Path) -> None:
    folder_of_model(folder)
    token = {"content": "<sep>", "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    said = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "added_tokens_decoder": {"14": token},
            "pad_token": "<sep>", "eos_token": {"__type": "AddedToken", **token}, "extra_special_tokens": ["<sep>"],
            "split_special_tokens": False, "padding_side": "left", "model_max_length": 20}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def _shards(folder: Path) -> None:
    tensors = MODEL.state_dict()
    from pellucid.weights.layouts import from_ours
    from pellucid.weights.own_file import write_tensors

    tensors = {n: t.contiguous() for n, t in from_ours(tensors, MODEL.config, "hf").items()}
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        write_tensors(folder / file, {name: tensors[name] for name in held}, {"format": "pt"})
    weight_map = {name: file for file, held in halves.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(MODEL.config.to_json())


def _bin_shards(folder: Path) -> None:
    tensors = checkpoints.own_dict(HF)
    names = sorted(tensors)
    for number in (0, 1):
        torch.save({n: tensors[n].clone() for n in names[number::2]}, folder / f"pytorch_model-{number}.bin")
    weight_map = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    checkpoints.write_config(folder, HF)


def _zip(folder: Path) -> None:
    torch.save(checkpoints.hf_dict(HF), folder / "pytorch_model.bin")
    checkpoints.write_config(folder, HF)


def _legacy(folder: Path) -> None:
    torch.save(checkpoints.hf_dict(HF), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    checkpoints.write_config(folder, HF)


def _raw(folder: Path) -> None:
    content = {"model": {"a": 1, "b": [1.5, "x"]}, "step": 7, "more": ({"lr": 0.1}, None, True, 2**70)}
    (folder / "raw.bin").write_bytes(pickle.dumps(content, protocol=2))
    checkpoints.write_config(folder, HF)


def _nanogpt(folder: Path) -> None:
    checkpoints.save_nanogpt(folder / "weights.pt", HF)


def _llmc(folder: Path) -> None:
    (folder / "llmc.bin").write_bytes(checkpoints.llmc_bytes(HF))


def _hooked(folder: Path) -> None:
    checkpoints.save_folder(folder, checkpoints.hooked_dict(HF), HF)


def _captures(folder: Path) -> None:
    batch = MODEL.tokenize([[3, 1, 2], [5, 6]], padding_side="left")
    names = ["blocks.*.resid_post", "blocks.*.attn.ckpt_pattern", "ckpt_embed"]
    MODEL.run_with_ckpts(batch, names=names, pos=slice(1, 3))[1].save(folder / "run.safetensors")


def _cache(folder: Path) -> None:
    cache = pl.KeyValueCache(MODEL.config, capacity=8)
    with torch.no_grad():
        MODEL(IDS, cache=cache)
    cache.save(folder / "cache.safetensors")


def _stream(folder: Path) -> None:
    saving = pl.measure.Saving(folder / "stream.safetensors", every_texts=1)
    pl.measure.stream(MODEL, _rows()[:6], statistics(), batch_size=2, checkpoint=saving)


def _alignment(folder: Path) -> None:
    others = {f"their.{name}": tensor for name, tensor in checkpoints.hf_dict(HF).items()}
    model = pl.from_hf(HF)
    align(units_of(model), others, model.schema).save(folder / "alignment.json")


HF = checkpoints.small_hf()
LOADED = (run_model, audit)
TREE = (m.of_json, m.of_json, m.of_bytes)


def own(kind: str) -> tuple[Mutate, ...]:
    return m.of_own(kind), m.of_own(kind), m.of_header, m.of_bytes


KINDS: dict[str, Kind] = {
    "config.json": Kind("config.json", folder_of_model, TREE, LOADED),
    "generation_config.json": Kind("generation_config.json", _generation, TREE, (generates,)),
    "safetensors": Kind("model.safetensors", folder_of_model, (m.of_header, m.of_header, m.of_bytes), LOADED),
    "safetensors, hooked layout": Kind("model.safetensors", _hooked, (m.of_header,), LOADED),
    "safetensors index": Kind("model.safetensors.index.json", _shards, TREE, LOADED),
    "safetensors shard": Kind("model-00002-of-00002.safetensors", _shards, (m.of_header, m.of_bytes), LOADED),
    "bin, zip": Kind("pytorch_model.bin", _zip, (m.of_archive, m.of_state, m.of_bytes), LOADED),
    "bin, legacy": Kind("pytorch_model.bin", _legacy, (m.of_pickle, m.of_state, m.of_bytes), LOADED),
    "bin index": Kind("pytorch_model.bin.index.json", _bin_shards, TREE, LOADED),
    "pickle": Kind("raw.bin", _raw, (m.of_pickle, m.of_bytes, m.of_key), LOADED),
    "nanoGPT": Kind("weights.pt", _nanogpt, (m.of_archive, m.of_state, m.of_bytes), LOADED),
    "llm.c": Kind("llmc.bin", _llmc, (m.of_numbers, m.of_bytes), LOADED),
    "tokenizer.json": Kind("tokenizer.json", folder_of_model, TREE, (run_model, tokenize)),
    "vocab.json": Kind("vocab.json", _vocabulary, TREE, (run_model, tokenize)),
    "merges.txt": Kind("merges.txt", _vocabulary, (m.of_lines, m.of_lines, m.of_bytes), (run_model, tokenize)),
    "added_tokens.json": Kind("added_tokens.json", _vocabulary, TREE, (run_model, tokenize)),
    "tokenizer_config.json": Kind("tokenizer_config.json", _tokenizer_config, TREE, (run_model, tokenize)),
    "special_tokens_map.json": Kind("special_tokens_map.json", _special_tokens, TREE, (run_model, tokenize)),
    "captures": Kind("run.safetensors", _captures, own("pellucid.ckpts"), (captured,)),
    "cache": Kind("cache.safetensors", _cache, own("pellucid.cache"), (cached,)),
    "stream": Kind("stream.safetensors", _stream, own("pellucid.stream"), (resumed,)),
    "alignment": Kind("alignment.json", _alignment, TREE, (aligned,)),
}  # fmt: skip
