"""Files and folders of other programs: what is sound opens, and the rest is refused by what it is."""

from __future__ import annotations

import argparse
import collections
import io
import json
import pickle
import re
import struct
import tarfile
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import pellucid as pl
from weights.checkpoints import config_of, hf_dict, llmc_bytes, same_logits, save_nanogpt, small_hf, write_config

HF = small_hf()
"""Read by every test here, written by none."""


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 40)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def magic(number: int) -> bytes:
    return struct.pack("<i", number) + bytes(2000)


FILES: dict[str, tuple[bytes, str]] = {
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "TensorFlow or Keras"),
    "model.ckpt.index": (bytes(range(60)), "weights of TensorFlow"),
    "model.ckpt.data-00000-of-00001": (bytes(range(60)), "weights of TensorFlow"),
    "saved_model.pb": (b"\x08\x01" + bytes(60), "weights of TensorFlow"),
    "flax_model.msgpack": (b"\x81\xabtransformer" + bytes(60), "Flax"),
    "weights": (b"\x81\xabtransformer" + bytes(60), "Flax"),
    "model.gguf": (b"GGUF" + bytes(60), "GGUF"),
    "ggml-model.bin": (b"lmgg" + bytes(60), "GGML"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(60), "ONNX"),
    "model.mlmodel": (b"\x08\x01" + bytes(60), "Core ML"),
    "tokens.bin": (magic(20240520), "llm.c data file"),
    "debug.bin": (magic(20240327), "llm.c debug state"),
    "tokenizer.bin": (magic(20240328), "llm.c tokenizer"),
    "array.npy": (b"\x93NUMPY\x01\x00" + bytes(60), "array of NumPy"),
    "arrays.npz": (zipped("wte.npy", "wpe.npy"), "arrays of NumPy"),
    "script.pt": (zipped("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "TorchScript"),
    "model.zip": (zipped("model/config.json", "model/model.safetensors"), "a model's folder"),
    "holiday.zip": (zipped("beach.jpg"), "beach.jpg"),
    "part.distcp": (zipped("a"), "FSDP"),
    "model.bin.gz": (b"\x1f\x8b\x08" + bytes(60), "compressed"),
    "model.tar": (tarred(), "tar"),
    "model.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "pytorch_model.bin": (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "page of HTML"),
    "weights.safetensors": (b"Entry not found", "what a hub answers"),
    "weights.bin": (b"Access to model someone/model is restricted. You must be logged in.", "what a hub answers"),
    "model.safetensors.index.json": (b"Invalid username or password.", "what a hub answers"),
    "vocab.json": (b'{"a": 0, "b": 1, "c": 2}', "JSON"),
    "old.pkl": (pickle.dumps({"a": 1, "b": [2, 3]}, protocol=0), "protocol 0"),
    "noise": (b"\xff" * 64, "begins with ff ff"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_read_is_refused_by_what_it_is(name: str, tmp_path: Path) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    for door in (pl.load, pl.audit_ties):
        with pytest.raises(pl.WeightsError) as caught:
            door(tmp_path / name)
        assert said in caught.value.message
        assert caught.value.code == ("format-unknown" if name == "noise" else "format-not-supported")
        assert "Download" not in caught.value.remedy or said in (
            "Git LFS pointer",
            "page of HTML",
            "what a hub answers",
        )


def test_a_part_of_deepspeed_is_refused_as_one(tmp_path: Path) -> None:
    """ZeRO-3 leaves empty tensors in the file of each process; the state of the optimizer has no names of a model."""
    tensors = hf_dict(HF)
    config = pl.TransformerConfig.from_dict(HF.config.to_dict())
    empty = {name: torch.empty(0) for name in tensors}
    part, whole, state = tmp_path / "zero_pp_rank_0.pt", tmp_path / "mp_rank_00.pt", tmp_path / "optim_states.pt"
    torch.save({"module": empty, "param_shapes": [{"a": torch.Size([2])}], "ds_version": "0.14"}, part)
    torch.save({"module": tensors, "ds_version": "0.14"}, whole)
    moments = {0: {"exp_avg": torch.ones(9)}}
    torch.save({"optimizer_state_dict": {"fp32_flat_groups": [torch.ones(9)], "state": moments}}, state)
    with pytest.raises(pl.WeightsError, match=r"hold no numbers.*ZeRO-3") as caught:
        pl.load(part, config=config)
    assert "zero_to_fp32.py" in caught.value.remedy
    with pytest.raises(pl.WeightsError, match="state of an optimizer") as caught:
        pl.load(state, config=config)
    assert caught.value.code == "weights-foreign"
    assert same_logits(pl.load(whole, config=config), HF)


FOLDERS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "adapter": (("adapter_config.json", "adapter_model.safetensors"), "PEFT", "merge_and_unload"),
    "DeepSpeed": (("zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt"), "DeepSpeed", "zero_to_fp32.py"),
    "FSDP": ((".metadata", "__0_0.distcp", "__1_0.distcp"), "FSDP", "dcp_to_torch"),
    "trainer": (("checkpoint-500/x", "checkpoint-1500/x", "trainer_state.json"), "checkpoint-1500", "checkpoint-1500"),
    "OpenAI": (("checkpoint", "model.ckpt.index", "hparams.json"), "TensorFlow", "transformers 4"),
    "Keras": (("tf_model.h5", "config.json"), "Keras", "from_tf"),
    "Flax": (("flax_model.msgpack", "config.json"), "Flax", "from_flax"),
    "GGUF": (("gpt2.Q4_K_M.gguf",), "GGUF", "converted from"),
    "trainer's state": (("optimizer.pt", "scheduler.pt", "training_args.bin"), "without its weights", "trainer saved"),
    "several": (("a.safetensors", "b.safetensors"), "several weights files", "b.safetensors"),
    "one within": (("config.json", "final/model.safetensors"), "folders with some: final", "final'"),
    "a folder with the name of a file": (("last.ckpt/weights.pt",), "files below that may hold some", "weights.pt'"),
    "without weights": (("config.json",), "it holds config.json", "Put the weights of the same model beside its"),
    "weights of another name": (("config.json", "best.pkl"), "it holds best.pkl, config.json", "weights file itself"),
    "pictures": (("a.png",), "it holds a.png", "save_pretrained"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_without_weights_is_refused_by_what_it_is(case: str, tmp_path: Path) -> None:
    names, said, remedy = FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}" if name == "config.json" else b"x" * 40)
    for door in (pl.load, pl.audit_ties):
        with pytest.raises(pl.WeightsError) as caught:
            door(tmp_path)
        assert said in caught.value.message
        assert remedy in caught.value.remedy


@pytest.mark.remedy("weights-not-found")
def test_shards_open_when_their_index_is_put_where_the_remedy_says(tmp_path: Path) -> None:
    HF.save_pretrained(tmp_path, max_shard_size="4KB")
    (index,) = tmp_path.glob("*.index.json")
    index.rename(tmp_path / "elsewhere")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path)
    assert "shards without their index" in caught.value.message
    (tmp_path / "elsewhere").rename(tmp_path / caught.value.remedy.split(": ")[1].rstrip("."))
    assert same_logits(pl.load(tmp_path), HF)


@pytest.mark.remedy("weights-not-found")
def test_the_newest_checkpoint_of_a_trainer_opens_as_its_remedy_says(tmp_path: Path) -> None:
    for step in (500, 1500):
        HF.save_pretrained(tmp_path / f"checkpoint-{step}")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path)
    assert same_logits(pl.load(caught.value.remedy.split("'")[1]), HF)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "best.pt", "epoch=3.ckpt", "model_00019560.bin", "w.pth"])
