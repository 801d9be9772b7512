"""Small autoencoders with weights in which each matters, and what they compute, written out by the formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pellucid as pl

F = 40
"""Features of each."""


def weights(
    width: int, activation: str = "relu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Random tensors of an autoencoder of this width."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float) -> Tensor:
        return (std * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)

    made = {"W_enc": draw(width, F, std=width**-0.5), "W_dec": draw(F, width, std=0.4), "b_dec": draw(width, std=0.3)}
    names = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}.get(activation, ("b_enc",))
    made |= {name: draw(F, std=0.3) for name in names}
    return {name: value.abs() if name == "threshold" else value for name, value in made.items()}


def make(
    at: str, width: int, activation: str = "relu", dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any
) -> pl.sae.SparseAutoencoder:
    """An autoencoder of a checkpoint of this width."""
    more = {"k": 5, **fields} if activation == "topk" else fields
    config = pl.sae.SaeConfig(at, activation, **more)  # pyright: ignore[reportArgumentType]
    return pl.sae.SparseAutoencoder(config, weights(width, activation, dtype, seed))


def by_formula(sae: pl.sae.SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstruction of flat values [..., D], in float64, as the papers and SAELens' code define them."""
    own, config = {name: p.detach().double() for name, p in sae.named_parameters()}, sae.config
    x = x.double()
    width = x.size(-1)
    shift, factor = torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
    if config.centred or config.normalization == "layer_norm":
        shift = x.sum(-1, keepdim=True) / width
    given = x - shift
    if config.normalization == "layer_norm":
        factor = (given.square().sum(-1, keepdim=True) / (width - 1)).sqrt()
        given = given / (factor + 1e-5)
    if config.normalization == "constant_norm_rescale":
        factor = given.square().sum(-1, keepdim=True).sqrt() / width**0.5
        given = given / factor
    given = given - own["b_dec"] if config.subtract_b_dec else given
    lengths = own["W_dec"].square().sum(-1).sqrt()
    if config.activation == "gated":
        magnitude = (given @ own["W_enc"]) * own["r_mag"].exp() + own["b_mag"]
        features = magnitude.clamp(min=0) * ((given @ own["W_enc"] + own["b_gate"]) > 0)
    else:
        features = given @ own["W_enc"] + own["b_enc"]
        if config.activation == "jumprelu":
            features = features * (features > own["threshold"])
        if config.rescaled:
            features = features * lengths
        if config.k is not None:
            least = features.sort(-1, descending=True).values[..., config.k - 1 : config.k]
            features = features * (features >= least)
        features = features.clamp(min=0)
    stands = features / lengths if config.rescaled else features
    return features, (stands @ own["W_dec"] + own["b_dec"]) * factor + shift
