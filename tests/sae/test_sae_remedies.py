"""Each wrong call about autoencoders is refused, and what its remedy says is done and works."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoencoders import F, make, weights
from safetensors.torch import save_file

import pellucid as pl
import samples
import support
from following import Case, follow, params

Here = SimpleNamespace
AT = "blocks.1.hook_resid_pre"
WIDTH = support.SIZES["n_embd"]
IDS = support.some_ids(2, 5, vocab_size=samples.VOCABULARY)
NEW = {
    "architecture": "standard",
    "d_in": WIDTH,
    "d_sae": F,
    "dtype": "float32",
    "metadata": {"sae_lens_version": "6.0.0", "hook_name": AT},
}


def _load(here: Here, cfg: dict[str, Any] | None = None, tensors: Any = None, **more: Any) -> Any:
    """Write a folder of SAELens, and open it."""
    save_file(weights(WIDTH) if tensors is None else tensors, here.path / "sae_weights.safetensors")
    (here.path / "cfg.json").write_text(json.dumps({**NEW, **(cfg or {})}))
    return pl.sae.load(here.path, **more)


def _alone(here: Here, name: str) -> Any:
    """A folder that lacks a file."""
    _load(here)
    (here.path / name).unlink()
    return pl.sae.load(here.path)


def _inside(here: Here) -> Any:
    make(AT, WIDTH).save(here.path / "all" / "blocks.1")
    return pl.sae.load(here.path / "all")


def _ckpts(here: Here, **more: Any) -> Any:
    return here.model.run_with_ckpts(IDS, **more)[1]


def _changed(sae: pl.sae.SparseAutoencoder) -> pl.sae.SparseAutoencoder:
    folded = sae.fold_decoder_norm()
    with torch.no_grad():
        folded.b_dec += 1
    return folded


def _nan() -> dict[str, torch.Tensor]:
    return {**weights(WIDTH), "b_enc": torch.full((F,), torch.nan)}


X = torch.randn(3, WIDTH)
TOPK = make(AT, WIDTH, "topk")
RELU = make(AT, WIDTH)
NORMED = make(AT, WIDTH, normalization="layer_norm")
FOLDED_CFG = {
    "metadata": {
        **NEW["metadata"],
        "hook_name": "blocks.1.attn.hook_z",
        "model_from_pretrained_kwargs": {"fold_value_biases": True},
    }
}
UNFOLDED_CFG = {"metadata": {**FOLDED_CFG["metadata"], "model_from_pretrained_kwargs": {}}}

REMEDIES: dict[str, list[Case]] = {
    "sae-config": [
        Case(lambda h: pl.sae.SaeConfig(AT, "tanh"), "Give one of", lambda h: pl.sae.SaeConfig(AT, "relu")),  # type: ignore[arg-type]
        Case(lambda h: pl.sae.SaeConfig(AT, "topk"), "Give one of", lambda h: pl.sae.SaeConfig(AT, "topk", k=3)),
        Case(lambda h: pl.sae.SaeConfig(AT, k=3), "Give one of", lambda h: pl.sae.SaeConfig(AT)),
        Case(lambda h: pl.sae.SaeConfig(AT, "topk", k=0), "1 or more", lambda h: pl.sae.SaeConfig(AT, "topk", k=1)),
        Case(
            lambda h: pl.sae.SaeConfig(AT, head=1), "Give one of", lambda h: pl.sae.SaeConfig("blocks.1.hook_z", head=1)
        ),
        Case(lambda h: pl.sae.SaeConfig(AT, centred=1), "Give one of", lambda h: pl.sae.SaeConfig(AT, centred=True)),  # type: ignore[arg-type]
        Case(lambda h: pl.sae.SaeConfig(""), "Give one of", lambda h: pl.sae.SaeConfig(AT)),
        Case(lambda h: pl.sae.SaeConfig("resid_pre"), "Give one of", lambda h: pl.sae.SaeConfig("blocks.8.resid_pre")),
        Case(lambda h: pl.sae.SaeConfig("blocks.1.attn.hook_pattern"), "Give one of", lambda h: pl.sae.SaeConfig(AT)),
        Case(lambda h: _load(h, centred="yes"), "Give one of", lambda h: _load(h, centred=True)),
        Case(lambda h: _load(h, {"d_in": "48"}), "Correct the file", lambda h: _load(h, {"d_in": 48})),
        Case(lambda h: _load(h, {"d_in": 768}), "the same autoencoder", _load),
        Case(
            lambda h: _load(h, {"architecture": "topk"}),
            "Put 'k' into",
            lambda h: _load(h, {"architecture": "topk", "k": 3}),
        ),
    ],
    "sae-not-supported": [
        Case(lambda h: _load(h, {"architecture": "temporal"}), "('standard', 'topk'", _load),
        Case(
            lambda h: _load(h, {"activation_fn": "tanh"}),
            "pl.sae.SparseAutoencoder(pl.sae.SaeConfig(at, kind), tensors)",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT, "relu"), weights(WIDTH)),
        ),
        Case(lambda h: _load(h, {"architecture": "transcoder"}), "Give an autoencoder", _load),
        Case(
            lambda h: _load(h, FOLDED_CFG),
            "pl.fold(model, ...).model",
            lambda h: pl.fold(h.model, fold_value_biases=True).model.run(IDS, edits=_load(h, UNFOLDED_CFG).zero(3)),
        ),
    ],
    "sae-input-scale": [
        Case(
            lambda h: _load(h, {"normalize_activations": "expected_average_only_in"}),
            "pl.sae.load(path, input_scale=",
            lambda h: _load(h, {"normalize_activations": "expected_average_only_in"}, input_scale=0.5),
        ),
        Case(
            lambda h: _load(h, {"normalize_activations": True}, input_scale=-1),
            "pl.sae.load(path, input_scale=",
            lambda h: _load(h, {"normalize_activations": True}, input_scale=1),
        ),
    ],
    "sae-centring": [
        Case(
            lambda h: _load(h, {"metadata": {}, "hook_point": AT}),
            f"{said}",
            lambda h, value=value: _load(h, {"metadata": {}, "hook_point": AT}, centred=value),
        )
        for said, value in (("centred=True", True), ("centred=False", False))
    ],
    "sae-place": [
        Case(
            lambda h: _load(h, {"metadata": {"sae_lens_version": "6.0.0"}}),
            "pl.sae.load(path, at='blocks.8.resid_pre')",
            lambda h: _load(h, {"metadata": {"sae_lens_version": "6.0.0"}}, at="blocks.8.resid_pre"),
        )
    ],
    "sae-not-found": [
        Case(lambda h: _alone(h, "cfg.json"), "Download cfg.json into the folder", _load),
        Case(lambda h: _alone(h, "sae_weights.safetensors"), "Give a folder with these files", _load),
        Case(_inside, "/all/blocks.1'", lambda h: pl.sae.load(h.path / "all" / "blocks.1")),
    ],
    "sae-not-finite": [
        Case(lambda h: _load(h, None, _nan()), "Download the file again", _load),
        Case(
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), _nan()).save(h.path / "saved"),
            "an earlier step",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), weights(WIDTH)).save(h.path / "saved"),
        ),
    ],
    "sae-tensors": [
        Case(
            lambda h: pl.sae.SparseAutoencoder({"at": AT}, weights(WIDTH)),
            "the tensors that are expected",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), weights(WIDTH)),
        ),
        Case(
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), {n: t.numpy() for n, t in weights(WIDTH).items()}),
            "the tensors that are expected",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), weights(WIDTH)),
        ),
        Case(
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), {}),
            "the tensors that are expected",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), weights(WIDTH)),
        ),
        Case(
            lambda h: pl.sae.SparseAutoencoder(
                pl.sae.SaeConfig(AT), {**weights(WIDTH), "b_dec": torch.zeros(WIDTH).long()}
            ),
            "the tensors that are expected",
            lambda h: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(AT), weights(WIDTH)),
        ),
    ],
    "sae-width": [
        Case(
            lambda h: RELU.decode(RELU.encode(X)[..., :-1]), "with zeros where", lambda h: RELU.decode(RELU.encode(X))
        ),
        Case(lambda h: RELU.encode(X.numpy()), "values of its checkpoint", lambda h: RELU.encode(X)),
        Case(
            lambda h: RELU.decode(None),
            "with zeros where",
            lambda h: RELU.decode(RELU.encode(X)),  # type: ignore[arg-type]
        ),
        Case(
            lambda h: RELU.prove_fold(RELU.fold_decoder_norm(), None),  # type: ignore[arg-type]
            "values of its checkpoint",
            lambda h: RELU.prove_fold(RELU.fold_decoder_norm(), torch.zeros_like(X)),
        ),
        Case(lambda h: RELU.encode(X[:, 1:]), "values of its checkpoint", lambda h: RELU.encode(X)),
        Case(lambda h: RELU.encode(torch.tensor(1.0)), "values of its checkpoint", lambda h: RELU.encode(X)),
        Case(
            lambda h: _load(h, at="blocks.1.mlp.ckpt_post", model=h.model),
            "names another checkpoint",
            lambda h: _load(h, at="blocks.1.resid_post", model=h.model),
        ),
        Case(
            lambda h: make("blocks.1.hook_z", 12).features(_ckpts(h)),
            "the model that the autoencoder was trained on",
            lambda h: make("blocks.1.hook_z", WIDTH).features(_ckpts(h)),
        ),
    ],
    "sae-decode-input": [
        Case(
            lambda h: NORMED.decode(NORMED.encode(X)),
            "sae.decode(features, x)",
            lambda h: NORMED.decode(NORMED.encode(X), X),
        )
    ],
    "sae-fold": [
        Case(
            lambda h: TOPK.fold_decoder_norm(),
            "sae.W_dec.norm(dim=-1)",
            lambda h: TOPK.encode(X) * TOPK.W_dec.norm(dim=-1),
        )
    ],
    "sae-fold-differs": [
        Case(
            lambda h: RELU.prove_fold(None, X),  # type: ignore[arg-type]
            "sae.fold_decoder_norm()",
            lambda h: RELU.prove_fold(RELU.fold_decoder_norm(), X),
        ),
        Case(
            lambda h: RELU.prove_fold(_changed(RELU), X),
            "sae.fold_decoder_norm()",
            lambda h: RELU.prove_fold(RELU.fold_decoder_norm(), X),
        ),
    ],
    "sae-not-in-the-stream": [
        Case(
            lambda h: pl.sae.direct(make("blocks.1.attn.hook_q", WIDTH), _ckpts(h), 5),
            "of the stream or of what is added to it",
            lambda h: pl.sae.direct(make("blocks.1.hook_attn_out", WIDTH), _ckpts(h), 5),
        ),
        Case(
            lambda h: pl.sae.direct(make("blocks.2.resid_pre", WIDTH), _ckpts(h), X[0], at="blocks.0.resid_post"),
            "a place at= that comes after it",
            lambda h: pl.sae.direct(make("blocks.2.resid_pre", WIDTH), _ckpts(h), X[0], at="blocks.2.resid_post"),
        ),
    ],
    "sae-and-model": [
        Case(
            lambda h: pl.sae.direct(None, _ckpts(h), 5),  # type: ignore[arg-type]
            "Give the SparseAutoencoder first",
            lambda h: pl.sae.direct(RELU, _ckpts(h), 5),
        ),
        Case(lambda h: _load(h, model="gpt2"), "pl.load returned", lambda h: _load(h, model=h.model)),
        Case(
            lambda h: pl.sae.evaluate(h.model, RELU, IDS),
            "Give the SparseAutoencoder first",
            lambda h: pl.sae.evaluate(RELU, h.model, IDS),
        ),
        Case(
            lambda h: pl.sae.ablate(h.model, RELU, IDS, metric=pl.metrics.logit(3)),
            "Give the SparseAutoencoder first",
            lambda h: pl.sae.ablate(RELU, h.model, IDS, metric=pl.metrics.logit(3)),
        ),
    ],
    "not-ckpts": [Case(lambda h: RELU.features(X), "that run_with_ckpts returned", lambda h: RELU.features(_ckpts(h)))],
    "device-not-available": [Case(lambda h: _load(h, device="zzz"), "device='cpu'", lambda h: _load(h, device="cpu"))],
    "sae-no-tokens": [
        Case(
            lambda h: pl.sae.evaluate(RELU, h.model, IDS, skip=5),
            "leave skip= out",
            lambda h: pl.sae.evaluate(RELU, h.model, IDS),
        )
    ],
    "index-out-of-range": [
        Case(lambda h: RELU.zero(F), "Choose entries that exist", lambda h: RELU.zero(F - 1)),
        Case(lambda h: RELU.set([], 1.0), "Choose entries that exist", lambda h: RELU.set([0], 1.0)),
        Case(
            lambda h: pl.sae.ablate(RELU, h.model, IDS, metric=pl.metrics.logit(3), features="a"),
            "Choose entries that exist",
            lambda h: pl.sae.ablate(RELU, h.model, IDS, metric=pl.metrics.logit(3), features=0),
        ),
    ],
    "edit-misfit": [
        Case(
            lambda h: h.model.run(IDS, edits=RELU.set([1, 2], torch.zeros(3))),
            "shape of the part that is edited",
            lambda h: h.model.run(IDS, edits=RELU.set([1, 2], torch.zeros(2, 5, 2))),
        ),
        Case(
            lambda h: h.model.run(IDS, edits=RELU.edit([1, 2], lambda part: part[0, 0, 0, None].long())),
            "shape of the part that is edited",
            lambda h: h.model.run(IDS, edits=RELU.edit([1, 2], lambda part: part + 1)),
        ),
    ],
    "edit-never-fired": [
        Case(
            lambda h: h.model.run_with_ckpts(IDS, edits=RELU.zero(1), names="ckpt_embed", stop_at="blocks.0.resid_pre"),
            "choose others",
            lambda h: h.model.run_with_ckpts(IDS, edits=RELU.zero(1), names="ckpt_embed"),
        )
    ],
    "not-captured": [
        Case(
            lambda h: RELU.features(_ckpts(h, names="ckpt_embed")),
            "names= of run_with_ckpts",
            lambda h: RELU.features(_ckpts(h, names=AT)),
        ),
        Case(
            lambda h: pl.sae.direct(RELU, _ckpts(h, names=AT), 5),
            "names=['blocks.2.resid_post', 'blocks.1.resid_pre']",
            lambda h: pl.sae.direct(RELU, _ckpts(h, names=["blocks.2.resid_post", "blocks.1.resid_pre"]), 5),
        ),
    ],
    "attribution-of-some-heads": [
        Case(
            lambda h: make("blocks.1.hook_z", WIDTH).features(_ckpts(h, heads=[0, 1])),
            "Capture without heads=",
            lambda h: make("blocks.1.hook_z", WIDTH).features(_ckpts(h)),
        )
    ],
}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(path=tmp_path, model=samples.shared("gpt2"))


@pytest.mark.parametrize(("code", "case"), params(REMEDIES))
def test_what_a_remedy_says_works(code: str, case: Case, here: Here) -> None:
    follow(code, case, here)


def test_the_largest_of_more_features_than_there_are_is_refused(here: Here) -> None:
    with pytest.raises(pl.InputError, match=re.escape(f"from 1 to {F}")):
        RELU.top(_ckpts(here, names=AT), F + 1)