def test_weights_alone_under_another_name_are_read(name: str, tmp_path: Path) -> None:
    if name.startswith("model_"):
        (tmp_path / name).write_bytes(llmc_bytes(HF))
        (tmp_path / "state_00019560_00000.bin").write_bytes(bytes(99))
    elif name.endswith(".safetensors"):
        save_file(hf_dict(HF), tmp_path / name)
    else:
        torch.save({"state_dict": hf_dict(HF), "epoch": 3}, tmp_path / name)
        (tmp_path / "optimizer.pt").write_bytes(b"not read")
    if not name.startswith("model_"):
        write_config(tmp_path, HF)
    model = pl.load(tmp_path)
    assert same_logits(model, HF)
    assert model.provenance["file"] == name


def deflated(path: Path, how: int = zipfile.ZIP_DEFLATED) -> Path:
    other = path.with_name("deflated.bin")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(other, "w", how) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    return other


def test_a_compressed_archive_is_read_right(tmp_path: Path) -> None:
    torch.save(hf_dict(HF), tmp_path / "weights.bin")
    for how in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert same_logits(pl.load(deflated(tmp_path / "weights.bin", how), config=config_of(HF)), HF)
    hf = small_hf(activation_function="gelu")
    assert same_logits(pl.load(deflated(save_nanogpt(tmp_path / "ckpt.pt", hf))), hf)


