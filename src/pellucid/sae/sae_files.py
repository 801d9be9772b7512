"""`pl.sae.load`: which library wrote a folder, and what it holds; SAELens is not the only one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.atomic import path_of
from pellucid.errors import ConfigError, InputError, NotFoundError, shown, warn
from pellucid.run.model import CkptedTransformer
from pellucid.sae import saelens
from pellucid.sae.autoencoder import SparseAutoencoder
from pellucid.sae.sae_config import Activation, SaeConfig
from pellucid.sae.saelens import Description, Overrides, no_place
from pellucid.weights.formats import read_file
from pellucid.weights.load import convert
from pellucid.weights.manifests import is_there, read_json

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
    threshold, bias = found.get("threshold"), found.get("b_enc")
    if activation == "jumprelu" and threshold is not None and bias is not None:
        # one number for all features; -1 before it was ever measured, when every positive number is above it
        threshold = threshold.clamp(min=0.0).to(bias)
        found["threshold"] = threshold.reshape(()).expand_as(bias).clone() if threshold.numel() == 1 else threshold
    k = fields.get("k", int) if activation == "topk" else None
    if k is not None and "k" in tensors and (said := tensors["k"].flatten().tolist()) != [k]:
        raise fields.wrong(f"'k' is {k}, and the weights say {shown(said)[1:-1]}")
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


_LAYOUTS = (
    (saelens.WEIGHTS, "cfg.json", saelens.understood),
    ("sae.safetensors", "cfg.json", of_sparsify),
    ("ae.pt", "config.json", of_dictionary_learning),
)
"""The file of the weights, the file that describes them, and who reads the two."""

_HERE = " or ".join(f"{weights} with {cfg}" for weights, cfg, _ in _LAYOUTS)


def load(
    path: str | Path,
    *,
    at: str | None = None,
    centred: bool | None = None,
    input_scale: float | None = None,
    model: CkptedTransformer | None = None,
    device: str | torch.device = "cpu",
) -> SparseAutoencoder:
    """Open a sparse autoencoder that somebody trained.

    SAELens' folders are read, of every version; sparsify's and dictionary_learning's; and a .pt file with its _cfg.json
    as Kissane et al. published them. Nothing is downloaded.

    Args:
        path: The folder, or the weights file in it.
        at: The checkpoint that it is of; what the file says if None.
        centred: Whether it was trained on a model whose writing weights were centred; what the file says if None.
        input_scale: The one factor that inputs are multiplied by, for files that say there is one and do not hold it.
        model: A model that it shall fit: its checkpoint and width are checked, and another model's name is a warning.
        device: Where the parameters go.

    Raises:
        NotFoundError: If there is no such folder, or no autoencoder in it.
        ConfigError: If the description cannot be, leaves something open, or says what is not implemented.
        WeightsError: If the weights cannot be read, do not fit the description, or are not finite.

    Example:
        >>> import tempfile, torch
        >>> import pellucid as pl
        >>> one, zero = torch.eye(256), torch.zeros(256)
        >>> weights = {"W_enc": one, "b_enc": zero, "W_dec": one, "b_dec": zero}
        >>> made = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.2.resid_pre"), weights)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made.save(folder)
        ...     pl.sae.load(folder, model=pl.load())
        SparseAutoencoder at blocks.2.hook_resid_pre: 256 features of 256 dimensions
          activation relu
          decoder directions 1 long
    """
    weights, description, understood = _found(path_of(path))
    cfg = read_json(description, ConfigError, "config-not-json")
    config, tensors = understood(
        description, cfg, read_file(weights).tensors, saelens.Overrides(at, centred, input_scale)
    )
    remedy = "Download the file again; or make the autoencoder of an earlier step of its training."
    saelens.require_finite(weights, tensors, remedy)
    sae = SparseAutoencoder(config, convert(tensors, None, device))
    if model is not None:
        require_fitting(sae, model)
    return sae


def require_autoencoder(sae: object, by: str) -> None:
    """Refuse what is no autoencoder."""
    if not isinstance(sae, SparseAutoencoder):
        raise InputError(
            f"{by}: {type(sae).__name__} given, expected an autoencoder.",
            code="sae-and-model",
            remedy="Give the SparseAutoencoder first, then what the run captured.",
        )


def require_fitting(sae: SparseAutoencoder, model: CkptedTransformer) -> None:
    """See that a model has the autoencoder's checkpoint, in its width; warn of a model of another name."""
    if not isinstance(sae, SparseAutoencoder) or not isinstance(model, CkptedTransformer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"pl.sae: {type(sae).__name__} and {type(model).__name__} given, expected an autoencoder and its model.",
            code="sae-and-model",
            remedy="Give the SparseAutoencoder first, then the CkptedTransformer that pl.load returned.",
        )
    point = model.schema[sae.place(model.schema)]
    sizes = [model.schema.length_of(axis, point) for axis in point.axes[2:]]
    if sae.config.head is not None:
        sizes[0] = 1
    sae.encode(torch.zeros(sizes, device="cpu"))
    trained_on, source = sae.config.about.get("model_name"), model.provenance.get("source", "")
    if trained_on and source and _bare(str(trained_on)) != _bare(source):
        warn(f"the autoencoder was trained on {shown(trained_on)}, and the model is {shown(source)}: features mean "
             "something in the model that they were trained on")  # fmt: skip


def _bare(name: str) -> str:
    """A model's name without its owner; "gpt2-small" is the hub's "gpt2"."""
    return name.rstrip("/").rpartition("/")[2].lower().removesuffix("-small")


def _found(path: Path) -> tuple[Path, Path, Any]:
    """The weights, their description, and who reads them."""
    beside = path.with_name(f"{path.stem}_cfg.json")
    if path.suffix == ".pt" and is_there(beside):
        return path, beside, of_kissane
    folder = path if path.is_dir() else path.parent
    for weights, cfg, understood in _LAYOUTS:
        if is_there(folder / weights) and (path == folder or path.name in (weights, cfg)):
            if not is_there(folder / cfg):
                raise NotFoundError(
                    f"{folder}: no {cfg} beside {weights}, and the tensors do not say what they compute.",
                    code="sae-not-found",
                    remedy=f"Download {cfg} into the folder.",
                )
            return folder / weights, folder / cfg, understood
    if not is_there(path):
        raise NotFoundError(f"{path}: not there.", code="path-not-found", remedy="Check the spelling of the path.")
    inside = sorted(p.parent.name for name, _, _ in _LAYOUTS for p in folder.glob(f"*/{name}"))
    raise NotFoundError(
        f"{path}: no autoencoder, expected {_HERE}.",
        code="sae-not-found",
        remedy=f"Give one of the folders in it, such as {str(folder / inside[0])!r}."
        if inside
        else "Give a folder with these files, or a .pt file with its _cfg.json beside it.",
    )
