"""Remedies of weights files, of folders and of conversions, followed."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

import pellucid as pl
import samples
import support
from following import Case, follow, params
from pellucid.weights.layouts import from_ours
from weights.checkpoints import (
    config_of,
    hf_dict,
    hooked_dict,
    llmc_bytes,
    same_logits,
    save_folder,
    save_nanogpt,
    small_hf,
)  # fmt: skip

Here = SimpleNamespace
HF = small_hf(activation_function="gelu")
"""Read by every test here, written by none; nanoGPT's activation."""

WTE = "transformer.wte.weight"
HEAD = {"head.weight": torch.ones(61, 12)}


def opens(given: Any, **more: Any) -> None:
    """Load it, and see that the numbers are those that were saved."""
    assert same_logits(pl.load(given, **more), HF)


def put(name: str, content: bytes) -> Callable[[Here], Any]:
    """Open a folder in which a file has this content."""

    def act(here: Here) -> Any:
        folder = written(here)
        (folder / name).write_bytes(content)
        return pl.load(folder)

    return act


def written(here: Here) -> Path:
    """What transformers writes, a folder for each test."""
    folder = here.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)
    return save_folder(folder, hf_dict(HF), HF)


def endless(here: Here) -> None:
    folder = written(here)
    os.truncate(folder / "config.json", 2**28 + 1)  # a hole in the file, which takes no room on the disk
    pl.load(folder)


def again(here: Here) -> None:
    opens(written(here))


def with_config(here: Here, **fields: Any) -> None:
    folder = written(here)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **fields}))
    pl.load(folder)


def with_tensors(here: Here, change: Callable[[dict[str, Any]], Any], **fields: Any) -> pl.CkptedTransformer:
    tensors = hf_dict(HF)
    change(tensors)
    shutil.rmtree(here.folder / "model", ignore_errors=True)
    return pl.load(save_folder(here.folder / "model", tensors, HF, **fields))


def sharded(here: Here, change: Callable[[Path, dict[str, Any]], Any] = lambda folder, index: None) -> None:
    shutil.rmtree(here.folder / "shards", ignore_errors=True)
    HF.save_pretrained(here.folder / "shards", max_shard_size="4KB")
    at = here.folder / "shards" / "model.safetensors.index.json"
    index = json.loads(at.read_text())
    change(at.parent, index)
    at.write_text(json.dumps(index))
    opens(at.parent)


def without_a_shard(folder: Path, index: dict[str, Any]) -> None:
    (folder / index["weight_map"][WTE]).unlink()


def saved(here: Here, content: Any, **more: Any) -> None:
    torch.save(content, here.folder / "weights.pt")
    opens(here.folder / "weights.pt", config=config_of(HF), **more)


def pickled() -> io.BytesIO:
    file = io.BytesIO()
    torch.save(hf_dict(HF), file)
    file.seek(0)
    return file


