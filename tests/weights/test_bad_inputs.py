"""Damaged, lying and foreign checkpoints: each is a PellucidError with a code and a remedy, and changes nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import llamas
import pellucid as pl
from pellucid.family.layout import blocks_in
from support import few_of
from weights.checkpoints import (
    config_of,
    hf_dict,
    hooked_dict,
    llmc_bytes,
    same_logits,
    save_folder,
    save_nanogpt,
    small_hf,
    write_config,
)

HF = small_hf()
"""Read by every test here, written by none."""


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_header(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def folder(at: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    return save_folder(at / "model", hf_dict(HF) if tensors is None else tensors, HF, **config)


def reheadered(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        path = folder(at) / "model.safetensors"
        header, data = header_of(path)
        change(header)
        write_header(path, header, data)
        return path.parent

    return make


def repeated(folder: Path, name: str, key: str, change: Callable[[str], str] = str) -> Path:
    """A folder in one of whose JSON texts a key is given once more, with a changed value."""
    path = folder / name
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little") if name.endswith(".safetensors") else 0
    start = 8 if length else 0
    text = data[start : start + length].decode() if length else data.decode()
    found = re.search(re.escape(key) + r"\s*(\{[^}]*\}|[^,}\n]*)", text)
    assert found is not None
    text = text.replace(found[0], f"{found[0]},{change(found[0])}")
    head = len(text.encode()).to_bytes(8, "little") if length else b""
    path.write_bytes(head + text.encode() + data[start + length :] if length else text.encode())
    return folder


def with_bytes(data: bytes, name: str = "model.safetensors") -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        result = folder(at)
        (result / "model.safetensors").unlink()
        (result / name).write_bytes(data)
        return result

    return make


def with_config(**config: Any) -> Callable[[Path], Path]:
    return lambda at: folder(at, **config)


def with_config_text(text: str | bytes) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        result = folder(at)
        (result / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return result

    return make


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        tensors = hf_dict(HF)
        change(tensors)
        return folder(at, tensors)

    return make


def truncated(keep: Callable[[int], int]) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        path = folder(at) / "model.safetensors"
        os.truncate(path, keep(path.stat().st_size))
        return path.parent

    return make


def bare_file(at: Path) -> Path:
    path = folder(at) / "model.safetensors"
    return path.rename(at / "alone.safetensors")


def without(name: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        result = folder(at)
        (result / name).unlink()
        return result

    return make


def sharded(weight_map: Any, shards: dict[str, list[str]] | None = None) -> Callable[[Path], Path]:
    """A folder with an index; by default two sound shards, of which the index may say anything."""

    def make(at: Path) -> Path:
        result, tensors = folder(at), hf_dict(HF)
        (result / "model.safetensors").unlink()
        names = sorted(tensors)
        parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]} if shards is None else shards
        for file, part in parts.items():
            save_file({name: tensors[name] for name in part}, result / file)
        honest = {name: file for file, part in parts.items() for name in part}
        content = {"metadata": {}, "weight_map": weight_map(honest) if callable(weight_map) else weight_map}
        text = weight_map if isinstance(weight_map, str) else json.dumps(content)
        (result / "model.safetensors.index.json").write_text(text)
        return result

    return make


class Payload:
    """Unpickled by an unguarded reader, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def malicious_zip(at: Path) -> Path:
    result = folder(at)
    (result / "model.safetensors").unlink()
    torch.save({"wte.weight": Payload(at / "mark")}, result / "pytorch_model.bin")
    return result


def malicious_pickle(at: Path) -> Path:
    path = at / "model.bin"
    torch.save({"wte.weight": Payload(at / "mark")}, path, _use_new_zipfile_serialization=False)
    return path


def plain_pickle(at: Path) -> Path:
    path = at / "model.pt"
    path.write_bytes(pickle.dumps({"wte.weight": Payload(at / "mark")}, protocol=2))
    return path


def saved(content: Any, name: str = "weights.pt") -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        torch.save(content, at / name)
        return at / name

    return make


