"""Files as other tools write them: what transformers opens gives its logits, the rest is named and its remedy works."""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import os
import pathlib
import pickle
import re
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

import pellucid as pl
from weights.checkpoints import (
    config_of,
    hf_dict,
    ids_for,
    llmc_bytes,
    same_logits,
    save_folder,
    small_hf,
    write_config,
)

HF = small_hf()
"""Read by every test here, written by none."""

CONFIG = config_of(HF)
Dict = dict[str, Tensor]


def more(**tensors: Any) -> Dict:
    return {**hf_dict(HF), **tensors}


def half_of(tensors: Dict, kind: str) -> Dict:
    return {name: tensor.half() if kind in name else tensor for name, tensor in tensors.items()}


OPENED: dict[str, Callable[[], Dict]] = {
    "a count of steps": lambda: more(num_batches_tracked=torch.tensor(7), step=torch.tensor([7])),
    "an empty tensor": lambda: more(extra=torch.zeros(0)),
    "an empty matrix in a block": lambda: more(**{"transformer.h.1.attn.history": torch.zeros(0, 3)}),
    "some in half precision": lambda: half_of(hf_dict(HF), "c_fc"),
    "in bfloat16": lambda: {name: tensor.bfloat16() for name, tensor in hf_dict(HF).items()},
    "the head under an older name": lambda: more(**{"lm_head.decoder.weight": HF.lm_head.weight.detach().clone()}),
    "the number of a mask": lambda: more(**{"transformer.h.0.attn.masked_bias": torch.tensor([-1e4])}),
    "a mask": lambda: more(**{"transformer.h.0.attn.bias": torch.ones(1, 1, 40, 40).tril()}),
}