def half_an_archive(here: Here) -> None:
    torch.save(hf_dict(HF), here.folder / "weights.pt")
    os.truncate(here.folder / "weights.pt", (here.folder / "weights.pt").stat().st_size // 2)
    pl.load(here.folder / "weights.pt", config=config_of(HF))


def inflating(here: Here) -> None:
    torch.save({"wte.weight": torch.zeros(2**25)}, here.folder / "weights.pt")
    with (
        zipfile.ZipFile(here.folder / "weights.pt") as whole,
        zipfile.ZipFile(here.folder / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    pl.load(here.folder / "packed.pt", config=config_of(HF))


def llmc(here: Here, **header: int) -> None:
    data = bytearray(llmc_bytes(small_hf()))
    for place, value in header.items():
        at = 4 * {"version": 1, "heads": 5}[place]
        data[at : at + 4] = struct.pack("<i", value)
    (here.folder / "model.bin").write_bytes(data)
    pl.load(here.folder / "model.bin")


def mixed_saves(here: Here, *, again: bool) -> pl.CkptedTransformer:
    model, other = pl.from_hf(HF), pl.from_hf(small_hf(seed=1))
    model.save_pretrained(here.folder / "a")
    other.save_pretrained(here.folder / "b")
    shutil.copyfile(here.folder / "b" / "config.json", here.folder / "a" / "config.json")
    if again:
        model.save_pretrained(here.folder / "a")
    return pl.load(here.folder / "a")


def alone(here: Here, name: str = "alone.safetensors") -> Path:
    save_file(hf_dict(HF), here.folder / name)
    return here.folder / name


def piped(here: Here) -> Path:
    if not (here.folder / "pipe").exists():
        os.mkfifo(here.folder / "pipe")
    return here.folder / "pipe"


def linked(here: Here, *, there: bool) -> None:
    folder = written(here)
    (folder / "model.safetensors").rename(folder / "moved")
    (folder / "model.safetensors").symlink_to(folder / ("moved" if there else "nowhere"))
    opens(folder)


def long_name(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"] = {**index["weight_map"], WTE: "a" * 300}


def processed(here: Here, *, processed: bool) -> None:
    tensors = hooked_dict(HF)
    if processed:
        tensors["unembed.b_U"] = torch.ones(61)
    opens(tensors, config=config_of(HF))


def changed(*, undo: bool) -> Any:
    model = pl.from_hf(HF)
    handle = model.blocks[0].register_forward_hook(lambda *_: None)
    model.blocks[1].mlp.forward = lambda x, tap=None: x
    if undo:
        handle.remove()
        del model.blocks[1].mlp.forward
    return pl.to_hf(model)


def other_epsilon(*, replace: bool) -> Any:
    model = pl.from_hf(HF)
    if replace:
        model = pl.CkptedTransformer(model.config.replace(layer_norm_epsilon=0.1), model.state_dict())
    else:
        model.ln_final.eps = 0.1
    return pl.to_hf(model)


def mixed_dtypes(*, corrected: bool) -> None:
    hf = small_hf()
    hf.transformer.h[0].mlp.c_fc.double()
    if corrected:
        hf.float()
        assert hf(torch.tensor([[1, 2]])).logits.isfinite().all()
    pl.from_hf(hf)


def on_meta(*, loaded: bool) -> None:
    with torch.device("meta"):
        model = pl.CkptedTransformer(config_of(HF))
    if loaded:
        model = pl.load()
    pl.count_parameters(model)
    pl.to_hf(model)


def refused_settings(*, without: bool) -> None:
    model = pl.from_hf(small_hf())
    model.generation = pl.GenerationSettings({"cache_implementation": "nonsense", "eos_token_id": 0})
    if without:
        model.generation = model.generation.without("cache_implementation")
    pl.to_hf(model)


def within(here: Here) -> Path:
    """A folder that holds the model's."""
    shutil.copytree(written(here), here.folder / "outer" / "final", dirs_exist_ok=True)
    return here.folder / "outer"


def without_weights(here: Here) -> Path:
    folder = written(here)
    (folder / "model.safetensors").unlink()
    return folder


def larger_config(here: Here, *, tensors: bool) -> None:
    model = pl.from_hf(small_hf(tie_word_embeddings=True))
    if tensors:
        pl.untie(model)
    else:
        model.config = model.config.replace(tie_word_embeddings=False)
    model.save_pretrained(here.folder / "changed")


def exported(layout: str) -> Any:
    model = pl.from_hf(HF)
    return from_ours(model.state_dict(), model.config, layout)


def state(here: Here, **changes: Any) -> None:
    model = support.glass()
    weights = {**model.state_dict(), **changes}
    pl.CkptedTransformer(model.config, weights)


def resized(**sizes: int) -> Callable[[Here], None]:
    """Open what was refused with the sizes that the remedy gives."""
    return lambda here: opens(here.folder / "model", config=sizes)


def one_shard(here: Here) -> None:
    sharded(here)
    pl.load(next((here.folder / "shards").glob("*-00001-of-*")))


def renamed(tensors: dict[str, Any]) -> None:
    tensors["surplus"] = tensors.pop("transformer.h.1.ln_1.weight")


REMEDIES: dict[str, list[Case]] = {
    "safetensors-damaged": [
        Case(put("model.safetensors", struct.pack("<Q", 2**62) + b"{" * 90), "write the file again", again)
    ],
    "file-truncated": [Case(put("model.safetensors", b"12345"), "write the file again", again)],
    "no-tensors": [Case(put("model.safetensors", struct.pack("<Q", 8) + b"{}      "), "write the file again", again)],
    "format-unknown": [Case(put("model.safetensors", bytes(5000)), "safetensors", again)],
    "format-not-supported": [
        Case(put("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid 0"), "in its place", again),
        Case(lambda h: opens(_named(h, "model.zip", b"PK")), "Unpack it", again),
    ],
    "file-too-long": [Case(endless, "that save_pretrained wrote", again)],
    "index-not-json": [
        Case(lambda h: (written(h) / "x", put_index(h, "{"))[1], "write the file again", sharded),
    ],
    "index-no-weight-map": [
        Case(lambda h: sharded(h, lambda folder, index: index.pop("weight_map")), "write the index again", sharded)
    ],
    "index-unsafe-path": [
        Case(lambda h: sharded(h, lambda folder, index: index["weight_map"].update({WTE: "../a"})),
             "shard names must be plain file names", sharded)
    ],
    "shard-missing": [
        Case(lambda h: sharded(h, without_a_shard), "into ", sharded),
    ],
    "shard-mismatch": [
        Case(lambda h: sharded(h, lambda folder, index: index["weight_map"].update(x=index["weight_map"][WTE])),
             "index and shards again", sharded)
    ],
    "path-unreadable": [Case(lambda h: sharded(h, long_name), "a shorter name", sharded)],
    "path-not-regular": [
        Case(lambda h: pl.load(piped(h), config=config_of(HF)), "written to a file first",
             lambda h: opens(alone(h), config=config_of(HF)))
    ],
    "path-not-found": [
        Case(lambda h: linked(h, there=False), "in its place again", lambda h: linked(h, there=True)),
        Case(lambda h: pl.load(h.folder / "alnoe.safetensors"), "path",
             lambda h: opens(alone(h), config=config_of(HF))),
        Case(lambda h: pl.load(HF), "pl.from_hf", lambda h: pl.from_hf(HF)),
        Case(lambda h: pl.load(pl.from_hf(HF)), "copy.deepcopy(model)", lambda h: copy.deepcopy(pl.from_hf(HF))),
        Case(lambda h: pl.load(torch.nn.ModuleDict({"transformer": HF.transformer})), "pl.load(module.state_dict(),",
             lambda h: opens(torch.nn.ModuleDict({"transformer": HF.transformer}).state_dict(), config=config_of(HF))),
        Case(lambda h: pl.load(config_of(HF)), "pl.CkptedTransformer(config) ",
             lambda h: pl.CkptedTransformer(config_of(HF))),
        *(
            Case(lambda h, hf=hf: pl.load(hf), f"pl.CkptedTransformer(pl.{cls.__name__}.from_dict(config.to_dict()))",
                 lambda h, hf=hf, cls=cls: pl.CkptedTransformer(cls.from_dict(hf.to_dict())))
            for cls, hf in samples.foreign_configs()
        ),
        Case(lambda h: pl.load(os.fsencode(written(h))), "os.fsdecode(name)",
             lambda h: opens(os.fsdecode(os.fsencode(written(h))))),
        Case(lambda h: pl.load(pickled()), "pl.load(torch.load(file), config=...)",
             lambda h: opens(torch.load(pickled()), config=config_of(HF))),
        Case(lambda h: pl.load([*HF.state_dict().items()]), "as a mapping: dict(pairs)",
             lambda h: pl.load(dict([*HF.state_dict().items()]), config=config_of(HF))),
    ],
    "path-not-writable": [
        Case(lambda h: pl.from_hf(HF).save_pretrained(alone(h) / "x"), "a folder that you may write",
             lambda h: pl.from_hf(HF).save_pretrained(h.folder / "x"))
    ],
    "weights-not-found": [
        Case(lambda h: pl.load(h.empty), "save_pretrained", again),
        Case(lambda h: (alone(h, "several/a.safetensors"), alone(h, "several/b.safetensors"),
                         pl.load(h.folder / "several")),
             "Give one of them", lambda h: opens(alone(h, "several/b.safetensors"), config=config_of(HF))),
        Case(lambda h: pl.load(within(h)), "such as '", lambda h: opens(within(h) / "final")),
        Case(lambda h: pl.load(without_weights(h)), "beside its config.json, such as model.safetensors", again),
    ],
    "config-needed": [
        Case(lambda h: pl.load(alone(h)), "Pass config=", lambda h: opens(alone(h), config=config_of(HF)))
    ],
    "config-not-found": [
        Case(lambda h: pl.load(_without_config(h)), "pass config=",
             lambda h: opens(_without_config(h), config=config_of(HF))),
        Case(lambda h: pl.load(_without_config(h)), "Add the config.json", again),
    ],
    "weights-missing": [
        Case(lambda h: with_config(h, n_layer=3), "trained with", again),
        Case(lambda h: with_tensors(h, lambda t: t.pop(WTE)), "a plain GPT-2", again),
    ],
    "weights-unexplained": [Case(lambda h: with_config(h, n_layer=1), "{'n_layer': 2}", resized(n_layer=2)),
        Case(lambda h: with_tensors(h, lambda t: t.update(HEAD), tie_word_embeddings=False),
             "pl.load({'lm_head.weight' if name == 'head.weight' else name: tensor",
             lambda h: with_tensors(h, lambda t: t.update({"lm_head.weight": HEAD["head.weight"]}),
                                    tie_word_embeddings=False)),
    ],
    "weights-misshapen": [
        Case(lambda h: with_config(h, n_positions=21), "{'n_positions': 20}", resized(n_positions=20))
    ],
    "shard-alone": [Case(one_shard, "their index", sharded)],
    "weights-do-not-fit": [Case(lambda h: with_tensors(h, renamed), "trained with", again)],
    "head-missing": [
        Case(lambda h: with_config(h, tie_word_embeddings=False), "tie_word_embeddings=true",
             lambda h: with_config(h, tie_word_embeddings=True)),
        Case(lambda h: with_config(h, tie_word_embeddings=False), "with their head",
             lambda h: with_tensors(h, lambda t: t.update({"lm_head.weight": torch.ones(61, 12)}),
                                    tie_word_embeddings=False)),
    ],
    "layout-unknown": [
        Case(lambda h: saved(h, {f"x.{name}.y": t for name, t in hf_dict(HF).items()}), "rename its tensors",
             lambda h: saved(h, hf_dict(HF)))
    ],
    "layout-processed": [
        Case(lambda h: processed(h, processed=True), "from_pretrained_no_processing",
             lambda h: processed(h, processed=False))
    ],
    "layout-has-no-bias": [
        Case(lambda h: exported("nanogpt-without-bias"), "'nanogpt' or 'hf'",
             lambda h: [exported(layout) for layout in ("nanogpt", "hf")])
    ],
    "weights-ambiguous": [
        Case(lambda h: with_tensors(h, lambda t: t.update({"wte.weight": t[WTE] + 1})), "one model only", again)
    ],
    "weights-foreign": [
        Case(lambda h: with_tensors(h, lambda t: t.update({WTE: t[WTE].to(torch.int8)})), "", again),
        Case(lambda h: with_tensors(h, lambda t: t.update({"transformer.h.0.self_attn.q_proj.weight": t[WTE].clone()})),
             "weights of a GPT-2", again),
    ],
    "weights-misfit": [
        Case(lambda h: state(h, **{"embed.W_E": torch.ones(3, 4)}), "config.schema.stored", state),
        Case(lambda h: pl.CkptedTransformer(config_of(HF), list(hf_dict(HF).items())), "pl.load(weights, config=",
             lambda h: pl.load(dict(list(hf_dict(HF).items())), config=config_of(HF))),
        Case(lambda h: larger_config(h, tensors=False), "pellucid.tie and untie do both",
             lambda h: larger_config(h, tensors=True)),
    ],
    "saves-mixed": [
        Case(lambda h: mixed_saves(h, again=False), "into this folder again", lambda h: mixed_saves(h, again=True))
    ],
    "pickle-no-state-dict": [
        Case(lambda h: saved(h, [*HF.state_dict().items()]), "pl.load(dict(torch.load(path)), config=",
             lambda h: pl.load(dict(torch.load(h.folder / "weights.pt")), config=config_of(HF))),
        Case(lambda h: pl.load({n: t.tolist() for n, t in hf_dict(HF).items()}), "by their names",
             lambda h: pl.load({n: t.numpy() for n, t in hf_dict(HF).items()}, config=config_of(HF))),
        Case(lambda h: saved(h, [torch.zeros(3)]), "torch.save(model.state_dict(), path)",
             lambda h: saved(h, HF.state_dict()))
    ],
    "pickle-damaged": [Case(half_an_archive, "write the file again", lambda h: saved(h, hf_dict(HF)))],
    "archive-too-large": [Case(inflating, "again with torch.save", lambda h: saved(h, hf_dict(HF)))],
    "pickle-model-args": [
        Case(lambda h: saved(h, {"model": hf_dict(HF), "model_args": [1]}), "nanoGPT's train.py",
             lambda h: opens(save_nanogpt(h.folder / "ckpt.pt", HF)))
    ],
    "tensor-not-dense": [
        Case(lambda h: saved(h, {**hf_dict(HF), WTE: hf_dict(HF)[WTE].to_sparse()}), "tensor.to_dense() makes",
             lambda h: saved(h, {**hf_dict(HF), WTE: hf_dict(HF)[WTE].to_sparse().to_dense()})),
        Case(lambda h: saved(h, {"a.weight": torch.zeros(1).expand(999, 999)}), "tensor.contiguous()",
             lambda h: saved(h, {name: tensor.contiguous() for name, tensor in hf_dict(HF).items()})),
    ],
    "llmc-version": [Case(lambda h: llmc(h, version=1), "version 3 or 5", lambda h: llmc(h, version=3))],
    "llmc-header": [Case(lambda h: llmc(h, heads=0), "train_gpt2", llmc)],
    "dtype-unknown": [
        Case(lambda h: pl.load(dtype="auto"), "'stored'", lambda h: pl.load(dtype="stored")),
        Case(lambda h: pl.load(dtype="float23"), "'float32'", lambda h: pl.load(dtype="float32")),
    ],
    "device-not-available": [
        Case(lambda h: pl.load(device="cuda:99"), "device='cpu'", lambda h: pl.load(device="cpu"))
    ],
    "hf-wrong-class": [
        Case(lambda h: pl.to_hf(HF), "pl.from_hf returned", lambda h: pl.to_hf(pl.from_hf(HF))),
        Case(lambda h: pl.to_hf("gpt2"), "pl.load", lambda h: pl.to_hf(pl.load())),
    ],
    "meta-device": [Case(lambda h: on_meta(loaded=False), "pl.load(name)", lambda h: on_meta(loaded=True))],
    "changed-model": [
        Case(lambda h: changed(undo=False), "handle.remove()", lambda h: changed(undo=True)),
        Case(lambda h: other_epsilon(replace=False), "model.config.replace(...)",
             lambda h: other_epsilon(replace=True)),
    ],
    "hf-cannot-run": [
        Case(lambda h: mixed_dtypes(corrected=False), "hf_model(ids) must return logits",
             lambda h: mixed_dtypes(corrected=True))
    ],
    "generation-refused": [
        Case(lambda h: refused_settings(without=False), "model.generation.without(",
             lambda h: refused_settings(without=True))
    ],
}  # fmt: skip


def put_index(here: Here, text: str) -> None:
    sharded(here)
    (here.folder / "shards" / "model.safetensors.index.json").write_text(text)
    pl.load(here.folder / "shards")


def _named(here: Here, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(here.folder / name, "w") as archive:
        archive.writestr("model/config.json", content)
    return here.folder / name


def _without_config(here: Here) -> Path:
    folder = written(here)
    (folder / "config.json").unlink()
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Here:
    for name in ("several", "empty"):
        (tmp_path / name).mkdir()
    return Here(folder=tmp_path, empty=tmp_path / "empty")


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_the_remedy_works(here: Here, code: str, case: Case) -> None:
    follow(code, case, here)


@pytest.mark.remedy("path-unreadable")
def test_a_file_that_may_be_read_again_is_read(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(here)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", lambda self, **_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(pl.WeightsError) as caught:
            pl.load(folder)
    assert "Check the permissions" in caught.value.remedy
    opens(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(folder)
    assert "Put the file in the place of the link" in caught.value.remedy
    again(here)


@pytest.mark.remedy("hf-computes-otherwise")
def test_a_class_that_was_changed_is_changed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inspection sees no change of ours made before the class was; the run does."""
    model, attend = pl.from_hf(HF), transformers.models.gpt2.modeling_gpt2.GPT2MLP.forward
    with monkeypatch.context() as patch:
        patch.setattr(transformers.models.gpt2.modeling_gpt2.GPT2MLP, "forward", lambda self, x: 2 * attend(self, x))
        with pytest.raises(pl.WeightsError, match=r"blocks\.0\.mlp\.ckpt_mlp_out") as caught:
            pl.to_hf(model)
    assert "what changes the computation there" in caught.value.remedy
    assert same_logits(model, pl.to_hf(model))