def llmc(change: Callable[[bytearray], bytes | bytearray | None]) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        data = bytearray(llmc_bytes(HF))
        (at / "model.bin").write_bytes(change(data) or data)
        return at / "model.bin"

    return make


def set_header(at: int, value: int) -> Callable[[Path], Path]:
    def change(data: bytearray) -> None:
        data[4 * at : 4 * at + 4] = struct.pack("<i", value)

    return llmc(change)


def cut_archive(at: Path) -> Path:
    torch.save(hf_dict(HF), at / "weights.bin")
    os.truncate(at / "weights.bin", (at / "weights.bin").stat().st_size // 2)
    return at / "weights.bin"


def zip_of_nothing(at: Path) -> Path:
    with zipfile.ZipFile(at / "weights.bin", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return at / "weights.bin"


def nanogpt_without_sizes(at: Path) -> Path:
    path = save_nanogpt(at / "ckpt.pt", HF)
    content = torch.load(path, weights_only=True)
    del content["model_args"]["n_head"]
    torch.save(content, path)
    return path


def first(header: dict[str, Any]) -> dict[str, Any]:
    return header["transformer.h.0.ln_1.bias"]


def swap_offsets(header: dict[str, Any]) -> None:
    a, b = header["transformer.h.0.ln_1.bias"], header["transformer.h.1.ln_1.bias"]
    a["data_offsets"] = b["data_offsets"]


WTE, CATTN = "transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    # safetensors: the header and the data do not agree
    "truncated data": (truncated(lambda size: size - 1), "safetensors-damaged"),
    "truncated header": (truncated(lambda size: 100), "safetensors-damaged"),
    "truncated length": (truncated(lambda size: 5), "file-truncated"),
    "empty file": (truncated(lambda size: 0), "file-truncated"),
    "length beyond the file": (with_bytes(struct.pack("<Q", 2**62) + b"{" * 90), "safetensors-damaged"),
    "header not JSON": (with_bytes(struct.pack("<Q", 20) + b"{" * 90), "safetensors-damaged"),
    "header not UTF-8": (with_bytes(struct.pack("<Q", 20) + b'{"\xff":' + b" " * 90), "safetensors-damaged"),
    "offsets beyond the end": (reheadered(lambda h: first(h).update(data_offsets=[0, 10**9])), "safetensors-damaged"),
    "offsets backwards": (reheadered(lambda h: first(h).update(data_offsets=[48, 0])), "safetensors-damaged"),
    "offsets negative": (reheadered(lambda h: first(h).update(data_offsets=[-48, 0])), "safetensors-damaged"),
    "tensors overlap": (reheadered(swap_offsets), "safetensors-damaged"),
    "shape against offsets": (reheadered(lambda h: first(h).update(shape=[13])), "safetensors-damaged"),
    "shape overflows": (reheadered(lambda h: first(h).update(shape=[2**63, 2**63])), "safetensors-damaged"),
    "dtype unknown": (reheadered(lambda h: first(h).update(dtype="F33")), "safetensors-damaged"),
    "a tensor taken out of the header": (reheadered(lambda h: h.pop(WTE)), "safetensors-damaged"),
    "metadata not strings": (reheadered(lambda h: h.update(__metadata__={"a": 1})), "safetensors-damaged"),
    "no tensors": (with_bytes(struct.pack("<Q", 8) + b"{}      "), "no-tensors"),
    "a tensor twice, in two shapes": (
        lambda at: repeated(
            folder(at),
            "model.safetensors",
            '"transformer.h.0.attn.c_proj.weight":',
            lambda said: said.replace("[12,12]", "[6,24]"),
        ),
        "safetensors-damaged",
    ),
    "trailing bytes": (lambda at: _append(folder(at)), "safetensors-damaged"),
    # other content in the place of weights
    "HTML": (with_bytes(b"<!DOCTYPE html><html><body>Not found</body></html>"), "format-not-supported"),
    "a Git LFS pointer": (
        with_bytes(b"version https://git-lfs.github.com/spec/v1\noid 0"),
        "format-not-supported",
    ),
    "GGUF": (with_bytes(b"GGUF" + bytes(60)), "format-not-supported"),
    "zeros": (with_bytes(bytes(5000)), "format-unknown"),
    # tensors that do not fit
    "a tensor missing": (with_tensors(lambda t: t.pop(CATTN)), "weights-missing"),
    "a tensor too many": (with_tensors(lambda t: t.update(extra=torch.zeros(2))), "weights-unexplained"),
    "a block too many": (with_config(n_layer=1), "weights-unexplained"),
    "a block too few": (with_config(n_layer=3), "weights-missing"),
    "a billion blocks": (with_config(n_layer=10**9), "weights-missing"),
    "a wrong shape": (with_tensors(lambda t: t.update({WTE: torch.zeros(60, 12)})), "weights-misshapen"),
    "a length of zero": (with_tensors(lambda t: t.update({WTE: torch.zeros(0, 12)})), "weights-misshapen"),
    "integers": (with_tensors(lambda t: t.update({WTE: t[WTE].int()})), "weights-misshapen"),
    "a transposed square": (with_config(n_positions=21), "weights-misshapen"),
    "missing and too many": (with_tensors(lambda t: t.update(x=t.pop(CATTN))), "weights-do-not-fit"),
    "other names": (
        with_tensors(lambda t: [t.update({f"x{i}": t.pop(n)}) for i, n in enumerate(list(t))]),
        "layout-unknown",
    ),
    "one name twice": (with_tensors(lambda t: t.update({"wte.weight": t[WTE] + 1})), "weights-ambiguous"),
    "no head": (with_config(tie_word_embeddings=False), "head-missing"),
    # folders and configurations
    "a folder without config": (without("config.json"), "config-not-found"),
    "a folder without weights": (without("model.safetensors"), "weights-not-found"),
    "an empty folder": (lambda at: at, "weights-not-found"),
    "a file without config": (bare_file, "config-needed"),
    "no such path": (lambda at: at / "nowhere" / "model.safetensors", "path-not-found"),
    "config not JSON": (with_config_text("{'n_embd': 12}"), "config-not-json"),
    "config not an object": (with_config_text("[1, 2]"), "config-not-json"),
    "config not UTF-8": (with_config_text(b'{"a": "\xff"}'), "config-not-json"),
    "config nested too deep": (with_config_text("[" * 100_000), "config-not-json"),
    "config empty": (with_config_text(""), "config-not-json"),
    "another model_type": (with_config(model_type="mamba"), "config-model-type"),
    "a field of another variant": (with_config(rotary_emb_fraction=0.5), "config-not-implemented"),
    "code of its own": (with_config(auto_map={"AutoModel": "m.M"}), "config-not-implemented"),
    "heads that do not divide": (with_config(n_head=5), "config-heads-do-not-divide"),
    "no heads": (with_config(n_head=0), "config-out-of-range"),
    "sizes as text": (with_config(n_embd="12"), "config-wrong-type"),
    "epsilon not a number": (with_config(layer_norm_epsilon=float("nan")), "config-out-of-range"),
    "epsilon negative": (with_config(layer_norm_epsilon=-1e-5), "config-out-of-range"),
    "epsilon as text": (with_config(layer_norm_epsilon="1e-5"), "config-wrong-type"),
    "epsilon null": (with_config(layer_norm_epsilon=None), "config-wrong-type"),
    "a field twice": (
        lambda at: repeated(folder(at), "config.json", '"n_head":', lambda said: said.replace("3", "4")),
        "config-not-json",
    ),
    # shards
    "a shard missing": (sharded(lambda honest: {**honest, "x": "c.safetensors"}), "shard-missing"),
    "a shard without its tensor": (sharded(lambda honest: {**honest, "x": "a.safetensors"}), "shard-mismatch"),
    "a tensor in two shards": (
        sharded(lambda honest: honest, {"a.safetensors": sorted(hf_dict(HF)), "b.safetensors": [WTE]}),
        "shard-mismatch",
    ),
    "an index that is not JSON": (sharded("not json"), "index-not-json"),
    "an index with a tensor twice": (
        lambda at: repeated(
            sharded(lambda honest: honest)(at),
            "model.safetensors.index.json",
            f'"{WTE}":',
            lambda said: said.replace("b.", "a."),
        ),
        "index-not-json",
    ),
    "an index without a map": (sharded([]), "index-no-weight-map"),
    "an index of nothing": (sharded({}), "index-no-weight-map"),
    "a shard of 300 letters": (sharded(lambda honest: {**honest, WTE: "a" * 300}), "path-unreadable"),
    "a shard outside": (sharded(lambda honest: {**honest, WTE: "../a.safetensors"}), "index-unsafe-path"),
    "a shard anywhere": (sharded(lambda honest: {**honest, WTE: "/etc/hostname"}), "index-unsafe-path"),
    "a shard that is hidden": (sharded(lambda honest: {**honest, WTE: ".."}), "index-unsafe-path"),
    "a shard outside by a detour": (sharded(lambda honest: {**honest, WTE: "./../a.safetensors"}), "index-unsafe-path"),
    "a shard below": (sharded(lambda honest: {**honest, WTE: "./below/a.safetensors"}), "index-unsafe-path"),
    "a shard that is no name": (sharded(lambda honest: {**honest, WTE: 3}), "index-unsafe-path"),
    # pickles
    "code in a zip": (malicious_zip, "pickle-unsafe"),
    "code in a legacy file": (malicious_pickle, "pickle-unsafe"),
    "code in a bare pickle": (plain_pickle, "pickle-unsafe"),
    "half an archive": (cut_archive, "pickle-damaged"),
    "an archive of something else": (zip_of_nothing, "format-not-supported"),
    "a list": (saved([torch.zeros(3)]), "pickle-no-state-dict"),
    "nothing": (saved({}), "pickle-no-state-dict"),
    "numbers among the tensors": (saved({"wte.weight": 3}), "pickle-no-state-dict"),
    "names that are numbers": (saved({3: torch.zeros(3)}), "pickle-no-state-dict"),
    "a sparse tensor": (saved({"wte.weight": torch.zeros(3, 3).to_sparse()}), "tensor-not-dense"),
    "a tensor without numbers": (saved({"wte.weight": torch.zeros(3, device="meta")}), "tensor-not-dense"),
    "model_args of another kind": (saved({"model": {"a": torch.zeros(1)}, "model_args": [1]}), "pickle-model-args"),
    "nanoGPT without its sizes": (nanogpt_without_sizes, "config-missing-field"),
    # llm.c
    "llm.c cut": (llmc(lambda data: data[:-4]), "file-truncated"),
    "llm.c header cut": (llmc(lambda data: data[:900]), "file-truncated"),
    "llm.c too long": (llmc(lambda data: data + b"\0\0\0\0"), "file-truncated"),
    "llm.c wrong magic": (set_header(0, 20240399), "format-unknown"),
    "llm.c debug state": (set_header(0, 20240327), "format-not-supported"),
    "llm.c old version": (set_header(1, 1), "llmc-version"),
    "llm.c without heads": (set_header(5, 0), "llmc-header"),
    "llm.c with negative blocks": (set_header(4, -1), "llmc-header"),
    "llm.c with a huge vocabulary": (set_header(7, 2**31 - 1), "file-truncated"),
    "llm.c heads that do not divide": (set_header(5, 5), "config-heads-do-not-divide"),
}


def _append(result: Path) -> Path:
    with (result / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    return result


def snapshot(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_code_and_remedy(case: str, tmp_path: Path) -> None:
    make, code = BAD[case]
    given = make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(pl.PellucidError) as caught:
        pl.load(given)
    assert caught.value.code == code, str(caught.value)
    assert caught.value.remedy.strip()
    assert isinstance(
        caught.value, pl.ConfigError if code.startswith("config-") and code != "config-not-found" else pl.WeightsError
    )
    assert snapshot(tmp_path) == before, "nothing is written, and no payload left its mark"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_key_that_is_given_twice_with_one_value_says_the_same(name: str, tmp_path: Path) -> None:
    given = sharded(lambda honest: honest)(tmp_path) if name.endswith("index.json") else folder(tmp_path)
    key = {"config.json": '"n_head":', "model.safetensors": f'"{CATTN}":'}.get(name, f'"{WTE}":')
    before = (given / name).read_bytes()
    repeated(given, name, key)
    assert len((given / name).read_bytes()) > len(before)
    assert same_logits(pl.load(given), HF)


def test_the_payloads_would_have_left_a_mark(tmp_path: Path) -> None:
    """The control of the test above: an unguarded reader does run them."""
    for make in (malicious_pickle, plain_pickle):
        path = make(tmp_path)
        if make is plain_pickle:
            with pytest.raises(FileExistsError):  # the first one's mark is there already
                pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("where", ["open", "stat", "iterdir"])
def test_no_permission(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = folder(tmp_path)
    refuse = PermissionError(13, "Permission denied")

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise refuse

    if where == "iterdir":
        (result / "model.safetensors").unlink()
    monkeypatch.setattr(Path, {"open": "open", "stat": "is_dir", "iterdir": "iterdir"}[where], denied)
    with pytest.raises(pl.WeightsError, match="Permission denied") as caught:
        pl.load(result)
    assert caught.value.code == "path-unreadable"


def test_hooked_weights_without_config_ask_for_it(tmp_path: Path) -> None:
    torch.save(hooked_dict(HF), tmp_path / "hooked.pt")
    with pytest.raises(pl.ConfigError, match="heads") as caught:
        pl.load(tmp_path / "hooked.pt")
    assert caught.value.code == "config-needed"
    assert "config=" in caught.value.remedy


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "float8_e4m3fn", "auto", "flaot32", 3])
def test_a_dtype_that_no_model_has(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(folder(tmp_path), dtype=dtype)
    assert caught.value.code == "dtype-unknown"


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps:0", "meta", "", 3.5])
def test_a_device_that_is_not_there(device: Any, tmp_path: Path) -> None:
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(folder(tmp_path), device=device)
    assert caught.value.code == "device-not-available"


def test_every_problem_is_listed_at_once(tmp_path: Path) -> None:
    tensors = hf_dict(HF)
    del tensors[CATTN]
    tensors[WTE] = torch.zeros(3, 12)
    tensors["stranger"] = torch.zeros(1)
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(folder(tmp_path, tensors))
    message = str(caught.value)
    assert "missing: " + CATTN in message
    assert "unexplained: stranger" in message
    assert f"{WTE}: given [3, 12], expected [61, 12]" in message


def flip(data: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 8, 64])):
        # Half of the flips go where the structure is: the beginning, and the end of an archive.
        where = generator.choice(
            [range(len(data)), range(min(len(data), 3000)), range(max(0, len(data) - 3000), len(data))]
        )
        damaged[generator.choice(where)] = generator.randrange(256)
    if generator.random() < 0.2:
        del damaged[generator.randrange(len(damaged)) :]
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "llm.c", "nanogpt", "index", "config"])
def test_flipped_bytes_never_crash_or_hang_or_raise_something_foreign(kind: str, tmp_path: Path) -> None:
    result, config = folder(tmp_path), config_of(HF)
    path = {"safetensors": result / "model.safetensors", "config": result / "config.json"}.get(
        kind, tmp_path / "weights.bin"
    )
    if kind in ("zip", "legacy"):
        torch.save(hf_dict(HF), path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "llm.c":
        path.write_bytes(llmc_bytes(HF))
    elif kind == "nanogpt":
        save_nanogpt(path, HF)
    elif kind == "index":
        result = sharded(lambda honest: honest)(tmp_path / "sharded")
        path = result / "model.safetensors.index.json"
    given = result if kind in ("safetensors", "index", "config") else path
    whole, generator = path.read_bytes(), random.Random(kind)
    errors: list[pl.PellucidError] = []
    for _ in range(30):  # tests/fuzz damages many more
        path.write_bytes(flip(whole, generator))
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", pl.PellucidWarning)
                model = pl.load(given, config=None if kind in ("config", "nanogpt") else config)
                model(torch.zeros(1, 2, dtype=torch.long))
        except pl.PellucidError as error:
            errors.append(error)
    assert all(error.code and error.remedy for error in errors)
    assert len(errors) > 5, "damage was noticed at least where it broke the structure"


def test_config_written_by_hand_is_read(tmp_path: Path) -> None:
    """The control of this file: without damage everything above loads."""
    result = folder(tmp_path)
    write_config(result, HF, n_ctx=20)
    assert pl.load(result).config.n_embd == 12
    assert pl.load(sharded(lambda honest: honest)(tmp_path / "s")).config.n_embd == 12
    assert pl.load(llmc(lambda data: None)(tmp_path)).config.n_embd == 12


def test_a_pickle_that_announces_more_than_memory_holds(tmp_path: Path) -> None:
    """A text of 2^62 bytes, in a file of thirty."""
    (tmp_path / "model.bin").write_bytes(b"\x80\x04}\x8d" + (2**62).to_bytes(8, "little") + b"x" * 20)
    for read in (pl.load, pl.audit_ties):
        with pytest.raises(pl.WeightsError) as caught:
            read(tmp_path / "model.bin")
        assert caught.value.code == "pickle-damaged"


SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (3,), (0, 5), (5, 0), (2, 3, 4))
"""Of no matrix that a model of any size has."""