def test_an_archive_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"wte.weight": torch.zeros(2**25)}, tmp_path / "weights.bin")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(deflated(tmp_path / "weights.bin"), config=config_of(HF))
    assert caught.value.code == "archive-too-large"


@pytest.mark.parametrize(
    "beside",
    [np.float64(1.5), np.int64(7), np.float32(0.5), np.bool_(True), np.arange(6.0).reshape(2, 3), [np.uint8(3)],
     np.array([1, 2], dtype=">i4"), {"a": (np.float16(2),)}],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("packed", [True, False])
def test_numpys_numbers_beside_the_weights_do_no_harm(beside: Any, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model": hf_dict(HF), "best": beside}, path, _use_new_zipfile_serialization=packed)
    before = set(map(repr, torch.serialization.get_safe_globals()))
    assert same_logits(pl.load(path, config=config_of(HF)), HF)
    assert set(map(repr, torch.serialization.get_safe_globals())) == before


def test_numpys_numbers_in_model_args_are_read(tmp_path: Path) -> None:
    hf = small_hf(activation_function="gelu")
    sizes = {name: np.int64(value) for name, value in (("n_layer", 2), ("n_head", 3), ("n_embd", 12))}
    model = pl.load(save_nanogpt(tmp_path / "ckpt.pt", hf, **sizes, dropout=np.float64(0.25)))
    assert same_logits(model, hf)
    assert model.config.attn_pdrop == 0.25


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize(
    ("what", "named"),
    [(np.array([{}], dtype=object), "a NumPy type 'O8'"), (np.datetime64("2020-01-01"), "a NumPy type 'M8'"),
     (np.str_("x"), "a NumPy type 'U1'"), (range(3), "range"), (types.SimpleNamespace(lr=1), "types.SimpleNamespace"),
     (collections.defaultdict(list), "collections.defaultdict"), (slice(3), "slice")],
    ids=repr,
)  # fmt: skip
def test_plain_values_that_are_not_read_are_named_and_the_remedy_works(what: Any, named: str, tmp_path: Path) -> None:
    path, config = tmp_path / "weights.pt", config_of(HF)
    torch.save({"model": hf_dict(HF), "x": what}, path)
    with pytest.raises(pl.WeightsError, match=f"with {re.escape(named)} beside the weights") as caught:
        pl.load(path, config=config)
    assert "pl.load(torch.load(path, weights_only=False), config=...)" in caught.value.remedy
    assert same_logits(pl.load(torch.load(path, weights_only=False), config=config), HF)
    torch.save({"model": hf_dict(HF), "x": what, "y": Runs()}, path)
    with pytest.raises(pl.WeightsError, match="would run code") as caught:
        pl.load(path, config=config)
    assert "torch.load" not in caught.value.remedy


@pytest.mark.remedy("pickle-unsafe")
def test_an_object_beside_the_weights_is_named_and_its_remedy_works(tmp_path: Path) -> None:
    path, config = tmp_path / "weights.pt", config_of(HF)
    torch.save({"model": hf_dict(HF), "args": argparse.Namespace(lr=1e-3)}, path)
    with pytest.raises(pl.WeightsError, match=r"argparse\.Namespace beside the weights") as caught:
        pl.load(path, config=config)
    assert "import argparse" in caught.value.remedy
    assert "safe_globals([argparse.Namespace])" in caught.value.remedy
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert same_logits(pl.load(torch.load(path), config=config), HF)


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize("ours", [True, False])
def test_a_whole_module_is_named_and_its_remedy_works(ours: bool, tmp_path: Path) -> None:
    path, other, config = tmp_path / "module.pt", tmp_path / "other.pt", config_of(HF)
    torch.save(pl.from_hf(HF) if ours else torch.nn.Sequential(torch.nn.Embedding(3, 4)), path)
    with pytest.raises(pl.WeightsError, match="whole pickled module") as caught:
        pl.load(path, config=config)
    call = caught.value.remedy.split("classes: ")[1].split(", then")[0]
    assert call == "torch.save(torch.load(path, weights_only=False).state_dict(), other)"
    if ours:
        torch.save(torch.load(path, weights_only=False).state_dict(), other)
        assert same_logits(pl.load(other, config=config), HF)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (__import__("os").system, ("true",))


def test_a_pickle_that_runs_code_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"wte.weight": Runs()}, path)
    with pytest.raises(pl.WeightsError, match=r"would run code.*posix\.system|would run code.*os\.system") as caught:
        pl.load(path, config=config_of(HF))
    assert caught.value.code == "pickle-unsafe"
    assert "safe_globals" not in caught.value.remedy
    torch.save({"wte.weight": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(path, config=config_of(HF))
    assert caught.value.code == "pickle-damaged"


def nested(depth: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = (1, 2)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", ["key", "model_args"])
def test_a_tuple_that_would_take_for_ever_is_refused_at_once(where: str, packed: bool, tmp_path: Path) -> None:
    path, bomb = tmp_path / "weights.pt", nested(60)
    written = pickle.dumps(("a key", "a size", bomb), protocol=2)
    body = {"a key": torch.zeros(1)} if where == "key" else {"model": hf_dict(HF), "model_args": {"n_layer": "a size"}}
    torch.save(body, path, _use_new_zipfile_serialization=packed)
    replaced = b"X" + struct.pack("<i", 5) + b"a key" if where == "key" else b"X" + struct.pack("<i", 6) + b"a size"
    tower = written[written.index(b"K\x01K\x02") : written.rindex(b"\x87")]  # the opcodes that build it
    data = path.read_bytes()
    if packed:
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in entries if name.endswith("data.pkl"))
        assert replaced in entries[name]
        entries[name] = entries[name].replace(replaced, tower)
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)
    else:
        assert replaced in data
        path.write_bytes(data.replace(replaced, tower))
    with pytest.raises(pl.WeightsError, match="nested so deeply that reading it would take forever") as caught:
        pl.load(path, config=config_of(HF))
    assert caught.value.code == "pickle-unsafe"


def test_a_few_bytes_that_claim_to_be_a_terabyte_are_refused(tmp_path: Path) -> None:
    for wide in (torch.zeros(1, 1).expand(10**9, 12), torch.zeros(12).expand(10**6, 12)):
        torch.save({**hf_dict(HF), "transformer.wte.weight": wide}, tmp_path / "weights.pt")
        for door in (lambda path: pl.load(path, config=config_of(HF)), pl.audit_ties):
            with pytest.raises(pl.WeightsError, match="expanded, not stored"):
                door(tmp_path / "weights.pt")
    base = torch.zeros(2**16)
    torch.save({f"h.{i}.ln_1.weight": base for i in range(2000)}, tmp_path / "weights.pt")
    with pytest.raises(pl.WeightsError, match="2000 tensors"):
        pl.load(tmp_path / "weights.pt", config=config_of(HF))


def test_a_name_without_end_is_cut(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {**hf_dict(HF), "x" * 10**6: torch.ones(2)}
    torch.save(tensors, tmp_path / "weights.pt")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path / "weights.pt", config=config_of(HF))
    assert len(str(caught.value)) < 9000


def test_weights_in_eight_bits_are_called_quantized(tmp_path: Path) -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    save_file({**hf_dict(HF), name: hf_dict(HF)[name].to(torch.int8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(HF.config.to_dict()))
    with pytest.raises(pl.WeightsError, match="quantized") as caught:
        pl.load(tmp_path)
    assert caught.value.code == "weights-foreign"
