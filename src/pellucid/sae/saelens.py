"""Autoencoders as SAELens stores them: `cfg.json` and `sae_weights.safetensors`, of version 6 and of those before."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pellucid import atomic
from pellucid.check import as_number
from pellucid.errors import ConfigError, WeightsError, shown
from pellucid.sae.sae_config import Activation, Normalization, SaeConfig
from pellucid.weights.own_file import write_tensors

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

_VERSION = "6.0.0"
"""The first version of SAELens whose files look as those written here."""

_ARCHITECTURES: Mapping[str, Activation] = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated",
}  # fmt: skip
"""SAELens' word -> ours."""

_NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")

_OLD_WORDS = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""What versions before 6 called a field -> what it is called now."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}

_WRITTEN = re.compile(r"(resid_\w+|attn_out|mlp_out|embed)$")
"""Values of the stream, or written into it, which centring a model's writing weights changes."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Overrides:
    """What the caller of `pl.sae.load` says beside the file: see there."""

    at: str | None = None
    centred: bool | None = None
    input_scale: float | None = None


class Description:
    """A configuration that a stranger wrote, read field by field."""

    def __init__(self, where: Path, fields: Mapping[str, Any]) -> None:
        self.where, self.fields = where, fields

    def get(self, name: str, kind: type[_T], default: _T | None = None) -> _T:
        """A field of this type; the default if it is missing or null."""
        value = self.fields.get(name)
        value = default if value is None else value
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            given = "is missing" if value is None else f"is {shown(value)}"
            raise self.wrong(f"{name!r} {given}, expected {kind.__name__}")
        return value

    def wrong(self, what: str, remedy: str = "Correct the file, or download it again.") -> ConfigError:
        """The error for a field that cannot be."""
        return ConfigError(f"{self.where}: {what}.", code="sae-config", remedy=remedy)

    def refused(self, what: str, remedy: str = "") -> ConfigError:
        """The error for what is not implemented."""
        known = (
            "Give a folder of SAELens ('standard', 'topk', 'jumprelu', 'gated'), sparsify or dictionary_learning. If "
            "the tensors are of one of these kinds: pl.sae.SparseAutoencoder(pl.sae.SaeConfig(at, kind), tensors)."
        )
        return ConfigError(
            f"{self.where}: {what}, which is not read.", code="sae-not-supported", remedy=remedy or known
        )


def understood(
    path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Overrides
) -> tuple[SaeConfig, dict[str, Tensor]]:
    """Read a configuration of SAELens, and take the tensors to the form that it describes."""
    inner = Description(path, cfg).get("metadata", dict, {})
    fields = Description(path, {_OLD_WORDS.get(name, name): value for name, value in {**inner, **cfg}.items()})
    is_old = not re.match(r"([6-9]|\d\d)", fields.get("sae_lens_version", str, "0"))
    at = overrides.at or fields.get("hook_name", str, "")
    if not at:
        raise no_place(path)
    _refuse_transcoders(fields)
    activation, k = _activation(fields, is_old)
    normalization, found = _normalized(fields, dict(tensors), overrides)
    dtype = fields.get("dtype", str, "float32").removeprefix("torch.")
    if dtype not in _DTYPES:
        raise fields.wrong(f"'dtype' is {shown(dtype)}, expected {', '.join(_DTYPES)}")
    found = _scaled(fields, {name: tensor.to(_DTYPES[dtype]) for name, tensor in found.items()})
    for name, axis in (("d_in", 0), ("d_sae", 1)):
        size = fields.get(name, int)
        if "W_enc" in found and found["W_enc"].dim() == 2 and found["W_enc"].size(axis) != size:
            raise fields.wrong(
                f"{name!r} is {size}, and W_enc is {list(found['W_enc'].shape)}",
                "Put the cfg.json of the same autoencoder beside its weights.",
            )
    config = SaeConfig(
        at, activation, k, normalization, _centred(fields, at, normalization, is_old, overrides),
        fields.get("apply_b_dec_to_input", bool, True), fields.get("rescale_acts_by_decoder_norm", bool, False),
        fields.fields.get("hook_head_index"), _about(inner, cfg),
    )  # fmt: skip
    if fields.get("reshape_activations", str, "none") == "hook_z" and not config.has_heads:
        raise fields.wrong(f"'reshape_activations' is 'hook_z' at {at!r}, which has no heads")
    return config, found


def no_place(path: Path) -> ConfigError:
    """The error for an autoencoder that does not say which value it is of."""
    return ConfigError(
        f"{path}: does not say which value the autoencoder is of.",
        code="sae-place",
        remedy="Give it: pl.sae.load(path, at='blocks.8.resid_pre'), for example.",
    )


def _refuse_transcoders(fields: Description) -> None:
    architecture = fields.get("architecture", str, "standard")
    out = fields.get("hook_name_out", str, "") or fields.get("hook_point_out", str, "")
    if "transcoder" in architecture or (out and out != fields.fields.get("hook_name")):
        raise fields.refused(f"a transcoder ({architecture!r}, writing to {shown(out or 'another value')})", "Give an "
                             "autoencoder: its input and its output are one value.")  # fmt: skip
    for name, places in (("fold_ln", r"(normalized|scaled)$"), ("fold_value_biases", r"(^|[._])(v|z)$")):
        kwargs = fields.get("model_from_pretrained_kwargs", dict, {})
        hook = fields.get("hook_name", str, "")
        if kwargs.get(name) and re.search(places, hook):
            raise fields.refused(
                f"trained on {hook!r} of a model with {name}=True",
                f"Fold the model alike, pl.fold(model, ...).model, and use it with this autoencoder, with {name!r} "
                "taken out of cfg.json.",
            )


def _activation(fields: Description, is_old: bool) -> tuple[Activation, int | None]:
    architecture = fields.get("architecture", str, "standard" if is_old else None)
    function = fields.get("activation_fn", str, "relu")
    if architecture not in _ARCHITECTURES:
        raise fields.refused(f"architecture {shown(architecture)}")
    if function not in ("relu", "topk") or (function == "topk" and architecture not in ("standard", "topk")):
        raise fields.refused(f"architecture {architecture!r} with the activation function {shown(function)}")
    activation = "topk" if function == "topk" else _ARCHITECTURES[architecture]
    if activation != "topk":
        return activation, None
    given = fields.fields.get("k") or fields.get("activation_fn_kwargs", dict, {}).get("k")
    if given is None:
        raise fields.wrong(
            "a topk without its 'k'", "Put 'k' into cfg.json, as many features as are active at a token."
        )
    return activation, given


def _normalized(
    fields: Description, tensors: dict[str, Tensor], overrides: Overrides
) -> tuple[Normalization, dict[str, Tensor]]:
    """What is done to each input. One factor for all inputs is multiplied into the weights, as SAELens does."""
    given = fields.fields.get("normalize_activations")
    names = {None: "none", False: "none", True: "expected_average_only_in"}  # before version 3
    how = names[given] if given is None or isinstance(given, bool) else given
    if how in _NORMALIZATIONS:
        return how, tensors
    if how != "expected_average_only_in":
        raise fields.refused(f"inputs normalized by {shown(how)}")
    factor = as_number(overrides.input_scale)
    if factor is None or not 0 < factor < float("inf"):
        raise ConfigError(
            f"{fields.where}: inputs are multiplied by one factor ('expected_average_only_in'), which it does not "
            "hold.",
            code="sae-input-scale",
            remedy="Give it: pl.sae.load(path, input_scale=...). It is sqrt(D) over the mean length of the values that "
            "it was trained on.",
        )
    powers = {"W_enc": factor, "W_dec": 1 / factor, "b_dec": 1 / factor}
    return "none", {name: tensor * powers.get(name, 1) for name, tensor in tensors.items()}


def _scaled(fields: Description, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without `scaling_factor`, a factor for each feature before decoding, which is multiplied into its direction."""
    factor, directions = tensors.pop("scaling_factor", None), tensors.get("W_dec")
    if factor is None or torch.allclose(factor, torch.ones_like(factor)):
        return tensors
    if not fields.get("finetuning_scaling_factor", bool, False):
        raise fields.wrong("'finetuning_scaling_factor' is not true, and the weights hold a scaling_factor")
    if directions is None or factor.shape != directions.shape[:1]:
        raise fields.wrong(f"scaling_factor is {list(factor.shape)}, expected one number for each row of W_dec")
    return {**tensors, "W_dec": directions * factor[:, None]}