NO_MATRIX = {
    "gpt2": ("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_fc.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate_proj.weight"),
}
NO_SIZE = [(family, name) for family, names in NO_MATRIX.items() for name in names]


@pytest.fixture(scope="module")
def models() -> dict[str, pl.CkptedTransformer]:
    return {"gpt2": pl.from_hf(HF), "llama": llamas.glass()}


@pytest.mark.parametrize(("family", "name"), few_of(NO_SIZE, NO_SIZE[0], NO_SIZE[-1]))
def test_a_tensor_from_which_no_size_can_be_read_is_misshapen(family, name, models):
    """Remedies and comparisons read the sizes of a model off its tensors, whatever shape these have."""
    ours = models[family]
    tensors = pl.to_hf(ours).state_dict()
    for shape in SHAPES:
        changed = {**tensors, name: torch.ones(shape)}
        with pytest.raises(pl.WeightsError, match=re.escape(name)):
            pl.load(changed, config=ours.config)
        assert pl.compare(ours, changed, inputs=[[1, 2, 3]]).verdict == "inconclusive"
        assert pl.audit_ties(changed).by_name == sum(tensor.numel() for tensor in changed.values())


def test_an_audit_of_a_number_in_the_place_of_a_matrix_says_so(tmp_path):
    audit = pl.audit_ties(folder(tmp_path, {**hf_dict(HF), "transformer.wte.weight": torch.tensor(1.0)}))
    assert any("transformer.wte.weight" in problem.message for problem in audit.problems)


@pytest.mark.parametrize("number", [10**6, 10**12, 10**30])
@pytest.mark.parametrize(
    ("family", "place"), [("gpt2", "transformer.h.{}.ln_1.weight"), ("llama", "model.layers.{}.input_layernorm.weight")]
)
def test_a_name_may_state_any_number_of_blocks(family, place, number, models):
    ours, name = models[family], place.format(number)
    tensors = {**pl.to_hf(ours).state_dict(), name: torch.ones(12)}
    with pytest.raises(pl.WeightsError, match="unexplained: " + re.escape(name)):
        pl.load(tensors, config=ours.config)
    assert pl.compare(ours, tensors, inputs=[[1, 2, 3]]).verdict == "inconclusive"


def test_blocks_are_counted_up_to_the_tensors_that_there_are():
    assert blocks_in({}) == 0
    assert blocks_in({"h.0.w": torch.ones(1), "h.1.w": torch.ones(1)}) == 2
    with pytest.raises(KeyError, match="2 tensors of 3 blocks"):
        blocks_in({"h.0.w": torch.ones(1), "h.2.w": torch.ones(1)})
