"""Every layout and prefix, imported to transformers' logits to the bit and exported to the tensors it came from."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2LMHeadModel, GPT2Model

import pellucid as pl
import support
from pellucid.weights import layouts
from pellucid.weights.importing import to_ours
from weights.checkpoints import (
    ODD,
    SMALL,
    config_of,
    course_dict,
    hf_dict,
    hooked_dict,
    ids_for,
    llmc_bytes,
    nanogpt_dict,
    own_dict,
    same_logits,
    save_folder,
    save_nanogpt,
    small_hf,
    write_config,
)

PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."]


@functools.cache
def odd_hf(variant: str) -> Any:
    """Read by every test that asks for it, written by none."""
    return small_hf(**ODD[variant])


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    )


@pytest.mark.parametrize(
    "variant", support.few_of(ODD, "small", "untied", "one-head", "no-blocks", "one-token-one-position")
)
def test_a_transformers_folder_gives_its_logits_and_comes_back_tensor_for_tensor(variant: str, tmp_path: Path) -> None:
    hf = odd_hf(variant)
    hf.save_pretrained(tmp_path / "theirs")
    model = pl.load(tmp_path / "theirs", dtype="stored")
    assert same_logits(model, hf)
    assert not model.training
    model.save_pretrained(tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(same_bits(theirs[name], ours[name]) and theirs[name].dtype == ours[name].dtype for name in theirs)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert same_logits(model, again)
    assert again.config.tie_word_embeddings == hf.config.tie_word_embeddings


@pytest.mark.parametrize("variant", ODD)
def test_the_tensors_are_the_ones_expected_by_hand(variant: str) -> None:
    hf = odd_hf(variant)
    imported = to_ours(hf_dict(hf), config_of(hf))
    expected = own_dict(hf)
    assert imported.weights.keys() == expected.keys()
    assert all(same_bits(imported.weights[name], expected[name]) for name in expected)
    if "unembed.W_U" in expected:
        assert imported.weights["unembed.W_U"].stride() == (1, hf.config.n_embd)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize(
    ("variant", "dtype"),
    support.few_of(
        itertools.product(ODD, DTYPES), *(("untied", dtype) for dtype in DTYPES), *((odd, torch.float32) for odd in ODD)
    ),
)  # fmt: skip
def test_there_and_back_is_byte_equal_in_every_dtype(variant: str, dtype: torch.dtype) -> None:
    theirs = {name: tensor.to(dtype) for name, tensor in hf_dict(odd_hf(variant)).items()}
    imported = to_ours(theirs, config_of(odd_hf(variant)))
    back = layouts.from_ours(imported.weights, imported.config)
    assert back.keys() == theirs.keys()
    assert all(
        back[name].view(torch.uint8).equal(theirs[name].view(torch.uint8)) for name in theirs if theirs[name].numel()
    )


LAYOUTS_BY_HAND: dict[str, Any] = {
    "hf": hf_dict,
    "nanogpt": nanogpt_dict,
    "course": course_dict,
    "hooked-transformer": hooked_dict,
    "pellucid": own_dict,
}


# Without a matrix the two orientations of a file cannot be told apart, and are one.
@pytest.mark.parametrize(
    ("layout", "variant"),
    [pair for pair in itertools.product(LAYOUTS_BY_HAND, ODD) if pair != ("nanogpt", "no-blocks")],
)
def test_each_table_reads_both_ways(layout: str, variant: str) -> None:
    hf = odd_hf(variant)
    given = LAYOUTS_BY_HAND[layout](hf)
    imported = to_ours(given, config_of(hf))
    expected = own_dict(hf)
    assert imported.layout == layout
    assert not imported.remarks
    assert imported.weights.keys() == expected.keys()
    assert all(same_bits(imported.weights[name], expected[name]) for name in expected)
    back = layouts.from_ours(imported.weights, imported.config, layout)
    assert {n for n in given if n not in back} <= {
        n for n in given if n.startswith(("lm_head", "unembed")) or "attn.mask" in n or "IGNORE" in n
    }
    assert all(same_bits(back[name], given[name]) for name in back)


@pytest.mark.parametrize(
    ("prefix", "layout"),
    support.few_of(
        itertools.product(PREFIXES, LAYOUTS_BY_HAND),
        *((prefix, "hf") for prefix in PREFIXES), *((PREFIXES[-1], layout) for layout in LAYOUTS_BY_HAND),
    ),
)  # fmt: skip
def test_the_wrappers_of_ddp_and_compile_fall_off(prefix: str, layout: str, tmp_path: Path) -> None:
    hf = odd_hf("small")
    path = tmp_path / "weights.pt"
    torch.save(prefixed(prefix, LAYOUTS_BY_HAND[layout](hf)), path)
    model = pl.load(path, config=config_of(hf))
    assert model.provenance["layout"] == layout
    assert same_logits(model, hf)


@pytest.mark.parametrize("headless", [True, False])
@pytest.mark.parametrize("bare", [True, False])
def test_with_and_without_transformers_prefix_and_head(bare: bool, headless: bool, tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf, head=not headless)
    if bare:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    model = pl.load(save_folder(tmp_path, tensors, hf))
    assert same_logits(model, hf)
    assert model.provenance["head"] == "tied"
    assert "unembed.W_U" not in model.state_dict()


def test_a_base_models_own_folder(tmp_path: Path) -> None:
    hf = small_hf()
    GPT2Model.from_pretrained(None, config=hf.config, state_dict=hf_dict(hf.transformer, head=True)).save_pretrained(
        tmp_path
    )
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert same_logits(pl.load(tmp_path), hf)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_mask_buffers_are_dropped_by_exact_name_and_shape(dtype: torch.dtype, prefix: str, tmp_path: Path) -> None:
    hf = small_hf()
    tensors = {prefix + name.removeprefix("transformer."): tensor for name, tensor in hf_dict(hf).items()}
    n = hf.config.n_positions
    for i in range(hf.config.n_layer):
        tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n).to(dtype)
        tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    model = pl.load(save_folder(tmp_path, tensors, hf))
    assert same_logits(model, hf)
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, n, n + 1)
    with pytest.raises(pl.WeightsError, match=r"h\.0\.attn\.bias") as caught:
        pl.load(save_folder(tmp_path / "wrong", tensors, hf))
    assert caught.value.code == "weights-unexplained"


def test_only_the_head_is_there_and_the_model_is_tied(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf, head=True)
    del tensors["transformer.wte.weight"]
    model = pl.load(save_folder(tmp_path, tensors, hf))
    assert same_logits(model, hf)
    assert model.config.tie_word_embeddings


def test_two_different_matrices_under_a_tied_configuration_are_both_kept(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = hf_dict(hf, head=True)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + torch.randn_like(tensors["lm_head.weight"])
    folder = save_folder(tmp_path, tensors, hf)
    with pytest.warns(pl.PellucidWarning, match="untied"):
        model = pl.load(folder)
    assert not model.config.tie_word_embeddings
    assert "untied" in model.provenance["remarks"]
    with torch.no_grad():
        assert torch.equal(model(ids_for(hf)), GPT2LMHeadModel.from_pretrained(folder)(ids_for(hf)).logits)


def test_equal_matrices_under_an_untied_configuration_stay_two(tmp_path: Path) -> None:
    hf = small_hf()
    path = tmp_path / "pytorch_model.bin"
    torch.save(hf.state_dict(), path)
    write_config(tmp_path, hf, tie_word_embeddings=False)
    model = pl.load(tmp_path)
    assert same_logits(model, hf)
    before = model.parameter("unembed.W_U").clone()
    with torch.no_grad():
        model.embed.W_E.zero_()
    assert torch.equal(model.parameter("unembed.W_U"), before)


def test_an_untied_configuration_without_a_head_is_refused(tmp_path: Path) -> None:
    hf = small_hf()
    folder = save_folder(tmp_path, hf_dict(hf), hf, tie_word_embeddings=False)
    with pytest.raises(pl.WeightsError, match=r"lm_head\.weight") as caught:
        pl.load(folder)
    assert caught.value.code == "head-missing"


@pytest.mark.parametrize("variant", ["small", "head-width-one", "twelve-blocks", "erf-inverse-scale"])
@pytest.mark.parametrize("version", [3, 5])
def test_llmc_files(variant: str, version: int, tmp_path: Path) -> None:
    hf = small_hf(**{**ODD[variant], "activation_function": "gelu_new", "scale_attn_by_inverse_layer_idx": False})
    path = tmp_path / "model.bin"
    path.write_bytes(llmc_bytes(hf, version))
    model = pl.load(path)
    expected = hf if version == 3 else hf.to(torch.bfloat16).float()
    assert same_logits(model, expected)
    assert model.config.vocab_size == hf.config.vocab_size
    assert (model.provenance["layout"], model.provenance["format"]) == ("llm.c", "llm.c")
    assert pl.load(path, dtype="stored").embed.W_E.dtype == (torch.float32 if version == 3 else torch.bfloat16)
    tensors = layouts.from_ours(model.state_dict(), model.config, "llm.c")
    assert same_bits(tensors["qkvw.1"], hf_dict(expected)["transformer.h.1.attn.c_attn.weight"].t())


@pytest.mark.parametrize("prefix", PREFIXES[:3])
def test_nanogpt_checkpoints_bring_their_own_configuration(prefix: str, tmp_path: Path) -> None:
    hf = small_hf(activation_function="gelu", n_embd=15)
    model = pl.load(save_nanogpt(tmp_path / "ckpt.pt", hf, prefix=prefix))
    assert same_logits(model, hf)
    assert model.config.activation_function == "gelu"
    assert "erf" in model.provenance["activation_function"]
    assert same_logits(pl.load(tmp_path), hf), "the folder that train.py writes"


def test_nanogpts_activation_can_be_said(tmp_path: Path) -> None:
    hf = small_hf(activation_function="gelu_new")
    path = save_nanogpt(tmp_path / "ckpt.pt", hf)
    assert not same_logits(pl.load(path), hf)
    assert same_logits(pl.load(path, config=config_of(hf)), hf)


def test_nanogpt_without_biases_is_exactly_equivalent(tmp_path: Path) -> None:
    hf = small_hf(activation_function="gelu")
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    model = pl.load(save_nanogpt(tmp_path / "ckpt.pt", hf, bias=False))
    assert same_logits(model, hf)
    assert model.provenance["layout"] == "nanogpt-without-bias"
    back = layouts.from_ours(model.state_dict(), model.config, "nanogpt-without-bias")
    assert back.keys() == nanogpt_dict(hf, bias=False).keys() - {"lm_head.weight"}
    with torch.no_grad():
        model.blocks[0].attn.b_O.fill_(1)
    with pytest.raises(pl.WeightsError, match=r"blocks\.0\.attn\.b_O") as caught:
        layouts.from_ours(model.state_dict(), model.config, "nanogpt-without-bias")
    assert caught.value.code == "layout-has-no-bias"


def test_one_missing_bias_is_not_taken_for_a_model_without_biases(tmp_path: Path) -> None:
    hf = small_hf()
    tensors = nanogpt_dict(hf)
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    with pytest.raises(pl.WeightsError, match=r"h\.1\.mlp\.c_fc\.bias") as caught:
        to_ours(tensors, config_of(hf))
    assert caught.value.code == "weights-missing"


def test_a_hooked_transformer_without_its_buffers(tmp_path: Path) -> None:
    hf = small_hf(tie_word_embeddings=False)
    save_file(hooked_dict(hf, buffers=False), tmp_path / "hooked.safetensors")
    assert same_logits(pl.load(tmp_path / "hooked.safetensors", config=config_of(hf)), hf)


def fold_norms(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".ln" in name or name.startswith("ln_final")]:
        tensors[name] = torch.ones_like(tensors[name]) if name.endswith("w") else torch.zeros_like(tensors[name])


def drop_norms(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".ln" in name or name.startswith("ln_final")]:
        del tensors[name]


def centre_writing(tensors: dict[str, Tensor]) -> None:
    tensors["embed.W_E"] = tensors["embed.W_E"] - tensors["embed.W_E"].mean(-1, keepdim=True)


def centre_unembed(tensors: dict[str, Tensor]) -> None:
    tensors["unembed.W_U"] = tensors["unembed.W_U"] - tensors["unembed.W_U"].mean(-1, keepdim=True)


def bias_unembed(tensors: dict[str, Tensor]) -> None:
    tensors["unembed.b_U"] = torch.randn(SMALL["vocab_size"])


@pytest.mark.parametrize("process", [fold_norms, drop_norms, centre_writing, centre_unembed, bias_unembed])
def test_processed_weights_are_refused_with_the_reason(process: Any) -> None:
    hf = small_hf()
    tensors = hooked_dict(hf)
    process(tensors)
    with pytest.raises(pl.WeightsError, match="processed") as caught:
        to_ours(tensors, config_of(hf))
    assert caught.value.code == "layout-processed"
    assert "no_processing" in caught.value.remedy


def test_our_tensors_are_views_of_theirs_where_nothing_is_rearranged() -> None:
    hf = small_hf(tie_word_embeddings=False)
    tensors = hf_dict(hf)
    imported = to_ours(tensors, config_of(hf))
    places = {tensor.data_ptr() for tensor in tensors.values()}
    assert {tensor.data_ptr() for tensor in imported.weights.values()} == places


@pytest.mark.parametrize(
    ("name", "reason", "code"),
    [
        ("transformer.h.0.crossattention.c_attn.weight", "cross-attention", "weights-foreign"),
        ("transformer.h.0.ln_cross_attn.weight", "cross-attention", "weights-foreign"),
        ("transformer.h.0.attn.c_attn.lora_A.weight", "adapters", "weights-foreign"),
        ("transformer.h.0.attn.c_attn.qweight", "quantized", "weights-foreign"),
        ("transformer.h.0.attn.rotary_emb.inv_freq", "position embeddings", "weights-foreign"),
        ("lm_head.bias", "plain linear", "weights-unexplained"),
        ("transformer.h.0.summary.weight", "summary", "weights-unexplained"),
        ("something.else", "something.else", "weights-unexplained"),
        ("transformer.h.0.attn.bias", "not the causal one", "weights-unexplained"),
    ],
)
def test_foreign_tensors_are_refused_by_name_and_reason(name: str, reason: str, code: str) -> None:
    hf = small_hf()
    with pytest.raises(pl.WeightsError, match=reason) as caught:
        to_ours({**hf_dict(hf), name: torch.ones(3)}, config_of(hf))
    assert name in str(caught.value)
    assert caught.value.code == code


CONFIGS = st.builds(
    lambda n_head, d_head, **sizes: pl.TransformerConfig(n_head=n_head, n_embd=n_head * d_head, **sizes),
    n_head=st.integers(1, 4),
    d_head=st.integers(1, 4),
    vocab_size=st.integers(1, 9),
    n_positions=st.integers(1, 5),
    n_layer=st.integers(1, 3),
    n_inner=st.none() | st.integers(1, 9),
    tie_word_embeddings=st.booleans(),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    config=CONFIGS,
    layout=st.sampled_from(["hf", "nanogpt", "course", "hooked-transformer", "pellucid", "llm.c"]),
    seed=st.integers(0, 99),
)
def test_out_and_in_again_is_the_identity(config: pl.TransformerConfig, layout: str, seed: int) -> None:
    if layout == "llm.c":
        config = config.replace(tie_word_embeddings=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = layouts.our_shapes(config.schema)
    if config.tie_word_embeddings:
        del shapes["unembed.W_U"]
    ours = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    theirs = layouts.from_ours(ours, config, layout)
    imported = to_ours(theirs, config)
    assert imported.layout == layout
    assert imported.config == config
    assert imported.weights.keys() == ours.keys()
    assert all(same_bits(imported.weights[name], ours[name]) for name in ours)
