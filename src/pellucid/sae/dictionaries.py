"""Autoencoders as sparsify, dictionary_learning and Kissane et al. store them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.sae.sae_config import Activation, SaeConfig
from pellucid.sae.saelens import Description, Overrides, no_place

_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}

_CLASSES: Mapping[str, tuple[Activation, bool, Mapping[str, str]]] = {
    "AutoEncoder": ("relu", True, {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("relu", False, {**_LINEAR, "decoder.bias": "b_dec"}),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True, {}),
    "JumpReluAutoEncoder": ("jumprelu", False, {}),
    "GatedAutoEncoder": ("gated", True, {
        "encoder.weight": "W_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "r_mag": "r_mag",
        "gate_bias": "b_gate", "mag_bias": "b_mag"}),
}  # fmt: skip
"""Class of dictionary_learning -> its activation, whether b_dec is taken off the input, and its tensors' names.

A batch top-k has one threshold at inference, which is a jumprelu's. Names that are ours are left out.
"""

_OF_TRAINING = ("k", "threshold", "group_sizes")
"""What the files hold beside the weights of the classes that do not use it."""

_PLACES = {
    "resid_post": "resid_post", "resid_pre": "resid_pre",
    "mlp_out": "mlp.ckpt_mlp_out", "mlp": "mlp.ckpt_mlp_out",
    "attention_out": "attn.ckpt_attn_out", "attn_out": "attn.ckpt_attn_out", "attn": "attn.ckpt_attn_out",
}  # fmt: skip
"""How dictionary_learning's `submodule_name` begins -> the checkpoint."""


def of_sparsify(
    path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Overrides
) -> tuple[SaeConfig, dict[str, Tensor]]:
    """Read sparsify's: a topk, in a folder that is called by the module whose output it is of."""
    fields = Description(path, cfg)
    for name in ("transcode", "skip_connection", "signed"):
        if fields.get(name, bool, False):
            raise fields.refused(f"{name!r} is true")
    if (activation := fields.get("activation", str, "topk")) != "topk":
        raise fields.refused(f"activation {activation!r}")
    module = path.parent.name
    at = overrides.at or (module if re.search(r"(^|\.)(h|layers|blocks)\.\d+", module) else "")
    if not at:
        raise no_place(path)
    config = SaeConfig(at, "topk", fields.get("k", int), centred=overrides.centred or False)
    return config, _renamed(tensors, {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}, {"encoder.weight"})


def of_dictionary_learning(
    path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Overrides
) -> tuple[SaeConfig, dict[str, Tensor]]:
    """Read dictionary_learning's, whose `config.json` names the class."""
    whole = Description(path, cfg)
    fields = Description(path, whole.get("trainer", dict))
    named = fields.get("dict_class", str)
    if named not in _CLASSES:
        raise whole.refused(f"the class {named!r}")
    activation, subtracts, names = _CLASSES[named]
    at, submodule = overrides.at, re.sub(r"_layer_?\d+$", "", fields.get("submodule_name", str, ""))
    if at is None:
        if submodule not in _PLACES:
            raise no_place(path)
        at = f"blocks.{fields.get('layer', int)}.{_PLACES[submodule]}"
    found = _renamed(tensors, names, {"encoder.weight", "decoder.weight"})
    if activation == "jumprelu" and "threshold" in found:
        # one number for all features; -1 before it was ever measured, when every positive number is above it
        found["threshold"] = found["threshold"].clamp(min=0.0).expand(len(found["b_enc"])).to(found["b_enc"]).clone()
    k = fields.get("k", int) if activation == "topk" else None
    if k is not None and "k" in tensors and int(tensors["k"]) != k:
        raise fields.wrong(f"'k' is {k}, and the weights say {int(tensors['k'])}")
    used = {
        name: value
        for name, value in found.items()
        if name not in _OF_TRAINING or (name, activation) == ("threshold", "jumprelu")
    }
    about = {"model_name": fields.fields["lm_name"]} if "lm_name" in fields.fields else {}
    config = SaeConfig(at, activation, k, centred=overrides.centred or False, subtract_b_dec=subtracts, about=about)
    return config, used


def of_kissane(
    path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Overrides
) -> tuple[SaeConfig, dict[str, Tensor]]:
    """Read Kissane et al.'s: a .pt file, and beside it a file of the same name that ends in _cfg.json."""
    fields = Description(path, cfg)
    config = SaeConfig(overrides.at or fields.get("act_name", str), centred=overrides.centred or False,
                       about={"model_name": fields.get("model_name", str, "gpt2-small")})  # fmt: skip
    return config, dict(tensors)


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str], turned: set[str]) -> dict[str, Tensor]:
    """Tensors under our names; those of torch's linear layers are [outputs, inputs] and are turned."""
    return {
        names.get(name, name): tensor.t().contiguous() if name in turned and tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }
