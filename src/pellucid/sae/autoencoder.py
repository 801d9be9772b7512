"""Sparse autoencoders: a value of a run as a sum of few features out of many, each with a direction of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.errors import InputError, ShapeError, shown
from pellucid.names import aliases
from pellucid.run.edit import Edit
from pellucid.run.region import Index, entries
from pellucid.sae import sae_config, saelens, splice
from pellucid.sae.sae_config import SaeConfig, checked_weights
from pellucid.schema import Schema

if TYPE_CHECKING:
    import xarray

    from pellucid.run.activations import ActivationCkpts

_EPS = 1e-5
"""What SAELens adds to the standard deviation of an input; the encoder's alone, so decoding does not add it."""


class Split(NamedTuple):
    """A value as an autoencoder sees it: `reconstruction + error` is the value."""

    features: Tensor  # [..., F]
    reconstruction: Tensor  # what the features stand for, in the value's shape
    error: Tensor  # what they leave out, in the value's shape


class Frame(NamedTuple):
    """An input as the encoder reads it, and how to get back: times `scale`, plus `mean`."""

    value: Tensor
    mean: Tensor | None
    scale: Tensor | None


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder: `f = activation((x - b_dec) W_enc + b_enc)`, and `x = f W_dec + b_dec + error`.

    `encode`, `decode` and `split` compute; `features` and `top` read a run; `zero`, `set`, `scale`, `add` and `edit`
    make edits of features, and `reconstruct` one that leaves out the error.

    Args:
        config: What is computed, and where.
        weights: "W_enc" [D, F], "W_dec" [F, D], "b_dec" [D] and "b_enc" [F]; of "jumprelu" also "threshold" [F]; of
            "gated" "b_gate", "b_mag" and "r_mag" [F] in place of "b_enc". They become parameters, without a copy.

    Raises:
        WeightsError: If a tensor is missing, or has another shape or dtype than the others.

    Example:
        >>> import torch
        >>> import pellucid as pl
        >>> model = pl.load()
        >>> directions = torch.nn.functional.normalize(torch.randn(512, 256), dim=-1)
        >>> weights = {"W_enc": directions.T.clone(), "b_enc": torch.zeros(512), "W_dec": directions,
        ...            "b_dec": torch.zeros(256)}
        >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.2.resid_pre", "topk", k=8), weights)
        >>> plain, edited = model("Once upon a"), model.run("Once upon a", edits=sae.scale(range(512), 1.0))
        >>> bool((edited == plain).all())
        True
    """

    W_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    b_enc: nn.Parameter
    threshold: nn.Parameter
    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    def __init__(self, config: SaeConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, given in checked_weights(config, weights).items():
            setattr(self, name, nn.Parameter(given))
        self.config = config

    @property
    def d_in(self) -> int:
        """D, the width of what is encoded."""
        return self.W_enc.size(0)

    @property
    def n_features(self) -> int:
        """F, how many features there are."""
        return self.W_enc.size(1)

    def __repr__(self) -> str:
        own, lengths = self.config, self.W_dec.detach().double().norm(dim=-1)
        least, most = float(lengths.min()), float(lengths.max())
        turned = f"{least:.4g} long" if most - least < 1e-3 * most else f"{least:.4g} to {most:.4g} long"
        facts = [f"activation {own.activation}" + (f", k={own.k}" if own.k else "")]
        facts += ["topk of activations times decoder lengths"] * own.rescaled
        facts += [f"inputs normalized by {own.normalization}"] * (own.normalization != "none")
        facts += ["mean over D taken off, and added back"] * own.centred
        facts += ["" if own.subtract_b_dec else "b_dec not taken off the input"]
        facts += [f"decoder directions {turned}"]
        facts += [f"trained on {shown(name)}" for name in [own.about.get("model_name")] if name]
        where = own.at if own.head is None else f"{own.at}[{own.head}]"
        title = f"SparseAutoencoder at {where}: {self.n_features} features of {self.d_in} dimensions"
        return "\n  ".join([title, *filter(None, facts)])

    # Values

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of values, in their shape: `split(x).reconstruction`."""
        return self.split(x).reconstruction

    def encode(self, x: Tensor) -> Tensor:
        """Compute the features [..., F] of values [..., D], or [..., H, K] if values have heads.

        Raises:
            ShapeError: If the values have another width.
        """
        frame = self.frame(x)
        given = frame.value - self.b_dec if self.config.subtract_b_dec else frame.value
        if self.config.activation == "gated":
            open_gates = given @ self.W_enc + self.b_gate > 0
            return (given @ (self.W_enc * self.r_mag.exp()) + self.b_mag).relu() * open_gates
        pre = given @ self.W_enc + self.b_enc
        if self.config.activation == "jumprelu":
            return pre.relu() * (pre > self.threshold)
        if self.config.k is None:
            return pre.relu()
        if self.config.rescaled:
            pre = pre * self.W_dec.norm(dim=-1)
        largest = pre.topk(self.config.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, largest.indices, largest.values.relu())

    def decode(self, features: Tensor, x: Tensor | None = None) -> Tensor:
        """Compute what features [..., F] stand for.

        Args:
            features: As `encode` gives them.
            x: The values that they are of. Needed if the input's mean or length is taken off before encoding: it is
                put back from here.

        Returns:
            Values in the shape and dtype of `x`; [..., D] without it.

        Raises:
            InputError: If there is no `x`, though the input is normalized or centred.
            ShapeError: If features are missing.
        """
        if x is None and (self.config.normalization != "none" or self.config.centred):
            raise InputError(
                "decode: each input's own mean or length was taken off before encoding, and is not known.",
                code="sae-decode-input",
                remedy="Give the values that were encoded: sae.decode(features, x).",
            )
        if not isinstance(features, Tensor) or not features.dim() or features.size(-1) != self.n_features:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ShapeError(
                f"decode: features {_shape_of(features)}, expected [..., {self.n_features}].",
                code="sae-width",
                remedy="Give all features, as sae.encode(x) returns them, with zeros where there is nothing.",
            )
        if self.config.rescaled:
            features = features / self.W_dec.norm(dim=-1)
        found = features @ self.W_dec + self.b_dec
        if x is None:
            return found
        frame = self.frame(x)
        found = found if frame.scale is None else found * frame.scale
        return (found if frame.mean is None else found + frame.mean).reshape(x.shape).to(x)

    def split(self, x: Tensor) -> Split:
        """Return the features of values, what they stand for, and the error that is left.

        Args:
            x: [..., D], or [..., H, K] if values have heads.

        Example:
            >>> import torch
            >>> import pellucid as pl
            >>> one, zero = torch.eye(4), torch.zeros(4)
            >>> weights = {"W_enc": one, "b_enc": zero, "W_dec": one, "b_dec": zero}
            >>> sae = pl.sae.SparseAutoencoder(pl.sae.SaeConfig("blocks.0.resid_pre"), weights)
            >>> sae.split(torch.tensor([3.0, -1.0, 0.0, 2.0])).error.tolist()
            [0.0, -1.0, 0.0, 0.0]
        """
        features = self.encode(x)
        reconstruction = self.decode(features, x)
        return Split(features, reconstruction, x - reconstruction)

    def moved(self, x: Tensor, difference: Tensor, features: Tensor) -> Tensor:
        """Compute decode(f + difference) - decode(f), exactly zero if the difference is.

        Args:
            x: The values whose features these are.
            difference: [..., n], what is added to some features.
            features: [n], which.
        """
        directions = self.W_dec[features]
        if self.config.rescaled:
            difference = difference / directions.norm(dim=-1)
        found, scale = difference @ directions, self.frame(x).scale
        return (found if scale is None else found * scale).reshape(x.shape).to(x)

    def frame(self, x: Tensor) -> Frame:
        """Values [..., D] as the encoder reads them before b_dec, and how to get back; heads are laid side by side."""
        if not isinstance(x, Tensor) or x.dim() < 1 + self.config.has_heads:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self._other_width(x)
        value, mean, scale = (x.flatten(-2) if self.config.has_heads else x).to(self.W_enc), None, None
        if value.size(-1) != self.d_in:
            raise self._other_width(x)
        if self.config.centred or self.config.normalization == "layer_norm":
            mean = value.mean(-1, keepdim=True)
            value = value - mean
        if self.config.normalization == "layer_norm":
            scale = value.std(-1, keepdim=True)
            value = value / (scale + _EPS)
        if self.config.normalization == "constant_norm_rescale":
            scale = value.norm(dim=-1, keepdim=True) / self.d_in**0.5
            value = value / scale
        return Frame(value, mean, scale)

    def _other_width(self, x: Tensor) -> ShapeError:
        axes = "[..., H, K] with H times K" if self.config.has_heads else "[..., D] with D"
        return ShapeError(
            f"autoencoder of {self.config.at!r}: values {_shape_of(x)}, expected {axes} = {self.d_in}.",
            code="sae-width",
            remedy="Give the model that the autoencoder was trained on, and values of its checkpoint; "
            "pl.sae.load(path, at=...) names another checkpoint.",
        )

    # Runs

    def place(self, schema: Schema) -> str:
        """The checkpoint's name in a model.

        Raises:
            UnknownNameError: If the model has no such checkpoint.
        """
        return aliases.resolved(self.config.at, schema)

    def features(self, ckpts: ActivationCkpts) -> xarray.DataArray:
        """Return the features of a run, [batch, pos, feature]; pads are NaN. The run captured the autoencoder's place.

        Raises:
            UnknownNameError: If the place is not in the model, or was not captured.
            ShapeError: If the values have another width.
        """
        return splice.features(self, ckpts)

    def top(self, ckpts: ActivationCkpts, n: int = 10) -> xarray.Dataset:
        """Return the n features of a run with the largest activations, and at which token each is largest.

        Returns:
            Along `feature`, the largest first: `activation`, `token`, `batch`, `pos`, and `count`, at how many tokens
            it is active; fewer than n if no more are active. `.to_dataframe()` prints as a table.
        """
        return splice.top(self, ckpts, n)

    def zero(self, features: Index, *, pos: Index = None, rows: Index = None) -> Edit:
        """An edit that sets features to zero, everything else of the value, the error too, staying as it is.

        Args:
            features: Numbers of features; an index, a slice or several.
            pos, rows: Which columns and rows of the batch; all if None.
        """
        return self._edited(Edit.zero, features, pos=pos, rows=rows)

    def set(self, features: Index, value: Tensor | float, *, pos: Index = None, rows: Index = None) -> Edit:
        """An edit that sets features to a value: a number, or what broadcasts to [rows, positions, features]."""
        return self._edited(Edit.replace, features, value, pos=pos, rows=rows)

    def add(self, features: Index, value: Tensor | float, *, pos: Index = None, rows: Index = None) -> Edit:
        """An edit that adds a value to features; see `set`."""
        return self._edited(Edit.add, features, value, pos=pos, rows=rows)

    def scale(self, features: Index, factor: Tensor | float, *, pos: Index = None, rows: Index = None) -> Edit:
        """An edit that multiplies features by a factor; see `set`."""
        return self._edited(Edit.scale, features, factor, pos=pos, rows=rows)

    def edit(
        self, features: Index, function: Callable[[Tensor], Tensor], *, pos: Index = None, rows: Index = None
    ) -> Edit:
        """An edit that puts `function(part)` there, part [rows, positions, features]; see `zero`."""
        return self._edited(Edit.apply, features, function, pos=pos, rows=rows)

    def reconstruct(self, *, pos: Index = None, rows: Index = None) -> Edit:
        """An edit that puts the reconstruction in the value's place, so the error is left out."""
        return splice.reconstructed(self, pos, rows)

    def _edited(self, make: Callable[..., Edit], features: Index, *given: Any, pos: Index, rows: Index) -> Edit:
        known = entries(features, self.n_features, "autoencoder: features").tolist()
        return splice.edited(self, make(self.config.at, *given, neurons=known, pos=pos, rows=rows))

    # Folding and saving

    def fold_decoder_norm(self) -> SparseAutoencoder:
        """Return a copy whose decoder directions have length one, and whose features are longer by what these lost.

        The reconstruction stays; Neuronpedia's activations are of autoencoders folded so. It is computed in float64 and
        rounded once. `prove_fold` proves it.

        Raises:
            InputError: For a "topk" that compares plain pre-activations, which others would then be the largest of.
        """
        return self.rounded(sae_config.folded(self))

    def prove_fold(self, folded: SparseAutoencoder, x: Tensor) -> float:
        """Fold again in float64, and compare features and reconstructions of some values.

        The folded copy's weights have to be these, rounded to its dtype, to the bit.

        Args:
            folded: What `fold_decoder_norm` returned.
            x: Values, as `encode` takes them.

        Returns:
            The largest difference of reconstructions, relative to the largest number in them.

        Raises:
            NumericsError: If it is more than 1e-10, or weights differ: one of the two was changed since.
        """
        return sae_config.proved(self, folded, x)

    def double_copy(self) -> SparseAutoencoder:
        """A copy in float64 on the processor, without gradients."""
        copy = SparseAutoencoder(self.config, {n: p.detach().cpu().double() for n, p in self.named_parameters()})
        return copy.requires_grad_(False)

    def rounded(self, exact: SparseAutoencoder) -> SparseAutoencoder:
        """Another autoencoder's copy in the dtype of this one, and where this one is."""
        return SparseAutoencoder(exact.config, {n: p.detach().to(self.W_enc) for n, p in exact.named_parameters()})

    def save(self, folder: str | Path) -> None:
        """Write `cfg.json` and `sae_weights.safetensors` as SAELens 6 does, which it and `pl.sae.load` read to the bit.

        Raises:
            WeightsError: If they cannot be written, or are not finite.
        """
        saelens.save(self.config, {name: p.detach().cpu() for name, p in self.named_parameters()}, folder)


def _shape_of(given: object) -> str:
    return str(list(given.shape)) if isinstance(given, Tensor) else type(given).__name__