@pytest.mark.parametrize("case", OPENED)
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "mlx"}])
def test_what_transformers_opens_gives_its_logits(case: str, metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file(OPENED[case](), tmp_path / "model.safetensors", metadata=metadata)
    write_config(tmp_path, HF, dtype="float32", n_inner=None)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert same_logits(pl.load(tmp_path), theirs)


@pytest.mark.parametrize("sharded", [True, False])
def test_the_weights_that_transformers_prefers_are_read(sharded: bool, tmp_path: Path) -> None:
    """Beside safetensors lies an older .bin of other numbers; or shards of .bin, with a mark before their index."""
    tensors = hf_dict(HF)
    if not sharded:
        save_folder(tmp_path, tensors, HF)
        torch.save({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    else:
        places = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(tensors)}
        for file in set(places.values()):
            torch.save({name: tensors[name] for name in tensors if places[name] == file}, tmp_path / file)
        index = json.dumps({"metadata": {}, "weight_map": places})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index, "utf-8")
        write_config(tmp_path, HF)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert same_logits(pl.load(tmp_path), theirs)
    assert same_logits(pl.load(tmp_path), HF)


def test_names_and_formats_that_tools_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle under the name of safetensors, accelerate's whole state dict, and the working directory as a model."""
    for name in ("model.safetensors", "pytorch_model_fsdp.bin"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        write_config(folder, HF)
        torch.save(hf_dict(HF), folder / name)
        (folder / "optimizer.bin").write_bytes(bytes(60))
        monkeypatch.chdir(folder)
        for given in (folder, ".", Path()):
            assert same_logits(pl.load(given), HF)


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_of_a_later_protocol_is_named_and_its_remedy_works(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(hf_dict(HF), path, pickle_protocol=4, _use_new_zipfile_serialization=packed)
    with pytest.raises(pl.WeightsError, match="protocol 4") as caught:
        pl.load(path, config=CONFIG)
    assert same_logits(follow(caught.value.remedy, path=path), HF)
    torch.save({"a": Runs(), **hf_dict(HF)}, path, pickle_protocol=4)
    with pytest.raises(pl.WeightsError, match="would run code"):
        pl.load(path, config=CONFIG)


def test_a_cache_of_links_is_read_by_its_snapshot(tmp_path: Path) -> None:
    cache, blobs = tmp_path / "models--a--b", tmp_path / "models--a--b" / "blobs"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    save_folder(blobs, hf_dict(HF), HF)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (tmp_path / "link").symlink_to(snapshot)
    assert same_logits(pl.load(tmp_path / "link"), HF)
    with pytest.raises(pl.NotFoundError, match="the hub's cache") as caught:
        pl.load(cache)
    assert same_logits(pl.load(caught.value.remedy.split("'")[1]), HF)


def test_a_link_that_leads_nowhere_is_no_name_on_the_hub(tmp_path: Path) -> None:
    for name, to in (("gone", "nowhere"), ("round", "round"), ("folder/config.json", "blob")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(to)
    for name, said in (("gone", "a link to nowhere, which is not there"), ("round", "cannot be read")):
        for door in (pl.load, pl.audit_ties, pl.TransformerConfig.from_pretrained):
            with pytest.raises(pl.WeightsError, match=said) as caught:
                door(str(tmp_path / name))
            assert "link" in str(caught.value)
    with pytest.raises(pl.NotFoundError, match="a link to blob"):
        pl.TransformerConfig.from_pretrained(str(tmp_path / "folder"))


def test_an_adapter_beside_the_weights_is_said_not_to_be_applied(tmp_path: Path) -> None:
    """transformers applies it if PEFT is installed, and passes over it if not."""
    HF.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.warns(pl.PellucidWarning, match=r"adapter_config\.json.* not applied.*merge_and_unload"):
        model = pl.load(tmp_path)
    assert same_logits(model, HF)
    assert "not applied" in model.provenance["adapter"]
    assert "adapter" not in pl.load(tmp_path / "model.safetensors").provenance


def test_names_of_merged_adapters(tmp_path: Path) -> None:
    """Merged, but not unloaded: PEFT's names stay. What lies beneath adapters is opened with a warning."""
    merged = {f"base_model.model.{name}": tensor for name, tensor in hf_dict(HF).items()}
    assert same_logits(pl.load(merged, config=CONFIG), HF)
    beneath = {name.replace("c_attn.", "c_attn.base_layer."): tensor for name, tensor in merged.items()}
    with pytest.warns(pl.PellucidWarning, match=r"c_attn\.base_layer.*beneath adapters"):
        assert same_logits(pl.load(beneath, config=CONFIG), HF)
    with pytest.raises(pl.WeightsError, match="adapters"):
        pl.load(
            {**beneath, "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": torch.ones(36, 2)}, config=CONFIG
        )


def test_a_head_with_a_bias_is_never_dropped() -> None:
    """Not even where the rest of the model has a prefix and the head has none."""
    apart = {f"gpt.{name.removeprefix('transformer.')}": tensor for name, tensor in hf_dict(HF).items()}
    head = {"lm_head.weight": HF.lm_head.weight.detach()}
    assert same_logits(pl.load({**apart, **head}, config=CONFIG), HF)
    with pytest.raises(pl.WeightsError, match=r"lm_head\.bias"):
        pl.load({**apart, **head, "lm_head.bias": torch.ones(61)}, config=CONFIG)


def follow(remedy: str, **scope: Any) -> pl.CkptedTransformer:
    """Run the call to `pl.load` that a remedy gives."""
    start = remedy.index("pl.load(")
    call, _, how = remedy[start:].partition(", with tensors = ")
    call = call[: call.index("config=...)")] + "config=config)"
    names = {"pl": pl, "torch": torch, "pathlib": pathlib, "pickle": pickle, "safetensors": safetensors,
             "numpy": np, "transformers": transformers, "config": CONFIG, **scope}  # fmt: skip
    return eval(call, names | ({"tensors": eval(how.rstrip("."), names)} if how else {}))


def as_safetensors(tensors: Dict, folder: Path) -> Path:
    return save_folder(folder, tensors, HF)


def as_pickle(tensors: Dict, folder: Path) -> Path:
    torch.save({"epoch": 3, "nets": [{"state_dict": tensors}]}, folder / "x.ckpt")
    return folder / "x.ckpt"


def in_shards(tensors: Dict, folder: Path) -> Path:
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    write_config(folder, HF)
    return folder


CHANGES: dict[str, Callable[[], Dict]] = {
    "weights-unexplained": lambda: more(scale=torch.tensor(5.0), **{"transformer.memory": torch.ones(2, 3)}),
    "weights-ambiguous": lambda: {
        **{f"m.{name}": tensor for name, tensor in hf_dict(HF).items()},
        **{f"z.{name}": tensor + 1 for name, tensor in hf_dict(HF).items()},
    },
    "weights-misshapen": lambda: {name: tensor.round().to(torch.int32) for name, tensor in hf_dict(HF).items()},
}


@pytest.mark.parametrize("save", [as_safetensors, as_pickle, in_shards])
@pytest.mark.parametrize("code", [pytest.param(code, marks=pytest.mark.remedy(code)) for code in CHANGES])
def test_the_remedies_read_the_same_tensors_again(
    code: str, save: Callable[[Dict, Path], Path], tmp_path: Path
) -> None:
    path = save(CHANGES[code](), tmp_path)
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(path, config=CONFIG)
    assert caught.value.code == code
    expected = HF
    if code == "weights-misshapen":
        expected = small_hf()
        expected.load_state_dict({n: t.round() for n, t in hf_dict(HF, head=True).items()})
    assert same_logits(follow(caught.value.remedy), expected.eval())


@pytest.mark.parametrize(
    "fields", [{"vocab_size": 50}, {"n_positions": 9}, {"n_layer": 1}, {"n_layer": 3}, {"n_inner": 7}], ids=str
)
def test_a_configuration_of_other_sizes_is_corrected_by_its_remedy(fields: dict[str, int], tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF, **fields)
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(folder)
    given = eval(caught.value.remedy.split("config=")[1].split(", which")[0])
    assert given.keys() == fields.keys()
    assert same_logits(pl.load(folder, config=given), HF)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 665\n"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "merges.txt", "index"])
@pytest.mark.parametrize(("content", "said"), [(POINTER, "Git LFS pointer"), (b"<!DOCTYPE html><p>", "page of HTML")])
def test_what_was_not_downloaded_is_named_wherever_it_lies(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    save_folder(tmp_path, hf_dict(HF), HF)
    (tmp_path / "vocab.json").write_text("{}")
    if name == "index":
        (tmp_path / "model.safetensors").unlink()
        name = "model.safetensors.index.json"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(pl.PellucidError, match=said) as caught:
        pl.load(tmp_path)
    assert name in caught.value.message
    assert caught.value.remedy.startswith("Download the file itself")


def test_marks_of_editors_before_a_tokenizers_files(tmp_path: Path) -> None:
    folder = save_folder(tmp_path, hf_dict(HF), HF)
    table = {piece: i for i, piece in enumerate(["<|endoftext|>", "a", "b", "c", "Ġ", "ab", "abc"])}
    vocabulary, merges = json.dumps(table), "#version: 0.2\r\na b\r\nab c\r\n"
    for code in ("utf-8", "utf-8-sig", "utf-16"):
        (folder / "vocab.json").write_bytes(vocabulary.encode(code))
        (folder / "merges.txt").write_bytes(merges.encode(code))
        assert pl.load(folder).tokenizer.encode("abc ab") == [6, 4, 5]
    bundled = Path(pl.__file__).parent / "bundled" / "tokenizer.json"
    (tmp_path / "t.json").write_bytes(bundled.read_bytes().decode().encode("utf-8-sig"))
    assert pl.Tokenizer.from_file(tmp_path / "t.json").encode("a cat") == pl.load().tokenizer.encode("a cat")


@pytest.mark.parametrize(
    ("beside", "what"),
    [(pathlib.PurePosixPath("/out"), "pathlib.PurePosixPath"), (dt.datetime(2020, 1, 2), "datetime.datetime"),
     (HF.config, "GPT2Config"), (CONFIG, "TransformerConfig"), (transformers.IntervalStrategy.NO, "IntervalStrategy")],
    ids=["path", "time", "configuration", "our configuration", "choice"],
)  # fmt: skip
def test_values_of_a_trainer_beside_the_weights(beside: Any, what: str, tmp_path: Path) -> None:
    torch.save({"state_dict": hf_dict(HF), "hyper_parameters": beside}, tmp_path / "x.ckpt")
    with pytest.raises(pl.WeightsError, match=f"an object of .*{what} beside the weights") as caught:
        pl.load(tmp_path / "x.ckpt", config=CONFIG)
    named = re.search(r"safe_globals\(\[(.*?)\]\)", caught.value.remedy)
    assert named is not None
    allowed = eval(named[1], {"pathlib": pathlib, "datetime": dt, "transformers": transformers, "pellucid": pl})
    with torch.serialization.safe_globals([allowed]):
        assert same_logits(follow(caught.value.remedy, path=tmp_path / "x.ckpt"), HF)


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize("protocol", [2, 4])
def test_objects_of_several_classes_beside_the_weights(protocol: int, tmp_path: Path) -> None:
    """Allowing one class would not be enough; functions of other packages are never recommended."""
    path = tmp_path / "x.pt"
    for beside in ([pathlib.PurePosixPath("/out"), argparse.Namespace(lr=1)], pd.Series([1.0])):
        torch.save({"state_dict": hf_dict(HF), "beside": beside}, path, pickle_protocol=protocol)
        with pytest.raises(pl.WeightsError, match=r"an object of .* beside the weights") as caught:
            pl.load(path, config=CONFIG)
        assert same_logits(follow(caught.value.remedy, path=path), HF)
    torch.save({"a": argparse.Namespace(), "b": os.path.join, **hf_dict(HF)}, path, pickle_protocol=protocol)
    with pytest.raises(pl.WeightsError, match=r"would run code.*posixpath\.join") as caught:
        pl.load(path, config=CONFIG)
    assert "weights_only" not in caught.value.remedy


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize("key", [None, "model"])
def test_a_pickled_module_is_opened_by_its_remedy_wherever_it_lies(key: str | None, tmp_path: Path) -> None:
    path, other = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.save(HF if key is None else {key: HF, "epoch": 1}, path)
    with pytest.raises(pl.WeightsError, match="a whole pickled module") as caught:
        pl.load(path, config=CONFIG)
    call = caught.value.remedy.partition("classes: ")[2].partition(", then")[0]
    eval(call, {"torch": torch, "path": path, "other": other, "key": key})
    assert same_logits(pl.load(other, config=CONFIG), HF)


def test_megatrons_mappings_are_called_megatrons(tmp_path: Path) -> None:
    """One of them alone has the names of a GPT-NeoX."""
    layer = {"layers.0.input_layernorm.weight": torch.ones(12), "layers.0.mlp.dense_h_to_4h.weight": torch.ones(48, 12)}
    embedding = {"word_embeddings": {"weight": torch.ones(61, 12)}}
    torch.save({"model": {"language_model": {"embedding": embedding, "encoder": layer}}}, tmp_path / "x.pt")
    with pytest.raises(pl.WeightsError, match=r"Megatron-LM.*language_model\.embedding"):
        pl.load(tmp_path / "x.pt", config=CONFIG)


@pytest.mark.remedy("pickle-unsafe")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("arrays", [True, False])
def test_a_plain_pickle_is_named_and_its_remedy_works(protocol: int, arrays: bool, tmp_path: Path) -> None:
    content = {name: tensor.numpy() if arrays else tensor for name, tensor in hf_dict(HF).items()}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(pl.WeightsError, match=r"pickle\.dump wrote") as caught:
        pl.load(tmp_path / "x.pkl", config=CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the remedy's open() is one line at a prompt
        assert same_logits(follow(caught.value.remedy, path=tmp_path / "x.pkl"), HF)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_plain_pickle_that_runs_code_is_not_recommended(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"wte.weight": Runs()}, protocol=protocol))
    with pytest.raises(pl.WeightsError, match=r"would run code.*\.system") as caught:
        pl.load(tmp_path / "x.pkl", config=CONFIG)
    assert "pickle.load" not in caught.value.remedy


@pytest.mark.remedy("format-not-supported")
def test_arrays_of_numpy(tmp_path: Path) -> None:
    """As MLX and JAX tools save them; also under torch.save, by column, and with the other order of bytes."""
    arrays = {name: tensor.numpy() for name, tensor in hf_dict(HF).items()}
    odd = {name: np.asfortranarray(array).astype(">f4") for name, array in arrays.items()}
    for content in (arrays, odd):
        np.savez(tmp_path / "weights.npz", **content)
        write_config(tmp_path, HF)
        for given in (tmp_path / "weights.npz", tmp_path):
            with pytest.raises(pl.WeightsError, match="arrays of NumPy") as caught:
                pl.load(given)
            assert same_logits(follow(caught.value.remedy, path=tmp_path / "weights.npz"), HF)
    torch.save({"params": odd, "rng": np.random.get_state()}, tmp_path / "x.pt")
    assert same_logits(pl.load(tmp_path / "x.pt", config=CONFIG), HF)


def old_tar(tensors: Dict) -> bytes:
    """The format of torch before 0.1.10: a tar of pickles, storages and shapes."""
    parts = {name: io.BytesIO() for name in ("sys_info", "pickle", "tensors", "storages")}
    pickle.dump({"protocol_version": 1000, "little_endian": True, "type_sizes": {"long": 8}}, parts["sys_info"], 2)
    pickle.dump(len(tensors), parts["tensors"], 2)
    pickle.dump(len(tensors), parts["storages"], 2)

    class Saved(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return names.index(obj[1:]) if isinstance(obj, str) and obj.startswith("@") else None

    names = list(tensors)
    for number, tensor in enumerate(tensors.values()):
        pickle.dump((number, number, torch.FloatTensor), parts["tensors"], 2)
        parts["tensors"].write(struct.pack("<ii", tensor.dim(), 0))
        parts["tensors"].write(struct.pack(f"<{tensor.dim()}q", *tensor.shape))
        parts["tensors"].write(struct.pack(f"<{tensor.dim()}q", *tensor.stride()) + struct.pack("<q", 0))
        pickle.dump((number, "cpu", torch.FloatStorage), parts["storages"], 2)
        parts["storages"].write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
    pickle.dump([], parts["storages"], 2)
    Saved(parts["pickle"], 2).dump({name: f"@{name}" for name in names})
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name, part in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = part.tell()
            part.seek(0)
            archive.addfile(entry, part)
    return whole.getvalue()


@pytest.mark.remedy("format-not-supported")
def test_the_oldest_format_of_torch_is_named_and_its_remedy_works(tmp_path: Path) -> None:
    path, other = tmp_path / "old.pt", tmp_path / "new.pt"
    path.write_bytes(old_tar({name: tensor.contiguous() for name, tensor in hf_dict(HF).items()}))
    with pytest.raises(pl.WeightsError, match=r"before version 0\.1\.10") as caught:
        pl.load(path, config=CONFIG)
    first, _, then = caught.value.remedy.removeprefix("If you trust it, write it again: ").partition(", then ")
    eval(first, {"torch": torch, "path": path, "other": other})
    assert same_logits(follow(then, other=other), HF)


def test_the_model_among_llmcs_own_files_is_found(tmp_path: Path) -> None:
    (tmp_path / "gpt2_124M.bin").write_bytes(llmc_bytes(HF))
    for name, magic in (("gpt2_tokenizer.bin", 20240328), ("gpt2_124M_debug_state.bin", 20240327)):
        (tmp_path / name).write_bytes(struct.pack("<i", magic) + bytes(1020))
    assert torch.equal(pl.load(tmp_path)(ids_for(HF)), HF(ids_for(HF)).logits)


FOLDERS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "Megatron": (("latest_checkpointed_iteration.txt", "iter_0000500/x"), "Megatron-LM", "convert_megatron"),
    "Megatron's iteration": (("mp_rank_00/model_optim_rng.pt",), "Megatron-LM", "convert_megatron"),
    "DeepSpeed's step": (("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"), "DeepSpeed",
                         "zero_to_fp32"),
    "Orbax": (("_CHECKPOINT_METADATA", "manifest.ocdbt", "d/x"), "Orbax", "Orbax"),
    "Keras 3": (("model.keras",), "Keras", "from_tf"),
    "OpenVINO": (("openvino_model.bin", "openvino_model.xml", "config.json"), "OpenVINO", "exported from"),
    "ONNX with its data apart": (("model.onnx", "model.onnx.data", "config.json"), "ONNX", "exported from"),
    "ONNX in a folder of its own": (("config.json", "onnx/model.onnx", "onnx/model_quantized.onnx"), "ONNX",
                                    "exported from"),
    "rust-bert": (("rust_model.ot", "config.json"), "rust-bert", "converted from"),
    "PaddlePaddle": (("model_state.pdparams", "model_config.json"), "PaddlePaddle", "converted from"),
    "accelerate, the state alone": (("random_states_0.pkl", "sampler.bin", "optimizer.bin", "scheduler.bin"),
                                    "a trainer's state without its weights", "saved the model"),
    "Core ML's package": (("config.json", "model.mlpackage/Manifest.json"), "Core ML", "exported from"),
    "an interrupted download": (("config.json", "model.safetensors.incomplete"), "interrupted", "Download the file"),
    "a ZIP archive": (("gpt2.zip",), "ZIP", "Unpack it"),
    "accelerate's FSDP": (("config.json", "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"),
                          "pytorch_model_fsdp_0: .*FSDP", "dcp_to_torch"),
    "shards of Flax": (("flax_model-00001-of-00002.msgpack",), "Flax", "from_flax"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_other_tools_are_refused_by_name(case: str, tmp_path: Path) -> None:
    names, said, remedy = FOLDERS[case]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = (
            b"<?xml version='1.0'?>" if name.endswith(".xml") else b"{}" if name.endswith("config.json") else bytes(60)
        )
        (tmp_path / name).write_bytes(content)
    for door in (pl.load, pl.audit_ties):
        with pytest.raises(pl.WeightsError, match=said) as caught:
            door(tmp_path)
        assert remedy in caught.value.remedy


@pytest.mark.parametrize("lies", ["version_0/checkpoints/epoch=1-step=2.ckpt", "runs/7/model_best.pt"])
def test_weights_that_lie_deeper_are_found_by_the_remedy(lies: str, tmp_path: Path) -> None:
    """As trainers keep them, beside their logs; what is newest is named, and a hidden folder is none of the model's."""
    for name, age in (("runs/1/old.pt", 200), (".git/lfs/x.pt", 0), (lies, 100)):
        (tmp_path / name).parent.mkdir(parents=True)
        torch.save({"state_dict": hf_dict(HF)}, tmp_path / name)
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "events.out").write_bytes(bytes(60))
    with pytest.raises(pl.NotFoundError, match="files below") as caught:
        pl.load(tmp_path)
    assert same_logits(pl.load(caught.value.remedy.split("'")[1], config=CONFIG), HF)
    assert lies in caught.value.remedy


ADAPTERS = (
    "lora_A.weight", "lora_magnitude_vector.weight", "boft_R.default", "oft_S", "bone_.default", "miss_.default",
    "road_theta", "c3a_kernel.default", "vblora_logits_A", "trainable_tokens_delta", "ia3_l",
)  # fmt: skip
"""Below a matrix, as PEFT calls what it trains there."""

QUANTIZED: dict[str, tuple[torch.dtype | None, tuple[str, ...]]] = {
    "MLX": (torch.uint32, ("scales", "biases")),
    "AQLM": (None, ("codes", "codebooks", "scales")),
    "SpQR": (None, ("dense_weights", "row_offsets", "col_vals")),
    "HQQ": (None, ("W_q", "zero", "nbits")),
    "quanto": (None, ("weight._data", "weight._scale")),
    "MXFP4": (None, ("weight_blocks", "weight_scales")),
    "EXL2": (None, ("q_weight", "q_scale", "q_perm")),
}
"""What stands for a matrix: the dtype of the weight, if there is one, and the names beside it."""


def test_changes_and_codes_of_a_matrix_are_named() -> None:
    """Whichever tool wrote them: nobody is told to leave them out, or to convert them as if they were numbers."""
    matrix = "transformer.h.0.mlp.c_fc"
    for name in ADAPTERS:
        with pytest.raises(pl.WeightsError, match="adapters") as caught:
            pl.load(more(**{f"{matrix}.{name}": torch.ones(2, 2)}), config=CONFIG)
        assert "merge_and_unload" in caught.value.remedy, name
    for tool, (dtype, names) in QUANTIZED.items():
        tensors = more(**{f"{matrix}.{name}": torch.ones(2, 2) for name in names})
        tensors[f"{matrix}.weight"] = torch.zeros(2, 2, dtype=dtype or torch.float32)
        if dtype is None:
            del tensors[f"{matrix}.weight"]
        with pytest.raises(pl.WeightsError, match="quantized weights") as caught:
            pl.load(tensors, config=CONFIG)
        assert "before they were quantized" in caught.value.remedy, tool


FILES = {
    "CTranslate2": (struct.pack("<IH", 6, 28) + b"TransformerDecoderModelSpec\0" + bytes(60), "CTranslate2"),
    "MXNet": (struct.pack("<QQ", 0x112, 0) + bytes(60), "MXNet"),
    "ExecuTorch": (bytes(4) + b"ET12" + bytes(60), "ExecuTorch"),
    "ONNX under another name": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(60), "ONNX"),
    "joblib": (b"x\x9c" + bytes(60), "compressed"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_are_told_by_their_first_bytes(case: str, tmp_path: Path) -> None:
    content, said = FILES[case]
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(pl.WeightsError, match=said):
        pl.load(tmp_path / "weights")
