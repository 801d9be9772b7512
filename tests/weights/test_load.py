"""Opening: dtypes, the mapping from the file, numbers that are not finite, tokenizers, options."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import pellucid as pl
import support
from pellucid.family.part import is_finite
from pellucid.weights import load
from pellucid.weights.layouts import our_shapes
from weights.checkpoints import (
    ODD,
    config_of,
    hf_dict,
    ids_for,
    llmc_bytes,
    own_dict,
    same_logits,
    save_folder,
    small_hf,
    stored_bytes,
    write_config,
)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hf = small_hf()
    hf.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_float32_unless_asked(tmp_path: Path) -> None:
    hf = small_hf().to(torch.float16)
    hf.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    model = pl.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.provenance["stored_dtype"], model.provenance["dtype"]) == ("float16", "float32")
    assert same_logits(model, hf.float())


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_stored_keeps_the_dtype_and_the_bytes(stored: torch.dtype, tmp_path: Path) -> None:
    small_hf().to(stored).save_pretrained(tmp_path / "theirs")
    model = pl.load(tmp_path / "theirs", dtype="stored")
    assert {p.dtype for p in model.parameters()} == {stored}
    model.save_pretrained(tmp_path / "ours")
    theirs, ours = (stored_bytes(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert theirs == ours
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")


@pytest.mark.parametrize("asked", ["float16", torch.bfloat16, "torch.float64"])
def test_a_dtype_by_name_or_object(asked: Any, folder: Path) -> None:
    expected = getattr(torch, asked.removeprefix("torch.")) if isinstance(asked, str) else asked
    model = pl.load(folder, dtype=asked)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert torch.equal(model.embed.W_E, small_hf().transformer.wte.weight.to(expected))


def test_stored_of_a_mixture_is_the_narrowest_dtype_that_loses_nothing(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = {name: t.half() if "ln" in name else t.bfloat16() for name, t in hf_dict(hf).items()}
    model = pl.load(save_folder(tmp_path, tensors, hf), dtype="stored")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.provenance["stored_dtype"] == "bfloat16, float16"
    assert torch.equal(model.embed.W_E, tensors["transformer.wte.weight"].float())


def test_an_untied_head_keeps_its_memory_order_through_a_conversion(tmp_path: Path) -> None:
    hf = small_hf(tie_word_embeddings=False).to(torch.float16)
    hf.save_pretrained(tmp_path)
    model = pl.load(tmp_path)
    assert model.state_dict()["unembed.W_U"].stride() == (1, 12)
    assert same_logits(model, hf.float())


def test_stored_float8_is_refused_and_can_be_converted(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in hf_dict(hf).items()}
    save_folder(tmp_path, tensors, hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path, dtype="stored")
    assert caught.value.code == "dtype-not-supported"
    assert torch.equal(pl.load(tmp_path).embed.W_E, tensors["transformer.wte.weight"].float())


@pytest.mark.remedy("dtype-not-supported")
def test_stored_with_one_float8_among_others_is_refused_too(tmp_path: Path) -> None:
    hf = small_hf()
    name = "transformer.h.0.ln_1.bias"
    save_folder(tmp_path, {**hf_dict(hf), name: hf_dict(hf)[name].to(torch.float8_e4m3fn)}, hf)
    with pytest.raises(pl.WeightsError) as caught:
        pl.load(tmp_path, dtype="stored")
    assert caught.value.code == "dtype-not-supported"
    assert pl.load(tmp_path).dtype == torch.float32, "as the remedy says"


@pytest.mark.parametrize("kind", ["safetensors", "zip", "llm.c"])
def test_an_edit_in_place_changes_the_model_and_not_the_file(kind: str, tmp_path: Path) -> None:
    hf = small_hf(tie_word_embeddings=kind == "llm.c")
    path = tmp_path / "weights.bin"
    if kind == "safetensors":
        save_file(hf_dict(hf), path)
    elif kind == "zip":
        torch.save(hf_dict(hf), path)
    else:
        path.write_bytes(llmc_bytes(hf))
    before = digest(path)
    model = pl.load(path, config=config_of(hf))
    assert any(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines()), "mapped, not read"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert digest(path) == before
    assert torch.equal(model.embed.W_E, hf.transformer.wte.weight + 1)
    assert same_logits(pl.load(path, config=config_of(hf)), hf)


def test_saving_over_the_file_that_the_model_is_mapped_from(folder: Path) -> None:
    model, hf = pl.load(folder), small_hf()
    model.save_pretrained(folder)
    assert same_logits(model, hf)
    with torch.no_grad():
        model.embed.W_E.mul_(2)
    model.save_pretrained(folder)
    assert torch.equal(pl.load(folder).embed.W_E, hf.transformer.wte.weight * 2)
    (folder / "model.safetensors").unlink()
    assert torch.equal(model.blocks[0].ln1.w, hf.transformer.h[0].ln_1.weight)


MEASURE = """
import ctypes
import sys
import torch
import pellucid as pl

