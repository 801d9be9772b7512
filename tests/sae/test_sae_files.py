"""Folders of SAELens, sparsify and dictionary_learning are read as these libraries compute, and saved as SAELens'."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from autoencoders import F, make, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

import pellucid as pl
import support

WIDTH = 24
X = 2 * torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.7


def saelens(folder: Path, cfg: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    """A folder as SAELens writes it."""
    folder.mkdir(exist_ok=True)
    save_file(weights(WIDTH) if tensors is None else tensors, folder / "sae_weights.safetensors")
    sizes = {"d_in": WIDTH, "d_sae": F, "dtype": "float32"}
    (folder / "cfg.json").write_text(json.dumps({**sizes, **cfg}))
    return folder


OLD = {
    "model_name": "gpt2-small",
    "hook_point": "blocks.1.hook_resid_pre",
    "hook_point_layer": 1,
    "hook_point_head_index": None,
    "prepend_bos": True,
    "context_size": 128,
    "use_ghost_grads": False,
}
"""As versions before 6 wrote it, as of gpt2-small-res-jb."""

OPENAI = {
    "sae_lens_version": "3.12.0",
    "architecture": "standard",
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 5},
    "hook_name": "blocks.1.hook_resid_post",
    "hook_layer": 1,
    "prepend_bos": False,
    "normalize_activations": "layer_norm",
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
}
"""As of OpenAI's autoencoders of GPT-2, version 5."""

NEW = {
    "architecture": "standard",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.12.0", "hook_name": "blocks.1.hook_resid_pre", "model_name": "gpt2"},
}


def test_configurations_of_old_versions(tmp_path: Path) -> None:
    sae = pl.sae.load(saelens(tmp_path, OLD), centred=torch.tensor(True))
    assert sae.config.centred is True
    assert (sae.config.at, sae.config.activation, sae.config.centred) == ("blocks.1.hook_resid_pre", "relu", True)
    assert sae.config.about["model_name"] == "gpt2-small"
    assert torch.equal(sae.encode(X), make(sae.config.at, WIDTH, centred=True).encode(X))


def test_openai_s_autoencoders(tmp_path: Path) -> None:
    sae = pl.sae.load(saelens(tmp_path, OPENAI))
    assert (sae.config.activation, sae.config.k, sae.config.normalization) == ("topk", 5, "layer_norm")
    expected = make(sae.config.at, WIDTH, "topk", normalization="layer_norm")
    assert torch.equal(sae.split(X).reconstruction, expected.split(X).reconstruction)


