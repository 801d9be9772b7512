"""What is GPT-NeoX's own in weights and live models: its head's names, older files' buffers, constants of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
import samples

IDS = samples.some_ids(2, 9)
LAYER = "gpt_neox.layers.{}.attention"


@torch.no_grad()
def same_logits(ours: Any, hf: Any) -> bool:
    return torch.equal(ours(IDS), hf(IDS).logits)


def test_both_names_of_the_head_are_read() -> None:
    ours, hf = samples.pair("gpt_neox")
    modules = dict(hf.state_dict())
    files = {name.replace("lm_head", "embed_out"): tensor for name, tensor in modules.items()}
    bare = {name.removeprefix("gpt_neox."): tensor for name, tensor in modules.items()}
    wrapped = {f"model.{name}": tensor for name, tensor in files.items()}
    for given in (modules, files, bare, wrapped):
        assert same_logits(pl.load(given, config=ours.config), hf)
    with pytest.raises(pl.WeightsError, match=r"no (embed_out|lm_head)\.weight") as caught:
        pl.load({name: tensor for name, tensor in files.items() if "embed_out" not in name}, config=ours.config)
    assert caught.value.code == "head-missing"


def test_buffers_of_older_files_are_dropped() -> None:
    ours, hf = samples.pair("gpt_neox")
    old = {
        name: tensor
        for i in range(3)
        for name, tensor in {
            f"{LAYER.format(i)}.bias": torch.ones(64, 64, dtype=torch.bool).tril()[None, None],
            f"{LAYER.format(i)}.masked_bias": torch.tensor(-1e9),
            f"{LAYER.format(i)}.rotary_emb.inv_freq": torch.ones(2),
        }.items()
    }
    assert same_logits(pl.load({**hf.state_dict(), **old}, config=ours.config), hf)
    wrong = {f"{LAYER.format(0)}.bias": torch.ones(1, 1, 9, 9)}
    with pytest.raises(pl.WeightsError, match="a mask that is not the causal one"):
        pl.load({**hf.state_dict(), **wrong}, config=ours.config)


def test_parameters_are_those_of_the_contract() -> None:
    ours, hf = samples.pair("gpt_neox")
    shapes = {name: list(ours.parameter(name).shape) for name in ours.parameter_names}
    assert shapes["blocks.1.attn.W_Q"] == shapes["blocks.1.attn.W_V"] == [3, 48, 16]
    assert shapes["blocks.1.attn.W_O"] == [3, 16, 48]
    assert shapes["blocks.1.attn.b_K"] == [3, 16]
    assert shapes["blocks.1.mlp.W_in"] == [48, 41]
    rows = hf.gpt_neox.layers[1].attention.query_key_value
    for number, letter in enumerate("QKV"):
        mine = ours.parameter(f"blocks.1.attn.W_{letter}")
        assert torch.equal(mine[2], rows.weight[2 * 48 + 16 * number :][:16].t())
        assert torch.equal(ours.parameter(f"blocks.1.attn.b_{letter}")[2], rows.bias[2 * 48 + 16 * number :][:16])
        with torch.no_grad():
            mine[1].zero_()
        assert not ours.blocks[1].attn.W_QKV[:, 48 + 16 * number :][:, :16].any(), "the view is not live"
    assert pl.count_parameters(ours).unique == sum(p.numel() for p in hf.parameters())


DIFFERS = "hf-differs-from-config"

REFUSED: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "epsilon": (
        lambda hf: setattr(hf.gpt_neox.layers[1].input_layernorm, "eps", 0.5), DIFFERS, "input_layernorm.eps is 0.5",
    ),
    "another residual": (
        lambda hf: setattr(hf.gpt_neox.layers[2], "use_parallel_residual", False),
        DIFFERS, "layers.2.use_parallel_residual is False",
    ),
    "scaling": (lambda hf: setattr(hf.gpt_neox.layers[0].attention, "scaling", 1.0), DIFFERS, "scaling"),
    "frequencies": (lambda hf: hf.gpt_neox.rotary_emb.inv_freq.mul_(0.5), DIFFERS, "other frequencies"),
    "activation": (lambda hf: setattr(hf.gpt_neox.layers[0].mlp, "act", nn.ReLU()), DIFFERS, "ReLU"),
    "layer number": (lambda hf: setattr(hf.gpt_neox.layers[2].attention, "layer_idx", 1), DIFFERS, "layer_idx is 1"),
    "dropouts of several rates": (
        lambda hf: hf.train().gpt_neox.emb_dropout.__setattr__("p", 0.5), "hf-dropout", "hidden_dropout",
    ),
    "a hook": (lambda hf: hf.gpt_neox.layers[1].register_forward_hook(lambda *_: None), "hf-hooks", "layers.1"),
    "a bias of the head": (
        lambda hf: setattr(hf.lm_head, "bias", nn.Parameter(torch.ones(61))), "hf-head", "without bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_live_models_are_refused_by_name(case: str) -> None:
    change, code, said = REFUSED[case]
    hf = samples.reference("gpt_neox")
    change(hf)
    with pytest.raises(pl.PellucidError, match=said) as caught:
        pl.from_hf(hf)
    assert caught.value.code == code


CARRIED: dict[str, Callable[[Any], Any]] = {
    "fewer blocks": lambda hf: setattr(hf.gpt_neox, "layers", hf.gpt_neox.layers[:2]),
    "tied afterwards": lambda hf: setattr(hf.lm_head, "weight", hf.gpt_neox.embed_in.weight),
    "more tokens": lambda hf: hf.resize_token_embeddings(70),
    "rates of the modules": lambda hf: [m.__setattr__("p", 0.5) for m in hf.modules() if isinstance(m, nn.Dropout)],
    "frequencies that are rounded": lambda hf: hf.to(torch.bfloat16),
}


@pytest.mark.parametrize("case", CARRIED)
def test_live_models_are_carried_over(case: str) -> None:
    hf = samples.reference("gpt_neox")
    CARRIED[case](hf)
    ours = pl.from_hf(hf)
    assert same_logits(ours, hf)
    assert same_logits(ours, pl.to_hf(ours))


@pytest.mark.parametrize("parallel", [True, False])
def test_what_agreement_notices_names_the_checkpoint(parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.weights.living.require_as_configured", lambda *_: None)
    hf = samples.reference("gpt_neox", use_parallel_residual=parallel)
    hf.gpt_neox.layers[1].post_attention_layernorm.eps = 0.5
    with pytest.raises(pl.WeightsError, match=r"blocks\.1\.ln2\.ckpt_normalized") as caught:
        pl.from_hf(hf)
    assert caught.value.code == "hf-computes-otherwise"


def test_names_of_other_libraries() -> None:
    model = samples.glass("gpt_neox")
    for alias, name in (
        ("gpt_neox.layers.1.mlp.act", "blocks.1.mlp.ckpt_post"), ("gpt_neox.embed_in", "ckpt_embed"),
        ("layers.2.post_attention_dropout", "blocks.2.attn.ckpt_attn_out"), ("layers.0", "blocks.0.resid_post"),
        ("blocks.0.attn.hook_rot_q", "blocks.0.attn.ckpt_rot_q"), (("rot_k", 0), "blocks.0.attn.ckpt_rot_k"),
        ("gpt_neox.final_layer_norm", "ln_final.ckpt_normalized"),
    ):  # fmt: skip
        assert [*model.run_with_ckpts(IDS, names=[alias])[1]] == [name]
    for refused in ("gpt_neox.layers.0.attention", "layers.0.attention.query_key_value", "blocks.0.ln1.hook_scale"):
        with pytest.raises(pl.UnknownNameError, match="not the same value"):
            model.run_with_ckpts(IDS, names=[refused])
    for missing in ("ckpt_pos_embed", "blocks.0.resid_mid", "blocks.0.mlp.ckpt_gate"):
        with pytest.raises(pl.UnknownNameError):
            model.run_with_ckpts(IDS, names=missing)
    with pytest.raises(pl.UnknownAttributeError, match="another library") as caught:
        _ = model.blocks[1].hook_resid_mid
    assert "model.blocks[1].resid_pre and model.blocks[1].attn.ckpt_attn_out" in caught.value.remedy


@pytest.mark.parametrize("bias", [True, False])
def test_every_parameter_that_is_named_can_be_had(bias: bool) -> None:
    model = samples.glass("gpt_neox", attention_bias=bias)
    assert set(model.parameter_names) == {parameter.name for parameter in model.schema.parameters}
    assert all(model.parameter(name).numel() for name in model.parameter_names)