def resident():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}

pl.load(sys.argv[2])
before = resident()
model = pl.load(sys.argv[1])
after = resident()
size = sum(p.numel() * p.element_size() for p in model.parameters())
texts = pl.load(sys.argv[3])
with_tokenizer = resident()
ctypes.CDLL(None).malloc_trim(0)
freed = with_tokenizer["RssAnon"] - resident()["RssAnon"]
print(size, after["VmHWM"] - before["VmRSS"], after["RssAnon"] - before["RssAnon"], freed)
"""


def pairs_of_characters(size: int) -> tokenizers.Tokenizer:
    """A vocabulary of the characters of bytes, and of pairs of them as far as the size goes."""
    characters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(itertools.product(characters, characters), size - len(characters)))
    pieces = [*characters, *map("".join, merges)]
    return tokenizers.Tokenizer(tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))


def test_loading_holds_the_weights_once(folder: Path, tmp_path: Path) -> None:
    config = pl.TransformerConfig(vocab_size=20000, n_positions=64, n_embd=512, n_layer=8, n_head=8)
    pl.CkptedTransformer(config).save_pretrained(tmp_path / "larger")
    texts = pl.CkptedTransformer(replace(config, n_embd=64, n_layer=1))
    texts.tokenizer = pl.Tokenizer(pairs_of_characters(config.vocab_size))
    texts.save_pretrained(tmp_path / "texts")
    run = [sys.executable, "-c", MEASURE, str(tmp_path / "larger"), str(folder), str(tmp_path / "texts")]
    size, peak, anonymous, freed = map(
        int, subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    )
    assert size > 140e6
    assert peak <= 1.1 * size
    assert anonymous <= 0.05 * size, "the pages are the file's"
    assert freed < 1e6, "what a tokenizer was read through is the system's again"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_told(value: float, tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf)
    tensors["transformer.h.1.mlp.c_fc.bias"][3] = value
    with pytest.warns(pl.PellucidWarning, match=r"blocks\.1\.mlp\.b_in"):
        model = pl.load(save_folder(tmp_path, tensors, hf))
    assert model.provenance["non_finite"] == "blocks.1.mlp.b_in"


def test_an_overflow_of_the_conversion_is_told(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf)
    tensors["transformer.ln_f.weight"][0] = 1e6
    folder = save_folder(tmp_path, tensors, hf)
    pl.load(folder)
    with pytest.warns(pl.PellucidWarning, match=r"ln_final\.w"):
        pl.load(folder, dtype="float16")


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    assert is_finite(torch.full((4, 4), 3e38))
    assert is_finite(torch.full((4,), 6e4, dtype=torch.float16))
    assert is_finite(torch.tensor(1.0))
    assert is_finite(torch.zeros(0, 3))
    assert not is_finite(torch.tensor([[1.0, 2.0], [float("inf"), -float("inf")]]))
    assert not is_finite(torch.tensor([3e38, 3e38, float("nan")]))


def test_sound_weights_are_loaded_without_a_word(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = pl.load(folder)
    assert "non_finite" not in model.provenance
    assert capfd.readouterr() == ("", "")


def test_shared_storage_in_a_pickle_becomes_two_parameters(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf)
    tensors["transformer.h.1.ln_1.weight"] = tensors["transformer.h.0.ln_1.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    write_config(tmp_path, hf)
    model = pl.load(tmp_path)
    with torch.no_grad():
        model.blocks[0].ln1.w.zero_()
    assert torch.equal(model.blocks[1].ln1.w, tensors["transformer.h.0.ln_1.weight"])
    model.save_pretrained(tmp_path / "saved")
    assert same_logits(pl.load(tmp_path / "saved"), _with(hf, tensors, zeroed="transformer.h.0.ln_1.weight"))


def _with(hf: Any, tensors: dict[str, Tensor], *, zeroed: str) -> Any:
    hf.load_state_dict({**tensors, zeroed: torch.zeros_like(tensors[zeroed])}, strict=False)
    return hf


def test_separate_copies_every_kind_of_overlap() -> None:
    base = torch.arange(12.0)
    given = {"a": base[:8], "b": base[4:], "c": base[2:4], "d": torch.zeros(0), "e": torch.ones(2)}
    result = load.separate(given)
    assert all(torch.equal(result[name], given[name]) for name in given)
    for name in result:
        others = {other: result[other].clone() for other in result if other != name}
        result[name].fill_(-1)
        assert all(torch.equal(result[other], others[other]) for other in others)
    assert load.separate({"e": given["e"]})["e"] is given["e"]


def test_strided_tensors_of_a_pickle_are_read_right(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf)
    tensors = {name: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor for name, tensor in tensors.items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    write_config(tmp_path, hf)
    model = pl.load(tmp_path)
    assert same_logits(model, hf)
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sharded"])
def test_other_files_of_a_folder(name: str, tmp_path: Path) -> None:
    hf = small_hf(tie_word_embeddings=False)
    if name == "sharded":
        hf.save_pretrained(tmp_path, max_shard_size="4KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        torch.save(hf.state_dict(), tmp_path / name)
        write_config(tmp_path, hf)
    assert same_logits(pl.load(tmp_path), hf)


def test_a_pytorch_index(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf)
    names = sorted(tensors)
    torch.save({name: tensors[name] for name in names[:7]}, tmp_path / "one.bin")
    torch.save({name: tensors[name] for name in names[7:]}, tmp_path / "two.bin")
    weight_map = {name: "one.bin" if name in names[:7] else "two.bin" for name in names}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_config(tmp_path, hf)
    assert same_logits(pl.load(tmp_path), hf)


def test_safetensors_are_preferred_to_pickles(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert pl.load(folder).provenance["file"] == "model.safetensors"


def test_a_file_takes_the_configuration_beside_it_or_the_one_given(folder: Path, tmp_path: Path) -> None:
    hf = small_hf()
    assert same_logits(pl.load(folder / "model.safetensors"), hf)
    alone = (folder / "model.safetensors").rename(tmp_path / "alone.safetensors")
    assert same_logits(pl.load(alone, config=config_of(hf)), hf)
    assert not same_logits(pl.load(alone, config=config_of(hf).replace(n_head=2)), hf)


def test_a_folder_without_configuration_takes_the_one_given(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert same_logits(pl.load(folder, config=config_of(small_hf())), small_hf())


def test_single_fields_can_be_replaced(folder: Path) -> None:
    options = load.LoadOptions(config={"layer_norm_epsilon": 0.1})
    model = load.load(pl.CkptedTransformer, folder, options)
    assert model.config.layer_norm_epsilon == 0.1
    assert model.config.n_embd == 12


@pytest.mark.parametrize("door", ["folder", "file", "state dict"])
def test_a_configuration_of_transformers_or_the_path_of_one_is_taken(door: str, folder: Path, tmp_path: Path) -> None:
    hf = small_hf()
    (tmp_path / "elsewhere").mkdir()
    elsewhere = (folder / "config.json").rename(tmp_path / "elsewhere" / "config.json")
    opened = {"folder": folder, "file": folder / "model.safetensors", "state dict": hf_dict(hf)}[door]
    for config in (hf.config, hf.config.to_dict(), elsewhere, str(elsewhere), elsewhere.parent):
        assert same_logits(pl.load(opened, config=config), hf)
    other = type(hf.config)(**{**hf.config.to_dict(), "layer_norm_epsilon": 0.1})
    assert pl.load(opened, config=other).config.layer_norm_epsilon == 0.1


def test_an_index_may_give_both_names_of_a_tied_matrix(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = {name: tensor for name, tensor in hf_dict(hf).items() if name != "lm_head.weight"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    weight_map = dict.fromkeys([*tensors, "lm_head.weight"], "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    write_config(tmp_path, hf)
    model = pl.load(tmp_path)
    assert model.unembed.tied
    assert same_logits(model, hf)
    with pytest.raises(pl.WeightsError, match=r"no lm_head\.weight, and tie_word_embeddings is false"):
        pl.load(tmp_path, config={"tie_word_embeddings": False})


@pytest.mark.parametrize("config", [b"gpt2-small", 3, ["n_head", 3]])
def test_a_configuration_of_another_kind_is_refused(config: Any, folder: Path) -> None:
    with pytest.raises(pl.ConfigError) as caught:
        pl.load(folder, config=config)
    assert caught.value.code == "config-wrong-type"


@pytest.mark.parametrize("name", [3, 1.5, ["a"], b"gpt2"])
def test_a_name_of_another_kind_is_refused(name: Any) -> None:
    with pytest.raises(pl.NotFoundError) as caught:
        pl.load(name)
    assert caught.value.code == "path-not-found"


def test_ignored_fields(tmp_path: Path) -> None:
    hf = small_hf()
    save_folder(tmp_path, hf_dict(hf), hf, multi_query=True)
    assert same_logits(pl.load(tmp_path, ignore_config=["multi_query"]), hf)
    assert same_logits(pl.load(tmp_path, ignore_config="multi_query"), hf)
    assert same_logits(pl.load(tmp_path, ignore_config=["multi_query", "rotary_emb_fraction"]), hf)
    with pytest.raises(pl.ConfigError, match="no field 'multi_qery'") as caught:
        pl.load(tmp_path, ignore_config=["multi_query", "multi_qery"])
    assert caught.value.code == "config-unknown-field"


def test_the_tokenizer_of_the_folder_comes_along(tmp_path: Path) -> None:
    bundled = pl.load()
    bundled.save_pretrained(tmp_path)
    again = pl.load(tmp_path)
    assert again.tokenizer.encode("Once upon a time") == bundled.tokenizer.encode("Once upon a time")
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", *tokenizer}


def test_the_bundled_model_is_saved_as_it_is(tmp_path: Path) -> None:
    pl.load(dtype="stored").save_pretrained(tmp_path)
    bundled = Path(pl.__file__).parent / "bundled"
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(bundled / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("variant", support.few_of(ODD, *({*ODD} - {"twelve-blocks"})))
def test_the_stored_shapes_are_the_models(variant: str) -> None:
    hf = small_hf(**ODD[variant])
    shapes = our_shapes(config_of(hf).schema)
    model = pl.CkptedTransformer(config_of(hf))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        name: shape for name, shape in shapes.items() if name in own_dict(hf)
    }


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    model = pl.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert model(ids_for(small_hf())).shape == (2, 7, 61)


def test_a_byte_order_mark_before_a_configuration_or_an_index_is_no_damage(tmp_path: Path) -> None:
    model = support.glass()
    pl.to_hf(model).save_pretrained(tmp_path, max_shard_size="20kB")
    for name in ("config.json", "model.safetensors.index.json", "generation_config.json"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    ids = support.some_ids(1, 5)
    assert torch.equal(pl.load(tmp_path)(ids), model(ids))


@pytest.mark.parametrize("before", ["./", "././"])
def test_an_index_may_name_the_folder_that_it_is_in(before: str, tmp_path: Path) -> None:
    model = support.glass()
    pl.to_hf(model).save_pretrained(tmp_path, max_shard_size="20kB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: before + shard for name, shard in index["weight_map"].items()}
    path.write_text(json.dumps(index))
    ids = support.some_ids(1, 5)
    assert torch.equal(pl.load(tmp_path)(ids), model(ids))


def test_a_file_that_asks_for_eager_attention_gets_it(tmp_path: Path) -> None:
    """transformers reads the field under either name."""
    hf = small_hf()
    for name in ("_attn_implementation", "attn_implementation"):
        folder = save_folder(tmp_path / name, hf_dict(hf), hf, **{name: "eager"})
        model = pl.load(folder)
        assert model.execution.attention == "eager"
        assert same_logits(model, transformers.GPT2LMHeadModel.from_pretrained(folder))


@pytest.mark.parametrize("longer", ["transformer.wte.weight", "lm_head.weight"])
def test_an_embedding_that_was_resized_without_its_head_is_told_apart(longer: str, tmp_path: Path) -> None:
    """No size fits both; without the rows that were added the model is what it was."""
    hf = small_hf(tie_word_embeddings=False)
    tensors = hf_dict(hf)
    folder = save_folder(tmp_path, {**tensors, longer: torch.cat([tensors[longer], tensors[longer][:3]])}, hf)
    with pytest.raises(pl.WeightsError, match="misshapen") as caught:
        pl.load(folder)
    assert caught.value.remedy.startswith("No vocab_size fits both: ")
    call, _, how = caught.value.remedy.rpartition("pl.load(")[2].rpartition(", config=...), with tensors = ")
    tensors = eval(how.removesuffix("."), {"safetensors": safetensors})
    model = pl.load(eval(call, {"tensors": tensors}), config=hf.config.to_dict())
    assert same_logits(model, hf)


def test_values_of_other_kinds_are_told_in_our_words() -> None:
    for options in ({"dtype": np.array([1, 2])}, {"device": 10**30}, {"hub": torch.zeros(2)}, {"hub": {}}):
        with pytest.raises(pl.PellucidError):
            pl.load(**options)
    with pytest.raises(pl.ConfigError, match="expected True or False"):
        pl.HubOptions(offline="0")  # type: ignore[arg-type]
    assert pl.HubOptions(offline=np.True_).offline is True  # type: ignore[arg-type]