@pytest.mark.parametrize(
    ("cfg", "fields"),
    [
        ({**NEW, "architecture": "topk", "k": 3}, {"activation": "topk", "k": 3}),
        ({**NEW, "architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}, {"rescaled": True, "k": 3}),
        (
            {**NEW, "architecture": "jumprelu", "apply_b_dec_to_input": False},
            {"activation": "jumprelu", "subtract_b_dec": False},
        ),
        ({**NEW, "architecture": "gated"}, {"activation": "gated"}),
        ({**NEW, "normalize_activations": "constant_norm_rescale"}, {"normalization": "constant_norm_rescale"}),
        (
            {**NEW, "metadata": {**NEW["metadata"], "model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            {"centred": True},
        ),
        ({**OLD, "model_from_pretrained_kwargs": {"center_writing_weights": False}}, {"centred": False}),
        ({**OLD, "hook_point": "blocks.1.attn.hook_z"}, {"at": "blocks.1.attn.hook_z", "has_heads": True}),
        ({**OLD, "hook_point": "blocks.1.attn.hook_z", "hook_point_head_index": 2}, {"head": 2}),
        ({**OLD, "hook_point": "blocks.1.mlp.hook_post", "normalize_activations": False}, {"normalization": "none"}),
        ({**NEW, "dtype": "torch.bfloat16"}, {"at": "blocks.1.hook_resid_pre"}),
    ],
)
def test_fields_of_cfg(tmp_path: Path, cfg: dict[str, Any], fields: dict[str, Any]) -> None:
    sae = pl.sae.load(saelens(tmp_path, cfg, weights(WIDTH, cfg.get("architecture", "relu"))))
    assert {name: getattr(sae.config, name) for name in fields} == fields
    assert sae.W_enc.dtype == (torch.bfloat16 if "bfloat16" in cfg.get("dtype", "") else torch.float32)


KINDS: dict[str, dict[str, Any]] = {
    "relu": {"centred": True},
    "topk": {"activation": "topk", "rescaled": True, "normalization": "layer_norm"},
    "jumprelu": {"activation": "jumprelu", "subtract_b_dec": False},
    "gated": {"activation": "gated", "dtype": torch.float64},
    "heads": {"at": "blocks.1.attn.ckpt_z"},
    "head": {"at": "blocks.1.attn.ckpt_z", "head": 1},
    "half": {"dtype": torch.bfloat16, "about": {"model_name": "gpt2", "context_size": 64}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_again_it_is_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    sae = make(**{"at": "blocks.1.resid_pre", "width": WIDTH, **KINDS[kind]})
    sae.save(tmp_path / "a")
    again = pl.sae.load(tmp_path / "a")
    own, read = dict(sae.named_parameters()), dict(again.named_parameters())
    assert own.keys() == read.keys()
    assert all(torch.equal(own[name], read[name]) and own[name].dtype == read[name].dtype for name in own)
    model = support.glass()
    assert again.place(model.schema) == sae.place(model.schema)
    for name in ("activation", "k", "normalization", "centred", "subtract_b_dec", "rescaled", "head", "has_heads"):
        assert getattr(again.config, name) == getattr(sae.config, name)
    assert sae.config.about.items() <= again.config.about.items()
    again.save(tmp_path / "b")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("ours", "hook"),
    [
        ("blocks.8.resid_pre", "blocks.8.hook_resid_pre"),
        ("blocks.8.attn.ckpt_z", "blocks.8.attn.hook_z"),
        ("blocks.8.mlp.ckpt_mlp_out", "blocks.8.hook_mlp_out"),
        ("blocks.8.attn.ckpt_attn_out", "blocks.8.hook_attn_out"),
        ("blocks.8.ln1.ckpt_normalized", "blocks.8.ln1.hook_normalized"),
        ("blocks.8.mlp.ckpt_post", "blocks.8.mlp.hook_post"),
        ("ckpt_embed", "hook_embed"),
        ("blocks.8.hook_resid_mid", "blocks.8.hook_resid_mid"),
    ],
)
def test_a_saved_folder_names_the_hook_point(tmp_path: Path, ours: str, hook: str) -> None:
    make(ours, WIDTH).save(tmp_path)
    assert json.loads((tmp_path / "cfg.json").read_text())["metadata"]["hook_name"] == hook


def test_a_factor_for_all_inputs_is_multiplied_into_the_weights(tmp_path: Path) -> None:
    cfg = {**NEW, "normalize_activations": "expected_average_only_in"}
    sae = pl.sae.load(saelens(tmp_path, cfg, {n: t.double() for n, t in weights(WIDTH).items()}), input_scale=0.25)
    plain = make("blocks.1.resid_pre", WIDTH, dtype=torch.float32)
    torch.testing.assert_close(sae.encode(X), plain.encode(0.25 * X))
    torch.testing.assert_close(sae.split(X).reconstruction, plain.split(0.25 * X).reconstruction / 0.25)


def test_factors_of_features_are_multiplied_into_their_directions(tmp_path: Path) -> None:
    factor = torch.linspace(0.5, 1.5, F)
    folder = saelens(
        tmp_path, {**OPENAI, "finetuning_scaling_factor": True}, {**weights(WIDTH), "scaling_factor": factor}
    )
    sae, plain = pl.sae.load(folder), make("blocks.1.resid_post", WIDTH, "topk", normalization="layer_norm")
    assert torch.equal(sae.encode(X), plain.encode(X))
    torch.testing.assert_close(sae.split(X).reconstruction, plain.decode(plain.encode(X) * factor, X))
    saelens(tmp_path, OPENAI, {**weights(WIDTH), "scaling_factor": torch.ones(F)})
    assert torch.equal(pl.sae.load(folder).split(X).reconstruction, plain.split(X).reconstruction)


# Other libraries


def sparsify(folder: Path, cfg: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    own = weights(WIDTH)
    tensors = {
        "encoder.weight": own["W_enc"].T.contiguous(),
        "encoder.bias": own["b_enc"],
        "W_dec": own["W_dec"],
        "b_dec": own["b_dec"],
    }
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(
        json.dumps(
            {"expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": 5, "d_in": WIDTH, **(cfg or {})}
        )
    )
    return folder


def test_sparsify(tmp_path: Path) -> None:
    sae = pl.sae.load(sparsify(tmp_path / "transformer.h.1.mlp"))
    assert sae.place(support.glass().schema) == "blocks.1.mlp.ckpt_mlp_out"
    assert torch.equal(sae.split(X).reconstruction, make("blocks.1.resid_pre", WIDTH, "topk").split(X).reconstruction)
    assert pl.sae.load(sparsify(tmp_path / "mine"), at="blocks.0.resid_post").config.at == "blocks.0.resid_post"


def dictionary(folder: Path, kind: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    cfg = {
        "dict_class": kind,
        "layer": 1,
        "lm_name": "openai-community/gpt2",
        "submodule_name": "resid_post_layer_1",
        **trainer,
    }
    (folder / "config.json").write_text(json.dumps({"trainer": cfg, "buffer": {"ctx_len": 128}}))
    return folder


def linear(**more: Tensor) -> dict[str, Tensor]:
    own = weights(WIDTH)
    return {"encoder.weight": own["W_enc"].T.contiguous(), "decoder.weight": own["W_dec"].T.contiguous(), **more}


OWN = weights(WIDTH)
GATED = weights(WIDTH, "gated")
JUMP = weights(WIDTH, "jumprelu")


def _pre(x: Tensor, bias: Tensor) -> Tensor:
    return (x - bias) @ OWN["W_enc"] + OWN["b_enc"]


DICTIONARIES: dict[str, tuple[dict[str, Tensor], dict[str, Any], Any]] = {
    "AutoEncoder": (
        linear(**{"encoder.bias": OWN["b_enc"]}, bias=OWN["b_dec"]),
        {},
        lambda x: _pre(x, OWN["b_dec"]).relu(),
    ),
    "AutoEncoderNew": (
        linear(**{"encoder.bias": OWN["b_enc"], "decoder.bias": OWN["b_dec"]}),
        {},
        lambda x: _pre(x, torch.tensor(0.0)).relu(),
    ),
    "BatchTopKSAE": (
        linear(**{"encoder.bias": OWN["b_enc"]}, b_dec=OWN["b_dec"], k=torch.tensor(5), threshold=torch.tensor(0.6)),
        {"k": 5},
        lambda x: _pre(x, OWN["b_dec"]).relu() * (_pre(x, OWN["b_dec"]).relu() > 0.6),
    ),
    "MatryoshkaBatchTopKSAE": (
        {**OWN, "k": torch.tensor(5), "threshold": torch.tensor(-1.0), "group_sizes": torch.tensor([F])},
        {"k": 5},
        lambda x: _pre(x, OWN["b_dec"]).relu(),
    ),
    "JumpReluAutoEncoder": (
        JUMP,
        {},
        lambda x: (y := x @ JUMP["W_enc"] + JUMP["b_enc"]).relu() * (y > JUMP["threshold"]),
    ),
    "GatedAutoEncoder": (
        {
            "encoder.weight": GATED["W_enc"].T.contiguous(),
            "decoder.weight": GATED["W_dec"].T.contiguous(),
            "decoder_bias": GATED["b_dec"],
            "r_mag": GATED["r_mag"],
            "gate_bias": GATED["b_gate"],
            "mag_bias": GATED["b_mag"],
        },
        {},
        lambda x: (
            (((y := (x - GATED["b_dec"]) @ GATED["W_enc"]) + GATED["b_gate"]) > 0)
            * (GATED["r_mag"].exp() * y + GATED["b_mag"]).relu()
        ),
    ),
    "AutoEncoderTopK": (
        linear(**{"encoder.bias": OWN["b_enc"]}, b_dec=OWN["b_dec"], k=torch.tensor(5), threshold=torch.tensor(-1.0)),
        {"k": 5},
        lambda x: torch.zeros(*x.shape[:-1], F).scatter(
            -1, (t := _pre(x, OWN["b_dec"]).relu().topk(5)).indices, t.values
        ),
    ),
}


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    tensors, trainer, features = DICTIONARIES[kind]
    sae = pl.sae.load(dictionary(tmp_path, kind, tensors, **trainer), model=None)
    assert sae.config.at == "blocks.1.resid_post"
    expected = features(X)
    torch.testing.assert_close(sae.encode(X), expected)
    directions = GATED["W_dec"] if "Gated" in kind else JUMP["W_dec"] if "Jump" in kind else OWN["W_dec"]
    bias = GATED["b_dec"] if "Gated" in kind else JUMP["b_dec"] if "Jump" in kind else OWN["b_dec"]
    torch.testing.assert_close(sae.split(X).reconstruction, expected @ directions + bias)
    assert pl.sae.load(tmp_path / "ae.pt", at="blocks.0.resid_pre").config.at == "blocks.0.resid_pre"


def test_kissane_s(tmp_path: Path) -> None:
    torch.save(weights(WIDTH), tmp_path / "gpt2-small_L1_Hcat_z_v9.pt")
    cfg = {"act_name": "blocks.1.attn.hook_z", "act_size": WIDTH, "dict_size": F, "model_name": "gpt2-small"}
    (tmp_path / "gpt2-small_L1_Hcat_z_v9_cfg.json").write_text(json.dumps(cfg))
    sae = pl.sae.load(tmp_path / "gpt2-small_L1_Hcat_z_v9.pt")
    heads = X.reshape(3, 4, 4, 6)
    assert torch.equal(sae.encode(heads), make("blocks.1.resid_pre", WIDTH).encode(X))
    assert sae.split(heads).error.shape == heads.shape


# What is refused


def wrong(call: Any, code: str, *words: str) -> None:
    with pytest.raises(pl.PellucidError) as caught:
        call()
    assert caught.value.code == code
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("cfg", "code", "words"),
    [
        ({**NEW, "architecture": "matching_pursuit"}, "sae-not-supported", ["'matching_pursuit'"]),
        ({**NEW, "architecture": "batchtopk", "k": 3}, "sae-not-supported", ["'batchtopk'"]),
        ({**NEW, "architecture": "transcoder"}, "sae-not-supported", ["transcoder"]),
        ({**NEW, "architecture": "topk"}, "sae-config", ["'k'"]),
        ({**NEW, "architecture": "topk", "k": "five"}, "sae-config", ["'five'"]),
        ({**NEW, "architecture": "topk", "k": F + 1}, "sae-tensors", ["k=41"]),
        ({**NEW, "architecture": 3}, "sae-config", ["architecture"]),
        ({**NEW, "architecture": None}, "sae-config", ["architecture", "missing"]),
        ({**NEW, "activation_fn": "tanh-relu"}, "sae-not-supported", ["'tanh-relu'"]),
        ({**NEW, "normalize_activations": "covariance_whitening"}, "sae-not-supported", ["'covariance_whitening'"]),
        ({**NEW, "normalize_activations": {"a": 1}}, "sae-not-supported", ["{'a': 1}"]),
        ({**NEW, "normalize_activations": "expected_average_only_in"}, "sae-input-scale", ["input_scale"]),
        ({**NEW, "reshape_activations": "hook_z"}, "sae-config", ["no heads"]),
        ({**NEW, "apply_b_dec_to_input": "yes"}, "sae-config", ["'yes'"]),
        ({**NEW, "dtype": "int8"}, "sae-config", ["'int8'"]),
        ({**NEW, "dtype": ["float32"]}, "sae-config", ["dtype"]),
        ({**NEW, "d_in": 768}, "sae-config", ["768"]),
        ({**NEW, "d_sae": True}, "sae-config", ["d_sae"]),
        ({**NEW, "metadata": []}, "sae-config", ["metadata"]),
        ({**NEW, "metadata": {"sae_lens_version": "6.0.0"}}, "sae-place", ["at="]),
        ({**NEW, "metadata": {**NEW["metadata"], "hook_name": 3}}, "sae-config", ["hook_name"]),
        (
            {**NEW, "metadata": {**NEW["metadata"], "hook_name_out": "blocks.1.hook_mlp_out"}},
            "sae-not-supported",
            ["transcoder"],
        ),
        ({**NEW, "metadata": {**NEW["metadata"], "hook_head_index": 1}}, "sae-config", ["no heads"]),
        (
            {**OLD, "hook_point": "blocks.1.attn.hook_z", "model_from_pretrained_kwargs": {"fold_value_biases": True}},
            "sae-not-supported",
            ["fold_value_biases"],
        ),
        (OLD, "sae-centring", ["centred=True"]),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, cfg: dict[str, Any], code: str, words: list[str]
) -> None:
    wrong(lambda: pl.sae.load(saelens(tmp_path, cfg)), code, *words)


@pytest.mark.parametrize("flag", ["transcode", "skip_connection", "signed"])
def test_variants_of_sparsify_are_refused(tmp_path: Path, flag: str) -> None:
    wrong(lambda: pl.sae.load(sparsify(tmp_path / "h.1", {flag: True})), "sae-not-supported", flag)
    wrong(lambda: pl.sae.load(sparsify(tmp_path / "h.1", {"activation": "groupmax"})), "sae-not-supported", "groupmax")
    wrong(lambda: pl.sae.load(sparsify(tmp_path / "mine")), "sae-place")


def test_variants_of_dictionary_learning_are_refused(tmp_path: Path) -> None:
    tensors = DICTIONARIES["AutoEncoderTopK"][0]
    wrong(lambda: pl.sae.load(dictionary(tmp_path, "CrossCoder", tensors)), "sae-not-supported", "CrossCoder")
    wrong(lambda: pl.sae.load(dictionary(tmp_path, "AutoEncoderTopK", tensors)), "sae-config", "'k' is missing")
    wrong(lambda: pl.sae.load(dictionary(tmp_path, "AutoEncoderTopK", tensors, k=6)), "sae-config", "'k' is 6", "say 5")
    wrong(
        lambda: pl.sae.load(
            dictionary(tmp_path, "AutoEncoder", DICTIONARIES["AutoEncoder"][0], submodule_name="x_layer_1")
        ),
        "sae-place",
    )
    (tmp_path / "ae.pt").write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    wrong(lambda: pl.sae.load(tmp_path), "format-not-supported", "pickle")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    wrong(lambda: pl.sae.load(tmp_path / "nowhere"), "path-not-found")
    wrong(lambda: pl.sae.load(tmp_path), "sae-not-found", "sae_weights.safetensors")
    folder = saelens(tmp_path / "blocks.1.hook_resid_pre", NEW)
    wrong(lambda: pl.sae.load(tmp_path), "sae-not-found", str(folder))
    whole, cfg = (folder / "sae_weights.safetensors").read_bytes(), (folder / "cfg.json").read_bytes()
    assert pl.sae.load(folder / "cfg.json").n_features == F
    for damage, code in (
        (whole[:-100], "safetensors-damaged"),
        (b"", "file-truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "format-not-supported"),
    ):
        (folder / "sae_weights.safetensors").write_bytes(damage)
        wrong(lambda: pl.sae.load(folder), code)
    (folder / "sae_weights.safetensors").write_bytes(whole)
    for damage, code in (
        (cfg[:-9], "config-not-json"),
        (b"[1]", "config-not-json"),
        (b"version https://git-lfs.github.com/spec/v1", "format-not-supported"),
    ):
        (folder / "cfg.json").write_bytes(damage)
        wrong(lambda: pl.sae.load(folder), code)
    (folder / "cfg.json").unlink()
    wrong(lambda: pl.sae.load(folder), "sae-not-found", "no cfg.json")
    (folder / "cfg.json").mkdir()
    wrong(lambda: pl.sae.load(folder), "path-not-regular")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    own = weights(WIDTH)
    several = {
        "b_dec is missing": {n: t for n, t in own.items() if n != "b_dec"},
        "W_skip is not used": {**own, "W_skip": torch.zeros(2)},
        "W_dec is [24, 40]": {**own, "W_dec": own["W_enc"].clone()},
        "b_enc is [1]": {**own, "b_enc": torch.zeros(1)},
        "W_enc is [40]": {**own, "W_enc": torch.zeros(F)},
    }
    for word, tensors in several.items():
        wrong(lambda tensors=tensors: pl.sae.load(saelens(tmp_path, NEW, tensors)), "sae-tensors", word)
    scaled = {**OPENAI, "finetuning_scaling_factor": True}
    for factor in (torch.tensor(2.0), torch.rand(F + 1)):
        tensors = {**own, "scaling_factor": factor}
        wrong(lambda tensors=tensors: pl.sae.load(saelens(tmp_path, scaled, tensors)), "sae-config", "scaling_factor")
    alone = {"scaling_factor": torch.rand(F), "b_dec": own["b_dec"]}
    wrong(lambda: pl.sae.load(saelens(tmp_path, scaled, alone)), "sae-config", "scaling_factor")
    jumps = {"several numbers": ({**OWN, "threshold": torch.rand(3)}, "threshold is [3]"),
             "no bias": ({n: t for n, t in JUMP.items() if n != "b_enc"}, "b_enc is missing")}  # fmt: skip
    for name, (tensors, word) in jumps.items():
        folder = dictionary(tmp_path / name, "BatchTopKSAE", tensors, k=5)
        wrong(lambda folder=folder: pl.sae.load(folder), "sae-tensors", word)
    several_k = dictionary(tmp_path / "k", "AutoEncoderTopK", {**OWN, "k": torch.tensor([5, 6])}, k=5)
    wrong(lambda: pl.sae.load(several_k), "sae-config", "5, 6")
    own["W_dec"][3, 2] = torch.nan
    wrong(lambda: pl.sae.load(saelens(tmp_path, NEW, own)), "sae-not-finite", "W_dec")
    broken = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.1.resid_pre"), own)
    wrong(lambda: broken.save(tmp_path / "new"), "sae-not-finite", "W_dec")
    assert not (tmp_path / "new").exists()


def test_an_autoencoder_of_another_model(tmp_path: Path) -> None:
    folder, model = saelens(tmp_path, NEW), support.glass()
    wrong(lambda: pl.sae.load(folder, model=model), "sae-width", "24", "[48]")
    wrong(lambda: pl.sae.load(folder, model=model, at="blocks.9.resid_pre"), "unknown-checkpoint", "blocks.9.resid_pre")
    make("blocks.1.attn.ckpt_z", 12, head=2, about={"model_name": "gpt2-small"}).save(tmp_path / "fits")
    for source, warned in (
        ("openai-community/gpt2", False),
        ("/models/gpt2-small/", False),
        ("pythia-70m", True),
        ("", False),
    ):
        model.provenance["source"] = source
        with warnings.catch_warnings(record=True, action="always") as seen:
            assert pl.sae.load(tmp_path / "fits", model=model).config.head == 2
        assert [type(w.message) for w in seen] == [pl.PellucidWarning] * warned
        assert all("'gpt2-small'" in str(w.message) and w.filename == __file__ for w in seen)


def test_saving_writes_whole_files(tmp_path: Path) -> None:
    sae = make("blocks.1.resid_pre", WIDTH)
    sae.save(tmp_path / "a" / "b")
    before = load_file(tmp_path / "a" / "b" / "sae_weights.safetensors")
    assert {name: list(t.shape) for name, t in before.items()} == {
        "W_enc": [WIDTH, F],
        "W_dec": [F, WIDTH],
        "b_enc": [F],
        "b_dec": [WIDTH],
    }
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").write_text("a file")
    wrong(lambda: sae.save(tmp_path / "a"), "path-not-writable")
