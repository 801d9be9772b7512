"""What a sparse autoencoder computes, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from pellucid.check import as_flag, require_whole
from pellucid.errors import ConfigError, InputError, NumericsError, WeightsError, shown
from pellucid.family import families
from pellucid.schema import Axis

if TYPE_CHECKING:
    from pellucid.sae.autoencoder import SparseAutoencoder

Activation = Literal["relu", "topk", "jumprelu", "gated"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]

_HEADS = re.compile(r"(^|[._])(rot_q|rot_k|q|k|v|z)$")
"""Names of values that have a head axis, in every vocabulary."""


@dataclass(frozen=True)
class SaeConfig:
    """What a sparse autoencoder computes, and where.

    Attributes:
        at: The checkpoint that it stands for, by any name that a model knows, such as "blocks.8.hook_resid_pre".
        activation: "relu"; "topk", the k largest pre-activations, and of these the positive ones (Gao et al. 2024,
            arXiv:2406.04093); "jumprelu", those above a threshold of their own (Rajamanoharan et al. 2024,
            arXiv:2407.14435); "gated", magnitudes behind a gate (Rajamanoharan et al. 2024, arXiv:2404.16014).
        k: Of "topk".
        normalization: What is done to each input first, and undone after decoding: "layer_norm" takes off its mean and
            divides by its standard deviation (n - 1 in the denominator) plus 1e-5; "constant_norm_rescale" gives it
            the length sqrt(D).
        centred: True if it was trained on a model whose writing weights were centred: the mean over D is taken off
            first, and added back.
        subtract_b_dec: Whether the decoder's bias is taken off the input.
        rescaled: Whether "topk" compares pre-activations times the length of their decoder directions.
        head: The one head that it reads, of a value that has heads; None for all of them, side by side.
        about: What is known of its training, such as "model_name"; saved again with it.

    Raises:
        ConfigError: If a value is out of range.
        UnknownNameError: If no family has the checkpoint.
    """

    at: str
    activation: Activation = "relu"
    k: int | None = None
    normalization: Normalization = "none"
    centred: bool = False
    subtract_b_dec: bool = True
    rescaled: bool = False
    head: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name, kinds in (("activation", Activation), ("normalization", Normalization)):
            if not isinstance(given := getattr(self, name), str) or given not in get_args(kinds):
                raise _impossible(f"{name}={shown(given)}, expected {' or '.join(get_args(kinds))}")
        for name in ("centred", "subtract_b_dec", "rescaled"):
            if (flag := as_flag(getattr(self, name))) is None:
                raise _impossible(f"{name}={shown(getattr(self, name))}, expected True or False")
            object.__setattr__(self, name, flag)
        if not isinstance(self.at, str) or not self.at:
            raise _impossible(f"at={shown(self.at)}, expected the name of a checkpoint")
        kind, block = families.kind_and_block(self.at)
        if "*" in (block or ""):
            raise _impossible(f"at={self.at!r}, a value of several blocks, expected that of one, 'blocks.8.{kind}'")
        if Axis.POS not in families.axes_of(kind):
            raise _impossible(f"at={self.at!r}, expected a value that is a vector at each token")
        if (self.activation == "topk") != (self.k is not None) or (self.rescaled and self.activation != "topk"):
            raise _impossible(f"activation={self.activation!r} with k={shown(self.k)} and rescaled={self.rescaled}, "
                              "expected a k with 'topk' alone, which alone is rescaled")  # fmt: skip
        for name, least in (("k", 1), ("head", 0)):
            if (value := getattr(self, name)) is not None:
                found = require_whole(f"SaeConfig: {name}", value, at_least=least, error=ConfigError, code="sae-config")
                object.__setattr__(self, name, found)
        if self.head is not None and not self.has_heads:
            raise _impossible(f"head={self.head} at {self.at!r}, which has no heads")

    @property
    def has_heads(self) -> bool:
        """Whether the value has a head axis, so that its heads are laid side by side."""
        return _HEADS.search(self.at) is not None


_PLAIN = {"W_enc": "DF", "W_dec": "FD", "b_dec": "D"}
_NEEDED: Mapping[str, Mapping[str, str]] = {
    "relu": {**_PLAIN, "b_enc": "F"},
    "topk": {**_PLAIN, "b_enc": "F"},
    "jumprelu": {**_PLAIN, "b_enc": "F", "threshold": "F"},
    "gated": {**_PLAIN, "b_gate": "F", "b_mag": "F", "r_mag": "F"},
}
"""The parameters of each kind, with their axes."""


def checked_weights(config: SaeConfig, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The parameters of such an autoencoder, in their order; what are not these, in their shapes, is refused."""
    if not isinstance(config, SaeConfig) or not isinstance(weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        given = f"{type(config).__name__} and {type(weights).__name__} given"
        raise _misfit("SparseAutoencoder", f"{given}, expected SaeConfig and tensors by name")
    where, needed = f"autoencoder of {config.at!r}, {config.activation}", _NEEDED[config.activation]
    wrong = [f"{name} is {'missing' if name in needed else 'not used'}" for name in {*needed} ^ {*weights}]
    if wrong:
        raise _misfit(where, f"{', '.join(sorted(wrong))}, expected {', '.join(needed)}")
    kinds = [f"{name} is {type(t).__name__}" for name, t in weights.items() if not isinstance(t, Tensor)]  # pyright: ignore[reportUnnecessaryIsInstance]
    if kinds:
        raise _misfit(where, f"{', '.join(kinds)}, expected tensors")
    if weights["W_enc"].dim() != 2:
        raise _misfit(where, f"W_enc is {list(weights['W_enc'].shape)}, expected [D, F]")
    sizes = dict(zip("DF", weights["W_enc"].shape, strict=True))
    dtype = weights["W_enc"].dtype
    for name, axes in needed.items():
        given, expected = weights[name], [sizes[axis] for axis in axes]
        if list(given.shape) != expected or given.dtype != dtype or not dtype.is_floating_point:
            what = f"{list(given.shape)} of {given.dtype}"
            raise _misfit(where, f"{name} is {what}, expected {expected} of one floating-point dtype")
    if config.k is not None and config.k > sizes["F"]:
        raise _misfit(where, f"{sizes['F']} features, expected k={config.k} or more")
    return {name: weights[name] for name in needed}


def _misfit(where: str, what: str) -> WeightsError:
    remedy = "Give the tensors that are expected, in the shapes that SparseAutoencoder documents."
    return WeightsError(f"{where}: {what}.", code="sae-tensors", remedy=remedy)


def _impossible(what: str) -> ConfigError:
    return ConfigError(f"SaeConfig: {what}.", code="sae-config", remedy="Give one of the values that are expected.")


_BOUND = 1e-10
"""How far reconstructions in float64 may be apart, relative to their size."""


def folded(sae: SparseAutoencoder) -> SparseAutoencoder:
    """What `SparseAutoencoder.fold_decoder_norm` returns, in float64."""
    if sae.config.activation == "topk" and not sae.config.rescaled:
        raise InputError(
            "fold_decoder_norm: a topk of plain pre-activations; longer ones would be among the k largest.",
            code="sae-fold",
            remedy="Leave it as it is, and multiply its features by sae.W_dec.norm(dim=-1) to compare them.",
        )
    own = {name: p.detach().cpu().double() for name, p in sae.named_parameters()}
    lengths = own["W_dec"].norm(dim=-1)
    lengths = torch.where(lengths > 0, lengths, 1.0)  # a direction of zeros has no length to give away
    for name in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag"):
        if name in own:
            own[name] = own[name] * lengths
    own["W_dec"] = own["W_dec"] / lengths[:, None]
    return type(sae)(replace(sae.config, rescaled=False), own).requires_grad_(False)


def proved(sae: SparseAutoencoder, copy: SparseAutoencoder, x: Tensor) -> float:
    """`SparseAutoencoder.prove_fold`."""
    again, own = folded(sae), sae.double_copy()
    weights = {name: p.detach().cpu() for name, p in copy.named_parameters()} if isinstance(copy, type(sae)) else {}  # pyright: ignore[reportUnnecessaryIsInstance]
    changed = [name for name, p in again.named_parameters()
               if name not in weights or not torch.equal(weights[name], p.to(weights[name]))]  # fmt: skip
    sae.frame(x)  # refuses what are no values
    x = x.detach().cpu().double()
    with torch.no_grad():
        before, after = own.split(x).reconstruction, again.split(x).reconstruction
    size = before.abs().max().clamp(min=torch.finfo(before.dtype).tiny)  # of zeros alone, too
    difference = float((after - before).abs().max() / size)
    if changed or not difference <= _BOUND:
        what = f"{changed[0]!r} is not what folding gives" if changed else f"{difference:.2e} apart in float64"
        raise NumericsError(
            f"prove_fold: {what}, expected the same reconstructions to {_BOUND:.0e}.",
            code="sae-fold-differs",
            remedy="Fold again, sae.fold_decoder_norm(): one of the two was changed since.",
        )
    return difference