def _centred(fields: Description, at: str, normalization: Normalization, is_old: bool, overrides: Overrides) -> bool:
    if overrides.centred is not None:
        return overrides.centred
    kwargs = fields.get("model_from_pretrained_kwargs", dict, {})
    says = "model_from_pretrained_kwargs" in fields.fields or not is_old
    if says or normalization == "layer_norm" or not _WRITTEN.search(at):
        return Description(fields.where, kwargs).get("center_writing_weights", bool, False)
    raise ConfigError(
        f"{fields.where}: does not say whether {at!r} was centred in the model that it was trained on.",
        code="sae-centring",
        remedy="Give centred=True if that was a HookedTransformer with its default processing, as of "
        "gpt2-small-res-jb; centred=False if it was the model as it is. The right one explains more variance: "
        "pl.sae.evaluate.",
    )


_READ = {
    *_OLD_WORDS, "architecture", "d_in", "d_sae", "dtype", "device", "activation_fn", "activation_fn_kwargs", "k",
    "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "hook_name", "hook_head_index", "metadata",
    "rescale_acts_by_decoder_norm", "finetuning_scaling_factor", "model_from_pretrained_kwargs", "sae_lens_version",
}  # fmt: skip


def _about(inner: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**cfg, **inner}.items() if name not in _READ}


def require_finite(where: object, tensors: Mapping[str, Tensor], remedy: str) -> None:
    """Refuse weights that are NaN or infinite."""
    if wrong := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise WeightsError(
            f"{where}: {', '.join(wrong)}: not finite numbers (NaN or infinity), of which every reconstruction is "
            "made.",
            code="sae-not-finite",
            remedy=remedy,
        )


def save(config: SaeConfig, weights: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write an autoencoder as SAELens 6 does; `SparseAutoencoder.save` says the rest."""
    remedy = "Save the autoencoder of an earlier step of its training, before its weights were lost."
    require_finite(f"autoencoder of {config.at!r}", weights, remedy)
    d_in, d_sae = weights["W_enc"].shape
    words = {ours: theirs for theirs, ours in _ARCHITECTURES.items()}
    cfg: dict[str, Any] = {
        "architecture": words[config.activation], "d_in": d_in, "d_sae": d_sae,
        "dtype": str(weights["W_enc"].dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": config.subtract_b_dec, "normalize_activations": config.normalization,
        "reshape_activations": "hook_z" if config.has_heads and config.head is None else "none",
        "metadata": {
            **config.about, "sae_lens_version": _VERSION, "hook_name": _hook_name(config.at),
            "hook_head_index": config.head,
            "model_from_pretrained_kwargs": {"center_writing_weights": True} if config.centred else {},
        },
    }  # fmt: skip
    if config.k is not None:
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": config.rescaled}
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    writers = [
        (WEIGHTS, partial(write_tensors, tensors=whole, metadata={})),
        (CFG, atomic.text_writer(json.dumps(cfg, indent=2))),
    ]
    atomic.write_folder(atomic.path_of(folder), writers)


def _hook_name(at: str) -> str:
    """A checkpoint's name as HookedTransformer has it; other libraries' names stay."""
    match = re.fullmatch(r"(blocks\.\d+\.)?(?:(\w+)\.)?(?:ckpt_)?(\w+)", at)
    if match is None or match[3].startswith("hook_"):
        return at
    block, part, last = match[1] or "", match[2] or "", {"scores": "attn_scores"}.get(match[3], match[3])
    return f"{block}{part + '.' if part and not last.endswith('_out') else ''}hook_{last}"
